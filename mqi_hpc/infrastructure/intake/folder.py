"""Walks a case folder: which files count, and their bytes, read once and whole."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from mqi_hpc.core.errors import RejectedCase
from mqi_hpc.core.intake import Fault, SourceFile

IGNORED = ("*.extracting", "*.zip.tmp", "*.backup.*", "extract_*.tmp", ".*")
"""Names of what is still being copied, or kept aside."""
DEPTH = 4
"""Most folders within one another in a case folder."""
MOST_FILES = 200_000
"""More than any case has: 30 fractions of 8 beams of 100 layers are 50 thousand."""
_CHUNK = 1024 * 1024
_SMALL = 1024 * 1024
"""Most bytes of a text file of a delivery; real ones have a few thousand."""


_LASTING = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
"""Errors that stay until a person does something; any other may be over in a minute."""


class PassingFault(Fault):
    """A fault of the moment: a file in change, or a file system that does not answer. It refuses nothing."""

    __slots__ = ()


class PassingRejection(RejectedCase):
    """A folder that cannot be looked at now; it may well be in a minute."""


class Unreadable(Exception):  # noqa: N818 - a fault on its way to the report, not an error of ours
    """A file that cannot be taken into a case; `fault` says why, as a PassingFault where it may pass."""

    def __init__(self, path: str, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.fault = (PassingFault if passing else Fault)(path, message)


@dataclass(slots=True)
class Tree:
    """The files of a case folder that count, by folder; paths are below the case folder, with `/`."""

    root: Path
    ignore: Sequence[str] = IGNORED
    folders: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: int = 0

    def files(self) -> Iterator[str]:
        """Yield every file's path."""
        for folder, names in self.folders.items():
            for name in names:
                yield f"{folder}/{name}" if folder else name


def ignored(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one that is passed over: one of the patterns is all of it."""
    return _compiled(tuple(patterns)).match(name) is not None


@cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    # A scan asks for hundreds of thousands of names.
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")


def passes(error: OSError) -> bool:
    """Whether an error may be over in a minute."""
    return error.errno not in _LASTING


def walk(folder: str, ignore: Sequence[str] = ()) -> Tree:
    """Return the files below `folder`; raises RejectedCase where it is no folder that can be read.

    `ignore` are patterns of names that do not count, beside IGNORED.
    """
    root = Path(folder)
    kind: type[RejectedCase] = RejectedCase
    try:
        what = "" if root.is_dir() else "is no folder" if root.exists() else "does not exist"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        kind = PassingRejection if passes(error) else RejectedCase
    if what:
        raise kind(f"rejected: {folder!r} {what}", fix="Name the folder of a case")
    tree = Tree(root, (*IGNORED, *ignore))
    _walk(tree, "", 0)
    return tree


def _walk(tree: Tree, folder: str, depth: int) -> None:
    try:
        with os.scandir(tree.root / folder) as found:
            entries = list(islice(found, MOST_FILES - tree.seen + 1))
    except OSError as error:
        tree.faults.append(_unreadable(shown(folder or "."), error).fault)
        return
    tree.seen += len(entries)
    if tree.seen > MOST_FILES:
        raise RejectedCase(
            f"rejected: {str(tree.root)!r} holds more than {MOST_FILES} files",
            fix="Name the folder of a case",
        )
    names = tree.folders.setdefault(folder, [])
    for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
        if ignored(entry.name, tree.ignore):
            continue
        path = f"{folder}/{entry.name}" if folder else entry.name
        if shown(path) != path:
            tree.faults.append(Fault(shown(path), "its name is not UTF-8 text: rename it"))
        elif entry.is_symlink():
            tree.faults.append(Fault(path, "is a symbolic link: a case holds its own files"))
        elif entry.is_dir(follow_symlinks=False):
            if depth == DEPTH:
                tree.faults.append(Fault(path, f"lies more than {DEPTH} folders deep: no case is so deep"))
                continue
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
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def read_file(root: Path, path: str, *, most: int, keep: bool = True) -> tuple[SourceFile, bytes]:
    """Return a file's digest and its bytes; b"" for them unless they are to be kept.

    Raises Unreadable where it cannot be read, is larger than `most`, or changes meanwhile.
    """
    try:
        with _open(root, path) as file:
            before = os.fstat(file.fileno())
            if before.st_size > most:
                raise Unreadable(path, f"has {before.st_size} bytes, at most {most} are expected")
            digest, size, kept = hashlib.sha256(), 0, []
            # Not past `most`: a file that grows as fast as it is read has no end.
            while size <= most and (chunk := file.read(_CHUNK)):
                digest.update(chunk)
                size += len(chunk)
                if keep:
                    kept.append(chunk)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(path, error) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != after.st_size:
        raise Unreadable(path, "changes while it is read: wait until it has been copied", passing=True)
    return SourceFile(path, size, digest.hexdigest()), b"".join(kept)


def read_head(root: Path, path: str, size: int) -> bytes:
    """Return the first `size` bytes of a file; raises Unreadable where it cannot be read."""
    try:
        with _open(root, path) as file:
            return file.read(size)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> Unreadable:
    return Unreadable(path, f"cannot be read: {error.strerror}", passing=passes(error))


def _open(root: Path, path: str) -> BinaryIO:
    # Not following links, not waiting for a pipe's other end.
    descriptor = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise Unreadable(path, "is no regular file")
    return file


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
