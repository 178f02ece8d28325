"""Estimates with their standard errors, over independent samples or sequences."""

import math
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A figure and its standard error, in the same unit.

    Attributes:
        value: the figure; nan where nothing was counted.
        standard_error: nan where fewer than two units were counted.
    """

    value: float
    standard_error: float


def ratio(numerator_N, denominator_N) -> Estimate:
    """Ratio of two totals over `N` independent units, `sum numerator / sum denominator`.

    The standard error is that of the linearised ratio (the delta method): the units are independent, what is counted
    within one (the words of a sample, say) is not.

    Args:
        numerator_N: `[N]`.
        denominator_N: `[N]`, not negative.

    Returns:
        An `Estimate`.
    """
    numerator_N, denominator_N = np.asarray(numerator_N, np.float64), np.asarray(denominator_N, np.float64)
    count, total = len(numerator_N), float(denominator_N.sum())
    if not total:
        return Estimate(math.nan, math.nan)
    value = float(numerator_N.sum()) / total
    if count < 2 or not math.isfinite(value):
        return Estimate(value, math.nan)
    residual_N = numerator_N - value * denominator_N
    return Estimate(value, math.sqrt(count / (count - 1) * float(residual_N @ residual_N)) / total)


def mean(values_N) -> Estimate:
    """Mean of `N` independent values, with standard error `s / sqrt(N)`."""
    return ratio(values_N, np.ones(len(values_N)))


def to_json(value):
    """The value as JSON knows it: arrays become lists, estimates objects; None stands for nan and infinity.

    Args:
        value: dictionaries, lists, tuples, arrays, numbers, strings, None, nested as they like.
    """
    if isinstance(value, dict):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, np.ndarray | list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
