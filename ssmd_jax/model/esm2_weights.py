"""Weights of ESM-2 and DPLM as Hugging Face publishes them (safetensors), to our parameters.

Every tensor of a file is either used, known to be of no use to masked-token logits, or named in an error.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.esm2 import MASK, MLP_FACTOR, NUM_IDS
from ssmd_jax.model.weights import read_tensors

CONFIG_FILE = "config.json"
# Buffers that follow from the configuration, the contact head and the pooler.
UNUSED = re.compile(
    r"esm\.embeddings\.position_(ids|embeddings\.weight)|.*\.rotary_emb(eddings)?\.inv_freq|"
    r"esm\.(contact_head|pooler)\..*"
)
# Copies of the embedding and of `lm_head.bias`, which some files hold.
TIED = {"lm_head.decoder.weight": "esm.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"}
# What `config.json` must say for our network to be the one that it describes.
REQUIRED = {
    "vocab_size": NUM_IDS,
    "mask_token_id": MASK,
    "position_embedding_type": "rotary",
    "emb_layer_norm_before": False,
    "layer_norm_eps": 1e-5,
}
NAMED_AT_MOST = 3


def expected_shapes(config: HybridConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a file must hold; kernels as PyTorch stores them, `[out, in]`."""
    width, hidden = config.width, MLP_FACTOR * config.width
    shapes = {} if config.tied_head else {"lm_head.decoder.weight": (NUM_IDS, width)}
    shapes |= {
        "esm.embeddings.word_embeddings.weight": (NUM_IDS, width),
        "lm_head.bias": (NUM_IDS,),
        **_dense("lm_head.dense", width, width),
        **_norm("lm_head.layer_norm", width),
        **_norm("esm.encoder.emb_layer_norm_after", width),
    }
    for layer in range(config.n_noncausal):
        name = f"esm.encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _dense(f"{name}.attention.{part}", width, width)
        shapes |= _norm(f"{name}.attention.LayerNorm", width) | _norm(f"{name}.LayerNorm", width)
        shapes |= _dense(f"{name}.intermediate.dense", hidden, width) | _dense(f"{name}.output.dense", width, hidden)
    return shapes


def _dense(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def convert(tensors: Mapping[str, np.ndarray], config: HybridConfig) -> dict[str, Any]:
    """Our parameters of the trunk, float32; those of the causal part are not among them.

    Args:
        tensors: of a file, by name.
        config: the network.

    Raises:
        ValueError: naming tensors that are missing, not known or of another shape, or a head that is not tied to the
            embedding.
    """
    expected = expected_shapes(config)
    is_spare = lambda name: UNUSED.fullmatch(name) or (name in TIED and name not in expected)
    given = {name: value for name, value in tensors.items() if not is_spare(name)}
    _refuse("lack", sorted(expected.keys() - given.keys()))
    _refuse("hold tensors that are not of this network:", sorted(given.keys() - expected.keys()))
    misshapen = [
        f"{name} {tuple(given[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if tuple(given[name].shape) != shape
    ]
    _refuse("have other shapes than this network:", misshapen)
    for copy, original in TIED.items():
        if copy in tensors and copy not in expected and not np.array_equal(tensors[copy], tensors[original]):
            raise ValueError(f"the weights' {copy} differs from {original}: set model.tied_head to False")
    get = lambda name: np.asarray(given[name], np.float32)
    return {
        **({} if config.tied_head else {"decoder": get("lm_head.decoder.weight")}),
        "table": get("esm.embeddings.word_embeddings.weight"),
        "trunk_blocks": {"blocks": _stacked([_block(get, n, config) for n in range(config.n_noncausal)])},
        "final_norm": _norm_of(get, "esm.encoder.emb_layer_norm_after"),
        "dense": get("lm_head.dense.weight").T,
        "dense_bias": get("lm_head.dense.bias"),
        "head_norm": _norm_of(get, "lm_head.layer_norm"),
        "head_bias": get("lm_head.bias"),
    }


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
        raise ValueError(f"the weights {what} {', '.join(names[:NAMED_AT_MOST])}{more}")


def _norm_of(get, name: str) -> dict[str, np.ndarray]:
    return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}


def _block(get, layer: int, config: HybridConfig) -> dict[str, Any]:
    name, heads = f"esm.encoder.layer.{layer}", (config.num_heads, config.head_dim)
    qkv = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
    return {
        "attention_norm": _norm_of(get, f"{name}.attention.LayerNorm"),
        "attention": {
            "qkv": np.stack([get(f"{part}.weight").T.reshape(config.width, *heads) for part in qkv], axis=1),
            "qkv_bias": np.stack([get(f"{part}.bias").reshape(heads) for part in qkv]),
            "out": get(f"{name}.attention.output.dense.weight").T.reshape(*heads, config.width),
            "out_bias": get(f"{name}.attention.output.dense.bias"),
        },
        "mlp_norm": _norm_of(get, f"{name}.LayerNorm"),
        "mlp": {
            "widen": get(f"{name}.intermediate.dense.weight").T,
            "widen_bias": get(f"{name}.intermediate.dense.bias"),
            "down": get(f"{name}.output.dense.weight").T,
            "down_bias": get(f"{name}.output.dense.bias"),
        },
    }


def _stacked(trees: list[Any]) -> Any:
    if isinstance(trees[0], dict):
        return {name: _stacked([tree[name] for tree in trees]) for name in trees[0]}
    return np.stack(trees)


def is_published(path: os.PathLike | str) -> bool:
    """Whether a path is a safetensors file, or a folder of them as published."""
    path = pathlib.Path(path)
    return path.suffix == ".safetensors" if path.is_file() else any(path.glob("model*.safetensors"))


def read_fields(folder: os.PathLike | str) -> dict[str, Any]:
    """The fields of `HybridConfig` that a folder's `config.json` describes, the causal part's apart.

    Raises:
        ValueError: where there is none, or it describes another network than ESM-2's.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give the folder of an ESM-2 or DPLM") from None
    if not isinstance(described, dict):
        raise ValueError(f"{path} describes no ESM-2: it holds no fields")
    try:
        width = described["hidden_size"]
        required = REQUIRED | {"intermediate_size": MLP_FACTOR * width}
        for name, value in required.items():
            if (found := described.get(name, value)) != value:
                raise ValueError(f"{path} describes no ESM-2: {name} is {found!r}, not {value!r}")
        return {
            "num_tokens": MASK,
            "trunk": "esm2",
            "n_noncausal": described["num_hidden_layers"],
            "width": width,
            "num_heads": described["num_attention_heads"],
            "token_dropout": bool(described.get("token_dropout", False)),
            "tied_head": bool(described.get("tie_word_embeddings", True)),
        }
    except KeyError as error:
        raise ValueError(f"{path} describes no ESM-2: it has no {error.args[0]}") from None


def load(path: os.PathLike | str, config: HybridConfig) -> dict[str, Any]:
    """The trunk's parameters from a safetensors file, or from a folder of one or several.

    Args:
        path: the file, or the folder as downloaded.
        config: the network.

    Raises:
        ValueError: where there is no such file, it cannot be read, or as `convert`; the sentence names the file.
    """
    path = pathlib.Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"there are no safetensors in {path}: give the folder of an ESM-2 or DPLM")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= read_tensors(file)
    try:
        return convert(tensors, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
