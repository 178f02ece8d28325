"""Lengths drawn from the data's distribution."""

import json

import numpy as np
import pytest
from scipy import stats

from ssmd_jax.data.lengths import LengthLaw

LENGTHS = np.r_[np.full(10, 50), np.full(60, 80), np.full(30, 512)]


def test_draws_follow_the_law():
    drawn = LengthLaw.of(LENGTHS).draw(seed=0, count=10_000)
    seen, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(seen, [50, 80, 512])
    assert stats.chisquare(counts, [1000, 6000, 3000]).pvalue > 0.01
    np.testing.assert_array_equal(LengthLaw.of(LENGTHS).draw(seed=0, count=10_000), drawn)


def test_lengths_up_to_a_limit():
    law = LengthLaw.of(LENGTHS)
    assert set(law.draw(seed=1, count=200, longest=100).tolist()) == {50, 80}
    with pytest.raises(ValueError, match="no length of the data is at most 49; the shortest is 50"):
        law.draw(seed=1, count=2, longest=49)


def test_saved_and_loaded(tmp_path):
    law = LengthLaw.of(LENGTHS)
    law.save(tmp_path / "lengths.json")
    assert LengthLaw.load(tmp_path / "lengths.json") == law
    with pytest.raises(ValueError, match="there are no lengths at"):
        LengthLaw.load(tmp_path / "other.json")
    (tmp_path / "lengths.json").write_text("[")
    with pytest.raises(ValueError, match="cannot be read"):
        LengthLaw.load(tmp_path / "lengths.json")
    for lengths, counts in (([], []), ([3, 4], [1]), ([3], [0]), ([3], ["1"])):
        (tmp_path / "lengths.json").write_text(json.dumps({"lengths": lengths, "counts": counts}))
        with pytest.raises(ValueError, match="cannot be read: they must be positive"):
            LengthLaw.load(tmp_path / "lengths.json")
