"""Masking in order space: the revealed tokens are a prefix (METHOD.md sections 2 and 4)."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def mask_suffix(tokens_BxD: jax.Array, num_revealed_B: jax.Array, mask_id: int) -> jax.Array:
    """Puts the mask id on every track at or past `num_revealed`.

    Args:
        tokens_BxD: int tokens in order space.
        num_revealed_B: int `[B]`.
        mask_id: the id of the mask token (the number of real tokens).

    Returns:
        int `[B, D]`.
    """
    revealed_BxD = jnp.arange(tokens_BxD.shape[1])[None] < num_revealed_B[:, None]
    return jnp.where(revealed_BxD, tokens_BxD, mask_id)


def strata(batch: int) -> np.ndarray:
    """The stratum of each row, a permutation of `0..batch-1`: the ranks of multiples of the golden section, modulo 1.

    Consecutive multiples of the golden section fill the circle evenly, however many are taken.
    """
    multiples = np.arange(batch) * (math.sqrt(5) - 1) / 2 % 1
    return np.argsort(np.argsort(multiples))


def stratified_num_revealed(key: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Number of revealed tokens for each row, `floor(u_b * D_b)` (METHOD.md section 4).

    `u_b = (s_b / B + u) mod 1` with one uniform `u` for the batch and a permutation `s` of its rows: every row is
    uniform on `0..D_b-1`, and one batch covers the range evenly, which lowers the variance of the loss. Neighbouring
    rows are far apart, so that each device's rows, too, cover it: devices do equal work on the masked tracks.

    Args:
        key: a PRNG key.
        lengths_B: int `[B]`, at least 1.

    Returns:
        int32 `[B]` in `0..lengths[b]-1`.
    """
    batch = lengths_B.shape[0]
    u_B = (strata(batch) / jnp.float32(batch) + jax.random.uniform(key)) % 1.0
    # float32 rounding may lift the product of u < 1 and the length to the length itself
    return jnp.minimum((u_B * lengths_B).astype(jnp.int32), lengths_B.astype(jnp.int32) - 1)


def tie_first_track(draft_BxDx: jax.Array, target_BxDx: jax.Array, num_revealed_B: jax.Array) -> jax.Array:
    """`target` with track `num_revealed` replaced by the draft's (METHOD.md section 5, tied first track).

    There the causal part knows nothing that the trunk does not. Works on `[B, D]` and `[B, D, V]` alike.
    """
    first_BxD = jnp.arange(draft_BxDx.shape[1])[None] == num_revealed_B[:, None]
    first = first_BxD.reshape(first_BxD.shape + (1,) * (draft_BxDx.ndim - 2))
    return jnp.where(first, draft_BxDx, target_BxDx)
