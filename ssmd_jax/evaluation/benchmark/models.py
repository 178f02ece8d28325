"""The model that is measured: random weights whose target differs from the draft, or a trained run's."""

import dataclasses
import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp

import ssmd_jax
from ssmd_jax.evaluation.benchmark.settings import PRESETS, Settings
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.state import init_boxed_params


def random_params(config: HybridConfig, perturbation: float, key: jax.Array):
    """Fresh parameters, but with a causal part that has a say.

    Its output map starts at zero, so that the target is the draft. Here its entries are normal with deviation
    `perturbation / sqrt(C)`: the output is `perturbation` times a vector of size 1.
    """
    params = nn.unbox(init_boxed_params(HybridTransformer(config), key))
    if config.n_causal:
        output_CxC = params["causal"]["output"]
        noise_CxC = jax.random.normal(jax.random.fold_in(key, 1), output_CxC.shape, output_CxC.dtype)
        params["causal"]["output"] = perturbation * noise_CxC / jnp.sqrt(output_CxC.shape[0])
    return params


def random_model(config: HybridConfig, seed: int, perturbation: float) -> HybridModel:
    """A network of `random_params`, on one device."""
    init, key = functools.partial(random_params, config, perturbation), jax.random.key(seed)
    # It runs once: on a CPU, compiling it well takes longer than all that it computes.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return HybridModel(jax.jit(init).lower(key).compile(compiler_options=options)(key), config)


def trained_settings(path: str | os.PathLike, preset: str) -> tuple[HybridModel, Settings]:
    """A trained run's model, and the preset's settings with the run's network, length, window and rounds.

    Raises:
        ValueError, FileNotFoundError: as `ssmd_jax.load`.
    """
    model, _, config = ssmd_jax.load(path)
    run = ExperimentConfig.from_config_dict(config)
    settings = dataclasses.replace(
        PRESETS[preset],
        model=model.config,
        length=run.length,
        delta_tau=run.sampling.delta_tau,
        verify_rounds=run.sampling.verify_rounds,
    )
    return model, settings
