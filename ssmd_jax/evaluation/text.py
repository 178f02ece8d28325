"""Judges of sampled text that need no other model: spelling accuracy and entropies (METHOD.md section 8).

A word is a longest run of letters, apostrophes inside it included, in lower case; on text8 these are the pieces
between spaces. A word that touches either end of a sample may be cut there and does not count.
"""

import collections
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ssmd_jax.data import cache
from ssmd_jax.data.pipeline import Records
from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.evaluation.statistics import Estimate, ratio

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# A word counts as known from this many occurrences in the training text on: a single one may be a misprint.
MIN_COUNT = 2
# Documents are decoded together up to this many tokens, and words looked for in pieces of as many characters.
BLOCK = 1 << 22
# More training text than this is not read: it adds rare names, not words.
MAX_TOKENS = 1 << 29
WORDS_FILE = "words.json"


def whole_words(text: str) -> list[str]:
    """The words of a sample, in lower case, without those that touch its ends."""
    matches = WORD.finditer(text.lower())
    # Lower-casing may change the length of a text, so that its end is that of the lower-cased one.
    end = len(text.lower())
    return [match.group() for match in matches if match.start() > 0 and match.end() < end]


def spelling_accuracy(texts: Sequence[str], words: frozenset[str]) -> Estimate:
    """Share of the samples' words that are known, with its standard error over samples.

    Args:
        texts: the samples.
        words: the known words, in lower case; see `training_words` and `read_word_list`.

    Returns:
        An `Estimate`; nan where the samples hold no whole word.
    """
    found = [whole_words(text) for text in texts]
    known = [sum(word in words for word in sample) for sample in found]
    return ratio(known, [len(sample) for sample in found])


def training_words(records: Records, tokenizer: Tokenizer) -> frozenset[str]:
    """Words that occur at least `MIN_COUNT` times in the training text.

    They are counted once and kept beside the tokens in the data cache, where the tokens are memory-mapped from there.

    Args:
        records: the training split.
        tokenizer: that made it.

    Returns:
        Words in lower case.
    """
    count = lambda: frequent_words(_texts(records.tokens, records.document_ends, tokenizer))
    file = getattr(records.tokens, "filename", None)
    if file is None:
        return count()
    entry = pathlib.Path(file).parent

    def load(directory: pathlib.Path) -> frozenset[str] | None:
        try:
            return frozenset(json.loads((directory / WORDS_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def build(directory: pathlib.Path) -> None:
        words = sorted(count())
        (directory / WORDS_FILE).write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")

    # The entry of the tokens is named by all that they depend on; what is counted in them comes on top.
    rules = cache.key_hash([WORD.pattern, MIN_COUNT, MAX_TOKENS, BLOCK])
    return cache.cached(entry.parent, f"words-{rules}-{entry.name}", load, build)


def frequent_words(texts: Iterable[str], min_count: int = MIN_COUNT) -> frozenset[str]:
    """Words, in lower case, that occur at least `min_count` times in texts that cut no word."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(WORD.findall(text.lower()))
    return frozenset(word for word, count in counts.items() if count >= min_count)


def _texts(tokens_N: np.ndarray, document_ends: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """Pieces of a stream's text that cut no word: whole documents, and long ones again at white space."""
    start, last = 0, min(int(document_ends[-1]), MAX_TOKENS)
    while start < last:
        following = np.searchsorted(document_ends, min(start + BLOCK, last))
        end = int(document_ends[following])
        yield from _pieces(tokenizer.decode(tokens_N[start:end]))
        start = end


def _pieces(text: str) -> Iterator[str]:
    white, start = re.compile(r"\s"), 0
    while start < len(text):
        match = white.search(text, start + BLOCK)
        end = match.end() if match else len(text)
        yield text[start:end]
        start = end


def read_word_list(path) -> frozenset[str]:
    """Reads a word list, one word a line, in any case.

    Raises:
        ValueError: if there is no such file, or it holds no words.
    """
    path = pathlib.Path(os.path.expanduser(path))
    if not path.is_file():
        raise ValueError(f"there is no word list at {path}; give a text file with one word a line")
    words = frozenset(line.strip().lower() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    if not words - {""}:
        raise ValueError(f"the word list {path} is empty; give a text file with one word a line")
    return words - {""}


def unigram_entropy(tokens_BxD: np.ndarray) -> float:
    """Entropy of the pooled tokens' frequencies, in nats.

    Few tokens give too small an entropy: compare samples with equally many tokens of the data.

    Args:
        tokens_BxD: int `[B, D]`.
    """
    return _entropy(np.unique(np.asarray(tokens_BxD), return_counts=True)[1])


def bigram_entropy(tokens_BxD: np.ndarray) -> float:
    """Entropy of the pooled frequencies of pairs of neighbours, in nats; 0 where rows hold one token.

    Args:
        tokens_BxD: int `[B, D]`, in sequence order; no pair spans two rows.
    """
    tokens_BxD = np.asarray(tokens_BxD, np.int64)
    if tokens_BxD.shape[1] < 2:
        return 0.0
    pairs = tokens_BxD[:, :-1] * (tokens_BxD.max() + 1) + tokens_BxD[:, 1:]
    return _entropy(np.unique(pairs, return_counts=True)[1])


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share @ np.log(share)))


def spread_records(records: Records, count: int) -> np.ndarray:
    """At most `count` records spread evenly over a split, int32 `[count, D]`; always the same ones."""
    count = min(count, len(records))
    return records[np.arange(count) * len(records) // count]
