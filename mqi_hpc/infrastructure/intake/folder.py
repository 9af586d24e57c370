"""Walks a case folder: which files count, and their bytes, read once and whole."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from mqi_hpc.core.errors import RejectedCase
from mqi_hpc.core.intake import Fault, SourceFile

IGNORED = ("*.extracting", "*.zip.tmp", "*.backup.*", "extract_*.tmp", ".*")
"""Names of what is still being copied, or kept aside."""
_DEPTH = 4
_CHUNK = 1024 * 1024
_SMALL = 1024 * 1024
"""Most bytes of a text file of a delivery; real ones have a few thousand."""


class Unreadable(Exception):  # noqa: N818 - a fault on its way to the report, not an error of ours
    """A file that cannot be taken into a case; `fault` says why."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(path, message)


@dataclass(slots=True)
class Tree:
    """The files of a case folder that count, by folder; paths are below the case folder, with `/`."""

    root: Path
    folders: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def files(self) -> Iterator[str]:
        """Yield every file's path."""
        for folder, names in self.folders.items():
            for name in names:
                yield f"{folder}/{name}" if folder else name


def walk(folder: str) -> Tree:
    """Return the files below `folder`; raises RejectedCase where it is no folder that can be read."""
    root = Path(folder)
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise RejectedCase(f"rejected: {folder!r} {what}", fix="Name the folder of a case")
    tree = Tree(root)
    _walk(tree, "", 0)
    return tree


def _walk(tree: Tree, folder: str, depth: int) -> None:
    try:
        entries = sorted(os.scandir(tree.root / folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        tree.faults.append(Fault(shown(folder or "."), f"cannot be read: {error.strerror}"))
        return
    names = tree.folders.setdefault(folder, [])
    for entry in entries:
        if any(fnmatchcase(entry.name, pattern) for pattern in IGNORED):
            continue
        path = f"{folder}/{entry.name}" if folder else entry.name
        if shown(path) != path:
            tree.faults.append(Fault(shown(path), "its name is not UTF-8 text: rename it"))
        elif entry.is_symlink():
            tree.faults.append(Fault(path, "is a symbolic link: a case holds its own files"))
        elif entry.is_dir(follow_symlinks=False):
            if depth < _DEPTH:
                _walk(tree, path, depth + 1)
        elif entry.is_file(follow_symlinks=False):
            names.append(entry.name)
        elif matters(entry.name):
            tree.faults.append(Fault(path, "is no regular file"))


def matters(name: str) -> bool:
    """Whether a name is one that a case's file would have."""
    low = name.lower()
    return low.endswith((".dcm", ".ptn")) or low in ("planinfo.txt", "planrange.txt", "planrange.csv")


def shown(path: str) -> str:
    """Return a path as it can be printed and stored: what is not UTF-8 is escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_file(root: Path, path: str, *, most: int | None = None) -> tuple[SourceFile, bytes]:
    """Return a file's digest and, where `most` allows, its bytes; else b"".

    Raises Unreadable where it cannot be read, is larger than `most`, or changes meanwhile.
    """
    try:
        # Not following links, not waiting for a pipe's other end.
        descriptor = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise Unreadable(path, "is no regular file")
            if most is not None and before.st_size > most:
                raise Unreadable(path, f"has {before.st_size} bytes, at most {most} are expected")
            digest, size, kept = hashlib.sha256(), 0, []
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if most is not None:
                    kept.append(chunk)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise Unreadable(path, f"cannot be read: {error.strerror}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != after.st_size:
        raise Unreadable(path, "changes while it is read: wait until it has been copied")
    return SourceFile(path, size, digest.hexdigest()), b"".join(kept)


def read_text(root: Path, path: str) -> tuple[SourceFile, str]:
    """Return a small text file; raises Unreadable where it is none."""
    file, content = read_file(root, path, most=_SMALL)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        # Patient ids on Japanese and Korean machines; what counts in these files is ASCII.
        text = content.decode("latin-1")
    if "\0" in text:
        raise Unreadable(path, "is no text")
    return file, text
