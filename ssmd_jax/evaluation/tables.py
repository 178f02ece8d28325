"""Figures as aligned text for a terminal."""

import math
from collections.abc import Sequence

from ssmd_jax.evaluation.acceptance import Acceptance
from ssmd_jax.evaluation.bench import Row
from ssmd_jax.evaluation.likelihood import Bounds


def align(lines: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """Cells in columns: the first `num_left` of a line to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    side = lambda n, cell: cell.ljust(widths[n]) if n < num_left else cell.rjust(widths[n])
    return "\n".join("  ".join(side(n, cell) for n, cell in enumerate(line)).rstrip() for line in lines)


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def samplers_table(rows: Sequence[Row]) -> str:
    """One line a setting; two standard errors behind the spelling accuracy."""
    header = (
        "sampler",
        "setting",
        "NFE",
        "passes",
        "s/batch",
        "ms/sample",
        "spelling",
        "+-2se",
        "unigram",
        "accepted",
    )
    lines = [header]
    for row in rows:
        numbers = (
            _number(row.nfe.value, ".1f"),
            _number(row.passes, ".1f"),
            _number(row.seconds_per_batch, ".3f"),
            _number(1000 * row.seconds_per_sample, ".1f"),
            _number(row.spelling.value, ".3f"),
            _number(2 * row.spelling.standard_error, ".3f"),
            _number(row.unigram_entropy, ".3f"),
            _number(row.acceptance, ".3f"),
        )
        lines.append((row.sampler, row.setting, *numbers))
    return align(lines, num_left=2)


def cost_table(rows: Sequence[Row]) -> str:
    """One line a setting, and what a sample costs; seconds are those of a batch."""
    lines = [("sampler", "setting", "NFE", "trunk passes", "verify rounds", "drafts accepted", "seconds")]
    for row in rows:
        numbers = (
            _number(row.nfe.value, ".1f"),
            _number(row.passes, ".1f"),
            _number(row.rounds, ".1f"),
            _number(row.acceptance, ".3f"),
            _number(row.seconds_per_batch, ".2f"),
        )
        lines.append((row.sampler, row.setting, *numbers))
    return align(lines, num_left=2)


def short_table(rows: Sequence[Row]) -> str:
    """One line a setting, and what a first look needs; seconds are those of a batch."""
    lines = [("sampler", "setting", "NFE", "seconds", "spelling accuracy", "unigram entropy")]
    for row in rows:
        numbers = (
            _number(row.nfe.value, ".1f"),
            _number(row.seconds_per_batch, ".3f"),
            _number(row.spelling.value, ".3f"),
            _number(row.unigram_entropy, ".3f"),
        )
        lines.append((row.sampler, row.setting, *numbers))
    return align(lines, num_left=2)


def bounds_table(bounds: Bounds) -> str:
    """The three bounds and the expected NFE, with two standard errors."""
    lines = [("bound", f"bits/{bounds.unit}", "+-2se")]
    for name in ("draft", "target", "sampler", "expected_nfe"):
        estimate = getattr(bounds, name)
        error = _number(2 * estimate.standard_error, ".4f")
        lines.append((name.replace("_nfe", " NFE"), _number(estimate.value, ".4f"), error))
    return align(lines)


def frontier_table(rows: Sequence[dict[str, float | int]]) -> str:
    """Best windows by budget: expected NFE, likelihood bound in bits a token, passes, largest window."""
    lines = [("budget", "NFE", "bits/token", "passes", "largest window")]
    for row in rows:
        lines.append(
            (
                f"{row['budget']:g}",
                f"{row['nfe']:.2f}",
                f"{row['bits']:.4f}",
                str(row["passes"]),
                str(row["largest_window"]),
            )
        )
    return align(lines, num_left=0)


def acceptance_table(along: Acceptance) -> str:
    """Acceptance, NFE, passes and rounds a row by fraction revealed, and their totals."""
    bins = len(along.rate)
    lines = [("revealed", "accepted", "NFE", "passes", "rounds")]
    for n in range(bins):
        numbers = (along.rate[n], along.nfe[n], along.passes[n], along.rounds[n])
        lines.append((f"{n / bins:.2f}-{(n + 1) / bins:.2f}", *(_number(value, ".3f") for value in numbers)))
    totals = (along.total_rate, along.total_nfe, along.passes.sum(), along.rounds.sum())
    return align([*lines, ("all", *(_number(value, ".3f") for value in totals))])
