"""Which decoders of a pair of networks are worth their cost: accuracy against seconds, operations and forwards.

DualDiffusion is held against all decoders that verify nothing.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ssmd_jax.evaluation.benchmark.plot import check
from ssmd_jax.evaluation.plot import scale_cost

# What a point costs: field, label of its axis, and scale of the label's unit. A forward of the drafter counts as one of
# the verifier: that is the papers' budget, and says little where the drafter is another network.
COSTS = {
    "seconds": ("ms a problem", 1e3),
    "gflop": ("GFLOP a problem", 1.0),
    "forwards": ("forwards a problem", 1.0),
}
# What DualDiffusion drafts and verifies with: two networks, or one, with its caches and without.
BOTH, SHARED = "both", "shared"
VERIFIED = (BOTH, SHARED)


def best_within(points: Sequence[Mapping[str, Any]], cost: str, most: float) -> Mapping[str, Any] | None:
    """The most accurate of the points that cost no more; None where there are none."""
    return max((point for point in points if point[cost] <= most), key=lambda point: point["accuracy"], default=None)


def margins(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How far the points of DualDiffusion lie above those of decoders that verify nothing.

    Args:
        points: of `arithmetic.measure`, with `id` and `networks`.

    Returns:
        For each point of DualDiffusion and each cost, `id: cost` -> `margin`, its accuracy less that of the best of the
        others that costs no more, with its `standard_error` (that of independent samples, which overstates it: both
        answered the same problems), and the other's id, `over`; None where none is as cheap.
    """
    alone = [point for point in points if point["networks"] not in VERIFIED]
    found = {}
    for point in points:
        if point["networks"] not in VERIFIED:
            continue
        for cost in COSTS:
            rival = best_within(alone, cost, point[cost])
            if rival is None:
                found[f"{point['id']}: {cost}"] = {"margin": None, "standard_error": None, "over": None}
                continue
            errors = [each["accuracy_standard_error"] or 0.0 for each in (point, rival)]
            found[f"{point['id']}: {cost}"] = {
                "margin": point["accuracy"] - rival["accuracy"],
                "standard_error": math.hypot(*errors),
                "over": rival["id"],
            }
    return found


def frontier(points: Sequence[Mapping[str, Any]], cost: str) -> list[Mapping[str, Any]]:
    """The points that are more accurate than all cheaper ones, cheapest first."""
    kept = []
    for point in sorted(points, key=lambda point: (point[cost], -point["accuracy"])):
        if not kept or point["accuracy"] > kept[-1]["accuracy"]:
            kept.append(point)
    return kept


def plot(points: Sequence[Mapping[str, Any]], path: os.PathLike | str) -> None:
    """Draws accuracy with two standard errors against each cost, a line through the points of a method.

    The grey line is the frontier of the points that verify nothing.

    Args:
        points: as in `margins`.
        path: of the picture; its ending names the format.

    Raises:
        ImportError: without matplotlib.
    """
    check()
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 6), layout="constrained")
    panels = figure.subplots(1, len(COSTS), sharey=True)
    methods = list(dict.fromkeys(point["method"] for point in points))
    shades = [*colormaps["tab20"].colors, *colormaps["tab20b"].colors]
    colours = {method: shades[n % len(shades)] for n, method in enumerate(methods)}
    alone = [point for point in points if point["networks"] not in VERIFIED]
    for axes, (cost, (label, scale)) in zip(panels, COSTS.items(), strict=True):
        edge = frontier(alone, cost)
        costs = [scale * point[cost] for point in edge]
        axes.step(costs, [point["accuracy"] for point in edge], where="post", color="0.7", linewidth=3)
        for method in methods:
            these = sorted((point for point in points if point["method"] == method), key=lambda point: point[cost])
            axes.errorbar(
                [scale * point[cost] for point in these],
                [point["accuracy"] for point in these],
                yerr=[2 * (point["accuracy_standard_error"] or 0.0) for point in these],
                marker="s" if these[0]["networks"] in VERIFIED else "o",
                linestyle=":" if these[0]["networks"] in VERIFIED else "-",
                color=colours[method],
                label=method,
            )
        scale_cost(axes, label)
    panels[0].set_ylabel("accuracy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path)
