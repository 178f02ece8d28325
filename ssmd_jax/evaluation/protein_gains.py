"""How many fewer NFE samplers need than plain sampling for proteins that are judged equally good.

What `launch/draw_proteins.py` wrote of the settings' costs is joined with what `launch/judge_proteins.py` found of the
files. Each setting of the baseline that no cheaper one is as good as names a quality, and the NFE of another sampler
there are interpolated on its curve as in `headline`: linearly in their logarithm, against the share of hits as it is
and against minus the logarithm of the pseudo-perplexity. Lengths are the same in all sets, so that the errors of the
NFE are small beside those of the qualities, and left out.

Settings that differ in the argument swept alone are a curve (`plot.curve_name`). A sampler with one curve goes by its
name, those of one with several by all that their settings have in common, so that a temperature or an order is
compared with another like samplers are.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ssmd_jax.evaluation import headline, plot, protein_sets, proteins, tables
from ssmd_jax.evaluation.benchmark.plot import check as check_matplotlib
from ssmd_jax.evaluation.statistics import Estimate, to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names of the figures, and what a picture calls them.
QUALITIES = {
    "pfam": "share with a Pfam hit",
    "pseudo_perplexity": "pseudo-perplexity",
    "recovery": "natural letters recovered",
}
BASELINE = "plain"
COST_FIELDS = ("file", "sampler", "setting", "nfe")
# A gain counts where the baseline comes so near to its own best: what is saved on bad proteins is worth little.
SHARE_OF_BEST = 0.95


class ProteinGain(NamedTuple):
    """What a sampler saves at the quality of one of the baseline's settings.

    Attributes:
        sampler: the curve that saves.
        baseline: setting of the baseline.
        quality: of that setting, as the judge gave it.
        share_of_best: the quality over the best of the baseline, for pseudo-perplexity the best over it: at most 1.
        baseline_nfe: NFE of a protein there.
        nfe: of the sampler at that quality, interpolated; nan where its curve does not reach it.
        ratio: the baseline's NFE over it, with the standard error that the qualities' errors give it.
        diversity_difference: clusters over sequences at the sampler's nearest setting minus those of the baseline; nan
            where it was not judged. Quality is easily bought with it.
        between: the sampler's two settings.
    """

    sampler: str
    baseline: str
    quality: Estimate
    share_of_best: float
    baseline_nfe: float
    nfe: float
    ratio: Estimate
    diversity_difference: float
    between: tuple[str, str]


def read_rows(
    drawn: Sequence[os.PathLike | str], judged: Sequence[os.PathLike | str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The settings with their costs and what was found of them.

    Args:
        drawn: folders of `launch/draw_proteins.py`, or their index files.
        judged: files with the JSON of `launch/judge_proteins.py`. Judges may have been run apart: figures of several
            files are joined, and of two that are there the later one stands.

    Returns:
        An entry of the index a setting, with the fields of `proteins.Judged`; and those of the natural proteins. Where
        networks differ in size, as a trunk alone and one with a head on it do, NFE are those of the smallest, by the
        kernels of their blocks.

    Raises:
        ValueError: for a file that is none of these, sets that are there twice or of different tasks, sets that
            were not judged, and draws of which some do not say how large their network is.
    """
    indexes = []
    for path in drawn:
        path = pathlib.Path(os.path.expanduser(path))
        path = path / protein_sets.INDEX if path.is_dir() else path
        indexes.append((path, _read(path, "draw_proteins", COST_FIELDS)))
    unknown = [str(path) for path, index in indexes if index.get("kernels") is None]
    if 0 < len(unknown) < len(indexes):
        raise ValueError(f"{', '.join(unknown)} does not say how large its network is, and others do: draw it anew")
    least = None if unknown else min(index["kernels"] for _, index in indexes)
    entries = []
    for _, index in indexes:
        factor = 1.0 if unknown else index["kernels"] / least
        for entry in index["sets"]:
            scaled = {name: value and value * factor for name, value in entry["nfe"].items()}
            entries.append({**entry, "nfe": scaled})
    tasks = [(index.get("task"), index.get("keep")) for _, index in indexes]
    if len(set(tasks)) > 1:
        raise ValueError("the sets were drawn for different tasks: compare those of one")
    names = [proteins.set_name(entry["file"]) for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} was drawn twice, and judged sets are known by their names alone")
    figures: dict[str, dict[str, Any]] = {}
    for path in judged:
        for one in _read(pathlib.Path(os.path.expanduser(path)), "judge_proteins", ("name",))["sets"]:
            figures.setdefault(one["name"], {}).update({k: v for k, v in one.items() if v is not None})
    missing = [name for name in names if name not in figures]
    if missing:
        raise ValueError(f"{', '.join(missing)} was drawn and not judged: give all files of a draw to one judge")
    rows = [{**figures[name], **entry} for name, entry in zip(names, entries, strict=True)]
    return rows, figures.get("natural", {})


def _read(path: pathlib.Path, program: str, fields: Sequence[str]) -> dict[str, Any]:
    """JSON with "sets" whose entries have these fields."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [field for one in content["sets"] for field in fields if field not in one]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of launch/{program}.py: {error}") from None
    if missing:
        raise ValueError(f"{path} is no file of launch/{program}.py: a set has no {missing[0]}")
    return content


def _has(row: Mapping[str, Any], name: str) -> bool:
    """Whether a judge has said something."""
    return bool(row.get(name)) and row[name]["value"] is not None


def score(name: str, quality: Mapping[str, float]) -> Estimate:
    """A figure as it is interpolated: the higher the better."""
    value = quality["value"]
    error = math.nan if quality["standard_error"] is None else quality["standard_error"]
    return Estimate(-math.log(value), error / value) if name == "pseudo_perplexity" else Estimate(value, error)


def curves_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of each setting's curve: the sampler's where it has one curve, else `_curve`."""
    by_sampler: dict[str, set[str]] = {}
    for row in rows:
        by_sampler.setdefault(row["sampler"], set()).add(_curve(row))
    return [row["sampler"] if len(by_sampler[row["sampler"]]) == 1 else _curve(row) for row in rows]


def _curve(row: Mapping[str, Any]) -> str:
    """`plot.curve_name` without the number of rounds, which wide windows need more of than narrow ones."""
    return " ".join(word for word in plot.curve_name(row).split() if not word.startswith("verify_rounds="))


def gains(rows: Sequence[Mapping[str, Any]], baseline: str = BASELINE) -> dict[str, list[ProteinGain]]:
    """The gains of all other curves, for every quality that both have been judged by.

    Args:
        rows: from `read_rows`.
        baseline: curve to compare with: a sampler that has one curve, or what all settings of a curve have in common.

    Raises:
        ValueError: where it is not there, or nothing else, or no quality.
    """
    curves = curves_of(rows)
    # A curve's full name is known whether its sampler has others or not.
    baseline = next((curve for row, curve in zip(rows, curves, strict=True) if _curve(row) == baseline), baseline)
    samplers = list(dict.fromkeys(curves))
    if baseline not in samplers and any(row["sampler"] == baseline for row in rows):
        raise ValueError(f"{baseline} has several curves: compare with one of {', '.join(samplers)}")
    if baseline not in samplers or len(samplers) < 2:
        raise ValueError(f"there are settings of {', '.join(samplers)} alone: draw with {baseline} and another sampler")
    found = {}
    for name in QUALITIES:
        of = {
            sampler: [
                _as_headline(row, name)
                for row, curve in zip(rows, curves, strict=True)
                if curve == sampler and _has(row, name)
            ]
            for sampler in samplers
        }
        # A setting that a cheaper one is as good as would be beaten without any help of ours.
        points = {point.label: point for point in headline.curve(of[baseline], "nfe")}
        best = max((point.quality.value for point in points.values()), default=math.nan)
        each = [
            _gain(row, of[sampler], name, sampler, best)
            for sampler in samplers
            if sampler != baseline and of[sampler]
            for row in sorted(of[baseline], key=lambda row: row["nfe"]["value"])
            if f"{row['sampler']} {row['setting']}" in points
        ]
        if each:
            found[name] = each
    if not found:
        raise ValueError("no judge saw both samplers: judge with --profiles or --workdir, or draw scaffolds")
    return found


def _as_headline(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A setting under the names that `headline` knows: variety is called unigram entropy there."""
    variety = math.nan if row.get("diversity") is None else row["diversity"]
    figures = {"quality": score(name, row[name])._asdict(), "unigram_entropy": variety}
    return {"sampler": row["sampler"], "setting": row["setting"], "nfe": row["nfe"], "judged": row[name], **figures}


def _gain(baseline: Mapping[str, Any], rows: list[dict[str, Any]], name: str, sampler: str, best: float) -> ProteinGain:
    gain, row_sampler = headline.gain(baseline, rows, "nfe"), rows[0]["sampler"]
    value = gain.baseline.quality.value
    return ProteinGain(
        sampler=sampler,
        baseline=baseline["setting"],
        quality=Estimate(**baseline["judged"]),
        share_of_best=math.exp(value - best) if name == "pseudo_perplexity" else value / best if best else math.nan,
        baseline_nfe=gain.baseline.cost,
        nfe=gain.cost,
        ratio=gain.ratio,
        diversity_difference=gain.entropy_difference,
        between=tuple(label.removeprefix(f"{row_sampler} ") for label in gain.between),
    )


def best_gains(found: Mapping[str, Sequence[ProteinGain]]) -> dict[str, dict[str, ProteinGain]]:
    """By quality and sampler the largest gain where the baseline is within 5 % of its best; none where out of reach."""
    best: dict[str, dict[str, ProteinGain]] = {}
    for name, each in found.items():
        best[name] = {}
        for gain in each:
            if gain.share_of_best < SHARE_OF_BEST or math.isnan(gain.ratio.value):
                continue
            if gain.sampler not in best[name] or gain.ratio.value > best[name][gain.sampler].ratio.value:
                best[name][gain.sampler] = gain
    return best


def gains_table(found: Mapping[str, Sequence[ProteinGain]], baseline: str = BASELINE) -> str:
    """One line a quality, sampler and setting of the baseline, with two standard errors; `*` as in `best_gains`."""
    number = lambda value, form: "-" if value is None or math.isnan(value) else format(value, form)
    best = [gain for each in best_gains(found).values() for gain in each.values()]
    costs = ("its NFE", "ours", "ratio", "+-2se")
    lines = [("quality", "sampler", baseline, "judged", "+-2se", "of best", *costs, "diversity", "between")]
    for name, each in found.items():
        for gain in each:
            error = gain.quality.standard_error
            lines.append(
                (
                    name.replace("_", " "),
                    gain.sampler,
                    gain.baseline,
                    f"{gain.quality.value:.4g}",
                    number(None if error is None else 2 * error, ".2g"),
                    number(gain.share_of_best, ".3f"),
                    f"{gain.baseline_nfe:.4g}",
                    number(gain.nfe, ".4g"),
                    number(gain.ratio.value, ".2f") + ("*" if any(gain is one for one in best) else ""),
                    number(2 * gain.ratio.standard_error, ".2f"),
                    number(gain.diversity_difference, "+.3f"),
                    ", ".join(filter(None, gain.between)) or "out of reach",
                )
            )
    return tables.align(lines, num_left=3)


def gains_figure(rows: Sequence[Mapping[str, Any]], natural: Mapping[str, Any]) -> "Figure":
    """Every quality against NFE, with two standard errors; a dotted line, or the title, is what natural proteins have.

    Args:
        rows, natural: from `read_rows`.

    Raises:
        ValueError: where nothing was judged.
        ImportError: without matplotlib.
    """
    panels = [name for name in QUALITIES if any(_has(row, name) for row in rows)]
    if not panels:
        raise ValueError("plot: no set has a quality; judge with --profiles or --workdir")
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        curves = curves_of(rows)
        for number, curve in enumerate(dict.fromkeys(curves)):
            line = sorted(
                (row["nfe"]["value"], row[name]["value"], 2 * (row[name]["standard_error"] or 0.0))
                for row, its_curve in zip(rows, curves, strict=True)
                if its_curve == curve and _has(row, name)
            )
            if line:
                axes.errorbar(*zip(*line, strict=True), label=curve, **plot.style(curve, number))
        if _has(natural, name):
            low, high = axes.get_ylim()
            value = natural[name]["value"]
            if low - (high - low) < value < high + (high - low):
                axes.axhline(value, color="black", linestyle=":", linewidth=1, label="natural")
            else:  # a line so far off would press the curves together
                axes.set_title(f"natural {value:.3g}", fontsize="small")
        plot.scale_cost(axes, "NFE a protein")
        axes.set_ylabel(QUALITIES[name])
    labels = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=2, fontsize="small")
    return figure


def compare_files(
    drawn: Sequence[str], judged: Sequence[str], plots: Sequence[str] = (), baseline: str = BASELINE
) -> tuple[dict[str, Any], str]:
    """Gains at equal quality: what `launch/compare_proteins.py` does.

    Args:
        drawn, judged: as in `read_rows`.
        plots: pictures to write; their endings name the formats.
        baseline: as in `gains`.

    Returns:
        JSON values: "sets", what was drawn and found of it, each with its "curve"; "natural", what was found of natural
        proteins; "gains", by quality a list of `ProteinGain`, and "best", by quality and sampler that of `best_gains`;
        and the table.

    Raises:
        ValueError: as `read_rows`, `gains` and `plot.check`.
        ImportError: for plots without matplotlib.
    """
    for path in plots:
        plot.check(os.path.expanduser(path))
    rows, natural = read_rows(drawn, judged)
    found = gains(rows, baseline)
    for path in plots:
        gains_figure(rows, natural).savefig(os.path.expanduser(path), dpi=120)
    sets = [{"curve": curve, **row} for curve, row in zip(curves_of(rows), rows, strict=True)]
    results = {"sets": sets, "natural": natural, "gains": found, "best": best_gains(found)}
    return to_json(results), gains_table(found, baseline)
