"""Looks at folders without reading files: names, sizes and times, as cheaply as a file system tells them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mqi_hpc.core.readiness import SeenFile
from mqi_hpc.infrastructure.intake.folder import DEPTH, MOST_FILES, ignored, passes, shown

_UNREADABLE = -1
"""Size told of a folder that may not be read."""


class Unseen(Exception):  # noqa: N818 - no error of ours: the folder is looked at again
    """A folder cannot be looked at now, which says nothing about what it holds."""


@dataclass(frozen=True, slots=True)
class Children:
    """The folders directly below one: real ones, and symbolic links to whatever; names as they are."""

    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def children(parent: Path, ignore: Sequence[str]) -> Children:
    """Return the folders below `parent`, by name; raises OSError where it cannot be listed."""
    found = Children()
    with os.scandir(parent) as entries:
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
            if ignored(entry.name, ignore):
                continue
            if entry.is_symlink():
                found.links.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                found.folders.append(entry.name)
    return found


def look(folder: Path, ignore: Sequence[str]) -> list[SeenFile]:
    """Return what a case folder holds: all that is no folder, and folders that cannot be gone into.

    Raises Unseen where something changes or does not answer meanwhile.
    """
    seen: list[SeenFile] = []
    _look(folder, "", ignore, 0, seen)
    return seen


def _look(root: Path, below: str, ignore: Sequence[str], depth: int, seen: list[SeenFile]) -> None:
    try:
        with os.scandir(root / below) as entries:
            for entry in entries:
                if ignored(entry.name, ignore):
                    continue
                path = f"{below}/{entry.name}" if below else entry.name
                if entry.is_dir(follow_symlinks=False) and depth < DEPTH:
                    _look(root, path, ignore, depth + 1, seen)
                else:
                    seen.append(_seen(path, entry.stat(follow_symlinks=False)))
                if len(seen) > MOST_FILES:
                    # The reader says so, in words.
                    return
    except OSError as error:
        if passes(error):
            raise Unseen(f"it cannot be looked at: {error.strerror}") from error
        seen.append(SeenFile(shown(below or "."), _UNREADABLE, 0, 0))


def _seen(path: str, status: os.stat_result) -> SeenFile:
    return SeenFile(shown(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode)
