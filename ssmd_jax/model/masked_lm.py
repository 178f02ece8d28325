"""A bidirectional transformer bound to its parameters: what the cached samplers see (`sampling/dual/interface.py`)."""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from ssmd_jax.model.bidirectional import BidirectionalConfig, BidirectionalTransformer


@flax.struct.dataclass
class MaskedLanguageModel:
    """Satisfies `ssmd_jax.sampling.dual.interface.MaskedModel`; parameters are leaves, the configuration is static."""

    params: Any
    config: BidirectionalConfig = flax.struct.field(pytree_node=False)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def mask_id(self) -> int:
        return self.config.mask_id

    @property
    def shifts(self) -> bool:
        return self.config.shifts

    @property
    def max_length(self) -> int:
        return self.config.max_length

    def _apply(self, method, *args):
        return BidirectionalTransformer(self.config).apply({"params": self.params}, *args, method=method)

    def init_cache(self, batch: int, length: int) -> tuple:
        """Keys and values of no pass yet: zeros, a pair `[B, L, K, E]` for each layer."""
        config = self.config
        zeros = jnp.zeros((batch, length, config.num_kv_heads, config.head_dim), config.compute_dtype)
        return tuple((zeros, zeros) for _ in range(config.num_layers))

    def hidden(self, tokens_BxS, slots_BxS, cache, key_mask_BxL) -> tuple[jax.Array, tuple]:
        """See `BidirectionalTransformer.hidden`."""
        return self._apply(BidirectionalTransformer.hidden, tokens_BxS, slots_BxS, cache, key_mask_BxL)

    def logits(self, h_BxTxC: jax.Array) -> jax.Array:
        """See `BidirectionalTransformer.logits`."""
        return self._apply(BidirectionalTransformer.logits, h_BxTxC)
