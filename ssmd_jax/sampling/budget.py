"""Windows of a batch, and the fixed compute budget (METHOD.md section 5)."""

import fractions
import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.window import Window, checked_table, merged_table, passes_left

# A budget that falls short of a whole number of passes and rounds by this much still pays for them.
TOLERANCE = 1e-4
# Units of a budget, at most: what is spent and one round more stay below 2^31.
MOST_UNITS = 2**30


@flax.struct.dataclass
class Windows:
    """Window tables of a batch, one a row, since `W` depends on the length.

    Attributes:
        table_BxD: int32, `W(i)`; 0 at and past the row's length.
        passes_left_BxD: int32, `R(i)`; 0 at and past the row's length.
        largest_B: int32, the largest window that the row may take; a row's own, so that it does not depend on the
            other rows' lengths.
    """

    table_BxD: jax.Array
    passes_left_BxD: jax.Array
    largest_B: jax.Array

    def plain(self, num_revealed_B: jax.Array) -> jax.Array:
        """`W(i)`, int32 `[B]`; 0 in finished rows."""
        return _at(self.table_BxD, num_revealed_B)

    def merged(self, num_revealed_B: jax.Array, num_passes_B: jax.Array) -> jax.Array:
        """The window when at most `num_passes` can still be paid: several consecutive ones, at most `largest`."""
        merge_B = -(-_at(self.passes_left_BxD, num_revealed_B) // jnp.maximum(num_passes_B, 1))

        def more(carry):
            taken, end_B = carry
            return jnp.any((taken < merge_B) & (end_B - num_revealed_B < self.largest_B) & (self.plain(end_B) > 0))

        def take(carry):
            taken, end_B = carry
            return taken + 1, jnp.where(taken < merge_B, end_B + self.plain(end_B), end_B)

        _, end_B = jax.lax.while_loop(more, take, (jnp.int32(0), num_revealed_B))
        return jnp.minimum(end_B - num_revealed_B, self.largest_B)


def _at(table_BxD: jax.Array, index_B: jax.Array) -> jax.Array:
    """`table[b, index[b]]`, 0 past the end."""
    inside_B = index_B < table_BxD.shape[1]
    index_B = jnp.minimum(index_B, table_BxD.shape[1] - 1)
    return jnp.where(inside_B, jnp.take_along_axis(table_BxD, index_B[:, None], axis=1)[:, 0], 0)


@functools.lru_cache(maxsize=4096)
def _tables(window: Window, length: int, max_passes: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Table, passes left, and largest window of rows of one length; kept, since every batch asks for them."""
    table = checked_table(window, length)
    largest = table if max_passes is None else merged_table(table, max_passes)
    return table, passes_left(table)[:-1], int(largest.max())


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
    largest_B = np.ones(len(lengths_B), np.int32)
    size = 1
    for row_length in sorted({length, *(int(n) for n in lengths_B)}):
        table, passes, largest = _tables(window, row_length, max_passes)
        rows = lengths_B == row_length
        table_BxD[rows, :row_length] = table
        passes_BxD[rows, :row_length] = passes
        largest_B[rows] = largest
        size = max(size, largest)
    return Windows(table_BxD, passes_BxD, largest_B), size


@flax.struct.dataclass
class Purse:
    """What a row may spend, in whole units of which a pass and a round cost whole numbers.

    Float32 sums of twelfths overshoot integers, and at thousands of passes by more than any tolerance.

    Attributes:
        budget: int32 scalar, units; None without a bound.
        trunk_cost: units of a pass; 0 without a bound.
        verify_cost: units of a round; 0 for the plain sampler.
    """

    budget: jax.Array | None
    trunk_cost: int = flax.struct.field(pytree_node=False)
    verify_cost: int = flax.struct.field(pytree_node=False)

    def passes_payable(self, passes_B: jax.Array, rounds_B: jax.Array) -> jax.Array:
        """How many further passes, with one round each, can be paid; int32 `[B]`. Needs a budget."""
        left_B = self.budget - passes_B * self.trunk_cost - rounds_B * self.verify_cost
        return left_B // (self.trunk_cost + self.verify_cost)

    def round_payable(self, passes_B: jax.Array, rounds_B: jax.Array) -> jax.Array:
        """Whether one further round can be paid; bool `[B]`."""
        if self.budget is None:
            return jnp.ones(passes_B.shape, bool)
        return passes_B * self.trunk_cost + (rounds_B + 1) * self.verify_cost <= self.budget


def purse(
    budget_nfe: float | None, trunk_cost: float, verify_cost: float, round_name: str = "verify round"
) -> tuple[Purse, int | None]:
    """The purse of each row, and how many passes with one round each the whole budget pays (None without a budget).

    Costs that are no fractions of small denominators, or so unlike that a common unit of the two overflows, are rounded
    up to the finest unit that the budget has room for: the bound stays hard, and of `n` passes and rounds at most
    `n budget_nfe / 2^30` NFE are not spent.

    Args:
        budget_nfe: NFE, or None for no bound.
        trunk_cost: NFE of a pass.
        verify_cost: NFE of a round; 0 for the plain sampler.
        round_name: what the user knows a round as.

    Raises:
        ValueError: if the budget does not pay one pass and one round.
    """
    if budget_nfe is None:
        return Purse(None, 0, 0), None
    costs = [fractions.Fraction(cost) for cost in (trunk_cost, verify_cost)]
    simple = [cost.limit_denominator(10_000) for cost in costs]
    unit = math.lcm(*(cost.denominator for cost in simple))
    # Where the fractions are off, all that the budget pays is off by less than the tolerance.
    is_close = all(abs(near - cost) * budget_nfe <= TOLERANCE * cost for near, cost in zip(simple, costs, strict=True))
    most = budget_nfe + TOLERANCE
    if is_close and most * unit <= MOST_UNITS:
        trunk_units, verify_units = (int(cost * unit) for cost in simple)
    else:
        unit = max(1, math.floor(MOST_UNITS / most))
        trunk_units, verify_units = (math.ceil(cost * unit) for cost in costs)
    budget = min(math.floor(most * unit), MOST_UNITS)
    passes = budget // (trunk_units + verify_units)
    if passes < 1:
        what = f"one trunk pass and one {round_name}, which cost" if verify_units else "one trunk pass, which costs"
        raise ValueError(f"budget_nfe = {budget_nfe:g} does not pay {what} {trunk_cost + verify_cost:g}")
    return Purse(np.int32(budget), trunk_units, verify_units), passes
