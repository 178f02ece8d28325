"""The jitted loop: against a plain Python loop, row by row, on prompts, lengths and bad input."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion.window import ConstantWindow, CosineWindow, FullWindow, LinearWindow
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.sampling import ancestral, budget, keys, speculative
from ssmd_jax.sampling.canvas import ACCEPTED
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.likelihood import log_likelihood
from tests.model.test_hybrid import random_params
from tests.strict import StrictModel
from tests.tabular import tabular_model
from tests.twin import speculative_row

LENGTH = 10
NETWORK = HybridConfig(num_tokens=7, width=32, num_heads=4, n_noncausal=2, n_causal=1, dtype="float32")
CONFIG = SpeculativeConfig(ConstantWindow(4), 2)
PER_ROW = ("tokens", "order", "nfe", "trunk_passes", "verify_rounds", "accepted", "rejected", "unverified")
PER_TRACK = ("status", "revealed_in", "rejected_token", "settled_in")


def network():
    return HybridModel(random_params(NETWORK), NETWORK)


def assert_rows_equal(result, b, other, a=0, length=LENGTH):
    for name in (*PER_ROW, *PER_TRACK):
        left, right = np.asarray(getattr(result, name))[b], np.asarray(getattr(other, name))[a]
        if left.ndim:
            left, right = left[:length], right[:length]
        np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        SpeculativeConfig(FullWindow(), 3, tie_first=True, draft_temperature=1.5),
        SpeculativeConfig(CosineWindow(0.2), 8, top_p=0.9, temperature=0.8),
        SpeculativeConfig(LinearWindow(1, 5), 1, temperature=0.0),
    ],
    ids=["constant", "tied", "nucleus", "greedy"],
)
def test_while_loop_equals_python_loop(config):
    """Token for token on a tabular model, history and counts included, prompts of different shapes in one batch."""
    model = tabular_model(6, num_tokens=4, seed=2)
    batch, length = 12, 6
    rng = np.random.default_rng(0)
    prompt, mask = rng.integers(0, 4, (batch, length)), rng.random((batch, length)) < 0.3
    mask[0], mask[1] = False, True
    result = speculative.sample(
        model, jax.random.key(3), config, batch_size=batch, length=length, prompt=prompt, prompt_mask=mask
    )
    for b in range(batch):
        order = np.asarray(result.order[b]).tolist()
        given = int(mask[b].sum())
        assert sorted(order[:given]) == np.flatnonzero(mask[b]).tolist()
        twin = speculative_row(
            model,
            jax.random.fold_in(jax.random.key(3), b),
            config,
            order,
            prompt[b, order[:given]].tolist(),
            length,
            model.numpy_draft_logits,
            model.numpy_target_logits,
        )
        for name, value in twin.items():
            np.testing.assert_allclose(np.asarray(getattr(result, name))[b], value, rtol=1e-6, err_msg=name)
    assert np.asarray(result.rejected).sum() > 0 or config.temperature == 0


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("module", [speculative, ancestral], ids=["speculative", "plain"])
def test_row_alone_equals_row_in_batch(module, order):
    """A row depends on its own key alone: not on its mates, their lengths, nor the static size of the window."""
    model, key = network(), jax.random.key(5)
    config = dataclasses.replace(CONFIG, order=order, budget_nfe=2.5)
    lengths = np.array([LENGTH, 7, 4, LENGTH])
    prompt, mask = np.full((4, LENGTH), 3), np.zeros((4, LENGTH), bool)
    mask[0, [1, 8]], mask[2, 3] = True, True
    arguments = {"length": LENGTH, "batch_size": 4, "prompt": prompt, "prompt_mask": mask}
    together = module.sample(model, key, config, lengths=lengths, **arguments)
    for b in (0, 2):
        alone = module.sample(
            model, keys.row_keys(key, 4)[b : b + 1], config, batch_size=1, length=LENGTH,
            prompt=prompt[b : b + 1], prompt_mask=mask[b : b + 1], lengths=lengths[b : b + 1],
        )  # fmt: skip
        assert_rows_equal(together, b, alone)
    tokens = np.asarray(together.tokens)
    np.testing.assert_array_equal(tokens[mask], prompt[mask])
    inside = np.arange(LENGTH)[None] < lengths[:, None]
    assert (tokens[inside] < model.num_tokens).all() and (tokens[~inside] == model.num_tokens).all()
    assert (np.asarray(together.status)[~inside] == 0).all()
    np.testing.assert_array_equal(
        together.accepted + together.rejected + together.unverified, lengths - mask.sum(axis=1)
    )


def test_padding_changes_nothing():
    """A row of 7 tokens on a canvas of 10 is the row on a canvas of 7, though windows and static sizes differ."""
    config = SpeculativeConfig(FullWindow(), 3)
    padded = speculative.sample(
        network(), jax.random.key(6), config, batch_size=3, length=LENGTH, lengths=np.array([7, 7, 10])
    )
    cut = speculative.sample(network(), jax.random.key(6), config, batch_size=2, length=7)
    for b in range(2):
        assert_rows_equal(padded, b, cut, b, length=7)


def test_everything_given_costs_nothing():
    prompt = np.ones((2, LENGTH), int)
    result = speculative.sample(
        network(), jax.random.key(0), CONFIG, batch_size=2, length=LENGTH, prompt=prompt, prompt_mask=prompt > 0
    )
    assert not np.asarray(result.nfe).any() and not np.asarray(result.status).any()
    np.testing.assert_array_equal(result.tokens, prompt)


def test_callable_order():
    """A hashable callable sees the scores and decides: here every second position first."""

    def dilated(key, confidence_BxD, entropy_BxD, positions_BxD, num_revealed_B):
        assert confidence_BxD.shape == entropy_BxD.shape == positions_BxD.shape == (1, LENGTH)
        return -(positions_BxD % 2)

    config = dataclasses.replace(CONFIG, order=dilated)
    result = speculative.sample(network(), jax.random.key(1), config, batch_size=2, length=LENGTH)
    np.testing.assert_array_equal(result.order, [[0, 2, 4, 6, 8, 1, 3, 5, 7, 9]] * 2)


def test_given_positions_come_first_in_random_order():
    mask = np.zeros((200, LENGTH), bool)
    mask[:, [2, 5, 9]] = True
    for order, expected in (("random", 6), ("left_to_right", 1)):
        config = dataclasses.replace(CONFIG, order=order)
        result = speculative.sample(
            tabular_model(LENGTH), jax.random.key(1), config, batch_size=200, length=LENGTH,
            prompt=np.zeros((200, LENGTH), int), prompt_mask=mask,
        )  # fmt: skip
        first = {tuple(row) for row in np.asarray(result.order)[:, :3].tolist()}
        assert len(first) == expected and {tuple(sorted(row)) for row in first} == {(2, 5, 9)}


def by_position(key, confidence_BxD, entropy_BxD, positions_BxD, num_revealed_B):
    """An order that would also re-order what is revealed, if it were let."""
    return positions_BxD


@pytest.mark.parametrize("order", ["random", "confidence", by_position])
@pytest.mark.parametrize("module", [speculative, ancestral], ids=["speculative", "plain"])
def test_protocol_is_used_as_ruled(module, order):
    """A strict model, run without jit, raises on any use that the contract rules out."""
    strict = StrictModel(tabular_model(5, num_tokens=3))
    config = SpeculativeConfig(LinearWindow(1, 3), 2, order=order, budget_nfe=2.3)
    mask = np.zeros((3, 5), bool)
    mask[1, 2] = True
    with jax.disable_jit():
        module.sample(
            strict, jax.random.key(2), config, batch_size=3, length=5,
            prompt=np.zeros((3, 5), int), prompt_mask=mask, lengths=np.array([5, 4, 3]),
        )  # fmt: skip
    assert strict.calls["trunk"] > 1 and strict.calls["draft_logits"] > 1
    assert (strict.calls["target_logits"] > 1) == (module is speculative)


def test_strict_model_raises_on_misuse():
    """The watchman is awake: each rule of the protocol, broken once."""
    strict = StrictModel(tabular_model(5, num_tokens=3))
    tokens, positions, start = jnp.zeros((1, 5), int), jnp.arange(5)[None], jnp.array([2])
    context = strict.trunk(tokens, positions, start, np.array([5]))
    strict.target_logits(context, tokens, positions, start, 2)
    with pytest.raises(AssertionError, match="start"):
        strict.target_logits(context, tokens, positions, start + 1, 2)
    with pytest.raises(AssertionError, match="revealed"):
        strict.target_logits(context, tokens + 1, positions, start, 2)
    with pytest.raises(AssertionError, match="positions"):
        strict.target_logits(context, tokens, positions[:, ::-1], start, 2)
    with pytest.raises(AssertionError, match="prefix"):
        strict.reorder(context, jnp.array([[1, 0, 2, 3, 4]]))
    with pytest.raises(AssertionError, match="mask"):
        strict.trunk(jnp.full((1, 5), 3), positions, start, np.array([5]))
    newer = strict.trunk(tokens, positions, start + 1, np.array([5]))
    with pytest.raises(AssertionError, match="stale"):
        strict.draft_logits(context, start, 2)
    strict.draft_logits(newer, start, 2)


@pytest.mark.slow
def test_sweeps_compile_once(monkeypatch):
    """Rounds, budgets, temperatures and windows of one static size are arrays of the compiled loop: one trace."""
    model = tabular_model(8, num_tokens=3)
    loop = chex.assert_max_traces(speculative._sample.__wrapped__, n=1)
    monkeypatch.setattr(speculative, "_sample", jax.jit(loop, static_argnames=("mesh",)))
    draw = lambda *settings, **more: speculative.sample(
        model, jax.random.key(0), SpeculativeConfig(*settings, **more), batch_size=2, length=8
    )
    draw(ConstantWindow(3), 1, 9.0, top_p=0.5)
    draw(LinearWindow(3, 3), 4, 10.0, temperature=0.7, top_p=0.6)
    draw(ConstantWindow(3), 7, 12.0, draft_temperature=2.0, top_p=0.9)
    with pytest.raises(AssertionError, match="traced"):
        draw(ConstantWindow(4), 1, 9.0, top_p=0.5)


@pytest.mark.slow
def test_budgeted_row_is_independent_of_its_mates_lengths():
    """The cap of merged windows is a row's own: a shorter mate may need larger ones (here 5 at 11 tokens, 4 at 12)."""
    model = tabular_model(12, num_tokens=3)
    config = SpeculativeConfig(CosineWindow(0.2), 1, budget_nfe=3.0)
    draw = lambda lengths: speculative.sample(
        model, jax.random.key(0), config, batch_size=32, length=12, lengths=np.array(lengths)
    )
    together, mixed = draw([12] * 32), draw([12] * 31 + [11])
    for b in range(31):
        assert_rows_equal(together, b, mixed, b, length=12)


def test_budgets_are_counted_exactly():
    """At thousands of passes, twelfths in float32 would miss whole passes."""
    purse, most = budget.purse(3000.0, 11 / 12, 1 / 12)
    assert most == 3000
    spent = np.arange(3000)
    np.testing.assert_array_equal(purse.passes_payable(spent, spent), 3000 - spent)
    assert np.asarray(purse.round_payable(np.array([2999]), np.array([2999 + 11, 2999 + 12]))).tolist() == [True, False]
    assert budget.purse(2.99995, 0.75, 0.25)[1] == 3 and budget.purse(2.999, 0.75, 0.25)[1] == 2


@pytest.mark.parametrize(
    "budget_nfe, costs",
    [(100.0, (9999 / 10_000, 1 / 9998)), (50.0, (1.0, 1e-7)), (7.0, (0.123456789, np.pi)), (1e12, (0.75, 0.25))],
)
def test_very_unlike_costs_overflow_no_budget(budget_nfe, costs):
    """A hard bound, and next to all of it is spent; a common unit of the first two would have been 1e-8 NFE."""
    purse, most = budget.purse(budget_nfe, *costs)
    assert int(purse.budget) + purse.verify_cost < 2**31
    spent = (most - 1) * sum(costs)
    assert spent + sum(costs) <= budget_nfe + 3 * budget.TOLERANCE
    if budget_nfe < 1e12:
        assert spent + 2 * sum(costs) > budget_nfe - 1e-3
    counts = np.array([0, most - 1, most], np.int32)
    assert np.asarray(purse.passes_payable(counts, counts)).tolist() == [most, 1, 0]
    assert np.asarray(purse.round_payable(counts[1:2], counts[1:2])).all()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"length": 0}, "length must be a whole number of at least 1"),
        ({"lengths": np.array([1, 11])}, "lengths must lie between 1 and length = 10"),
        ({"lengths": np.array([0, 3])}, "lengths must lie between"),
        ({"lengths": np.array([3])}, "lengths must be 2 integers"),
        ({"prompt_mask": np.zeros((2, 10), bool)}, "prompt_mask is given without a prompt"),
        ({"prompt": np.zeros((2, 10), int)}, "prompt needs prompt_mask"),
        ({"prompt": np.zeros((2, 12), int), "prompt_mask": np.ones((2, 12), bool)}, "more than length = 10"),
        ({"prompt": np.zeros((3, 10), int), "prompt_mask": np.ones((3, 10), bool)}, "prompt must be integers of shape"),
        ({"prompt": np.full((2, 10), 7), "prompt_mask": np.ones((2, 10), bool)}, "prompt token 7 at row 0, position 0"),
        ({"prompt": np.zeros((2, 10), int), "prompt_mask": np.ones((2, 10))}, "prompt_mask must be booleans"),
        (
            {"prompt": np.zeros((2, 10), int), "prompt_mask": np.ones((2, 10), bool), "lengths": np.array([10, 9])},
            "past its row's length",
        ),
        ({"key": 3}, "typed key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "one key or batch_size = 2"),
        ({"config": dataclasses.replace(CONFIG, budget_nfe=0.5)}, "budget_nfe = 0.5 does not pay"),
    ],
)
@pytest.mark.parametrize("module", [speculative, ancestral], ids=["speculative", "plain"])
def test_bad_arguments_are_named(module, change, words):
    arguments = {"key": jax.random.key(0), "config": CONFIG, "batch_size": 2, "length": LENGTH} | change
    with pytest.raises(ValueError, match=words) as error:
        module.sample(network(), arguments.pop("key"), arguments.pop("config"), **arguments)
    assert "\n" not in str(error.value)


class Misfit:
    """A window whose table is wrong in a way chosen by the test."""

    def __init__(self, table):
        self._table = table

    def table(self, length):
        return self._table(length)


@pytest.mark.parametrize(
    "field, value",
    [
        ("verify_rounds", 0),
        ("verify_rounds", 1.5),
        ("budget_nfe", 0),
        ("budget_nfe", -1.0),
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("draft_temperature", 0.0),
        ("order", "sideways"),
        ("window", 3),
        ("window", Misfit(lambda length: np.zeros(length, int))),
        ("window", Misfit(lambda length: np.ones(length))),
        ("window", Misfit(lambda length: np.full(length, 2))),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})


def test_likelihood_arguments_are_named():
    model = tabular_model(3)
    tokens, order = np.zeros((1, 3), int), np.arange(3)[None]
    for change, words in [
        ({"config": dataclasses.replace(CONFIG, budget_nfe=3.0)}, "budget"),
        ({"order": np.array([[0, 0, 1]])}, "permutation"),
        ({"tokens": np.full((1, 3), 2)}, "vocabulary"),
        ({"num_given": np.array([4])}, "num_given"),
        ({"lengths": np.array([2]), "order": np.array([[2, 0, 1]])}, "padding positions last"),
    ]:
        arguments = {"tokens": tokens, "order": order, "config": CONFIG} | change
        with pytest.raises(ValueError, match=words):
            log_likelihood(model, arguments.pop("tokens"), arguments.pop("order"), arguments.pop("config"), **arguments)


@pytest.mark.parametrize("order", ["confidence", "entropy"])
def test_adaptive_orders_of_empty_rows_do_not_depend_on_the_batch(order):
    """All tracks of an empty row look alike: rounding errors must not choose among them."""
    model, config = network(), SpeculativeConfig(ConstantWindow(3), 2, order=order)
    keys_B = keys.row_keys(jax.random.key(5), 32)
    together = speculative.sample(model, keys_B, config, batch_size=32, length=LENGTH)
    for b in (0, 10, 21, 31):
        alone = speculative.sample(model, keys_B[b : b + 1], config, batch_size=1, length=LENGTH)
        assert_rows_equal(together, b, alone)


def test_shared_noise_is_the_target_one_track_after_another():
    """Token for token: `argmax(log q + g)` down the window with the noise of the drafts, whatever these were."""
    model, length = tabular_model(6, num_tokens=5, seed=4), 6
    config = SpeculativeConfig(ConstantWindow(4), length, order="left_to_right", shared_noise=True)
    result = speculative.sample(model, jax.random.key(3), config, batch_size=64, length=length)
    row_keys_B = keys.row_keys(jax.random.key(3), 64)
    accepted, positions = 0, tuple(range(length))
    for row in range(64):
        tokens, passes = (), 0
        while len(tokens) < length:
            passes, start = passes + 1, len(tokens)
            draft_key = jax.random.fold_in(jax.random.fold_in(row_keys_B[row], keys.DRAFT), passes)
            for k in range(start, min(start + 4, length)):
                noise = np.asarray(jax.random.gumbel(jax.random.fold_in(draft_key, k), (5,), mode="high"), np.float64)
                accepted += int(result.status[row, k] == ACCEPTED)
                draft = np.argmax(model.numpy_draft_logits(tokens[:start], positions, start, k) + noise)
                tokens = (*tokens, int(np.argmax(model.numpy_target_logits(tokens, positions, start, k) + noise)))
                assert (result.status[row, k] == ACCEPTED) == (tokens[k] == draft)
                rejected = model.num_tokens if tokens[k] == draft else draft
                assert result.rejected_token[row, k] == rejected
        assert tuple(np.asarray(result.tokens[row]).tolist()) == tokens and result.trunk_passes[row] == passes
    assert 0 < accepted < 64 * length


def test_shared_noise_needs_fewer_rounds():
    """Several rejections of a window are mended in one round."""
    model = tabular_model(12, num_tokens=4, seed=1)
    results = [
        speculative.sample(
            model,
            jax.random.key(0),
            SpeculativeConfig(FullWindow(), 12, shared_noise=shared),
            batch_size=500,
            length=12,
        )
        for shared in (False, True)
    ]
    first, second = (np.asarray(result.verify_rounds, np.float64).mean() for result in results)
    assert second < 0.8 * first
