"""Verify rounds in smaller batches as rows finish: the same samples, and rows that are not mixed up."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion.window import FullWindow
from ssmd_jax.sampling import compaction, keys, many, speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.sampling.test_speculative import LENGTH, assert_rows_equal, network
from tests.strict import StrictModel
from tests.tabular import tabular_model

BATCH = 32
CONFIG = SpeculativeConfig(FullWindow(), LENGTH)
TABULAR = tabular_model(LENGTH, num_tokens=5, scale=3.0)
CASES = {
    "tabular": (TABULAR, dataclasses.replace(CONFIG, budget_nfe=2.6, verify_rounds=8)),
    "network": (
        network(),
        dataclasses.replace(
            CONFIG, budget_nfe=3.01, order="confidence", confidence_stop=0.45, tie_first=True, draft_temperature=8.0
        ),
    ),
}


def asked(num_tokens, batch=BATCH):
    """Prompts and lengths of all kinds."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(4, LENGTH + 1, batch)
    mask = (rng.random((batch, LENGTH)) < 0.2) & (np.arange(LENGTH)[None] < lengths[:, None])
    return {"lengths": lengths, "prompt": rng.integers(0, num_tokens, mask.shape), "prompt_mask": mask}


def watch(monkeypatch) -> list[int]:
    """The rows of each round that runs, not of each that is traced; and every loop is traced anew."""
    one_round, seen = speculative._one_round, []

    def watched(model, rules, drafted, state):
        jax.debug.callback(lambda num_rows: seen.append(int(num_rows)), state.offset_B.shape[0])
        return one_round(model, rules, drafted, state)

    monkeypatch.setattr(speculative, "_one_round", watched)
    speculative._sample.clear_cache()
    many._sample_many.clear_cache()
    return seen


def plainly(monkeypatch):
    """From here on one loop over all rows."""
    monkeypatch.setattr(compaction, "row_sizes", lambda num_rows: (num_rows,))
    speculative._sample.clear_cache()
    many._sample_many.clear_cache()


def rounds_of(seen: list[int]) -> dict[int, int]:
    jax.effects_barrier()
    return {size: seen.count(size) for size in sorted(set(seen), reverse=True)}


def test_sizes_of_a_batch():
    assert compaction.row_sizes(256) == (256, 128, 32)
    assert compaction.row_sizes(32) == (32, 16, 4)
    assert compaction.row_sizes(47) == (47, 23, 5)
    assert compaction.row_sizes(31) == (31,) and compaction.row_sizes(1) == (1,)


@pytest.mark.parametrize("batch", [BATCH, 45])
def test_steps_of_rows(batch):
    """Rows that count down from numbers of their own: none is lost, mixed up or stepped once too often."""
    sizes = []

    def step(given, state):
        sizes.append(len(state["left_B"]))
        active_B = state["left_B"] > 0
        name_B = jnp.where(active_B, given["name_B"], state["name_B"])
        return {"left_B": state["left_B"] - active_B, "steps_B": state["steps_B"] + active_B, "name_B": name_B}

    rng = np.random.default_rng(0)
    left_B, name_B = rng.permutation(batch) // 2, rng.permutation(batch)
    # NumPy leaves too: a model may know them while tracing.
    given = {"name_B": name_B, "keys_B": jax.random.split(jax.random.key(0), batch)}
    state = {"left_B": jnp.asarray(left_B), "steps_B": jnp.zeros(batch, int), "name_B": jnp.full(batch, -1)}
    loop = functools.partial(compaction.while_active, lambda given, state: state["left_B"] > 0, step, given)
    result = jax.jit(loop)(state)
    assert set(sizes) == set(compaction.row_sizes(batch))
    np.testing.assert_array_equal(result["steps_B"], left_B)
    np.testing.assert_array_equal(result["left_B"], np.zeros(batch))
    np.testing.assert_array_equal(result["name_B"], np.where(left_B > 0, name_B, -1))


def test_taken_rows_are_put_back():
    rows = {"x_BxC": jnp.arange(12).reshape(6, 2), "y_B": jnp.arange(6)}
    index_R = jnp.array([4, 0, 3])
    taken = compaction.take_rows(rows, index_R)
    assert taken["y_B"].tolist() == [4, 0, 3] and taken["x_BxC"][0].tolist() == [8, 9]
    back = compaction.put_rows(rows, index_R, jax.tree.map(lambda x: -x, taken))
    assert back["y_B"].tolist() == [0, 1, 2, -3, -4, 5] and back["x_BxC"][4].tolist() == [-8, -9]


def test_a_leaf_without_rows_is_refused():
    """A model whose context breaks the contract is told so, for small batches too."""
    with pytest.raises(AssertionError, match="shape"):
        compaction.while_active(lambda given, state: state > 0, lambda given, state: state, jnp.zeros(2), jnp.ones(3))


@pytest.mark.parametrize("case", ["tabular", pytest.param("network", marks=pytest.mark.slow)])
def test_samples_are_those_of_one_loop(case, monkeypatch):
    """Token for token, history and counts included; prompts and lengths of all kinds; all sizes run."""
    model, config = CASES[case]
    draw = lambda: speculative.sample(
        model, jax.random.key(3), config, batch_size=BATCH, length=LENGTH, **asked(model.num_tokens)
    )
    seen = watch(monkeypatch)
    compacted, ran = draw(), rounds_of(seen)
    assert tuple(ran) == (32, 16, 4)
    # The budget binds: some rows cannot pay the rounds that their windows want.
    assert np.asarray(compacted.unverified).sum() > 0
    seen.clear()
    plainly(monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, compacted, draw())
    # As many rounds one after the other, on fewer rows.
    assert rounds_of(seen) == {32: sum(ran.values())}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_row_alone_equals_row_of_a_large_batch(case):
    (model, config), key = CASES[case], jax.random.key(5)
    arguments = asked(model.num_tokens)
    together = speculative.sample(model, key, config, batch_size=BATCH, length=LENGTH, **arguments)
    assert len(set(np.asarray(together.verify_rounds).tolist())) > 3
    draw = functools.partial(speculative.sample, model, config=config, batch_size=1, length=LENGTH)
    for b in range(0, BATCH, 5):
        own = {name: value[b : b + 1] for name, value in arguments.items()}
        alone = draw(keys.row_keys(key, BATCH)[b : b + 1], **own)
        assert_rows_equal(together, b, alone)


@pytest.mark.slow
def test_slots_and_devices(monkeypatch):
    """The queue's slots and the loop of each device go through the sizes of their own rows."""
    model, key = TABULAR, jax.random.key(7)
    draw = functools.partial(speculative.sample, model, key, CONFIG, batch_size=2 * BATCH, length=LENGTH)
    queue = functools.partial(many.sample_many, model, key, CONFIG, num_samples=2 * BATCH, length=LENGTH)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=auto, devices=jax.devices()[:2])
    arguments = asked(model.num_tokens, 2 * BATCH)
    seen = watch(monkeypatch)
    shared, queued = draw(mesh=mesh, **arguments), queue(slots=BATCH, **arguments)
    assert tuple(rounds_of(seen)) == (32, 16, 4)
    plainly(monkeypatch)
    alone = draw(**arguments)
    for b in range(2 * BATCH):
        assert_rows_equal(alone, b, shared, b)
        assert_rows_equal(alone, b, queued, b)


def test_protocol_is_used_as_ruled(monkeypatch):
    """Without jit: every row of a smaller batch comes with its own context, tokens and positions."""
    seen = watch(monkeypatch)
    strict = StrictModel(TABULAR)
    config = dataclasses.replace(CONFIG, order="confidence")
    with jax.disable_jit():
        speculative.sample(
            strict, jax.random.key(2), config, batch_size=BATCH, length=LENGTH, **asked(strict.num_tokens)
        )
    ran = rounds_of(seen)
    assert tuple(ran) == (32, 16, 4) and strict.calls["target_logits"] == sum(ran.values())
