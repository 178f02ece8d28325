"""Logical axes of parameters and activations. Which mesh axis each one goes to is decided by the trainer's table."""

from collections.abc import Sequence

import flax.linen as nn
import jax


def constrain(x: jax.Array, logical_axes: Sequence[str | None]) -> jax.Array:
    """Shards an activation by its logical axes; the identity where no rules are set.

    `nn.with_logical_constraint` silently does nothing unless both the rules and the mesh are set while tracing. This
    one raises instead.

    Args:
        x: an activation.
        logical_axes: one name (or None) for each dimension.

    Returns:
        `x`, constrained.

    Raises:
        ValueError: where logical axis rules are set but no mesh is.
    """
    rules = nn.get_logical_axis_rules()
    if not rules:
        return x
    if jax.sharding.get_abstract_mesh().empty:
        raise ValueError(
            "logical axis rules are set but no mesh is: the sharding constraints would be lost. "
            "Trace under jax.set_mesh(mesh)."
        )
    spec = nn.logical_to_mesh_axes(tuple(logical_axes), rules)
    return jax.lax.with_sharding_constraint(x, spec)
