"""Hears that something below a folder changes, by inotify where the file system has it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

_REMOTE = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "lustre", "beegfs", "gpfs", "afs")
"""How the types of file systems begin on which other machines write: inotify hears only of our own."""
_CHANGES: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]
"""Not that something is opened or read: our own scans do that."""
_JOIN_SECONDS = 5.0


class Stirring(FileSystemEventHandler):
    """Whether anything below a folder changed since `clear`; `how` says in words how that is known.

    `watch` begins, and begins anew where the folder is another one than before (a share mounted again).
    """

    def __init__(self, root: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
        self._root = root
        self._mounts = mounts
        self._flag = threading.Event()
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        self._closed = threading.Event()
        self._log = structlog.get_logger("mqi_hpc.intake")
        self.how = "polling: nothing is watched yet"

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note a change (called in the observer's thread)."""
        if type(event) in _CHANGES:
            self._flag.set()

    def stirred(self) -> bool:
        """Whether something changed since `clear`."""
        return self._flag.is_set()

    def stir(self) -> None:
        """Ask for a look as if something had changed."""
        self._flag.set()

    def clear(self) -> None:
        """Forget what changed: a look begins now."""
        self._flag.clear()

    def watch(self) -> None:
        """Watch the folder that is there now; where that cannot be done, `how` says why."""
        try:
            status = self._root.stat()
        except OSError:
            return
        here = (status.st_dev, status.st_ino)
        if self._closed.is_set() or (here == self._watched and not self._lost()):
            return
        self._end()
        self._watched = here
        before, self.how = self.how, self._begin()
        if before != self.how:
            self._log.info("scan folder", how=self.how)
        if self._closed.is_set():
            # Asked to end while it was begun, in another thread.
            self._end()

    def close(self) -> None:
        """End the watching and its threads."""
        self._closed.set()
        self._end()

    def _lost(self) -> bool:
        """Whether the folder that was watched has been removed since; a new one may bear its number."""
        observer = self._observer
        return observer is not None and not all(one.should_keep_running() for one in observer.emitters)

    def _begin(self) -> str:
        kind = file_system(self._root, self._mounts)
        if kind.startswith(_REMOTE):
            return f"polling: inotify does not hear what other machines write on {kind}"
        observer = None
        try:
            observer = Observer()
            observer.schedule(self, str(self._root), recursive=True, event_filter=_CHANGES)
            observer.start()
        except OSError as error:
            if observer is not None:
                _stop(observer)
            return f"polling: inotify cannot watch the folder: {error.strerror or error}"
        self._observer = observer
        return "inotify, and polling"

    def _end(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            _stop(observer)


def file_system(folder: Path, mounts: Path) -> str:
    """Return the type of the file system that a folder lies on, "" where that cannot be told."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
        where = os.path.realpath(folder)
    except OSError:
        return ""
    best, found = "", ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 2:
            point = _unescaped(fields[1])
            inside = where == point or where.startswith(f"{point.rstrip('/')}/")
            # Of two mounts at one place, the later one is seen.
            if inside and len(point) >= len(best):
                best, found = point, fields[2]
    return found


def _unescaped(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point


def _stop(observer: BaseObserver) -> None:
    # Begun or not: it may have threads of its own from the first.
    observer.stop()
    if observer.is_alive():
        observer.join(_JOIN_SECONDS)
