"""The two-term loss against loops, and the bound that its draft term is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion import loss
from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.diffusion.window import CosineWindow

RNG = np.random.default_rng(0)


def test_token_nll():
    logits, tokens = RNG.normal(size=(2, 3, 5)), RNG.integers(0, 5, (2, 3))
    nll = loss.token_nll(jnp.asarray(logits), jnp.asarray(tokens))
    for b, k in itertools.product(range(2), range(3)):
        expected = np.log(np.exp(logits[b, k]).sum()) - logits[b, k, tokens[b, k]]
        np.testing.assert_allclose(nll[b, k], expected, rtol=1e-5)


def test_loss_equals_loops():
    """METHOD.md section 4 with different lengths; padding and revealed tracks hold NaN and never count."""
    lengths, revealed = np.array([6, 4, 1, 5]), np.array([0, 3, 0, 2])
    draft, target = RNG.random((4, 6)), RNG.random((4, 6))
    sums = []
    for nll in (draft, target):
        total = 0.0
        for b, (n, i) in enumerate(zip(lengths, revealed, strict=True)):
            total += n / (n - i) * sum(nll[b, k] for k in range(i, n))
        sums.append(total / lengths.sum())
    outside = (np.arange(6) < revealed[:, None]) | (np.arange(6) >= lengths[:, None])
    draft[outside] = target[outside] = np.nan
    arguments = [jnp.asarray(x, jnp.float32) for x in (draft, target)] + [jnp.asarray(revealed), jnp.asarray(lengths)]
    total, terms = loss.two_term_loss(*arguments, LossConfig(draft_weight=0.5, target_weight=2.0))
    np.testing.assert_allclose([terms["draft_loss"], terms["target_loss"]], sums, rtol=1e-6)
    np.testing.assert_allclose(total, 0.5 * sums[0] + 2.0 * sums[1], rtol=1e-6)
    gradient = jax.grad(lambda nll: loss.two_term_loss(nll, *arguments[1:], LossConfig())[0])(arguments[0])
    assert not np.asarray(gradient)[outside].any()


def test_tied_first_track_takes_the_draft():
    draft, target = jnp.asarray(RNG.random((2, 4))), jnp.asarray(RNG.random((2, 4)))
    revealed, lengths = jnp.array([1, 3]), jnp.array([4, 4])
    _, tied = loss.two_term_loss(draft, target, revealed, lengths, LossConfig(tie_first=True))
    replaced = target.at[0, 1].set(draft[0, 1]).at[1, 3].set(draft[1, 3])
    _, expected = loss.two_term_loss(draft, replaced, revealed, lengths, LossConfig())
    np.testing.assert_allclose(tied["target_loss"], expected["target_loss"], rtol=1e-6)


@pytest.mark.parametrize("tie_first", [False, True])
def test_weights_give_the_loss(tie_first):
    """The weighted sum is the two-term loss, tied or not, and its weights are the loss's gradient."""
    config = LossConfig(draft_weight=0.5, target_weight=2.0, tie_first=tie_first)
    draft, target = (jnp.asarray(RNG.random((3, 5)), jnp.float32) for _ in range(2))
    revealed, lengths = jnp.array([1, 3, 0]), jnp.array([5, 4, 2])
    weights = loss.loss_weights(revealed, lengths, 5, config)
    total = lambda draft, target: loss.two_term_loss(draft, target, revealed, lengths, config)[0]
    np.testing.assert_allclose((weights[0] * draft + weights[1] * target).sum(), total(draft, target), rtol=1e-6)
    for weight, gradient in zip(weights, jax.grad(total, (0, 1))(draft, target), strict=True):
        np.testing.assert_allclose(weight, gradient, rtol=1e-6)


def test_target_tracks_are_the_first_masked_ones():
    """Rows weigh the same as with all tracks; the reported target loss is that of all."""
    nll, revealed, lengths = jnp.asarray(RNG.random((3, 6)), jnp.float32), jnp.array([1, 4, 0]), jnp.array([6, 6, 2])
    config = LossConfig(draft_weight=0.0, target_tracks=3)
    total, terms = loss.two_term_loss(nll, nll, revealed, lengths, config)
    first = [nll[0, 1:4].mean(), nll[1, 4:6].mean(), nll[2, 0:2].mean()]
    np.testing.assert_allclose(total, sum(n * x for n, x in zip((6, 6, 2), first, strict=True)) / 14, rtol=1e-6)
    _, whole = loss.two_term_loss(nll, nll, revealed, lengths, LossConfig())
    np.testing.assert_allclose(terms["target_loss"], whole["target_loss"])
    with pytest.raises(ValueError, match="target_tracks"):
        LossConfig(target_tracks=-1)


@pytest.mark.parametrize("tie_first", [False, True])
def test_windows_of_the_sampler(tie_first):
    """Over all tracks a row may be drawn for, the mean is the sum over the windows that a sampler walks through."""
    step, size, lengths = 0.3, 9, (9, 6, 1)
    config = LossConfig(draft_weight=0.5, target_weight=2.0, window_step=step, tie_first=tie_first)
    draft, target = RNG.random((2, size, size))  # of track k with i tokens revealed
    for length in lengths:
        walked, revealed, table = 0.0, 0, CosineWindow(step).table(length)
        while revealed < length:
            tracks = slice(revealed, revealed + table[revealed])
            walked += 0.5 * draft[revealed, tracks].sum() + 2.0 * target[revealed, tracks].sum()
            walked += tie_first * 2.0 * (draft[revealed, revealed] - target[revealed, revealed])
            revealed += table[revealed]
        total = terms = 0.0
        for drawn in range(length):
            start, _ = loss.window_of(jnp.array([drawn]), jnp.array([length]), size, config)
            rows = [jnp.asarray(nll[int(start[0])][None], jnp.float32) for nll in (draft, target)]
            found, of = loss.two_term_loss(*rows, start, jnp.array([length]), config)
            total, terms = total + float(found), terms + float(0.5 * of["draft_loss"] + 2.0 * of["target_loss"])
        assert total == pytest.approx(walked, rel=1e-5) and terms == pytest.approx(walked, rel=1e-5)
    # A row without tokens adds nothing.
    start, end = loss.window_of(jnp.array([4, -1]), jnp.array([6, 0]), size, config)
    ones = jnp.ones((2, size))
    both, one = (loss.two_term_loss(ones[:n], ones[:n], start[:n], jnp.array([6, 0])[:n], config)[1] for n in (2, 1))
    assert both == one and end.tolist() == [6, 0]
    start, end = loss.window_of(jnp.array([3, 0]), jnp.array([9, 4]), size, LossConfig())
    assert (start.tolist(), end.tolist()) == ([3, 0], [9, 4])
    wrong = ({"window_step": x} for x in (1.5, -0.1, True, "0.1"))
    for fields in (*wrong, {"window_step": 0.1, "target_tracks": 3}):
        with pytest.raises(ValueError, match="window_step"):
            LossConfig(**fields)


def test_draft_term_is_the_any_order_likelihood():
    """Averaged over all `i`, the term is the mean over orders of the chain rule's sum: exact on a small table."""
    length = 4
    table = RNG.random((length, length))  # nats of track k with i revealed
    revealed = jnp.arange(length)
    nll = jnp.asarray(table, jnp.float32)
    value = loss.diffusion_loss(nll, revealed, jnp.full(length, length))
    expected = sum(table[i, i:].sum() / (length - i) for i in range(length)) / length
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_distance_sums():
    lengths, revealed = np.array([70, 80]), np.array([2, 40])
    nll = RNG.random((2, 80))
    sums, counts = loss.distance_sums(jnp.asarray(nll), jnp.asarray(revealed), jnp.asarray(lengths))
    expected_sums, expected_counts = np.zeros(8), np.zeros(8)
    for b in range(2):
        for k in range(revealed[b], lengths[b]):
            bucket = max(n for n, low in enumerate(loss.DISTANCES) if low <= k - revealed[b])
            expected_sums[bucket] += nll[b, k]
            expected_counts[bucket] += 1
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-5)
    np.testing.assert_array_equal(counts, expected_counts)
    assert len(loss.DISTANCES) == len(loss.DISTANCE_LABELS)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"draft_weight": -1}, "draft_weight"),
        ({"target_weight": float("nan")}, "target_weight"),
        ({"draft_weight": 0, "target_weight": 0}, "nothing would be trained"),
        ({"freeze_trunk": True, "target_weight": 0}, "freeze_trunk"),
    ],
)
def test_bad_weights_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        LossConfig(**fields)
