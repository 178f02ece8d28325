"""A loop for each device: rows are shared out, and no device waits for another's slowest row."""

from collections.abc import Callable

import jax


def check_divisible(mesh: jax.sharding.Mesh | None, count: int, name: str) -> None:
    """Raises `ValueError` unless each device of the mesh, if there is one, gets as many rows as the others."""
    if mesh is not None and count % mesh.size:
        raise ValueError(
            f"{name} {count} is not divisible by the {mesh.size} devices of the mesh; "
            f"choose a multiple of {mesh.size}, or a mesh of fewer devices"
        )


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
    rows = jax.P(mesh.axis_names)
    # Nothing claims to be equal on all devices, so there is nothing to check, and a model need not know of meshes.
    return jax.shard_map(loop, mesh=mesh, in_specs=(jax.P(), jax.P(), rows), out_specs=rows, check_vma=False)
