"""The plot of the cost suite: seconds of a trunk pass against length and against batch."""

import importlib.util
import os
from typing import Any

from ssmd_jax.evaluation.benchmark import cost


def check() -> None:
    """Raises `ImportError` without matplotlib, which is of the extra `eval`: measuring does not need it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("plotting needs matplotlib: pip install ssmd_jax[eval]")


def plot_cost(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws the cost suite's rows with their bounds, both axes logarithmic.

    Args:
        results: of `harness.benchmark`.
        path: of the picture; its ending names the format.

    Raises:
        ValueError: where the results have no row of the cost suite, or not that of the preset's own shape.
        ImportError: as `check`.
    """
    rows = [row for row in results["rows"] if row["suite"] == cost.SUITE and row["error"] is None]
    if not rows:
        raise ValueError("plot: the results have no row of the suite cost; add it to --suite")
    check()
    from matplotlib.figure import Figure

    settings = results["settings"]
    own = [row for row in rows if (row["batch_size"], row["length"]) == (settings["batch_size"], settings["length"])]
    if not own:
        raise ValueError("plot: the pass that the others are compared with, of the preset's own shape, failed")
    reference = own[0]
    rows = [row for row in rows if (row["batch_size"], row["length"]) != cost.NOTHING]
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_length, by_batch = figure.subplots(1, 2)
    tokens = reference["tokens"]
    panels = (
        (by_length, "length", [row for row in rows if abs(row["tokens"] - tokens) < row["length"]]),
        (by_batch, "batch_size", [row for row in rows if row["length"] == reference["length"]]),
    )
    lines = (
        ("seconds", "o-", "measured"),
        ("seconds_by_flops", "--", "operations, at the rate of the preset's pass"),
        ("seconds_to_read_weights", ":", "reading the weights"),
        ("seconds_of_next_to_nothing", "-.", "a pass over 8 tokens: launches"),
    )
    for axes, name, panel in panels:
        panel = sorted(panel, key=lambda row: row[name])
        for field, style, label in lines:
            known = [row for row in panel if row.get(field) is not None]
            axes.loglog([row[name] for row in known], [1e3 * row[field] for row in known], style, label=label)
        points = [row[name] for row in panel]
        axes.set_xticks(points, labels=[str(point) for point in points])
        axes.minorticks_off()
        axes.set_ylabel("ms a trunk pass")
    by_length.set_xlabel(f"length D, {tokens} tokens a batch")
    by_batch.set_xlabel(f"batch, D = {reference['length']}")
    by_batch.legend(fontsize="small")
    figure.suptitle(f"{results['device']['kind']}, {results['settings']['preset']}")
    figure.savefig(path)
