"""The likelihood suite: the exact log likelihood of sequences under the sampler, `D` trunk passes a batch."""

import dataclasses

import numpy as np

from ssmd_jax.evaluation.benchmark import flops
from ssmd_jax.evaluation.benchmark.bench import Bench
from ssmd_jax.evaluation.benchmark.rows import Row
from ssmd_jax.sampling.likelihood import log_likelihood

SUITE = "likelihood"
PARTS = ("log likelihood",)


def run(bench: Bench) -> list[Row]:
    """The suite's one row."""
    return bench.row(SUITE, "log likelihood", lambda: _row(bench))


def _row(bench: Bench) -> Row:
    settings, config = bench.settings, bench.settings.model
    batch, length, size = settings.likelihood_batch, settings.length, settings.window_size
    rng = np.random.default_rng(settings.seed)
    tokens_BxD = rng.integers(0, config.num_tokens, (batch, length), dtype=np.int32)
    order_BxD = rng.permuted(np.broadcast_to(np.arange(length), (batch, length)), axis=1)
    # Tokens and orders are checked by NumPy, so they are constants of the program; what is computed depends on a loop.
    function = lambda model: log_likelihood(model, tokens_BxD, order_BxD, settings.sampler)
    a_pass = flops.trunk(config, batch, length) + flops.head(config, batch * size)
    total = length * (a_pass + flops.verify_round(config, batch, length, size))
    row = bench.function(SUITE, "log likelihood", function, bench.model, flops=total, single=True)
    figures = {"sequences": batch, "seconds_per_sequence": row.timing.median / batch}
    return dataclasses.replace(row, figures=figures)
