"""Bounds against sums over lists, on a tabular model."""

import itertools
import math

import jax
import numpy as np
import pytest

from ssmd_jax.data.tokenizers import make_tokenizer
from ssmd_jax.diffusion.window import ConstantWindow, FullWindow
from ssmd_jax.evaluation import likelihood
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.tabular import tabular_model

LENGTH, VOCABULARY = 4, 3
MODEL = tabular_model(LENGTH, VOCABULARY)
TOKENS = np.array([[0, 1, 2, 1], [2, 2, 0, 0], [1, 0, 1, 2]], np.int32)
KEY = jax.random.key(5)
# Of most calls, so that they share compiled programs.
BATCH = 12
ORDERS = list(itertools.permutations(range(LENGTH)))


def log_softmax(logits):
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def nll(logits_of, sequence, order, i, tie_first=False):
    """`-log` of the true tokens at tracks `k >= i`."""
    tokens = [sequence[position] for position in order]
    values = []
    for k in range(i, LENGTH):
        of = MODEL.numpy_draft_logits if tie_first and k == i else logits_of
        values.append(-log_softmax(of(tokens, order, i, k))[tokens[k]])
    return values


@pytest.mark.parametrize("tie_first", [False, True])
def test_target_bound_against_enumeration(tie_first):
    exact = [
        np.mean([sum(nll(MODEL.numpy_target_logits, row, order, 0, tie_first)) for order in ORDERS]) for row in TOKENS
    ]
    got = likelihood.target_nats(MODEL, TOKENS, KEY, num_orders=4000, batch_size=4000, tie_first=tie_first)
    np.testing.assert_allclose(got, exact, atol=0.06)
    # and to rounding, on the very orders that were drawn
    drawn = likelihood._orders(KEY, len(TOKENS), 3, LENGTH).reshape(len(TOKENS), 3, LENGTH)
    twin = [
        np.mean([sum(nll(MODEL.numpy_target_logits, row, order, 0, tie_first)) for order in orders])
        for row, orders in zip(TOKENS, drawn.tolist(), strict=True)
    ]
    got = likelihood.target_nats(MODEL, TOKENS, KEY, num_orders=3, batch_size=BATCH, tie_first=tie_first)
    np.testing.assert_allclose(got, twin, rtol=1e-5)


def exact_draft(row):
    terms = [
        LENGTH / (LENGTH - i) * sum(nll(MODEL.numpy_draft_logits, row, order, i))
        for order in ORDERS
        for i in range(LENGTH)
    ]
    return np.mean(terms)


def test_draft_bound_against_enumeration():
    got = likelihood.draft_nats(MODEL, TOKENS, KEY, draws=6000, batch_size=6000)
    np.testing.assert_allclose(got, [exact_draft(row) for row in TOKENS], atol=0.06)


@pytest.mark.parametrize("chunk", [3])
def test_chunks_do_not_show(chunk, monkeypatch):
    whole = likelihood.draft_nats(MODEL, TOKENS, KEY, draws=4, batch_size=BATCH)
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    likelihood._draft_rows.clear_cache()
    np.testing.assert_allclose(likelihood.draft_nats(MODEL, TOKENS, KEY, draws=4, batch_size=BATCH), whole, rtol=1e-5)
    likelihood._draft_rows.clear_cache()


def test_batches_do_not_show():
    config = SpeculativeConfig(ConstantWindow(2), 2)
    for score in (
        lambda batch: likelihood.draft_nats(MODEL, TOKENS, KEY, draws=4, batch_size=batch),
        lambda batch: likelihood.target_nats(MODEL, TOKENS, KEY, num_orders=4, batch_size=batch),
        lambda batch: likelihood.sampler_nats(MODEL, TOKENS, KEY, config, num_orders=4, batch_size=batch),
    ):
        np.testing.assert_allclose(score(5), score(BATCH), rtol=1e-5)


def test_large_vocabularies_are_scored_in_fewer_rows(monkeypatch):
    """No array of float32 logits passes the bound, and the figures stay what they were."""
    config = SpeculativeConfig(ConstantWindow(2), 2)
    scores = {
        "_draft_rows": lambda: likelihood.draft_nats(MODEL, TOKENS, KEY, draws=4, batch_size=BATCH),
        "_target_rows": lambda: likelihood.target_nats(MODEL, TOKENS, KEY, num_orders=4, batch_size=BATCH),
        "log_likelihood": lambda: likelihood.sampler_nats(MODEL, TOKENS, KEY, config, num_orders=4, batch_size=BATCH),
    }
    whole = {name: score() for name, score in scores.items()}
    row = 4 * LENGTH * VOCABULARY
    monkeypatch.setattr(likelihood, "LOGITS_BYTES", 3 * row - 1)
    for name, score in scores.items():
        owner = likelihood.likelihood if name == "log_likelihood" else likelihood
        scored, batches = getattr(owner, name), []

        def recorded(model, tokens, *args, scored=scored, batches=batches, **kwargs):
            batches.append(len(tokens))
            return scored(model, tokens, *args, **kwargs)

        monkeypatch.setattr(owner, name, recorded)
        np.testing.assert_allclose(score(), whole[name], rtol=1e-5)
        # a window of two tracks has logits of half a row
        assert set(batches) == {5 if name == "log_likelihood" else 2}
    monkeypatch.setattr(likelihood, "LOGITS_BYTES", row // 2)
    assert likelihood.rows_at_a_time(BATCH, LENGTH, VOCABULARY) == 1


def test_sampler_that_verifies_everything_has_the_targets_bound():
    """Window = D and N >= D: exactly `prod_k q_{0,k}`, whatever the draft (METHOD.md section 6, invariant 3)."""
    sizes = {"num_orders": 4, "batch_size": BATCH}
    for tie_first in (False, True):
        config = SpeculativeConfig(FullWindow(), LENGTH, tie_first=tie_first)
        got, nfe = likelihood.sampler_nats(MODEL, TOKENS, KEY, config, **sizes)
        wanted = likelihood.target_nats(MODEL, TOKENS, KEY, tie_first=tie_first, **sizes)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        assert (nfe >= MODEL.trunk_cost + MODEL.verify_cost - 1e-5).all()


def test_sampler_with_window_one_is_autoregressive():
    config = SpeculativeConfig(ConstantWindow(1), 1)
    got, nfe = likelihood.sampler_nats(MODEL, TOKENS, KEY, config, num_orders=4, batch_size=BATCH)
    drawn = likelihood._orders(KEY, len(TOKENS), 4, LENGTH).reshape(len(TOKENS), 4, LENGTH)
    one = lambda row, order: sum(nll(MODEL.numpy_target_logits, row, order, i)[0] for i in range(LENGTH))
    twin = [np.mean([one(row, order) for order in orders.tolist()]) for row, orders in zip(TOKENS, drawn, strict=True)]
    np.testing.assert_allclose(got, twin, rtol=1e-5)
    np.testing.assert_allclose(nfe, LENGTH, rtol=1e-5)


def test_bounds_are_in_bits_with_errors_over_sequences():
    config, tokenizer = SpeculativeConfig(ConstantWindow(2), 2, tie_first=True), make_tokenizer("text8")
    found = likelihood.bounds(MODEL, tokenizer, TOKENS, KEY, config, num_orders=4, batch_size=BATCH, draws=4)
    assert found.unit == "character" and found.tokens_per_unit == 1
    key = jax.random.fold_in(KEY, 1)
    values = likelihood.target_nats(MODEL, TOKENS, key, num_orders=4, batch_size=BATCH, tie_first=True)
    values = values / math.log(2) / LENGTH
    np.testing.assert_allclose(found.target.value, values.mean())
    np.testing.assert_allclose(found.target.standard_error, values.std(ddof=1) / math.sqrt(len(values)))
    again = likelihood.bounds(MODEL, tokenizer, TOKENS, KEY, config, num_orders=4, batch_size=BATCH, draws=4)
    assert again == found


def test_units():
    class Tokenizer:
        kind = "sentencepiece"

        def decode(self, ids):
            return "né" * int(ids[0])

    unit, counts = likelihood.count_units(Tokenizer(), np.array([[1, 0], [2, 0]]))
    assert unit == "byte" and counts.tolist() == [3, 6]
    unit, counts = likelihood.count_units(make_tokenizer("bytes"), np.array([[195, 169, 10]]))
    assert unit == "byte" and counts.tolist() == [3]


def test_impossible_text_has_an_infinite_bound():
    config = SpeculativeConfig(ConstantWindow(2), 2, temperature=0.0)
    tokenizer = make_tokenizer("text8")
    found = likelihood.bounds(MODEL, tokenizer, TOKENS, KEY, config, num_orders=4, batch_size=BATCH, draws=4)
    assert found.sampler.value == math.inf
