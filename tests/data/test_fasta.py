"""FASTA files: their records, and the counts of those left out."""

import gzip
import lzma

import pytest

from ssmd_jax.data import fasta, pipeline, sources

TEXT = ">P1 first protein\nMKV\nLAG*\n\n>P2\nmkvlax \n>\nMK\n>P4|x\nMKVLAGSE\n>P5\nMKVB-XX\n"


def test_records():
    records = list(fasta.read(TEXT.splitlines(), "file"))
    assert records == [
        ("P1", "MKVLAG"),
        ("P2", "MKVLAX"),
        ("record 3 of file", "MK"),
        ("P4|x", "MKVLAGSE"),
        ("P5", "MKVB-XX"),
    ]


@pytest.mark.parametrize("suffix", [".fasta", ".fa.gz", ".faa.xz"])
def test_files_of_any_compression(tmp_path, suffix):
    opened = {"z": lzma.open, "gz": gzip.open}.get(suffix.rsplit(".", 1)[-1].removeprefix("x"), open)
    path = tmp_path / f"proteins{suffix}"
    with opened(path, "wt") as stream:
        stream.write(TEXT)
    assert [name for name, _ in sources.read_sequences(str(path))][:2] == ["P1", "P2"]
    assert next(sources.read_documents(str(tmp_path))) == "MKVLAG"


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no sequences"), ("\n\n", "holds no sequences"), ("MKV\n>P1\nMKV", "is no FASTA file")],
)
def test_what_is_no_fasta_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "bad.fasta"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(sources.read_sequences(str(path)))


def test_other_and_damaged_files_are_one_sentence(tmp_path):
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(ValueError, match=r"words.txt is no FASTA file; give .fasta"):
        list(sources.read_sequences(str(tmp_path / "words.txt")))
    whole = lzma.compress((TEXT * 1000).encode())
    (tmp_path / "cut.fasta.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or cut short"):
        list(sources.read_sequences(str(tmp_path / "cut.fasta.xz")))


def test_left_out_sequences_are_counted_and_named():
    tally = fasta.Tally()
    rules = fasta.Rules(min_length=3, max_length=7)
    assert list(rules.kept(fasta.read(TEXT.splitlines(), "file"), tally)) == ["MKVLAG"]
    assert tally.used == 1 and tally.left_out.total() == 4
    sentence = tally.sentence()
    assert sentence.startswith(
        "1 of 5 sequences used; left out: 2 with letters outside LAGVSERTIDPKQNFYMHWC (first P2)"
    )
    assert "1 shorter than 3 (first record 3 of file)" in sentence and "1 longer than 7 (first P4|x)" in sentence
    assert "'X' 3" in sentence and "'B' 1" in sentence


def test_the_note_outlives_the_cache(tmp_path):
    """Tokens come from the cache the second time, and what was left out is still said."""
    path = tmp_path / "proteins.fasta"
    path.write_text(TEXT)
    config = pipeline.DataConfig(train=str(path), valid=str(path), tokenizer="esm2", rows="sequences", min_length=3)
    for _ in range(2):
        data = pipeline.load_data(config, 7, cache_dir=tmp_path / "cache")
        assert len(data.train) == len(data.valid) == 1
        assert data.train.note.startswith("1 of 5 sequences used") and "first P4|x" in data.train.note
    assert len(pipeline.load_data(config, 8, cache_dir=tmp_path / "cache").train) == 2
    with pytest.raises(ValueError, match=r"train split holds no text .*0 of 5 sequences used"):
        pipeline.load_data(config, 5, cache_dir=tmp_path / "cache")
