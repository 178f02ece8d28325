"""The state of a training run, and its birth on the mesh."""

import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssmd_jax.model.causal import SpeculativeNetwork
from ssmd_jax.model.networks import make_network
from ssmd_jax.training import sharding


@flax.struct.dataclass
class TrainState:
    """All that a step changes; keys and the position in the data follow from `step`.

    Attributes:
        step: int32 scalar, steps done.
        params: parameters, unboxed.
        ema_params: their exponential moving average, or None where `ema_decay` is 0.
        opt_state: the optimiser's state.
        teacher_params: the trunk as it was at the start, where it teaches one that learns on (`LossConfig`); else None.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    teacher_params: Any = None

    @property
    def eval_params(self):
        """What is validated and released: the average, where there is one."""
        return self.params if self.ema_params is None else self.ema_params


def init_boxed_params(network: SpeculativeNetwork, key: jax.Array):
    """Fresh parameters in the boxes that name their logical axes."""
    # No parameter depends on the length of a sequence, nor on fused kernels, which this machine may not have.
    tokens_1x1 = jnp.zeros((1, 1), jnp.int32)
    network = make_network(dataclasses.replace(network.config, attention="xla", mlp="xla"))
    return network.init(key, tokens_1x1, tokens_1x1, tokens_1x1)["params"]


def abstract_params(network: SpeculativeNetwork):
    """Shapes and dtypes of the unboxed parameters."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: nn.unbox(init_boxed_params(network, key)), key)


def trunk_of(params):
    """The parameters without the causal part's."""
    return {name: part for name, part in params.items() if name != "causal"}


def init_state(
    network: SpeculativeNetwork,
    optimizer: optax.GradientTransformation,
    use_ema: bool,
    key: jax.Array,
    keeps_teacher: bool = False,
) -> TrainState:
    """A fresh state."""
    params = nn.unbox(init_boxed_params(network, key))
    # A copy, since the step donates its input and one buffer cannot be donated twice.
    ema_params = jax.tree.map(jnp.copy, params) if use_ema else None
    teacher_params = jax.tree.map(jnp.copy, trunk_of(params)) if keeps_teacher else None
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params), teacher_params)


def abstract_state(
    network: SpeculativeNetwork,
    optimizer: optax.GradientTransformation,
    use_ema: bool,
    mesh: jax.sharding.Mesh,
    keeps_teacher: bool = False,
) -> TrainState:
    """The state's shapes and dtypes with their shardings on the mesh.

    Optimiser state and moving average are sharded as their parameters are.

    Raises:
        ValueError: as `sharding.param_shardings`.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key: init_boxed_params(network, key), key)
    params = sharding.param_shardings(boxed, mesh, sharding.rules_for(mesh, network.config.padded_tokens))
    everywhere = sharding.replicated(mesh)
    shapes = jax.eval_shape(lambda key: init_state(network, optimizer, use_ema, key, keeps_teacher), key)
    # Where one rule of several does not train a parameter, its state has a MaskedNode in that parameter's place.
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda x, where: x if is_masked(x) else where,
        shapes.opt_state,
        params,
        transform_non_params=lambda x: x if is_masked(x) else everywhere,
        is_leaf=is_masked,
    )
    teacher = trunk_of(params) if keeps_teacher else None
    shardings = TrainState(everywhere, params, params if use_ema else None, opt_state, teacher)
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return jax.tree.map(place, shapes, shardings)


def shardings_of(tree):
    """The shardings of an abstract tree."""
    return jax.tree.map(lambda x: x.sharding, tree)


def count_params(params) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))
