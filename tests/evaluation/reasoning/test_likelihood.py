"""The Monte Carlo estimate against enumeration: exact for a joint law, and of a network."""

import itertools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssmd_jax.evaluation.reasoning import likelihood
from ssmd_jax.evaluation.reasoning.likelihood import Pair
from ssmd_jax.sampling.dual import decode, presets
from tests.evaluation.reasoning import small
from tests.model.published import DREAM, LLADA, lively_model

TOKENS, LENGTH = 3, 4
PAIRS = [Pair([5], [3, 4, 7]), Pair([1, 2, 3, 4], [9]), Pair([8, 6], [5, 5, 2, 1, 0])]
# More than one piece of positions has logits.
LONG = Pair([4, 4, 2], [n % 19 for n in range(37)])


@flax.struct.dataclass
class JointLaw:
    """A `MaskedModel` whose conditionals are those of one law over the last four positions; the rest is padding."""

    log_prob: jax.Array  # [3, 3, 3, 3]
    vocab_size = TOKENS + 1
    mask_id = TOKENS
    shifts = False
    max_length = 64

    def hidden(self, tokens_BxS, slots_BxS, cache, key_mask_BxL):
        tokens_Bx4 = tokens_BxS[:, -LENGTH:]
        known_Bx4xV = jax.nn.one_hot(tokens_Bx4, TOKENS) + (tokens_Bx4 == self.mask_id)[..., None]

        def row(known_4xV):
            seen = jnp.exp(self.log_prob) * jnp.einsum("i,j,k,l->ijkl", *known_4xV)
            return [jnp.log(seen.sum(tuple(set(range(LENGTH)) - {axis}))) for axis in range(LENGTH)]

        h_BxLxC = jnp.stack(jax.vmap(row)(known_Bx4xV), axis=1)
        padding = ((0, 0), (tokens_BxS.shape[1] - LENGTH, 0), (0, 1))
        return jnp.pad(h_BxLxC, padding, constant_values=-jnp.inf), cache

    def logits(self, h_BxTxC):
        return h_BxTxC


def law() -> JointLaw:
    logits = np.random.default_rng(3).normal(scale=1.5, size=(TOKENS,) * LENGTH)
    return JointLaw(jnp.asarray(logits - np.log(np.exp(logits).sum()), jnp.float32))


def all_masks(length: int) -> np.ndarray:
    """Every set, so often that each size has the same weight."""
    most = math.lcm(*(math.comb(length, k) for k in range(1, length + 1)))
    return np.array(
        [
            [n in chosen for n in range(length)]
            for k in range(1, length + 1)
            for chosen in itertools.combinations(range(length), k)
            for _ in range(most // math.comb(length, k))
        ]
    )


def enumerated(monkeypatch, model, pair: Pair) -> float:
    masks = all_masks(len(pair.target))
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "draw_masks", lambda key, length, samples: masks)
        (found,) = likelihood.estimates(model, [pair], small.keys(1), samples=len(masks), batch_size=60, pad_to=16)
    return found.value


@pytest.mark.parametrize("context", [1, 2, 3])
def test_all_masks_give_the_likelihood_of_a_joint_law(context, monkeypatch):
    model, text = law(), [2, 0, 1, 1]
    prob = np.exp(np.asarray(model.log_prob, np.float64))
    exact = math.log(prob[tuple(text)] / prob[tuple(text[:context])].sum())
    found = enumerated(monkeypatch, model, Pair(text[:context], text[context:]))
    assert found == pytest.approx(exact, abs=1e-4)


def test_drawn_masks_estimate_what_all_masks_give(monkeypatch):
    model = lively_model(LLADA)
    found = likelihood.estimates(model, PAIRS, small.keys(3), samples=400, batch_size=60, pad_to=16)
    for pair, estimate in zip(PAIRS, found, strict=True):
        exact = enumerated(monkeypatch, model, pair)
        assert abs(estimate.value - exact) < 4 * estimate.standard_error + 1e-4
    assert found[0].standard_error > 0.01  # the network's conditionals do depend on what is masked


def test_law_of_the_masks():
    """Each size equally often, and each set of a size."""
    key, length, repeats = jax.random.key(2), 4, 600
    masks = likelihood.draw_masks(key, length, length * repeats)
    np.testing.assert_array_equal(np.bincount(masks.sum(1), minlength=5), [0, *[repeats] * 4])
    for size in (1, 2, 3):
        counts = np.unique(masks[masks.sum(1) == size], axis=0, return_counts=True)[1]
        assert len(counts) == math.comb(length, size)
        assert stats.chisquare(counts).pvalue > 1e-3
    # Fewer samples than sizes: which sizes come is random, each as likely.
    sizes = [likelihood.draw_masks(key, 5, 2).sum(1) for key in jax.random.split(key, 300)]
    assert stats.chisquare(np.bincount(np.concatenate(sizes), minlength=6)[1:]).pvalue > 1e-3


@pytest.mark.parametrize("config", [pytest.param(LLADA, marks=pytest.mark.slow), DREAM], ids=["llada", "dream"])
def test_batches_and_padding_change_nothing(config):
    model = lively_model(config)
    pairs, keys = [*PAIRS, LONG], small.keys(4)
    one = likelihood.estimates(model, pairs, keys, samples=6, batch_size=4, pad_to=16)
    for n, (pair, key) in enumerate(zip(pairs, keys, strict=True)):
        (alone,) = likelihood.estimates(model, [pair], [key], samples=6, batch_size=5, pad_to=24)
        assert alone.value == pytest.approx(one[n].value, abs=1e-4)


def test_a_long_continuation():
    """One mask at a time, against the network's own logits."""
    model, length = lively_model(LLADA), len(LONG.target)
    text = np.array([*LONG.context, *LONG.target], np.int32)
    batch = likelihood.Batch(text[None, :], np.ones((1, len(text)), bool), np.ones((1, length), bool))
    for place in (0, 15, 16, 36):
        shown = text.copy()
        shown[3 + place] = model.mask_id
        logits = np.asarray(model.logits(model.hidden(shown[None], None, None, None)[0])[0, 3 + place], np.float64)
        expected = logits[LONG.target[place]] - np.log(np.exp(logits).sum())
        # Continuations come padded to whole pieces.
        masked = np.arange(48)[None] == 48 - length + place
        padded = batch._replace(
            tokens_BxL=np.pad(batch.tokens_BxL, ((0, 0), (10, 0))),
            is_real_BxL=np.pad(batch.is_real_BxL, ((0, 0), (10, 0))),
        )
        found = likelihood.masked_log_prob(model, padded, masked)
        assert float(found[0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_greedy_is_what_decoding_gives(config):
    model, contexts = lively_model(config), [[5, 3], [1, 2, 3, 4], [8]]
    decoded = np.asarray(decode.sample(model, jax.random.key(0), presets.llada(5, 5, 5), contexts).tokens)
    right = [Pair(context, row.tolist()) for context, row in zip(contexts, decoded, strict=True)]
    wrong = [Pair(context, [*row[:n], (row[n] + 1) % 19, *row[n + 1 :]]) for n, (context, row) in enumerate(right)]
    found = likelihood.are_greedy(model, [*right, *wrong], batch_size=4, pad_to=8)
    assert found == [True] * 3 + [False] * 3


def test_the_mask_is_no_token_of_greedy_decoding():
    model = small.bag()
    model = model.replace(table_VxV=model.table_VxV.at[:, model.mask_id].add(6.0))
    (row,) = np.asarray(decode.sample(model, jax.random.key(0), presets.llada(3, 3, 3), [[65]]).tokens)
    assert likelihood.are_greedy(model, [Pair([65], row.tolist())], batch_size=1, pad_to=16) == [True]


def test_refused():
    model = lively_model(LLADA)
    for pair, said in [
        (Pair([], [1]), "needs a context and a continuation"),
        (Pair([1], []), "needs a context and a continuation"),
        (Pair([1] * 60, [1] * 5), "60 tokens and its continuation of 5 are more than the 64"),
    ]:
        with pytest.raises(ValueError, match=said):
            likelihood.estimates(model, [pair], small.keys(1), samples=1, batch_size=1, pad_to=1)
    with pytest.raises(ValueError, match="number of masks must be at least 1, got 0"):
        likelihood.estimates(model, PAIRS[:1], small.keys(1), samples=0, batch_size=1, pad_to=1)
