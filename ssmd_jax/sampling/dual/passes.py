"""One pass of a network that feeds some positions, and its vectors that predict the tokens of a block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmd_jax.sampling.dual.state import Block


class Pass(NamedTuple):
    """What a pass gives.

    Attributes:
        h_BxbxC: the vector that predicts each token of the block.
        available_Bxb: bool, whether that vector was computed in this pass.
        cache: after the pass.
    """

    h_BxbxC: jax.Array
    available_Bxb: jax.Array
    cache: object


def sources(model, block: Block) -> jax.Array:
    """Positions whose vectors predict the block's tokens, `[b]`."""
    slots_b = block.start + jnp.arange(block.size)
    return jnp.maximum(slots_b - 1, 0) if model.shifts else slots_b


def full(model, tokens_BxL: jax.Array, key_mask_BxL, block: Block) -> Pass:
    """A pass that feeds everything and makes the cache anew."""
    h_BxLxC, cache = model.hidden(tokens_BxL, None, None, key_mask_BxL)
    h_BxbxC = jnp.take(h_BxLxC, sources(model, block), axis=1)
    return Pass(h_BxbxC, jnp.ones(h_BxbxC.shape[:2], bool), cache)


def partial(model, tokens_BxL: jax.Array, key_mask_BxL, block: Block, cache, fed_BxL: jax.Array, size: int) -> Pass:
    """A pass that feeds at most `size` positions a row."""
    length = tokens_BxL.shape[1]
    slots_BxS = jnp.sort(jnp.where(fed_BxL, jnp.arange(length, dtype=jnp.int32)[None], length), axis=1)[:, :size]
    tokens_BxS = jnp.take_along_axis(tokens_BxL, jnp.minimum(slots_BxS, length - 1), axis=1)
    h_BxSxC, cache = model.hidden(tokens_BxS, slots_BxS, cache, key_mask_BxL)
    place_BxL = jnp.cumsum(fed_BxL, axis=1) - 1
    source_b = sources(model, block)
    place_Bxb = jnp.clip(jnp.take(place_BxL, source_b, axis=1), 0, size - 1)
    h_BxbxC = jnp.take_along_axis(h_BxSxC, place_Bxb[..., None], axis=1)
    return Pass(h_BxbxC, jnp.take(fed_BxL, source_b, axis=1), cache)


def run(
    model, tokens_BxL, key_mask_BxL, block: Block, cache, is_full: jax.Array, fed_BxL: jax.Array, sizes: tuple[int, ...]
) -> Pass:
    """A full pass, or one of the least of the compiled sizes that holds what every row feeds."""
    whole = lambda cache: full(model, tokens_BxL, key_mask_BxL, block)
    if not sizes:
        return whole(cache)

    def of_size(size: int):
        return lambda cache: partial(model, tokens_BxL, key_mask_BxL, block, cache, fed_BxL, size)

    most = jnp.max(jnp.sum(fed_BxL, axis=1))
    index = jnp.where(is_full, len(sizes), jnp.sum(most > jnp.array(sizes[:-1], jnp.int32)))
    return jax.lax.switch(index, [*map(of_size, sizes), whole], cache)
