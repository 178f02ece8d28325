"""What the compiled samplers never hold: logits of all tracks, batch x length x vocabulary; policies hold few such."""

import dataclasses
import functools
import math
import re

import jax
import pytest

from ssmd_jax.diffusion.window import CosineWindow
from ssmd_jax.evaluation.benchmark.naive import NaiveModel
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.sampling import ancestral, policy, speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.many import sample_many
from ssmd_jax.sampling.policies import choosing
from ssmd_jax.sampling.policies.confidence import TopK
from tests.model.test_hybrid import random_params

# A vocabulary wider than anything inside the network, and too large for embeddings by one-hot products.
BATCH, LENGTH, VOCABULARY = 3, 29, 521
NETWORK = HybridConfig(num_tokens=VOCABULARY, width=32, num_heads=4, n_noncausal=2, n_causal=1, dtype="float32")
CONFIG = SpeculativeConfig(CosineWindow(0.15), 2)
# Every path: drafts behind a rejection that cannot be paid, and scores of all masked tracks.
ALL_PATHS = dataclasses.replace(CONFIG, budget_nfe=9.0, order="entropy")


def largest_array(sampler, model) -> int:
    """Elements of the largest array of the compiled program, inside fusions too."""
    text = jax.jit(functools.partial(sampler, length=LENGTH)).lower(model, jax.random.key(0)).compile().as_text()
    shapes = re.findall(r"\b(?:pred|bf16|[sfu]\d+)\[([\d,]+)\]", text)
    assert shapes, "no shapes in the program's text"
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def speculate(model, key, config=CONFIG, **arguments):
    return speculative.sample(model, key, config, batch_size=BATCH, **arguments)


@pytest.mark.parametrize(
    "sampler",
    [
        functools.partial(speculate, config=ALL_PATHS),
        lambda model, key, **arguments: ancestral.sample(model, key, ALL_PATHS, batch_size=BATCH, **arguments),
        lambda model, key, **arguments: sample_many(
            model, key, CONFIG, num_samples=3 * BATCH, slots=BATCH, **arguments
        ),
    ],
    ids=["speculative", "plain", "many"],
)
def test_no_logits_of_all_tracks(sampler):
    assert largest_array(sampler, HybridModel(random_params(NETWORK), NETWORK)) < BATCH * LENGTH * VOCABULARY


def test_the_naive_model_has_them():
    assert largest_array(speculate, NaiveModel(random_params(NETWORK), NETWORK)) >= BATCH * LENGTH * VOCABULARY


@pytest.mark.slow
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_policies_draw_in_chunks(monkeypatch, top_p):
    """Logits, their probabilities and little else: noise and nucleus of all positions would be twice as much again."""
    monkeypatch.setattr(choosing, "CHUNK", 4)
    draw = functools.partial(policy.sample, policy=TopK(steps=5, top_p=top_p), batch_size=BATCH, length=LENGTH)
    program = jax.jit(draw).lower(HybridModel(random_params(NETWORK), NETWORK), jax.random.key(0)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 6 * 4 * BATCH * LENGTH * VOCABULARY
