"""Named PRNG streams: keys are derived from the root key, never stored, so that resuming needs none of them."""

import zlib

import jax
import numpy as np


def stream(key: jax.Array, name: str) -> jax.Array:
    """The key of a named stream: `fold_in(key, crc32(name))`."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def row_keys(key: jax.Array, num_rows: int) -> jax.Array:
    """One key a row, `[num_rows]`: row `b` has `fold_in(key, b)`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jax.numpy.arange(num_rows))
