"""LLaDA (Nie et al., arXiv 2502.09992): its configuration and the tensors of its published files.

Base, Instruct and 1.5 have the same architecture. `ff_out` names both the head and the second half of each MLP.
"""

from typing import Any

from ssmd_jax.model.bidirectional import BidirectionalConfig
from ssmd_jax.model.fields import check_fixed, needed
from ssmd_jax.model.tensors import Tensor, side_by_side

LLADA_8B = BidirectionalConfig(
    vocab_size=126_464,
    mask_id=126_336,
    eos_id=126_081,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    mlp_width=12_288,
    rope_theta=500_000.0,
    rms_eps=1e-5,
    max_length=4096,
)
# End of a turn, in the chat format of the Instruct models.
EOT_ID = 126_348

# Fields of config.json whose other values would be another network; where one is absent, it has this value.
FIXED = {
    "rope": True,
    "rope_full_precision": True,
    "alibi": False,
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "block_type": "llama",
    "block_group_size": 1,
    "include_bias": False,
    "include_qkv_bias": False,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "weight_tying": False,
}


def from_fields(fields: dict[str, Any], dtype: str) -> BidirectionalConfig:
    """The configuration from the fields of a config.json.

    Args:
        fields: the file's content.
        dtype: of computation.

    Raises:
        ValueError: a field that is missing, or one whose value would be another network.
    """
    check_fixed(fields, FIXED, "LLaDA")
    need = lambda field: needed(fields, field, "LLaDA")
    width, heads, vocab_size = need("d_model"), need("n_heads"), need("vocab_size")
    if fields.get("embedding_size") not in (None, vocab_size):
        raise ValueError(
            f"LLaDA with embedding_size {fields['embedding_size']} other than vocab_size {vocab_size} is not supported"
        )
    return BidirectionalConfig(
        vocab_size=vocab_size,
        mask_id=need("mask_token_id"),
        eos_id=need("eos_token_id"),
        width=width,
        num_layers=need("n_layers"),
        num_heads=heads,
        num_kv_heads=fields.get("n_kv_heads") or heads,
        head_dim=width // heads,
        mlp_width=need("mlp_hidden_size"),
        rope_theta=float(fields.get("rope_theta", 500_000.0)),
        rms_eps=fields.get("rms_norm_eps", 1e-5),
        max_length=need("max_sequence_length"),
        dtype=dtype,
    )


def to_fields(config: BidirectionalConfig) -> dict[str, Any]:
    """The fields of config.json, the inverse of `from_fields`."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": config.width,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "mlp_hidden_size": config.mlp_width,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_length,
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
    group = config.num_heads // config.num_kv_heads
    root = "model.transformer."
    found = {
        ("embedding",): (Tensor(root + "wte.weight", (vocab, width)),),
        ("final_norm", "scale"): (Tensor(root + "ln_f.weight", (width,)),),
        ("head",): (Tensor(root + "ff_out.weight", (vocab, width), 1),),
    }
    for index in range(config.num_layers):
        at, block = f"blocks_{index}", f"{root}blocks.{index}."
        qkv = [
            Tensor(f"{block}{name}_proj.weight", (size, width), 1)
            for name, size in (("q", queries), ("k", keys), ("v", keys))
        ]
        gate_up = [Tensor(f"{block}{name}_proj.weight", (mlp, width), 1) for name in ("ff", "up")]
        found |= {
            (at, "attention_norm", "scale"): (Tensor(block + "attn_norm.weight", (width,)),),
            (at, "attention", "qkv"): side_by_side(qkv, axis=2, sizes=(group, 1, 1)),
            (at, "attention", "out"): (Tensor(block + "attn_out.weight", (width, queries), 2),),
            (at, "mlp_norm", "scale"): (Tensor(block + "ff_norm.weight", (width,)),),
            (at, "mlp", "gate_up"): side_by_side(gate_up, axis=1, sizes=(1, 1)),
            (at, "mlp", "down"): (Tensor(block + "ff_out.weight", (width, mlp), 1),),
        }
    return found
