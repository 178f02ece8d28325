"""ESM-2 as a trunk: Lin et al. 2022 (bioRxiv 2022.07.20.500902), as DPLM (arXiv 2402.18567) uses it.

Pre-norm blocks with biases, layer norms, rotary positions and a GELU MLP of four times the width; a head of one dense
layer whose product is tied to the embedding. Ids are those of the vocabulary of the published weights: 32 tokens and
the mask, whose id is 32. So the mask is id `V` already, and no ids are mapped.

Published weights were trained on `<cls> sequence <eos>`. In order space these two stand before the tracks, so that the
tracks' padding stays at the end; their positions are 0 and `length + 1`, and track `k` has `positions[k] + 1`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssmd_jax.model.causal import ACTIVATION_AXES, SpeculativeNetwork, causal_part
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.hybrid import Trunk
from ssmd_jax.model.layers import partitioned, scaled_init, unit_mean_square
from ssmd_jax.model.partitioning import constrain

CLS, PAD, EOS, MASK = 0, 1, 2, 32
NUM_IDS = 33
# Ids 4 to 23 are the 20 standard amino acids, "LAGVSERTIDPKQNFYMHWC"; the model draws nothing else.
FIRST_LETTER, LAST_LETTER = 4, 23
# Added to the logits of all other ids: a probability of 0 in float32, and finite.
NEVER = -1e9
MLP_FACTOR = 4
# Share of masked tokens in ESM-2's training, to which token dropout scales its embeddings: 15 % chosen, 80 % of them
# masked.
TRAINED_MASKED = 0.15 * 0.8

# Blocks, width and heads of the published models.
SIZES = {
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
}


def esm2_config(size: str, **fields) -> HybridConfig:
    """The network of a published ESM-2 with one causal block on it.

    Args:
        size: one of `SIZES`, by the number of the trunk's parameters.
        **fields: of `HybridConfig`, which go before the size's.

    Raises:
        ValueError: for another size.
    """
    if size not in SIZES:
        raise ValueError(f"there is no ESM-2 of size {size!r}; choose one of {', '.join(SIZES)}")
    blocks, width, heads = SIZES[size]
    shape = {"num_tokens": MASK, "trunk": "esm2", "n_noncausal": blocks, "width": width, "num_heads": heads}
    return HybridConfig(**{**shape, **fields})


class LayerNorm(nn.Module):
    """Layer normalisation with scale and bias, epsilon 1e-5, computed in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxDxC: jax.Array) -> jax.Array:
        width = x_BxDxC.shape[-1]
        scale_C = self.param("scale", partitioned(nn.initializers.ones, "embed"), (width,))
        bias_C = self.param("bias", partitioned(nn.initializers.zeros, "embed"), (width,))
        x32_BxDxC = x_BxDxC.astype(jnp.float32)
        centred_BxDxC = x32_BxDxC - jnp.mean(x32_BxDxC, axis=-1, keepdims=True)
        variance_BxDx1 = jnp.mean(jnp.square(centred_BxDxC), axis=-1, keepdims=True)
        normed_BxDxC = centred_BxDxC * jax.lax.rsqrt(variance_BxDx1 + 1e-5)
        return (normed_BxDxC * scale_C[None, None] + bias_C[None, None]).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head attention with biases; `attend(q, k, v)` is the caller's."""

    config: HybridConfig
    out_scale: float

    @nn.compact
    def __call__(self, x_BxDxC: jax.Array, attend) -> jax.Array:
        width, heads, channels = self.config.width, self.config.num_heads, self.config.head_dim
        dtype, zeros = self.config.compute_dtype, nn.initializers.zeros
        qkv_init = partitioned(scaled_init(in_axis=0, out_axis=(1, 2, 3)), "embed", None, "heads", None)
        qkv_Cx3xHxE = self.param("qkv", qkv_init, (width, 3, heads, channels)).astype(dtype)
        bias_3xHxE = self.param("qkv_bias", partitioned(zeros, None, "heads", None), (3, heads, channels))
        out_init = partitioned(scaled_init(self.out_scale, in_axis=(0, 1), out_axis=2), "heads", None, "embed")
        out_HxExC = self.param("out", out_init, (heads, channels, width)).astype(dtype)
        out_bias_C = self.param("out_bias", partitioned(zeros, "embed"), (width,)).astype(dtype)
        qkv_BxDx3xHxE = jnp.einsum("BDC,CTHE->BDTHE", x_BxDxC, qkv_Cx3xHxE) + bias_3xHxE.astype(dtype)[None, None]
        mixed_BxDxHxE = attend(qkv_BxDx3xHxE[:, :, 0], qkv_BxDx3xHxE[:, :, 1], qkv_BxDx3xHxE[:, :, 2])
        mixed_BxDxHxE = constrain(mixed_BxDxHxE, ("batch", None, "heads", None))
        # As in `layers.SelfAttention`.
        return jnp.tensordot(mixed_BxDxHxE, out_HxExC, axes=2) + out_bias_C[None, None]


class GeluMlp(nn.Module):
    """Two layers with biases and an exact GELU between them."""

    config: HybridConfig
    out_scale: float

    @nn.compact
    def __call__(self, x_BxDxC: jax.Array) -> jax.Array:
        width, hidden = self.config.width, MLP_FACTOR * self.config.width
        dtype, zeros = self.config.compute_dtype, nn.initializers.zeros
        widen_CxF = self.param("widen", partitioned(scaled_init(), "embed", "mlp"), (width, hidden)).astype(dtype)
        widen_bias_F = self.param("widen_bias", partitioned(zeros, "mlp"), (hidden,)).astype(dtype)
        down_FxC = self.param("down", partitioned(scaled_init(self.out_scale), "mlp", "embed"), (hidden, width))
        down_bias_C = self.param("down_bias", partitioned(zeros, "embed"), (width,)).astype(dtype)
        hidden_BxDxF = jnp.einsum("BDC,CF->BDF", x_BxDxC, widen_CxF) + widen_bias_F[None, None]
        hidden_BxDxF = constrain(nn.gelu(hidden_BxDxF, approximate=False), ("batch", None, "mlp"))
        return jnp.einsum("BDF,FC->BDC", hidden_BxDxF, down_FxC.astype(dtype)) + down_bias_C[None, None]


class Esm2Block(nn.Module):
    """Pre-norm block of ESM-2."""

    config: HybridConfig

    @nn.compact
    def __call__(self, x_BxDxC: jax.Array, attend, deterministic: bool) -> jax.Array:
        config, dtype = self.config, self.config.compute_dtype
        out_scale = (2 * (config.n_noncausal + config.n_causal)) ** -0.5
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        attention = Attention(config, out_scale, name="attention")
        x_BxDxC = x_BxDxC + drop(attention(LayerNorm(dtype, name="attention_norm")(x_BxDxC), attend))
        mlp = GeluMlp(config, out_scale, name="mlp")
        x_BxDxC = x_BxDxC + drop(mlp(LayerNorm(dtype, name="mlp_norm")(x_BxDxC)))
        return constrain(x_BxDxC, ACTIVATION_AXES)


class Esm2Network(SpeculativeNetwork):
    """ESM-2 and a causal part on it. Draft and target go through ESM-2's own head; see `SpeculativeNetwork`."""

    def setup(self):
        config, width, dtype = self.config, self.config.width, self.config.compute_dtype
        if config.num_tokens != MASK:
            raise ValueError(
                f"model.trunk 'esm2' has {MASK} tokens, got {config.num_tokens}: set data.tokenizer to 'esm2'"
            )
        zeros = nn.initializers.zeros
        # Of the scale that the tied head needs.
        table_init = partitioned(nn.initializers.normal(width**-0.5), "vocab", "embed")
        self.table = self.param("table", table_init, (NUM_IDS, width))
        self.trunk_blocks = Trunk(config, Esm2Block)
        self.final_norm = LayerNorm(dtype)
        self.dense = self.param("dense", partitioned(scaled_init(), "embed", "embed_out"), (width, width))
        self.dense_bias = self.param("dense_bias", partitioned(zeros, "embed_out"), (width,))
        self.head_norm = LayerNorm(dtype)
        self.head_bias = self.param("head_bias", partitioned(zeros, "vocab"), (NUM_IDS,))
        if not config.tied_head:
            self.decoder = self.param("decoder", table_init, (NUM_IDS, width))
        if config.n_causal:
            self.causal = causal_part(config)

    def trunk(self, tokens_BxD, positions_BxD, lengths_B=None, deterministic: bool = True) -> jax.Array:
        """Hidden vectors `h_BxDxC` of the tracks; `<cls>` and `<eos>` are put before them here, and taken off."""
        batch, length = tokens_BxD.shape
        full_lengths_B = jnp.full((batch,), length, jnp.int32) if lengths_B is None else jnp.asarray(lengths_B)
        ends_Bx2 = jnp.broadcast_to(jnp.array([[CLS, EOS]], tokens_BxD.dtype), (batch, 2))
        end_positions_Bx2 = jnp.stack([jnp.zeros_like(full_lengths_B), full_lengths_B + 1], axis=1)
        ids_BxL = jnp.concatenate([ends_Bx2, tokens_BxD], axis=1)
        positions_BxL = jnp.concatenate([end_positions_Bx2.astype(positions_BxD.dtype), positions_BxD + 1], axis=1)
        valid_B = None if lengths_B is None else full_lengths_B + 2
        return self.encode(ids_BxL, positions_BxL, valid_B, deterministic)[:, 2:]

    def encode(self, ids_BxL, positions_BxL, lengths_B=None, deterministic: bool = True) -> jax.Array:
        """Hidden vectors after the last norm, of any ids in any order.

        Args:
            ids_BxL: ids of ESM-2, `<cls>` and `<eos>` among them.
            positions_BxL: where each stands; attention sees differences alone.
            lengths_B: the first so many of each row count, the rest is padding; None where all do.
            deterministic: no dropout.

        Returns:
            `[B, L, C]`; arbitrary but finite on padding.
        """
        x_BxLxC = self._rows(ids_BxL)
        if self.config.token_dropout:
            x_BxLxC = x_BxLxC * token_dropout_scale(ids_BxL, lengths_B)[..., None].astype(x_BxLxC.dtype)
        x_BxLxC = constrain(x_BxLxC, ACTIVATION_AXES)
        return self.final_norm(self.trunk_blocks(x_BxLxC, positions_BxL, lengths_B, deterministic))

    def embed(self, tokens_BxS: jax.Array) -> jax.Array:
        """Rows of the table brought to unit mean square, since a pretrained table may be of any scale, `[B, S, C]`."""
        return unit_mean_square(self._rows(tokens_BxS), self.config.compute_dtype)

    def readout(self, h_BxSxC: jax.Array) -> jax.Array:
        """The head before its product, and a channel of ones that the bias, the kernel's last row, goes with."""
        dtype = self.config.compute_dtype
        x_BxSxC = jnp.einsum("BSC,CK->BSK", h_BxSxC, self.dense.astype(dtype))
        x_BxSxC = self.head_norm(nn.gelu(x_BxSxC + self.dense_bias.astype(dtype)[None, None], approximate=False))
        return jnp.concatenate([x_BxSxC, jnp.ones((*x_BxSxC.shape[:-1], 1), x_BxSxC.dtype)], axis=-1)

    def logits(self, readout_BxSxK: jax.Array) -> jax.Array:
        """Float32 logits `[B, S, V]`; those of all but the 20 standard amino acids are `NEVER`."""
        return self._product(readout_BxSxK, _letters_only(self._kernel()))

    def id_logits(self, h_BxLxC: jax.Array) -> jax.Array:
        """The published head: float32 logits of all 33 ids, `[B, L, 33]`."""
        return self._product(self.readout(h_BxLxC), self._kernel())

    def head_of(self, params) -> jax.Array:
        """See `SpeculativeNetwork.head_of`."""
        return _letters_only(_with_bias(params["table" if self.config.tied_head else "decoder"], params["head_bias"]))

    def _rows(self, ids_BxL: jax.Array) -> jax.Array:
        """Rows of the table, by a product with one-hot vectors."""
        dtype = self.config.compute_dtype
        return jnp.einsum("BLV,VC->BLC", jax.nn.one_hot(ids_BxL, NUM_IDS, dtype=dtype), self.table.astype(dtype))

    def _kernel(self) -> jax.Array:
        return _with_bias(self.table if self.config.tied_head else self.decoder, self.head_bias)

    def _product(self, readout_BxSxK: jax.Array, kernel_KxV: jax.Array) -> jax.Array:
        kernel_KxV = kernel_KxV.astype(self.config.compute_dtype)
        logits_BxSxV = jnp.einsum("BSK,KV->BSV", readout_BxSxK, kernel_KxV, preferred_element_type=jnp.float32)
        return constrain(logits_BxSxV, ("batch", None, None))


def token_dropout_scale(ids_BxL: jax.Array, lengths_B: jax.Array | None) -> jax.Array:
    """What ESM-2 multiplies its embeddings with: 0 at masks, elsewhere `(1 - 0.12) / (1 - share of masks)`.

    As dropout does, it keeps the mean size of what is left; the share counts `<cls>` and `<eos>` among the row's ids.

    Args:
        ids_BxL: ids.
        lengths_B: ids of each row that count; None for all.

    Returns:
        float32 `[B, L]`.
    """
    length = ids_BxL.shape[1]
    valid_B = jnp.full(ids_BxL.shape[:1], length, jnp.int32) if lengths_B is None else lengths_B
    is_mask_BxL = ids_BxL == MASK
    masked_B = jnp.sum(is_mask_BxL & (jnp.arange(length)[None] < valid_B[:, None]), axis=1)
    kept_B = 1.0 - masked_B / valid_B
    return jnp.where(is_mask_BxL, 0.0, ((1.0 - TRAINED_MASKED) / kept_B)[:, None])


def _with_bias(table_VxC: jax.Array, bias_V: jax.Array) -> jax.Array:
    """The head's kernel with its bias as a last row, `[C + 1, 33]`."""
    return jnp.concatenate([table_VxC.T, bias_V[None]], axis=0)


def _letters_only(kernel_KxV: jax.Array) -> jax.Array:
    """The kernel without the mask, and with a bias that rules out all but amino acids, `[C + 1, 32]`."""
    ids_V = jnp.arange(MASK)
    is_letter_V = (ids_V >= FIRST_LETTER) & (ids_V <= LAST_LETTER)
    return jnp.concatenate([kernel_KxV[:-1, :MASK], jnp.where(is_letter_V, kernel_KxV[-1, :MASK], NEVER)[None]], axis=0)
