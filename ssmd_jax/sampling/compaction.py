"""A loop over rows of which ever fewer take part: those that still do move into smaller batches of static sizes.

A loop over a batch waits for its slowest row, and the last rows would pay for all of them.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

# The sizes are the batch divided by these. A size more is the body compiled once more, and a quarter besides would save
# a fiftieth of the rounds' rows; 1, 4, 16 save less than these, since the first half to finish weighs most.
DIVISORS = (1, 2, 8)
# Below this a step costs about the same however few its rows.
LEAST_ROWS = 32


def row_sizes(num_rows: int) -> tuple[int, ...]:
    """The sizes of the batches that the rows of a loop go through, descending; the first is `num_rows`."""
    if num_rows < LEAST_ROWS:
        return (num_rows,)
    return tuple(num_rows // divisor for divisor in DIVISORS)


def while_active(
    is_active: Callable[[Any, Any], jax.Array], step: Callable[[Any, Any], Any], given: Any, state: Any
) -> Any:
    """`while any(is_active(given, state)): state = step(given, state)`, each step on no more rows than it must.

    A row's new state must depend on its own `given` and `state` alone. So the result is that of the plain loop, up to
    how a network's products round at other batch sizes. Half and then an eighth of both arguments is copied.

    Args:
        is_active: bool `[B]`, the rows that take part in the next step; one that does not never does again.
        step: the next state; leaves rows that take no part as they are.
        given: pytree with leading axis B in every leaf.
        state: likewise.
    """
    num_rows = jax.tree.leaves(state)[0].shape[0]
    chex.assert_tree_shape_prefix((given, state), (num_rows,))
    return _while_active(is_active, step, given, state, row_sizes(num_rows))


def _while_active(is_active: Callable, step: Callable, given: Any, state: Any, sizes: tuple[int, ...]) -> Any:
    """`while_active` on rows of which there are `sizes[0]`: down to `sizes[1]` here, the rest in a batch of those."""
    fewer = sizes[1] if len(sizes) > 1 else 0
    are_many = lambda state: jnp.sum(is_active(given, state)) > fewer
    state = jax.lax.while_loop(are_many, lambda state: step(given, state), state)
    if not fewer:
        return state

    def in_smaller_batch(state: Any) -> Any:
        # Active rows first; those that fill up are rows too, all different, and stay as they are.
        index_R = jnp.argsort(~is_active(given, state), stable=True)[:fewer]
        rows = _while_active(is_active, step, take_rows(given, index_R), take_rows(state, index_R), sizes[1:])
        return put_rows(state, index_R, rows)

    # A branch, so that nothing is copied where nothing is left.
    return jax.lax.cond(jnp.any(is_active(given, state)), in_smaller_batch, lambda state: state, state)


def take_rows(rows: Any, index_R: jax.Array) -> Any:
    """The rows `index[r]` of every leaf."""
    return jax.tree.map(lambda x: jnp.asarray(x)[index_R], rows)


def put_rows(rows: Any, index_R: jax.Array, values: Any) -> Any:
    """`rows` with row `index[r]` of every leaf replaced by row `r` of `values`; no index twice."""
    return jax.tree.map(lambda x, value: x.at[index_R].set(value, unique_indices=True), rows, values)
