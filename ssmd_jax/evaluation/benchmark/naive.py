"""The straightforward model: everything on all tracks, every time. What the fast one is compared with."""

import flax
import jax
import jax.numpy as jnp

from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.hybrid import HybridTransformer


def _window(x_BxDxV: jax.Array, start_B: jax.Array, size: int) -> jax.Array:
    # Without the barrier a compiler may learn to compute the window alone, and the naive model would not be naive.
    x_BxDxV = jax.lax.optimization_barrier(x_BxDxV)
    index_BxS = jnp.minimum(start_B[:, None] + jnp.arange(size)[None], x_BxDxV.shape[1] - 1)
    return jnp.take_along_axis(x_BxDxV, index_BxS[..., None], axis=1)


@flax.struct.dataclass
class NaiveModel(HybridModel):
    """Satisfies `ssmd_jax.sampling.interface.SpeculativeModel` with the law of `HybridModel`, at full cost.

    Logits of all `D` tracks are computed and then sliced; a verify round runs the causal part over all tracks, keys
    and values of the revealed prefix included. The context is `h_BxDxC`.

    Attributes:
        form: static, tells its programs from the fast model's: JAX compares tree structures by their static fields and
            not by their classes, and may take a program that it traced for the one for the other's.
    """

    form: str = flax.struct.field(pytree_node=False, default="naive")

    def trunk(self, tokens_BxD, positions_BxD, num_revealed_B, lengths_B) -> jax.Array:
        """Hidden vectors from the revealed prefix and masks, and nothing of the causal part."""
        return self.hidden(tokens_BxD, positions_BxD, num_revealed_B, lengths_B)[0]

    def draft_logits(self, context, start_B, size: int) -> jax.Array:
        """A window of the draft logits of all tracks."""
        return _window(self._apply(HybridTransformer.head, context), start_B, size)

    def target_logits(self, context, tokens_BxD, positions_BxD, start_B, size: int) -> jax.Array:
        """A window of the target logits of all tracks. Padding comes last, where no track before it looks."""
        h_BxDxC = context
        if self.config.n_causal:
            u_BxDxK = self._apply(HybridTransformer.token_free_input, h_BxDxC)
            seen_BxD = jnp.arange(tokens_BxD.shape[1])[None] < start_B[:, None]
            inputs = (h_BxDxC, u_BxDxK, tokens_BxD, positions_BxD)
            h_BxDxC, _ = self._apply(HybridTransformer.causal_full, *inputs, None, True, seen_BxD)
        return _window(self._apply(HybridTransformer.head, h_BxDxC), start_B, size)

    def reorder(self, context, permutation_BxD):
        """Track `s` becomes old track `permutation[b, s]`."""
        return jnp.take_along_axis(context, permutation_BxD[..., None], axis=1)
