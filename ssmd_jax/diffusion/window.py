"""Windows: how many tracks are drafted when `i` are revealed (METHOD.md section 5).

A window is a hashable object with `table(length) -> int array [length]`, entry `i` in `1..length-i`. Tables are built
in NumPy float64: float32 rounds another way at a few `i`.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np


class Window(Protocol):
    """What the samplers and the likelihood ask of a window."""

    def table(self, length: int) -> np.ndarray:
        """Window sizes `[length]` for a sequence of `length` tokens, entry `i` for `i` revealed tokens."""
        ...


def _require_positive_int(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


@dataclasses.dataclass(frozen=True)
class CosineWindow:
    """Few tokens early, many late: `i` moves by `delta_tau` along the cosine schedule `i = D (1 - cos(pi tau / 2))`.

    `W(i) = max(1, ceil(D (1 - cos(pi/2 min(1, tau(i) + delta_tau)))) - i)` with `tau(i) = 2/pi arccos(1 - i/D)`.
    """

    delta_tau: float

    def __post_init__(self):
        if not 0 < self.delta_tau < math.inf:
            raise ValueError(f"CosineWindow: delta_tau must be positive and finite, got {self.delta_tau!r}")

    def table(self, length: int) -> np.ndarray:
        revealed = np.arange(length, dtype=np.float64)
        tau = np.arccos(1 - revealed / length) * 2 / np.pi
        end = np.ceil(length * (1 - np.cos(np.pi / 2 * np.minimum(1.0, tau + self.delta_tau))))
        return np.clip(end - revealed, 1, length - revealed).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class LinearWindow:
    """`W(i) = max(1, ceil(first + (last - first) i / (D - 1)))`, at most what is left; `first` at `D = 1`."""

    first: float
    last: float

    def __post_init__(self):
        for name, value in (("first", self.first), ("last", self.last)):
            if not 0 < value < math.inf:
                raise ValueError(f"LinearWindow: {name} must be positive and finite, got {value!r}")

    def table(self, length: int) -> np.ndarray:
        revealed = np.arange(length, dtype=np.float64)
        sizes = np.ceil(self.first + (self.last - self.first) * revealed / max(length - 1, 1))
        return np.minimum(np.maximum(sizes, 1), length - revealed).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class ConstantWindow:
    """Always `size` tracks, at most what is left."""

    size: int

    def __post_init__(self):
        _require_positive_int(self.size, "ConstantWindow: size")

    def table(self, length: int) -> np.ndarray:
        return np.minimum(self.size, length - np.arange(length)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class FullWindow:
    """All that is left: the sampler of the paper's likelihood recursion."""

    def table(self, length: int) -> np.ndarray:
        return (length - np.arange(length)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class TableWindow:
    """Sizes written out for one length, such as `diffusion.schedule` finds them; other lengths scale them.

    For `length` other than `D = len(sizes)`: the window that stands at the same fraction, taken to `length`,
    `W(i) = ceil((j + sizes[j]) length / D) - i` with `j = floor(i D / length)`.
    """

    sizes: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.sizes:
            raise ValueError("TableWindow: sizes must not be empty")
        checked_table(self, len(self.sizes))

    def table(self, length: int) -> np.ndarray:
        own = len(self.sizes)
        if length == own:
            return np.asarray(self.sizes, np.int32)
        revealed = np.arange(length)
        source = revealed * own // length
        end = -(-(source + np.asarray(self.sizes)[source]) * length // own)
        return np.clip(end - revealed, 1, length - revealed).astype(np.int32)


def window_starts(window: Window, length: int) -> np.ndarray:
    """The first track of the window that each track lies in, of a sampler that begins with nothing revealed.

    Args:
        window: the window.
        length: tokens `D`.

    Returns:
        int32 `[D]`.
    """
    table = checked_table(window, length)
    starts, start = np.zeros(length, np.int32), 0
    while start < length:
        starts[start : start + table[start]] = start
        start += table[start]
    return starts


def window_by_name(name: str, delta_tau: float) -> Window:
    """A window as configs and flags write it.

    Args:
        name: "cosine", "full", a whole number of tracks, or "FIRST..LAST" for a linear window.
        delta_tau: step of the cosine window.

    Raises:
        ValueError: for any other name, or a value out of range.
    """
    if name == "cosine":
        return CosineWindow(delta_tau)
    if name == "full":
        return FullWindow()
    first, dots, last = name.partition("..")
    try:
        sizes = (float(first), float(last)) if dots else (int(first),)
    except ValueError:
        raise ValueError(
            f'window must be "cosine", "full", a whole number of tracks or FIRST..LAST, got {name!r}'
        ) from None
    return LinearWindow(*sizes) if dots else ConstantWindow(*sizes)


def checked_table(window: Window, length: int) -> np.ndarray:
    """The window's table for sequences of `length` tokens, after checking it.

    Returns:
        int32 `[length]`, entry `i` in `1..length-i`.

    Raises:
        ValueError: if the object has no `table`, or the table has another shape, dtype or a value out of range.
    """
    if not hasattr(window, "table"):
        raise ValueError(f"window must have a method table(length), got {window!r}; see ssmd_jax.diffusion.window")
    table = np.asarray(window.table(length))
    if table.shape != (length,) or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(
            f"window {window!r}: table({length}) must be integers of shape ({length},), "
            f"got {table.dtype} of shape {table.shape}"
        )
    bad = np.flatnonzero((table < 1) | (table > length - np.arange(length)))
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"window {window!r}: table({length})[{i}] is {table[i]}, it must lie between 1 and {length - i}, "
            "the number of tokens left"
        )
    return table.astype(np.int32)


def passes_left(table: np.ndarray) -> np.ndarray:
    """Outer passes that a table needs from `i` on when every window is revealed whole: `R(i) = 1 + R(i + W(i))`.

    Args:
        table: int `[length]`, a checked table.

    Returns:
        int32 `[length + 1]`; the last entry is 0.
    """
    length = len(table)
    passes = np.zeros(length + 1, np.int32)
    for i in range(length - 1, -1, -1):
        passes[i] = 1 + passes[i + table[i]]
    return passes


def merged_table(table: np.ndarray, num_passes: int) -> np.ndarray:
    """Windows when at most `num_passes` passes remain (METHOD.md section 5, fixed budget).

    Where the table needs `R(i) > num_passes` passes, `ceil(R(i) / num_passes)` consecutive windows are taken as one.

    Args:
        table: int `[length]`, a checked table.
        num_passes: at least 1.

    Returns:
        int32 `[length]`.
    """
    start = np.arange(len(table))
    merge = -(-passes_left(table)[:-1] // num_passes)
    sizes = np.append(table, 0)
    end = start
    for taken in range(int(merge.max())):
        end = np.where(taken < merge, end + sizes[end], end)
    return (end - start).astype(np.int32)
