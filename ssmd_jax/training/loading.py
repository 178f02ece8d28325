"""Loading a trained model, or its parameters alone."""

import dataclasses
import importlib.resources
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from ssmd_jax.data.lengths import LengthLaw
from ssmd_jax.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from ssmd_jax.model import esm2_weights, llada_trunk, weights
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.glu_hopper import is_hopper
from ssmd_jax.model.networks import make_network
from ssmd_jax.sampling.recommend import PROFILE_FILE
from ssmd_jax.training import checkpoint, state, workdir
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.terminal import say

# `model.trunk` -> module that reads weights as published.
PUBLISHED = {"esm2": esm2_weights, "llada": llada_trunk}


def load(path: os.PathLike | str | None = None) -> tuple[HybridModel, Tokenizer, ml_collections.ConfigDict]:
    """Loads the latest checkpoint of a workdir, the averaged weights where the run keeps them, or a released model.

    Args:
        path: a workdir of `launch/train.py`, or a folder of `launch/export.py`; None for the model that comes with the
            package, see `released`.

    Returns:
        The model, which satisfies `ssmd_jax.sampling.interface.SpeculativeModel`; its tokenizer; the locked
        configuration of the run.

    Raises:
        ValueError: where `path` is no workdir, or holds no checkpoint that can be read.
        FileNotFoundError: where the workdir has lost its tokenizer.
    """
    params, tokenizer, config = load_params(released() if path is None else path)
    network_config, notes = for_device(config.network_config(tokenizer.num_tokens), jax.local_devices()[0])
    for note in notes:
        say(note)
    model = HybridModel(params, network_config)
    return model, tokenizer, ml_collections.ConfigDict(config.to_dict()).lock()


def released() -> pathlib.Path:
    """The folder of the model that comes with the package: characters of books, D = 256, with a model card."""
    return pathlib.Path(str(importlib.resources.files("ssmd_jax"))) / "released" / "books_char"


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


def load_params(path: os.PathLike | str, warn: Callable[[str], None] = say) -> tuple[Any, Tokenizer, ExperimentConfig]:
    """The (averaged) parameters of a workdir's latest checkpoint, or of a release, on one device; raises as `load`."""
    config = workdir.read_config(path)
    if (pathlib.Path(path) / workdir.WEIGHTS).is_file():
        return _load_release(path, config)
    if not checkpoint.has_checkpoints(path):
        raise ValueError(f"workdir {path} holds no checkpoint yet: train it first")
    tokenizer = load_tokenizer(pathlib.Path(path) / workdir.TOKENIZER)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        state.abstract_params(make_network(config.network_config(tokenizer.num_tokens))),
    )
    part = "ema_params" if config.training.ema_decay else "params"
    with checkpoint.Checkpoints(path, read_only=True) as checkpoints:
        found = checkpoints.restore_params(part, abstract, warn)
    if found is None:
        raise ValueError(f"workdir {path} holds no finished checkpoint: train it first")
    return found[1], tokenizer, config


def load_lengths(path: os.PathLike | str) -> LengthLaw:
    """The lengths of the sequences that a workdir's run, or a release, was trained on; raises as `LengthLaw.load`."""
    return LengthLaw.load(pathlib.Path(os.path.expanduser(path)) / workdir.LENGTHS_FILE)


def load_start(
    path: os.PathLike | str, config: HybridConfig, tokenizer: Tokenizer, warn: Callable[[str], None] = say
) -> Any:
    """The parameters that a run starts from, perhaps without a causal part: what `training.init_from` names.

    Args:
        path: a workdir, a release, or weights as published: a folder, or a file of ESM-2's.
        config: of the network to be trained.
        tokenizer: of the data.
        warn: told of a checkpoint that cannot be read.

    Raises:
        ValueError: where they cannot be read, or belong to another tokenizer or network.
    """
    path = os.path.expanduser(path)
    if esm2_weights.is_published(path):
        if config.trunk not in PUBLISHED:
            trunks = " or ".join(map(repr, PUBLISHED))
            raise ValueError(f"training.init_from {path} holds published weights: set model.trunk to {trunks}")
        published = PUBLISHED[config.trunk]
        for name, value in (published.read_fields(path) if os.path.isdir(path) else {}).items():
            if getattr(config, name) != value:
                raise ValueError(f"training.init_from {path} has model.{name} {value!r}, not {getattr(config, name)!r}")
        file = pathlib.Path(path) / "tokenizer.json"
        is_other = lambda: make_tokenizer("huggingface", file).fingerprint() != tokenizer.fingerprint()
        # ESM-2's ids are checked with the configuration.
        if config.trunk == "llada" and file.is_file() and is_other():
            raise ValueError(f"training.init_from {path} has another tokenizer than data gives: take its {file.name}")
        return published.load(path, config)
    params, saved, _ = load_params(path, warn)
    if saved.fingerprint() != tokenizer.fingerprint():
        raise ValueError(f"training.init_from {path} was trained with another tokenizer than data gives")
    return params


def _load_release(path: os.PathLike | str, config: ExperimentConfig) -> tuple[Any, Tokenizer, ExperimentConfig]:
    tokenizer = load_tokenizer(pathlib.Path(path) / workdir.TOKENIZER)
    file = pathlib.Path(path) / workdir.WEIGHTS
    params = weights.load(file)
    expected = state.abstract_params(make_network(config.network_config(tokenizer.num_tokens)))
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    if shapes(params) != shapes(expected):
        raise ValueError(f"the weights {file} are not those of the network that {workdir.CONFIG_FILE} describes")
    return jax.device_put(params, jax.local_devices()[0]), tokenizer, config


def export(path: os.PathLike | str, output: os.PathLike | str, dtype: str) -> dict[str, Any]:
    """Writes a trained model without what only training needs: what `launch/export.py` does.

    Of the paths of the data, and of the run it started from, only the names are kept: the folders of one machine mean
    nothing on another.

    Args:
        path: a workdir, or another release.
        output: folder to write, made where it is not there; it can be passed to `load`, to `training.init_from` and to
            the programs that take a workdir.
        dtype: of the weights, one of `model.weights.DTYPES`.

    Returns:
        JSON values: "output", "dtype", "parameters" and "bytes" of the weights.

    Raises:
        ValueError: as `load`, or where the folder holds a training run, or is the release itself.
    """
    output = pathlib.Path(output)
    if output.exists() and output.samefile(path):
        raise ValueError(f"{output} is the model itself: choose another folder for the export")
    if checkpoint.has_checkpoints(output):
        raise ValueError(f"{output} holds a training run: choose another folder for the export")
    params, tokenizer, config = load_params(path)
    output.mkdir(parents=True, exist_ok=True)
    # The weights come last, and whole or not at all: without them the folder is no release.
    (output / workdir.WEIGHTS).unlink(missing_ok=True)
    tokenizer.save(output / workdir.TOKENIZER)
    data = dataclasses.replace(config.data.in_folder(""), cache_dir=None)
    training = dataclasses.replace(config.training, init_from=os.path.basename(config.training.init_from.rstrip("/")))
    released_config = dataclasses.replace(config, data=data, training=training)
    (output / workdir.CONFIG_FILE).write_text(released_config.to_json(), encoding="utf-8")
    for name in (workdir.DATA_FILE, workdir.LENGTHS_FILE, PROFILE_FILE):
        if (pathlib.Path(path) / name).is_file():
            shutil.copyfile(pathlib.Path(path) / name, output / name)
    part = output / f"{workdir.WEIGHTS}.part"
    weights.save(part, params, dtype)
    os.replace(part, output / workdir.WEIGHTS)
    size = (output / workdir.WEIGHTS).stat().st_size
    count = sum(x.size for x in jax.tree.leaves(params))
    return {"output": str(output), "dtype": dtype, "parameters": count, "bytes": size}
