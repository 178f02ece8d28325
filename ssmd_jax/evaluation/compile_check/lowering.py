"""A run's three programs, from shapes alone: train step, validation step, sampler."""

import dataclasses

import jax
import jax.numpy as jnp

from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.networks import make_network
from ssmd_jax.sampling import speculative
from ssmd_jax.training import sharding
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.programs import Programs, make_programs
from ssmd_jax.training.state import abstract_params

TRAIN, VALIDATION, SAMPLER = PROGRAMS = ("train", "validation", "sampler")


def with_batch(config: ExperimentConfig, batch_size: int) -> ExperimentConfig:
    """The experiment at another batch size of training."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=batch_size))


def _key(mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))


def _tokens(mesh: jax.sharding.Mesh, batch_size: int, length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, length), jnp.int32, sharding=sharding.batch_sharding(mesh))


def lower_train(
    config: ExperimentConfig, mesh: jax.sharding.Mesh, num_tokens: int
) -> tuple[Programs, jax.stages.Lowered]:
    """The train step of the whole batch, its state donated.

    Raises:
        ValueError: where the batch or a parameter cannot be shared out over the mesh.
    """
    training = config.training
    sharding.check_batch(mesh, training.batch_size, "training.batch_size", training.accumulation)
    programs = make_programs(config, mesh, num_tokens)
    tokens_BxD = _tokens(mesh, training.batch_size, config.length)
    with sharding.activate(mesh, programs.rules):
        return programs, programs.train_step.lower(programs.abstract, tokens_BxD, _key(mesh))


def lower_validation(config: ExperimentConfig, mesh: jax.sharding.Mesh, programs: Programs) -> jax.stages.Lowered:
    """The validation step of a batch; raises as `lower_train`."""
    batch_size = config.training.validation_batch_size
    sharding.check_batch(mesh, batch_size, "training.eval_batch_size")
    tokens_BxD = _tokens(mesh, batch_size, config.length)
    with sharding.activate(mesh, programs.rules):
        return programs.eval_step.lower(programs.abstract.eval_params, tokens_BxD, _key(mesh))


def lower_sampler(
    config: ExperimentConfig, mesh: jax.sharding.Mesh, num_tokens: int, batch_size: int
) -> jax.stages.Lowered:
    """The speculative sampler: a copy of the parameters and a loop of its own on every device.

    Raises:
        ValueError: where the devices do not share the batch evenly.
    """
    network_config, everywhere = config.network_config(num_tokens), sharding.replicated(mesh)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        abstract_params(make_network(network_config)),
    )
    settings = config.sampling.speculative()

    def draw(model, key):
        return speculative.sample(model, key, settings, batch_size=batch_size, length=config.length, mesh=mesh)

    return jax.jit(draw).lower(HybridModel(params, network_config), _key(mesh))
