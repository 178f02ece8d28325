"""`launch/tune.py` and `launch/export.py`, as their users run them, and what evaluates their outcome."""

import shutil

import jax
import numpy as np
import pytest

import ssmd_jax
from ssmd_jax.sampling.recommend import Profile
from ssmd_jax.training import loop
from tests.launch import programs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A copy: a profile stays in the workdir."""
    folder = tmp_path_factory.mktemp("tune") / "run"
    shutil.copytree(programs.workdir(), folder)
    return folder


@pytest.mark.slow
def test_from_a_run_to_the_best_windows_of_its_export(run):
    sizes = ["--num_sequences=4", "--batch_size=2"]
    lines = [[f"--workdir={run}", *sizes], [f"--workdir={run}", "--num_sequences=0"], ["--workdir=/nothing"]]
    good, no_sequences, no_run = programs.run("tune", lines)
    assert good[0] == 0, good[2]
    found = programs.last_json(good[1])
    assert found["num_sequences"] == 4 and found["profile"] == str(run / "profile.npz")
    for sampler in ("plain", "speculative"):
        rows = found[sampler]
        assert rows and all(row["nfe"] <= row["budget"] for row in rows)
        assert sorted((row["bits"] for row in rows), reverse=True) == [row["bits"] for row in rows]
    for outcome, words in ((no_sequences, "num_sequences"), (no_run, "no workdir")):
        assert outcome[0] == 1 and words in outcome[2] and "Traceback" not in outcome[2]

    out = run.parent / "out"
    bad = run.parent / "other"
    shutil.copytree(run, bad)
    flags = [f"--workdir={run}", "--dtype=int8"]
    onto_itself = [f"--workdir={out}", f"--output={out}"]
    export, onto_a_run, onto_itself = programs.run(
        "export", [[*flags, f"--output={out}"], [*flags, f"--output={bad}"], onto_itself]
    )
    assert export[0] == 0, export[2]
    assert programs.last_json(export[1])["parameters"] == sum(x.size for x in _leaves(ssmd_jax.load(run)[0]))
    assert onto_a_run[0] == 1 and "choose another folder" in onto_a_run[2]
    assert onto_itself[0] == 1 and "is the model itself" in onto_itself[2]
    # Nobody trains into a release: what came out would never be read.
    for place, words in ((out, "holds a released model"), ("gs://bucket/run", "is an address and no folder")):
        with pytest.raises(ValueError, match=words):
            loop.train(programs.config(), place)

    # within the rounding of int8, and with the same tokenizer and profile
    model, tokenizer, config = ssmd_jax.load(out)
    for one, other in zip(_leaves(model), _leaves(ssmd_jax.load(run)[0]), strict=True):
        np.testing.assert_allclose(one, other, atol=np.abs(other).max() / 200)
    assert tokenizer.num_tokens == 27 and config.length == Profile.load(out / "profile.npz").draft_nll_DxS.shape[0]

    few = ["--num_samples=2", "--batch_size=2", "--likelihood_sequences=0"]
    best = [f"--workdir={out}", *few, "--settings=plain:best64,speculative:best64"]
    lines = [[*best, f"--data={programs.folder()}"], best]
    lines += [[f"--workdir={programs.workdir()}", *few, "--settings=plain:best64"]]
    evaluated, no_data, no_profile = programs.run("evaluate", lines)
    assert evaluated[0] == 0, evaluated[2]
    rows = programs.last_json(evaluated[1])["samplers"]
    assert [row["setting"] for row in rows] == ["best64", "best64"]
    # The release keeps the names of its data, and no folder of the machine it was made on.
    assert no_data[0] == 1 and "no data at corpus.txt" in no_data[2]
    assert str(programs.folder()) not in (out / "config.json").read_text()
    assert no_profile[0] == 1 and "launch/tune.py measures one" in no_profile[2]


def test_weights_of_another_network_are_refused(run, tmp_path):
    programs.run("export", [[f"--workdir={run}", f"--output={tmp_path}", "--dtype=float32"]])
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"n_causal": 1', '"n_causal": 2'))
    with pytest.raises(ValueError, match="are not those of the network"):
        ssmd_jax.load(tmp_path)


def _leaves(model):
    return jax.tree.leaves(model.params)
