"""A loop for each device: rows are shared out, and no device waits for another's slowest row."""

from collections.abc import Callable

import jax
from flax import linen as nn


def check_divisible(mesh: jax.sharding.Mesh | None, count: int, name: str) -> None:
    """Raises `ValueError` unless each device of the mesh, if there is one, gets as many rows as the others."""
    if mesh is not None and count % mesh.size:
        raise ValueError(
            f"{name} {count} is not divisible by the {mesh.size} devices of the mesh; "
            f"choose a multiple of {mesh.size}, or a mesh of fewer devices"
        )


def with_auto_axes(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The same mesh, whatever the types of its axes were: `jax.make_mesh` makes explicit ones."""
    auto = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
    return jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=auto)


def place(mesh: jax.sharding.Mesh | None, model, rules, rows):
    """Model and rules on every device, rows shared out; as they are without a mesh.

    A loaded model is committed to one device, and a program of several devices would refuse it.
    """
    if mesh is None:
        return model, rules, rows
    mesh = with_auto_axes(mesh)
    everywhere, shared = jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P(mesh.axis_names))
    return *jax.device_put((model, rules), everywhere), jax.device_put(rows, shared)


def over_devices(loop: Callable, mesh: jax.sharding.Mesh | None) -> Callable:
    """`loop(model, rules, rows)` on each device for its own rows, in order; `loop` itself without a mesh.

    The model and the rules are copied to every device before the loop starts: in it nothing is communicated. All axes
    of the mesh share out rows, whatever their names.

    Args:
        loop: its result has leading axis B, or an entry a loop.
        mesh: of devices; None for one device.
    """
    if mesh is None:
        return loop
    mesh, rows = with_auto_axes(mesh), jax.P(mesh.axis_names)

    def on_one_device(*args):
        # Inside, there is one device: the trainer's rules, where they are set, have nothing to say.
        with nn.logical_axis_rules(()):
            return loop(*args)

    # Nothing claims to be equal on all devices, so there is nothing to check, and a model need not know of meshes.
    return jax.shard_map(on_one_device, mesh=mesh, in_specs=(jax.P(), jax.P(), rows), out_specs=rows, check_vma=False)
