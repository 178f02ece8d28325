"""Batches of sequences: whole sequences, little padding, and a position that is the global step alone."""

import itertools

import numpy as np
import pytest

from ssmd_jax.data import buckets, pipeline
from ssmd_jax.data.cache import TokenStream

LONGEST, MASK, EOS = 64, 32, 2


def sequences(lengths, num_buckets=3, longest=LONGEST):
    """Sequence `n` holds the token 4 + n % 20 throughout."""
    rows = [np.r_[np.full(length, 4 + n % 20), EOS] for n, length in enumerate(lengths)]
    stream = TokenStream(np.concatenate(rows).astype(np.uint8), np.cumsum([len(row) for row in rows]))
    return buckets.Sequences(stream, 1, longest, MASK, num_buckets)


def random_lengths(count=300, seed=0):
    return np.random.default_rng(seed).integers(5, LONGEST + 1, count)


def take(count, data, **options):
    iterator = pipeline.train_batches(data, **{"global_batch_size": 8, "seed": 0, **options})
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def row_lengths(batch):
    return (batch < MASK).sum(axis=1)


def test_rows_are_whole_sequences():
    lengths = random_lengths()
    data = sequences(lengths)
    np.testing.assert_array_equal(data.lengths, lengths)
    tokens = data[[0, 7]]
    assert tokens.shape == (2, LONGEST) and tokens.dtype == np.int32
    for row, n in zip(tokens, (0, 7), strict=True):
        assert (row[: lengths[n]] == 4 + n % 20).all() and (row[lengths[n] :] == MASK).all()


def brute_padding(lengths, ends):
    ends = np.array(ends)
    return (ends[np.searchsorted(ends, lengths)] - lengths).sum()


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_best_bounds_beat_all_others(count):
    lengths = random_lengths(60)
    found = buckets.best_bounds(lengths, LONGEST, count)
    assert found[-1] == LONGEST and len(found) <= count and found == sorted(set(found))
    inner = range(buckets.STEP, LONGEST, buckets.STEP)
    others = [(*c, LONGEST) for n in range(min(count, 4)) for c in itertools.combinations(inner, n)]
    assert brute_padding(lengths, found) <= min(brute_padding(lengths, other) for other in others)


def test_batches_have_little_padding_and_about_as_many_tokens():
    data = sequences(random_lengths(), num_buckets=4)
    assert buckets.padding(data, 8) < 0.2 < 0.4 < buckets.padding(sequences(random_lengths(), num_buckets=1), 8)
    for bound, rows, members in data.buckets(8):
        assert rows * bound <= 8 * LONGEST < (rows + 1) * bound
        assert len(members) >= rows and data.lengths[members].max() <= bound
    members = np.concatenate([members for *_, members in data.buckets(8)])
    np.testing.assert_array_equal(np.sort(members), np.arange(len(data)))


def test_an_epoch_visits_each_sequence_at_most_once_and_epochs_differ():
    lengths = np.arange(5, 65).repeat(4)  # a token and a length tell sequences apart
    data = sequences(lengths)
    per_epoch = sum(len(members) // rows for _, rows, members in data.buckets(8))
    batches = take(2 * per_epoch, data)
    seen = [[(row[0], n) for batch in part for row, n in zip(batch, row_lengths(batch), strict=True)]
            for part in (batches[:per_epoch], batches[per_epoch:])]  # fmt: skip
    known = set(zip(4 + np.arange(len(lengths)) % 20, lengths, strict=True))
    for epoch in seen:
        assert len(set(epoch)) == len(epoch) and set(epoch) <= known
        assert len(epoch) > 0.9 * len(lengths)
    assert seen[0] != seen[1]
    widths = [batch.shape[1] for batch in batches[:per_epoch]]
    assert widths != sorted(widths), "the buckets are not shuffled"


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_resumed_and_shared_batches_are_the_same_global_batches(process_count):
    data = sequences(random_lengths())
    expected = take(20, data, global_batch_size=32)[3:]
    options = {"global_batch_size": 32, "process_count": process_count, "start_step": 3}
    shares = [take(17, data, process_index=p, **options) for p in range(process_count)]
    for whole, *parts in zip(expected, *shares, strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_another_seed_is_another_order():
    data = sequences(random_lengths())
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(take(9, data), take(9, data, seed=1), strict=True))


def test_evaluation_batches_are_the_same_each_time_and_cover_the_lengths():
    data = sequences(random_lengths())
    everything = list(pipeline.eval_batches(data, batch_size=8))
    few = list(pipeline.eval_batches(data, batch_size=8, num_batches=3))
    assert len(few) == 3 and len({batch.shape[1] for batch in few}) == 3
    assert sum(map(len, everything)) > 0.9 * len(data)
    for one, two in zip(few, pipeline.eval_batches(data, batch_size=8, num_batches=3), strict=True):
        np.testing.assert_array_equal(one, two)


def test_sparse_buckets_are_joined():
    """Three long sequences fill no batch of eight: they are padded together with shorter ones."""
    data = sequences(np.r_[np.full(40, 10), 60, 61, 62])
    assert [bound for bound, *_ in data.buckets(8)] == [LONGEST]
    with pytest.raises(ValueError, match="a batch of 64 is larger than its split of 43 sequences"):
        data.buckets(64)


def test_batches_that_cannot_be_shared_are_one_sentence():
    data = sequences(random_lengths())
    with pytest.raises(ValueError, match="cannot be shared by 3 processes; choose a training"):
        pipeline.train_batches(data, global_batch_size=8, seed=0, process_count=3)
