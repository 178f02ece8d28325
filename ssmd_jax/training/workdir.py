"""What stands in a workdir beside checkpoints and metrics: the configuration and the tokenizer."""

import os
import pathlib

from ssmd_jax.data.tokenizers import Tokenizer, load_tokenizer
from ssmd_jax.training import checkpoint
from ssmd_jax.training.config import ExperimentConfig, differences

CONFIG_FILE = "config.json"
TOKENIZER = "tokenizer"


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


def write(workdir: os.PathLike | str, config: ExperimentConfig, tokenizer: Tokenizer) -> None:
    """Writes configuration and tokenizer; a reader never sees half a file."""
    workdir = pathlib.Path(workdir)
    tokenizer.save(workdir / TOKENIZER)
    part = workdir / (CONFIG_FILE + ".part")
    part.write_text(config.to_json(), encoding="utf-8")
    os.replace(part, workdir / CONFIG_FILE)
