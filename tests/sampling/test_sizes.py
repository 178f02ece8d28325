"""Static sizes of windows: a real branch that changes no sample."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion.window import CosineWindow
from ssmd_jax.sampling import ancestral, sizes, speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.sampling.test_speculative import network
from tests.tabular import TabularModel, tabular_model


class Noted(list):
    """A list that may be static in a model: equal to itself alone."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_sizes_of_a_window():
    assert sizes.static_sizes(33) == (17, 33)
    assert sizes.static_sizes(5) == (3, 5)
    assert sizes.static_sizes(4) == (4,) and sizes.static_sizes(1) == (1,)


def test_smallest_size_that_holds_it():
    chosen = jax.jit(lambda needed: sizes.at_size((2, 3, 5), needed, lambda size: jnp.int32(size)))
    assert [int(chosen(needed)) for needed in range(6)] == [2, 2, 2, 3, 5, 5]


@pytest.mark.slow
@pytest.mark.parametrize("module", [speculative, ancestral], ids=["speculative", "plain"])
@pytest.mark.parametrize(
    "model, change",
    [
        (tabular_model(24, num_tokens=5), {}),
        (tabular_model(24, num_tokens=5), {"budget_nfe": 7.0, "order": "entropy"}),
        (network(), {"budget_nfe": 6.0, "order": "confidence", "top_p": 0.9}),
    ],
    ids=["tabular", "tabular budget", "network budget"],
)
def test_samples_do_not_depend_on_the_sizes(module, model, change, monkeypatch):
    """Token for token, history included, with the choice and without; rows of several lengths."""
    config = dataclasses.replace(SpeculativeConfig(CosineWindow(0.25), 3), **change)
    lengths = np.array([24, 24, 13, 24, 6, 20])
    calls = []
    at_size = sizes.at_size

    def watched(each, needed, function, *operands):
        calls.append(each)
        return at_size(each, needed, function, *operands)

    for place in ("speculative", "passes"):
        monkeypatch.setattr(f"ssmd_jax.sampling.{place}.at_size", watched)
    draw = lambda: module.sample(model, jax.random.key(3), config, batch_size=6, length=24, lengths=lengths)
    module._sample.clear_cache()
    chosen = draw()
    assert any(len(each) > 1 for each in calls)
    calls.clear()
    monkeypatch.setattr(sizes, "DIVISORS", (1,))
    jax.tree.map(np.testing.assert_array_equal, chosen, draw())
    assert calls and all(len(each) == 1 for each in calls)


@flax.struct.dataclass
class Watched:
    """A model that notes the size of each draft that runs, not of each that is traced."""

    inner: TabularModel
    seen: Noted = flax.struct.field(pytree_node=False)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def draft_logits(self, context, start_B, size):
        jax.debug.callback(lambda: self.seen.append(size))
        return self.inner.draft_logits(context, start_B, size)


@pytest.mark.parametrize("devices", [1, 2])
def test_one_size_runs_in_each_pass(devices):
    """The choice is a branch, on one device and in a loop for each: no pass computes more than its own size."""
    model = Watched(tabular_model(24, num_tokens=5), Noted())
    config = SpeculativeConfig(CosineWindow(0.25), 3)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = None if devices == 1 else jax.make_mesh((2,), ("data",), axis_types=auto, devices=jax.devices()[:2])
    result = speculative.sample(model, jax.random.key(0), config, batch_size=2, length=24, mesh=mesh)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert len(model.seen) == int(result.rows_computed.sum()) * devices // 2
    assert set(model.seen) == set(sizes.static_sizes(int(config.window.table(24).max())))
