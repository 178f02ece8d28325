"""Orders: which position is revealed k-th (METHOD.md sections 2 and 5).

An order `order_BxD` lists positions: track `k` of row `b` is position `order_BxD[b, k]`. The given positions of a
prompt come first, then the positions to generate, then, where sequences are shorter than the canvas, the left-over
positions in ascending order.
"""

import jax
import jax.numpy as jnp
import numpy as np


def random_priority(row_keys_B: jax.Array, length: int) -> jax.Array:
    """Independent uniform 32-bit numbers, one a position.

    Every number has a key of its own (row key, position), so that it depends neither on the batch nor on `length`.

    Args:
        row_keys_B: typed PRNG keys `[B]`.
        length: number of positions `D`.

    Returns:
        uint32 `[B, D]`.
    """
    positions_D = jnp.arange(length)

    def row(key):
        return jax.vmap(lambda position: jax.random.bits(jax.random.fold_in(key, position)))(positions_D)

    return jax.vmap(row)(row_keys_B)


def sort_order(priority_BxD: jax.Array, lengths_B: jax.Array, given_BxD: jax.Array | None = None) -> jax.Array:
    """The order that sorts positions by ascending priority: given ones first, padding last.

    Args:
        priority_BxD: any sortable dtype; ties go to the smaller position.
        lengths_B: int `[B]`, positions at or past it are padding.
        given_BxD: bool, True where a prompt gives the token; None for no prompt.

    Returns:
        int32 `[B, D]`, a permutation of `0..D-1` in each row whose first `lengths[b]` entries are `0..lengths[b]-1`.
    """
    positions_1xD = jnp.arange(priority_BxD.shape[1])[None]
    padding_BxD = positions_1xD >= lengths_B[:, None]
    group_BxD = jnp.where(padding_BxD, 2, 1)
    if given_BxD is not None:
        group_BxD = jnp.where(given_BxD & ~padding_BxD, 0, group_BxD)
    priority_BxD = jnp.where(padding_BxD, jnp.zeros((), priority_BxD.dtype), priority_BxD)
    return jnp.lexsort((priority_BxD, group_BxD), axis=-1).astype(jnp.int32)


def uniform_order(
    row_keys_B: jax.Array, lengths_B: jax.Array, length: int, given_BxD: jax.Array | None = None
) -> jax.Array:
    """Uniformly random order, uniform too within the given positions; see `sort_order` for arguments and result."""
    return sort_order(random_priority(row_keys_B, length), lengths_B, given_BxD)


def ascending_order(lengths_B: jax.Array, length: int, given_BxD: jax.Array | None = None) -> jax.Array:
    """Left to right, the given positions first; see `sort_order` for arguments and result."""
    return sort_order(jnp.zeros((lengths_B.shape[0], length), jnp.uint32), lengths_B, given_BxD)


def dilated_strides(block: int, base: int = 2) -> list[int]:
    """Strides of the levels of a block: `block // base`, that `// base`, and so on to 1 (DUS, arXiv 2506.19037)."""
    strides, stride = [], block // base
    while stride:
        strides.append(stride)
        stride //= base
    return strides if strides and strides[-1] == 1 else [*strides, 1]


def dilated_order(
    row_keys_B: jax.Array, lengths_B: jax.Array, length: int, given_BxD: jax.Array | None = None
) -> jax.Array:
    """Far apart first: every so many positions, then those halfway between, and so on; random within a level.

    Positions of level `l` are multiples of `D_b // 2^(l+1)`, counted in the row of length `D_b`, and of no earlier
    level: neighbours come late, when much around them is known. Given positions ascend. Arguments and result as in
    `sort_order`.
    """
    num_levels = length.bit_length()
    divisors_1xL = 2 ** (1 + jnp.arange(num_levels))[None]
    strides_BxL = jnp.maximum(jnp.asarray(lengths_B)[:, None] // divisors_1xL, 1)
    belongs_BxDxL = jnp.arange(length)[None, :, None] % strides_BxL[:, None, :] == 0
    level_BxD = jnp.argmax(belongs_BxDxL, axis=-1).astype(jnp.uint32)
    # Levels in the highest bits, uniform numbers in the 26 below.
    priority_BxD = (level_BxD << 26) | (random_priority(row_keys_B, length) >> 6)
    if given_BxD is not None:
        priority_BxD = jnp.where(given_BxD, jnp.uint32(0), priority_BxD)
    return sort_order(priority_BxD, lengths_B, given_BxD)


# 2^32 over the golden ratio, rounded to an odd number: steps of so much of a circle leave no large gap at any time.
GOLDEN_STEP = np.uint32(2654435769)


def spread_order(
    row_keys_B: jax.Array, lengths_B: jax.Array, length: int, given_BxD: jax.Array | None = None
) -> jax.Array:
    """Each position far from those just before it in the order: any window of it lies spread over the row.

    Track `m` of the `n` that are to generate stands at the position whose rank is that of `m * golden` among all `n`
    such points of a circle (a Kronecker sequence), turned by a uniformly random number of positions, one for a row: a
    window of `w` tracks, far fewer than `n`, keeps distances of about `0.45 n / w` and more, and each track is at each
    position as likely as at any other. Ranks count the positions to generate alone; given ones ascend. Arguments and
    result as in `sort_order`.
    """
    tracks_1xD = jnp.arange(length)[None]
    free_BxD = tracks_1xD < jnp.asarray(lengths_B)[:, None]
    if given_BxD is not None:
        free_BxD &= ~given_BxD
    count_B = jnp.maximum(jnp.sum(free_BxD, axis=1), 1)
    beyond_BxD = tracks_1xD >= count_B[:, None]
    point_BxD = jnp.broadcast_to(tracks_1xD.astype(jnp.uint32) * GOLDEN_STEP, beyond_BxD.shape)
    track_by_rank_BxD = jnp.lexsort((point_BxD, beyond_BxD), axis=-1)
    turn_B = jax.vmap(lambda key, count: jax.random.randint(key, (), 0, count))(row_keys_B, count_B)
    rank_BxD = (jnp.cumsum(free_BxD, axis=1) - 1 - turn_B[:, None]) % count_B[:, None]
    priority_BxD = jnp.take_along_axis(track_by_rank_BxD, rank_BxD, axis=1).astype(jnp.uint32)
    if given_BxD is not None:
        priority_BxD = jnp.where(given_BxD, jnp.uint32(0), priority_BxD)
    return sort_order(priority_BxD, lengths_B, given_BxD)


def to_order_space(values_BxD: jax.Array, order_BxD: jax.Array) -> jax.Array:
    """`values` indexed by position, to `values` indexed by track: `out[b, k] = values[b, order[b, k]]`."""
    return jnp.take_along_axis(values_BxD, order_BxD, axis=1)


def to_sequence_order(values_BxD: jax.Array, order_BxD: jax.Array) -> jax.Array:
    """The inverse of `to_order_space`: `out[b, order[b, k]] = values[b, k]`."""
    return jax.vmap(lambda values_D, order_D: jnp.zeros_like(values_D).at[order_D].set(values_D))(values_BxD, order_BxD)
