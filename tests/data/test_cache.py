import json
import multiprocessing
import os

import numpy as np
import pytest

from ssmd_jax.data import cache, splits, tokenizers

TEXT8 = tokenizers.make_tokenizer("text8")
BYTES = tokenizers.make_tokenizer("bytes")
DOCUMENTS = [f"Document {chr(97 + n)}: some text, that goes on; {chr(97 + n) * n}.\n" for n in range(26)]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.txt").write_text("\f\n".join(DOCUMENTS))
    return splits.Corpus(str(tmp_path / "a.txt"))


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


def entries(cache_dir):
    return sorted(path.name for path in cache_dir.iterdir() if not path.name.endswith(".lock"))


def count_builds(monkeypatch):
    built = []
    build = cache._build
    monkeypatch.setattr(cache, "_build", lambda *args: built.append(1) or build(*args))
    return built


@pytest.mark.parametrize("piece", [cache.PIECE_CHARACTERS, 16])
@pytest.mark.parametrize("tokenizer", [TEXT8, BYTES], ids=["text8", "bytes"])
def test_streams_are_the_documents_joined_by_the_separator(corpus, cache_dir, tokenizer, piece, monkeypatch):
    # Small pieces and blocks must change nothing.
    monkeypatch.setattr(cache, "PIECE_CHARACTERS", piece)
    monkeypatch.setattr(cache, "BLOCK_CHARACTERS", 3 * piece)
    streams = cache.load_tokens(cache_dir, corpus, tokenizer)
    assert list(streams) == list(splits.SPLITS)
    for split, stream in streams.items():
        texts = [tokenizer.normalize(text) for s, text in corpus.documents() if s == split]
        separator = tokenizer.decode(tokenizer.separator)
        assert tokenizer.decode(stream.tokens) == "".join(text + separator for text in texts)
        np.testing.assert_array_equal(stream.document_ends, np.cumsum([len(text) + 1 for text in texts]))
        assert isinstance(stream.tokens, np.memmap) and stream.tokens.dtype == np.uint8
    if tokenizer is TEXT8:
        assert "  " not in TEXT8.decode(streams["train"].tokens)


@pytest.mark.parametrize(
    ("num_tokens", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_the_dtype_follows_the_vocabulary(corpus, cache_dir, num_tokens, dtype):
    class Wide(tokenizers.ByteTokenizer):
        def encode(self, text, strict=False):
            return super().encode(text) + (num_tokens - 256)

        def fingerprint(self):
            return f"wide {num_tokens}"

    wide = Wide()
    wide.num_tokens = num_tokens
    stream = cache.load_tokens(cache_dir, corpus, wide)["train"]
    assert stream.tokens.dtype == dtype
    assert stream.tokens.max() == num_tokens - 256 + max(max(text.encode()) for text in DOCUMENTS)


def test_a_second_load_builds_nothing_and_says_what_it_holds(corpus, cache_dir, monkeypatch):
    built = count_builds(monkeypatch)
    first = cache.load_tokens(cache_dir, corpus, TEXT8)
    second = cache.load_tokens(cache_dir, corpus, TEXT8)
    assert len(built) == 1
    np.testing.assert_array_equal(first["train"].tokens, second["train"].tokens)
    (name,) = entries(cache_dir)
    manifest = json.loads((cache_dir / name / "manifest.json").read_text())
    assert manifest["dtype"] == "uint8" and manifest["key"]["tokenizer"] == TEXT8.fingerprint()
    assert manifest["splits"]["train"]["num_tokens"] == len(first["train"].tokens)


def test_other_users_may_read_an_entry(corpus, cache_dir):
    """As far as the umask lets them: a cache may be shared."""
    before = os.umask(0o027)
    try:
        cache.load_tokens(cache_dir, corpus, TEXT8)
    finally:
        os.umask(before)
    (name,) = entries(cache_dir)
    assert (cache_dir / name).stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (cache_dir / name).iterdir()} == {0o640}


def test_stale_entries_are_built_again(corpus, cache_dir, tmp_path, monkeypatch):
    built = count_builds(monkeypatch)
    cache.load_tokens(cache_dir, corpus, TEXT8)
    (tmp_path / "a.txt").write_text("\f\n".join(DOCUMENTS).replace("some", "more"))
    changed = cache.load_tokens(cache_dir, corpus, TEXT8)
    assert "more text" in TEXT8.decode(changed["train"].tokens)
    cache.load_tokens(cache_dir, splits.Corpus(corpus.source, valid_fraction=0.2), TEXT8)
    cache.load_tokens(cache_dir, corpus, BYTES)
    assert len(built) == 4


def test_a_build_that_dies_leaves_nothing_to_read(corpus, cache_dir, monkeypatch):
    encode = type(TEXT8).encode_batch
    monkeypatch.setattr(cache, "BLOCK_CHARACTERS", 100)
    calls = []

    def dies(self, texts):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr(type(TEXT8), "encode_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.load_tokens(cache_dir, corpus, TEXT8)
    assert entries(cache_dir) == []
    assert len(cache.load_tokens(cache_dir, corpus, TEXT8)["train"].tokens) > 500


def test_a_killed_build_is_not_read(corpus, cache_dir, monkeypatch):
    # What SIGKILL leaves: no clean-up ran, and the manifest was already there.
    monkeypatch.setattr(cache.shutil, "rmtree", lambda *args, **kwargs: None)
    monkeypatch.setattr(cache.os, "rename", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.load_tokens(cache_dir, corpus, TEXT8)
    monkeypatch.undo()
    assert [name for name in entries(cache_dir) if name.startswith(".partial-")] == entries(cache_dir) != []
    built = count_builds(monkeypatch)
    cache.load_tokens(cache_dir, corpus, TEXT8)
    assert built == [1]


@pytest.mark.parametrize("damage", ["tokens", "documents", "manifest.json", "missing", "longer"])
def test_damaged_entries_are_built_again(corpus, cache_dir, monkeypatch, damage):
    whole = np.array(cache.load_tokens(cache_dir, corpus, TEXT8)["valid"].tokens)
    (name,) = entries(cache_dir)
    if damage == "missing":
        (cache_dir / name / "valid.tokens").unlink()
    elif damage == "longer":
        with open(cache_dir / name / "valid.tokens", "ab") as file:
            file.write(b"\0")
    else:
        path = cache_dir / name / (damage if "." in damage else f"valid.{damage}")
        path.write_bytes(path.read_bytes()[:-8])
    built = count_builds(monkeypatch)
    np.testing.assert_array_equal(cache.load_tokens(cache_dir, corpus, TEXT8)["valid"].tokens, whole)
    assert built == [1]
    assert entries(cache_dir) == [name]


def _load_and_report(cache_dir, corpus, barrier, results):
    barrier.wait()
    results.put(cache.load_tokens(cache_dir, corpus, TEXT8)["train"].tokens.tobytes())


@pytest.mark.parametrize("with_locks", [True, False])
def test_two_processes_at_once(corpus, cache_dir, monkeypatch, with_locks):
    if not with_locks:
        monkeypatch.setattr(cache.fcntl, "flock", lambda *args: (_ for _ in ()).throw(OSError))
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(3), fork.Queue()
    workers = [fork.Process(target=_load_and_report, args=(cache_dir, corpus, barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    streams = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert streams[0] == streams[1] == streams[2]
    assert len(entries(cache_dir)) == 1


def test_bad_input_is_one_sentence(tmp_path, cache_dir):
    (tmp_path / "digits.txt").write_text("12\n\f\n34\n\f\n56\n")
    with pytest.raises(ValueError, match="the train split holds no text that the text8 tokenizer knows"):
        cache.load_tokens(cache_dir, splits.Corpus(str(tmp_path / "digits.txt")), TEXT8)
    assert entries(cache_dir) == []
    cache_dir = tmp_path / "digits.txt"
    with pytest.raises(ValueError, match=r"cannot write the data cache at .*SSMD_JAX_CACHE"):
        cache.load_tokens(cache_dir, splits.Corpus(str(tmp_path / "digits.txt")), BYTES)
