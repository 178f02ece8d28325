"""All sharding: the mesh, the one table from logical axes to mesh axes, and what follows from it.

The axes are of type Auto: the compiler (GSPMD) inserts the communication, `model/partitioning.py::constrain` and the
shardings of the state tell it where.
"""

import contextlib
import math

import flax.linen as nn
import jax
import numpy as np

from ssmd_jax.training.config import MeshConfig

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. The names on the left are those of `ssmd_jax/model`.
RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("embed_out", "tensor"),
    ("embed_activation", None),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
)


def make_mesh(config: MeshConfig, devices: list | None = None) -> jax.sharding.Mesh:
    """The device mesh, axes `MESH_AXES`.

    One process may use fewer devices than there are; several processes must use all.

    Args:
        config: sizes of the axes.
        devices: None for all devices.

    Raises:
        ValueError: where the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    what = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if -1 in sizes:
        if len(devices) % fixed:
            raise ValueError(f"mesh {what}: the {len(devices)} devices cannot be divided by {fixed}")
        sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    needed = math.prod(sizes)
    if needed > len(devices) or (jax.process_count() > 1 and needed != len(devices)):
        raise ValueError(f"mesh {what} needs {needed} devices, and there are {len(devices)}: change the mesh section")
    auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=auto, devices=devices[:needed])


def rules_for(mesh: jax.sharding.Mesh, num_tokens: int):
    """The table for a vocabulary: one that the tensor axis does not divide stays whole.

    Every other dimension is the user's choice and must be divisible; the number of tokens is the tokenizer's.
    """
    if num_tokens % _ways(mesh, dict(RULES)["vocab"]):
        return tuple((name, None if name == "vocab" else axes) for name, axes in RULES)
    return RULES


@contextlib.contextmanager
def activate(mesh: jax.sharding.Mesh, rules=RULES):
    """Context for tracing: the mesh AND the rules. With only one of them constraints would be lost (or raise)."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def mesh_spec(logical_axes: tuple[str | None, ...], rules=RULES) -> jax.P:
    """The partition spec of an array with these logical axes.

    Raises:
        ValueError: for a logical axis that the table does not know, and where two axes of one array would go to the
            same mesh axis (Flax would silently drop the second).
    """
    table = dict(rules)
    entries, used = [], {}
    for name in logical_axes:
        if name is not None and name not in table:
            raise ValueError(f"logical axis {name!r} is not in the sharding table; add it to RULES")
        entry = None if name is None else table[name]
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            if axis in used:
                raise ValueError(
                    f"sharding table: logical axes {used[axis]!r} and {name!r} of one array {logical_axes} "
                    f"both go to mesh axis {axis!r}"
                )
            used[axis] = name
        entries.append(entry)
    return jax.P(*entries)


def _ways(mesh: jax.sharding.Mesh, entry) -> int:
    return math.prod(mesh.shape[axis] for axis in ((entry,) if isinstance(entry, str) else entry or ()))


def param_shardings(boxed_params, mesh: jax.sharding.Mesh, rules=RULES):
    """Shardings of parameters, from the logical axes that `network.init` boxes them with.

    Args:
        boxed_params: abstract or concrete parameters with their `nn.LogicallyPartitioned` boxes.
        mesh: the device mesh.
        rules: the table.

    Returns:
        A tree of `NamedSharding`, as the unboxed parameters.

    Raises:
        ValueError: as `mesh_spec`, and where a dimension is not divisible by its mesh axes.
    """

    def one(path, logical, param):
        # The embedding has a row more than there are tokens, the mask's: one of V and V + 1 is never divisible.
        is_whole = lambda axis, name: name == "vocab" and param.shape[axis] % _ways(mesh, dict(rules)[name])
        spec = mesh_spec(tuple(None if is_whole(axis, name) else name for axis, name in enumerate(logical)), rules)
        name = "/".join(str(entry.key) for entry in path)
        for axis, entry in enumerate(spec):
            if param.shape[axis] % _ways(mesh, entry):
                raise ValueError(
                    f"parameter {name} of shape {param.shape}: dimension {axis} is not divisible by mesh.{entry} "
                    f"{_ways(mesh, entry)}; choose a mesh.{entry} that divides {param.shape[axis]}"
                )
        return jax.NamedSharding(mesh, spec)

    specs = nn.get_partition_spec(boxed_params)
    is_spec = lambda x: isinstance(x, jax.P)
    return jax.tree.map_with_path(one, specs, nn.unbox(boxed_params), is_leaf=is_spec)


def replicated(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """The sharding of scalars and keys: a copy everywhere."""
    return jax.NamedSharding(mesh, jax.P())


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """The sharding of tokens `[B, D]`: rows over the data and fsdp axes."""
    return jax.NamedSharding(mesh, mesh_spec(("batch", None)))


def check_batch(mesh: jax.sharding.Mesh, batch_size: int, name: str, accumulation: int = 1) -> None:
    """Raises `ValueError` unless each device gets the same number of rows in each micro-batch."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (ways * accumulation):
        micro = f" times training.accumulation {accumulation}" if accumulation > 1 else ""
        raise ValueError(
            f"{name} {batch_size} is not divisible by the {ways} devices that share the batch{micro}; "
            f"choose a multiple of {ways * accumulation}"
        )


def to_devices(mesh: jax.sharding.Mesh, local_BxD: np.ndarray) -> jax.Array:
    """The global batch `[B, D]` from each process's own rows."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), local_BxD)
