"""A tiny experiment on made-up text: what the trainer's tests run on."""

import types

import numpy as np

from configs import base
from ssmd_jax.data import tokenizers
from ssmd_jax.data.pipeline import Data, Records
from ssmd_jax.training.config import ExperimentConfig

LENGTH = 16


def config_dict(**fields):
    """The tiny experiment as a `ConfigDict`; `fields` are `section__field=value`."""
    config = base.get_config()
    config.length = LENGTH
    config.model.update(width=16, num_heads=2, n_noncausal=1, n_causal=1, mlp_width=32, dtype="float32")
    config.optimizer.update(learning_rate=1e-2, warmup_steps=4)
    config.training.update(num_steps=8, batch_size=8, log_every=1, eval_every=0, eval_batches=2, checkpoint_every=0)
    config.mesh.data = 1
    for name, value in fields.items():
        section, _, field = name.partition("__")
        if field:
            config[section][field] = value
        else:
            config[section] = value
    return config


def config(**fields) -> ExperimentConfig:
    """The tiny experiment."""
    return ExperimentConfig.from_config_dict(config_dict(**fields))


def records(num_records: int, length: int, seed: int) -> Records:
    """Records of text that a small network can learn: words of three, in random order."""
    words = ["the ", "cat ", "sat ", "dog "]
    rng = np.random.default_rng(seed)
    text = "".join(words[i] for i in rng.integers(0, len(words), num_records * length // 4))
    tokens = tokenizers.make_tokenizer("text8").encode(text).astype(np.int32)[: num_records * length]
    return Records(types.SimpleNamespace(tokens=tokens, document_ends=np.array([len(tokens)])), length)


def data(length: int = LENGTH) -> Data:
    """Training and validation records, and their tokenizer."""
    return Data(records(101, length, 0), records(31, length, 1), None, tokenizers.make_tokenizer("text8"))
