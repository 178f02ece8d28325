"""Windows of a batch, and the fixed compute budget (METHOD.md section 5)."""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.window import Window, checked_table, merged_window, passes_left

# Spending is counted in whole passes and rounds: float32 sums of twelfths overshoot integers.
TOLERANCE = 1e-4


@flax.struct.dataclass
class Windows:
    """Window tables of a batch, one a row, since `W` depends on the length.

    Attributes:
        table_BxD: int32, `W(i)`; 0 at and past the row's length.
        passes_left_BxD: int32, `R(i)`; 0 at and past the row's length.
    """

    table_BxD: jax.Array
    passes_left_BxD: jax.Array

    def plain(self, num_revealed_B: jax.Array) -> jax.Array:
        """`W(i)`, int32 `[B]`; 0 in finished rows."""
        return _at(self.table_BxD, num_revealed_B)

    def merged(self, num_revealed_B: jax.Array, num_passes_B: jax.Array, size: int) -> jax.Array:
        """The window when at most `num_passes` can still be paid: several consecutive ones, at most `size`."""
        merge_B = -(-_at(self.passes_left_BxD, num_revealed_B) // jnp.maximum(num_passes_B, 1))

        def more(carry):
            taken, end_B = carry
            return jnp.any((taken < merge_B) & (end_B - num_revealed_B < size) & (self.plain(end_B) > 0))

        def take(carry):
            taken, end_B = carry
            return taken + 1, jnp.where(taken < merge_B, end_B + self.plain(end_B), end_B)

        _, end_B = jax.lax.while_loop(more, take, (jnp.int32(0), num_revealed_B))
        return jnp.minimum(end_B - num_revealed_B, size)


def _at(table_BxD: jax.Array, index_B: jax.Array) -> jax.Array:
    """`table[b, index[b]]`, 0 past the end."""
    inside_B = index_B < table_BxD.shape[1]
    index_B = jnp.minimum(index_B, table_BxD.shape[1] - 1)
    return jnp.where(inside_B, jnp.take_along_axis(table_BxD, index_B[:, None], axis=1)[:, 0], 0)


def windows(window: Window, lengths_B: np.ndarray, length: int, max_passes: int | None) -> tuple[Windows, int]:
    """Tables for a batch, and the static size that holds every window.

    Args:
        window: the window.
        lengths_B: NumPy, length of each row.
        length: of the canvas; its own table counts too, so that the size does not change with the batch.
        max_passes: passes that the whole budget can pay; None without a budget.

    Returns:
        The tables, and the largest window that can occur.
    """
    table_BxD = np.zeros((len(lengths_B), length), np.int32)
    passes_BxD = np.zeros((len(lengths_B), length), np.int32)
    size = 1
    for row_length in sorted({length, *(int(n) for n in lengths_B)}):
        table = checked_table(window, row_length)
        rows = lengths_B == row_length
        table_BxD[rows, :row_length] = table
        passes_BxD[rows, :row_length] = passes_left(table)[:-1]
        largest = table.max()
        if max_passes is not None:
            largest = max(merged_window(table, i, max_passes) for i in range(row_length))
        size = max(size, int(largest))
    return Windows(jnp.asarray(table_BxD), jnp.asarray(passes_BxD)), size


@flax.struct.dataclass
class Purse:
    """What a row may spend.

    Attributes:
        budget_nfe: float scalar; None without a bound.
        trunk_cost: NFE of a pass.
        verify_cost: NFE of a round; 0 for the plain sampler.
    """

    budget_nfe: jax.Array | None
    trunk_cost: float = flax.struct.field(pytree_node=False)
    verify_cost: float = flax.struct.field(pytree_node=False)

    def passes_payable(self, passes_B: jax.Array, rounds_B: jax.Array) -> jax.Array:
        """How many further passes, with one round each, can be paid; int32 `[B]`. Needs a budget."""
        left_B = self.budget_nfe + TOLERANCE - (passes_B * self.trunk_cost + rounds_B * self.verify_cost)
        return jnp.floor(left_B / (self.trunk_cost + self.verify_cost)).astype(jnp.int32)

    def round_payable(self, passes_B: jax.Array, rounds_B: jax.Array) -> jax.Array:
        """Whether one further round can be paid; bool `[B]`."""
        if self.budget_nfe is None:
            return jnp.ones(passes_B.shape, bool)
        spent_B = passes_B * self.trunk_cost + (rounds_B + 1) * self.verify_cost
        return spent_B <= self.budget_nfe + TOLERANCE


def max_passes(budget_nfe: float | None, trunk_cost: float, verify_cost: float) -> int | None:
    """Passes, with one round each, that the whole budget pays; None without a budget.

    Raises:
        ValueError: if it does not pay one.
    """
    if budget_nfe is None:
        return None
    passes = int((budget_nfe + TOLERANCE) // (trunk_cost + verify_cost))
    if passes < 1:
        raise ValueError(
            f"budget_nfe = {budget_nfe:g} does not pay one trunk pass and one verify round, "
            f"which cost {trunk_cost + verify_cost:g}"
        )
    return passes
