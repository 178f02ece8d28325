"""Finished questions, a line of JSON each behind a line with the settings: what an interrupted run resumes from."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any


def resume(path: os.PathLike | str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of a journal, which is begun where there is none.

    A line that a killed run left unfinished is removed.

    Args:
        path: the file.
        settings: what a record depends on, as JSON has it.

    Raises:
        ValueError: a journal of other settings, or a file that is none.
    """
    path = pathlib.Path(path)
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, "wb", [{"settings": settings}])
        return []
    try:
        first, *records = map(json.loads, whole.decode().splitlines())
        made_with = dict(first["settings"])
        # A question twice would count twice.
        records = {record["id"]: record for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a journal of finished questions ({error!r}): give another --output") from error
    for name in {**made_with, **settings}:
        if made_with.get(name) != settings.get(name):
            raise ValueError(
                f"{path} was made with {name} {made_with.get(name)!r}, not {settings.get(name)!r}: give the same "
                "settings to resume it, or another --output"
            )
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return list(records.values())


def append(path: os.PathLike | str, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds records, which are on disk when this returns."""
    _write(pathlib.Path(path), "ab", records)


def _write(path: pathlib.Path, mode: str, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open(mode) as file:
        file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        file.flush()
        os.fsync(file.fileno())
