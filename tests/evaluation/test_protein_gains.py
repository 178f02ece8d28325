"""Gains at equal quality of proteins, on curves that are known, and against a dumb twin."""

import dataclasses
import json
import math
import types

import numpy as np
import pytest

from ssmd_jax.evaluation import protein_gains, protein_sets
from ssmd_jax.model.config import HybridConfig

NATURAL = {"name": "natural", "pfam": {"value": 0.7, "standard_error": 0.01}, "diversity": 0.9}
# NFE of the settings; at equal quality the speculative sampler needs 2.5 times fewer, p2 as many.
NFE = {"plain": (16, 32, 64, 128, 256), "speculative": (5, 11, 23, 47, 95, 110), "p2": (20, 60, 180)}
FEWER = {"plain": 1.0, "speculative": 2.5, "p2": 1.0}


def entry(sampler, nfe, **fields):
    """Of an index: the setting's cost."""
    cost = {"value": float(nfe), "standard_error": 0.1}
    return {"file": f"{sampler}_{nfe}.fasta", "sampler": sampler, "setting": str(nfe), "nfe": cost, **fields}


def found(sampler, nfe):
    """Of a judge: hits grow with the logarithm of NFE, and so does minus the logarithm of the pseudo-perplexity."""
    log = math.log(FEWER[sampler] * nfe)
    return {
        "name": f"{sampler}_{nfe}",
        "pfam": {"value": 0.1 * log, "standard_error": 0.012},
        "pseudo_perplexity": {"value": 20.0 * math.exp(-0.2 * log), "standard_error": 0.05},
        "diversity": 0.9 - nfe / 1000,
        "plddt": None,
    }


ENTRIES = [entry(sampler, nfe) for sampler, each in NFE.items() for nfe in each]
JUDGED = [found(sampler, nfe) for sampler, each in NFE.items() for nfe in each]
ROWS = [{**a, **b} for a, b in zip(ENTRIES, JUDGED, strict=True)]


def twin(quality, baseline, rows):
    """Ratio and its error: `np.interp`, and the ratio moved by a hundredth of each error in turn."""

    def ratio(moved):
        value = lambda one: one["quality"] + moved.get(one["nfe"], 0.0)
        curve = sorted((value(one), math.log(one["nfe"])) for one in rows)
        return baseline["nfe"] / math.exp(np.interp(value(baseline), *zip(*curve, strict=True)))

    errors = [(one["nfe"], one["error"]) for one in (baseline, *rows)]
    return ratio({}), math.hypot(*(100 * (ratio({nfe: error / 100}) - ratio({})) for nfe, error in errors))


@pytest.mark.parametrize("name", ["pfam", "pseudo_perplexity"])
def test_gains_are_those_of_the_dumb_twin(name):
    rng = np.random.default_rng(0)
    rows = [{**row, name: {**row[name], "value": row[name]["value"] * rng.uniform(0.99, 1.01)}} for row in ROWS]
    sign = lambda value: -math.log(value) if name == "pseudo_perplexity" else value
    relative = lambda one: one["value"] if name == "pseudo_perplexity" else 1.0
    plain, ours = (
        [
            {
                "nfe": row["nfe"]["value"],
                "quality": sign(row[name]["value"]),
                "error": row[name]["standard_error"] / relative(row[name]),
            }
            for row in rows
            if row["sampler"] == sampler
        ]
        for sampler in ("plain", "speculative")
    )
    found = [gain for gain in protein_gains.gains(rows)[name] if gain.sampler == "speculative"]
    assert [gain.baseline_nfe for gain in found] == list(NFE["plain"])
    for gain, baseline in zip(found, plain, strict=True):
        ratio, error = twin(name, baseline, ours)
        assert gain.ratio.value == pytest.approx(ratio)
        assert gain.ratio.standard_error == pytest.approx(error, rel=0.03)
        assert gain.nfe == pytest.approx(baseline["nfe"] / ratio)


def test_known_gains():
    gains = protein_gains.gains(ROWS)
    for each in gains.values():
        for gain in each:
            reached = not math.isnan(gain.ratio.value)
            assert reached == (gain.sampler == "speculative" or 20 <= gain.baseline_nfe <= 180)
            assert not reached or gain.ratio.value == pytest.approx(FEWER[gain.sampler])
    first, last = gains["pfam"][0], gains["pfam"][len(NFE["plain"]) - 1]
    assert (
        first.baseline == "16" and first.between == ("5", "11") and first.quality == (ROWS[0]["pfam"]["value"], 0.012)
    )
    assert first.diversity_difference == pytest.approx(-0.005 + 0.016)
    assert first.share_of_best == pytest.approx(math.log(16) / math.log(256)) and last.share_of_best == 1
    perplexity = gains["pseudo_perplexity"][0]
    assert perplexity.share_of_best == pytest.approx(16**0.2 / 256**0.2)
    best = protein_gains.best_gains(gains)
    assert set(best["pfam"]) == {"speculative"} and best["pfam"]["speculative"].baseline == "256"
    table = protein_gains.gains_table(gains).splitlines()
    assert len(table) == 1 + 2 * 2 * len(NFE["plain"]) and sum("*" in line for line in table) == 2
    assert "out of reach" in table[6] and "2.50*" in table[5]


def test_curves_of_one_sampler_are_compared_like_samplers():
    """Two temperatures of plain sampling, of which the cooler needs half of the NFE."""
    cool = [
        {**row, "setting": f"temperature=0.5 step={n}", "nfe": {**row["nfe"], "value": row["nfe"]["value"] / 2}}
        for n, row in enumerate(ROWS[:5])
    ]
    warm = [{**row, "setting": f"temperature=0.6 step={n}"} for n, row in enumerate(ROWS[:5])]
    rows = [*warm, *cool, *(row for row in ROWS if row["sampler"] == "p2")]
    names = ["plain temperature=0.6"] * 5 + ["plain temperature=0.5"] * 5 + ["p2"] * 3
    assert protein_gains.curves_of(rows) == names and set(protein_gains.curves_of(ROWS)) == set(NFE)
    found = protein_gains.gains(rows, "plain temperature=0.6")["pfam"]
    assert {gain.sampler for gain in found} == {"plain temperature=0.5", "p2"}
    ratios = [gain.ratio.value for gain in found if gain.sampler == "plain temperature=0.5"]
    assert ratios == pytest.approx([2.0] * 5)
    assert found[0].baseline == "temperature=0.6 step=0" and "temperature=0.5 step=0" in found[0].between
    assert protein_gains.gains(warm + rows[10:], "plain temperature=0.6") == protein_gains.gains(warm + rows[10:])
    rounds = [{**row, "setting": f"verify_rounds={40 + n} {row['setting']}"} for n, row in enumerate(cool)]
    assert set(protein_gains.curves_of(warm + rounds)) == {"plain temperature=0.6", "plain temperature=0.5"}
    with pytest.raises(ValueError, match=r"plain has several curves: compare with one of plain temperature=0\.6, "):
        protein_gains.gains(rows)


def test_a_setting_that_a_cheaper_one_beats_names_no_quality():
    """Or else what plain sampling wastes would count as saved."""
    wasteful = {**ROWS[0], **entry("plain", 999)}
    assert protein_gains.gains([*ROWS, wasteful]) == protein_gains.gains(ROWS)


def test_what_was_not_judged_is_left_out():
    rows = [{**row, "pseudo_perplexity": None} for row in ROWS]
    rows[1] = {**rows[1], "pfam": {"value": None, "standard_error": None}}
    found = protein_gains.gains(rows)
    assert set(found) == {"pfam"}
    assert [gain.baseline for gain in found["pfam"] if gain.sampler == "p2"] == ["16", "64", "128", "256"]
    unjudged = [{**row, "pfam": None} for row in rows]
    with pytest.raises(ValueError, match="no judge saw both samplers"):
        protein_gains.gains(unjudged)
    with pytest.raises(ValueError, match="there are settings of plain alone"):
        protein_gains.gains(rows[:5])
    with pytest.raises(ValueError, match="draw with ours and another sampler"):
        protein_gains.gains(rows, "ours")
    with pytest.raises(ValueError, match="no set has a quality"):
        protein_gains.gains_figure(unjudged, {})


@pytest.fixture
def files(tmp_path):
    """Drawn in one go, and judged by two: one knows hits, the other pseudo-perplexities."""
    (tmp_path / "drawn").mkdir()
    sets = [{**one, "recovery": None} for one in ENTRIES]
    (tmp_path / "drawn" / protein_sets.INDEX).write_text(json.dumps({"task": "whole", "keep": None, "sets": sets}))
    judges = {"hits": "pseudo_perplexity", "trunk": "pfam"}
    for name, unknown in judges.items():
        content = [{**one, unknown: None} for one in (*JUDGED, NATURAL)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"sets": content}))
    paths = {name: str(tmp_path / f"{name}.json") for name in judges}
    return types.SimpleNamespace(folder=tmp_path, drawn=str(tmp_path / "drawn"), judged=list(paths.values()), **paths)


def test_files_of_the_programs_are_joined(files):
    rows, natural = protein_gains.read_rows([files.drawn], files.judged)
    assert natural == NATURAL
    assert protein_gains.gains(rows) == protein_gains.gains(ROWS)
    results, table = protein_gains.compare_files([f"{files.drawn}/{protein_sets.INDEX}"], files.judged)
    assert results["best"]["pfam"]["speculative"]["ratio"]["value"] == pytest.approx(2.5)
    assert json.loads(json.dumps(results, allow_nan=False)) == results and "recovery" not in results["gains"]
    assert table == protein_gains.gains_table(protein_gains.gains(ROWS))
    assert [(one["curve"], one["nfe"]["value"], one["pfam"]) for one in results["sets"]] == [
        (row["sampler"], row["nfe"]["value"], row["pfam"]) for row in ROWS
    ]
    assert results["natural"]["pfam"] == NATURAL["pfam"]


def test_recovery_of_scaffolds_is_a_quality_too(files):
    sets = [{**a, "recovery": b["pfam"]} for a, b in zip(ENTRIES, JUDGED, strict=True)]
    (files.folder / "filled.json").write_text(json.dumps({"task": "scaffold", "keep": 0.3, "sets": sets}))
    rows, _ = protein_gains.read_rows([files.folder / "filled.json"], [files.trunk])
    found = protein_gains.gains(rows)
    assert found["recovery"] == protein_gains.gains(ROWS)["pfam"] and "pfam" not in found
    with pytest.raises(ValueError, match="drawn for different tasks"):
        protein_gains.read_rows([files.drawn, files.folder / "filled.json"], [files.trunk])


def test_nfe_of_networks_of_unlike_sizes_are_those_of_the_smallest(files):
    """A trunk alone, and the head on it that makes an NFE an eighth dearer."""
    index = lambda rows, **fields: json.dumps({"task": "whole", "keep": None, **fields, "sets": rows})
    by = {"trunk": [row for row in ENTRIES if row["sampler"] == "plain"]}
    by["head"] = [row for row in ENTRIES if row["sampler"] != "plain"]
    for name, kernels in (("trunk", 1200), ("head", 1350)):
        (files.folder / f"{name}_sets.json").write_text(index(by[name], kernels=kernels))
    both = [files.folder / f"{name}_sets.json" for name in by]
    rows, _ = protein_gains.read_rows(both, files.judged)
    for row, before in zip(rows, by["trunk"] + by["head"], strict=True):
        factor = 1.0 if row["sampler"] == "plain" else 1.125
        assert row["nfe"] == {name: pytest.approx(value * factor) for name, value in before["nfe"].items()}
    for gain in protein_gains.gains(rows)["pfam"]:
        if gain.sampler == "speculative":
            assert gain.ratio.value == pytest.approx(2.5 / 1.125)
    (files.folder / "head_sets.json").write_text(index(by["head"]))
    with pytest.raises(ValueError, match=r"head_sets\.json does not say how large its network is"):
        protein_gains.read_rows(both, files.judged)


def test_an_nfe_of_a_head_on_a_trunk_passes_the_kernels_of_both():
    for width, block in ((384, 12 * 384**2), (480, 12 * 480**2)):
        trunk = HybridConfig(num_tokens=32, trunk="esm2", n_noncausal=12, n_causal=0, width=width)
        head = dataclasses.replace(trunk, n_causal=1)
        assert (protein_sets.nfe_kernels(trunk), protein_sets.nfe_kernels(head)) == (12 * block, 13 * block)


def test_bad_files_are_one_sentence(files):
    with pytest.raises(ValueError, match=r"is no file of launch/draw_proteins\.py"):
        protein_gains.read_rows([files.folder / "none.json"], files.judged)
    with pytest.raises(ValueError, match=r"trunk\.json is no file of launch/draw_proteins\.py: a set has no file"):
        protein_gains.read_rows([files.trunk], files.judged)
    with pytest.raises(ValueError, match=r"is no file of launch/judge_proteins\.py: a set has no name"):
        protein_gains.read_rows([files.drawn], [f"{files.drawn}/{protein_sets.INDEX}"])
    with pytest.raises(ValueError, match=r"plain_16, .* was drawn twice"):
        protein_gains.read_rows([files.drawn, files.drawn], files.judged)
    (files.folder / "few.json").write_text(json.dumps({"sets": [one for one in JUDGED if one["name"] != "plain_32"]}))
    with pytest.raises(ValueError, match="plain_32 was drawn and not judged"):
        protein_gains.read_rows([files.drawn], [files.folder / "few.json"])


@pytest.mark.slow
def test_the_picture_shows_every_quality(files):
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    figure = protein_gains.gains_figure(ROWS, NATURAL)
    hits, perplexity = figure.axes
    assert hits.get_ylabel() == "share with a Pfam hit" and perplexity.get_ylabel() == "pseudo-perplexity"
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == sorted(["natural", *NFE])
    far = {"pfam": {"value": 9.0, "standard_error": 0.1}}
    titles = [axes.get_title() for axes in protein_gains.gains_figure(ROWS, far).axes]
    assert titles == ["natural 9", ""]
    plain = hits.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(plain, [(nfe, 0.1 * math.log(nfe)) for nfe in NFE["plain"]])
    assert not any(line.get_label() == "natural" for line in perplexity.lines)
    with pytest.raises(ValueError, match=r"the ending of .* must be one of"):
        protein_gains.compare_files([files.drawn], files.judged, ["gains.doc"])
    paths = [files.folder / "gains.png", files.folder / "gains.svg"]
    protein_gains.compare_files([files.drawn], files.judged, list(map(str, paths)))
    assert all(path.stat().st_size > 1000 for path in paths)
