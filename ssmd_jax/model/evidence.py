"""A causal part that adds evidence to a trunk's vectors (METHOD.md section 3, "Evidence").

The trunk has seen the revealed prefix, and all that it makes of it is in `h`. What a track of the window is still to be
told is what stands in the tracks that were drawn since. So the causal part looks at these alone: each new track is a
piece of evidence, a gated product of its token and its `h`; a track to predict weighs every piece before it, and the
sum moves its own `h`. Weights are sigmoids and not a softmax, so that pieces add up, and no evidence is 0: on the
window's first track the target is the draft, whatever was learnt.

Nothing is attended to before the window, and no keys are cached. A sum over many more pieces than it was taught with
(`loss.teacher_span`) is a guess: windows should not be wider.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.layers import RMSNorm, partitioned, rotary_table, rotate, scaled_init

# A window has up to some sixty pieces, none of which is weighed against the others: at the start each counts little,
# sigmoid(-2) of it, and the sum is brought to the size of one vector. Without both a training at usual rates diverges.
START_BIAS = -2.0
SUM_SCALE = 0.3


class EvidencePart(nn.Module):
    """Pieces of evidence, their weights, and what their sum does to `h`; two maps of the sum start at zero.

    With `n` the normed `h`, `e` the token's embedding, `j < k` the new tracks before track `k`:

        f_j = silu(A e_j + B n_j) * (A' e_j + B' n_j)
        s_k = 0.3 sum_j sigmoid(q(n_k) . k(f_j) / sqrt(E) + b) v(f_j)
        output_k = O (silu(G n_k + G' s_k) * M s_k) + P s_k
    """

    config: HybridConfig

    def setup(self):
        width, heads, channels = self.config.width, self.config.num_heads, self.config.head_dim
        square = partitioned(scaled_init(), "embed", "embed_out")
        pair = partitioned(scaled_init(out_axis=(1, 2)), "embed", None, "embed_out")
        by_head = partitioned(scaled_init(in_axis=0, out_axis=(1, 2)), "embed", "heads", None)
        zeros = partitioned(nn.initializers.zeros, "embed", "embed_out")
        self.input_norm = RMSNorm(self.config.compute_dtype)
        self.token_up = self.param("token_up", pair, (width, 2, width))
        self.context_up = self.param("context_up", pair, (width, 2, width))
        self.query = self.param("query", by_head, (width, heads, channels))
        self.key = self.param("key", by_head, (width, heads, channels))
        self.value = self.param("value", by_head, (width, heads, channels))
        self.weight_bias = self.param(
            "weight_bias", partitioned(nn.initializers.constant(START_BIAS), "heads"), (heads,)
        )
        self.gate = self.param("gate", square, (width, width))
        self.gate_sum = self.param("gate_sum", square, (width, width))
        self.mix = self.param("mix", square, (width, width))
        self.output = self.param("output", zeros, (width, width))
        self.shift = self.param("shift", zeros, (width, width))

    def token_free_input(self, h_BxDxC: jax.Array) -> jax.Array:
        """What no token enters, `[B, D, 4 C]`: the context's half of a piece (two parts), the query, and the gate."""
        normed_BxDxC = self.input_norm(h_BxDxC)
        context_BxDx2xC = jnp.einsum("BDC,CTK->BDTK", normed_BxDxC, self._cast(self.context_up))
        query_BxDxHxE = jnp.einsum("BDC,CHE->BDHE", normed_BxDxC, self._cast(self.query))
        gate_BxDxC = normed_BxDxC @ self._cast(self.gate)
        flat = lambda x: x.reshape(*h_BxDxC.shape[:2], -1)
        return jnp.concatenate([flat(context_BxDx2xC), flat(query_BxDxHxE), gate_BxDxC], axis=-1)

    def output_of(
        self,
        u_BxQx4C: jax.Array,
        positions_BxQ: jax.Array,
        evidence_u_BxTx4C: jax.Array,
        embedded_BxTxC: jax.Array,
        evidence_positions_BxT: jax.Array,
        sees_BxQxT: jax.Array,
    ) -> jax.Array:
        """What is added to `h` of the tracks to predict, `[B, Q, C]`.

        Args:
            u_BxQx4C: `token_free_input` at the tracks to predict.
            positions_BxQ: where they stand.
            evidence_u_BxTx4C: `token_free_input` at the tracks that give evidence.
            embedded_BxTxC: embedding of their tokens.
            evidence_positions_BxT: where they stand.
            sees_BxQxT: bool, which of them a track to predict is told of; broadcast over B.
        """
        width = self.config.width
        channels, dtype = self.config.head_dim, self.config.compute_dtype
        by_head = lambda x: x.reshape(*x.shape[:2], -1, channels)
        token_BxTx2xC = jnp.einsum("BTC,CGK->BTGK", embedded_BxTxC, self._cast(self.token_up))
        piece_BxTx2xC = token_BxTx2xC + evidence_u_BxTx4C[..., : 2 * width].reshape(token_BxTx2xC.shape)
        piece_BxTxC = nn.silu(piece_BxTx2xC[:, :, 0]) * piece_BxTx2xC[:, :, 1]
        key_BxTxHxE = jnp.einsum("BTC,CHE->BTHE", piece_BxTxC, self._cast(self.key))
        value_BxTxHxE = jnp.einsum("BTC,CHE->BTHE", piece_BxTxC, self._cast(self.value))
        key_BxTxHxE = rotate(key_BxTxHxE, rotary_table(evidence_positions_BxT, channels))
        query_BxQxHxE = rotate(by_head(u_BxQx4C[..., 2 * width : 3 * width]), rotary_table(positions_BxQ, channels))
        scores_BxHxQxT = jnp.einsum("BQHE,BTHE->BHQT", query_BxQxHxE, key_BxTxHxE, preferred_element_type=jnp.float32)
        weights_BxHxQxT = nn.sigmoid(scores_BxHxQxT * channels**-0.5 + self.weight_bias[None, :, None, None])
        weights_BxHxQxT = jnp.where(sees_BxQxT[:, None], weights_BxHxQxT, 0.0).astype(dtype)
        sum_BxQxHxE = jnp.einsum("BHQT,BTHE->BQHE", weights_BxHxQxT, value_BxTxHxE, preferred_element_type=jnp.float32)
        sum_BxQxC = (SUM_SCALE * sum_BxQxHxE).astype(dtype).reshape(*u_BxQx4C.shape[:2], width)
        gate_BxQxC = nn.silu(u_BxQx4C[..., 3 * width :] + sum_BxQxC @ self._cast(self.gate_sum))
        gated_BxQxC = gate_BxQxC * (sum_BxQxC @ self._cast(self.mix))
        return gated_BxQxC @ self._cast(self.output) + sum_BxQxC @ self._cast(self.shift)

    def full(self, u_BxDx4C, embedded_BxDxC, positions_BxD, seen_BxD) -> jax.Array:
        """All tracks at once: each is told of the tracks before it that the trunk has not seen."""
        length = positions_BxD.shape[1]
        before_DxD = jnp.tril(jnp.ones((length, length), bool), -1)
        sees_BxDxD = before_DxD[None] & ~seen_BxD[:, None, :]
        return self.output_of(u_BxDx4C, positions_BxD, u_BxDx4C, embedded_BxDxC, positions_BxD, sees_BxDxD)

    def window(self, u_BxSx4C, embedded_BxSxC, positions_BxS) -> jax.Array:
        """The window's tracks alone, the first of which is the first that the trunk has not seen."""
        size = positions_BxS.shape[1]
        sees_1xSxS = jnp.tril(jnp.ones((size, size), bool), -1)[None]
        return self.output_of(u_BxSx4C, positions_BxS, u_BxSx4C, embedded_BxSxC, positions_BxS, sees_1xSxS)

    def _cast(self, kernel: jax.Array) -> jax.Array:
        return kernel.astype(self.config.compute_dtype)
