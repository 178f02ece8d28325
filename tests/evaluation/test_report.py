"""Which text is held out, and where the results go."""

import dataclasses
import json
import types

import numpy as np
import pytest

from ssmd_jax.data.pipeline import Records
from ssmd_jax.evaluation import judge, report
from ssmd_jax.model.bound import HybridModel
from tests.training import tiny


@pytest.fixture
def judged(monkeypatch):
    """Tokens that the run's validation saw; nothing is sampled."""
    seen = []

    def validate(_step, _params, batches, _key):
        seen.extend(batches)
        table = {"table": lambda: "", "as_dict": dict, "draft_bits": 1.0, "target_bits": 1.0}
        return types.SimpleNamespace(**table)

    monkeypatch.setattr(report, "validate", validate)
    monkeypatch.setattr(report.bench, "compare", lambda *args, **kwargs: [])
    monkeypatch.setattr(report.likelihood, "bounds", lambda _model, _tokenizer, tokens, *rest, **kwargs: tokens)
    monkeypatch.setattr(report.tables, "bounds_table", str)
    return seen


def evaluate(data, **fields):
    experiment = tiny.config()
    config = experiment.network_config(data.tokenizer.num_tokens)
    model = HybridModel(None, config)
    sizes = {"num_samples": 4, "batch_size": 2, "likelihood_sequences": 3, "orders": 1}
    return report.evaluate(model, data.tokenizer, experiment, data, [], None, **sizes | fields)


def letters(letter):
    stream = types.SimpleNamespace(tokens=np.full(20 * tiny.LENGTH, letter), document_ends=np.array([20 * tiny.LENGTH]))
    return Records(stream, tiny.LENGTH)


@pytest.mark.parametrize(("split", "letter"), [("valid", 1), ("test", 2)])
def test_every_figure_is_of_the_split(judged, split, letter):
    results = evaluate(dataclasses.replace(tiny.data(), valid=letters(1), test=letters(2)), split=split)
    assert results["split"] == split and results["data"]["unigram_entropy"] == 0
    assert judged and all((batch == letter).all() for batch in judged)
    assert (np.array(results["bounds"]) == letter).all()


def test_bad_input_comes_before_work():
    data = tiny.data()
    with pytest.raises(ValueError, match="no test split"):
        evaluate(data, split="test")
    with pytest.raises(ValueError, match="split must be one of valid, test"):
        evaluate(data, split="train")
    for name in ("num_samples", "batch_size", "orders", "likelihood_sequences"):
        with pytest.raises(ValueError, match=f"^{name} must"):
            evaluate(data, **{name: -1})


def test_texts_are_what_the_judge_reads(judged, tmp_path):
    evaluate(dataclasses.replace(tiny.data(), valid=letters(1)), texts=tmp_path)
    assert judge.read_texts(tmp_path / "held_out.json") == ["a" * tiny.LENGTH] * 4
    file = report.write_texts(tmp_path, "speculative_0.04 x 8", ["one", "two"])
    assert file.name == "speculative_0.04_x_8.json" and judge.read_texts(file) == ["one", "two"]


def test_output(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    report.check_output("~/new.json")
    assert not list(tmp_path.iterdir())
    report.write_output({"a": 1}, "~/new.json")
    report.check_output(tmp_path / "new.json")
    assert json.loads((tmp_path / "new.json").read_text()) == {"a": 1}
    for bad in (tmp_path, tmp_path / "none" / "new.json", tmp_path / "new.json" / "x"):
        with pytest.raises(ValueError, match=r"cannot write the output|no folder"):
            report.check_output(bad)
