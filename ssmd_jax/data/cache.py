"""Tokenises a corpus once, into memory-mapped arrays.

An entry of the cache is a folder, named by a hash of all that its content depends on: the state of the sources, how
they are split, and the tokenizer. So a stale entry is never found, and an entry never changes. It is written under
another name and renamed when complete; readers check the sizes of its files all the same, and a damaged entry is built
again. Entries may be deleted at any time. Folders named `.partial-*` are left over from builds that were killed.
"""

import array
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from absl import logging

from ssmd_jax.data import fasta, splits, tokenizers

FORMAT = 1
MANIFEST = "manifest.json"
# Characters tokenised at a time: bounds the memory, and gives the tokenizer's threads something to share.
BLOCK_CHARACTERS = 1 << 22
# Longer documents are tokenised in pieces cut at white space.
PIECE_CHARACTERS = 1 << 20

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """The documents of a split, one after another, each ended by the tokenizer's separator.

    Attributes:
      tokens: Ids, memory-mapped uint8, uint16 or uint32 [N], by the size of the vocabulary.
      document_ends: Where each document ends, its separator included, int64 [number of documents].
      note: What the corpus's rules left out, in words; "" without rules.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    note: str = ""


def load_tokens(cache_dir, corpus: splits.Corpus, tokenizer: tokenizers.Tokenizer) -> dict[str, TokenStream]:
    """Returns the token stream of each split, from the cache where it is there and sound, else tokenising first.

    Raises:
      ValueError: If a split holds no text, the cache cannot be written, or as `sources.read_documents`.
      FileNotFoundError: If a source does not exist.
    """
    key = {"format": FORMAT, "corpus": corpus.fingerprint(), "tokenizer": tokenizer.fingerprint()}
    return cached(
        cache_dir,
        f"tokens-{key_hash(key)}",
        load=_load,
        build=lambda directory: _build(directory, corpus, tokenizer, key),
    )


def key_hash(key: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def cached(cache_dir, name: str, load: Callable[[pathlib.Path], T | None], build: Callable[[pathlib.Path], None]) -> T:
    """Loads an entry of the cache, building it first where it is absent or damaged.

    Of several processes one builds and the others wait. Where the file system has no locks each builds its own copy,
    and the first to finish is kept.

    Args:
      cache_dir: Folder of the cache; made where missing.
      name: Name of the entry.
      load: Reads an entry from its folder; None where it is absent or damaged.
      build: Writes an entry into an empty folder.

    Returns:
      What `load` returned.

    Raises:
      ValueError: If the cache cannot be written.
    """
    cache_dir = pathlib.Path(cache_dir).expanduser()
    final = cache_dir / name
    if (entry := load(final)) is not None:
        return entry
    with _locked(cache_dir, name):
        if (entry := load(final)) is None:
            shutil.rmtree(final, ignore_errors=True)
            _build_aside(final, build)
            entry = load(final)
    if entry is None:
        raise ValueError(f"the data cache at {final} changed while it was written; run again, or set data.cache_dir")
    return entry


@contextlib.contextmanager
def _locked(cache_dir: pathlib.Path, name: str) -> Iterator[None]:
    lock = cache_dir / f".{name}.lock"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ValueError(
            f"cannot write the data cache at {cache_dir} ({error.strerror}); set data.cache_dir or SSMD_JAX_CACHE"
        ) from None
    with open(lock) as file:
        # The kernel drops the lock with the process, however it ends.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_aside(final: pathlib.Path, build: Callable[[pathlib.Path], None]) -> None:
    # Not by tempfile, whose folders only their owner can read: users may share a cache.
    partial = final.parent / f".partial-{final.name}-{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        build(partial)
        try:
            os.rename(partial, final)
        except OSError:
            # Another process was first, on a file system without locks; its entry is as good as ours.
            if not final.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(directory: pathlib.Path) -> dict[str, TokenStream] | None:
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        return {split: _load_split(directory, split, manifest) for split in manifest["splits"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load_split(directory: pathlib.Path, split: str, manifest: dict[str, Any]) -> TokenStream:
    num_tokens = manifest["splits"][split]["num_tokens"]
    num_documents = manifest["splits"][split]["num_documents"]
    # Read-only; without a shape the map is as long as the file, whose size is thus checked.
    tokens = np.memmap(directory / f"{split}.tokens", np.dtype(manifest["dtype"]), mode="r")
    document_ends = np.fromfile(directory / f"{split}.documents", np.int64)
    if len(tokens) != num_tokens or len(document_ends) != num_documents:
        raise ValueError(f"{directory} is damaged")
    return TokenStream(tokens, document_ends, manifest["splits"][split].get("note", ""))


def _build(
    directory: pathlib.Path, corpus: splits.Corpus, tokenizer: tokenizers.Tokenizer, key: dict[str, Any]
) -> None:
    logging.info("Tokenising the data into %s", directory.parent)
    dtype = np.min_scalar_type(tokenizer.num_tokens - 1)
    ends: dict[str, array.array] = {}
    num_tokens: dict[str, int] = {}
    tallies: dict[str, fasta.Tally] = {}
    with contextlib.ExitStack() as stack:
        files = {}
        for block in _blocks(_pieces(corpus.documents(tallies), tokenizer)):
            encoded = tokenizer.encode_batch([text for _, text, _ in block])
            for (split, _, is_last), ids in zip(block, encoded, strict=True):
                if split not in files:
                    files[split] = stack.enter_context(open(directory / f"{split}.tokens", "wb"))
                    ends[split], num_tokens[split] = array.array("q"), 0
                if is_last:
                    ids = np.concatenate([ids, tokenizer.separator])
                ids.astype(dtype).tofile(files[split])
                num_tokens[split] += len(ids)
                if is_last:
                    ends[split].append(num_tokens[split])
    for split in ("train", "valid"):
        if split not in files:
            why = f" ({tallies[split].sentence()})" if split in tallies else ""
            raise ValueError(
                f"the {split} split holds no text that the {tokenizer.kind} tokenizer knows{why}; check the data"
            )
    for split, positions in ends.items():
        np.array(positions, np.int64).tofile(directory / f"{split}.documents")
    counts = {s: {"num_tokens": num_tokens[s], "num_documents": len(ends[s])} for s in splits.SPLITS if s in ends}
    for split, tally in tallies.items():
        counts[split]["note"] = tally.sentence()
    manifest = {"key": key, "num_ids": tokenizer.num_tokens, "dtype": dtype.name, "splits": counts}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2))


def _pieces(documents: Iterable[tuple[str, str]], tokenizer: tokenizers.Tokenizer) -> Iterator[tuple[str, str, bool]]:
    """Yields (split, piece of a normalised document, whether it is the document's last)."""
    for split, document in documents:
        text = tokenizer.normalize(document)
        if not text:
            continue
        start = 0
        while len(text) - start > PIECE_CHARACTERS:
            bound = start + PIECE_CHARACTERS
            # Before a space or line feed: the tokens of words are the same as in the whole text.
            cut = max(text.rfind(" ", start + 1, bound), text.rfind("\n", start + 1, bound))
            cut = bound if cut < 0 else cut
            yield split, text[start:cut], False
            start = cut
        yield split, text[start:], True


def _blocks(pieces: Iterable[tuple[str, str, bool]]) -> Iterator[list[tuple[str, str, bool]]]:
    block, size = [], 0
    for piece in pieces:
        block.append(piece)
        size += len(piece[1])
        if size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block
