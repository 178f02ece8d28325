"""One round: shaping, draws, acceptance and replacement, each against its law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ssmd_jax.diffusion.speculation import accept_reject_round, categorical, residual_log_weight, shape_log_prob
from tests.enumeration import shape

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("temperature", [None, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, None])
def test_shape_equals_the_twin(temperature, top_p):
    """Rows with ties and with impossible tokens too."""
    logits = RNG.normal(size=(6, 9)).astype(np.float32)
    logits[1, :] = 0.0
    logits[2, [3, 5]] = logits[2].max() + 1
    logits[3, 4:] = -np.inf
    prob = np.exp(shape_log_prob(jnp.asarray(logits), temperature, top_p))
    for row, expected in zip(prob, logits, strict=True):
        np.testing.assert_allclose(row, shape(expected, temperature or 0.0, top_p or 1.0), atol=1e-6)


def test_nucleus_ties_go_to_the_smaller_id():
    prob = np.exp(shape_log_prob(jnp.zeros(4), 1.0, 0.5))
    np.testing.assert_allclose(prob, [0.5, 0.5, 0.0, 0.0], atol=1e-6)


def test_categorical_frequencies():
    log_prob = jax.nn.log_softmax(jnp.asarray(RNG.normal(size=5), jnp.float32))
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = categorical(keys, jnp.broadcast_to(log_prob, (20_000, 5)))
    counts = np.bincount(draws, minlength=5)
    assert scipy.stats.chisquare(counts, 20_000 * np.exp(log_prob) / np.exp(log_prob).sum()).pvalue > 1e-3


@pytest.mark.parametrize("mode, reaches", [("low", False), ("high", True)])
def test_gumbel_tail(mode, reaches):
    """Ordinary float32 noise ends at 15.95: tokens rarer than that are never drawn (arXiv 2409.02908).

    The largest of 40 million draws exceeds 16.2 with probability 0.97 if the tail is there.
    """
    largest = jax.jit(lambda key: jax.random.gumbel(key, (4_000_000,), jnp.float32, mode=mode).max())
    assert (max(float(largest(jax.random.key(seed))) for seed in range(10)) > 16.2) == reaches


def test_categorical_uses_the_long_tail(monkeypatch):
    """The draws ask for high dynamic range, in float32."""
    asked = []
    gumbel = jax.random.gumbel
    monkeypatch.setattr(
        jax.random, "gumbel", lambda *args, mode=None: asked.append((args[2], mode)) or gumbel(*args, mode=mode)
    )
    categorical(jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 3)))
    assert asked == [(jnp.float32, "high")]


def test_residual_weights():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    weight = np.exp(residual_log_weight(jnp.log(p), jnp.log(q)))
    np.testing.assert_allclose(weight, [0.0, 0.2, 0.1], atol=1e-6)
    same = np.exp(residual_log_weight(jnp.log(p), jnp.log(p)))
    np.testing.assert_allclose(same, p, rtol=1e-6)


def test_round_by_enumeration():
    """Frequencies of (first rejection, replacement) for fixed drafts, looked at from an offset, over many keys."""
    size, vocabulary, count = 4, 3, 40_000
    p = np.stack([shape(row, 1.0, 1.0) for row in RNG.normal(size=(size, vocabulary))])
    q = np.stack([shape(row, 1.0, 1.0) for row in 2 * RNG.normal(size=(size, vocabulary))])
    drafts, offset, window = np.array([0, 2, 1, 0]), 1, 4
    expected, reach = {}, 1.0
    for s in range(offset, window):
        accept = min(1.0, q[s, drafts[s]] / p[s, drafts[s]])
        residual = np.maximum(q[s] - p[s], 0)
        for v in range(vocabulary):
            if accept < 1:
                expected[s, v] = reach * (1 - accept) * residual[v] / residual.sum()
        reach *= accept
    expected["none"] = reach
    tile = lambda x: jnp.broadcast_to(jnp.asarray(x)[None], (count, *np.shape(x)))
    outcome = accept_reject_round(
        jax.random.split(jax.random.key(1), count), tile(drafts), tile(np.log(p)), tile(np.log(q)),
        jnp.full(count, 5), jnp.full(count, offset), jnp.full(count, window),
    )  # fmt: skip
    first, rejected, replacement, new_offset = map(np.asarray, outcome)
    np.testing.assert_array_equal(first[~rejected], window)
    np.testing.assert_array_equal(new_offset, np.where(rejected, first + 1, window))
    observed = dict.fromkeys(expected, 0)
    for s, hit, v in zip(first.tolist(), rejected.tolist(), replacement.tolist(), strict=True):
        observed[(s, v) if hit else "none"] += 1
    kept = [key for key, prob in expected.items() if prob * count >= 5]
    assert sum(expected[key] for key in kept) > 0.999 and len(kept) >= 4
    rest = [observed[key] for key in expected if key not in kept]
    assert sum(rest) < 30
    predicted = np.array([expected[key] for key in kept])
    counts = np.array([observed[key] for key in kept])
    assert scipy.stats.chisquare(counts, predicted / predicted.sum() * counts.sum()).pvalue > 1e-3


def test_nothing_is_looked_at_behind_the_window():
    """A finished row keeps its offset and rejects nothing, whatever the arrays hold."""
    shape_ = (2, 3, 4)
    nan = jnp.full(shape_, jnp.nan)
    outcome = accept_reject_round(
        jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 3), int), nan, nan,
        jnp.array([7, 7]), jnp.array([2, 0]), jnp.array([2, 0]),
    )  # fmt: skip
    assert not np.asarray(outcome.rejected).any()
    np.testing.assert_array_equal(outcome.offset, [2, 0])


def test_draws_depend_on_the_track_alone():
    """The same tracks through windows of other sizes and starts: the same verdicts."""
    rows = 50
    log_p, log_q = (jax.nn.log_softmax(jnp.asarray(RNG.normal(size=(rows, 6, 3)), jnp.float32)) for _ in range(2))
    drafts, keys = jnp.asarray(RNG.integers(0, 3, (rows, 6))), jax.random.split(jax.random.key(3), rows)
    full = lambda value: jnp.full(rows, value)
    wide = accept_reject_round(keys, drafts, log_p, log_q, full(4), full(2), full(6))
    narrow = accept_reject_round(keys, drafts[:, 2:], log_p[:, 2:], log_q[:, 2:], full(6), full(0), full(4))
    np.testing.assert_array_equal(wide.first_rejected, narrow.first_rejected + 2)
    np.testing.assert_array_equal(wide.replacement[wide.rejected], narrow.replacement[narrow.rejected])
    assert 0 < np.asarray(wide.rejected).sum() < rows


def test_marginal_of_one_track_is_the_target():
    """Draft, accept or replace: whatever p is, the token is distributed as q (the lemma behind every law here)."""
    count = 30_000
    p, q = shape(RNG.normal(size=4), 1.0, 1.0), shape(2 * RNG.normal(size=4), 1.0, 1.0)
    tile = lambda x: jnp.broadcast_to(jnp.asarray(np.log(x), jnp.float32)[None, None], (count, 1, 4))
    drafts = categorical(jax.random.split(jax.random.key(5), count)[:, None], tile(p))
    outcome = accept_reject_round(
        jax.random.split(jax.random.key(6), count), drafts, tile(p), tile(q),
        jnp.zeros(count, int), jnp.zeros(count, int), jnp.ones(count, int),
    )  # fmt: skip
    tokens = np.where(outcome.rejected, outcome.replacement, drafts[:, 0])
    assert scipy.stats.chisquare(np.bincount(tokens, minlength=4), q / q.sum() * count).pvalue > 1e-3
