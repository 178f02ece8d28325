"""Samples of a tabular model over the 27 characters, under each kind of history that a sampler writes."""

import functools

import jax
import numpy as np

from ssmd_jax.diffusion.window import ConstantWindow, CosineWindow, FullWindow
from ssmd_jax.sampling import ancestral, speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.tabular import tabular_model

LENGTH, BATCH = 8, 4
CASES = {
    "one round": ("speculative", SpeculativeConfig(FullWindow(), 1)),
    "many rounds": ("speculative", SpeculativeConfig(FullWindow(), LENGTH)),
    "cosine": ("speculative", SpeculativeConfig(CosineWindow(0.3), 3)),
    "adaptive": ("speculative", SpeculativeConfig(ConstantWindow(4), 2, order="confidence")),
    "budget": ("speculative", SpeculativeConfig(ConstantWindow(3), 2, budget_nfe=3.1)),
    "shared noise": ("speculative", SpeculativeConfig(FullWindow(), LENGTH, shared_noise=True)),
    "shared noise, two rounds": ("speculative", SpeculativeConfig(FullWindow(), 2, shared_noise=True)),
    "shared noise, budget": ("speculative", SpeculativeConfig(ConstantWindow(3), 2, budget_nfe=3.1, shared_noise=True)),
    "plain": ("plain", SpeculativeConfig(CosineWindow(0.3), 1)),
}


@functools.cache
def model():
    # Mild, so that some drafts are accepted and some are not.
    return tabular_model(LENGTH, 27, scale=0.6)


@functools.cache
def drawn(case, prompted=False):
    """The samples of a case; `prompted` gives the first row nothing, and the others some tokens."""
    sampler, config = CASES[case]
    sample = {"plain": ancestral.sample, "speculative": speculative.sample}[sampler]
    prompt = {}
    if prompted:
        rng = np.random.default_rng(3)
        mask = rng.random((BATCH, LENGTH)) < 0.4
        mask[0] = False
        mask[1] = True
        prompt = {"prompt": rng.integers(0, 27, (BATCH, LENGTH)), "prompt_mask": mask}
    return jax.device_get(sample(model(), jax.random.key(0), config, batch_size=BATCH, length=LENGTH, **prompt)), (
        model().verify_cost if sampler == "speculative" else 0.0
    )
