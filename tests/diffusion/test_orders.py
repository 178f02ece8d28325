"""Orders and masks."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ssmd_jax.diffusion import masking, orders


def row_keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def test_uniform_order_is_uniform():
    """All 24 orders of four positions alike (chi-square), padding last and ascending."""
    lengths = jnp.full(12_000, 4)
    order = np.asarray(orders.uniform_order(row_keys(0, 12_000), lengths, 6))
    assert (order[:, 4:] == [4, 5]).all()
    counts = collections.Counter(map(tuple, order[:, :4].tolist()))
    assert set(counts) == set(itertools.permutations(range(4)))
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_given_positions_come_first():
    given = jnp.zeros((2000, 5), bool).at[:, jnp.array([1, 4])].set(True)
    order = np.asarray(orders.uniform_order(row_keys(1, 2000), jnp.full(2000, 5), 5, given))
    assert set(map(tuple, order[:, :2].tolist())) == {(1, 4), (4, 1)}
    assert set(map(tuple, order[:, 2:].tolist())) == set(itertools.permutations([0, 2, 3]))
    ascending = orders.ascending_order(jnp.array([5, 3]), 5, given[:2].at[1, 4].set(False))
    assert ascending.tolist() == [[1, 4, 0, 2, 3], [1, 0, 2, 3, 4]]


def test_dilated_order():
    """Levels one after the other, each in random order; given positions first, ascending; padding last."""
    assert orders.dilated_strides(8) == [4, 2, 1] and orders.dilated_strides(6) == [3, 1]
    assert orders.dilated_strides(27, 3) == [9, 3, 1] and orders.dilated_strides(1) == [1]
    order = np.asarray(orders.dilated_order(row_keys(3, 2000), jnp.full(2000, 8), 9))
    assert set(map(tuple, order[:, :2].tolist())) == {(0, 4), (4, 0)}
    assert set(map(tuple, order[:, 2:4].tolist())) == {(2, 6), (6, 2)}
    assert len(set(map(tuple, order[:, 4:8].tolist()))) == 24 and (order[:, 8] == 8).all()
    given = jnp.zeros((2000, 9), bool).at[:, jnp.array([1, 4])].set(True)
    order = np.asarray(orders.dilated_order(row_keys(3, 2000), jnp.full(2000, 8), 9, given))
    assert (order[:, :3] == [1, 4, 0]).all() and set(order[:, 3].tolist()) == {2, 6}


def test_order_depends_on_neither_canvas_nor_batch():
    keys = row_keys(2, 3)
    wide = orders.uniform_order(keys, jnp.array([4, 6, 5]), 9)
    narrow = orders.uniform_order(keys[:1], jnp.array([4]), 4)
    np.testing.assert_array_equal(wide[0, :4], narrow[0])


def test_sequence_order_and_back():
    order = orders.uniform_order(row_keys(3, 5), jnp.array([7, 3, 7, 1, 5]), 7)
    values = jnp.arange(35).reshape(5, 7)
    tracks = orders.to_order_space(values, order)
    for b, k in itertools.product(range(5), range(7)):
        assert tracks[b, k] == values[b, order[b, k]]
    np.testing.assert_array_equal(orders.to_sequence_order(tracks, order), values)


def test_mask_suffix():
    tokens = jnp.array([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    assert masking.mask_suffix(tokens, jnp.array([0, 2, 3]), 9).tolist() == [[9, 9, 9], [1, 2, 9], [1, 2, 3]]


def test_stratified_number_of_revealed_tokens():
    """Every value in range, uniform on each row, and evenly spread over each batch."""
    lengths = jnp.array([8] * 16)
    draws = np.stack([masking.stratified_num_revealed(jax.random.key(s), lengths) for s in range(400)])
    for batch in draws:
        assert np.bincount(batch, minlength=8).tolist() == [2] * 8
    assert scipy.stats.chisquare(np.bincount(draws[:, 3], minlength=8)).pvalue > 1e-3
    mixed = np.stack([masking.stratified_num_revealed(jax.random.key(s), jnp.array([1, 2, 5])) for s in range(400)])
    assert mixed.max(axis=0).tolist() == [0, 1, 4] and not mixed.min(axis=0).any()


@pytest.mark.parametrize("batch", [1, 2, 4, 6, 8, 12, 64, 97])
def test_strata_of_neighbouring_rows_are_far_apart(batch):
    """A permutation of which every run of rows, a device's share, covers the range."""
    strata = masking.strata(batch)
    assert sorted(strata) == list(range(batch))
    for share in (2, 4, 8):
        for start in range(0, batch - share + 1, share):
            some = np.sort(strata[start : start + share])
            assert np.diff(some, append=batch + some[0]).max() <= max(2 * batch / share, 2)


def test_spread_order():
    """Windows of the order lie spread over the row, and every position comes first as often as any other."""
    length = 200
    order = np.asarray(orders.spread_order(row_keys(3, 300), jnp.full(300, length), length + 7))
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(length + 7), (300, 1)))
    np.testing.assert_array_equal(order[:, length:], np.tile(np.arange(length, length + 7), (300, 1)))
    for size in range(2, 33):
        for first in (0, 37, length - size):
            window = np.sort(order[:, first : first + size])
            assert np.diff(window, axis=1).min() >= np.floor(0.44 * length / size) - 1
    assert np.diff(np.sort(order[:, :8])).min() >= 12
    firsts = np.asarray(orders.spread_order(row_keys(5, 4000), jnp.full(4000, 8), 8))[:, 0]
    assert scipy.stats.chisquare(np.bincount(firsts, minlength=8)).pvalue > 1e-3


def test_spread_order_of_rows_with_prompts_and_lengths():
    """Given positions first, padding last, and the free ones spread by their ranks; a row does not see its batch."""
    lengths = jnp.asarray([40, 25, 1, 0])
    given = np.zeros((4, 40), bool)
    given[0, [5, 6, 30, 11, 2]], given[1, [0, 24, 7]] = True, True
    keys = row_keys(4, 4)
    order = np.asarray(orders.spread_order(keys, lengths, 40, jnp.asarray(given)))
    assert order[0, :5].tolist() == [2, 5, 6, 11, 30] and order[1, :3].tolist() == [0, 7, 24]
    for row, (n, g) in enumerate(zip([40, 25, 1, 0], [5, 3, 0, 0], strict=True)):
        assert sorted(order[row]) == list(range(40)) and order[row, n:].tolist() == list(range(n, 40))
        free = np.flatnonzero(~given[row, :n])
        points = [m * 2654435769 % 2**32 for m in range(n - g)]
        ranks = [sorted(points).index(x) for x in points]
        turns = [[free[(rank + turn) % (n - g)] for rank in ranks] for turn in range(max(n - g, 1))]
        assert order[row, g:n].tolist() in turns
    alone = orders.spread_order(keys[1:2], lengths[1:2], 40, jnp.asarray(given[1:2]))
    np.testing.assert_array_equal(alone[0], order[1])
