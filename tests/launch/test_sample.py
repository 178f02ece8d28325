"""`launch/sample.py`, as its users run it."""

import pathlib
import subprocess
import sys

import pytest

from tests.launch import programs

LENGTH = 16
SHAPES = ["--temperature=0.5", "--top_p=0.9", "--draft_temperature=1.2", "--tie_first"]


@pytest.fixture(scope="module")
def good():
    folder = f"--workdir={programs.workdir()}"
    lines = {
        "defaults": [folder],
        "again": [folder],
        "other seed": [folder, "--seed=1"],
        "plain": [folder, "--sampler=plain", "--num_samples=3", "--delta_tau=0.2", "--length=9"],
        "policy": [folder, "--sampler=eb", "--sampler_args=gamma=2", "--infill=a__b", "--budget_nfe=4", "--top_p=0.9"],
        "prompt": [folder, "--prompt=the ca", "--trace", "--window=5", "--verify_rounds=3", *SHAPES],
        "infill": [folder, "--infill=a..b.c", "--gap=.", "--budget_nfe=2.5", "--window=full", "--order=entropy"],
    }
    return dict(zip(lines, programs.run("sample", list(lines.values())), strict=True))


@pytest.mark.slow
def test_texts_then_one_line_of_json(good):
    for status, out, err in good.values():
        assert status == 0, err
        assert "Traceback" not in err and "NFE" in err.upper()
        result = programs.last_json(out)
        printed = out.splitlines()[:-1]
        assert [line for line in printed if line] == [text for text in result["samples"] if text]
        assert result["accepted"] + result["rejected"] + result["unverified"] > 0
    assert len(programs.last_json(good["defaults"][1])["samples"]) == 4


@pytest.mark.slow
def test_the_seed_decides(good):
    texts = lambda name: programs.last_json(good[name][1])["samples"]
    assert texts("defaults") == texts("again") != texts("other seed")


@pytest.mark.slow
def test_flags_arrive(good):
    plain = programs.last_json(good["plain"][1])
    assert [len(text) for text in plain["samples"]] == [9] * 3
    assert plain["sampler"] == "plain" and plain["unverified"] == 9 and plain["rounds"] == 0
    policy = programs.last_json(good["policy"][1])
    assert policy["sampler"] == "eb" and policy["nfe"] <= 4 and policy["unverified"] == LENGTH - 2
    assert all((text[0], text[3]) == ("a", "b") for text in policy["samples"])
    infill = programs.last_json(good["infill"][1])
    assert infill["nfe"] <= 2.5
    for text in infill["samples"]:
        assert len(text) == LENGTH and (text[0], text[3], text[5]) == ("a", "b", "c")
    for text in programs.last_json(good["prompt"][1])["samples"]:
        assert text.startswith("the ca") and len(text) == LENGTH
    assert "pass 1:" in good["prompt"][2] and "pass 1:" not in good["prompt"][1]


BAD = {
    "long prompt": (["--prompt=the cat sat on the mat"], "more than length = 16"),
    "unknown symbol": (["--prompt=the #1"], "'#'"),
    "unknown symbol between gaps": (["--infill=a_B"], "'B'"),
    "prompt and infill": (["--prompt=a", "--infill=b_"], "not both"),
    "window zero": (["--window=0"], "size must be"),
    "window below zero": (["--window=-2"], "size must be"),
    "delta_tau zero": (["--delta_tau=0"], "delta_tau"),
    "rounds zero": (["--verify_rounds=0"], "verify_rounds"),
    "rounds below zero": (["--verify_rounds=-1"], "verify_rounds"),
    "budget zero": (["--budget_nfe=0"], "budget_nfe"),
    "budget below zero": (["--budget_nfe=-1"], "budget_nfe"),
    "budget below one pass": (["--budget_nfe=0.5"], "budget_nfe"),
    "no samples": (["--num_samples=0"], "num_samples"),
    "no batch": (["--batch_size=-1"], "batch_size"),
    "no length": (["--length=0"], "length"),
    "order": (["--order=upwards"], "order"),
    "sampler": (["--sampler=best"], "sampler"),
    "argument": (["--sampler=eb", "--sampler_args=gama=1"], "'gama'"),
    "value": (["--sampler=eb", "--sampler_args=gamma=-1"], "gamma"),
    "flag of another sampler": (["--sampler=eb", "--delta_tau=0.1"], "delta_tau"),
    "trace of a policy": (["--sampler=eb", "--trace"], "trace"),
    "evaluations and windows": (["--nfe=8", "--delta_tau=0.1"], "leave out nfe or delta_tau"),
    "evaluations without a profile": (["--nfe=8"], "launch/tune.py measures one"),
    "not a number": (["--temperature=warm"], "temperature"),
    "no such flag": (["--temprature=1"], "temprature"),
}


@pytest.mark.slow
def test_bad_input_is_one_sentence(tmp_path):
    folder = f"--workdir={programs.workdir()}"
    lines = [[folder, *flags] for flags, _ in BAD.values()]
    lines += [[f"--workdir={tmp_path}"], [f"--workdir={tmp_path / 'none'}"]]
    culprits = [*(named for _, named in BAD.values()), "workdir", "none"]
    outcomes = programs.run("sample", lines)
    for outcome, named in zip(outcomes, culprits, strict=True):
        programs.check_refused(outcome, named)


@pytest.mark.slow
def test_workdir_in_the_home_folder(monkeypatch):
    run = pathlib.Path(programs.workdir())
    monkeypatch.setenv("HOME", str(run.parent))
    (outcome,) = programs.run("sample", [[f"--workdir=~/{run.name}", "--num_samples=1", "--trace=false"]])
    assert outcome[0] == 0, outcome


@pytest.mark.slow
def test_runs_as_a_file():
    command = [sys.executable, "launch/sample.py", f"--workdir={programs.workdir()}", "--num_samples=1"]
    done = subprocess.run(
        command, cwd=programs.ROOT, env=programs.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(programs.last_json(done.stdout)["samples"]) == 1
