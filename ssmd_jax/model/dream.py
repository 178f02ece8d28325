"""Dream (Ye et al., arXiv 2508.15487): its configuration and the tensors of its published files.

Qwen2.5's network without the causal mask. It keeps the shift by one of the model it was initialised from: the vector
at position j predicts the token at j + 1, the one at position 0 also the token at 0.
"""

from typing import Any

from ssmd_jax.model.bidirectional import BidirectionalConfig
from ssmd_jax.model.fields import check_fixed, needed
from ssmd_jax.model.tensors import Tensor, side_by_side

DREAM_7B = BidirectionalConfig(
    vocab_size=152_064,
    mask_id=151_666,
    eos_id=151_643,
    width=3584,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    mlp_width=18_944,
    rope_theta=1e6,
    rms_eps=1e-6,
    qkv_bias=True,
    shifts=True,
    max_length=131_072,
)

# Fields of config.json whose other values would be another network; where one is absent, it has this value.
FIXED = {"hidden_act": "silu", "tie_word_embeddings": False, "use_sliding_window": False, "rope_scaling": None}


def from_fields(fields: dict[str, Any], dtype: str) -> BidirectionalConfig:
    """The configuration from the fields of a config.json.

    Args:
        fields: the file's content.
        dtype: of computation.

    Raises:
        ValueError: a field that is missing, or one whose value would be another network.
    """
    check_fixed(fields, FIXED, "Dream")
    need = lambda field: needed(fields, field, "Dream")
    heads = need("num_attention_heads")
    return BidirectionalConfig(
        vocab_size=need("vocab_size"),
        mask_id=need("mask_token_id"),
        eos_id=need("eos_token_id"),
        width=need("hidden_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=need("num_key_value_heads"),
        head_dim=need("hidden_size") // heads,
        mlp_width=need("intermediate_size"),
        rope_theta=float(need("rope_theta")),
        rms_eps=need("rms_norm_eps"),
        qkv_bias=True,
        shifts=True,
        max_length=need("max_position_embeddings"),
        dtype=dtype,
    )


def to_fields(config: BidirectionalConfig) -> dict[str, Any]:
    """The fields of config.json, the inverse of `from_fields`."""
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.mlp_width,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_eps,
        "mask_token_id": config.mask_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.eos_id,
        **FIXED,
    }


def tensors(config: BidirectionalConfig) -> dict[tuple[str, ...], tuple[Tensor, ...]]:
    """Where each parameter lies in the files: path in the tree of parameters -> the tensors that it consists of."""
    width, mlp, vocab = config.width, config.mlp_width, config.vocab_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = (config.num_heads // config.num_kv_heads, 1, 1)
    found = {
        ("embedding",): (Tensor("model.embed_tokens.weight", (vocab, width)),),
        ("final_norm", "scale"): (Tensor("model.norm.weight", (width,)),),
        ("head",): (Tensor("lm_head.weight", (vocab, width), 1),),
    }
    for index in range(config.num_layers):
        at, block = f"blocks_{index}", f"model.layers.{index}."
        rows = {f"{block}self_attn.{name}_proj": size for name, size in (("q", queries), ("k", keys), ("v", keys))}
        kernels = [Tensor(f"{name}.weight", (size, width), 1) for name, size in rows.items()]
        biases = [Tensor(f"{name}.bias", (size,)) for name, size in rows.items()]
        gate_up = [Tensor(f"{block}mlp.{name}_proj.weight", (mlp, width), 1) for name in ("gate", "up")]
        found |= {
            (at, "attention", "qkv"): side_by_side(kernels, axis=2, sizes=sizes),
            (at, "attention", "qkv_bias"): side_by_side(biases, axis=1, sizes=sizes),
            (at, "mlp", "gate_up"): side_by_side(gate_up, axis=1, sizes=(1, 1)),
            (at, "mlp", "down"): (Tensor(block + "mlp.down_proj.weight", (width, mlp), 1),),
            (at, "attention", "out"): (Tensor(block + "self_attn.o_proj.weight", (width, queries), 2),),
            (at, "attention_norm", "scale"): (Tensor(block + "input_layernorm.weight", (width,)),),
            (at, "mlp_norm", "scale"): (Tensor(block + "post_attention_layernorm.weight", (width,)),),
        }
    return found
