"""Spelling and entropies against dumb twins."""

import collections
import itertools
import math
import re
import types

import numpy as np
import pytest

from ssmd_jax.data.pipeline import Records
from ssmd_jax.data.tokenizers import make_tokenizer
from ssmd_jax.evaluation import text
from ssmd_jax.evaluation.statistics import ratio


def records(documents, tokenizer, length=8, memory_map=None):
    ids = [np.concatenate([tokenizer.encode(document), tokenizer.separator]) for document in documents]
    tokens = np.concatenate(ids).astype(np.uint8)
    if memory_map is not None:
        tokens.tofile(memory_map)
        tokens = np.memmap(memory_map, np.uint8, mode="r")
    ends = np.cumsum([len(part) for part in ids])
    return Records(types.SimpleNamespace(tokens=tokens, document_ends=ends), length)


def test_words_cut_by_the_ends_do_not_count():
    assert text.whole_words("he cat sat on th") == ["cat", "sat", "on"]
    assert text.whole_words(" the cat ") == ["the", "cat"]
    assert text.whole_words("abcdef") == []
    assert text.whole_words("x Don't, stop-it: we've 3rd y") == ["don't", "stop", "it", "we've", "rd"]


def test_spelling_accuracy_of_text8_against_a_split_at_spaces():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("  abt"), size=40)) for _ in range(30)]
    known = frozenset({"a", "at", "tab", "bat"})
    right, total = [], []
    for sample in texts:
        pieces = [piece for piece in sample.split(" ")[1:-1] if piece]
        right.append(sum(piece in known for piece in pieces))
        total.append(len(pieces))
    assert 0 < sum(right) < sum(total)
    np.testing.assert_allclose(text.spelling_accuracy(texts, known), ratio(right, total))


@pytest.mark.parametrize("block", [1, 7, 1 << 22])
@pytest.mark.parametrize("kind", ["text8", "bytes"])
def test_training_words_against_a_counter(kind, block, monkeypatch):
    monkeypatch.setattr(text, "BLOCK", block)
    documents = ["the cat and the dog", "a dog", "cat", "an ox and an owl"]
    split = records(documents, make_tokenizer(kind))
    counts = collections.Counter(" ".join(documents).split())
    assert text.training_words(split, make_tokenizer(kind)) == {word for word, count in counts.items() if count > 1}


def test_training_words_are_counted_once(tmp_path, monkeypatch):
    (tmp_path / "tokens-x").mkdir()
    tokenizer = make_tokenizer("text8")
    split = records(["one two one", "two three"], tokenizer, memory_map=tmp_path / "tokens-x" / "train.tokens")
    assert text.training_words(split, tokenizer) == {"one", "two"}
    count = text.frequent_words
    monkeypatch.setattr(text, "frequent_words", None)  # would fail if called again
    assert text.training_words(split, tokenizer) == {"one", "two"}
    # by other rules they are counted anew
    monkeypatch.setattr(text, "frequent_words", count)
    monkeypatch.setattr(text, "WORD", re.compile("[a-z]"))
    assert text.training_words(split, tokenizer) == set("eotwn")
    for name, value in (("BLOCK", 4), ("MAX_TOKENS", 8)):
        monkeypatch.setattr(text, name, value)
        before = len(list(tmp_path.iterdir()))
        text.training_words(split, tokenizer)
        assert len(list(tmp_path.iterdir())) > before


def test_word_list(tmp_path, monkeypatch):
    path = tmp_path / "words"
    path.write_text("Apple\n pear \n\n")
    assert text.read_word_list(path) == {"apple", "pear"}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert text.read_word_list("~/words") == {"apple", "pear"}
    with pytest.raises(ValueError, match="no word list"):
        text.read_word_list(tmp_path / "none")
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="empty"):
        text.read_word_list(path)


def entropy(items):
    counts = collections.Counter(items)
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def test_entropies():
    tokens = np.random.default_rng(0).integers(0, 5, (6, 9))
    np.testing.assert_allclose(text.unigram_entropy(tokens), entropy(tokens.ravel().tolist()))
    pairs = [(a, b) for row in tokens.tolist() for a, b in itertools.pairwise(row)]
    np.testing.assert_allclose(text.bigram_entropy(tokens), entropy(pairs))
    assert text.unigram_entropy(np.zeros((2, 3), int)) == 0
    assert text.bigram_entropy(np.zeros((2, 1), int)) == 0
    # pairs do not fit the dtype of the tokens
    wide = np.random.default_rng(1).integers(0, 27, (40, 50))
    assert text.bigram_entropy(wide.astype(np.uint8)) == text.bigram_entropy(wide)


def test_spread_records():
    tokenizer = make_tokenizer("text8")
    split = records(["abcdefgh" * 10], tokenizer)
    assert text.spread_records(split, 4).shape == (4, 8)
    assert text.spread_records(split, 99).shape == (10, 8)
