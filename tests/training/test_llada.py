"""A causal part on a frozen LLaDA from a folder as published: what a run trains, and what it leaves alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import ssmd_jax
from ssmd_jax.evaluation import generate
from ssmd_jax.model import pretrained
from ssmd_jax.model.bidirectional import BidirectionalConfig
from ssmd_jax.training import loop
from tests.model.published import random_model
from tests.training import tiny
from tests.training.test_sharding import trained

# The 27 symbols of text8, and behind them the mask among others that are special.
PUBLISHED = BidirectionalConfig(
    vocab_size=32, mask_id=29, eos_id=28, width=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32,
    rope_theta=5e5, rms_eps=1e-5, dtype="float32",
)  # fmt: skip


def config(folder, **fields):
    names = ("vocab_size", "mask_id", "eos_id")
    shape = {f"model__{name}": getattr(PUBLISHED, name) for name in names} | {"model__special_from": 27}
    given = {"model__trunk": "llada", "loss__freeze_trunk": True, "training__init_from": str(folder), **shape}
    return tiny.config(**{**given, **fields})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of the weights, folder of the run, its summary."""
    folder, directory = tmp_path_factory.mktemp("llada"), tmp_path_factory.mktemp("run")
    pretrained.save(folder, random_model(PUBLISHED))
    fields = {"training__num_steps": 60, "training__eval_every": 60, "training__ema_decay": 0.0}
    return folder, directory, loop.train(config(folder, **fields), directory, tiny.data())


@pytest.mark.slow
def test_the_target_learns_and_no_parameter_of_the_trunk_moves(run):
    folder, directory, summary = run
    model, _, _ = ssmd_jax.load(directory)
    before = pretrained.load(folder, dtype="float32").params
    jax.tree.map(np.testing.assert_array_equal, before, model.params["network"])
    assert set(model.params) == {"network", "causal"} and np.abs(model.params["causal"]["output"]).max() > 0
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "target_loss" in line)
    # At the first step the target is the draft; then it is far below, and the draft is what it was.
    assert first["target_loss"] == pytest.approx(first["draft_loss"], rel=1e-5)
    assert summary["valid_target_loss"] < 0.7 * summary["valid_draft_loss"]


@pytest.mark.slow
def test_it_draws_text(run):
    """By the programs that draw from a workdir: the symbols of text8, whatever the weights."""
    texts = generate.draw(run[1], num_samples=4, batch_size=4, window="full", seed=1).texts()
    assert [len(text) for text in texts] == [tiny.LENGTH] * 4
    assert set("".join(texts)) <= set(" abcdefghijklmnopqrstuvwxyz")


@pytest.mark.slow
def test_a_trunk_that_learns_too(tmp_path, run):
    """Not frozen, recomputed in the backward pass, by Muon."""
    fields = {"loss__freeze_trunk": False, "model__remat": True, "optimizer__name": "muon", "training__num_steps": 2}
    loop.train(config(run[0], **fields), tmp_path, tiny.data())
    model, _, _ = ssmd_jax.load(tmp_path)
    before = random_model(PUBLISHED).params
    moved = jax.tree.map(lambda a, b: bool(np.abs(a - b).max() > 0), before, model.params["network"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_steps_are_the_same_on_a_mesh(tmp_path, monkeypatch):
    """Rows of the head, and with them the channels of its rule, shared out; the loss in chunks."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: tests/conftest.py sets 8 CPU devices")
    monkeypatch.setattr("ssmd_jax.training.cross_entropy.CHUNKED_FROM", 8)
    fields = {"model__trunk": "llada", "model__vocab_size": 32, "model__mask_id": 29, "model__special_from": 27}
    fields |= {"training__num_steps": 4, "training__eval_every": 4}
    alone = trained(tmp_path / "alone", **fields)
    on_mesh = trained(tmp_path / "mesh", mesh__fsdp=2, mesh__tensor=2, **fields)
    for kind, values in alone.items():
        np.testing.assert_allclose(on_mesh[kind], values, rtol=5e-4, err_msg=kind)


def test_the_settings_come_back():
    given = config("folder")
    assert type(given).from_json(given.to_json()) == given
    assert given.network_config(27) == dataclasses.replace(given.model, num_tokens=27)
