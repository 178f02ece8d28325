"""A few static sizes, for windows that grow while sampling and for rows of many lengths: the smallest that holds all is
paid for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# The sizes are the largest window divided by these. A size more is a compiled branch more, and a quarter would save a
# hundredth of the time at most: most passes have large windows.
DIVISORS = (2, 1)
# Below this the head is cheap whatever the window.
LEAST = 5


def static_sizes(size: int) -> tuple[int, ...]:
    """The sizes to choose from, ascending; the last is `size`, the largest window that can occur."""
    if size < LEAST:
        return (size,)
    return tuple(sorted({-(-size // divisor) for divisor in DIVISORS} | {size}))


def even_sizes(largest: int, count: int, multiple: int = 1) -> tuple[int, ...]:
    """At most `count` sizes up to `largest`, evenly spaced, multiples of `multiple`, ascending."""
    units = largest // multiple
    return tuple(sorted({-(-units * n // count) * multiple for n in range(1, count + 1)}))


def at_size(sizes: tuple[int, ...], needed: jax.Array, function: Callable, *operands):
    """`function(*operands, size)` at the smallest size that is at least `needed`.

    A branch of the compiled program, so that only the chosen size is computed. `needed` must be one number for the
    whole batch: with one a row there would be no branch.

    Args:
        sizes: static, ascending.
        needed: int scalar, at most the last size.
        function: its results must not depend on the size in shape.
        operands: passed on.
    """
    # Plain Python functions of their own, since a size must not be traced.
    branches = [lambda *args, size=size: function(*args, size) for size in sizes]
    if len(branches) == 1:
        return branches[0](*operands)
    index = sum(needed > size for size in sizes[:-1])
    return jax.lax.switch(jnp.asarray(index, jnp.int32), branches, *operands)
