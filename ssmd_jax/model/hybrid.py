"""The hybrid transformer: a bidirectional trunk and its head, made to go with the causal part (METHOD.md section 3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssmd_jax.model.causal import ACTIVATION_AXES, Block, SpeculativeNetwork, causal_part
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.layers import Embedding, RMSNorm, full_attention, partitioned, rotary_table, rotate, scaled_init
from ssmd_jax.model.partitioning import constrain


class Trunk(nn.Module):
    """`n_noncausal` bidirectional blocks of one kind, scanned."""

    config: HybridConfig
    block: type[nn.Module] = Block

    @nn.compact
    def __call__(self, x_BxDxC, positions_BxD, lengths_B, deterministic):
        config = self.config
        table = rotary_table(positions_BxD, config.head_dim)

        def attend(q, k, v):
            q, k = rotate(q, table), rotate(k, table)
            return full_attention(q, k, v, lengths_B, is_causal=False, implementation=config.attention)

        def body(block, x_BxDxC, _):
            return block(x_BxDxC, attend, deterministic), None

        if config.remat:
            body = nn.remat(body, prevent_cse=False)
        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=config.n_noncausal,
            unroll=config.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.block(config, name="blocks"), x_BxDxC, None)[0]


class HybridTransformer(SpeculativeNetwork):
    """Trunk, causal part and head trained together: the draft is `softmax(head(norm(h)))`."""

    def setup(self):
        config, dtype = self.config, self.config.compute_dtype
        self.embedding = Embedding(config.num_tokens, config.padded_embeddings, config.width, dtype, config.one_hot)
        self.trunk_blocks = Trunk(config)
        self.final_norm = RMSNorm(dtype)
        self.head_kernel = self.param(
            "head", partitioned(scaled_init(), "embed", "vocab"), (config.width, config.padded_tokens)
        )
        if config.n_causal:
            self.causal = causal_part(config)

    def trunk(self, tokens_BxD, positions_BxD, lengths_B=None, deterministic: bool = True) -> jax.Array:
        """Hidden vectors `h_BxDxC` from tokens whose masked tracks hold the mask id."""
        x_BxDxC = constrain(self.embed(tokens_BxD), ACTIVATION_AXES)
        return self.trunk_blocks(x_BxDxC, positions_BxD, lengths_B, deterministic)

    def embed(self, tokens_BxS: jax.Array) -> jax.Array:
        """The embedding that the trunk reads too, `[B, S, C]`."""
        return self.embedding(tokens_BxS)

    def readout(self, h_BxSxC: jax.Array) -> jax.Array:
        """`norm(h)`, `[B, S, C]`."""
        return self.final_norm(h_BxSxC)

    def logits(self, readout_BxSxK: jax.Array) -> jax.Array:
        """Float32 logits `[B, S, V]`, without the columns that are padding."""
        kernel_CxV = self.head_kernel.astype(self.config.compute_dtype)
        logits_BxSxV = jnp.einsum("BSC,CV->BSV", readout_BxSxK, kernel_CxV, preferred_element_type=jnp.float32)
        return constrain(logits_BxSxV, ("batch", None, "vocab"))[..., : self.config.num_tokens]

    def head_of(self, params) -> jax.Array:
        """See `SpeculativeNetwork.head_of`."""
        return params["head"]
