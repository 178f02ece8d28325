"""Acceptance and cost by fraction revealed, against plain loops over the history."""

import numpy as np
import pytest

from ssmd_jax.evaluation.acceptance import acceptance, split_passes
from tests.evaluation.drawn import BATCH, CASES, LENGTH, drawn, model

BINS = 4
EVERYTHING = pytest.mark.parametrize(("case", "prompted"), [(c, p) for c in CASES for p in (False, True)])


@EVERYTHING
@pytest.mark.slow
def test_rounds_recovered_from_the_history_are_those_charged(case, prompted):
    result, verify_cost = drawn(case, prompted)
    history = split_passes(result)
    per_row = np.bincount(history.row, weights=history.rounds, minlength=BATCH)
    np.testing.assert_array_equal(per_row, result.verify_rounds)
    np.testing.assert_array_equal(np.bincount(history.row, minlength=BATCH), result.trunk_passes)
    found = acceptance(result, model().trunk_cost, verify_cost)
    np.testing.assert_allclose(found.total_nfe, result.nfe.mean(), rtol=1e-6)


@EVERYTHING
def test_bins_against_loops(case, prompted):
    result, verify_cost = drawn(case, prompted)
    counts = {1: np.zeros(BINS), 2: np.zeros(BINS), 3: np.zeros(BINS)}
    passes = np.zeros(BINS)
    for row in range(BATCH):
        seen = set()
        for track in range(LENGTH):
            status, number = result.status[row, track], result.revealed_in[row, track]
            if status == 0:
                continue
            where = int(track / LENGTH * BINS + 1e-9)
            counts[status][where] += 1
            if number not in seen:
                seen.add(number)
                passes[where] += 1
    found = acceptance(result, model().trunk_cost, verify_cost, bins=BINS)
    for got, status in ((found.accepted, 1), (found.rejected, 2), (found.unverified, 3)):
        np.testing.assert_array_equal(got, counts[status])
    np.testing.assert_allclose(found.passes * BATCH, passes)
    np.testing.assert_allclose(found.nfe, model().trunk_cost * found.passes + verify_cost * found.rounds)
    # bins sum to the totals that the sampler itself kept
    assert found.accepted.sum() == result.accepted.sum()
    assert found.rejected.sum() == result.rejected.sum()
    assert found.unverified.sum() == result.unverified.sum()
    np.testing.assert_allclose(found.rounds.sum(), result.verify_rounds.mean())
    generated = result.accepted.sum() + result.rejected.sum() + result.unverified.sum()
    np.testing.assert_allclose(found.tokens_per_pass, generated / result.trunk_passes.sum())
    np.testing.assert_allclose(found.rejections_per_pass, result.rejected.sum() / result.trunk_passes.sum())
    verified = counts[1] + counts[2]
    for n in range(BINS):
        assert np.isnan(found.rate[n]) if not verified[n] else np.isclose(found.rate[n], counts[1][n] / verified[n])


def test_cases_show_all_there_is():
    """The loops above mean little where nothing is ever rejected, or left unverified after a rejection."""
    result, _ = drawn("budget")
    assert result.rejected.sum() and result.unverified.sum() and result.accepted.sum()
    result, _ = drawn("many rounds")
    assert (result.verify_rounds > result.rejected).any() and result.rejected.sum()


def test_short_rows():
    result, verify_cost = drawn("one round")
    lengths = np.full(BATCH, LENGTH)
    same = acceptance(result, 0.75, verify_cost, lengths=lengths)
    np.testing.assert_array_equal(same.nfe, acceptance(result, 0.75, verify_cost).nfe)
