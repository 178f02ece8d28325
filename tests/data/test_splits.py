import collections

import pytest

from ssmd_jax.data import splits

FRACTIONS = [(0.05, 0.05), (0.1, 0.0), (0.01, 0.2), (0.3, 0.3), (0.45, 0.45), (0.02, 0.02)]


def corpus_file(tmp_path, documents, name="a.txt"):
    path = tmp_path / name
    path.write_text("\n\f\n".join(documents))
    return str(path)


@pytest.mark.parametrize(("valid", "test"), FRACTIONS)
def test_every_split_gets_a_document_and_its_share(valid, test):
    for count in [*range(3, 60), 500]:
        documents = [str(n) for n in range(count)]
        labelled = list(splits.assign_splits(iter(documents), valid, test))
        assert [document for _, document in labelled] == documents  # each once, in order
        counts = collections.Counter(split for split, _ in labelled)
        assert counts["train"] and counts["valid"] and bool(counts["test"]) == (test > 0), (count, counts)
        if count == 500:
            assert abs(counts["valid"] - 500 * valid) <= 1 and abs(counts["test"] - 500 * test) <= 1


def test_the_splits_are_spread_over_the_documents():
    labels = [split for split, _ in splits.assign_splits(map(str, range(1000)), 0.05, 0.05)]
    for start in range(0, 1000, 100):
        assert abs(labels[start : start + 100].count("valid") - 5) <= 1
        assert abs(labels[start : start + 100].count("test") - 5) <= 1


def test_too_few_documents_are_one_sentence(tmp_path):
    corpus = splits.Corpus(corpus_file(tmp_path, ["a", "b"]))
    with pytest.raises(ValueError, match="the data holds 2 documents, too few to split into 3 parts"):
        list(corpus.documents())
    one_split_less = splits.Corpus(corpus_file(tmp_path, ["a", "b"]), test_fraction=0)
    assert {split for split, _ in one_split_less.documents()} == {"train", "valid"}


def test_splits_by_path_and_training_documents(tmp_path):
    paths = {split: corpus_file(tmp_path, [split, split + "2"], split) for split in splits.SPLITS}
    corpus = splits.Corpus("unused", **paths)
    expected = [(split, text) for split in splits.SPLITS for text in (split + "\n", split + "2")]
    assert list(corpus.documents()) == expected
    assert list(corpus.training_documents()) == ["train\n", "train2"]


@pytest.mark.parametrize("name", splits.TEXT8[:1])
def test_text8_is_cut_by_characters(tmp_path, name):
    text = "".join(chr(ord("a") + n % 26) for n in range(1000))
    corpus = splits.Corpus(corpus_file(tmp_path, [text], name))
    assert list(corpus.documents()) == [("train", text[:900]), ("valid", text[900:950]), ("test", text[950:])]
    # Under another name the same file is one document, which cannot be split.
    with pytest.raises(ValueError, match="holds 1 documents"):
        list(splits.Corpus(corpus_file(tmp_path, [text], "other")).documents())


def test_the_fingerprint_changes_with_all_that_decides_the_documents(tmp_path):
    path = corpus_file(tmp_path, ["a", "b", "c"])
    other = corpus_file(tmp_path, ["a", "b", "d"], "other.txt")
    variants = [
        splits.Corpus(path),
        splits.Corpus(other),
        splits.Corpus(path, field="body"),
        splits.Corpus(path, valid_fraction=0.1),
        splits.Corpus(path, test_fraction=0.1),
        splits.Corpus(path, train=path, valid=other),
        splits.Corpus(path, train=other, valid=path),
    ]
    fingerprints = [str(corpus.fingerprint()) for corpus in variants]
    assert len(set(fingerprints)) == len(variants)
    assert splits.Corpus(path).fingerprint() == variants[0].fingerprint()
