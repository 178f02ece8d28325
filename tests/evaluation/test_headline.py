"""Gains at equal quality, on curves that are known."""

import json
import math

import numpy as np
import pytest

from ssmd_jax.evaluation import headline


def row(sampler, setting, passes, nfe, accuracy, error=0.0, entropy=2.8):
    return {
        "sampler": sampler,
        "setting": setting,
        "passes": float(passes),
        "nfe": {"value": float(nfe), "standard_error": 0.0},
        "seconds_per_sample": nfe / 100,
        "gflop": 10.0 * nfe,
        "batch_size": 256,
        "spelling": {"value": accuracy, "standard_error": error},
        "unigram_entropy": entropy,
    }


# Accuracy is 0.1 log2(NFE) on the candidate's curve, and what the baseline has at three times the NFE.
CANDIDATE = [row("speculative", str(n), n, n, 0.1 * math.log2(n), 0.003, 2.8 + 0.01 * n) for n in (4, 8, 16, 32)]
BASELINE = [row("plain", str(n), n, n, 0.1 * math.log2(n / 3), 0.004) for n in (24, 44, 80)]


def test_gains_on_known_curves():
    found = headline.gains(BASELINE, CANDIDATE)
    for cost in headline.COSTS:
        for gain in found[cost]:
            assert gain.ratio.value == pytest.approx(3.0)
    partly = [{**CANDIDATE[0], "gflop": None}, *CANDIDATE[1:]]
    assert headline.gains(BASELINE, partly)["gflop"][1:] == found["gflop"][1:]
    without = [{name: value for name, value in each.items() if name != "gflop"} for each in CANDIDATE]
    assert set(headline.gains(BASELINE, without)) == {"nfe", "seconds_per_sample"}
    first = found["nfe"][0]
    assert first.baseline.label == "plain 24" and first.between == ("speculative 4", "speculative 8")
    # exactly at the point of 8 NFE: its own error and the baseline's, times the slope of log NFE
    slope = math.log(2) / 0.1
    assert first.ratio.standard_error == pytest.approx(3.0 * slope * math.hypot(0.004, 0.003))
    assert first.entropy_difference == pytest.approx(0.08)


def test_the_error_is_that_of_simulated_repetitions():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(4000):
        moved = lambda rows: [
            {
                **r,
                "spelling": {
                    **r["spelling"],
                    "value": rng.normal(r["spelling"]["value"], r["spelling"]["standard_error"]),
                },
            }
            for r in rows
        ]
        ratios.append(headline.gain(moved(BASELINE)[1], moved(CANDIDATE), "nfe").ratio.value)
    expected = headline.gain(BASELINE[1], CANDIDATE, "nfe").ratio.standard_error
    assert np.nanstd(ratios) == pytest.approx(expected, rel=0.1)


def test_points_that_a_cheaper_one_beats_are_left_out():
    worse = row("speculative", "bad", 20, 20, 0.1)
    assert [p.label for p in headline.curve([worse, *CANDIDATE], "nfe")] == [f"speculative {n}" for n in (4, 8, 16, 32)]


def test_kinds_of_settings_are_curves_of_their_own():
    """A dearer kind changes nothing, even where its points would lie on a curve through both; a cheaper one counts."""
    dearer = [row("speculative", f"best{n}", n, n, 0.1 * math.log2(n) + 0.001) for n in (12, 24)]
    alone = headline.gain(BASELINE[1], CANDIDATE, "nfe")
    assert headline.gain(BASELINE[1], [*CANDIDATE, {**dearer[0], "nfe": {"value": 15.9}}], "nfe") == alone
    cheaper = [row("speculative", f"best{n}", n, n / 2, 0.1 * math.log2(n)) for n in (8, 16)]
    both = headline.gain(BASELINE[1], [*CANDIDATE, *cheaper], "nfe")
    assert both.ratio.value == pytest.approx(2 * alone.ratio.value)
    assert both.between == ("speculative best8", "speculative best16")


def test_out_of_reach_is_no_number():
    gain = headline.gain(row("plain", "256", 256, 256, 0.9), CANDIDATE, "nfe")
    assert math.isnan(gain.ratio.value) and math.isnan(gain.cost)
    assert "out of reach" in headline.gains_table({"nfe": [gain]})


def test_files(tmp_path):
    for name, rows in (("plain", BASELINE), ("hybrid", [*BASELINE[:1], *CANDIDATE])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"samplers": rows}))
    files = [str(tmp_path / "plain.json")], [str(tmp_path / "hybrid.json")]
    pytest.importorskip("matplotlib")
    results, table = headline.compare_files(*files, (24, 80), [str(tmp_path / "gain.png"), str(tmp_path / "gain.svg")])
    assert [round(each["ratio"]["value"], 6) for each in results["nfe"]] == [3.0, 3.0]
    assert len(table.splitlines()) == 7 and (tmp_path / "gain.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="no setting with 25 trunk passes"):
        headline.compare_files(*files, (25,))
    named, _ = headline.compare_files(*files, (24, BASELINE[0]["setting"]))
    assert [each["baseline"]["label"] for each in named["nfe"]][1] == f"plain {BASELINE[0]['setting']}"
    with pytest.raises(ValueError, match="no setting best99"):
        headline.compare_files(*files, ("best99",))
    with pytest.raises(ValueError, match="no setting of the speculative sampler"):
        headline.compare_files(files[0], files[0], (24,))
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is no file of launch/evaluate\.py"):
        headline.compare_files([str(tmp_path / "bad.json")], files[1], (24,))


def test_a_judge_in_place_of_spelling(tmp_path):
    """Bits per byte that fall as accuracy rises give the same gains; settings that nobody judged are left out."""
    for name, rows in (("plain", BASELINE), ("hybrid", CANDIDATE)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"samplers": rows}))
    bits = lambda each: {"value": 2 - each["spelling"]["value"], "standard_error": each["spelling"]["standard_error"]}
    files = {
        f"/somewhere/{each['sampler']}_{each['setting']}.json": {"bits_per_byte": bits(each)}
        for each in [*BASELINE, *CANDIDATE]
    }
    (tmp_path / "judged.json").write_text(json.dumps({"files": files}))
    paths = [str(tmp_path / "plain.json")], [str(tmp_path / "hybrid.json")]
    judged, _ = headline.compare_files(*paths, (24, 80), judged=str(tmp_path / "judged.json"))
    spelled, _ = headline.compare_files(*paths, (24, 80))
    for one, other in zip(judged["nfe"], spelled["nfe"], strict=True):
        assert one["ratio"]["value"] == pytest.approx(other["ratio"]["value"])
        assert one["ratio"]["standard_error"] == pytest.approx(other["ratio"]["standard_error"])
    files.pop(f"/somewhere/plain_{BASELINE[0]['setting']}.json")
    assert len(headline.judged_rows(BASELINE, {"files": files})) == len(BASELINE) - 1
    with pytest.raises(ValueError, match=r"no file of launch/judge\.py"):
        headline.compare_files(*paths, (24,), judged=str(tmp_path / "plain.json"))
