"""One round of accept, reject, replace, or of drawing again with the draft's noise (METHOD.md section 5).

Draft and target are log-probabilities in float32; zero probability is -inf. Draws use JAX's high-dynamic-range Gumbel
noise: ordinary float32 noise truncates the tails and silently lowers the temperature (arXiv 2409.02908).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


def shape_log_prob(
    logits: jax.Array, temperature: jax.typing.ArrayLike | None = 1.0, top_p: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Log-probabilities of the nucleus of `softmax(logits / temperature)`.

    The nucleus is the smallest set of likeliest tokens with total probability at least `top_p`, ties to the smaller
    id, renormalised.

    Args:
        logits: `[..., V]`, any float dtype; -inf means probability zero.
        temperature: positive; None for temperature 0, one-hot at the first maximum.
        top_p: in (0, 1]; None for the whole distribution.

    Returns:
        float32 `[..., V]`.
    """
    logits = logits.astype(jnp.float32)
    if temperature is None:
        return jnp.log(jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1]))
    log_prob = jax.nn.log_softmax(logits / temperature, axis=-1)
    if top_p is None:
        return log_prob
    ranked = jnp.argsort(-log_prob, axis=-1, stable=True)
    ranked_prob = jnp.exp(jnp.take_along_axis(log_prob, ranked, axis=-1))
    # A token belongs to the nucleus if the likelier ones before it fall short of top_p; the first always does.
    before = jnp.cumsum(ranked_prob, axis=-1) - ranked_prob
    rank = jnp.argsort(ranked, axis=-1)
    kept = jnp.take_along_axis(before < top_p, rank, axis=-1)
    return jax.nn.log_softmax(jnp.where(kept, log_prob, -jnp.inf), axis=-1)


def gumbel(keys: jax.Array, num_tokens: int) -> jax.Array:
    """Standard Gumbel noise, one vector a key.

    Args:
        keys: typed PRNG keys of shape `[...]`: a vector depends on its own key alone.
        num_tokens: entries of a vector, `V`.

    Returns:
        float32 `[..., V]`.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (num_tokens,), jnp.float32, mode="high"))(keys.reshape(-1))
    return noise.reshape(*keys.shape, num_tokens)


def categorical(keys: jax.Array, log_prob: jax.Array) -> jax.Array:
    """One draw a key from unnormalised log-probabilities.

    Args:
        keys: typed PRNG keys of shape `[...]`, one a draw: a draw depends on its own key alone.
        log_prob: `[..., V]` float32, at least one entry above -inf in each row.

    Returns:
        int32 `[...]`.
    """
    return jnp.argmax(log_prob + gumbel(keys, log_prob.shape[-1]), axis=-1).astype(jnp.int32)


def residual_log_weight(draft_log_prob: jax.Array, target_log_prob: jax.Array) -> jax.Array:
    """Unnormalised `log max(0, q - p)`, the law of a replacement; `log q` where that has no mass in float32.

    Args:
        draft_log_prob: `log p`, `[..., V]`.
        target_log_prob: `log q`, `[..., V]`.

    Returns:
        float32 `[..., V]`.
    """
    surplus = jnp.maximum(jnp.exp(target_log_prob) - jnp.exp(draft_log_prob), 0.0)
    has_mass = jnp.any(surplus > 0, axis=-1, keepdims=True)
    return jnp.where(has_mass, jnp.log(surplus), target_log_prob)


def between(from_B: jax.Array, to_B: jax.Array, size: int) -> jax.Array:
    """True at offsets `from <= s < to` of a window, bool `[B, size]`."""
    offsets_1xS = jnp.arange(size)[None]
    return (offsets_1xS >= from_B[:, None]) & (offsets_1xS < to_B[:, None])


class Round(NamedTuple):
    """Outcome of one verify round, `[B]` each; offsets count from the first track of the window.

    Attributes:
        first_rejected: offset of the first rejected draft, `window` where none is.
        rejected: bool, whether there is one.
        replacement: the token that replaces it (arbitrary where there is none).
        offset: where the next round starts, behind the replacement or at the window's end.
    """

    first_rejected: jax.Array
    rejected: jax.Array
    replacement: jax.Array
    offset: jax.Array


def accept_reject_round(
    round_keys_B: jax.Array,
    drafts_BxS: jax.Array,
    draft_log_prob_BxSxV: jax.Array,
    target_log_prob_BxSxV: jax.Array,
    start_B: jax.Array,
    offset_B: jax.Array,
    window_B: jax.Array,
) -> Round:
    """Accepts drafts while `u < q / p`; replaces the first that is rejected from `max(0, q - p)`.

    Args:
        round_keys_B: one key for each row and round; every track's draws have keys of their own, from its index.
        drafts_BxS: the tokens drafted from `p`, window tracks in order.
        draft_log_prob_BxSxV: `log p`.
        target_log_prob_BxSxV: `log q`, given the drafts before each track.
        start_B: track index of the window's first track.
        offset_B: the round looks at offsets `offset <= s < window`.
        window_B: number of tracks in the row's window, at most `S`.

    Returns:
        A `Round`. Where `offset >= window` nothing is looked at and nothing is rejected.
    """
    batch, size = drafts_BxS.shape
    chex.assert_shape([draft_log_prob_BxSxV, target_log_prob_BxSxV], (batch, size, None))
    chex.assert_shape([round_keys_B, start_B, offset_B, window_B], (batch,))
    accept_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, 0))(round_keys_B)
    replace_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, 1))(round_keys_B)
    offsets_1xS = jnp.arange(size)[None]

    fold_tracks = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    uniform_BxS = jax.vmap(jax.vmap(jax.random.uniform))(fold_tracks(accept_keys_B, start_B[:, None] + offsets_1xS))
    chosen = drafts_BxS[..., None]
    log_p_BxS = jnp.take_along_axis(draft_log_prob_BxSxV, chosen, axis=-1)[..., 0]
    log_q_BxS = jnp.take_along_axis(target_log_prob_BxSxV, chosen, axis=-1)[..., 0]
    rejected_BxS = between(offset_B, window_B, size) & ~(jnp.log(uniform_BxS) < log_q_BxS - log_p_BxS)

    rejected_B = jnp.any(rejected_BxS, axis=1)
    index_B = jnp.argmax(rejected_BxS, axis=1)
    first_B = jnp.where(rejected_B, index_B, window_B)

    row = index_B[:, None, None]
    weight_BxV = residual_log_weight(
        jnp.take_along_axis(draft_log_prob_BxSxV, row, axis=1)[:, 0],
        jnp.take_along_axis(target_log_prob_BxSxV, row, axis=1)[:, 0],
    )
    replacement_B = categorical(jax.vmap(jax.random.fold_in)(replace_keys_B, start_B + index_B), weight_BxV)
    offset_B = jnp.where(rejected_B, index_B + 1, jnp.maximum(offset_B, window_B))
    return Round(first_B, rejected_B, replacement_B, offset_B)


def redraw_round(
    noise_BxSxV: jax.Array,
    tokens_BxS: jax.Array,
    target_log_prob_BxSxV: jax.Array,
    offset_B: jax.Array,
    window_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Draws all tracks of a window again from the target, with the Gumbel noise that their drafts were drawn with.

    Up to the first track that changes, the tokens before each track were the final ones: these tracks hold what the
    target gives one track after another with this noise, so its law is theirs whatever the drafts were.

    Args:
        noise_BxSxV: standard Gumbel noise of the window's tracks, the same in every round of a pass.
        tokens_BxS: settled tokens, then the drafts in hand.
        target_log_prob_BxSxV: `log q`, given the tokens in hand before each track.
        offset_B: tracks before it are settled and stay.
        window_B: number of tracks in the row's window, at most `S`.

    Returns:
        The tokens in hand, int32 `[B, S]`, and where the next round starts, int32 `[B]`: behind the first change, or
        at the window's end. Where `offset >= window` nothing changes.
    """
    batch, size = tokens_BxS.shape
    chex.assert_shape([noise_BxSxV, target_log_prob_BxSxV], (batch, size, None))
    chex.assert_shape([offset_B, window_B], (batch,))
    drawn_BxS = jnp.argmax(target_log_prob_BxSxV + noise_BxSxV, axis=-1).astype(tokens_BxS.dtype)
    changed_BxS = between(offset_B, window_B, size) & (drawn_BxS != tokens_BxS)
    first_B = jnp.where(jnp.any(changed_BxS, axis=1), jnp.argmax(changed_BxS, axis=1) + 1, window_B)
    return jnp.where(changed_BxS, drawn_BxS, tokens_BxS), jnp.maximum(offset_B, first_B.astype(offset_B.dtype))
