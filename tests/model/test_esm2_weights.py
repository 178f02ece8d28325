"""Weights of ESM-2 from files: what is used, what is spare, and what is named in an error."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ssmd_jax.model import esm2_weights
from tests.model.test_esm2 import CONFIG, tensors

HEAD, TABLE = "lm_head.decoder.weight", "esm.embeddings.word_embeddings.weight"
DESCRIPTION = {
    "hidden_size": 640, "num_hidden_layers": 30, "num_attention_heads": 20, "intermediate_size": 2560,
    "vocab_size": 33, "mask_token_id": 32, "position_embedding_type": "rotary", "emb_layer_norm_before": False,
    "layer_norm_eps": 1e-5, "token_dropout": True,
}  # fmt: skip


def test_file_and_folder_of_shards(tmp_path):
    names = sorted(tensors())
    save_file(tensors(), tmp_path / "model.safetensors")
    whole = esm2_weights.load(tmp_path / "model.safetensors", CONFIG)
    folder = tmp_path / "shards"
    folder.mkdir()
    for n, part in enumerate((names[:10], names[10:])):
        save_file({name: tensors()[name] for name in part}, folder / f"model-0000{n}.safetensors")
    sharded = esm2_weights.load(folder, CONFIG)
    np.testing.assert_array_equal(whole["table"], tensors()[TABLE])
    for name in ("qkv", "out"):
        one, two = (tree["trunk_blocks"]["blocks"]["attention"][name] for tree in (whole, sharded))
        np.testing.assert_array_equal(one, two)


def test_spare_tensors_are_left_out():
    spare = {
        "esm.embeddings.position_ids": np.arange(4),
        "esm.contact_head.regression.weight": np.zeros((1, 8), np.float32),
        "esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq": np.zeros(2, np.float32),
        HEAD: tensors()[TABLE],
        "lm_head.decoder.bias": tensors()["lm_head.bias"],
    }
    assert set(esm2_weights.convert({**tensors(), **spare}, CONFIG)) == set(esm2_weights.convert(tensors(), CONFIG))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.dense.bias"), "lack lm_head.dense.bias"),
        (lambda t: t.update(head=np.zeros(2)), "not of this network: head"),
        (lambda t: t.update({"lm_head.bias": np.zeros(25)}), r"lm_head.bias \(25,\) instead of \(33,\)"),
        (lambda t: t.update({HEAD: t[TABLE] + 1}), "set model.tied_head to False"),
        (lambda t: [t.pop(name) for name in list(t) if ".0." in name], "and 13 more"),
    ],
)
def test_wrong_tensors_are_named(change, message):
    wrong = dict(tensors())
    change(wrong)
    with pytest.raises(ValueError, match=message):
        esm2_weights.convert(wrong, CONFIG)


def test_a_head_of_its_own():
    config = dataclasses.replace(CONFIG, tied_head=False)
    kernel = np.random.default_rng(0).normal(size=(33, CONFIG.width)).astype(np.float32)
    params = esm2_weights.convert({**tensors(), HEAD: kernel}, config)
    np.testing.assert_array_equal(params["decoder"], kernel)
    with pytest.raises(ValueError, match=HEAD):
        esm2_weights.convert(tensors(), config)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="no safetensors in"):
        esm2_weights.load(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="there are no weights at"):
        esm2_weights.load(tmp_path / "model.safetensors", CONFIG)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        esm2_weights.load(tmp_path, CONFIG)


def test_fields_of_a_description(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(DESCRIPTION))
    fields = esm2_weights.read_fields(tmp_path)
    assert (fields["n_noncausal"], fields["width"], fields["num_heads"], fields["tied_head"]) == (30, 640, 20, True)
    file.write_text(json.dumps(DESCRIPTION | {"position_embedding_type": "absolute"}))
    with pytest.raises(ValueError, match="describes no ESM-2: position_embedding_type is 'absolute'"):
        esm2_weights.read_fields(tmp_path)
    file.write_text("{}")
    with pytest.raises(ValueError, match="it has no hidden_size"):
        esm2_weights.read_fields(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="it holds no fields"):
        esm2_weights.read_fields(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        esm2_weights.read_fields(tmp_path)
