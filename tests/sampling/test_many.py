"""Continuous batching: the samples of one large batch, through a few slots, and how much of the work was needed."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from ssmd_jax.diffusion.window import ConstantWindow, CosineWindow, LinearWindow
from ssmd_jax.sampling import ancestral, many, speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.sampling.test_speculative import LENGTH, PER_ROW, PER_TRACK, network
from tests.strict import StrictModel
from tests.tabular import tabular_model

NUM = 9
CONFIG = SpeculativeConfig(LinearWindow(1, 5), 2)
SAMPLERS = {"speculative": speculative, "plain": ancestral}


def assert_equal(one, other):
    for name in (*PER_ROW, *PER_TRACK):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def asked(num_tokens, seed=0, num_samples=NUM):
    """Prompts of different shapes, one empty and one complete; rows of different lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, LENGTH + 1, num_samples)
    mask = (rng.random((num_samples, LENGTH)) < rng.random((num_samples, 1))) & (
        np.arange(LENGTH)[None] < lengths[:, None]
    )
    mask[1], mask[3, : lengths[3]] = False, True
    prompt = rng.integers(0, num_tokens, mask.shape)
    return {"length": LENGTH, "lengths": lengths, "prompt": prompt, "prompt_mask": mask}


def slots_by_hand(passes, slots):
    """Passes of the loop, by playing the queue: each slot takes the next sample as soon as it is free."""
    waiting, in_slot, loops = [n for n in passes if n > 0], [], 0
    while waiting or in_slot:
        while waiting and len(in_slot) < slots:
            in_slot.append(waiting.pop(0))
        in_slot = [n - 1 for n in in_slot if n > 1]
        loops += 1
    return loops


@pytest.mark.parametrize("slots", [1, 4, NUM, NUM + 5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_samples_are_the_rows_of_one_batch(sampler, slots):
    """Field by field, with prompts, lengths, a budget and an adaptive order; the work is that of the queue by hand."""
    model, key = tabular_model(LENGTH, num_tokens=5), jax.random.key(1)
    config = dataclasses.replace(CONFIG, budget_nfe=5.5, order="entropy")
    arguments = asked(model.num_tokens)
    one_batch = SAMPLERS[sampler].sample(model, key, config, batch_size=NUM, **arguments)
    result = many.sample_many(model, key, config, num_samples=NUM, slots=slots, sampler=sampler, **arguments)
    assert_equal(result, one_batch)
    loops = slots_by_hand(np.asarray(result.trunk_passes).tolist(), slots)
    assert result.rows_computed.tolist() == [loops * min(slots, NUM)]


@pytest.mark.parametrize("whole", [True, False], ids=["full rows", "prompts and lengths"])
def test_a_network_through_slots(whole):
    model, key = network(), jax.random.key(2)
    arguments = {"length": LENGTH} if whole else asked(model.num_tokens, seed=1)
    one_batch = speculative.sample(model, key, CONFIG, batch_size=NUM, **arguments)
    assert_equal(many.sample_many(model, key, CONFIG, num_samples=NUM, slots=2, **arguments), one_batch)


def test_less_is_wasted_than_in_batches():
    """Rows that need very different numbers of passes: a batch waits for its slowest, the slots do not."""
    model, key = tabular_model(LENGTH, num_tokens=5), jax.random.key(3)
    config = SpeculativeConfig(ConstantWindow(3), 1)
    arguments = asked(model.num_tokens, seed=2, num_samples=64)
    share = lambda result: float(result.trunk_passes.sum() / result.rows_computed.sum())
    queue = many.sample_many(model, key, config, num_samples=64, slots=8, **arguments)
    assert share(queue) > 0.9 > 0.6 > share(speculative.sample(model, key, config, batch_size=64, **arguments))


def test_protocol_is_used_as_ruled():
    """Without jit: a row that enters a slot comes with its own context, and none is used after the next pass."""
    strict = StrictModel(tabular_model(5, num_tokens=3))
    config = SpeculativeConfig(LinearWindow(1, 3), 2, order="confidence", budget_nfe=2.3)
    with jax.disable_jit():
        many.sample_many(
            strict, jax.random.key(2), config, num_samples=3, slots=2, length=5, lengths=np.array([5, 4, 3])
        )
    assert strict.calls["trunk"] > 2


def test_a_second_call_compiles_nothing(monkeypatch):
    """Other keys, prompts, lengths and settings of the same static sizes are arrays of the compiled loop."""
    model = tabular_model(LENGTH, num_tokens=4)
    names = ("one_pass", "slots", "mesh")
    loop = chex.assert_max_traces(many._sample_many.__wrapped__, n=1)
    monkeypatch.setattr(many, "_sample_many", jax.jit(loop, static_argnames=names))
    for seed, config in enumerate((CONFIG, dataclasses.replace(CONFIG, verify_rounds=5, draft_temperature=2.0))):
        many.sample_many(model, jax.random.key(seed), config, num_samples=NUM, slots=3, **asked(4, seed))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"slots": 0}, "slots must be a whole number of at least 1"),
        ({"slots": 2.0}, "slots must be a whole number"),
        ({"num_samples": 0}, "num_samples must be a whole number"),
        ({"sampler": "greedy"}, "sampler must be one of speculative, plain"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, "one key or num_samples = 3 of them"),
        ({"lengths": np.array([3])}, "lengths must be 3 integers"),
        ({"config": SpeculativeConfig(CosineWindow(0.2), 1, budget_nfe=0.5)}, "budget_nfe = 0.5 does not pay"),
    ],
)
def test_bad_arguments_are_named(change, words):
    arguments = {"key": jax.random.key(0), "config": CONFIG, "num_samples": 3, "slots": 2, "length": LENGTH} | change
    with pytest.raises(ValueError, match=words) as error:
        many.sample_many(network(), arguments.pop("key"), arguments.pop("config"), **arguments)
    assert "\n" not in str(error.value)
