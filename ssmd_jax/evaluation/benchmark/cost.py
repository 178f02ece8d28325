"""The cost suite: seconds of a trunk pass against length and batch, beside what bounds them.

From a few ten thousand tokens a batch on, seconds should follow the operations. Below, reading the weights and
launching the kernels are what a pass costs: the first is a quotient of two measured figures, the second a pass over
next to nothing.
"""

import dataclasses
import functools

import jax

from ssmd_jax.evaluation.benchmark import flops
from ssmd_jax.evaluation.benchmark.bench import Bench
from ssmd_jax.evaluation.benchmark.rows import Row
from ssmd_jax.evaluation.benchmark.sampling import random_rows, trunk_alone

SUITE = "cost"
PARTS = ("pass",)
# Sequences and tokens of the pass that computes next to nothing.
NOTHING = (1, 8)


def grid(batch_size: int, length: int, lengths: tuple[int, ...], batches: tuple[int, ...]) -> list[tuple[int, int]]:
    """Batch and length of each measured pass, the preset's own first.

    Lengths are measured with as many tokens a batch as the preset's, batches at the preset's length; last comes the
    pass over next to nothing.
    """
    tokens = batch_size * length
    points = [(batch_size, length)]
    points += [(tokens // other, other) for other in lengths if other <= tokens]
    points += [(other, length) for other in batches]
    return list(dict.fromkeys([*points, NOTHING]))


def run(bench: Bench) -> list[Row]:
    """A row for each point of the grid, with what operations, weights and launches alone would take."""
    if not bench.wants(PARTS[0]):
        return []
    settings = bench.settings
    points = grid(settings.batch_size, settings.length, settings.cost_lengths, settings.cost_batches)
    rows = []
    for batch, length in points:
        name = f"pass B={batch} D={length}"
        rows += bench.row(SUITE, name, functools.partial(_row, bench, name, batch, length))
    return _with_bounds(bench, rows)


def _row(bench: Bench, name: str, batch: int, length: int) -> Row:
    settings = dataclasses.replace(bench.settings, batch_size=batch, length=length)
    *batch_rows, _ = random_rows(settings, batch)
    formula = flops.trunk(settings.model, batch, length)
    row = bench.function(SUITE, name, trunk_alone, bench.model, *batch_rows, flops=formula)
    return dataclasses.replace(row, figures={"batch_size": batch, "length": length, "tokens": batch * length})


def _with_bounds(bench: Bench, rows: list[Row]) -> list[Row]:
    """Adds what a pass would take if only one thing bound it.

    `seconds_by_flops` is the formula over the rate of the preset's own pass; where that failed there are no bounds.
    """
    settings = bench.settings
    by_shape = {(row.figures["batch_size"], row.figures["length"]): row for row in rows if row.timing is not None}
    reference, nothing = by_shape.get((settings.batch_size, settings.length)), by_shape.get(NOTHING)
    if reference is None:
        return rows
    weights = sum(x.size for x in jax.tree.leaves(bench.model.params)) * settings.model.compute_dtype.itemsize

    def one(row: Row) -> Row:
        if row.timing is None:
            return row
        bounds = {"seconds_by_flops": row.flops / reference.flops_per_second}
        bounds["over_seconds_by_flops"] = row.timing.median / bounds["seconds_by_flops"]
        if bench.ceilings is not None:
            bounds["seconds_to_read_weights"] = weights / bench.ceilings.copy_bytes
        if nothing is not None:
            bounds["seconds_of_next_to_nothing"] = nothing.timing.median
        return dataclasses.replace(row, figures=row.figures | bounds)

    return [one(row) for row in rows]
