"""Batches of sequences of any length: rows of a batch are of similar length, padded to that of their bucket.

A row of a batch is one whole sequence and padding with the mask id, which no sequence holds: so a batch says its own
lengths. Buckets are cut where the least padding is left. All batches have about the same number of tokens: the shorter
a bucket's sequences, the more rows its batches have, in eighths of the batch size.
"""

from collections.abc import Iterator

import grain
import numpy as np

from ssmd_jax.data.cache import TokenStream

# Buckets end at multiples of this many tokens.
STEP = 8
# Rows of a batch come in multiples of the batch size over this.
PARTS = 8


class Sequences:
    """The sequences of a split: `sequences[indices]` is int32 [number of indices, D], padded with the mask id.

    Attributes:
      tokens: The whole stream they are cut from, [N], memory-mapped.
      document_ends: Where each document ends in it, its separator included, int64 [number of documents].
      lengths: Tokens of each without the separator, int32 [number of documents].
      length: D, the longest there may be.
      mask_id: V.
      num_buckets: Into how many buckets batches are sorted.
      note: What was left out of the source, in words.
    """

    def __init__(self, stream: TokenStream, separator_size: int, length: int, mask_id: int, num_buckets: int):
        self.tokens, self.document_ends, self.note = stream.tokens, stream.document_ends, stream.note
        self.length, self.mask_id, self.num_buckets = length, mask_id, num_buckets
        self.lengths = (np.diff(self.document_ends, prepend=0) - separator_size).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices) -> np.ndarray:
        return self.rows(np.arange(len(self))[indices], self.length)

    def rows(self, indices_B: np.ndarray, width: int) -> np.ndarray:
        """Some sequences padded to `width`, int32 [B, width]."""
        tokens_BxD = np.full((len(indices_B), width), self.mask_id, np.int32)
        for row, index in enumerate(indices_B):
            length, start = self.lengths[index], self.document_ends[index - 1] if index else 0
            tokens_BxD[row, :length] = self.tokens[start : start + length]
        return tokens_BxD

    def buckets(self, batch_size: int) -> list[tuple[int, int, np.ndarray]]:
        """(tokens of a row, rows of a batch, indices of its sequences), the shortest first.

        Args:
          batch_size: Rows of a batch of the longest sequences.

        Raises:
          ValueError: If there are fewer sequences than a batch has rows.
        """
        buckets, shorter = [], 0
        for bound in best_bounds(self.lengths, self.length, self.num_buckets):
            members = np.flatnonzero((self.lengths > shorter) & (self.lengths <= bound)).astype(np.int32)
            buckets.append((bound, rows_of_bucket(batch_size, self.length, bound), members))
            shorter = bound
        return _merged(buckets, batch_size)


def _merged(buckets: list[tuple[int, int, np.ndarray]], batch_size: int) -> list[tuple[int, int, np.ndarray]]:
    """Buckets each of which fills a batch: others join the next longer one, and the last one those before it."""
    kept: list[tuple[int, int, np.ndarray]] = []
    carried = np.zeros(0, np.int32)
    for bound, rows, members in buckets:
        members = np.union1d(carried, members).astype(np.int32)
        if len(members) < rows:
            carried = members
            continue
        kept.append((bound, rows, members))
        carried = np.zeros(0, np.int32)
    while len(carried):
        if not kept:
            raise ValueError(f"a batch of {batch_size} is larger than its split of {len(carried)} sequences")
        bound, rows, _ = buckets[-1]
        carried = np.union1d(carried, kept.pop()[2]).astype(np.int32)
        if len(carried) >= rows:
            kept.append((bound, rows, carried))
            break
    return kept


def rows_of_bucket(batch_size: int, length: int, bound: int) -> int:
    """Rows of a batch of sequences of up to `bound` tokens: no more tokens than `batch_size` rows of `length`."""
    part = row_unit(batch_size)
    return batch_size * length // (bound * part) * part


def row_unit(batch_size: int) -> int:
    """What the rows of every bucket's batches are a multiple of."""
    return batch_size // PARTS if batch_size % PARTS == 0 else batch_size


def best_bounds(lengths_N: np.ndarray, longest: int, count: int) -> list[int]:
    """The ends of `count` buckets that leave the least padding, found by dynamic programming.

    Args:
      lengths_N: Lengths, int [N], each at most `longest`.
      longest: The end of the last bucket.
      count: Buckets, fewer where there are fewer lengths to tell apart.

    Returns:
      Ascending multiples of `STEP`, the last one `longest`.
    """
    ends = [*range(STEP, longest, STEP), longest]
    # Number of sequences that fit each end.
    fits = np.searchsorted(np.sort(lengths_N), ends, side="right")
    upto = np.concatenate([[0], fits])
    cost = np.full(len(ends) + 1, np.inf)
    cost[0] = 0.0
    choices = []
    for _ in range(min(count, len(ends))):
        # Entry (j, k): the last bucket holds what fits end j - 1 and not end k - 1.
        extra = (upto[:, None] - upto[None]) * np.concatenate([[0], ends])[:, None]
        total = np.where(np.tril(np.ones_like(extra, bool), -1), cost[None] + extra, np.inf)
        total[0, 0] = 0.0
        choices.append(total.argmin(axis=1))
        cost = total.min(axis=1)
    bounds, last = [], len(ends)
    for choice in reversed(choices):
        if last == 0:
            break
        bounds.append(ends[last - 1])
        last = choice[last]
    return bounds[::-1]


def padding(sequences: Sequences, batch_size: int) -> float:
    """Share of the tokens of an epoch's batches that are padding."""
    buckets = sequences.buckets(batch_size)
    padded = sum(bound * len(members) for bound, _, members in buckets)
    return 1.0 - float(sum(sequences.lengths[members].sum() for *_, members in buckets)) / padded


def train_batches(
    sequences: Sequences,
    *,
    global_batch_size: int,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
    num_threads: int,
    prefetch: int,
) -> Iterator[np.ndarray]:
    """Endless batches, one bucket each, as `pipeline.train_batches` describes them.

    Every epoch shuffles the sequences of each bucket, leaves out those that fill no batch, and visits the batches of
    all buckets in random order. The position is the global step alone.
    """
    parts = []
    for number, (bound, rows, members) in enumerate(sequences.buckets(global_batch_size)):
        own = _share(rows, process_index, process_count)
        numbers = grain.MapDataset.range(len(members)).shuffle(_seed(seed, number)).batch(rows, drop_remainder=True)
        cut = lambda numbers_B, bound=bound, members=members, own=own: (members[numbers_B[own]], bound)
        parts.append(numbers.map(cut))
    batches = grain.MapDataset.concatenate(parts).shuffle(_seed(seed, len(parts))).repeat()
    batches = batches[start_step:].map(lambda batch: sequences.rows(*batch))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)))


def eval_batches(
    sequences: Sequences, *, batch_size: int, num_batches: int | None, process_index: int, process_count: int
) -> Iterator[np.ndarray]:
    """Batches as `pipeline.eval_batches` describes them, from the short buckets to the long ones."""
    batches = []
    for bound, rows, members in sequences.buckets(batch_size):
        own = _share(rows, process_index, process_count)
        batches += [(members[n * rows : (n + 1) * rows][own], bound) for n in range(len(members) // rows)]
    count = len(batches) if num_batches is None else min(num_batches, len(batches))
    return (sequences.rows(*batches[n * len(batches) // count]) for n in range(count))


def _share(rows: int, process_index: int, process_count: int) -> slice:
    if rows % process_count:
        raise ValueError(
            f"a batch of {rows} sequences cannot be shared by {process_count} processes; choose a training.batch_size "
            f"that is a multiple of {PARTS * process_count}"
        )
    size = rows // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _seed(seed: int, number: int) -> int:
    # Grain reseeds epoch e with seed + e; hashed, so that neighbouring seeds have nothing in common.
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
