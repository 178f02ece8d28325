"""`launch/evaluate.py`, as its users run it."""

import json
import math

import numpy as np
import pytest

from tests.launch import programs

SIZES = ["--num_samples=6", "--batch_size=4", "--likelihood_sequences=3", "--orders=2"]
SETTINGS = "--settings=plain:0.1,speculative:0.2:3,speculative:full:16"


# One run of the program for all of them, which compiles every sampler.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "words").write_text("the\ncat\n")
    run = [f"--workdir={programs.workdir()}", SETTINGS, *SIZES]
    few = ["--likelihood_sequences=0", "--num_samples=2", "--settings=plain:8"]
    lines = {
        "full": [*run, f"--output={folder / 'results.json'}"],
        "short": [*run, "--likelihood_sequences=0", f"--word_list={folder / 'words'}", "--settings=plain:0.1"],
        "test": [*run, *few, "--split=test"],
        "samplers": [
            *run[:1],
            *SIZES,
            "--likelihood_sequences=0",
            "--samplers=eb,threshold:block=8,speculative:order=dilated",
            "--sweep=gamma=0.5:2,threshold=0.2,delta_tau=0.2",
            f"--plot={folder / 'samplers.svg'}",
        ],
        "bad sampler": [*run, "--samplers=best"],
        "bad sweep": [*run, "--samplers=eb", "--sweep=steps=4"],
        "sweep alone": [*run, "--sweep=steps=4"],
        "bad plot": [*run, f"--plot={folder / 'samplers.txt'}"],
        "full disk": [*run, *few, "--output=/dev/full"],
        "no settings": [*run, "--settings="],
        "bad setting": [*run, "--settings=plain:0.1,speculative:0.1:0"],
        "no samples": [*run, "--num_samples=0"],
        "no batch": [*run, "--batch_size=0"],
        "no orders": [*run, "--orders=0"],
        "negative": [*run, "--likelihood_sequences=-1"],
        "no words": [*run, f"--word_list={folder / 'none'}"],
        "no folder": [*run, f"--output={folder / 'a' / 'b.json'}"],
        "folder": [*run, f"--output={folder}"],
        "no file": [*run, f"--output={folder / ('x' * 300)}"],
        "no split": [*run, "--split=train"],
        "no run": [f"--workdir={folder}"],
    }
    return folder, dict(zip(lines, programs.run("evaluate", list(lines.values())), strict=True))


def test_results(outcomes):
    folder, by_name = outcomes
    status, out, err = by_name["full"]
    assert status == 0, err
    assert len(out.splitlines()) == 1 and "Traceback" not in err
    results = programs.last_json(out)
    assert json.loads((folder / "results.json").read_text()) == results
    rows = results["samplers"]
    assert [(row["sampler"], row["setting"]) for row in rows] == [
        ("plain", "0.1"),
        ("speculative", "0.2 x 3"),
        ("speculative", "full x 16"),
    ]
    assert rows[0]["acceptance"] is None and rows[2]["passes"] == 1
    for row, along in zip(rows, results["acceptance"], strict=True):
        assert math.isclose(sum(along["nfe"]), row["nfe"]["value"], rel_tol=1e-5)
    bounds = results["bounds"]
    assert bounds["unit"] == "character"
    # two steps teach next to nothing: all bounds are those of a nearly untrained network, and near each other
    for name in ("draft", "target", "sampler"):
        assert 2 < bounds[name]["value"] < 9 and bounds[name]["standard_error"] < 1
    assert abs(bounds["draft"]["value"] - bounds["sampler"]["value"]) < 1
    assert results["data"]["spelling"]["value"] == 1 and results["data"]["num_words"] == 12
    for shown in ("distance k-i", "sampler", "revealed", "expected NFE"):
        assert shown in err


def test_validation_is_that_of_training(outcomes):
    """The same batches, orders and masks: the numbers in the run's own metrics."""
    _, by_name = outcomes
    with open(f"{programs.workdir()}/metrics.jsonl") as file:
        trained = [json.loads(line) for line in file]
    trained = next(line for line in reversed(trained) if any("draft_bits" in name for name in line))
    found = next(value for name, value in trained.items() if name.endswith("draft_bits"))
    validated = programs.last_json(by_name["full"][1])["validation"]
    np.testing.assert_allclose(validated["draft_bits"], found, rtol=1e-5)


def test_parts_can_be_left_out(outcomes):
    status, out, err = outcomes[1]["short"]
    assert status == 0, err
    results = programs.last_json(out)
    assert results["bounds"] is None and len(results["samplers"]) == 1
    assert results["data"]["num_words"] == 2


def test_any_samplers(outcomes):
    """Table, JSON and picture; no other settings than those asked for."""
    folder, by_name = outcomes
    status, out, err = by_name["samplers"]
    assert status == 0, err
    rows = programs.last_json(out)["samplers"]
    assert [(row["sampler"], row["setting"]) for row in rows] == [
        ("eb", "gamma=0.5"),
        ("eb", "gamma=2.0"),
        ("threshold", "block=8 threshold=0.2"),
        ("speculative", "order=dilated delta_tau=0.2"),
    ]
    assert all(row["nfe"]["value"] > 0 and row["unigram_entropy"] > 0 for row in rows)
    assert len(programs.last_json(out)["acceptance"]) == 1 and "block=8 threshold=0.2" in err
    assert "</svg>" in (folder / "samplers.svg").read_text()


def test_split(outcomes):
    _, by_name = outcomes
    status, out, err = by_name["test"]
    assert status == 0, err
    results = programs.last_json(out)
    assert results["split"] == "test" and programs.last_json(by_name["full"][1])["split"] == "valid"
    assert "test split: draft" in err
    # a window of 8 tracks
    assert results["samplers"][0]["passes"] == 2


def test_results_are_printed_even_if_they_cannot_be_kept(outcomes):
    status, out, err = outcomes[1]["full disk"]
    assert status == 1
    assert programs.last_json(out)["samplers"]
    assert err.splitlines()[-1] == "error: cannot write the output /dev/full: No space left on device"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("no settings", "setting"),
        ("bad setting", "speculative:0.1:0"),
        ("no samples", "num_samples"),
        ("no batch", "batch_size"),
        ("no orders", "error: orders must"),
        ("negative", "likelihood_sequences"),
        ("no words", "word list"),
        ("no folder", "output"),
        ("folder", "cannot write the output"),
        ("no file", "cannot write the output"),
        ("no split", "split"),
        ("no run", "workdir"),
        ("bad sampler", "sampler must be one of"),
        ("bad sweep", "steps"),
        ("sweep alone", "sweep needs samplers"),
        ("bad plot", "ending"),
    ],
)
def test_bad_input_is_one_sentence(outcomes, name, named):
    programs.check_refused(outcomes[1][name], named)
