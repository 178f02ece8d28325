"""Layers of the networks: norm, rotary positions, attention, MLP, embedding.

Capitals name axes: B batch, D tracks, S tracks of a window, C width, H heads, E channels of a head, F MLP width,
V tokens. Parameters are float32, computation is in `dtype`, softmax and logits are float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssmd_jax.model.glu_hopper import FEWEST_ROWS, gated_linear_unit
from ssmd_jax.model.partitioning import constrain

# Up to this many tokens an embedding is a product with one-hot vectors: the gradient of a gather from a small table
# is a scatter-add that serialises on the GPU (METHOD.md section 8).
ONE_HOT_LIMIT = 512


def scaled_init(scale: float = 1.0, in_axis=0, out_axis=-1):
    """Normal initialiser with standard deviation `scale / sqrt(fan_in)`."""
    return nn.initializers.variance_scaling(scale**2, "fan_in", "normal", in_axis=in_axis, out_axis=out_axis)


def partitioned(init, *logical_axes):
    """An initialiser whose parameter carries its logical axes."""
    return nn.with_logical_partitioning(init, logical_axes)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale, computed in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxDxC: jax.Array) -> jax.Array:
        scale_C = self.param("scale", partitioned(nn.initializers.ones, "embed"), (x_BxDxC.shape[-1],))
        x32_BxDxC = x_BxDxC.astype(jnp.float32)
        mean_square_BxDx1 = jnp.mean(jnp.square(x32_BxDxC), axis=-1, keepdims=True)
        return (x32_BxDxC * jax.lax.rsqrt(mean_square_BxDx1 + 1e-6) * scale_C[None, None]).astype(self.dtype)


def unit_mean_square(x_BxDxC: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Vectors brought to unit mean square, as a causal part wants rows of a table of any scale; in `dtype`."""
    x32_BxDxC = x_BxDxC.astype(jnp.float32)
    mean_square_BxDx1 = jnp.mean(jnp.square(x32_BxDxC), axis=-1, keepdims=True)
    return (x32_BxDxC * jax.lax.rsqrt(mean_square_BxDx1 + 1e-12)).astype(dtype)


def rotary_table(positions_BxD: jax.Array, head_dim: int, base: float = 10_000.0) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary position embeddings (RoFormer, arXiv 2104.09864), computed once a pass.

    Args:
        positions_BxD: int positions; -1 is allowed.
        head_dim: channels of a head, even.
        base: longest wavelength, over 2 pi.

    Returns:
        Two float32 arrays `[B, D, head_dim / 2]`.
    """
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BxD.astype(jnp.float32)[..., None] * frequency[None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxDxHxE: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates channel pairs `(e, e + E/2)` of every head by the angles of the track."""
    cos, sin = (part[:, :, None, :] for part in table)
    first, second = jnp.split(x_BxDxHxE.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxDxHxE.dtype)


class Embedding(nn.Module):
    """Embedding of `num_tokens` tokens and of the mask, whose id is `num_tokens`; rows behind it are padding.

    A one-hot product for small vocabularies, a gather otherwise.
    """

    num_tokens: int
    num_embeddings: int
    width: int
    dtype: jnp.dtype
    one_hot: bool

    @nn.compact
    def __call__(self, tokens_BxD: jax.Array) -> jax.Array:
        init = partitioned(nn.initializers.normal(1.0), "vocab", "embed")
        table_VxC = self.param("table", init, (self.num_embeddings, self.width))
        if self.one_hot:
            hot_BxDxV = jax.nn.one_hot(tokens_BxD, self.num_embeddings, dtype=self.dtype)
            return jnp.einsum("BDV,VC->BDC", hot_BxDxV, table_VxC.astype(self.dtype))
        # The gather's gradient adds rows of the table at once, and additions to one row wait for each other. Half of
        # all tracks hold the mask: its row is selected, so that its gradient is a sum, and the zeros that the masked
        # tracks then add are spread over the table. In float32, where the GPU adds without a retry.
        # A table whose columns are sharded is made whole first, and its gradient taken apart last: the compiler would
        # else exchange vectors of all tracks of the whole batch.
        table_VxC = constrain(table_VxC, ("vocab", "embed_activation"))
        is_mask_BxD = tokens_BxD == self.num_tokens
        spread_BxD = jax.lax.broadcasted_iota(jnp.int32, tokens_BxD.shape, 1) % self.num_embeddings
        gathered_BxDxC = jnp.take(table_VxC, jnp.where(is_mask_BxD, spread_BxD, tokens_BxD), axis=0, mode="clip")
        embedded_BxDxC = jnp.where(is_mask_BxD[..., None], table_VxC[None, None, self.num_tokens], gathered_BxDxC)
        return embedded_BxDxC.astype(self.dtype)


class Mlp(nn.Module):
    """Gated MLP (SwiGLU, arXiv 2002.05202); for many rows "hopper" makes its first half one kernel."""

    mlp_width: int
    dtype: jnp.dtype
    out_scale: float
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x_BxDxC: jax.Array) -> jax.Array:
        width = x_BxDxC.shape[-1]
        up_init = partitioned(scaled_init(), "embed", None, "mlp")
        up_Cx2xF = self.param("up", up_init, (width, 2, self.mlp_width))
        down_FxC = self.param("down", partitioned(scaled_init(self.out_scale), "mlp", "embed"), (self.mlp_width, width))
        up_Cx2xF = up_Cx2xF.astype(self.dtype)
        x_MxC = x_BxDxC.reshape(-1, width)
        if self.implementation == "hopper" and x_MxC.shape[0] >= FEWEST_ROWS:
            hidden_MxF = gated_linear_unit(x_MxC, up_Cx2xF)
            hidden_BxDxF = hidden_MxF.reshape(*x_BxDxC.shape[:-1], self.mlp_width)
        else:
            gate_up = jnp.einsum("BDC,CGF->BDGF", x_BxDxC, up_Cx2xF)
            hidden_BxDxF = nn.silu(gate_up[:, :, 0]) * gate_up[:, :, 1]
        hidden_BxDxF = constrain(hidden_BxDxF, ("batch", None, "mlp"))
        return jnp.einsum("BDF,FC->BDC", hidden_BxDxF, down_FxC.astype(self.dtype))


class SelfAttention(nn.Module):
    """Projections of multi-head attention: queries, keys, values, and the output.

    The attention between them is the caller's, since the trunk, the causal part and its window attend differently.
    """

    num_heads: int
    head_dim: int
    dtype: jnp.dtype
    out_scale: float

    @nn.compact
    def __call__(self, x_BxDxC: jax.Array, attend) -> jax.Array:
        """Applies `attend(q, k, v) -> [B, D, H, E]` to the projections of `x`, and projects back to `[B, D, C]`."""
        width = x_BxDxC.shape[-1]
        qkv_init = partitioned(scaled_init(in_axis=0, out_axis=(1, 2, 3)), "embed", None, "heads", None)
        kernel = self.param("qkv", qkv_init, (width, 3, self.num_heads, self.head_dim))
        out_init = partitioned(scaled_init(self.out_scale, in_axis=(0, 1), out_axis=2), "heads", None, "embed")
        out_kernel = self.param("out", out_init, (self.num_heads, self.head_dim, width))
        kernel = kernel.astype(self.dtype)
        # Queries and keys in one product, since the rotation that follows reads and writes them anyway; values in one
        # of their own, whose output the attention kernel can take as it lies in memory.
        q_k = jnp.einsum("BDC,CTHE->BDTHE", x_BxDxC, kernel[:, :2])
        v_BxDxHxE = jnp.einsum("BDC,CHE->BDHE", x_BxDxC, kernel[:, 2])
        out_BxDxHxE = attend(q_k[:, :, 0], q_k[:, :, 1], v_BxDxHxE)
        out_BxDxHxE = constrain(out_BxDxHxE, ("batch", None, "heads", None))
        # Not einsum, which sorts the axes that it sums over: the CPU would copy the kernel, transposed, in every pass.
        return jnp.tensordot(out_BxDxHxE, out_kernel.astype(self.dtype), axes=2)


def full_attention(q, k, v, lengths_B: jax.Array | None, *, is_causal: bool, implementation: str | None) -> jax.Array:
    """Fused attention over all tracks, `[B, D, H, E]` each.

    No mask is built: the trunk attends to everything, the causal part takes the kernels' own causal path, and
    `lengths_B` (None where all rows are full) becomes key lengths.
    """
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=is_causal, key_value_seq_lengths=lengths_B, implementation=implementation
    )


def window_attention(q_BxSxHxE, k_BxSxHxE, v_BxSxHxE, prefix_k_BxHxDxE, prefix_v_BxHxDxE, start_B) -> jax.Array:
    """Causal attention of window tracks `start .. start+S-1` to the cached tracks before `start` and to themselves.

    One softmax runs over the two blocks of scores. Every row has at least itself to attend to, so that no row is
    fully masked, `start = 0` included.

    Args:
        q_BxSxHxE, k_BxSxHxE, v_BxSxHxE: the window's queries, keys and values.
        prefix_k_BxHxDxE, prefix_v_BxHxDxE: keys and values of all tracks, as products by head read them; those at or
            past `start` are masked but must be finite.
        start_B: first track of the window.

    Returns:
        `[B, S, H, E]` in the dtype of `q`.
    """
    scale = q_BxSxHxE.shape[-1] ** -0.5
    size, length = q_BxSxHxE.shape[1], prefix_k_BxHxDxE.shape[2]
    by_head = lambda x_BxSxHxE: jnp.swapaxes(x_BxSxHxE, 1, 2)
    q_BxHxSxE = by_head(q_BxSxHxE)
    scores = lambda k: jnp.einsum("BHSE,BHTE->BHST", q_BxHxSxE, k, preferred_element_type=jnp.float32) * scale
    in_prefix_BxD = jnp.arange(length)[None] < start_B[:, None]
    causal_SxS = jnp.tril(jnp.ones((size, size), bool))
    prefix_scores = jnp.where(in_prefix_BxD[:, None, None], scores(prefix_k_BxHxDxE), -1e30)
    window_scores = jnp.where(causal_SxS[None, None], scores(by_head(k_BxSxHxE)), -1e30)
    top = jnp.maximum(jnp.max(prefix_scores, axis=-1, keepdims=True), jnp.max(window_scores, axis=-1, keepdims=True))
    prefix_w, window_w = jnp.exp(prefix_scores - top), jnp.exp(window_scores - top)
    total_BxHxSx1 = jnp.sum(prefix_w, axis=-1, keepdims=True) + jnp.sum(window_w, axis=-1, keepdims=True)
    mix = lambda w, v: jnp.einsum("BHST,BHTE->BHSE", w.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out_BxHxSxE = mix(prefix_w, prefix_v_BxHxDxE) + mix(window_w, by_head(v_BxSxHxE))
    return by_head(out_BxHxSxE / total_BxHxSx1).astype(q_BxSxHxE.dtype)
