"""The case store in one JSON file (the specification's): tables in memory, the file as what is durable."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.infrastructure.state.content_folder import ContentFolder
from mqi_hpc.infrastructure.state.json_document import Damaged, DocumentWriter, load_document, read_header
from mqi_hpc.infrastructure.state.publish import first_to_publish, remove_leftovers, replacing
from mqi_hpc.infrastructure.state.schema import SCHEMA_VERSION, make_tables
from mqi_hpc.infrastructure.state.state_manager import StateManager, in_words, refuse_foreign, refuse_version

_PATIENCE = 60.0  # s, as SQLite's


class JsonStateManager(StateManager):
    """IStore on a JSON file, with the tables, checks and order of the one in SQLite.

    A transaction sees the file as it was when it began. A writer has the lock beside the file, and puts a
    whole new file in its place; the former one stays as `.previous`. Nobody reads half a state.
    """

    def __init__(self, path: Path, *, instance: str, secret: bytes, clock: IClock) -> None:
        # Where it really lies: a link to it would be replaced by the first change.
        path = path.resolve()
        self._files = path.with_name(f"{path.name}.files")
        super().__init__(
            path, instance=instance, secret=secret, clock=clock, contents=ContentFolder(self._files)
        )
        self._previous = path.with_name(f"{path.name}.previous")
        self._lock = FileLock(path.with_name(f"{path.name}.writer"), mode=0o600)
        self._read: _ReadFile | None = None
        self._changes = 0
        self._swept = False
        self._db = sqlite3.connect(":memory:")
        self._writer = DocumentWriter(self._db)
        try:
            with in_words(path):
                if not path.exists():
                    self._create()
                self._load()
                if path.stat().st_mode & 0o077:
                    path.chmod(0o600)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the store."""
        super().close()
        self._forget()

    def _begin(self, *, write: bool) -> None:
        if write:
            self._take_lock()
        self._load()
        if write and not self._swept:
            self._sweep()
        if not write:
            self._db.execute("PRAGMA query_only=ON")
        self._db.execute("BEGIN")
        self._changes = self._db.total_changes

    def _commit(self, *, write: bool) -> None:
        if not write or self._db.total_changes == self._changes:
            self._db.execute("COMMIT")
            return
        try:
            text = self._writer.document()
            self._require_unchanged()
            with replacing(self.path, keep=self._previous) as fresh:
                fresh.write_bytes(text)
            self._db.execute("COMMIT")
            self._remember(_ReadFile(self.path))
        except BaseException:
            # The file says what stands: it is read again.
            self._forget()
            raise

    def _require_unchanged(self) -> None:
        if self._read is None or not self._read.is_still(self.path):
            raise StateError(
                "another program has changed the state file meanwhile: this change is not kept",
                where=str(self.path),
                fix="Put nothing in its place while an mqi-hpc runs",
            )

    def _end(self) -> None:
        try:
            super()._end()
        finally:
            self._lock.release()

    def _load(self) -> None:
        """Have in memory what the file holds."""
        if self._read is not None and self._read.is_still(self.path):
            return
        try:
            file = _ReadFile(self.path)
        except FileNotFoundError as error:
            raise self._gone() from error
        try:
            db = self._parse(file.text())
        except BaseException:
            file.close()
            raise
        self._db.close()
        self._db = db
        self._writer = DocumentWriter(db)
        self._remember(file)

    def _parse(self, text: bytes) -> sqlite3.Connection:
        try:
            header = read_header(text)
            refuse_version(header.version, SCHEMA_VERSION, self.path)
            db = load_document(text)
        except Damaged as error:
            raise StateError(
                f"the state file is damaged: {error}", where=str(self.path), fix=self._way_back()
            ) from error
        try:
            refuse_foreign(header.instance, self._instance, self.path)
        except StateError:
            db.close()
            raise
        return db

    def _way_back(self) -> str:
        try:
            load_document(self._previous.read_bytes()).close()
        except (OSError, Damaged):
            return (
                "Keep it for whoever looks into it, and bring the store back from a backup;"
                " if it was never a store, name another file in app.state_file"
            )
        return (
            f"Keep a copy for whoever looks into it; {self._previous} is whole, but lacks the last change:"
            " stop every mqi-hpc, then put it in this file's place, or bring back a newer backup"
        )

    def _create(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            if self.path.exists():
                return
            if self._previous.exists() or self._files.exists():
                raise self._gone()
            with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
                make_tables(db, self._instance)
                text = DocumentWriter(db).document()
            with first_to_publish(self.path) as fresh:
                fresh.write_bytes(text)
        finally:
            self._lock.release()

    def _gone(self) -> StateError:
        return StateError(
            "the store is gone, but what belongs to it is still there",
            where=str(self.path),
            fix=f"Bring it back from a backup, or from {self._previous.name}, which lacks the last change;"
            f" move {self._previous.name} and {self._files.name} away to begin anew",
        )

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=_PATIENCE, poll_interval=0.01)
        except Timeout as error:
            raise StateError(
                "the store is locked",
                where=str(self.path),
                fix="Another mqi-hpc has been writing for a minute: see whether it still moves",
            ) from error

    def _sweep(self) -> None:
        # Who has the lock is the only one to write: a file on its way is a killed writer's.
        remove_leftovers(self.path)
        if self._files.exists():
            for path in self._files.glob(".*"):
                path.unlink(missing_ok=True)
        self._swept = True

    def _remember(self, file: _ReadFile) -> None:
        self._forget()
        self._read = file

    def _forget(self) -> None:
        if self._read is not None:
            self._read.close()
            self._read = None


class _ReadFile:
    """A file as it was read. It stays open, so that its inode is no other file's meanwhile."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._mark = _mark(os.fstat(self._file.fileno()))

    def text(self) -> bytes:
        return self._file.read()

    def is_still(self, path: Path) -> bool:
        """Whether `path` is this file, unchanged."""
        try:
            return _mark(path.stat()) == self._mark
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._file.close()


def _mark(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
