"""Digests of arrays, by which a checkpoint is known to hold what was saved.

As Orbax writes arrays, their chunks carry no checksum: a flipped bit there comes back as another number. The digest is
computed where the arrays are, in one pass over them; being a sum of integers, it is the same on every mesh. It finds
damage, not forgery.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Two independent sums make 64 bits.
_SEEDS = (0x9E3779B9, 0x7F4A7C15)


def digests(tree: Any) -> dict[str, str]:
    """A digest for each array of a tree, by its path: 16 hexadecimal digits."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    pairs = jax.device_get(_digest_leaves(jax.tree.leaves(tree)))
    paths = [name(path) for path, _ in jax.tree.leaves_with_path(tree)]
    return {path: "".join(f"{int(half):08x}" for half in pair) for path, pair in zip(paths, pairs, strict=True)}


@jax.jit
def _digest_leaves(leaves: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    return [tuple(_digest(_words(x), seed) for seed in _SEEDS) for x in leaves]


def _words(x: jax.Array) -> jax.Array:
    """The bits of each number as uint32, with one axis more where a number has 64 of them."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _digest(words: jax.Array, seed: int) -> jax.Array:
    # Each word is mixed with its place: exchanged words count, and the change of one word always changes the sum.
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size % (1 << 32)) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words ^ _mix(index + jnp.uint32(seed))), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3 by Austin Appleby: a bijection in which each bit reaches all others."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
