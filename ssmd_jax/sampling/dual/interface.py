"""What the cached samplers see of a network, in sequence order."""

from typing import Any, Protocol

import jax


class MaskedModel(Protocol):
    """A bidirectional network bound to its parameters: a pytree whose arrays are leaves, the rest static.

    Attributes:
        vocab_size: `V`, the mask token included.
        mask_id: the mask token.
        shifts: whether the vector at position j predicts the token at j + 1 (and the one at 0 also that at 0).
        max_length: longest sequence.
    """

    vocab_size: int
    mask_id: int
    shifts: bool
    max_length: int

    def init_cache(self, batch: int, length: int) -> Any:
        """A cache for `hidden`, any pytree; its content is never read before it is written."""
        ...

    def hidden(self, tokens_BxS: jax.Array, slots_BxS: Any, cache: Any, key_mask_BxL: Any) -> tuple[jax.Array, Any]:
        """Vectors of the fed positions, and the cache after the pass.

        Args:
            tokens_BxS: tokens of the fed positions.
            slots_BxS: their positions, ascending, `L` for a slot that feeds nothing; None feeds all, and then the
                cache given is not read.
            cache: keys and values of all positions; those of the fed ones are replaced, the others are attended to
                as they are.
            key_mask_BxL: False at padding, which precedes a row's tokens; None where no row has any.

        Returns:
            `[B, S, C]`, arbitrary but finite where nothing is fed, and the cache.
        """
        ...

    def logits(self, h_BxTxC: jax.Array) -> jax.Array:
        """float32 logits `[B, T, V]` of vectors that `hidden` gave."""
        ...
