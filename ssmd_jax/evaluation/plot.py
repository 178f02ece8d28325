"""Plots of results; they need matplotlib, which is of the extra `eval`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmd_jax.evaluation.bench import Row
from ssmd_jax.evaluation.benchmark import plot
from ssmd_jax.evaluation.settings import SAMPLERS
from ssmd_jax.evaluation.statistics import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"plain": "o--", "speculative": "s-"}


def quality_against_nfe(panels: Mapping[str, Sequence[Row | Mapping[str, Any]]]) -> "Figure":
    """Spelling accuracy of each sampler's settings against their NFE, with two standard errors.

    Args:
        panels: title, and rows of `bench.compare`, or those that `launch/evaluate.py` wrote under "samplers"; one panel
            a title.

    Raises:
        ValueError: where there is no panel, or a panel has no row with a spelling accuracy.
        ImportError: without matplotlib.
    """
    if not panels:
        raise ValueError("plot: there is nothing to plot; give at least one panel of rows")
    judged = {
        title: [row for row in map(to_json, rows) if row["spelling"]["value"] is not None]
        for title, rows in panels.items()
    }
    for title, rows in judged.items():
        if not rows:
            raise ValueError(f"plot: no row of {title!r} has a spelling accuracy; give compare() the known words")
    plot.check()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = Figure(figsize=(5 * len(judged), 3.6), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(judged), squeeze=False)[0], judged.items(), strict=True):
        for sampler in SAMPLERS:
            line = sorted(
                (row["nfe"]["value"], row["spelling"]["value"], row["spelling"]["standard_error"])
                for row in rows
                if row["sampler"] == sampler
            )
            if line:
                nfe, spelling, error = zip(*line, strict=True)
                bars = [2 * (0.0 if each is None else each) for each in error]
                axes.errorbar(nfe, spelling, bars, fmt=MARKERS[sampler], capsize=2, label=sampler)
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_title(title)
        axes.set_xlabel("NFE a sample")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("spelling accuracy")
    return figure
