"""`launch/train_masked_lm.py` and `launch/arithmetic.py`, as their users run them."""

import json

import pytest

from tests.launch import programs

# Two trainings and three decoders are compiled.
pytestmark = pytest.mark.slow

FEW = ["--config.num_steps=4", "--config.log_every=2", "--config.num_problems=20", "--config.num_held_out=4"]


def test_train_then_decode(tmp_path):
    pytest.importorskip("matplotlib")
    folders = {name: str(tmp_path / name) for name in ("drafter", "verifier")}
    line = ["--config=configs/arithmetic.py:tiny", *FEW, "--config.batch_size=4"]
    trained = [[*line, f"--output={folders[name]}", f"--config.seed={seed}"] for seed, name in enumerate(folders)]
    # Overrides of a config can be defined but once in a process.
    for each in trained:
        ((status, out, err),) = programs.run("train_masked_lm", [each])
        assert status == 0 and len(out.splitlines()) == 1, err
        result = programs.last_json(out)
        assert result["steps"] == 4 and result["held_out_loss"] > 0 and "step 4" in err
    (again,) = programs.run("train_masked_lm", trained[:1])
    programs.check_refused(again, "holds a model already")

    points, picture = tmp_path / "points", tmp_path / "pareto.png"
    line = [*(f"--{name}={folder}" for name, folder in folders.items()), f"--output={points}", "--dtype=float32"]
    line += ["--num_problems=3", "--batch_size=2"]
    some = [*line, "--methods=top_k,shared trust", f"--plot={picture}"]
    lines = [some, [*line, "--methods=greedy"], [*line, "--seed=1"]]
    done, unknown, other = programs.run("arithmetic", lines)
    assert done[0] == 0 and len(done[1].splitlines()) == 1, done[2]
    results = programs.last_json(done[1])
    assert json.loads((points / "results.json").read_text()) == results
    assert len(results["points"]) == 4 and picture.exists() and "ms a problem" in done[2]
    for found in results["points"].values():
        assert 0 <= found["accuracy"] <= 1 and found["drafter_forwards"] > 0 and found["verifier_forwards"] > 0
    programs.check_refused(unknown, "greedy")
    programs.check_refused(other, "seed")
