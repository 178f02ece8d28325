"""A loop for each device: the same samples, and nothing communicated."""

import contextlib
import dataclasses
import re

import jax
import numpy as np
import pytest

from ssmd_jax.diffusion.window import CosineWindow
from ssmd_jax.sampling import ancestral, many, speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.likelihood import log_likelihood
from ssmd_jax.training import sharding
from tests.sampling.test_speculative import LENGTH, PER_ROW, PER_TRACK, network
from tests.tabular import tabular_model

CONFIG = SpeculativeConfig(CosineWindow(0.3), 2)
COLLECTIVES = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"


def mesh_of(*shape):
    """Axes as training has them; the last one is the tensor axis."""
    names = ("data", "fsdp", "tensor")[-len(shape) :]
    return jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))


def assert_equal(one, other):
    for name in (*PER_ROW, *PER_TRACK):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(
    "module, change",
    [(speculative, {"budget_nfe": 4.0}), (ancestral, {"order": "confidence"})],
    ids=["speculative", "plain"],
)
def test_samples_do_not_depend_on_the_mesh(module, change):
    model, config = tabular_model(LENGTH, num_tokens=5), dataclasses.replace(CONFIG, **change)
    rng = np.random.default_rng(1)
    lengths = rng.integers(4, LENGTH + 1, 16)
    mask = (rng.random((16, LENGTH)) < 0.3) & (np.arange(LENGTH)[None] < lengths[:, None])
    arguments = {"length": LENGTH, "lengths": lengths, "prompt": rng.integers(0, 5, mask.shape), "prompt_mask": mask}
    draw = lambda mesh: module.sample(model, jax.random.key(2), config, batch_size=16, mesh=mesh, **arguments)
    alone, shared = draw(None), draw(mesh_of(2, 2, 2))
    assert_equal(alone, shared)
    assert shared.tokens.sharding.num_devices == 8
    # Each device's loop ends with its own slowest row.
    np.testing.assert_array_equal(shared.rows_computed, np.asarray(alone.trunk_passes).reshape(8, 2).max(axis=1) * 2)
    assert alone.rows_computed.tolist() == [int(alone.trunk_passes.max()) * 16]


@pytest.mark.slow
def test_a_network_over_devices():
    model = network()
    draw = lambda mesh: speculative.sample(model, jax.random.key(4), CONFIG, batch_size=8, length=LENGTH, mesh=mesh)
    assert_equal(draw(None), draw(mesh_of(2, 4)))


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside the trainer's mesh"])
def test_a_loaded_network_over_the_mesh_a_newcomer_makes(inside):
    """Weights committed to one device; axes that `jax.make_mesh` makes explicit, or the trainer's rules around."""
    model, key = jax.device_put(network(), jax.devices()[0]), jax.random.key(4)
    draw = lambda **kwargs: speculative.sample(model, key, CONFIG, batch_size=8, length=LENGTH, **kwargs)
    alone = draw()
    around = contextlib.nullcontext()
    mesh = jax.make_mesh((8,), ("x",))
    if not inside:
        key = jax.device_put(key, jax.devices()[0])
    else:
        mesh = mesh_of(2, 2, 2)
        around = sharding.activate(mesh, sharding.RULES)
    with around:
        assert_equal(alone, draw(mesh=mesh))


def test_queues_of_the_devices():
    """Many samples: each device works off its own share."""
    model, key, mesh = tabular_model(LENGTH, num_tokens=5), jax.random.key(5), mesh_of(8)
    result = many.sample_many(model, key, CONFIG, num_samples=40, slots=16, length=LENGTH, mesh=mesh)
    assert_equal(result, speculative.sample(model, key, CONFIG, batch_size=40, length=LENGTH))
    assert result.rows_computed.shape == (8,)


def test_likelihood_does_not_depend_on_the_mesh():
    model = tabular_model(LENGTH, num_tokens=5)
    rng = np.random.default_rng(3)
    lengths = rng.integers(4, LENGTH + 1, 16)
    tokens = rng.integers(0, 5, (16, LENGTH))
    order = np.stack([np.r_[rng.permutation(n), n:LENGTH] for n in lengths])
    score = lambda mesh: log_likelihood(model, tokens, order, CONFIG, lengths=lengths, mesh=mesh)
    for alone, shared in zip(score(None), score(mesh_of(2, 2, 2)), strict=True):
        np.testing.assert_allclose(shared, alone, rtol=1e-6)
        assert shared.sharding.num_devices == 8
    with pytest.raises(ValueError, match="the number of rows 16 is not divisible by the 3 devices"):
        score(jax.make_mesh((3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:3]))


def collectives(function, *arguments):
    return re.findall(COLLECTIVES, jax.jit(function).lower(*arguments).compile().as_text())


@pytest.mark.slow
def test_no_device_waits_for_another():
    """The whole program has no collective; one batch sharded over devices without the mesh argument has some."""
    model, key, mesh = tabular_model(LENGTH, num_tokens=5), jax.random.key(0), mesh_of(8)
    arguments = {"batch_size": 8, "length": LENGTH}
    single = lambda model, key: speculative.sample(model, key, CONFIG, mesh=mesh, **arguments)
    queue = lambda model, key: many.sample_many(model, key, CONFIG, num_samples=16, slots=8, length=LENGTH, mesh=mesh)
    assert not collectives(single, network(), key)
    assert not collectives(queue, model, key)
    keys = jax.device_put(jax.random.split(key, 8), jax.NamedSharding(mesh, jax.P("tensor")))
    assert collectives(lambda model, keys: ancestral.sample(model, keys, CONFIG, **arguments), model, keys)


def test_uneven_shares_are_named():
    model, key, mesh = tabular_model(LENGTH), jax.random.key(0), mesh_of(8)
    for module in (speculative, ancestral):
        with pytest.raises(ValueError, match=r"batch_size 12 is not divisible by the 8 devices of the mesh; choose"):
            module.sample(model, key, CONFIG, batch_size=12, length=LENGTH, mesh=mesh)
    draw = lambda num_samples, slots: many.sample_many(
        model, key, CONFIG, num_samples=num_samples, slots=slots, length=LENGTH, mesh=mesh
    )
    with pytest.raises(ValueError, match="num_samples 12 is not divisible by the 8 devices"):
        draw(12, 8)
    with pytest.raises(ValueError, match="slots 12 is not divisible by the 8 devices"):
        draw(16, 12)
