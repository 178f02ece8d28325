"""Plots of results; they need matplotlib, which is of the extra `eval`."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmd_jax.evaluation.bench import Row
from ssmd_jax.evaluation.benchmark import plot
from ssmd_jax.evaluation.report import check_output
from ssmd_jax.evaluation.settings import BEST, SWITCHES
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.sampling.config import ORDERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"plain": "o--", "speculative": "s-"}
# Of other samplers, for each ten of them another.
OTHER_MARKERS = ("o:", "^:", "D:", "v:")


def curve_name(row: Mapping[str, Any]) -> str:
    """What settings that one line joins have in common: all but the last argument, or but the window's size."""
    words = row["setting"].split()
    kind = ["best windows"] if words and BEST.fullmatch(words[0]) else []
    options = [word for word in words if word in SWITCHES or word in ORDERS]
    return " ".join([row["sampler"], *kind, *(word for word in words[:-1] if "=" in word), *options])


def style(sampler: str, number: int) -> dict[str, Any]:
    """Marker and colour of the line `number` of a panel."""
    other = OTHER_MARKERS[number // 10 % len(OTHER_MARKERS)]
    return {"fmt": MARKERS.get(sampler, other), "color": f"C{number % 10}", "capsize": 2}


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

    figure = Figure(figsize=(5 * len(judged), 3.6), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(judged), squeeze=False)[0], judged.items(), strict=True):
        for number, sampler in enumerate(dict.fromkeys(row["sampler"] for row in rows)):
            line = sorted(
                (row["nfe"]["value"], row["spelling"]["value"], row["spelling"]["standard_error"])
                for row in rows
                if row["sampler"] == sampler
            )
            if line:
                nfe, spelling, error = zip(*line, strict=True)
                bars = [2 * (0.0 if each is None else each) for each in error]
                axes.errorbar(nfe, spelling, bars, label=sampler, **style(sampler, number))
        axes.set_title(title)
        scale_cost(axes, "NFE a sample")
        axes.legend()
    figure.axes[0].set_ylabel("spelling accuracy")
    return figure


def scale_cost(axes, label: str) -> None:
    """A logarithmic axis of costs whose ticks are plain numbers."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def check(path: str | os.PathLike) -> None:
    """Refuses a picture that could not be drawn, before the work whose results it is to show.

    Raises:
        ValueError: where its format is unknown or the file cannot be written.
        ImportError: without matplotlib.
    """
    plot.check()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if os.path.splitext(path)[1][1:] not in known:
        raise ValueError(f"plot: the ending of {path} must be one of {', '.join(sorted(known))}")
    check_output(path)


def samplers_figure(results: Mapping[str, Any]) -> "Figure":
    """What samplers cost and give: quality against NFE and against seconds, and unigram entropy against NFE.

    Entropy stands beside quality, since the one is easily bought with the other; a dotted line is held-out text.

    Args:
        results: what `report.evaluate` returns.

    Raises:
        ImportError: without matplotlib.
    """
    rows = results["samplers"]
    figure = rows_figure(rows)
    figure.axes[2].axhline(results["data"]["unigram_entropy"], color="black", linestyle=":", linewidth=1)
    sizes = [row["num_samples"] for row in rows]
    counts = " to ".join(map(str, sorted({min(sizes), max(sizes)})))
    figure.suptitle(f"{results['device']}, {counts} samples a setting, two standard errors")
    return figure


def rows_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """The three panels of `samplers_figure` alone.

    Args:
        rows: entries of "samplers" in what `report.evaluate` returns.

    Raises:
        ImportError: without matplotlib.
    """
    plot.check()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    quality, seconds, entropy = figure.subplots(1, 3)
    panels = (
        (quality, lambda row: row["nfe"]["value"], lambda row: row["spelling"], "NFE a sample", "spelling accuracy"),
        (
            seconds,
            lambda row: None if row["seconds_per_sample"] is None else 1000 * row["seconds_per_sample"],
            lambda row: row["spelling"],
            f"milliseconds a sample, batch {rows[0]['batch_size']}",
            "spelling accuracy",
        ),
        (
            entropy,
            lambda row: row["nfe"]["value"],
            lambda row: {"value": row["unigram_entropy"], "standard_error": None},
            "NFE a sample",
            "unigram entropy, nats",
        ),
    )
    for axes, cost, figures, x_label, y_label in panels:
        for number, name in enumerate(dict.fromkeys(map(curve_name, rows))):
            found = ((cost(row), figures(row)) for row in rows if curve_name(row) == name)
            line = sorted(
                (x, y["value"], 2 * (y["standard_error"] or 0.0))
                for x, y in found
                if x is not None and y["value"] is not None
            )
            if line:
                axes.errorbar(*zip(*line, strict=True), label=name, **style(name.split()[0], number))
        scale_cost(axes, x_label)
        axes.set_ylabel(y_label)
    entropy.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_samplers(results: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Writes `samplers_figure`; the ending of the path names the format. Raises as it does."""
    samplers_figure(results).savefig(os.path.expanduser(path))
