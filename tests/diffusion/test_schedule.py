"""The dynamic programme against all windows there are, and its costs against enumerated rounds."""

import itertools

import numpy as np
import pytest

from ssmd_jax.diffusion.schedule import best_schedule, schedule_within, window_costs

LENGTH = 6
RNG = np.random.default_rng(0)
NLL = RNG.uniform(0.5, 3.0, (LENGTH, LENGTH))
REJECTIONS = RNG.uniform(0.0, 0.6, (LENGTH, LENGTH))
COST = window_costs(REJECTIONS, NLL.shape, 0.75, 0.25)


def paths(largest=LENGTH):
    """All ways to cut `LENGTH` tracks into windows."""
    for cuts in itertools.product((False, True), repeat=LENGTH - 1):
        starts = [0, *(k + 1 for k, cut in enumerate(cuts) if cut), LENGTH]
        if max(np.diff(starts)) <= largest:
            yield list(itertools.pairwise(starts))


def totals(path, nll=NLL, cost=COST):
    return sum(nll[i, : end - i].sum() for i, end in path), sum(cost[i, end - i - 1] for i, end in path)


@pytest.mark.parametrize("price", [0.0, 0.3, 1.0, 2.5, 50.0])
@pytest.mark.parametrize("largest", [2, LENGTH])
def test_it_finds_the_best_of_all_paths(price, largest):
    found = best_schedule(NLL[:, :largest], COST[:, :largest], price)
    best = min((nll + price * nfe, nll, nfe) for nll, nfe in (totals(path) for path in paths(largest)))
    assert found.nll + price * found.nfe == pytest.approx(best[0])
    walked = [(0, int(found.sizes[0]))]
    while walked[-1][1] < LENGTH:
        walked.append((walked[-1][1], walked[-1][1] + int(found.sizes[walked[-1][1]])))
    assert totals(walked) == pytest.approx((found.nll, found.nfe))


def test_it_is_best_from_every_track_on():
    whole = best_schedule(NLL, COST, 1.0)
    for start in range(1, LENGTH):
        nll, cost = NLL[start:, : LENGTH - start], COST[start:, : LENGTH - start]
        rest = best_schedule(nll, cost, 1.0)
        np.testing.assert_array_equal(rest.sizes, whole.sizes[start:])


def test_rounds_of_a_window_against_all_outcomes():
    """A round ends at a rejection or at the window's end."""
    for i, size in ((0, 1), (0, 4), (2, 3)):
        expected = 0.0
        for rejected in itertools.product((False, True), repeat=size):
            chance = np.prod(
                [r if is_rejected else 1 - r for r, is_rejected in zip(REJECTIONS[i], rejected, strict=False)]
            )
            expected += chance * (sum(rejected) + (not rejected[-1]))
        assert COST[i, size - 1] == pytest.approx(0.75 + 0.25 * expected)
    np.testing.assert_array_equal(window_costs(None, NLL.shape, 1.0, 0.0), np.ones_like(NLL))


def test_a_budget_takes_the_best_hull_point_that_it_pays():
    all_paths = [totals(path) for path in paths()]
    cheapest, dearest = min(nfe for _, nfe in all_paths), best_schedule(NLL, COST, 0.0)
    for budget in (cheapest, 2.0, 3.0, dearest.nfe, 100.0):
        found = schedule_within(NLL, COST, budget)
        assert found.nfe <= budget
        # On the convex hull of (NFE, nll): at the price of some supporting line nothing is better.
        hull = [best_schedule(NLL, COST, price) for price in np.geomspace(1e-4, 1e4, 2000)]
        payable = [point.nll for point in hull if point.nfe <= budget]
        assert found.nll == pytest.approx(min(payable))
    assert schedule_within(NLL, COST, 100.0).nll == dearest.nll
    with pytest.raises(ValueError, match="below the NFE of the cheapest windows"):
        schedule_within(NLL, COST, cheapest - 0.01)


def test_bad_arrays_and_prices():
    with pytest.raises(ValueError, match="one shape"):
        best_schedule(NLL, COST[:, :2], 1.0)
    with pytest.raises(ValueError, match="price"):
        best_schedule(NLL, COST, -1.0)
