"""Records from .jsonl, .json and .parquet files, each with its place, so that an error can name it."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrl.errors import DataError
from llmrl.nearest import closest

SUFFIXES = (".jsonl", ".json", ".parquet")


def is_file_source(source: str) -> bool:
    """Whether a recipe's source names files rather than a generator or a hub id."""
    return source.endswith(SUFFIXES) or glob.has_magic(source) or Path(source).expanduser().is_file()


def read_files(source: str) -> Iterator[tuple[str, str, Any]]:
    """(place, file name/number, record) of every row of the files that `source` names, in the order of their names.

    Raises DataError: no such file (with the nearest name), an unknown kind of file, a line that is no JSON.
    """
    paths, top = find_files(source), top_folder(source)
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: files of kind {path.suffix or '(none)'} are not read; use {', '.join(SUFFIXES)}")
        read = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}[path.suffix]
        for number, (place, record) in enumerate(read(path)):
            yield place, f"{path.relative_to(top).with_suffix('').as_posix()}/{number}", record


def top_folder(source: str) -> Path:
    """The folder that all files of a source lie in."""
    return Path(os.path.commonpath([path.parent for path in find_files(source)]))


def find_files(source: str) -> list[Path]:
    """The files that a path or a glob names, sorted. Raises DataError if there is none."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if found:
        return found
    if glob.has_magic(source):
        raise DataError(f"no file matches {source}")
    if not path.parent.is_dir():
        raise DataError(f"no such data file: {source} (there is no folder {path.parent})")
    close = closest(path.name, (item.name for item in path.parent.iterdir()))
    guess = f"; did you mean {path.parent / close}?" if close else ""
    raise DataError(f"no such data file: {source}{guess}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"column {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return record


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        spot = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        raise DataError(f"{place}: invalid JSON, {error.msg} at {spot}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: invalid JSON, {error}") from error


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", _parse(line.rstrip(b"\r\n"), f"{path}:{number}")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    content = _parse(path.read_bytes(), str(path))
    if not isinstance(content, list):
        raise DataError(f"{path}: a .json file must hold one list of rows, not {type(content).__name__}")
    for number, record in enumerate(content):
        yield f"{path}: row {number}", record


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable parquet file, {error}") from error
    for number, record in enumerate(table.to_pylist()):
        yield f"{path}: row {number}", record
