"""A trunk with a causal part bound to its parameters: what the samplers see (`sampling/interface.py`)."""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.networks import make_network


class Context(NamedTuple):
    """What one trunk pass computes once. Leading axis B everywhere.

    Attributes:
        h_BxDxC: the trunk's hidden vectors.
        u_BxDxK: the token-free part of the causal input; None on a plain network.
        cache: for each causal block its keys and values of all tracks, `[B, H, D, E]`; valid before `num_revealed`.
            Evidence has none.
    """

    h_BxDxC: jax.Array
    u_BxDxK: jax.Array | None
    cache: list


def window_of(x_BxDx: jax.Array, start_B: jax.Array, size: int) -> jax.Array:
    """`x[b, start[b] + s]` for `s < size`, without shifting: past either end the nearest entry is repeated."""
    index_BxS = jnp.clip(start_B[:, None] + jnp.arange(size)[None], 0, x_BxDx.shape[1] - 1)
    return jnp.take_along_axis(x_BxDx, index_BxS.reshape(index_BxS.shape + (1,) * (x_BxDx.ndim - 2)), axis=1)


@flax.struct.dataclass
class HybridModel:
    """Satisfies `ssmd_jax.sampling.interface.SpeculativeModel`; parameters are leaves, the configuration is static."""

    params: Any
    config: HybridConfig = flax.struct.field(pytree_node=False)

    @property
    def num_tokens(self) -> int:
        return self.config.num_tokens

    @property
    def trunk_cost(self) -> float:
        return self.config.n_noncausal / (self.config.n_noncausal + self.config.causal_cost)

    @property
    def verify_cost(self) -> float:
        return self.config.causal_cost / (self.config.n_noncausal + self.config.causal_cost)

    def prepared(self) -> "HybridModel":
        """The same network with its kernels in the dtype of computation: converted once, not at every pass."""
        dtype = self.config.compute_dtype
        # Norms and scores are float32, with their scales and biases as they are.
        kept = ("scale", "bias", "weight_bias")
        convert = lambda path, x: x if path[-1].key in kept else x.astype(dtype)
        return self.replace(params=jax.tree.map_with_path(convert, self.params))

    def _apply(self, method, *args):
        return make_network(self.config).apply({"params": self.params}, *args, method=method)

    def hidden(self, tokens_BxD, positions_BxD, num_revealed_B, lengths_B) -> tuple[jax.Array, jax.Array, Any]:
        """The trunk alone: `h_BxDxC`, the masked tokens, and the key lengths, None where all rows are known full."""
        length = tokens_BxD.shape[1]
        # Lengths that are known to be full when traced cost no mask.
        all_full = isinstance(lengths_B, np.ndarray) and bool((lengths_B == length).all())
        lengths_B = None if all_full else lengths_B
        revealed_BxD = jnp.arange(length)[None] < num_revealed_B[:, None]
        tokens_BxD = jnp.where(revealed_BxD, tokens_BxD, self.num_tokens)
        return self._apply("trunk", tokens_BxD, positions_BxD, lengths_B), tokens_BxD, lengths_B

    def trunk(self, tokens_BxD, positions_BxD, num_revealed_B, lengths_B) -> Context:
        """One pass over the revealed prefix and masks, and what of the causal part it can do once."""
        h_BxDxC, tokens_BxD, lengths_B = self.hidden(tokens_BxD, positions_BxD, num_revealed_B, lengths_B)
        if not self.config.n_causal:
            return Context(h_BxDxC, None, [])
        u_BxDxK = self._apply("token_free_input", h_BxDxC)
        cache = self._apply("prefix_cache", h_BxDxC, u_BxDxK, tokens_BxD, positions_BxD, lengths_B)
        return Context(h_BxDxC, u_BxDxK, cache)

    def draft_logits(self, context: Context, start_B, size: int) -> jax.Array:
        """Draft logits of tracks `start .. start+size-1`, `[B, size, V]`."""
        return self._apply("head", window_of(context.h_BxDxC, start_B, size))

    def target_logits(self, context: Context, tokens_BxD, positions_BxD, start_B, size: int) -> jax.Array:
        """Target logits of tracks `start .. start+size-1`, `[B, size, V]`; `start` is the pass's `num_revealed`."""
        h_BxSxC = window_of(context.h_BxDxC, start_B, size)
        if self.config.n_causal:
            previous_BxS = window_of(positions_BxD, start_B - 1, size)
            is_first_BxS = start_B[:, None] + jnp.arange(size)[None] == 0
            h_BxSxC = self._apply(
                "causal_window",
                h_BxSxC,
                window_of(context.u_BxDxK, start_B, size),
                window_of(tokens_BxD, start_B - 1, size),
                jnp.where(is_first_BxS, -1, previous_BxS),
                window_of(positions_BxD, start_B, size),
                context.cache,
                start_B,
            )
        return self._apply("head", h_BxSxC)

    def reorder(self, context: Context, permutation_BxD) -> Context:
        """Track `s` becomes old track `permutation[b, s]`. Keys and values of the revealed prefix stay."""
        h_BxDxC = jnp.take_along_axis(context.h_BxDxC, permutation_BxD[..., None], axis=1)
        u_BxDxK = self._apply("token_free_input", h_BxDxC) if self.config.n_causal else None
        return Context(h_BxDxC, u_BxDxK, context.cache)
