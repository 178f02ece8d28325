"""Checkpoints: what is kept, what is noticed, and restoring onto other meshes."""

import json
import random

import jax
import numpy as np
import pytest

from ssmd_jax.training import checkpoint, state
from ssmd_jax.training.checkpoint import Checkpoints
from ssmd_jax.training.digest import digests


def checkpoints_of_two_steps(directory):
    """Checkpoints 1 and 2 of a small state; the state, as shapes, too."""
    tree = lambda x: {"kernel": jax.numpy.full((4, 3), x), "scale": jax.numpy.ones(3)}
    for number in (1, 2):
        with Checkpoints(directory, keep_last=2) as checkpoints:
            small = state.TrainState(jax.numpy.int32(number), tree(float(number)), None, tree(0.0))
            checkpoints.save(small, {"at": number})
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return jax.tree.map(shape, state.TrainState(jax.numpy.int32(0), tree(0.0), None, tree(0.0)))


def restore(directory, abstract, warn=None):
    with Checkpoints(directory, keep_last=2) as checkpoints:
        return checkpoints.restore(abstract, warn or pytest.fail)


@pytest.mark.parametrize(
    "error", [MemoryError("no memory"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of it")]
)
def test_a_machine_at_its_limits_is_no_damage(tmp_path, monkeypatch, error):
    abstract = checkpoints_of_two_steps(tmp_path)

    def fail(*_):
        raise error

    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr(checkpoint.ocp.training.Checkpointer, "load_checkpointables", fail)
        restore(tmp_path, abstract)
    assert not (tmp_path / checkpoint.DAMAGED).exists()
    assert int(restore(tmp_path, abstract).state.step) == 2


@pytest.mark.parametrize("size", [2, 8])
def test_other_shapes_are_no_damage(tmp_path, size):
    abstract = checkpoints_of_two_steps(tmp_path)
    kernel = abstract.params["kernel"].update(shape=(size, 3))
    changed = abstract.replace(params=abstract.params | {"kernel": kernel})
    with pytest.raises(ValueError, match=rf"2 does not fit .* params/kernel is \(4, 3\) there and \({size}, 3\) here"):
        restore(tmp_path, changed)
    assert not (tmp_path / checkpoint.DAMAGED).exists()


def test_processes_agree_on_the_checkpoint(tmp_path, monkeypatch):
    """What another process cannot read is not read here either."""
    abstract = checkpoints_of_two_steps(tmp_path)
    told = []
    with monkeypatch.context() as patched:
        answers = iter([checkpoint._UNREADABLE, checkpoint._READ])
        patched.setattr(checkpoint, "_worst_of_all_processes", lambda own: max(own, next(answers)))
        assert int(restore(tmp_path, abstract, told.append).state.step) == 1
    assert len(told) == 1 and "another process" in told[0]
    with monkeypatch.context() as patched, pytest.raises(OSError, match="another process"):
        patched.setattr(checkpoint, "_worst_of_all_processes", lambda own: checkpoint._FAILED)
        restore(tmp_path, abstract)


def test_worst_of_all_processes(monkeypatch):
    assert checkpoint._worst_of_all_processes(1) == 1
    monkeypatch.setattr(checkpoint.jax, "process_count", lambda: 3)
    gather = lambda own: np.stack([own, np.int32(2), np.int32(0)])
    monkeypatch.setattr(checkpoint.multihost_utils, "process_allgather", gather)
    assert checkpoint._worst_of_all_processes(1) == 2


def save_all(directory, bits, **kept):
    """A checkpoint for each number of bits, at steps 1, 2, ...; None for one that was not validated."""
    with Checkpoints(directory, **kept) as checkpoints:
        for number, value in enumerate(bits, 1):
            small = state.TrainState(
                jax.numpy.int32(number), {"x": jax.numpy.float32(number)}, None, {"y": jax.numpy.ones(2)}
            )
            checkpoints.save(small, {"at": number}, None if value is None else {"draft_bits": value, "other": 0.0})
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.steps


def test_the_best_and_the_latest_stay(tmp_path):
    bits = [3.0, 1.0, None, 2.0, 1.5, 4.0, None]
    assert save_all(tmp_path / "a", bits, keep_last=1) == [7]
    assert save_all(tmp_path / "b", bits, keep_last=1, keep_best=2) == [2, 5, 7]
    # Another process knows the metrics of those that are there.
    with Checkpoints(tmp_path / "b", keep_last=1, keep_best=1) as checkpoints:
        small = state.TrainState(jax.numpy.int32(8), {"x": jax.numpy.float32(0)}, None, {"y": jax.numpy.ones(2)})
        checkpoints.save(small, metrics={"draft_bits": 9.0})
    with Checkpoints(tmp_path / "b", read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 8]


@pytest.mark.parametrize("text", ['{"draft_bi', '{"draft_bitz": 0.5}', '{"draft_bits": 9.0}', "\xff"])
def test_damaged_metrics_are_mended(tmp_path, text):
    """Orbax would refuse to open any checkpoint, or keep the wrong one."""
    save_all(tmp_path, [1.0, 0.5], keep_last=2, keep_best=1)
    path = tmp_path / "checkpoints" / "2" / "metrics" / "metrics"
    path.write_text(text, encoding="latin-1")
    with Checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        assert checkpoints.steps == [1, 2]
    assert json.loads(path.read_text()) == {"draft_bits": 0.5}


def test_later_checkpoints_are_dropped_and_the_record_comes_back(tmp_path):
    save_all(tmp_path, [None] * 4, keep_last=4)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype, sharding=where)
    like = state.TrainState(np.int32(0), {"x": np.float32(0)}, None, {"y": np.ones(2, np.float32)})
    with Checkpoints(tmp_path, keep_last=4) as checkpoints:
        checkpoints.drop_after(2)
        restored = checkpoints.restore(jax.tree.map(shape, like), pytest.fail)
        assert checkpoints.steps == [1, 2] and restored.record == {"at": 2} and restored.state.params["x"] == 2
    assert not (tmp_path / checkpoint._DROPPED).exists()


def test_a_digest_sees_each_bit_and_each_place():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(3, 4)).astype(np.float32)
    of = lambda x: digests({"x": jax.numpy.asarray(x)})["x"]
    bits = plain.view(np.uint32)
    flipped = [
        of((bits ^ np.uint32(1 << bit) * (np.arange(12).reshape(3, 4) == 5)).view(np.float32)) for bit in range(32)
    ]
    exchanged = [of(plain[::-1]), of(plain[:, ::-1])]
    assert len({of(plain), *flipped, *exchanged}) == 35
    assert of(np.float32(0.0)) != of(np.float32(-0.0)) and of(np.zeros(3)) != of(np.zeros(4))
    for dtype in (np.int8, np.bool_, jax.numpy.bfloat16, np.int32):
        assert of(plain.astype(dtype)) == of(plain.astype(dtype)) != of(np.zeros((3, 4), dtype))


def sharded_state(mesh, number):
    """A state on a mesh, and its abstract twin."""
    rows, everywhere = jax.NamedSharding(mesh, jax.P("d")), jax.NamedSharding(mesh, jax.P())
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(16, 3)).astype(np.float32)
    tree = {"kernel": jax.device_put(kernel, rows), "scale": jax.device_put(np.ones(3, np.float32), everywhere)}
    full = state.TrainState(jax.device_put(np.int32(number), everywhere), tree, tree, {"mu": tree})
    return full, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), full)


def test_a_checkpoint_comes_back_on_any_mesh(tmp_path):
    """8 devices, 2, 1, and back to 8: each saves what the one before has saved."""
    first = None
    for number, size in enumerate((8, 2, 1, 8), 1):
        mesh = jax.make_mesh((size,), ("d",), devices=jax.devices()[:size])
        fresh, abstract = sharded_state(mesh, number)
        with Checkpoints(tmp_path, keep_last=2) as checkpoints:
            if first is None:
                first, current = jax.device_get(fresh.params), fresh
            else:
                current = checkpoints.restore(abstract, pytest.fail).state
                assert current.params["kernel"].sharding == fresh.params["kernel"].sharding
                assert len(current.params["kernel"].sharding.device_set) == size
                jax.tree.map(np.testing.assert_array_equal, jax.device_get(current.params), first)
            checkpoints.save(current.replace(step=fresh.step))


def test_one_byte_anywhere_is_noticed_or_without_effect(tmp_path):
    """TensorStore itself gives other numbers back for most bytes of the arrays."""
    abstract = checkpoints_of_two_steps(tmp_path)
    rng = random.Random(0)
    newest = tmp_path / "checkpoints" / "2"
    arrays = max(newest.glob("params/**/d/*"), key=lambda path: path.stat().st_size)
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    noticed = set()
    for path in [*files, *[arrays] * 5]:
        plain = path.read_bytes()
        changed = bytearray(plain)
        changed[rng.randrange(len(plain))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        told = []
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            parts = {"params": abstract.params, "opt_state": abstract.opt_state}
            step, loaded, record, _ = checkpoints._restore_newest(parts, told.append)
        assert step == 2 - len(told), path
        assert (loaded["params"]["kernel"] == step).all() and record == {"at": step}
        noticed |= {path} if told else set()
        path.write_bytes(plain)
    assert arrays in noticed and newest / checkpoint.METADATA in noticed


def test_arrays_with_another_digest_are_damage(tmp_path):
    """Where every file can be read and the arrays alone are others: here the digest is, in metadata that are sound."""
    abstract = checkpoints_of_two_steps(tmp_path)
    path = tmp_path / "checkpoints" / "2" / checkpoint.METADATA
    metadata = json.loads(path.read_text())
    content = metadata["custom_metadata"]
    name = min(content["digests"]["params"])
    content["digests"]["params"][name] = content["digests"]["opt_state"][min(content["digests"]["opt_state"])]
    del content["check"]
    content["check"] = checkpoint._check(content)
    path.write_text(json.dumps(metadata))
    told = []
    assert restore(tmp_path, abstract, told.append).record == {"at": 1}
    assert f"params/{name} is not what was saved: 1 digest(s) differ" in told[0]


def test_a_changed_record_is_damage_and_a_missing_one_is_of_an_earlier_version(tmp_path):
    abstract = checkpoints_of_two_steps(tmp_path)
    path = tmp_path / "checkpoints" / "2" / checkpoint.METADATA
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"]["record"]["at"] = 7
    path.write_text(json.dumps(metadata))
    told = []
    assert restore(tmp_path, abstract, told.append).record == {"at": 1} and "not what was saved" in told[0]
    path = tmp_path / "checkpoints" / "1" / checkpoint.METADATA
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))
    assert restore(tmp_path, abstract).record == {}


def test_what_cannot_be_saved_is_one_sentence_that_names_the_last_good_one(tmp_path, monkeypatch):
    abstract = checkpoints_of_two_steps(tmp_path)
    with pytest.raises(checkpoint.SaveError) as error, Checkpoints(tmp_path, keep_last=2) as checkpoints:
        restored = checkpoints.restore(abstract, pytest.fail).state

        def fail(*args, **kwargs):
            raise ValueError(f"RESOURCE_EXHAUSTED: {'long ' * 100} No space left on device")

        monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "save_checkpointables_async", fail)
        checkpoints.save(restored.replace(step=jax.numpy.int32(3)))
    message = str(error.value)
    assert "checkpoint 3 could not be saved" in message and "(No space left on device)" in message
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '2'}" in message
