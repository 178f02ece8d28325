"""Weights as one safetensors file, in float32, bfloat16 or int8."""

import os
from typing import Any

import flax
import jax
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

DTYPES = ("float32", "bfloat16", "int8")
# int8 weights share a scale, their largest magnitude over 127, in groups of so many along the flattened array.
GROUP = 64
SCALE, SEPARATOR = ".scale", "/"
# Name of a norm's parameter.
NORM = "scale"


def save(path: os.PathLike | str, params: Any, dtype: str) -> None:
    """Writes a tree of parameters; scales of norms, and all vectors, stay in float32.

    int8 rounds each group of 64 weights to a multiple of its own scale: 8.5 bits a weight, an error of at most 1/254 of
    the group's largest weight.

    Args:
        path: of the file.
        params: nested dictionaries of float arrays.
        dtype: one of `DTYPES`.

    Raises:
        ValueError: for another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    stored = {}
    for name, value in flax.traverse_util.flatten_dict(jax.device_get(params), sep=SEPARATOR).items():
        value = np.asarray(value, np.float32)
        # Those of a scanned trunk are stacked, and no vectors.
        is_exact = dtype == "float32" or value.ndim < 2 or name.split(SEPARATOR)[-1] == NORM
        if is_exact:
            stored[name] = value
        elif dtype == "int8":
            stored[name], stored[name + SCALE] = quantise(value)
        else:
            stored[name] = value.astype(ml_dtypes.bfloat16)
    save_file(stored, os.fspath(path), metadata={"dtype": dtype})


def load(path: os.PathLike | str) -> Any:
    """Reads what `save` wrote, as nested dictionaries of float32 NumPy arrays.

    Raises:
        ValueError: where there is no such file, or it cannot be read.
    """
    stored = read_tensors(path)
    params = {
        name: dequantise(value, stored[name + SCALE]) if name + SCALE in stored else value.astype(np.float32)
        for name, value in stored.items()
        if not name.endswith(SCALE)
    }
    return flax.traverse_util.unflatten_dict(params, sep=SEPARATOR)


def read_tensors(path: os.PathLike | str) -> dict[str, np.ndarray]:
    """All tensors of one safetensors file, by name.

    Raises:
        ValueError: where there is no such file, or it cannot be read.
    """
    try:
        with safetensors.safe_open(os.fspath(path), "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except FileNotFoundError:
        raise ValueError(f"there are no weights at {path}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"the weights {path} cannot be read: {error}") from error


def quantise(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 of the same shape, and one float32 scale for each group of `GROUP` along the flattened array."""
    flat = np.asarray(value, np.float32).reshape(-1)
    groups_GxK = np.pad(flat, (0, -len(flat) % GROUP)).reshape(-1, GROUP)
    scale_G = np.abs(groups_GxK).max(axis=1) / np.float32(127)
    safe_Gx1 = np.where(scale_G > 0, scale_G, 1)[:, None]
    whole_GxK = np.clip(np.rint(groups_GxK / safe_Gx1), -127, 127).astype(np.int8)
    return whole_GxK.reshape(-1)[: len(flat)].reshape(value.shape), scale_G


def dequantise(whole: np.ndarray, scale_G: np.ndarray) -> np.ndarray:
    """float32 of the same shape, the inverse of `quantise` up to its rounding."""
    per_weight = np.repeat(scale_G, GROUP)[: whole.size]
    return whole.astype(np.float32) * per_weight.reshape(whole.shape)
