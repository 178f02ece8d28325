"""A head that looks for errors in a complete row: one logit a token, on the frozen trunk's hidden vectors.

The remasker `g` of G-Star (arXiv 2510.08369), which fine-tunes a single layer likewise.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.model.bound import HybridModel


class ErrorHead(nn.Module):
    """Norm, one hidden layer, one logit; all in float32.

    Attributes:
        hidden: its width.
    """

    hidden: int

    @nn.compact
    def __call__(self, h_BxDxC: jax.Array) -> jax.Array:
        """Logits `[B, D]`: positive where the token is rather wrong than right."""
        x_BxDxH = nn.Dense(self.hidden, name="up")(nn.RMSNorm(name="norm")(h_BxDxC.astype(jnp.float32)))
        # From zero: at first every token is as good as the other.
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="down")(nn.silu(x_BxDxH))[..., 0]


@flax.struct.dataclass
class ErrorCritic:
    """A trunk with its error head: a critic for `ssmd_jax.sampling.policies.star`.

    Attributes:
        model: the network, as it was when the head was trained.
        params: of the head.
    """

    model: HybridModel
    params: Any

    @property
    def cost(self) -> float:
        """NFE of one evaluation: a trunk pass."""
        return self.model.trunk_cost

    def scores(self, tokens_BxD: jax.Array, lengths_B) -> jax.Array:
        """Error logits of complete rows in sequence order, float32 `[B, D]`; arbitrary on padding."""
        batch, length = tokens_BxD.shape
        positions_BxD = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
        revealed_B = jnp.asarray(lengths_B, jnp.int32)
        h_BxDxC, _, _ = self.model.hidden(tokens_BxD, positions_BxD, revealed_B, lengths_B)
        return error_logits(self.params, h_BxDxC)


def error_logits(params, h_BxDxC: jax.Array) -> jax.Array:
    """The head's logits, `[B, D]`; its width is that of the parameters."""
    return ErrorHead(np.shape(params["up"]["bias"])[0]).apply({"params": params}, h_BxDxC)
