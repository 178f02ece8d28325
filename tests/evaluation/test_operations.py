"""Operations of samples, against a sum over their passes and rounds one by one."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from ssmd_jax.diffusion.window import ConstantWindow
from ssmd_jax.evaluation import operations
from ssmd_jax.evaluation.benchmark import flops
from ssmd_jax.evaluation.settings import Setting
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.sampling.canvas import ACCEPTED, REPLACED, UNVERIFIED, SampleResult
from ssmd_jax.sampling.config import SpeculativeConfig

CONFIG = HybridConfig(num_tokens=27, width=64, num_heads=2, n_noncausal=3, n_causal=1)
LENGTH, SIZE = 6, 3


def result(status, passes, rounds):
    """One row whose tracks were revealed so, in these passes, settled in these rounds."""
    values = dict.fromkeys(field.name for field in dataclasses.fields(SampleResult))
    values |= {"status": np.array([status]), "revealed_in": np.array([passes]), "settled_in": np.array([rounds])}
    return SampleResult(**values)


def setting(sampler):
    return Setting(sampler, "3", SpeculativeConfig(ConstantWindow(SIZE), verify_rounds=2))


def test_a_speculative_sample():
    """Pass 1: a rejection at track 1, then track 2 accepted in a second round; pass 2: one round for all three."""
    drawn = result([ACCEPTED, REPLACED, ACCEPTED] + [ACCEPTED] * 3, [1, 1, 1, 2, 2, 2], [1, 1, 2, 1, 1, 1])
    one_pass = flops.trunk(CONFIG, 1, LENGTH) + flops.head(CONFIG, SIZE)
    expected = 2 * one_pass + 3 * flops.verify_round(CONFIG, 1, LENGTH, SIZE)
    assert operations.gflop(CONFIG, setting("speculative"), drawn) == pytest.approx(expected / 1e9)


def test_a_plain_sample_and_others():
    drawn = result([UNVERIFIED] * 6, [1, 1, 1, 2, 2, 2], [0] * 6)
    expected = 2 * (flops.blocks(CONFIG, 1, LENGTH) + flops.head(CONFIG, SIZE))
    assert operations.gflop(CONFIG, setting("plain"), drawn) == pytest.approx(expected / 1e9)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), drawn)
    assert operations.gflop(CONFIG, setting("plain"), twice) == pytest.approx(expected / 1e9)
    assert math.isnan(operations.gflop(CONFIG, setting("eb"), drawn))
