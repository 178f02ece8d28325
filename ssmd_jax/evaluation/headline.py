"""How much less a model costs than a baseline at equal quality, from what `launch/evaluate.py` wrote of both.

The baseline's points at chosen numbers of trunk passes name the qualities; the candidate's cost there is interpolated
on its curve, linearly in the logarithm of the cost. Settings of one kind are a curve (`plot.curve_name`: fixed or best
windows, how drafts are verified); of several the one that is cheapest there counts, which among curves that differ by
their errors alone is optimistic, by an amount that the standard errors do not hold.
"""

import itertools
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssmd_jax.evaluation import plot, tables
from ssmd_jax.evaluation.report import file_stem
from ssmd_jax.evaluation.statistics import Estimate, to_json

COSTS = ("nfe", "seconds_per_sample", "gflop")
PASSES = (24, 44, 80)


class Point(NamedTuple):
    """A setting of a sampler.

    Attributes:
        label: sampler and setting.
        cost: of a sample, in the unit of the curve.
        quality: spelling accuracy, or what `judged_rows` says.
    """

    label: str
    cost: float
    quality: Estimate


class Gain(NamedTuple):
    """What the candidate saves at the quality of one of the baseline's points.

    Attributes:
        baseline: the point.
        cost: of the candidate at that quality, interpolated; nan where its curve does not reach it.
        ratio: the baseline's cost over it, with the standard error that both qualities' errors give it.
        entropy_difference: unigram entropy of the candidate's nearest point minus the baseline's, nats.
        between: labels of the candidate's two points.
    """

    baseline: Point
    cost: float
    ratio: Estimate
    entropy_difference: float
    between: tuple[str, str]


def curve(rows: Sequence[Mapping[str, Any]], cost: str) -> list[Point]:
    """The points of a sampler that no cheaper one is as good as, by cost.

    Args:
        rows: entries of "samplers" in what `launch/evaluate.py` wrote.
        cost: one of `COSTS`.
    """
    points = sorted((_point(row, cost) for row in rows), key=lambda point: point.cost)
    best, kept = -math.inf, []
    for point in points:
        if point.quality.value > best:
            kept.append(point)
            best = point.quality.value
    return kept


def gain(baseline: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], cost: str) -> Gain:
    """The gain at one of the baseline's settings.

    Args:
        baseline: the setting, an entry of "samplers".
        rows: the candidate's settings; those without this cost are left out.
        cost: one of `COSTS`.

    Returns:
        A `Gain`; its ratio is nan where no curve of the candidate reaches the quality from both sides.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get(cost) is not None:
            kinds.setdefault(plot.curve_name(row), []).append(row)
    found = [each for each in (_gain_on_curve(baseline, kind, cost) for kind in kinds.values()) if each is not None]
    nothing = Gain(_point(baseline, cost), math.nan, Estimate(math.nan, math.nan), math.nan, ("", ""))
    return max(found, key=lambda each: each.ratio.value, default=nothing)


def _gain_on_curve(baseline: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], cost: str) -> Gain | None:
    """The gain with settings of one kind; None where they do not reach the quality from both sides."""
    point, points = _point(baseline, cost), curve(rows, cost)
    quality = point.quality.value
    for low, high in itertools.pairwise(points):
        if low.quality.value <= quality <= high.quality.value:
            break
    else:
        return None
    step = high.quality.value - low.quality.value
    share = (quality - low.quality.value) / step
    slope = (math.log(high.cost) - math.log(low.cost)) / step
    value = math.exp(math.log(low.cost) + share * step * slope)
    # The log of the candidate's cost moves by `slope` times an error of the baseline's quality, and by as much times
    # the interpolated error of its own.
    errors = (point.quality, low.quality, high.quality)
    weights = (1.0, 1.0 - share, share)
    error = abs(slope) * math.hypot(*(w * e.standard_error for w, e in zip(weights, errors, strict=True)))
    ratio = point.cost / value
    nearest = low if share < 0.5 else high
    entropy = {_label(row): row["unigram_entropy"] for row in rows}
    difference = entropy[nearest.label] - baseline["unigram_entropy"]
    return Gain(point, value, Estimate(ratio, ratio * error), difference, (low.label, high.label))


def gains(
    baseline_rows: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], points: Sequence[int | str] = PASSES
) -> dict[str, list[Gain]]:
    """The gains at some of the baseline's settings, for every cost that these and some of the candidate's have.

    Args:
        baseline_rows: the baseline's settings.
        rows: the candidate's settings.
        points: each a number of trunk passes, for the first setting with so many, or the name of a setting.

    Raises:
        ValueError: where the baseline has no such setting.
    """
    chosen = []
    for point in points:
        near = [row for row in baseline_rows if point in (round(row["passes"]), row["setting"])]
        if not near:
            what = f"setting {point}" if isinstance(point, str) else f"setting with {point} trunk passes"
            raise ValueError(f"the baseline has no {what}")
        chosen.append(near[0])
    has = lambda row, cost: row.get(cost) is not None
    known = [cost for cost in COSTS if all(has(row, cost) for row in chosen) and any(has(row, cost) for row in rows)]
    return {cost: [gain(row, rows, cost) for row in chosen] for cost in known}


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['sampler']} {row['setting']}"


def _point(row: Mapping[str, Any], cost: str) -> Point:
    value = row[cost]
    cost_value = value["value"] if isinstance(value, Mapping) else value
    quality = row["quality"] if "quality" in row else row["spelling"]
    return Point(_label(row), float(cost_value), Estimate(quality["value"], quality["standard_error"]))


def judged_rows(rows: Sequence[Mapping[str, Any]], judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings whose texts a language model has judged; their quality is minus its bits per byte.

    Args:
        rows: entries of "samplers" in what `launch/evaluate.py` wrote.
        judged: what `launch/judge.py` wrote of the texts that `launch/evaluate.py --texts` kept.
    """
    found = {pathlib.Path(file).stem: figures["bits_per_byte"] for file, figures in judged["files"].items()}
    kept = []
    for row in rows:
        stem = file_stem(f"{row['sampler']}_{row['setting']}")
        if stem in found:
            kept.append({**row, "quality": {**found[stem], "value": -found[stem]["value"]}})
    return kept


def gains_table(found: Mapping[str, Sequence[Gain]]) -> str:
    """One line a cost and point of the baseline: both costs, their ratio with two standard errors, entropy."""
    lines = [("cost", "baseline", "quality", "its cost", "ours", "ratio", "+-2se", "entropy", "between")]
    for cost, points in found.items():
        for each in points:
            number = lambda value, form: "-" if math.isnan(value) else format(value, form)
            lines.append(
                (
                    cost,
                    each.baseline.label,
                    f"{each.baseline.quality.value:.4f}",
                    f"{each.baseline.cost:.4g}",
                    number(each.cost, ".4g"),
                    number(each.ratio.value, ".2f"),
                    number(2 * each.ratio.standard_error, ".2f"),
                    number(each.entropy_difference, "+.4f"),
                    ", ".join(filter(None, each.between)) or "out of reach",
                )
            )
    return tables.align(lines, num_left=2)


def read_rows(files: Sequence[os.PathLike | str], sampler: str) -> list[dict[str, Any]]:
    """The settings of one sampler in files of `launch/evaluate.py`.

    Raises:
        ValueError: for a file that cannot be read, or where none has that sampler.
    """
    rows = []
    for file in files:
        try:
            content = json.loads(pathlib.Path(os.path.expanduser(file)).read_text(encoding="utf-8"))
            rows += [row for row in content["samplers"] if row["sampler"] == sampler]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no file of launch/evaluate.py: {error}") from None
    if not rows:
        raise ValueError(f"there is no setting of the {sampler} sampler in {', '.join(map(str, files))}")
    return rows


def compare_files(
    baseline: Sequence[str],
    candidate: Sequence[str],
    points: Sequence[int | str],
    plots: Sequence[str] = (),
    judged: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Gains of a candidate over a baseline: what `launch/compare.py` does.

    Args:
        baseline: files of `launch/evaluate.py` with its plain sampler.
        candidate: files with the speculative sampler.
        points: as in `gains`: the baseline's settings that name the qualities.
        plots: pictures to write; their endings name the formats.
        judged: file of `launch/judge.py`, whose bits per byte take the place of spelling accuracy; None for none.

    Returns:
        JSON values by cost, and the table.

    Raises:
        ValueError: as `read_rows` and `gains`.
        ImportError: for plots without matplotlib.
    """
    if judged is not None and plots:
        raise ValueError("plots show spelling accuracy: leave out plots or judged")
    baseline_rows, rows = read_rows(baseline, "plain"), read_rows(candidate, "speculative")
    if judged is not None:
        try:
            content = json.loads(pathlib.Path(os.path.expanduser(judged)).read_text(encoding="utf-8"))
            baseline_rows, rows = judged_rows(baseline_rows, content), judged_rows(rows, content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{judged} is no file of launch/judge.py: {error}") from None
    found = gains(baseline_rows, rows, points)
    for path in plots:
        plot.rows_figure([*baseline_rows, *rows]).savefig(os.path.expanduser(path), dpi=120)
    return to_json(found), gains_table(found)
