"""Windows: the table of METHOD.md section 5, and what it costs."""

import math

import numpy as np
import pytest

from ssmd_jax.diffusion.window import (
    ConstantWindow,
    CosineWindow,
    FullWindow,
    LinearWindow,
    TableWindow,
    checked_table,
    merged_table,
    passes_left,
    window_by_name,
    window_starts,
)


@pytest.mark.parametrize("length", [1, 2, 7, 256, 1024])
@pytest.mark.parametrize("delta_tau", [0.002, 0.01, 0.083, 0.3, 1.0, 5.0])
def test_cosine_formula(length, delta_tau):
    """Entry by entry, in Python floats."""
    table = checked_table(CosineWindow(delta_tau), length)
    for i in range(length):
        tau = 2 / math.pi * math.acos(1 - i / length)
        size = max(1, math.ceil(length * (1 - math.cos(math.pi / 2 * min(1.0, tau + delta_tau)))) - i)
        assert table[i] == min(size, length - i)


def test_cosine_passes_of_the_paper():
    """At D = 256: 12 outer passes at 0.083, at least 80 at 0.01 (METHOD.md section 5); the largest window is small."""
    assert passes_left(CosineWindow(0.083).table(256))[0] == 12
    assert passes_left(CosineWindow(0.01).table(256))[0] == 80
    assert CosineWindow(0.083).table(256).max() <= math.ceil(256 * math.pi / 2 * 0.083) + 1


def test_linear_formula():
    assert LinearWindow(1, 4).table(7).tolist() == [1, 2, 2, 3, 3, 2, 1]
    assert LinearWindow(3, 9).table(1).tolist() == [1]
    assert LinearWindow(0.5, 0.5).table(4).tolist() == [1, 1, 1, 1]
    assert LinearWindow(4, 1).table(5).tolist() == [4, 4, 3, 2, 1]


def test_constant_and_full():
    assert ConstantWindow(3).table(5).tolist() == [3, 3, 3, 2, 1]
    assert FullWindow().table(3).tolist() == [3, 2, 1]


def test_table_window():
    """Its own length as written; other lengths take the window that stands at the same fraction."""
    window = TableWindow((1, 2, 2, 1))
    assert window.table(4).tolist() == [1, 2, 2, 1]
    assert window.table(8).tolist() == [2, 1, 4, 3, 4, 3, 2, 1]
    assert window.table(2).tolist() == [1, 1]
    assert window.table(1).tolist() == [1]
    for length in (3, 5, 7, 100, 1023):
        checked_table(window, length)
    assert hash(window) == hash(TableWindow([1, 2, 2, 1]))
    for sizes in ((), (2, 2), (0, 1)):
        with pytest.raises(ValueError, match="TableWindow"):
            TableWindow(sizes)


def test_merged_windows():
    """With n passes left, ceil(R / n) consecutive windows are one."""
    table = ConstantWindow(2).table(10)
    assert passes_left(table).tolist() == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0]
    assert [int(merged_table(table, n)[0]) for n in (1, 2, 3, 4, 5, 9)] == [10, 6, 4, 4, 2, 2]
    assert merged_table(table, 2).tolist() == [6, 6, 4, 4, 4, 4, 2, 2, 2, 1]
    assert merged_table(table, 1).tolist() == list(range(10, 0, -1))


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_starts_are_those_of_a_walk(length):
    for made in (CosineWindow(0.04), CosineWindow(1.0), ConstantWindow(3), FullWindow()):
        expected, revealed, table = [], 0, made.table(length)
        while revealed < length:
            expected += [revealed] * table[revealed]
            revealed += table[revealed]
        assert window_starts(made, length).tolist() == expected


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: CosineWindow(0), "delta_tau"),
        (lambda: CosineWindow(-0.1), "delta_tau"),
        (lambda: CosineWindow(math.nan), "delta_tau"),
        (lambda: LinearWindow(0, 3), "first"),
        (lambda: LinearWindow(1, -3), "last"),
        (lambda: ConstantWindow(0), "size"),
        (lambda: ConstantWindow(-2), "size"),
        (lambda: ConstantWindow(1.5), "size"),
    ],
)
def test_bad_windows_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


class Custom:
    def __init__(self, values):
        self.values = values

    def table(self, length):
        return np.asarray(self.values)


@pytest.mark.parametrize("values", [[1, 1], [1, 1, 2], [0, 1, 1], [1.0, 1.0, 1.0], [[1], [1], [1]]])
def test_bad_tables_are_refused(values):
    with pytest.raises(ValueError, match="table"):
        checked_table(Custom(values), 3)


def test_good_custom_table():
    assert checked_table(Custom([3, 1, 1]), 3).tolist() == [3, 1, 1]


def test_windows_by_name():
    assert window_by_name("cosine", 0.1) == CosineWindow(0.1)
    assert window_by_name("full", 0.1) == FullWindow()
    assert window_by_name("3", 0.1) == ConstantWindow(3)
    assert window_by_name("1..4.5", 0.1) == LinearWindow(1, 4.5)
    for name in ("wide", "", "..", "1..", "2.5", "1..2..3"):
        with pytest.raises(ValueError, match="window must be"):
            window_by_name(name, 0.1)
