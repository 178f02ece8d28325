"""Log-likelihood of a continuation by a masked diffusion model: a Monte Carlo estimate, as LLaDA (arXiv 2502.09992).

Of a continuation of `n` tokens, `k` are masked, `k` uniform in 1..n and the set uniform among those of its size:

    log p(x | context) >= E[ (n / k) sum over masked i of log p(x_i | context, what is not masked) ],

with equality where the network's conditionals are those of one joint law. The `k` of one continuation are stratified.
Probabilities are of the whole vocabulary, the mask token included, as in the public code.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.evaluation.reasoning.generator import plan
from ssmd_jax.evaluation.statistics import Estimate, mean
from ssmd_jax.sampling.dual.commit import best

# Continuations are padded to multiples of so many tokens, and that many positions have logits at a time.
TARGET_PAD = 16


class Pair(NamedTuple):
    """A context, with at least one token, and its continuation, with at least one."""

    context: Sequence[int]
    target: Sequence[int]


class Batch(NamedTuple):
    """Rows that end with their continuations, padded on the left.

    Attributes:
        tokens_BxL: int32.
        is_real_BxL: bool, False at padding.
        is_target_BxT: bool, of the last `T` positions those of the continuation.
    """

    tokens_BxL: np.ndarray
    is_real_BxL: np.ndarray
    is_target_BxT: np.ndarray


def estimates(
    model,
    pairs: Sequence[Pair],
    keys: Sequence[jax.Array],
    *,
    samples: int,
    batch_size: int,
    pad_to: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Estimate]:
    """Estimates of `log p(target | context)`, in nats, with standard errors (upper bounds: strata are not used).

    Args:
        model: satisfies `sampling.dual.interface.MaskedModel`.
        pairs: what to score.
        keys: one for each pair; an estimate depends on nothing else.
        samples: masks for each.
        batch_size: rows computed at a time.
        pad_to: rows are padded to multiples of so many tokens.
        progress: told of every batch how many of the `len(pairs) * samples` rows it had.

    Raises:
        ValueError: a pair without tokens, or one that is longer than the network can hold.
    """
    if samples < 1:
        raise ValueError(f"the number of masks must be at least 1, got {samples}")
    check(model, pairs)
    values = np.zeros((len(pairs), samples))
    masks = [draw_masks(key, len(pair.target), samples) for key, pair in zip(keys, pairs, strict=True)]
    for places, batch in _batches(model, pairs, samples, batch_size, pad_to):
        masked_BxT = np.zeros_like(batch.is_target_BxT)
        for row, (n, sample) in enumerate(places):
            masked_BxT[row, -len(pairs[n].target) :] = masks[n][sample]
        log_prob_B = np.asarray(masked_log_prob(model, batch, masked_BxT))
        for row, (n, sample) in enumerate(places):
            values[n, sample] = log_prob_B[row] * len(pairs[n].target) / masks[n][sample].sum()
        progress(len(places))
    return [mean(row) for row in values]


def draw_masks(key: jax.Array, length: int, samples: int) -> np.ndarray:
    """Which tokens are masked, bool `[samples, length]`.

    The numbers of masked tokens are a systematic sample of 1..length: with a multiple of `length` samples, each number
    comes equally often.
    """
    number, order = jax.random.split(key)
    steps_S = (np.arange(samples) + float(jax.random.uniform(number))) / samples
    count_S = 1 + np.minimum(length * steps_S, length - 1).astype(np.int64)
    rank_SxT = np.argsort(np.asarray(jax.random.uniform(order, (samples, length))), axis=1)
    return rank_SxT < count_S[:, None]


@jax.jit
def masked_log_prob(model, batch: Batch, masked_BxT: jax.Array) -> jax.Array:
    """Sum of the log-probabilities of the tokens at masked positions, float32 `[B]`, nats."""
    targets_BxT = batch.tokens_BxL[:, -masked_BxT.shape[1] :]
    h_BxTxC = _target_vectors(model, batch, jnp.where(masked_BxT, model.mask_id, targets_BxT))

    def own(h_BxSxC, targets_BxS):
        log_prob_BxSxV = jax.nn.log_softmax(model.logits(h_BxSxC))
        return jnp.take_along_axis(log_prob_BxSxV, targets_BxS[..., None], axis=-1)[..., 0]

    return jnp.sum(jnp.where(masked_BxT, _in_pieces(own, h_BxTxC, targets_BxT), 0.0), axis=1)


def _target_vectors(model, batch: Batch, shown_BxT: jax.Array) -> jax.Array:
    """Vectors that predict the last `T` positions where these tokens are shown there."""
    length, size = batch.tokens_BxL.shape[1], shown_BxT.shape[1]
    tokens_BxL = jnp.concatenate([batch.tokens_BxL[:, : length - size], shown_BxT], axis=1)
    h_BxLxC, _ = model.hidden(tokens_BxL, None, None, batch.is_real_BxL)
    slots_T = jnp.arange(length - size, length)
    return h_BxLxC[:, jnp.maximum(slots_T - 1, 0) if model.shifts else slots_T]


def _in_pieces(function, *arrays_BxT: jax.Array):
    """A function of positions, piece by piece: logits of a long text would not fit into memory."""
    batch, size = arrays_BxT[0].shape[:2]
    cut = lambda x: jnp.moveaxis(x.reshape(batch, size // TARGET_PAD, TARGET_PAD, *x.shape[2:]), 1, 0)
    found = jax.lax.map(lambda pieces: function(*pieces), tuple(map(cut, arrays_BxT)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, size), found)


def are_greedy(model, pairs: Sequence[Pair], *, batch_size: int, pad_to: int) -> list[bool]:
    """Whether decoding one token a pass, the surest first, gives each continuation; arguments as in `estimates`.

    A row is given up at its first token that is another.
    """
    check(model, pairs)
    found = [False] * len(pairs)
    for places, batch in _batches(model, pairs, 1, batch_size, pad_to):
        agrees_B = np.asarray(_agrees(model, batch))
        for row, (n, _) in enumerate(places):
            found[n] = bool(agrees_B[row])
    return found


@jax.jit
def _agrees(model, batch: Batch) -> jax.Array:
    targets_BxT = batch.tokens_BxL[:, -batch.is_target_BxT.shape[1] :]

    def choice(h_BxSxC):
        logits_BxSxV = model.logits(h_BxSxC)
        is_mask_1x1xV = (jnp.arange(model.vocab_size) == model.mask_id)[None, None]
        token_BxS = jnp.argmax(jnp.where(is_mask_1x1xV, -jnp.inf, logits_BxSxV), axis=-1)
        prob_BxSxV = jax.nn.softmax(logits_BxSxV)
        return token_BxS, jnp.take_along_axis(prob_BxSxV, token_BxS[..., None], axis=-1)[..., 0]

    def one_pass(carry):
        masked_BxT, agrees_B = carry
        shown_BxT = jnp.where(masked_BxT, model.mask_id, targets_BxT)
        token_BxT, score_BxT = _in_pieces(choice, _target_vectors(model, batch, shown_BxT))
        chosen_BxT = jax.vmap(best, (0, 0, None))(score_BxT, masked_BxT, 1)
        return masked_BxT & ~chosen_BxT, agrees_B & ~jnp.any(chosen_BxT & (token_BxT != targets_BxT), axis=1)

    unfinished = lambda carry: jnp.any(carry[0] & carry[1][:, None])
    start = (jnp.asarray(batch.is_target_BxT), jnp.ones(targets_BxT.shape[0], bool))
    return jax.lax.while_loop(unfinished, one_pass, start)[1]


def check(model, pairs: Sequence[Pair]) -> None:
    """Raises `ValueError` for a pair that cannot be scored."""
    for context, target in pairs:
        if not len(context) or not len(target):
            raise ValueError("a log-likelihood needs a context and a continuation of at least one token each")
        if len(context) + len(target) > model.max_length:
            raise ValueError(
                f"a context of {len(context)} tokens and its continuation of {len(target)} are more than the "
                f"{model.max_length} that the network can hold: give fewer examples"
            )


def _batches(model, pairs: Sequence[Pair], samples: int, batch_size: int, pad_to: int):
    """Batches of `samples` rows for each pair, with the pair and the sample of each row but those that fill up."""
    rows = [(n, sample) for n in range(len(pairs)) for sample in range(samples)]
    # By the length of the continuation first: `plan` keeps the order of what it pads alike.
    padded = lambda n: -(-len(pairs[n].target) // TARGET_PAD) * TARGET_PAD
    for size in sorted({padded(n) for n in range(len(pairs))}, reverse=True):
        alike = [row for row in rows if padded(row[0]) == size]
        lengths = [max(size, sum(map(len, pairs[n]))) for n, _ in alike]
        for length, places in plan(lengths, batch_size, pad_to, max(size, model.max_length)):
            chosen = [alike[place] for place in places]
            filled = chosen + chosen[-1:] * (batch_size - len(chosen))
            yield chosen, _lay_out([pairs[n] for n, _ in filled], length, size, 1 if model.mask_id == 0 else 0)


def _lay_out(pairs: Sequence[Pair], length: int, size: int, filler: int) -> Batch:
    tokens_BxL = np.full((len(pairs), length), filler, np.int32)
    lengths = np.array([[sum(map(len, pair)), len(pair.target)] for pair in pairs])
    for row, pair in zip(tokens_BxL, pairs, strict=True):
        row[length - len(pair.context) - len(pair.target) :] = [*pair.context, *pair.target]
    behind = lambda size, count_B: np.arange(size)[None] >= size - count_B[:, None]
    return Batch(tokens_BxL, behind(length, lengths[:, 0]), behind(size, lengths[:, 1]))
