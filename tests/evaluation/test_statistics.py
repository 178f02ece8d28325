"""Estimates and their standard errors."""

import json
import math

import numpy as np

from ssmd_jax.evaluation.statistics import Estimate, mean, ratio, to_json


def test_mean_on_a_constructed_case():
    estimate = mean([1.0, 2.0, 3.0, 6.0])
    assert estimate.value == 3.0
    # deviations -2 -1 0 3: variance 14 / 3, over 4 units
    assert math.isclose(estimate.standard_error, math.sqrt(14 / 3 / 4))


def test_ratio_with_equal_denominators_is_the_mean():
    values = np.random.default_rng(0).normal(size=20)
    wanted = mean(values / 5)
    got = ratio(values, np.full(20, 5))
    np.testing.assert_allclose(got, wanted)


def test_ratio_error_is_that_of_repeated_experiments():
    """Units with many words and units with few: the error over units, not over words."""
    rng = np.random.default_rng(1)
    estimates = []
    for _ in range(2000):
        words = rng.integers(1, 20, size=50)
        rate = rng.choice([0.3, 0.9], size=50)  # words of one unit share their luck
        estimates.append(ratio(rng.binomial(words, rate), words))
    values, errors = np.array(estimates).T
    np.testing.assert_allclose(errors.mean(), values.std(), rtol=0.05)


def test_nothing_to_count():
    assert math.isnan(ratio([0, 0], [0, 0]).value)
    one = ratio([1], [2])
    assert one.value == 0.5 and math.isnan(one.standard_error)
    assert ratio([math.inf, 1.0], [1, 1]).value == math.inf


def test_json_knows_no_nan():
    value = {"a": np.array([1.0, math.nan]), "b": Estimate(math.inf, 0.5), "c": [np.int64(3), None, "x"]}
    plain = to_json(value)
    assert plain == {"a": [1.0, None], "b": {"value": None, "standard_error": 0.5}, "c": [3, None, "x"]}
    json.dumps(plain, allow_nan=False)
