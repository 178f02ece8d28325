"""Acceptance and cost along the generation, from what the samplers return (METHOD.md section 7)."""

from typing import NamedTuple

import numpy as np

from ssmd_jax.sampling.canvas import ACCEPTED, REPLACED, UNVERIFIED, SampleResult

BINS = 10


class Acceptance(NamedTuple):
    """Where drafts are accepted, and where the compute goes.

    Bin `n` holds what happens while between `n / bins` and `(n + 1) / bins` of a sequence is revealed: a token belongs
    to the bin of its own track, a pass with all its rounds to the bin of its first track.

    Attributes:
        accepted: drafts accepted by bin, over all rows, int `[bins]`.
        rejected: drafts rejected and replaced.
        unverified: drafts taken without verification.
        rate: `accepted / (accepted + rejected)`, nan where nothing was verified.
        nfe: NFE a row by bin, mean over rows.
        passes: trunk passes a row by bin.
        rounds: verify rounds a row by bin.
        total_rate: `rate` over all bins.
        total_nfe: NFE a row.
        tokens_per_pass: tokens revealed per trunk pass.
        rejections_per_pass: rejections per trunk pass.
    """

    accepted: np.ndarray
    rejected: np.ndarray
    unverified: np.ndarray
    rate: np.ndarray
    nfe: np.ndarray
    passes: np.ndarray
    rounds: np.ndarray
    total_rate: float
    total_nfe: float
    tokens_per_pass: float
    rejections_per_pass: float


class Passes(NamedTuple):
    """The trunk passes of all rows, one entry each.

    Attributes:
        row: the row.
        start: tokens revealed before the pass.
        end: tokens revealed after it.
        rounds: verify rounds in it.
    """

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    rounds: np.ndarray


def split_passes(result: SampleResult) -> Passes:
    """Takes the history of samples apart into passes, in order within each row.

    Every round settles a track, so that the rounds of a pass are the last one that settled any of its tracks.

    Args:
        result: samples of `B` rows.

    Returns:
        `Passes`, over all rows.
    """
    revealed_in_BxD, status_BxD = np.asarray(result.revealed_in), np.asarray(result.status)
    before_BxD = np.pad(revealed_in_BxD[:, :-1], ((0, 0), (1, 0)))
    row, start = np.nonzero((revealed_in_BxD > 0) & (revealed_in_BxD != before_BxD))
    # Generated tracks are contiguous: a pass ends where the row's next one starts, or with the row.
    generated_end_B = np.max(np.where(revealed_in_BxD > 0, np.arange(status_BxD.shape[1]) + 1, 0), axis=1)
    is_last = np.append(row[1:] != row[:-1], True)[: len(row)]
    end = np.where(is_last, generated_end_B[row], np.append(start[1:], 0)[: len(row)])

    # Within a pass the round of a track is at least that of the track before it, but for unverified ones at its end.
    settled_in_BxD = np.asarray(result.settled_in)
    rounds = np.array([settled_in_BxD[r, i:j].max(initial=0) for r, i, j in zip(row, start, end, strict=True)], int)
    return Passes(row, start, end, rounds)


def acceptance(
    result: SampleResult, trunk_cost: float, verify_cost: float, *, lengths=None, bins: int = BINS
) -> Acceptance:
    """Acceptance and NFE by fraction revealed.

    Args:
        result: samples, of `speculative.sample` or `ancestral.sample`.
        trunk_cost: NFE of a trunk pass.
        verify_cost: NFE of a verify round.
        lengths: int `[B]`, lengths of the rows; None where all are full.
        bins: number of bins.

    Returns:
        An `Acceptance`.
    """
    status_BxD = np.asarray(result.status)
    batch, length = status_BxD.shape
    lengths_B = np.full(batch, length) if lengths is None else np.asarray(lengths)
    bin_BxD = np.minimum(np.arange(length)[None] * bins // lengths_B[:, None], bins - 1)
    count = lambda status: np.bincount(bin_BxD[status_BxD == status], minlength=bins)
    accepted, rejected, unverified = (count(status) for status in (ACCEPTED, REPLACED, UNVERIFIED))

    history = split_passes(result)
    pass_bin = bin_BxD[history.row, history.start]
    passes = np.bincount(pass_bin, minlength=bins) / batch
    rounds = np.bincount(pass_bin, weights=history.rounds, minlength=bins) / batch
    nfe = trunk_cost * passes + verify_cost * rounds
    # 0 / 0 marks what never happened.
    with np.errstate(invalid="ignore"):
        verified, num_passes = accepted + rejected, np.float64(len(history.row))
        return Acceptance(
            accepted=accepted,
            rejected=rejected,
            unverified=unverified,
            rate=accepted / verified,
            nfe=nfe,
            passes=passes,
            rounds=rounds,
            total_rate=float(np.float64(accepted.sum()) / verified.sum()),
            total_nfe=float(nfe.sum()),
            tokens_per_pass=float((verified + unverified).sum() / num_passes),
            rejections_per_pass=float(rejected.sum() / num_passes),
        )
