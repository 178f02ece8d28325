"""`launch/benchmark_dual.py`, as its users run it."""

import json

from tests.launch import programs


def test_tiny_preset_and_bad_input(tmp_path):
    lines = [
        ["--parts=full pass", "--batches=1", "--batches=3", f"--output={tmp_path / 'results.json'}"],
        ["--parts=cached"],
        ["--batches=some"],
        ["--tokens_a_step=3"],
        [f"--output={tmp_path / 'a' / 'b.json'}"],
    ]
    (status, out, err), *refused = programs.run("benchmark_dual", lines)
    assert status == 0 and len(out.splitlines()) == 1, err
    results = programs.last_json(out)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert [row["part"] for row in results["rows"]] == ["full pass B=1", "full pass B=3"]
    assert "% ceiling" in err
    for outcome, named in zip(refused, ("cached", "batches", "tokens_a_step", "folder"), strict=True):
        programs.check_refused(outcome, named)
