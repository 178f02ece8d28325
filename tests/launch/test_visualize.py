"""The visualize program writes its page, and refuses bad input before any work."""

import json
import re

import pytest

from tests.launch import programs


@pytest.mark.slow
def test_page_of_the_samples_drawn(tmp_path):
    folder = f"--workdir={programs.workdir()}"
    flags = {
        "speculative": ["--window=5", "--verify_rounds=3", "--seed=2", "--prompt=the ca"],
        "plain": ["--sampler=plain", "--num_samples=2", "--delta_tau=0.2", "--length=9"],
        "infill": ["--infill=a..b.c", "--gap=.", "--budget_nfe=2.5", "--order=entropy"],
    }
    lines = [[folder, f"--output={tmp_path / name}.html", *more] for name, more in flags.items()]
    for name, (status, out, err) in zip(flags, programs.run("visualize", lines), strict=True):
        assert status == 0 and out.count("\n") == 1 and "Traceback" not in err, err
        printed = programs.last_json(out)
        assert printed["output"] == str(tmp_path / f"{name}.html") and printed["sampler"] == name.replace(
            "infill", "speculative"
        )
        page = (tmp_path / f"{name}.html").read_text()
        data = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', page)[1])
        assert [sample["text"] for sample in data["samples"]] == printed["samples"]
        assert data["title"] == "run" and data["sampler"] == printed["sampler"]
        for sample in data["samples"]:
            assert abs(sample["passes"][-1]["nfe"] - sample["nfe"]) < 1e-5
            assert len(sample["passes"][0]["revealed"]) == {"speculative": 6, "plain": 0, "infill": 3}[name]
    # The same flags draw the same samples as launch/sample.py does.
    (again,) = programs.run("sample", [[folder, *flags["speculative"]]])
    speculative = re.search('id="data">(.*?)</script>', (tmp_path / "speculative.html").read_text())[1]
    texts = [sample["text"] for sample in json.loads(speculative)["samples"]]
    assert programs.last_json(again[1])["samples"] == texts


def test_bad_input_is_one_sentence(tmp_path):
    folder = f"--workdir={programs.workdir()}"
    bad = {
        "no folder": ([folder, f"--output={tmp_path / 'none' / 'page.html'}"], "create it first"),
        "a folder": ([folder, f"--output={tmp_path}"], "cannot write the output"),
        "no run": ([f"--workdir={tmp_path}", f"--output={tmp_path / 'page.html'}"], "workdir"),
        "no samples": ([folder, "--num_samples=0", f"--output={tmp_path / 'page.html'}"], "num_samples"),
        "no such flag": ([folder, "--trace"], "trace"),
    }
    outcomes = programs.run("visualize", [line for line, _ in bad.values()])
    for outcome, (_, named) in zip(outcomes, bad.values(), strict=True):
        programs.check_refused(outcome, named)
    assert list(tmp_path.iterdir()) == []
