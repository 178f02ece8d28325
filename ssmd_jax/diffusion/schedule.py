"""The best windows for a given cost, by dynamic programming over what a window loses (METHOD.md section 5).

With rounds enough to verify every window whole, the law of the tokens that a pass starting at `i` reveals is exactly
the product of the target's conditionals `q_{i,k}`. So with `nll_{i,s} = E[-log q_{i,i+s}(x)]` on held-out text a path
`0 = i_0 < i_1 < ... < D` of windows has the expected negative log likelihood
`sum_n sum_{s < W(i_n)} nll_{i_n,s}`, a sum over its windows. Its NFE is one too, since a pass costs
`trunk_cost + verify_cost (1 + expected rejections before the window's last track)`, or with shared noise `trunk_cost +
verify_cost (expected rounds until its last track is settled)`. The same holds of the plain sampler with `nll` of the
draft and no rounds.
"""

from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """Windows, and what they are expected to cost.

    Attributes:
        sizes: int32 `[D]`, entry `i` the best window when `i` tokens are revealed.
        nll: expected negative log likelihood of a sequence, nats: the likelihood bound of the sampler.
        nfe: expected function evaluations of a sequence.
    """

    sizes: np.ndarray
    nll: float
    nfe: float


class BudgetError(ValueError):
    """A budget that pays no windows at all."""


def window_costs(rejections_DxS: np.ndarray | None, shape: tuple[int, int], trunk_cost: float, verify_cost: float):
    """NFE of a pass at `i` with a window of `s + 1` tracks, float64 `[D, S]`.

    Rounds are the rejections before the last track, and one more: a rejection at the last track ends the window too.
    """
    if rejections_DxS is None:
        return np.full(shape, trunk_cost)
    before_DxS = np.cumsum(rejections_DxS, axis=1) - rejections_DxS
    return trunk_cost + verify_cost * (1.0 + before_DxS)


def shared_noise_costs(rounds_DxS: np.ndarray, trunk_cost: float, verify_cost: float) -> np.ndarray:
    """The same with shared noise, where `rounds_DxS` are expected to settle track `i + s` of a pass at `i`."""
    return trunk_cost + verify_cost * np.asarray(rounds_DxS, np.float64)


def best_schedule(nll_DxS: np.ndarray, cost_DxS: np.ndarray, price: float) -> Schedule:
    """The windows that minimise `nll + price * NFE` from every `i` on.

    Args:
        nll_DxS: nats, entry `(i, s)` of the token at track `i + s` when `i` are revealed; `i + s >= D` is ignored.
        cost_DxS: NFE of the pass at `i` whose window has `s + 1` tracks.
        price: nats that one NFE is worth, at least 0.

    Returns:
        A `Schedule`; among equals the larger window.

    Raises:
        ValueError: for arrays of different shapes, or a negative price.
    """
    if nll_DxS.shape != cost_DxS.shape or nll_DxS.ndim != 2:
        raise ValueError(f"nll and cost must be of one shape [D, S], got {nll_DxS.shape} and {cost_DxS.shape}")
    if not price >= 0:
        raise ValueError(f"price must be at least 0, got {price}")
    length, largest = nll_DxS.shape
    window_nll_DxS = np.cumsum(np.asarray(nll_DxS, np.float64), axis=1)
    sizes = np.ones(length, np.int32)
    nll, nfe = np.zeros(length + 1), np.zeros(length + 1)
    for i in range(length - 1, -1, -1):
        count = min(largest, length - i)
        ends = slice(i + 1, i + count + 1)
        nll_S, nfe_S = window_nll_DxS[i, :count] + nll[ends], cost_DxS[i, :count] + nfe[ends]
        total_S = nll_S + price * nfe_S
        best = count - 1 - int(np.argmin(total_S[::-1]))
        sizes[i], nll[i], nfe[i] = best + 1, nll_S[best], nfe_S[best]
    return Schedule(sizes, float(nll[0]), float(nfe[0]))


def schedule_within(nll_DxS: np.ndarray, cost_DxS: np.ndarray, budget_nfe: float) -> Schedule:
    """The best schedule whose expected NFE is at most a budget, among those of some price (the convex hull).

    Args:
        nll_DxS: as in `best_schedule`.
        cost_DxS: as in `best_schedule`.
        budget_nfe: mean NFE of a sequence.

    Raises:
        BudgetError: if even the cheapest schedule costs more; the sentence names its NFE.
    """
    # So dear that any NFE saved is worth more than all nats there are.
    high = 1e3 * (1.0 + float(np.abs(nll_DxS).max()) * len(nll_DxS))
    cheapest = best_schedule(nll_DxS, cost_DxS, high)
    if cheapest.nfe > budget_nfe:
        raise BudgetError(f"budget_nfe {budget_nfe:g} is below the NFE of the cheapest windows, {cheapest.nfe:.2f}")
    free = best_schedule(nll_DxS, cost_DxS, 0.0)
    if free.nfe <= budget_nfe:
        return free
    best, low = cheapest, 1e-9
    for _ in range(60):
        price = (low * high) ** 0.5
        found = best_schedule(nll_DxS, cost_DxS, price)
        if found.nfe <= budget_nfe:
            best, high = found, price
        else:
            low = price
        if high / low < 1 + 1e-6:
            break
    return best
