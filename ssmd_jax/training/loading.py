"""Loading a trained model, or its parameters alone."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from ssmd_jax.data.tokenizers import Tokenizer, load_tokenizer
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.glu_hopper import is_hopper
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training import checkpoint, state, workdir
from ssmd_jax.training.config import ExperimentConfig


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load(path: os.PathLike | str | None = None) -> tuple[HybridModel, Tokenizer, ml_collections.ConfigDict]:
    """Loads the latest checkpoint of a workdir: the averaged weights, where the run keeps them.

    Args:
        path: a workdir of `launch/train.py`.

    Returns:
        The model, which satisfies `ssmd_jax.sampling.interface.SpeculativeModel`; its tokenizer; the locked
        configuration of the run.

    Raises:
        ValueError: where `path` is None (no released checkpoint is packaged yet), is no workdir, or holds no
            checkpoint that can be read.
        FileNotFoundError: where the workdir has lost its tokenizer.
    """
    if path is None:
        raise ValueError("no released checkpoint is packaged yet: pass the workdir of a training run")
    params, tokenizer, config = load_params(path)
    network_config, notes = for_device(config.network_config(tokenizer.num_tokens), jax.local_devices()[0])
    for note in notes:
        _warn(note)
    model = HybridModel(params, network_config)
    return model, tokenizer, ml_collections.ConfigDict(config.to_dict()).lock()


def for_device(config: HybridConfig, device: jax.Device) -> tuple[HybridConfig, list[str]]:
    """The network with XLA in place of kernels that a device does not have, and a sentence on each of them."""
    notes = []
    if config.attention == "cudnn" and device.platform != "gpu":
        notes.append("no NVIDIA GPU here: attention by XLA in place of cuDNN")
        config = dataclasses.replace(config, attention="xla")
    if config.mlp == "hopper" and not is_hopper(device):
        notes.append("no NVIDIA Hopper GPU here: MLP by XLA in place of the fused kernel")
        config = dataclasses.replace(config, mlp="xla")
    return config, notes


def load_params(
    path: os.PathLike | str, warn: Callable[[str], None] = _warn
) -> tuple[Any, Tokenizer, ExperimentConfig]:
    """The (averaged) parameters of the latest checkpoint of a workdir, on one device; raises as `load` does."""
    config = workdir.read_config(path)
    if not checkpoint.has_checkpoints(path):
        raise ValueError(f"workdir {path} holds no checkpoint yet: train it first")
    tokenizer = load_tokenizer(pathlib.Path(path) / workdir.TOKENIZER)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        state.abstract_params(HybridTransformer(config.network_config(tokenizer.num_tokens))),
    )
    part = "ema_params" if config.training.ema_decay else "params"
    with checkpoint.Checkpoints(path, read_only=True) as checkpoints:
        found = checkpoints.restore_params(part, abstract, warn)
    if found is None:
        raise ValueError(f"workdir {path} holds no finished checkpoint: train it first")
    return found[1], tokenizer, config
