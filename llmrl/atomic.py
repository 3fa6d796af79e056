"""Files that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path, *, on_disk: bool = False) -> Iterator[Path]:
    """A path to write to instead of `file`, whose place it takes when the block ends; if the block raises, nothing changes.

    A reader sees the old file or the new one, never a part. With `on_disk` this holds after a power failure too, and the
    new file is on disk when the block ends. One writer at a time.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        if on_disk:
            sync(partial)
        partial.replace(file)
        if on_disk:
            sync(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(file: Path, text: str, *, errors: str = "strict") -> None:
    """Replace `file` by one that holds `text` in UTF-8; `errors` is what becomes of lone surrogates, as for str.encode."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
