"""The distribution of the lengths of sequences: what samplers draw lengths from."""

import dataclasses
import json
import os
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class LengthLaw:
    """How often each length occurs.

    Attributes:
      lengths: Ascending.
      counts: Of each length, positive.
    """

    lengths: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, lengths_N: np.ndarray) -> "LengthLaw":
        """The law of given lengths, int [N]."""
        lengths, counts = np.unique(np.asarray(lengths_N), return_counts=True)
        return cls(tuple(lengths.tolist()), tuple(counts.tolist()))

    def draw(self, seed: int, count: int, longest: int | None = None) -> np.ndarray:
        """Independent lengths, always the same for a seed.

        Args:
          seed: Of the random numbers.
          count: How many.
          longest: None, or draw from the lengths up to this one alone.

        Returns:
          int32 [count].

        Raises:
          ValueError: If no length is that short.
        """
        kept = [n for n, length in enumerate(self.lengths) if longest is None or length <= longest]
        if not kept:
            raise ValueError(f"no length of the data is at most {longest}; the shortest is {self.lengths[0]}")
        weights = np.array([self.counts[n] for n in kept], np.float64)
        chosen = np.random.default_rng(seed).choice(len(kept), size=count, p=weights / weights.sum())
        return np.array([self.lengths[n] for n in kept], np.int32)[chosen]

    def save(self, path: os.PathLike | str) -> None:
        """Writes JSON."""
        path = pathlib.Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def load(cls, path: os.PathLike | str) -> "LengthLaw":
        """Reads what `save` wrote.

        Raises:
          ValueError: If there is no such file, or it is damaged.
        """
        try:
            stored = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            law = cls(tuple(stored["lengths"]), tuple(stored["counts"]))
        except FileNotFoundError:
            raise ValueError(f"there are no lengths at {path}: runs with data.rows 'sequences' have them") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the lengths {path} cannot be read: {error}") from error
        are_counts = all(type(value) is int and value > 0 for value in law.lengths + law.counts)
        if not law.lengths or len(law.lengths) != len(law.counts) or not are_counts:
            raise ValueError(f"the lengths {path} cannot be read: they must be positive, each with a positive count")
        return law
