"""Tokens and scores from logits."""

import jax
import numpy as np
import pytest

from ssmd_jax.sampling.dual.proposal import Proposal
from tests.sampling.dual.twins import softmax

V, MASK = 6, 5
LOGITS = np.random.default_rng(0).normal(scale=2.0, size=(2, 3, V)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), (2, 3))


def propose(logits=LOGITS, keys=KEYS, **fields):
    return (np.asarray(x) for x in Proposal(**fields).propose(keys, logits, MASK))


@pytest.mark.parametrize("score", ["confidence", "margin", "entropy"])
def test_greedy_scores(score):
    tokens, scores = propose(score=score)
    for at in np.ndindex(2, 3):
        p = softmax(LOGITS[at].astype(np.float64))
        assert tokens[at] == np.argmax(p[:MASK])
        second, first = np.sort(p)[-2:]
        expected = {"confidence": p[tokens[at]], "margin": first - second, "entropy": np.sum(p * np.log(p + 1e-10))}
        assert scores[at] == pytest.approx(expected[score], abs=1e-5)


def test_the_mask_is_never_proposed():
    logits = np.where(np.arange(V) == MASK, 50.0, LOGITS).astype(np.float32)
    tokens, scores = propose(logits)
    assert (tokens != MASK).all() and (scores < 1e-10).all()


def test_banned_and_late_tokens():
    tokens, _ = propose()
    first = int(tokens[0, 0])
    without, _ = propose(banned=(first,))
    assert first not in without and (without[tokens != first] == tokens[tokens != first]).all()
    late, scores = propose(late=(first,))
    np.testing.assert_array_equal(late, tokens)
    assert (scores[tokens == first] == 0).all()
    for at in zip(*np.nonzero(tokens != first), strict=True):
        rest = softmax(np.where(np.arange(V) == first, -np.inf, LOGITS[at]))
        assert scores[at] == pytest.approx(rest[tokens[at]], abs=1e-5)


@pytest.mark.parametrize("fields", [{}, {"top_k": 3}, {"top_p": 0.8}], ids=str)
def test_temperature_draws_from_the_shaped_law(fields):
    many, temperature = 20_000, 1.5
    logits = np.broadcast_to(LOGITS[:1, :1], (many, 1, V))
    keys = jax.random.split(jax.random.key(1), (many, 1))
    proposal = Proposal(temperature=temperature, score="shaped_confidence", **fields)
    tokens, scores = (np.asarray(x)[:, 0] for x in proposal.propose(keys, logits, MASK))
    p = softmax(np.where(np.arange(V) == MASK, -np.inf, LOGITS[0, 0] / temperature))
    order = np.argsort(-p)
    if "top_k" in fields:
        p[order[3:]] = 0
    if "top_p" in fields:
        p[order[np.cumsum(p[order]) - p[order] >= 0.8]] = 0
    p /= p.sum()
    counts = np.bincount(tokens, minlength=V)
    assert (counts[p == 0] == 0).all()
    np.testing.assert_allclose(counts / many, p, atol=4 * np.sqrt(0.25 / many))
    assert len(np.unique(scores)) == len(np.unique(tokens))


def test_position_temperature_draws_positions_by_their_scores():
    many = 20_000
    logits = np.broadcast_to(LOGITS[:1], (many, 3, V))
    keys = jax.random.split(jax.random.key(2), (many, 3))
    _, noisy = (np.asarray(x) for x in Proposal(position_temperature=0.3).propose(keys, logits, MASK))
    _, plain = propose()
    expected = softmax(plain[0] / 0.3)
    np.testing.assert_allclose(np.bincount(noisy.argmax(axis=1)) / many, expected, atol=4 * np.sqrt(0.25 / many))


def test_fields_out_of_range():
    for field, value in {"top_k": -1, "banned": [3], "late": 3, "temperature": float("nan"), "top_p": 0.0}.items():
        with pytest.raises(ValueError, match=f"{field} must"):
            Proposal(**{field: value})


def test_more_likeliest_tokens_than_there_are_keep_all():
    for found, expected in zip(propose(temperature=1.0, top_k=9), propose(temperature=1.0), strict=True):
        np.testing.assert_array_equal(found, expected)
