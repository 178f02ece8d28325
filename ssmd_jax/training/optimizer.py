"""AdamW or Muon, learning rate schedule, clipping; which parameters are decayed and which are trained at all."""

import jax
import optax
from optax import contrib

from ssmd_jax.training.config import OptimizerConfig

# How Muon reads each kernel as (stacks of) matrices: reduction axes and output axes, counted from the back, so that
# the scanned trunk's stacked kernels are stacks of matrices. Queries, keys and values are orthogonalised apart, and
# so are the gate and the value of an MLP. What is not listed (norms, embedding, head, start vectors) goes to Adam.
MUON_AXES = {
    "qkv": ((-4,), (-2, -1)),
    "out": ((-3, -2), (-1,)),
    "up": ((-3,), (-1,)),
    "down": ((-2,), (-1,)),
    "widen": ((-2,), (-1,)),
    "dense": ((-2,), (-1,)),
    "project": ((-3, -2), (-1,)),
    "output": ((-2,), (-1,)),
    "token_up": ((-3,), (-1,)),
    "context_up": ((-3,), (-1,)),
    "query": ((-3,), (-2, -1)),
    "key": ((-3,), (-2, -1)),
    "value": ((-3,), (-2, -1)),
    "gate": ((-2,), (-1,)),
    "gate_sum": ((-2,), (-1,)),
    "mix": ((-2,), (-1,)),
    "shift": ((-2,), (-1,)),
}
# Those of networks in the layout of LLaDA. Where query heads share a key head, the queries are orthogonalised by their
# place in its group, one of each key head, as large as keys and values.
MUON_AXES_LLADA = {
    "qkv": ((-4,), (-3, -1)),
    "gate_up": ((-3,), (-1,)),
    "down": ((-2,), (-1,)),
    "out": ((-3, -2), (-1,)),
}
NOT_DECAYED = ("scale", "table", "embedding", "start", "bias")
TRAINED_WITH_FROZEN_TRUNK = "causal"


def _leaf_name(path) -> str:
    return path[-1].key


def decay_mask(params):
    """True for the parameters that decay: kernels and head; not norms, biases, embedding and start vectors."""
    return jax.tree.map_with_path(lambda path, _: _leaf_name(path).rsplit("_", 1)[-1] not in NOT_DECAYED, params)


def muon_dimensions(params):
    """`MuonDimensionNumbers` for the matrices among the parameters, None for what Adam takes."""

    def one(path, _):
        # As the trunk of a hybrid, or alone. The causal part has blocks of such names, too, in a layout of its own.
        is_llada = path[0].key == "network" or path[0].key.startswith("blocks_")
        axes = (MUON_AXES_LLADA if is_llada else MUON_AXES).get(_leaf_name(path))
        return None if axes is None else contrib.MuonDimensionNumbers(*axes)

    return jax.tree.map_with_path(one, params)


def is_trained(path) -> bool:
    """Whether the parameter at this path is trained while the trunk is frozen."""
    return path[0].key == TRAINED_WITH_FROZEN_TRUNK


def freeze(params):
    """The parameters with no gradient through those outside the causal part."""
    return jax.tree.map_with_path(lambda path, x: x if is_trained(path) else jax.lax.stop_gradient(x), params)


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1, ...: linear warm-up, then cosine to `final_fraction` of the peak."""
    warmup = min(config.warmup_steps, num_steps // 2)
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=num_steps,
        end_value=config.learning_rate * config.final_fraction,
    )
    # Shifted by one, or the first step would have rate 0 and do nothing.
    return lambda step: schedule(step + 1)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, freeze_trunk: bool = False
) -> optax.GradientTransformation:
    """The whole update rule: clipping, then AdamW or Muon.

    Args:
        config: which one, and its numbers.
        schedule: learning rate by step.
        freeze_trunk: parameters outside the causal part get neither updates nor optimiser state.
    """
    if config.name == "adamw":
        rule = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    else:
        rule = contrib.muon(
            schedule,
            beta=config.momentum,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=muon_dimensions,
            # Updates as large as AdamW's, so that the same learning rate serves both (arXiv 2502.16982).
            consistent_rms=0.2,
        )
    if config.clip_norm:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if config.trunk_rate != 1.0:
        rest = lambda params: jax.tree.map_with_path(lambda path, _: not is_trained(path), params)
        rule = optax.chain(rule, optax.masked(optax.scale(config.trunk_rate), rest))
    if freeze_trunk:
        labels = lambda params: jax.tree.map_with_path(
            lambda path, _: "trained" if is_trained(path) else "frozen", params
        )
        rule = optax.partition({"trained": rule, "frozen": optax.set_to_zero()}, labels)
    return rule
