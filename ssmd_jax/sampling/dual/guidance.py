"""Classifier-free guidance (Nie et al., arXiv 2410.18514): a network that also looks at the text without its prompt."""

from typing import Any

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Guided:
    """Satisfies `MaskedModel`: logits `u + (scale + 1) (c - u)`, `u` those with a masked prompt.

    A pass feeds two rows for one, with caches of their own.

    Attributes:
        model: the network.
        scale: static, 0 for the network itself.
        prompt_length: static, positions that are masked for `u`.
    """

    model: Any
    scale: float = flax.struct.field(pytree_node=False)
    prompt_length: int = flax.struct.field(pytree_node=False)

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def mask_id(self) -> int:
        return self.model.mask_id

    @property
    def shifts(self) -> bool:
        return self.model.shifts

    @property
    def max_length(self) -> int:
        return self.model.max_length

    def init_cache(self, batch: int, length: int) -> Any:
        return self.model.init_cache(2 * batch, length)

    def hidden(self, tokens_BxS, slots_BxS, cache, key_mask_BxL) -> tuple[jax.Array, Any]:
        """Vectors of both, joined along the channels."""
        twice = lambda x: None if x is None else jnp.concatenate([x, x])
        slots_1xS = jnp.arange(tokens_BxS.shape[1])[None] if slots_BxS is None else slots_BxS
        in_prompt = jnp.broadcast_to(slots_1xS < self.prompt_length, tokens_BxS.shape)
        both = jnp.concatenate([tokens_BxS, jnp.where(in_prompt, self.mask_id, tokens_BxS)])
        h, cache = self.model.hidden(both, twice(slots_BxS), cache, twice(key_mask_BxL))
        return jnp.concatenate(jnp.split(h, 2), axis=-1), cache

    def logits(self, h_BxTxC: jax.Array) -> jax.Array:
        given, free = (self.model.logits(h) for h in jnp.split(h_BxTxC, 2, axis=-1))
        return free + (self.scale + 1) * (given - free)
