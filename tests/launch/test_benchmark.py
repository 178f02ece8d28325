"""`launch/benchmark.py`, as its users run it."""

import json
import math
import pathlib

import pytest

from ssmd_jax.evaluation.benchmark import plot, sampling
from tests.launch import programs

# Compiling every part takes most of a minute.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    lines = {
        "tiny": ["--runs=2", f"--output={folder / 'results.json'}"],
        "cudnn": ["--suite=sampling", "--parts=blocks", "--attention=cudnn", "--dtype=bfloat16"],
        "trained": [
            f"--workdir={programs.workdir()}",
            "--suite=sampling",
            "--parts=blocks",
            "--batch_size=2",
            f"--profile={folder / 'traces'}",
        ],
        "trained width": [f"--workdir={programs.workdir()}", "--width=64"],
        "no suite": ["--suite=speed"],
        "no part": ["--suite=training", "--parts=trunk"],
        "no folder": [f"--output={folder / 'a' / 'b.json'}"],
    }
    return folder, dict(zip(lines, programs.run("benchmark", list(lines.values())), strict=True))


def test_tiny_preset(outcomes):
    folder, by_name = outcomes
    status, out, err = by_name["tiny"]
    assert status == 0 and len(out.splitlines()) == 1, err
    results = programs.last_json(out)
    assert json.loads((folder / "results.json").read_text()) == results
    rows = {(row["suite"], row["part"]): row for row in results["rows"]}
    assert list(rows) == [
        *(("sampling", part) for part in sampling.PARTS),
        ("training", "step"),
        ("likelihood", "log likelihood"),
        *(("cost", f"pass B={batch} D={length}") for batch, length in ((8, 32), (4, 64), (1, 32), (1, 8))),
    ]
    for row in rows.values():
        assert row["error"] is None
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"] and row["runs"] == 2
        assert math.isclose(row["flops_per_second"], row["flops"] / row["seconds"])
        assert row["share_of_ceiling"] > 0 and row["temp_bytes"] > 0
    first = rows["cost", "pass B=8 D=32"]
    assert math.isclose(first["over_seconds_by_flops"], 1.0)
    for point in (row for (suite, _), row in rows.items() if suite == "cost"):
        assert math.isclose(point["seconds_by_flops"], point["flops"] * first["seconds"] / first["flops"])
        assert point["seconds_of_next_to_nothing"] == rows["cost", "pass B=1 D=8"]["seconds"]
    # Random weights are such that drafts are rejected, and samples cost what the samplers say.
    fast, plain = rows["sampling", "speculative"], rows["sampling", "plain"]
    assert 0.5 < fast["acceptance"] < 1 and plain["acceptance"] is None
    assert math.isclose(fast["nfe"], (fast["passes"] + fast["verify_rounds"]) / 2, rel_tol=1e-6)
    assert fast["nfe"] == rows["sampling", "naive speculative"]["nfe"]
    assert math.isclose(results["ratios"]["speculative_over_plain_nfe"], fast["nfe"] / plain["nfe"])
    assert results["ceilings"]["matmul_flops"] > 0 and results["ceilings"]["copy_bytes"] > 0
    assert results["peak_bytes"] > 0 and results["settings"]["weights"] == "random"
    assert "% ceiling" in err and "speculative_over_plain_seconds" in err


def test_plot_of_the_cost_suite(outcomes, tmp_path):
    pytest.importorskip("matplotlib")
    results = programs.last_json(outcomes[1]["tiny"][1])
    plot.plot_cost(results, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="suite cost"):
        plot.plot_cost(results | {"rows": []}, tmp_path / "none.png")


def test_a_part_that_the_device_cannot_run_is_a_row(outcomes):
    status, out, err = outcomes[1]["cudnn"]
    assert status == 0, err
    (row,) = programs.last_json(out)["rows"]
    assert set(row) == {"suite", "part", "error"} and "cuDNN" in row["error"] and "cuDNN" in err


def test_profile_of_a_trained_run(outcomes):
    folder, by_name = outcomes
    status, out, err = by_name["trained"]
    assert status == 0, err
    results = programs.last_json(out)
    assert [row["part"] for row in results["rows"]] == ["blocks"]
    assert list(pathlib.Path(folder, "traces", "sampling_blocks").rglob("*.xplane.pb"))
    settings = results["settings"]
    assert (settings["weights"], settings["length"], settings["model"]["width"]) == ("trained", 16, 16)


@pytest.mark.parametrize(
    ("name", "named"),
    [("trained width", "width"), ("no suite", "speed"), ("no part", "trunk"), ("no folder", "folder")],
)
def test_bad_input_is_one_sentence(outcomes, name, named):
    programs.check_refused(outcomes[1][name], named)
