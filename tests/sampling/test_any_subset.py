"""ASSD follows the law of its oracle, one token a pass; what it costs; its rows and budgets."""

import collections

import jax
import numpy as np
import pytest

from ssmd_jax.diffusion.window import ConstantWindow
from ssmd_jax.sampling import ancestral, any_subset, keys
from ssmd_jax.sampling.any_subset import AnySubsetConfig
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.enumeration import Law
from tests.sampling.test_laws import chi_square
from tests.tabular import tabular_model
from tests.twin import speculative_row

LENGTH, NUM_SAMPLES = 4, 20_000


def token_law(joint):
    law = collections.defaultdict(float)
    for (tokens, *_), prob in joint.items():
        law[tokens] += prob
    return law


def token_counts(result):
    return collections.Counter(map(tuple, np.asarray(result.tokens).tolist()))


def draw(model, config, batch_size=NUM_SAMPLES, key=1, length=LENGTH, **rows):
    key = jax.random.key(key) if isinstance(key, int) else key
    return any_subset.sample(model, key, config, batch_size=batch_size, length=length, **rows)


@pytest.mark.parametrize(
    "config",
    [
        AnySubsetConfig(drafts=1),
        AnySubsetConfig(drafts=3),
        AnySubsetConfig(drafts=9, temperature=0.7, order="left_to_right"),
        AnySubsetConfig(drafts=2, top_p=0.8),
        AnySubsetConfig(drafts=1, order="confidence"),
    ],
    ids=str,
)
def test_law_is_that_of_the_oracle(config):
    """One token a pass from the draft, enumerated, whatever `k`; an adaptive order moves with the passes: `k` = 1."""
    model = tabular_model(LENGTH, num_tokens=3)
    one = SpeculativeConfig(
        ConstantWindow(1), 1, temperature=config.temperature, top_p=config.top_p, order=config.order
    )
    result = draw(model, config)
    assert chi_square(token_counts(result), token_law(Law(model, one, LENGTH, plain=True).joint()), NUM_SAMPLES) > 1e-3
    np.testing.assert_array_equal(result.accepted + result.rejected, LENGTH)
    # The nested states are as many as drafts, the first of them the drafting pass.
    states = np.asarray(result.trunk_passes + result.verify_rounds)
    np.testing.assert_allclose(result.nfe, model.trunk_cost * states)
    assert (states >= LENGTH).all() and (np.asarray(result.trunk_passes) <= LENGTH).all()
    if config.drafts == 1:
        assert not np.asarray(result.verify_rounds).any() and not np.asarray(result.rejected).any()
        plain = ancestral.sample(model, jax.random.key(1), one, batch_size=NUM_SAMPLES, length=LENGTH)
        np.testing.assert_array_equal(result.tokens, plain.tokens)
    elif config.order == "random":
        assert 0 < np.asarray(result.rejected).mean() < 2 and np.asarray(result.trunk_passes).mean() < LENGTH


def test_python_loop():
    """Token for token the twin of the speculative sampler whose target is the draft given all tokens before."""
    model, config, batch, length = tabular_model(6, num_tokens=3, seed=2), AnySubsetConfig(drafts=3), 8, 6
    rng = np.random.default_rng(0)
    prompt, mask = rng.integers(0, 3, (batch, length)), rng.random((batch, length)) < 0.2
    result = draw(model, config, batch, 3, length, prompt=prompt, prompt_mask=mask)
    for b in range(batch):
        order, calls = np.asarray(result.order[b]).tolist(), []

        def oracle(tokens, order, i, k):
            calls.append(k)  # noqa: B023
            return model.numpy_draft_logits(tokens, order, k, k)

        given = prompt[b, order[: mask[b].sum()]].tolist()
        row_key = jax.random.fold_in(jax.random.key(3), b)
        twin = speculative_row(
            model, row_key, config.speculative(), order, given, length, model.numpy_draft_logits, oracle
        )
        for field in ("tokens", "trunk_passes", "accepted", "rejected", "status", "revealed_in", "rejected_token"):
            np.testing.assert_array_equal(np.asarray(getattr(result, field))[b], twin[field], err_msg=field)
        # All states of a round are evaluated at once, those behind a rejection too: as many as it drafts.
        starts = [twin["revealed_in"].index(number) for number in range(1, twin["trunk_passes"] + 1)]
        drafted = sum(min(3, length - start) for start in starts)
        assert len(calls) <= drafted == int(result.trunk_passes[b] + result.verify_rounds[b])


def test_rows_and_budget():
    """Prompts, lengths, budgets; a row alone."""
    model = tabular_model(6, num_tokens=3, seed=2)
    lengths = np.array([6, 4, 6])
    prompt, mask = np.ones((3, 6), int), np.zeros((3, 6), bool)
    mask[0, [1, 5]], mask[2] = True, True
    for budget in (None, 2.9):
        config = AnySubsetConfig(drafts=3, budget_nfe=budget)
        together = draw(model, config, 3, 4, 6, prompt=prompt, prompt_mask=mask, lengths=lengths)
        assert (np.asarray(together.nfe) <= (budget or 99) + 1e-4).all() and together.nfe[2] == 0
        assert (np.asarray(together.tokens)[0] < 3).all() and (np.asarray(together.tokens)[0, [1, 5]] == 1).all()
        total = np.asarray(together.accepted + together.rejected + together.unverified)
        np.testing.assert_array_equal(total, [4, 4, 0])
        assert bool(np.asarray(together.unverified).any()) == (budget is not None)
        if budget is None:
            continue
        row = keys.row_keys(jax.random.key(4), 3)[:1]
        single = draw(model, config, 1, row, 6, prompt=prompt[:1], prompt_mask=mask[:1])
        for name in ("tokens", "order", "nfe", "status", "revealed_in", "rejected_token"):
            np.testing.assert_array_equal(np.asarray(getattr(together, name))[0], np.asarray(getattr(single, name))[0])


def test_bad_settings():
    for change, words in [
        ({"drafts": 0}, "drafts"),
        ({"temperature": -1.0}, "temperature"),
        ({"order": "up"}, "order"),
    ]:
        with pytest.raises(ValueError, match=words):
            AnySubsetConfig(**change)
    with pytest.raises(ValueError, match="budget_nfe"):
        draw(tabular_model(LENGTH), AnySubsetConfig(budget_nfe=0.5), 1)
