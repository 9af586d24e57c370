"""What stores on a file do alike: one transaction at a time, errors in words, a chain that can be checked."""

from __future__ import annotations

import errno
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.infrastructure.repositories import Contents, Rows
from mqi_hpc.infrastructure.state.transaction import StateTransaction


class StateManager(ABC):
    """IStore on tables: a backend says how a transaction begins, how it is made durable, and how it ends.

    `_db` holds the tables from `_begin` on, with a transaction open in it.
    """

    _db: sqlite3.Connection

    def __init__(
        self, path: Path, *, instance: str, secret: bytes, clock: IClock, contents: Contents
    ) -> None:
        self.path = path
        self._instance = instance
        self._secret = secret
        self._clock = clock
        self._contents = contents
        self._inside = False

    @property
    def instance(self) -> str:
        """The instance this store belongs to."""
        return self._instance

    @property
    def secret(self) -> bytes:
        """The instance's secret, of which case keys are made."""
        return self._secret

    def close(self) -> None:
        """Close the store."""
        self._db.close()

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[StateTransaction]:
        """Open a transaction: it stands, durably, when the block ends well; else nothing of it does.

        With `write` false it sees one committed state, waits for no writer and may change nothing.
        """
        if self._inside:
            raise StateError("a transaction within a transaction")
        self._inside = True
        rows: Rows | None = None
        try:
            with in_words(self.path):
                self._begin(write=write)
            rows = Rows(self._db)
            # What the block itself does beside the store keeps its own errors: OSError is not ours here.
            with in_words(self.path, (sqlite3.Error,)):
                yield StateTransaction(rows, self._clock, self._contents)
                rows.check()
            with in_words(self.path):
                self._commit(write=write)
        finally:
            if rows is not None:
                rows.end()
            self._inside = False
            self._end()

    def verify(self) -> str | None:
        """Return what is wrong with the chain of events, None where it is whole."""
        with self.transaction(write=False) as unit:
            return unit.verify()

    @abstractmethod
    def _begin(self, *, write: bool) -> None: ...

    @abstractmethod
    def _commit(self, *, write: bool) -> None: ...

    def _end(self) -> None:
        # SQLite has done it by itself after some errors; a connection that cannot will at its next opening.
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self._db.execute("PRAGMA query_only=OFF")


def refuse_version(version: int, known: int, path: Path) -> None:
    """Raise StateError where a store is newer than this program."""
    if version > known:
        raise StateError(
            f"the store is of version {version}, this program knows {known}",
            where=str(path),
            fix="Use the newer mqi-hpc that wrote it",
        )


def refuse_foreign(found: str, own: str, path: Path) -> None:
    """Raise StateError where a store is another instance's."""
    if found != own:
        raise StateError(
            f"the store belongs to instance {found}, not {own}",
            where=str(path),
            fix="Store and .instance file belong together: bring back the one that is missing",
        )


@contextmanager
def in_words(path: Path, errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)) -> Iterator[None]:
    """Raise StateError in place of `errors`, saying what a reader can do about them."""
    try:
        yield
    except errors as error:
        what = f"the store cannot be used: {getattr(error, 'strerror', None) or error}"
        raise StateError(what, where=str(path), fix=_fix(error)) from error


def _fix(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_BUSY"):
        return "Another mqi-hpc has been writing for a minute: see whether it still moves"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "Keep this file for whoever looks into it, and bring the store back from a backup"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Make room on its disk; nothing that was committed is lost"
    return "Check the disk and the permissions; nothing that was committed is lost"
