"""The sharding table, the mesh, and that training is the same on any mesh."""

import json
import re
import types

import jax
import numpy as np
import pytest

from ssmd_jax.training import loop, programs, sharding
from ssmd_jax.training.config import MeshConfig
from tests.training import tiny


def test_colliding_and_unknown_axes_raise():
    rules = (*sharding.RULES[:-1], ("layers", "fsdp"))
    with pytest.raises(ValueError, match=r"'layers' and 'embed' .* both go to mesh axis 'fsdp'"):
        sharding.mesh_spec(("layers", "embed"), rules)
    with pytest.raises(ValueError, match="'width' is not in the sharding table"):
        sharding.mesh_spec(("width",))
    assert sharding.mesh_spec(("batch", None, "heads")) == jax.P(("data", "fsdp"), None, "tensor")


def test_mesh_sizes():
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 devices: tests/conftest.py sets 8 CPU devices")
    assert dict(sharding.make_mesh(MeshConfig(fsdp=2)).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert sharding.make_mesh(MeshConfig(data=1)).size == 1
    for config in (MeshConfig(fsdp=3), MeshConfig(data=4, fsdp=4)):
        with pytest.raises(ValueError, match="devices"):
            sharding.make_mesh(config)


def test_a_vocabulary_that_is_not_divisible_stays_whole():
    mesh = sharding.make_mesh(MeshConfig(data=1, tensor=2))
    assert dict(sharding.rules_for(mesh, 27))["vocab"] is None
    assert dict(sharding.rules_for(mesh, 28))["vocab"] == "tensor"


class FakeDevice(types.SimpleNamespace):
    """What a mesh looks at in a device."""

    __hash__ = object.__hash__

    def __init__(self, number, process, **fields):
        super().__init__(id=number, process_index=process, platform="cpu", device_kind="cpu", **fields)


def numbers(devices):
    return np.vectorize(lambda device: device.id, otypes=[int])(devices).tolist()


def test_only_blocks_of_an_axis_cross_the_slow_network():
    """Eight devices: four processes of two, or two slices of two such processes."""
    by_process = [FakeDevice(n, n // 2) for n in range(8)]
    # data by processes, fsdp inside them
    assert numbers(sharding.hybrid_devices(by_process, (4, 2, 1), (4, 1, 1))[..., 0]) == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    # two blocks of each axis: a process is a block of two along data
    assert numbers(sharding.hybrid_devices(by_process, (4, 2, 1), (2, 2, 1))[..., 0]) == [
        [0, 2],
        [1, 3],
        [4, 6],
        [5, 7],
    ]
    # slices come in their order, however the devices are listed
    slices = [FakeDevice(n, n // 2, slice_index=n // 4) for n in (4, 5, 6, 7, 0, 1, 2, 3)]
    assert numbers(sharding.hybrid_devices(slices, (4, 1, 2), (2, 1, 1))[:, 0]) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert numbers(sharding.hybrid_devices(slices, (1, 4, 2), (1, 2, 1))[0]) == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("sizes", "slow", "message"),
    [
        ((4, 2, 1), (2, 1, 1), r"mesh.dcn_data 2 x mesh.dcn_fsdp 1 must be .* these are 4 process\(es\)"),
        ((2, 4, 1), (4, 1, 1), "mesh.data 2 is not divisible by the 4 groups .* mesh.dcn_data"),
        ((8, 1, 1), (2, 2, 1), "mesh.fsdp 1 is not divisible by the 2 groups .* mesh.dcn_fsdp"),
    ],
)
def test_groups_of_the_slow_network_that_do_not_fit_are_refused(sizes, slow, message):
    with pytest.raises(ValueError, match=message):
        sharding.hybrid_devices([FakeDevice(n, n // 2) for n in range(8)], sizes, slow)


def test_unequal_slices_and_a_slow_network_in_one_process_are_refused():
    uneven = [FakeDevice(n, 0, slice_index=int(n > 2)) for n in range(8)]
    with pytest.raises(ValueError, match=r"groups of \[3, 5\] devices .* not equally large"):
        sharding.hybrid_devices(uneven, (8, 1, 1), (2, 1, 1))
    with pytest.raises(ValueError, match=r"these are 1 process\(es\)"):
        sharding.make_mesh(MeshConfig(dcn_data=2))
    with pytest.raises(ValueError, match=r"mesh.dcn_fsdp must be at least 1"):
        MeshConfig(dcn_fsdp=0)


def test_slices_are_found_out():
    devices = [FakeDevice(n, n // 2, slice_index=n // 4) for n in range(8)]
    mesh = sharding.make_mesh(MeshConfig(tensor=2), devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert numbers(mesh.devices[:, 0]) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8, dcn_fsdp=2), devices)
    assert numbers(mesh.devices[0, :, 0]) == list(range(8))
    with pytest.raises(ValueError, match=r"mesh.data 1 is not divisible by the 2 groups"):
        sharding.make_mesh(MeshConfig(data=1, fsdp=8), devices)
    with pytest.raises(ValueError, match="these are 2 slices"):
        sharding.make_mesh(MeshConfig(dcn_data=1), devices)


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [
        ((8, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 2, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 1, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8), [(0, 1)] * 4),
    ],
    ids=str,
)
def test_processes_read_the_rows_of_their_devices(sizes, shares):
    """Four processes of two devices; those that a tensor axis joins have the same rows."""
    devices = np.array([FakeDevice(n, n // 2) for n in range(8)]).reshape(sizes)
    mesh = jax.sharding.Mesh(devices, sharding.MESH_AXES)
    assert [sharding.data_share(mesh, process) for process in range(4)] == shares


def test_processes_that_share_a_part_of_their_rows_are_refused():
    devices = np.array([FakeDevice(n, n // 3) for n in range(6)]).reshape(3, 1, 2)
    with pytest.raises(ValueError, match="a part of their rows"):
        sharding.data_share(jax.sharding.Mesh(devices, sharding.MESH_AXES), 0)


def trained(directory, **fields):
    """Losses and gradients of 20 steps, and two validations."""
    fields = {"training__num_steps": 20, "training__eval_every": 10} | fields
    loop.train(tiny.config_dict(**fields), directory, tiny.data())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    names = {"train": ("loss", "draft_loss", "target_loss", "grad_norm"), "valid": ("draft_loss", "target_loss")}
    return {kind: np.array([[x[n] for n in names[kind]] for x in lines if x["kind"] == kind]) for kind in names}


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", ["small", "large"])
def test_twenty_steps_are_the_same_on_any_mesh(tmp_path, monkeypatch, vocabulary):
    """Data, fsdp, tensor and all of them; a large vocabulary is padded and its loss taken in chunks."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: tests/conftest.py sets 8 CPU devices")
    if vocabulary == "large":
        monkeypatch.setattr("ssmd_jax.training.cross_entropy.CHUNKED_FROM", 8)
        monkeypatch.setattr("ssmd_jax.model.config.PADDED_FROM", 8)
    alone = trained(tmp_path / "alone")
    assert alone["train"].shape == (20, 4) and alone["valid"].shape == (2, 2)
    for data, fsdp, tensor in ((8, 1, 1), (1, 8, 1), (1, 1, 2), (2, 2, 2)):
        directory = tmp_path / f"{data}-{fsdp}-{tensor}"
        on_mesh = trained(directory, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor)
        for kind, values in alone.items():
            np.testing.assert_allclose(on_mesh[kind], values, rtol=5e-4, err_msg=f"{directory.name} {kind}")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fsdp_needs_a_fifth_of_the_memory(optimizer):
    """What the compiled step holds of parameters, their average and the optimiser on each device."""
    held = {}
    for fsdp in (1, 8):
        config = tiny.config(mesh__fsdp=fsdp, model__width=64, model__mlp_width=128, optimizer__name=optimizer)
        mesh = sharding.make_mesh(config.mesh)
        made = programs.make_programs(config, mesh, 27)
        tokens = jax.ShapeDtypeStruct((8, config.length), np.int32)
        with sharding.activate(mesh, made.rules):
            compiled = made.train_step.lower(made.abstract, tokens, sharding.root_key(mesh, 0)).compile()
        of_tokens = tokens.size * 4 // fsdp
        held[fsdp] = compiled.memory_analysis().argument_size_in_bytes - of_tokens
    print(f"bytes a device: {held[1]:,} and {held[8]:,}, ratio {held[8] / held[1]:.3f}")
    assert held[8] <= held[1] / 5


@pytest.mark.parametrize(("data", "fsdp"), [(1, 4), (2, 2)])
def test_no_vectors_of_the_whole_batch_are_exchanged(data, fsdp):
    """The compiler once brought all tracks' vectors together, where the table of a gathered embedding is sharded."""
    batch, width = 16, 24
    config = tiny.config(
        mesh__data=data, mesh__fsdp=fsdp, model__embedding="gather", model__width=width, training__batch_size=batch
    )
    mesh = sharding.make_mesh(config.mesh)
    made = programs.make_programs(config, mesh, 27)
    tokens = jax.ShapeDtypeStruct((batch, config.length), np.int32)
    with sharding.activate(mesh, made.rules):
        text = made.train_step.lower(made.abstract, tokens, sharding.root_key(mesh, 0)).compile().as_text()
    exchanged = re.findall(r"= \S*?\[([\d,]*)\]\S* (?:all-reduce|all-gather|all-to-all|collective-permute)\(", text)
    assert exchanged  # the parameters
    largest = max(np.prod([int(size) for size in shape.split(",") if size]) for shape in exchanged)
    assert largest < batch // data * config.length * width
