"""Published weights of LLaDA and Dream: folders of safetensors with a config.json, read and written.

Parameter by parameter, and on each device its own part alone: what a device holds, one part of one parameter and what
is read for it of one tensor are in memory at once, never the weights twice.
"""

import contextlib
import json
import os
import pathlib
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from ssmd_jax.model import dream, llada, tensors
from ssmd_jax.model.bidirectional import BidirectionalConfig, BidirectionalTransformer
from ssmd_jax.model.masked_lm import MaskedLanguageModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# `model_type` in config.json -> module with `from_fields`, `to_fields` and `tensors`.
ARCHITECTURES = {"llada": llada, "Dream": dream}
# Names listed in an error.
LISTED = 3


def architecture_of(config: BidirectionalConfig):
    """The module that knows the files of a network: Dream's are those of a network that shifts."""
    return dream if config.shifts else llada


def read_config(folder: os.PathLike | str, dtype: str = "bfloat16") -> BidirectionalConfig:
    """The configuration of the network in a folder.

    Args:
        folder: with a config.json.
        dtype: of computation.

    Raises:
        ValueError: no such file, another architecture, or a network that is not supported.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no config.json in {folder}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is not the configuration of a model")
    named = fields.get("model_type")
    if named is None:
        named = "llada" if "d_model" in fields else "Dream"
    if named not in ARCHITECTURES:
        raise ValueError(f"{path}: model_type {named!r} is none of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[named].from_fields(fields, dtype)


def boxed_params(config: BidirectionalConfig) -> Any:
    """Abstract parameters in boxes with their logical axes: what a table of shardings is applied to."""
    init = lambda: BidirectionalTransformer(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return jax.eval_shape(init)


def load(
    folder: os.PathLike | str,
    *,
    dtype: str = "bfloat16",
    param_dtype: str | None = None,
    shardings: Any = None,
    config: BidirectionalConfig | None = None,
) -> MaskedLanguageModel:
    """The network of a folder of safetensors, one file or several with an index.

    Args:
        folder: with config.json and the weights.
        dtype: of computation.
        param_dtype: of the parameters in memory; None for `dtype`.
        shardings: a tree of `jax.sharding.Sharding` as the parameters (see `boxed_params`); None for one device.
        config: None to read it from the folder.

    Raises:
        ValueError: one sentence that names the file, or the tensors that are missing, left over or of another shape.
    """
    config = read_config(folder, dtype) if config is None else config
    layout = architecture_of(config).tensors(config)
    shapes = flax.traverse_util.flatten_dict(jax.tree.map(lambda x: x.shape, nn.unbox(boxed_params(config))))
    where = {} if shardings is None else flax.traverse_util.flatten_dict(shardings)
    as_dtype = np.dtype(jnp.dtype(param_dtype or config.dtype))
    params = {}
    with contextlib.ExitStack() as stack:
        stored = _open(pathlib.Path(folder), stack)
        _check(folder, stored, layout)
        for path, parts in layout.items():
            sources = {tensor.name: stored[tensor.name].get_slice(tensor.name) for tensor in parts}

            def part(index, sources=sources, parts=parts, shape=shapes[path]):
                return tensors.read(sources, parts, shape, index, as_dtype)

            one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            params[path] = jax.make_array_from_callback(shapes[path], where.get(path, one), part)
            # Reads run ahead of the copies to the devices otherwise, and the host would hold many.
            params[path].block_until_ready()
    return MaskedLanguageModel(flax.traverse_util.unflatten_dict(params), config)


def _open(folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Tensor name -> the open file that holds it."""
    index = folder / INDEX
    names = [SINGLE]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"the index {index} cannot be read: {error!r}") from error
    found = {}
    for name in names:
        try:
            file = stack.enter_context(safetensors.safe_open(os.fspath(folder / name), "numpy"))
        except FileNotFoundError:
            raise ValueError(f"the weights in {folder} are incomplete: there is no file {name}") from None
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"the weights {folder / name} cannot be read: {error}") from error
        found |= dict.fromkeys(file.keys(), file)
    return found


def _check(folder, stored: dict[str, Any], layout: dict) -> None:
    """Raises `ValueError` unless the files hold the network's tensors, all of them, no other, of its shapes."""
    expected = {tensor.name: tensor.shape for parts in layout.values() for tensor in parts}
    shape_of = lambda name: tuple(stored[name].get_slice(name).get_shape())
    wrong = {
        "missing": [name for name in expected if name not in stored],
        "unknown": [name for name in stored if name not in expected],
        "of another shape": [
            f"{name} {shape_of(name)} for {shape}"
            for name, shape in expected.items()
            if name in stored and shape_of(name) != shape
        ],
    }
    said = []
    for kind, names in wrong.items():
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            said.append(f"{', '.join(names[:LISTED])}{more} {'is' if len(names) == 1 else 'are'} {kind}")
    if said:
        raise ValueError(f"the weights in {folder} do not fit its configuration: {'; '.join(said)}")


def save(folder: os.PathLike | str, model: MaskedLanguageModel, *, file_bytes: int = 5 * 10**9) -> None:
    """Writes a network as it is published: config.json and safetensors, in the dtype of its parameters.

    Args:
        folder: made if it is not there.
        model: its parameters may be sharded over devices of this process.
        file_bytes: where the weights are more, they are split into files of at most so many bytes (at least one
            parameter each) with an index. One file's tensors are in memory at once.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    module = architecture_of(model.config)
    layout = module.tensors(model.config)
    params = flax.traverse_util.flatten_dict(model.params)
    files, size = [[]], 0
    for path in layout:
        if files[-1] and size + params[path].nbytes > file_bytes:
            files.append([])
            size = 0
        files[-1].append(path)
        size += params[path].nbytes
    count = len(files)
    names = [SINGLE] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    for name, paths in zip(names, files, strict=True):
        content = {
            tensor.name: tensors.to_file(np.asarray(params[path]), tensor) for path in paths for tensor in layout[path]
        }
        save_file(content, os.fspath(folder / name), metadata={"format": "pt"})
    if count > 1:
        weight_map = {
            tensor.name: name
            for name, paths in zip(names, files, strict=True)
            for path in paths
            for tensor in layout[path]
        }
        total = {"total_size": sum(params[path].nbytes for path in layout)}
        (folder / INDEX).write_text(json.dumps({"metadata": total, "weight_map": weight_map}, indent=2))
    fields = module.to_fields(model.config) | {"torch_dtype": str(params["embedding",].dtype)}
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
