"""What stands in a workdir beside checkpoints and metrics: configuration, tokenizer, and the identity of the data."""

import hashlib
import json
import os
import pathlib

import numpy as np

from ssmd_jax.data.buckets import Sequences
from ssmd_jax.data.lengths import LengthLaw
from ssmd_jax.data.pipeline import Data
from ssmd_jax.data.tokenizers import Tokenizer, load_tokenizer
from ssmd_jax.training import checkpoint
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.differences import differences

CONFIG_FILE = "config.json"
TOKENIZER = "tokenizer"
DATA_FILE = "data.json"
# What a release has in place of checkpoints (`loading.export`).
WEIGHTS = "weights.safetensors"
LENGTHS_FILE = "lengths.json"
# Tokens are hashed in blocks. A split of more blocks than this, 134 million tokens, is judged by its size and so many
# blocks, evenly spread: the whole of OpenWebText would be read for minutes at every start.
HASHED_BLOCK = 1 << 20
HASHED_BLOCKS = 128

Identity = dict[str, dict[str, int | str]]


def read_config(workdir: os.PathLike | str) -> ExperimentConfig:
    """The configuration that a workdir was made by.

    Raises:
        ValueError: where the workdir, or its configuration, is not there or cannot be read.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{workdir} is no workdir of a training run: it has no {CONFIG_FILE}")
    try:
        return ExperimentConfig.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def check_place(workdir: os.PathLike | str) -> None:
    """Refuses what no run can be trained in: an address, and the folder of a release.

    Raises:
        ValueError: saying what to do instead.
    """
    if "://" in os.fspath(workdir):
        raise ValueError(f"workdir {workdir} is an address and no folder: mount the bucket, and name its folder")
    if (pathlib.Path(workdir) / WEIGHTS).is_file():
        raise ValueError(
            f"{workdir} holds a released model ({WEIGHTS}): train in a new workdir, with training.init_from={workdir} "
            "to start from its weights"
        )


def check_config(workdir: os.PathLike | str, config: ExperimentConfig) -> None:
    """Refuses a workdir with checkpoints of another experiment.

    Raises:
        ValueError: naming the fields that differ.
    """
    if not checkpoint.has_checkpoints(workdir):
        return
    changed = differences(read_config(workdir), config)
    if changed:
        raise ValueError(
            f"workdir {workdir} was made by another config ({'; '.join(changed)}): "
            "use a new workdir, or the config of this one"
        )


def check_tokenizer(workdir: os.PathLike | str, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer other than the one that the workdir's checkpoints were trained with.

    Raises:
        ValueError: where they differ.
    """
    if not checkpoint.has_checkpoints(workdir):
        return
    saved = load_tokenizer(pathlib.Path(workdir) / TOKENIZER)
    if saved.fingerprint() != tokenizer.fingerprint():
        raise ValueError(
            f"the tokenizer does not match the one that workdir {workdir} was trained with: "
            "use a new workdir, or the data and tokenizer of this one"
        )


def tokens_hash(tokens: np.ndarray) -> str:
    """A hash of the numbers in a stream of tokens, whatever their dtype."""
    digest = hashlib.blake2b(digest_size=16)
    num_blocks = -(-len(tokens) // HASHED_BLOCK)
    for block in np.unique(np.linspace(0, num_blocks - 1, min(num_blocks, HASHED_BLOCKS)).astype(int)):
        digest.update(tokens[block * HASHED_BLOCK : (block + 1) * HASHED_BLOCK].astype("<u4"))
    return digest.hexdigest()


def identity(data: Data) -> Identity:
    """What tells data apart, wherever their files are: the size and a hash of each split."""
    splits = {"train": data.train, "valid": data.valid, "test": data.test}
    return {
        split: {"num_tokens": len(records.tokens), "hash": tokens_hash(records.tokens)}
        for split, records in splits.items()
        if records is not None
    }


def check_data(workdir: os.PathLike | str, new: Identity) -> None:
    """Refuses data, given by their identity, other than those that the workdir's checkpoints were trained on.

    Raises:
        ValueError: naming the splits that differ.
    """
    path = pathlib.Path(workdir) / DATA_FILE
    if not checkpoint.has_checkpoints(workdir) or not path.is_file():  # workdirs of earlier versions have none
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    size = lambda splits, name: f"{splits[name]['num_tokens']:,} tokens" if name in splits else "none"
    changed = [
        f"{name}: {size(old, name)} -> {size(new, name)}"
        for name in ("train", "valid", "test")
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"the data are not those that workdir {workdir} was trained on (splits that differ: {'; '.join(changed)}): "
            "use a new workdir, or the data of this one"
        )


def write(workdir: os.PathLike | str, config: ExperimentConfig, data: Data, known: Identity) -> None:
    """Writes configuration, tokenizer, the identity of the data and the lengths of its sequences.

    A reader never sees half a file.
    """
    workdir = pathlib.Path(workdir)
    data.tokenizer.save(workdir / TOKENIZER)
    if isinstance(data.train, Sequences):
        LengthLaw.of(data.train.lengths).save(workdir / LENGTHS_FILE)
    texts = {DATA_FILE: json.dumps(known, indent=2) + "\n", CONFIG_FILE: config.to_json()}
    for name, text in texts.items():
        part = workdir / (name + ".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, workdir / name)
