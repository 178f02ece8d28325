"""The programs of a run, jitted with the shardings of its mesh: what the loop runs and what is compiled ahead of it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from ssmd_jax.data.buckets import row_unit
from ssmd_jax.model.causal import SpeculativeNetwork
from ssmd_jax.model.networks import make_network
from ssmd_jax.training import keys, sharding
from ssmd_jax.training import optimizer as optimizers
from ssmd_jax.training import state as states
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.state import TrainState
from ssmd_jax.training.step import make_train_step
from ssmd_jax.training.validation import make_eval_step


class Programs(NamedTuple):
    """Jitted functions; trace them under `sharding.activate(mesh, rules)`.

    Attributes:
        network: what they compute.
        rules: the sharding table for its vocabulary.
        abstract: the state's shapes, dtypes and shardings.
        init: `root key -> state`.
        train_step: `(state, tokens [B, D], root key) -> (state, metrics)`; the state is donated.
        eval_step: `(params, tokens [B, D], key) -> sums`.
    """

    network: SpeculativeNetwork
    rules: tuple
    abstract: TrainState
    init: Callable
    train_step: Callable
    eval_step: Callable


def check_batches(config: ExperimentConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises `ValueError` where devices would get different numbers of rows."""
    training, sizes = config.training, (config.training.batch_size, config.training.validation_batch_size)
    names = ("training.batch_size", "training.eval_batch_size")
    if config.data.rows == "sequences":  # batches of shorter sequences have more rows
        sizes, names = map(row_unit, sizes), [f"the unit of rows of {name}, an eighth if whole," for name in names]
    for size, name, accumulation in zip(sizes, names, (training.accumulation, 1), strict=True):
        sharding.check_batch(mesh, size, name, accumulation)


def make_programs(config: ExperimentConfig, mesh: jax.sharding.Mesh, num_tokens: int) -> Programs:
    """Builds them; nothing is compiled and no array is made.

    Args:
        config: the experiment.
        mesh: of devices, which need not be there.
        num_tokens: of the tokenizer.

    Raises:
        ValueError: as `state.abstract_state`.
    """
    training, use_ema = config.training, config.training.ema_decay > 0
    padded = config.data.rows == "sequences"
    # The fused kernel of the MLP is for inference: its backward pass computes everything again.
    network = make_network(dataclasses.replace(config.network_config(num_tokens), mlp="xla"))
    schedule = optimizers.make_schedule(config.optimizer, training.num_steps)
    optimizer = optimizers.make_optimizer(config.optimizer, schedule, config.loss.freeze_trunk)
    keeps_teacher = config.loss.keeps_teacher
    abstract = states.abstract_state(network, optimizer, use_ema, mesh, keeps_teacher)
    shardings = states.shardings_of(abstract)
    everywhere, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    step = make_train_step(
        network,
        optimizer,
        schedule,
        config.loss,
        accumulation=training.accumulation,
        ema_decay=training.ema_decay,
        skip_nonfinite=training.nonfinite == "skip",
        padded=padded,
    )
    return Programs(
        network=network,
        rules=sharding.rules_for(mesh, network.config.padded_tokens),
        abstract=abstract,
        init=jax.jit(
            lambda key: states.init_state(network, optimizer, use_ema, keys.stream(key, "init"), keeps_teacher),
            out_shardings=shardings,
        ),
        train_step=jax.jit(
            step,
            in_shardings=(shardings, batch, everywhere),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            make_eval_step(network, config.loss, padded),
            in_shardings=(shardings.params, batch, everywhere),
            out_shardings=everywhere,
        ),
    )
