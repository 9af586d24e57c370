"""Files that appear whole and durable, or not at all: the first writer's, or the last one's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

_TOKEN = re.compile("[0-9a-f]{16}")


@contextmanager
def first_to_publish(path: Path) -> Iterator[Path]:
    """Give a new file (mode 0600) to be filled, and publish it as `path` when the block ends well.

    Where another has published first, that one's stands and ours is dropped. A folder that is missing is
    made, mode 0700. Raises OSError.
    """
    with _fresh(path) as fresh:
        yield fresh
        sync(fresh)
        with suppress(FileExistsError):
            os.link(fresh, path)
    sync(path.parent)


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Give a new file (mode 0600) to be filled, and put it in `path`'s place when the block ends well.

    What was there is then found under `keep`, where that is named. At any moment `path` is the old file or
    the new one. Raises OSError; once the new file stands, only where it may not outlast a power cut.
    """
    with _fresh(path) as fresh:
        yield fresh
        sync(fresh)
        if keep is not None:
            _name_also(path, keep)
        fresh.replace(path)
    sync(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers meant for `path`; none may be writing now. Raises OSError."""
    prefix = f".{path.name}."
    for one in path.parent.iterdir():
        if one.name.startswith(prefix) and _TOKEN.fullmatch(one.name, len(prefix)):
            one.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's names, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _fresh(path: Path) -> Iterator[Path]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{token_hex(8)}")
    os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)


def _name_also(path: Path, keep: Path) -> None:
    second = path.with_name(f".{path.name}.{token_hex(8)}")
    os.link(path, second)
    try:
        second.replace(keep)
    finally:
        # Still there where both were one file already: renaming one over the other does nothing.
        second.unlink(missing_ok=True)
