"""Floating-point operations of samples, from their histories: what NFE stands for, counted."""

import math

import numpy as np

from ssmd_jax.diffusion.window import checked_table
from ssmd_jax.evaluation.acceptance import split_passes
from ssmd_jax.evaluation.benchmark import flops
from ssmd_jax.evaluation.settings import Setting
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.sampling.canvas import SampleResult


def gflop(config: HybridConfig, setting: Setting, result: SampleResult) -> float:
    """Mean operations of a sample, in 1e9, by the formulas of `benchmark.flops`.

    A plain pass drafts its window behind the bidirectional blocks; a speculative one also prepares the causal part, and
    pays for each of its rounds on the whole window. Rows that wait for others, and what a batch pads windows to, do not
    count: these are the operations that a row asks for, as NFE are.

    Args:
        config: of the network.
        setting: that the samples were drawn with.
        result: rows of full length.

    Returns:
        nan for samplers other than "plain" and "speculative", for trunks that are not our own, and under a budget,
        which merges windows.
    """
    if setting.sampler not in ("plain", "speculative") or config.trunk != "own":
        return math.nan
    if setting.config.budget_nfe is not None:
        return math.nan
    batch, length = np.asarray(result.status).shape
    history = split_passes(result)
    windows = checked_table(setting.config.window, length)[history.start]
    if setting.sampler == "plain":
        total = len(windows) * flops.blocks(config, 1, length) + flops.head(config, int(windows.sum()))
        return total / batch / 1e9
    passes = len(windows) * flops.trunk(config, 1, length) + flops.head(config, int(windows.sum()))
    rounds = sum(
        n * flops.verify_round(config, 1, length, int(w)) for n, w in zip(history.rounds, windows, strict=True)
    )
    return float(passes + rounds) / batch / 1e9
