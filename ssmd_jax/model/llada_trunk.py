"""LLaDA (arXiv 2502.09992) as a trunk: a causal part on the network of `model/bidirectional.py`.

LLaDA predicts the token at the masked position itself, as our trunks do: track `k` is fed at `positions[k]`, and its
vector behind the last norm is `h_k`, which LLaDA's own head reads. Ids are those of the published vocabulary, where the
mask is one of many special tokens; in order space the mask is id `V`, the number of the tokenizer's tokens, and becomes
LLaDA's where the trunk reads it. What is never drawn has no probability: text to train on must not hold it.

Weights come from a folder as Hugging Face publishes it (`model/pretrained.py`).
"""

import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssmd_jax.model import pretrained
from ssmd_jax.model.bidirectional import BidirectionalConfig, BidirectionalTransformer
from ssmd_jax.model.causal import SpeculativeNetwork, causal_part
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.layers import unit_mean_square
from ssmd_jax.model.partitioning import constrain

# Added to the logits of ids that are never drawn: a probability of 0 in float32, finite, and exact in bfloat16.
NEVER = -(2.0**30)
# Channels of ones that carry it in the head's product: as many as keep its sides divisible, for fast kernels and for
# the devices that share the head's rows.
RULE_CHANNELS = 64


def trunk_config(config: HybridConfig) -> BidirectionalConfig:
    """LLaDA's configuration for the trunk of a network."""
    mask_id = config.mask_id if config.vocab_size else config.num_tokens
    return BidirectionalConfig(
        vocab_size=config.padded_embeddings,
        mask_id=mask_id,
        # The network does not read it, and a trunk without one has it nowhere else.
        eos_id=max(config.eos_id, 0),
        width=config.width,
        num_layers=config.n_noncausal,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads or config.num_heads,
        head_dim=config.head_dim,
        mlp_width=config.hidden,
        rope_theta=config.rope_theta,
        rms_eps=config.rms_eps,
        dtype=config.dtype,
        attention=config.attention,
        remat=config.remat,
    )


def is_drawn(config: HybridConfig) -> jax.Array:
    """Which of the head's columns are tokens that may be drawn, bool `[columns]`."""
    trunk = trunk_config(config)
    ids_V = jnp.arange(trunk.vocab_size)
    is_text_V = (ids_V < config.special_from) | (ids_V == config.eos_id) if config.special_from else ids_V >= 0
    return is_text_V & (ids_V != trunk.mask_id) & (ids_V < config.num_tokens)


class LladaNetwork(SpeculativeNetwork):
    """LLaDA and a causal part on it. Draft and target go through LLaDA's own head; see `SpeculativeNetwork`."""

    def setup(self):
        self.network = BidirectionalTransformer(trunk_config(self.config))
        if self.config.n_causal:
            self.causal = causal_part(self.config)

    def trunk(self, tokens_BxD, positions_BxD, lengths_B=None, deterministic: bool = True) -> jax.Array:
        """Hidden vectors `h_BxDxC` behind the last norm; there is no dropout in it."""
        key_mask_BxD = None if lengths_B is None else jnp.arange(tokens_BxD.shape[1])[None] < lengths_B[:, None]
        return self.network.encode(self._ids(tokens_BxD), positions_BxD, key_mask_BxD)

    def embed(self, tokens_BxS: jax.Array) -> jax.Array:
        """Rows of LLaDA's embedding brought to unit mean square, `[B, S, C]`."""
        rows_BxSxC = jnp.take(self.network.embedding, self._ids(tokens_BxS), axis=0, mode="clip")
        return unit_mean_square(rows_BxSxC, self.config.compute_dtype)

    def readout(self, h_BxSxC: jax.Array) -> jax.Array:
        """`h` and the channels of ones that the rule on what is drawn goes with, `[B, S, C + 64]`."""
        ones = jnp.ones((*h_BxSxC.shape[:-1], RULE_CHANNELS), h_BxSxC.dtype)
        return jnp.concatenate([h_BxSxC, ones], axis=-1)

    def logits(self, readout_BxSxK: jax.Array) -> jax.Array:
        """Float32 logits `[B, S, V]`; those of ids that are never drawn are `NEVER`, about."""
        # Not by the kernel of `head_of`: samplers would write it anew for every pass.
        logits_BxSxV = self.network.logits(readout_BxSxK[..., : self.config.width])
        rule_V = jnp.where(is_drawn(self.config), 0.0, NEVER)
        return (logits_BxSxV + rule_V[None, None])[..., : self.config.num_tokens]

    def head_of(self, params) -> jax.Array:
        """See `SpeculativeNetwork.head_of`."""
        head_CxV = params["network"]["head"]
        rule_V = jnp.where(is_drawn(self.config), 0.0, NEVER / RULE_CHANNELS).astype(head_CxV.dtype)
        rule_RxV = jnp.broadcast_to(rule_V[None], (RULE_CHANNELS, rule_V.shape[0]))
        return constrain(jnp.concatenate([head_CxV, rule_RxV]), ("embed", "vocab"))

    def _ids(self, tokens_BxD: jax.Array) -> jax.Array:
        """LLaDA's ids: those of the tokenizer, but for the mask."""
        return jnp.where(tokens_BxD == self.config.num_tokens, self.network.config.mask_id, tokens_BxD)


def read_fields(folder: os.PathLike | str) -> dict[str, Any]:
    """The fields of `HybridConfig` that a folder's `config.json` describes, the causal part's apart.

    Raises:
        ValueError: where there is none, or it describes another network than LLaDA's.
    """
    published = pretrained.read_config(folder)
    if published.shifts:
        raise ValueError(f"{folder} holds no LLaDA: its network predicts the token behind each position")
    same_heads = published.num_kv_heads == published.num_heads
    return {
        "trunk": "llada",
        "n_noncausal": published.num_layers,
        "width": published.width,
        "num_heads": published.num_heads,
        "num_kv_heads": 0 if same_heads else published.num_kv_heads,
        "mlp_width": published.mlp_width,
        "vocab_size": published.vocab_size,
        "mask_id": published.mask_id,
        "eos_id": published.eos_id,
        "rope_theta": published.rope_theta,
        "rms_eps": published.rms_eps,
    }


def load(folder: os.PathLike | str, config: HybridConfig) -> dict[str, Any]:
    """The trunk's parameters from a folder as published, float32 and on the host: a mesh may share them out.

    Args:
        folder: with config.json and safetensors.
        config: the network, whose fields are those of `read_fields`.

    Raises:
        ValueError: as `pretrained.load`.
    """
    layout = trunk_config(config)
    host = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shardings = jax.tree.map(lambda _: host, nn.unbox(pretrained.boxed_params(layout)))
    model = pretrained.load(folder, param_dtype="float32", shardings=shardings, config=layout)
    return {"network": model.params}
