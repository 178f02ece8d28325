"""Proteins in FASTA, one at a time, and which of them are used.

A record is a line `>NAME DESCRIPTION` and the sequence on the lines after it. Letters are made upper-case, white space
and a final stop `*` are dropped.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

SUFFIXES = (".fasta", ".fa", ".faa")
AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
# Letters outside the alphabet that a tally lists by name, the most frequent first.
LISTED = 5


def read(lines: Iterable[str], path: str) -> Iterator[tuple[str, str]]:
    """Yields (name, sequence).

    Args:
      lines: Of the file.
      path: For errors, and for the names of records that have none.

    Raises:
      ValueError: If the file holds no records, or text before the first one.
    """
    name, parts, count = None, [], 0
    for line in lines:
        line = line.strip()
        if line.startswith(">"):
            if name is not None:
                yield name, _joined(parts)
            count += 1
            name, parts = (line[1:].split(maxsplit=1) or [f"record {count} of {path}"])[0], []
        elif name is None and line:
            raise ValueError(f"{path} is no FASTA file: there is text before the first line that begins with '>'")
        else:
            parts.append(line)
    if name is None:
        raise ValueError(f"{path} holds no sequences: no line of it begins with '>'")
    yield name, _joined(parts)


def _joined(parts: list[str]) -> str:
    return "".join("".join(parts).split()).upper().removesuffix("*")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which sequences are used.

    Attributes:
      min_length: Letters at least.
      max_length: Letters at most; longer ones are left out, since half a protein is none.
      alphabet: The only letters.
    """

    min_length: int
    max_length: int
    alphabet: str = AMINO_ACIDS

    def kept(self, records: Iterable[tuple[str, str]], tally: "Tally") -> Iterator[str]:
        """Yields the sequences that are used, and counts all in `tally`."""
        alphabet = frozenset(self.alphabet)
        for name, sequence in records:
            foreign = set(sequence) - alphabet
            if foreign:
                tally.letters.update(letter for letter in sequence if letter in foreign)
                reason = f"with letters outside {self.alphabet}"
            elif len(sequence) < self.min_length:
                reason = f"shorter than {self.min_length}"
            elif len(sequence) > self.max_length:
                reason = f"longer than {self.max_length}"
            else:
                reason = None
            tally.add(name, reason)
            if reason is None:
                yield sequence


class Tally:
    """Counts of the sequences read.

    Attributes:
      used: How many are used.
      left_out: How many are not, by reason.
      first: The name of the first one of each reason.
      letters: How often each letter outside the alphabet was seen.
    """

    def __init__(self):
        self.used = 0
        self.left_out: collections.Counter[str] = collections.Counter()
        self.first: dict[str, str] = {}
        self.letters: collections.Counter[str] = collections.Counter()

    def add(self, name: str, reason: str | None) -> None:
        """Counts a sequence: used, or left out for a reason."""
        if reason is None:
            self.used += 1
        else:
            self.left_out[reason] += 1
            self.first.setdefault(reason, name)

    def sentence(self) -> str:
        """What was read, in words."""
        read = self.used + self.left_out.total()
        parts = [f"{count:,} {reason} (first {self.first[reason]})" for reason, count in self.left_out.most_common()]
        if self.letters:
            seen = ", ".join(f"{letter!r} {count:,}" for letter, count in self.letters.most_common(LISTED))
            parts.append(f"letters seen there: {seen}")
        left_out = f"; left out: {', '.join(parts)}" if parts else ""
        return f"{self.used:,} of {read:,} sequences used{left_out}"
