"""Keys of a sampler. Below a row they come from the row's own counters: pass, round, track.

So a row's sample depends neither on its batch mates, nor on how many steps the loop has run, nor on the static size of
the window.
"""

import jax
import jax.numpy as jnp

# Streams below a row's key.
ORDER, SUFFIX_ORDER, DRAFT, VERIFY, POLICY = range(5)


def row_keys(key: jax.Array, batch_size: int, name: str = "batch_size") -> jax.Array:
    """One key a row: `fold_in(key, b)` of one key, or the given array of `batch_size` keys.

    Raises:
        ValueError: if `key` is neither one typed key nor `batch_size` of them; `name` is what the user knows that by.
    """
    if not jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise ValueError(f"key must be a typed key, jax.random.key(seed), or an array of {name} such keys")
    if key.ndim == 0:
        return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch_size))
    if key.shape != (batch_size,):
        raise ValueError(f"key must be one key or {name} = {batch_size} of them, got shape {key.shape}")
    return key


def stream(row_keys_B: jax.Array, name: int) -> jax.Array:
    """The keys of one stream, `[B]`."""
    return fold(row_keys_B, jnp.full(row_keys_B.shape, name))


def fold(keys_B: jax.Array, counter_B: jax.Array) -> jax.Array:
    """`fold_in` of one counter a row, `[B]`."""
    return jax.vmap(jax.random.fold_in)(keys_B, counter_B)


def fold_tracks(keys_B: jax.Array, start_B: jax.Array, size: int) -> jax.Array:
    """Keys of tracks `start .. start+size-1`, `[B, size]`."""
    tracks_BxS = start_B[:, None] + jnp.arange(size)[None]
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys_B, tracks_BxS)
