"""The transformer of masked diffusion language models: Llama's or Qwen2's block without the causal mask.

LLaDA (arXiv 2502.09992) and Dream (arXiv 2508.15487) differ in numbers, in biases and in one shift, which are fields of
the configuration. Parameters are named layer by layer, as in the files they come from. Two are several tensors there,
so that what reads the same vectors is one product: a pass that feeds few positions waits for the weights, and few large
kernels are read faster than many small ones. `qkv` has, for each key head, the G query heads that share it (query head
h has key head h // G), the key and the value; `gate_up` both halves of the MLP.

Devices of the tensor axis share out key heads, each with its own queries, keys and values: that axis must divide K (4
in Dream), and `training/sharding.py::param_shardings` refuses another.

A pass feeds some positions and keeps the keys and values of all: those of the fed positions are written into the
cache, those of the others are read from it. Every cached decoder is a choice of what to feed.

Capitals name axes: B rows, L positions of a sequence, S positions fed, C width, H query heads, K key heads, E channels
of a head, F MLP width, V tokens, P = G + 2 vectors of a key head.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssmd_jax.model.layers import partitioned, rotary_table, rotate, scaled_init
from ssmd_jax.model.partitioning import constrain

ACTIVATION_AXES = ("batch", None, "embed_activation")
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class BidirectionalConfig:
    """Shape and switches of the network.

    Attributes:
        vocab_size: rows of the embedding and columns of the head, the mask token's among them.
        mask_id: the mask token.
        eos_id: end of text, with which answers are padded.
        width: residual width.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads; must divide `num_heads`.
        head_dim: channels of a head, even.
        mlp_width: hidden width of the gated MLP.
        rope_theta: base of the rotary positions.
        rms_eps: added to the mean square in the norms.
        qkv_bias: whether queries, keys and values have biases.
        shifts: whether the vector at position j predicts the token at j + 1 (Dream) and not the one at j (LLaDA).
        max_length: longest sequence that the network was trained on.
        dtype: of computation; softmax, norms, rotations and logits are float32.
        attention: "xla" or "cudnn" (NVIDIA GPUs, bfloat16).
        remat: recompute each block in the backward pass instead of storing its activations.
    """

    vocab_size: int
    mask_id: int
    eos_id: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float
    rms_eps: float
    qkv_bias: bool = False
    shifts: bool = False
    max_length: int = 4096
    dtype: str = "bfloat16"
    attention: str = "xla"
    remat: bool = False

    def __post_init__(self):
        counts = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_width")
        for name in (*counts, "max_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"model.{name} must be a whole number of at least 1, got {value!r}")
        for name in ("mask_id", "eos_id"):
            if not isinstance(getattr(self, name), int) or not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"model.{name} must lie in the vocabulary 0..{self.vocab_size - 1}, got {getattr(self, name)!r}"
                )
        for name in ("rope_theta", "rms_eps"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"model.{name} must be positive and finite, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"model.num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim is {self.head_dim}: rotary positions need an even number")
        for name, allowed in {"dtype": DTYPES, "attention": ATTENTIONS}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError("model.attention 'cudnn' needs model.dtype 'bfloat16'")

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Dtype of activations."""
        return jnp.dtype(self.dtype)


class Norm(nn.Module):
    """Root-mean-square norm: computed in float32, rounded, then scaled, in this order."""

    config: BidirectionalConfig

    @nn.compact
    def __call__(self, x_BxSxC: jax.Array) -> jax.Array:
        scale_C = self.param("scale", partitioned(nn.initializers.ones, "embed"), (self.config.width,))
        x32_BxSxC = x_BxSxC.astype(jnp.float32)
        mean_square_BxSx1 = jnp.mean(jnp.square(x32_BxSxC), axis=-1, keepdims=True)
        dtype = self.config.compute_dtype
        normed_BxSxC = (x32_BxSxC * jax.lax.rsqrt(mean_square_BxSx1 + self.config.rms_eps)).astype(dtype)
        return normed_BxSxC * scale_C.astype(dtype)[None, None]


class Attention(nn.Module):
    """Full attention of the fed positions to all positions, with grouped heads."""

    config: BidirectionalConfig

    @nn.compact
    def __call__(self, x_BxSxC, table, slots_BxS, cached, key_mask_BxL):
        """See `BidirectionalTransformer.hidden`; `cached` is this layer's pair of keys and values, or None."""
        config, dtype = self.config, self.config.compute_dtype
        group = config.num_heads // config.num_kv_heads
        shape = (config.num_kv_heads, group + 2, config.head_dim)
        qkv_init = partitioned(scaled_init(in_axis=0, out_axis=(1, 2, 3)), "embed", "heads", None, None)
        kernel_CxKxPxE = self.param("qkv", qkv_init, (config.width, *shape))
        qkv_BxSxKxPxE = jnp.einsum("BSC,CKPE->BSKPE", x_BxSxC, kernel_CxKxPxE.astype(dtype))
        if config.qkv_bias:
            bias_init = partitioned(nn.initializers.zeros, "heads", None, None)
            bias_KxPxE = self.param("qkv_bias", bias_init, shape)
            qkv_BxSxKxPxE = qkv_BxSxKxPxE + bias_KxPxE.astype(dtype)[None, None]
        q_BxSxHxE = qkv_BxSxKxPxE[..., :group, :].reshape(*x_BxSxC.shape[:2], config.num_heads, config.head_dim)
        q_BxSxHxE = rotate(q_BxSxHxE, table)
        k_BxLxKxE = rotate(qkv_BxSxKxPxE[..., group, :], table)
        v_BxLxKxE = qkv_BxSxKxPxE[..., group + 1, :]
        if cached is not None:
            rows_Bx1 = jnp.arange(x_BxSxC.shape[0])[:, None]
            # A slot past the end belongs to nobody: nothing is written.
            write = lambda into, new: into.at[rows_Bx1, slots_BxS].set(new, mode="drop")
            k_BxLxKxE, v_BxLxKxE = write(cached[0], k_BxLxKxE), write(cached[1], v_BxLxKxE)
        mask = None if key_mask_BxL is None else key_mask_BxL[:, None, None, :]
        if mask is not None and config.attention == "cudnn":
            mask = jnp.broadcast_to(mask, (x_BxSxC.shape[0], 1, x_BxSxC.shape[1], mask.shape[-1]))
        out_BxSxHxE = jax.nn.dot_product_attention(
            q_BxSxHxE, k_BxLxKxE, v_BxLxKxE, mask=mask, implementation=config.attention
        )
        out_BxSxHxE = constrain(out_BxSxHxE, ("batch", None, "heads", None))
        out_scale = (2 * config.num_layers) ** -0.5
        out_init = partitioned(scaled_init(out_scale, in_axis=(0, 1), out_axis=2), "heads", None, "embed")
        out_kernel = self.param("out", out_init, (config.num_heads, config.head_dim, config.width))
        # Contracts heads, then channels, as both lie in memory. An einsum sorts its letters, and E before H would have
        # a compiler that takes the order as given transpose the kernel in each pass.
        return jnp.tensordot(out_BxSxHxE, out_kernel.astype(dtype), axes=2), (k_BxLxKxE, v_BxLxKxE)


class Mlp(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    config: BidirectionalConfig

    @nn.compact
    def __call__(self, x_BxSxC: jax.Array) -> jax.Array:
        config, dtype = self.config, self.config.compute_dtype
        gate_up_init = partitioned(scaled_init(out_axis=(1, 2)), "embed", None, "mlp")
        kernel_Cx2xF = self.param("gate_up", gate_up_init, (config.width, 2, config.mlp_width))
        gate_up_BxSx2xF = jnp.einsum("BSC,CGF->BSGF", x_BxSxC, kernel_Cx2xF.astype(dtype))
        hidden_BxSxF = nn.silu(gate_up_BxSx2xF[:, :, 0]) * gate_up_BxSx2xF[:, :, 1]
        hidden_BxSxF = constrain(hidden_BxSxF, ("batch", None, "mlp"))
        down_init = partitioned(scaled_init((2 * config.num_layers) ** -0.5), "mlp", "embed")
        down_FxC = self.param("down", down_init, (config.mlp_width, config.width))
        return jnp.einsum("BSF,FC->BSC", hidden_BxSxF, down_FxC.astype(dtype))


class Block(nn.Module):
    """Pre-norm block."""

    config: BidirectionalConfig

    @nn.compact
    def __call__(self, x_BxSxC, table, slots_BxS, cached, key_mask_BxL):
        normed_BxSxC = Norm(self.config, name="attention_norm")(x_BxSxC)
        attended_BxSxC, cached = Attention(self.config, name="attention")(
            normed_BxSxC, table, slots_BxS, cached, key_mask_BxL
        )
        x_BxSxC = x_BxSxC + attended_BxSxC
        x_BxSxC = x_BxSxC + Mlp(self.config, name="mlp")(Norm(self.config, name="mlp_norm")(x_BxSxC))
        return constrain(x_BxSxC, ACTIVATION_AXES), cached


class BidirectionalTransformer(nn.Module):
    """Embedding, blocks, norm and head. Tokens are in sequence order."""

    config: BidirectionalConfig

    def setup(self):
        config = self.config
        embedding_init = partitioned(nn.initializers.normal(1.0), "vocab", "embed")
        self.embedding = self.param("embedding", embedding_init, (config.vocab_size, config.width))
        block = nn.remat(Block) if config.remat else Block
        self.blocks = [block(config) for _ in range(config.num_layers)]
        self.final_norm = Norm(config)
        self.head = self.param("head", partitioned(scaled_init(), "embed", "vocab"), (config.width, config.vocab_size))

    def hidden(self, tokens_BxS, slots_BxS=None, cache=None, key_mask_BxL=None) -> tuple[jax.Array, tuple]:
        """Vectors of the fed positions before the head, and the cache after the pass.

        Args:
            tokens_BxS: int32 tokens of the fed positions.
            slots_BxS: their positions in the sequence, `L` for a slot that feeds nothing; None for all positions.
            cache: a pair of keys and values `[B, L, K, E]` for each layer, keys rotated; None (with `slots_BxS` None)
                makes it anew.
            key_mask_BxL: False at padding, which nobody attends to; None where there is none. Positions are counted
                from a row's first token that is no padding.

        Returns:
            `[B, S, C]` in the dtype of computation, normed, and the cache.
        """
        if key_mask_BxL is None:
            length = tokens_BxS.shape[1] if cache is None else cache[0][0].shape[1]
            position_BxL = jnp.broadcast_to(jnp.arange(length)[None], (tokens_BxS.shape[0], length))
        else:
            position_BxL = jnp.maximum(jnp.cumsum(key_mask_BxL, axis=1) - 1, 0)
        if slots_BxS is None:
            position_BxS, cache = position_BxL, None
        else:
            position_BxS = jnp.take_along_axis(position_BxL, slots_BxS, axis=1, mode="clip")
        return self._through_blocks(tokens_BxS, position_BxS, slots_BxS, cache, key_mask_BxL)

    def encode(self, tokens_BxL, positions_BxL, key_mask_BxL=None) -> jax.Array:
        """Vectors of whole sequences in any order, `[B, L, C]` in the dtype of computation, normed.

        Args:
            tokens_BxL: int32 tokens.
            positions_BxL: where each stands; attention sees differences alone.
            key_mask_BxL: as in `hidden`; vectors of padding are arbitrary but finite.
        """
        return self._through_blocks(tokens_BxL, positions_BxL, None, None, key_mask_BxL)[0]

    def _through_blocks(self, tokens_BxS, position_BxS, slots_BxS, cache, key_mask_BxL) -> tuple[jax.Array, tuple]:
        config = self.config
        table = rotary_table(position_BxS, config.head_dim, config.rope_theta)
        x_BxSxC = jnp.take(self.embedding, tokens_BxS, axis=0, mode="clip").astype(config.compute_dtype)
        x_BxSxC = constrain(x_BxSxC, ACTIVATION_AXES)
        layers = []
        for index, block in enumerate(self.blocks):
            cached = None if cache is None else cache[index]
            x_BxSxC, cached = block(x_BxSxC, table, slots_BxS, cached, key_mask_BxL)
            layers.append(cached)
        return self.final_norm(x_BxSxC), tuple(layers)

    def logits(self, h_BxTxC: jax.Array) -> jax.Array:
        """float32 `[B, T, V]` of vectors that `hidden` gave, the mask token's column included; not shifted."""
        kernel_CxV = self.head.astype(self.config.compute_dtype)
        logits_BxTxV = jnp.einsum("BTC,CV->BTV", h_BxTxC, kernel_CxV, preferred_element_type=jnp.float32)
        return constrain(logits_BxTxV, ("batch", None, "vocab"))

    def __call__(self, tokens_BxL: jax.Array, key_mask_BxL: jax.Array | None = None) -> jax.Array:
        """float32 logits `[B, L, V]` of whole sequences, not shifted."""
        return self.logits(self.hidden(tokens_BxL, key_mask_BxL=key_mask_BxL)[0])
