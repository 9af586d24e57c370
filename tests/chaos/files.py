"""The cluster's file system, as it is and was: who may write what, and what a host with an old cache sees."""

from __future__ import annotations

from collections.abc import Callable
from posixpath import dirname

from mqi_hpc.records import layout
from mqi_hpc.records.manifest import parse_manifest
from tests.chaos.ledger import Ledger
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.filesystem import FileSystem, Stored

_Version = tuple[float, Stored]


class WatchedFiles(FileSystem):
    """Keeps every version of every file, and tells of writes that nobody may make.

    `own`: the folder of the stage program at work, outside of which it may write nothing; None: no stage is.
    """

    def __init__(self, clock: VirtualClock, ledger: Ledger) -> None:
        super().__init__()
        self.clock = clock
        self.ledger = ledger
        self.own: str | None = None
        self.versions: dict[str, list[_Version]] = {}
        self.folders: dict[str, float] = {}

    def write(self, path: str, content: bytes | Stored) -> None:
        before = self.stat(path)
        super().write(path, content)
        now = self.stat(path)
        assert now is not None
        self._born(path, now)
        name = path.rpartition("/")[2]
        if before is not None and before != now and name.startswith(("receipt.", "claim.", layout.RECORD)):
            self.ledger.broken(
                self.clock.monotonic(), f"{path} was replaced: the first writer wins, for ever"
            )
        if self.own is not None and not path.startswith(f"{self.own}/"):
            self.ledger.broken(
                self.clock.monotonic(), f"{path} was written by a job whose folder is {self.own}"
            )

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        if self.exists(f"{new}/{layout.MANIFEST}") and (wrong := unlike(self, new)) is not None:
            text = f"{new} stands under its name, and {wrong} is not what its manifest says"
            self.ledger.broken(self.clock.monotonic(), text)
        for path in [path for path in self.folders if path.startswith(f"{old}/")]:
            self._folder_born(new + path[len(old) :])
        for below, stored in self.walk(new):
            self._born(f"{new}/{below}", stored)
        stored_itself = self.stat(new)
        if stored_itself is not None:
            self._born(new, stored_itself)

    def make_folder(self, path: str) -> None:
        super().make_folder(path)
        self._folder_born(path)

    def _born(self, path: str, stored: Stored) -> None:
        self.versions.setdefault(path, []).append((self.clock.monotonic(), stored))
        self._folder_born(dirname(path))

    def _folder_born(self, path: str) -> None:
        while path not in self.folders and len(path) > 1:
            self.folders[path] = self.clock.monotonic()
            path = dirname(path)


class StaleView(FileSystem):
    """What a host sees whose cache is `lag` seconds old. It writes, and links, on the file system itself.

    `hides` says which paths it may see late; all others it sees as they are.
    """

    def __init__(
        self, files: WatchedFiles, lag: float, hides: Callable[[str], bool] = lambda _: True
    ) -> None:
        super().__init__()
        self._files = files
        self._lag = lag
        self._hides = hides

    def exists(self, path: str) -> bool:
        return self.stat(path) is not None or self.is_folder(path)

    def is_folder(self, path: str) -> bool:
        there = self._files.is_folder(path)
        if not there or not self._hides(path):
            return there
        return self._files.folders.get(path, 0.0) <= self._files.clock.monotonic() - self._lag

    def stat(self, path: str) -> Stored | None:
        now = self._files.stat(path)
        if now is None or not self._hides(path):
            return now
        then = self._files.clock.monotonic() - self._lag
        seen = [stored for at, stored in self._files.versions.get(path, []) if at <= then]
        return seen[-1] if seen else None

    def names(self, path: str) -> list[str]:
        return [name for name in self._files.names(path) if self.exists(f"{path}/{name}")]

    def write(self, path: str, content: bytes | Stored) -> None:
        self._files.write(path, content)

    def publish(self, path: str, content: bytes) -> bool:
        return self._files.publish(path, content)

    def append(self, path: str, text: str) -> None:
        self._files.append(path, text)

    def make_folder(self, path: str) -> None:
        self._files.make_folder(path)

    def rename(self, old: str, new: str) -> None:
        self._files.rename(old, new)

    def remove(self, path: str) -> None:
        self._files.remove(path)


def unlike(files: FileSystem, folder: str) -> str | None:
    """Return a file of a folder that is not what its manifest says, None where all are."""
    digests = parse_manifest((files.read(f"{folder}/{layout.MANIFEST}") or b"").decode())
    for name, sha256 in digests.items():
        stored = files.stat(f"{folder}/{name}")
        if stored is None or stored.sha256 != sha256:
            return name
    return None if digests else layout.MANIFEST


def place_of(folder: str) -> tuple[str, str]:
    """Return (key, job) of a job's folder."""
    return dirname(folder).rpartition("/")[2], folder.rpartition("/")[2]
