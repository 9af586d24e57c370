"""The cluster's file system: folders and files by absolute path; what is published is published once."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from posixpath import dirname
from typing import Self

from mqi_hpc.core.errors import ConnectionError

_SHARED_FROM = 64 * 1024
"""Contents of at least so many bytes are kept once, however many files hold them."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file. `content` None: only size and SHA-256 are kept, as nobody reads it here."""

    size: int
    sha256: str
    content: bytes | None

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return the file that holds `content`."""
        return cls(len(content), hashlib.sha256(content).hexdigest(), content)


_Folder = dict[str, "_Folder | Stored"]


class FileSystem:
    """A tree of folders. `away` makes every access fail as a hung or unmounted file system does."""

    def __init__(self) -> None:
        self._root: _Folder = {}
        self._shared: dict[bytes, bytes] = {}
        self.free_bytes = 10**15
        self.away = False

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return self._find(path) is not None

    def is_folder(self, path: str) -> bool:
        """Whether a folder is there."""
        return isinstance(self._find(path), dict)

    def stat(self, path: str) -> Stored | None:
        """Return a file, None where none is there."""
        found = self._find(path)
        return found if isinstance(found, Stored) else None

    def read(self, path: str) -> bytes | None:
        """Return a file's content, None where there is no file (or its content is not kept)."""
        found = self.stat(path)
        return None if found is None else found.content

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it."""
        self._folder(path)

    def write(self, path: str, content: bytes | Stored) -> None:
        """Put a file in place, replacing what was there."""
        self._check()
        stored = content if isinstance(content, Stored) else Stored.of(self._kept(content))
        self._folder(dirname(path))[path.rpartition("/")[2]] = stored

    def append(self, path: str, text: str) -> None:
        """Add whole lines to a file, which need not be there yet."""
        self.write(path, (self.read(path) or b"") + text.encode())

    def publish(self, path: str, content: bytes) -> bool:
        """Put a file in place unless something is there: False; the first writer wins, for ever."""
        if self.exists(path):
            return False
        self.write(path, content)
        return True

    def rename(self, old: str, new: str) -> None:
        """Move a file or folder to a name that is free."""
        self._check()
        if self.exists(new):
            raise FileExistsError(errno.EEXIST, "File exists", new)
        self._folder(dirname(new))[new.rpartition("/")[2]] = self._take(old)

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all that is in it; what is not there is no error."""
        self._check()
        if self._find(path) is not None:
            self._take(path)

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a folder; none where there is no folder."""
        found = self._find(path)
        return sorted(found) if isinstance(found, dict) else []

    def walk(self, path: str) -> Iterator[tuple[str, Stored]]:
        """Yield the files below a folder, sorted, by path relative to it."""
        for name in self.names(path):
            inner = f"{path}/{name}"
            stored = self.stat(inner)
            if stored is not None:
                yield name, stored
            else:
                for below, file in self.walk(inner):
                    yield f"{name}/{below}", file

    def _check(self) -> None:
        if self.away:
            raise ConnectionError("the file system does not answer")

    def _kept(self, content: bytes) -> bytes:
        return content if len(content) < _SHARED_FROM else self._shared.setdefault(content, content)

    def _find(self, path: str) -> _Folder | Stored | None:
        self._check()
        here: _Folder | Stored | None = self._root
        for name in _parts(path):
            here = here.get(name) if isinstance(here, dict) else None
        return here

    def _folder(self, path: str) -> _Folder:
        self._check()
        here = self._root
        for name in _parts(path):
            inner = here.setdefault(name, {})
            if not isinstance(inner, dict):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
            here = inner
        return here

    def _take(self, path: str) -> _Folder | Stored:
        return self._folder(dirname(path)).pop(path.rpartition("/")[2])


def _parts(path: str) -> list[str]:
    return [name for name in path.split("/") if name]
