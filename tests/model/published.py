"""Tiny networks of the published architectures with random weights, and their forward pass in plain NumPy.

The twin reads tensors by the names and in the layout of the files, one row and one head at a time.
"""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.model import pretrained, tensors
from ssmd_jax.model.bidirectional import BidirectionalConfig, BidirectionalTransformer
from ssmd_jax.model.masked_lm import MaskedLanguageModel

SIZES = {"vocab_size": 23, "mask_id": 21, "eos_id": 19, "width": 16, "num_layers": 2, "head_dim": 4, "mlp_width": 24}
LLADA = BidirectionalConfig(
    **SIZES, num_heads=4, num_kv_heads=4, rope_theta=5e5, rms_eps=1e-5, max_length=64, dtype="float32"
)
DREAM = BidirectionalConfig(
    **SIZES,
    num_heads=4,
    num_kv_heads=2,
    rope_theta=1e6,
    rms_eps=1e-6,
    qkv_bias=True,
    shifts=True,
    max_length=64,
    dtype="float32",
)


def random_model(config: BidirectionalConfig, seed: int = 0) -> MaskedLanguageModel:
    """Random weights in all parameters, biases and norms included."""
    boxed = BidirectionalTransformer(config).init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    jitter = lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
    return MaskedLanguageModel(jax.tree.map(jitter, nn.unbox(boxed)), config)


def lively_model(config: BidirectionalConfig, seed: int = 0) -> MaskedLanguageModel:
    """One whose text depends on its prompt and on what is cached: sharp attention, and little of the mask's own."""
    flat = flax.traverse_util.flatten_dict(random_model(config, seed).params)
    # Queries and keys; values are the last of each key head's.
    sharp = np.full((config.num_heads // config.num_kv_heads + 2, 1), 3.0, np.float32)
    sharp[-1] = 1.0
    scale = {"qkv": sharp[None, None], "out": 3.0, "head": 1.5}
    flat = {path: x * scale.get(path[-1], 1.0) for path, x in flat.items()}
    flat["embedding",] = flat["embedding",].at[config.mask_id].multiply(0.1)
    return MaskedLanguageModel(flax.traverse_util.unflatten_dict(flat), config)


def file_tensors(model: MaskedLanguageModel) -> dict[str, np.ndarray]:
    """The tensors of the model's files by name."""
    layout = pretrained.architecture_of(model.config).tensors(model.config)
    params = flax.traverse_util.flatten_dict(model.params)
    return {
        tensor.name: tensors.to_file(np.asarray(params[path]), tensor)
        for path, parts in layout.items()
        for tensor in parts
    }


# Names of one layer's tensors, and of the whole's.
NAMES = {
    False: (
        ("wte", "ln_f", "ff_out"),
        "model.transformer.blocks.{}.",
        ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out"),
    ),
    True: (
        ("model.embed_tokens", "model.norm", "lm_head"),
        "model.layers.{}.",
        (
            "input_layernorm",
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            "post_attention_layernorm",
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        ),
    ),
}


class Twin:
    """The forward pass of one row in float64, with the keys and values of every position's last feeding."""

    def __init__(self, model: MaskedLanguageModel):
        self.config = model.config
        self.tensors = {name: x.astype(np.float64) for name, x in file_tensors(model).items()}
        self.cache = {}

    def forward(self, tokens: list[int], fed: list[int] | None = None) -> dict[int, np.ndarray]:
        """Logits of the positions fed (all, if None), by position."""
        config, dim, found = self.config, self.config.head_dim, self.tensors
        fed = list(range(len(tokens))) if fed is None else fed
        (embed, last, head), block, names = NAMES[config.shifts]
        root = "" if config.shifts else "model.transformer."
        norm = lambda x, scale: x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_eps) * scale
        frequency = config.rope_theta ** (-2 * np.arange(dim // 2) / dim)

        def turn(x, positions):
            angle = np.concatenate([np.asarray(positions)[:, None] * frequency] * 2, axis=-1)
            return x * np.cos(angle) + np.concatenate([-x[:, dim // 2 :], x[:, : dim // 2]], axis=-1) * np.sin(angle)

        x = found[f"{root}{embed}.weight"][[tokens[p] for p in fed]]
        for layer in range(config.num_layers):
            at = block.format(layer)
            attention_norm, q, k, v, out, mlp_norm, gate, up, down = (found[f"{at}{name}.weight"] for name in names)
            normed = norm(x, attention_norm)
            bias = lambda name, at=at: found.get(f"{at}{name}.bias", 0.0)
            q, k, v = (normed @ w.T + bias(name) for w, name in zip((q, k, v), names[1:4], strict=True))
            for row, position in enumerate(fed):
                self.cache[layer, position] = k[row], v[row]
            keys, values = (np.stack([self.cache[layer, p][n] for p in range(len(tokens))]) for n in (0, 1))
            heads = []
            for h in range(config.num_heads):
                g = h // (config.num_heads // config.num_kv_heads)
                of = lambda x, n: x[:, n * dim : (n + 1) * dim]
                scores = turn(of(q, h), fed) @ turn(of(keys, g), range(len(tokens))).T / np.sqrt(dim)
                weight = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(weight / weight.sum(-1, keepdims=True) @ of(values, g))
            x = x + np.concatenate(heads, axis=-1) @ out.T
            normed = norm(x, mlp_norm)
            g = normed @ gate.T
            x = x + (g / (1 + np.exp(-g)) * (normed @ up.T)) @ down.T
        logits = norm(x, found[f"{root}{last}.weight"]) @ found[f"{root}{head}.weight"].T
        return dict(zip(fed, logits, strict=True))
