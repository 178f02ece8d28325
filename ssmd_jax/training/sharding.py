"""All sharding: the mesh, the one table from logical axes to mesh axes, and what follows from it.

The axes are of type Auto: the compiler (GSPMD) inserts the communication, `model/partitioning.py::constrain` and the
shardings of the state tell it where.
"""

import contextlib
import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils

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
        ValueError: where the sizes do not fit the number of devices, or the groups of them that a slow network joins.
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
    devices = devices[:needed]
    num_slices = len(_slices(devices))
    slow_data = max(1, num_slices // config.dcn_fsdp) if config.dcn_data == -1 else config.dcn_data
    if num_slices * slow_data * config.dcn_fsdp == 1:
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=auto, devices=devices)
    hybrid = hybrid_devices(devices, sizes, (slow_data, config.dcn_fsdp, 1))
    return jax.sharding.Mesh(hybrid, MESH_AXES, axis_types=auto)


def _slices(devices: list) -> set[int | None]:
    """The groups of devices that a fast network joins, {None} where the devices know of none."""
    return {getattr(device, "slice_index", None) for device in devices}


def hybrid_devices(devices: list, sizes: Sequence[int], slow: Sequence[int]) -> np.ndarray:
    """Devices in an array of shape `sizes`, such that neighbours are joined by the fast network wherever possible.

    Along axis `n`, the array falls into `slow[n]` blocks; only from block to block does it cross the slow network. The
    groups that the fast network joins are the TPU slices (on GPUs, what NVLink joins) where the devices tell of
    several, and otherwise the processes.

    Args:
        devices: as many as `sizes` multiply to.
        sizes: of the axes, `MESH_AXES`.
        slow: number of blocks of each axis.

    Raises:
        ValueError: where an axis does not divide into its blocks, or there are more or fewer groups than blocks.
    """
    for axis, size, blocks in zip(MESH_AXES, sizes, slow, strict=True):
        if size % blocks:
            raise ValueError(
                f"mesh.{axis} {size} is not divisible by the {blocks} groups of devices over the slow network: change "
                f"it, or mesh.dcn_{axis}"
            )
    slices = _slices(devices)
    by_process = len(slices) == 1
    groups = {device.process_index for device in devices} if by_process else slices
    if len(groups) != math.prod(slow):
        kind = "process(es)" if by_process else "slices"
        raise ValueError(
            f"mesh.dcn_data {slow[0]} x mesh.dcn_fsdp {slow[1]} must be the number of groups of devices over the slow "
            f"network, and these are {len(groups)} {kind}: change these fields"
        )
    members = [sum(_group(device, by_process) == group for device in devices) for group in groups]
    if len(set(members)) > 1:
        raise ValueError(f"mesh: groups of {sorted(members)} devices over the slow network are not equally large")
    fast = tuple(size // blocks for size, blocks in zip(sizes, slow, strict=True))
    return mesh_utils.create_hybrid_device_mesh(
        fast, tuple(slow), devices, process_is_granule=by_process, allow_split_physical_axes=True
    )


def _group(device, by_process: bool) -> int:
    return device.process_index if by_process else device.slice_index


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


def axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of an entry of the table."""
    return (entry,) if isinstance(entry, str) else entry or ()


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
        for axis in axes_of(entry):
            if axis in used:
                raise ValueError(
                    f"sharding table: logical axes {used[axis]!r} and {name!r} of one array {logical_axes} "
                    f"both go to mesh axis {axis!r}"
                )
            used[axis] = name
        entries.append(entry)
    return jax.P(*entries)


def _ways(mesh: jax.sharding.Mesh, entry) -> int:
    return math.prod(mesh.shape[axis] for axis in axes_of(entry))


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
        # A small vocabulary is not padded, and the embedding has a row more than there are tokens, the mask's.
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


def root_key(mesh: jax.sharding.Mesh, seed: int) -> jax.Array:
    """The root of all random numbers, everywhere. Made there: a process cannot send what it has to others' devices."""
    return jax.jit(jax.random.key, static_argnums=0, out_shardings=replicated(mesh))(seed)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """The sharding of tokens `[B, D]`: rows over the data and fsdp axes."""
    return jax.NamedSharding(mesh, mesh_spec(("batch", None)))


def batch_ways(mesh: jax.sharding.Mesh) -> int:
    """Devices, or groups of them, that share the rows of a batch."""
    return _ways(mesh, dict(RULES)["batch"])


def check_batch(mesh: jax.sharding.Mesh, batch_size: int, name: str, accumulation: int = 1) -> None:
    """Raises `ValueError` unless each device gets the same number of rows in each micro-batch."""
    ways = batch_ways(mesh)
    if batch_size % (ways * accumulation):
        micro = f" times training.accumulation {accumulation}" if accumulation > 1 else ""
        raise ValueError(
            f"{name} {batch_size} is not divisible by the {ways} devices that share the batch{micro}; "
            f"choose a multiple of {ways * accumulation}"
        )


def from_copies(tree, shardings):
    """Arrays on the mesh from equal copies, one in each process; `jax.device_put` reaches this process's devices alone.

    Args:
        tree: arrays, each whole in every process.
        shardings: as the tree.
    """

    def one(array, where):
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


@functools.cache
def data_share(mesh: jax.sharding.Mesh, process: int | None = None) -> tuple[int, int]:
    """Which share of the rows of each global batch a process reads, `(index, count)`: share `index` of `count`.

    Processes whose devices hold the same rows (a tensor axis that spans them) read the same share, so there can be
    fewer shares than processes. Where the rows of a process's devices are not neighbours, the devices see the rows of
    the global batch in another order than one process would give them.

    Args:
        mesh: of all devices.
        process: its index; None for this process.

    Raises:
        ValueError: where processes share some of their rows, but not all.
    """
    process = jax.process_index() if process is None else process
    ways = batch_ways(mesh)
    parts = {}
    for device, (rows, *_) in batch_sharding(mesh).devices_indices_map((ways, 1)).items():
        parts.setdefault(device.process_index, set()).add(rows.start or 0)
    shares = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(map(len, shares)) != ways or len({len(share) for share in shares}) > 1:
        raise ValueError(
            f"mesh {dict(mesh.shape)}: some processes have a part of their rows of the batch in common; choose a "
            "mesh.tensor that divides the devices of a process, or is a multiple of them"
        )
    return shares.index(tuple(sorted(parts[process]))), len(shares)


def to_devices(mesh: jax.sharding.Mesh, local_BxD: np.ndarray) -> jax.Array:
    """The global batch `[B, D]` from each process's share of the rows."""
    _, count = data_share(mesh)
    rows, length = local_BxD.shape
    return jax.make_array_from_process_local_data(batch_sharding(mesh), local_BxD, (rows * count, length))
