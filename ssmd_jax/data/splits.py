"""Splits by document: train, valid and test never share one."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from ssmd_jax.data import fasta, sources

SPLITS = ("train", "valid", "test")
TEXT8 = ("text8", "text8.zip")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where the documents come from and how they are split.

    Either `train` and `valid` (and perhaps `test`) name sources of their own, or `source` is split by document: by a
    stride, so that each split covers the whole source (all decades of a corpus in order of time). The text8 file is one
    document, and is cut by characters instead, in order: 90 %, 5 %, 5 % is the convention.

    Attributes:
      source: The source to split; not read where `train` is given.
      train: Source of the training split.
      valid: Source of the validation split.
      test: Source of the test split.
      field: Field of jsonl or column of parquet that holds the text.
      valid_fraction: Share of the documents in the validation split; at least one document.
      test_fraction: Share in the test split; 0 for none, otherwise at least one document.
      rules: Which sequences of FASTA files are documents; None for sources of any kind, and all of their documents.
    """

    source: sources.Spec | None
    train: sources.Spec | None = None
    valid: sources.Spec | None = None
    test: sources.Spec | None = None
    field: str = "text"
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    rules: fasta.Rules | None = None

    def documents(self, tallies: dict[str, fasta.Tally] | None = None) -> Iterator[tuple[str, str]]:
        """Yields (split, document).

        Args:
          tallies: Where there are rules, what they left out is counted here, by split; under "train" where `source` is
            split.
        """
        tallies = {} if tallies is None else tallies
        if self.train is not None:
            for split, spec in self._explicit().items():
                for document in self._read(spec, split, tallies):
                    yield split, document
            return
        documents = self._read(self.source, "train", tallies)
        if self._is_text8():
            for text in documents:
                yield from cut_characters(text, self.valid_fraction, self.test_fraction)
        else:
            yield from assign_splits(documents, self.valid_fraction, self.test_fraction)

    def training_documents(self) -> Iterator[str]:
        """Yields the documents of the training split alone."""
        return (document for split, document in self.documents() if split == "train")

    def fingerprint(self) -> dict[str, Any]:
        """All that the split documents depend on, as JSON values."""
        rules = {} if self.rules is None else {"rules": dataclasses.asdict(self.rules)}
        if self.train is not None:
            parts = {split: sources.fingerprint(spec) for split, spec in self._explicit().items()}
            return {"field": self.field, **rules, **parts}
        return {
            "field": self.field,
            **rules,
            "source": sources.fingerprint(self.source),
            "text8": self._is_text8(),
            "valid_fraction": self.valid_fraction,
            "test_fraction": self.test_fraction,
        }

    def _read(self, spec: sources.Spec, split: str, tallies: dict[str, fasta.Tally]) -> Iterator[str]:
        if self.rules is None:
            return sources.read_documents(spec, self.field)
        return self.rules.kept(sources.read_sequences(spec), tallies.setdefault(split, fasta.Tally()))

    def _explicit(self) -> dict[str, sources.Spec]:
        return {split: getattr(self, split) for split in SPLITS if getattr(self, split) is not None}

    def _is_text8(self) -> bool:
        parts = sources.resolve(self.source)
        return len(parts) == 1 and pathlib.Path(parts[0]).name in TEXT8


def cut_characters(text: str, valid_fraction: float, test_fraction: float) -> Iterator[tuple[str, str]]:
    """Yields (split, text): the first characters for training, the next for validation, the last for testing."""
    valid, test = round(len(text) * valid_fraction), round(len(text) * test_fraction)
    train = len(text) - valid - test
    yield "train", text[:train]
    yield "valid", text[train : train + valid]
    if test:
        yield "test", text[train + valid :]


def assign_splits(documents: Iterable[str], valid_fraction: float, test_fraction: float) -> Iterator[tuple[str, str]]:
    """Yields (split, document), in order and in one pass, spreading each split evenly over the documents.

    Each document goes to the split furthest behind its share so far, so that the shares are met within one document
    anywhere. Where there are too few documents for the fractions, the fractions grow to one document.

    Raises:
      ValueError: If there are fewer documents than splits.
    """
    held_out = {s: f for s, f in (("valid", valid_fraction), ("test", test_fraction)) if f > 0}
    documents = iter(documents)
    smallest = min(1 - valid_fraction - test_fraction, *held_out.values())
    # With this many documents every split gets one; with fewer, we see them all before the first is assigned.
    first = list(itertools.islice(documents, int(2 / smallest) + 2))
    if len(first) <= len(held_out):
        raise ValueError(
            f"the data holds {len(first)} documents, too few to split into {len(held_out) + 1} parts; give "
            "data.train and data.valid by path, or separate the documents by a form feed on a line of its own"
        )
    least = 1 / len(first)
    shares = {split: max(fraction, least) for split, fraction in held_out.items()}
    shares = {"train": max(1 - sum(shares.values()), least), **shares}
    total = sum(shares.values())
    given = dict.fromkeys(shares, 0)
    for seen, document in enumerate(itertools.chain(first, documents), start=1):
        split = max(shares, key=lambda s: shares[s] / total * seen - given[s])
        given[split] += 1
        yield split, document
