"""Published weights: read as they are written, on one device or several, and refused in one sentence."""

import json

import flax
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ssmd_jax.model import pretrained
from ssmd_jax.training import sharding
from ssmd_jax.training.config import MeshConfig
from tests.model.published import DREAM, LLADA, file_tensors, random_model

TOKENS = np.random.default_rng(1).integers(0, 19, size=(4, 9)).astype(np.int32)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
@pytest.mark.parametrize("file_bytes", [10**9, 2000], ids=["one file", "many"])
def test_round_trip(config, file_bytes, tmp_path):
    model = random_model(config)
    pretrained.save(tmp_path, model, file_bytes=file_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) == 1) == (file_bytes > 2000) == (not (tmp_path / pretrained.INDEX).exists())
    stored = {name: x for file in files for name, x in load_file(file).items()}
    assert_same(stored, file_tensors(model))
    loaded = pretrained.load(tmp_path, dtype="float32")
    assert loaded.config == config
    assert_same(loaded.params, model.params)


def test_bfloat16_in_memory(tmp_path):
    model = random_model(LLADA)
    pretrained.save(tmp_path, model)
    loaded = pretrained.load(tmp_path)
    assert loaded.config.dtype == "bfloat16"
    assert all(x.dtype == jax.numpy.bfloat16 for x in jax.tree.leaves(loaded.params))
    assert_same(loaded.params, jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), model.params))
    pretrained.save(tmp_path / "half", loaded)
    assert_same(pretrained.load(tmp_path / "half").params, loaded.params)


class Counted:
    """A tensor of a file that counts what is read of it."""

    def __init__(self, tensor):
        self.tensor, self.read = tensor, 0

    def __getitem__(self, index):
        found = self.tensor[index]
        self.read += found.size
        return found


@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_sharded_over_devices(config, tmp_path, monkeypatch):
    """Each device reads and holds its part alone, and the network computes the same."""
    model = random_model(config)
    pretrained.save(tmp_path, model)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shardings = sharding.param_shardings(pretrained.boxed_params(config), mesh)
    parts, read = [], pretrained.tensors.read

    def counted(stored, tensors, *args):
        watched = {name: Counted(tensor) for name, tensor in stored.items()}
        parts.append(read(watched, tensors, *args))
        # A bias, by head in memory and flat in the file, is read whole.
        assert not tensors[0].num_inputs or sum(tensor.read for tensor in watched.values()) == parts[-1].size
        return parts[-1]

    monkeypatch.setattr(pretrained.tensors, "read", counted)
    loaded = pretrained.load(tmp_path, dtype="float32", shardings=shardings)
    assert_same(loaded.params, model.params)
    # Half of the key heads, each with its queries, its key and its value, and a quarter of their inputs.
    key_heads, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
    qkv = loaded.params["blocks_0"]["attention"]["qkv"]
    assert qkv.addressable_shards[0].data.shape == (4, key_heads // 2, group + 2, 4)
    assert loaded.params["blocks_0"]["mlp"]["gate_up"].addressable_shards[0].data.shape == (4, 2, 12)
    assert max(part.size for part in parts) < max(x.size for x in jax.tree.leaves(model.params))
    with sharding.activate(mesh, sharding.rules_for(mesh, config.vocab_size)):
        found = jax.jit(lambda model, x: model.logits(model.hidden(x, None, None, None)[0]))(loaded, TOKENS)
    expected = model.logits(model.hidden(TOKENS, None, None, None)[0])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_any_part_of_a_parameter(config):
    """Also one that ends within a tensor, or has nothing of another."""
    rng, model = np.random.default_rng(0), random_model(config)
    stored, params = file_tensors(model), flax.traverse_util.flatten_dict(model.params)
    for path, parts in pretrained.architecture_of(config).tensors(config).items():
        whole = np.asarray(params[path])
        for _ in range(8):
            index = tuple(slice(*sorted(rng.choice(size + 1, 2, replace=False))) for size in whole.shape)
            found = pretrained.tensors.read(stored, parts, whole.shape, index, whole.dtype)
            np.testing.assert_array_equal(found, whole[index])


def test_devices_that_do_not_share_out_the_key_heads_are_refused():
    """Four for the two key heads of our tiny Dream, whose four query heads they would divide."""
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    message = r"attention/qkv of shape \(16, 2, 4, 4\): dimension 1 is not divisible by mesh.tensor 4"
    with pytest.raises(ValueError, match=message):
        sharding.param_shardings(pretrained.boxed_params(DREAM), mesh)


def test_bad_folders(tmp_path):
    load = lambda: pretrained.load(tmp_path, dtype="float32")
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        load()
    pretrained.save(tmp_path, random_model(LLADA), file_bytes=20_000)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type 'llama' is none of llada, Dream"):
        load()
    (tmp_path / "config.json").write_text("no json")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load()
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = min(tmp_path.glob("*.safetensors"))
    content = first.read_bytes()
    first.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=f"{first.name} cannot be read"):
        load()
    first.unlink()
    with pytest.raises(ValueError, match=f"incomplete: there is no file {first.name}"):
        load()
    first.write_bytes(content)
    (tmp_path / pretrained.INDEX).write_text("{}")
    with pytest.raises(ValueError, match=r"index .* cannot be read"):
        load()


def test_tensors_that_do_not_fit(tmp_path):
    model = random_model(LLADA)
    pretrained.save(tmp_path, model)
    path, stored = tmp_path / pretrained.SINGLE, file_tensors(model)
    root = "model.transformer."
    save_file({name: x for name, x in stored.items() if name != root + "ln_f.weight"}, path)
    with pytest.raises(ValueError, match=r"model\.transformer\.ln_f\.weight is missing"):
        pretrained.load(tmp_path)
    save_file(stored | {"lm_head.weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ValueError, match=r"lm_head\.weight is unknown"):
        pretrained.load(tmp_path)
    save_file(stored | {root + "wte.weight": np.zeros((22, 16), np.float32)}, path)
    with pytest.raises(ValueError, match=r"wte\.weight \(22, 16\) for \(23, 16\) is of another shape"):
        pretrained.load(tmp_path)
    save_file({name: x for name, x in stored.items() if "blocks.1." not in name}, path)
    with pytest.raises(ValueError, match=r"blocks\.1.* and 6 more are missing$"):
        pretrained.load(tmp_path)


def test_names_of_parameters_and_of_shapes_agree():
    for config in (LLADA, DREAM):
        layout = pretrained.architecture_of(config).tensors(config)
        assert set(layout) == set(flax.traverse_util.flatten_dict(random_model(config).params))
