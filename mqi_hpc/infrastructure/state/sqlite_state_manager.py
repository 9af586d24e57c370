"""The case store in SQLite: each change is durable together with the event that explains it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.infrastructure.repositories import InRow
from mqi_hpc.infrastructure.state.schema import FIRST_VERSION, SCHEMA_VERSION, create, migrate
from mqi_hpc.infrastructure.state.state_manager import StateManager, in_words, refuse_foreign, refuse_version


def _inode(path: Path) -> tuple[int, int] | None:
    """Return which file a path names, None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class SqliteStateManager(StateManager):
    """IStore on a SQLite file. Transactions are one after another, over all processes."""

    def __init__(self, path: Path, *, instance: str, secret: bytes, clock: IClock) -> None:
        super().__init__(path, instance=instance, secret=secret, clock=clock, contents=InRow())
        with in_words(path):
            if not path.exists():
                self._refuse_orphan()
                create(path, instance)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            try:
                self._check()
                if path.stat().st_mode & 0o077:
                    path.chmod(0o600)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA foreign_keys=ON")
                self._file = _inode(path)
            except BaseException:
                self._db.close()
                raise

    def _begin(self, *, write: bool) -> None:
        if _inode(self.path) != self._file:
            # SQLite would go on in a file that nobody finds any more, beside whoever makes a new one.
            raise StateError(
                "the store was moved or removed while it was in use",
                where=str(self.path),
                fix="Bring it back, and start again",
            )
        if not write:
            self._db.execute("PRAGMA query_only=ON")
        self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    def _commit(self, *, write: bool) -> None:  # noqa: ARG002 - SQLite knows
        self._db.execute("COMMIT")

    def _refuse_orphan(self) -> None:
        # SQLite would take a journal left behind for the new file's own.
        left = self.path.with_name(f"{self.path.name}-wal")
        # Looked at again: another process may just have made the store, and its journal after it.
        if left.exists() and not self.path.exists():
            raise StateError(
                "the store is gone, but its journal is still there",
                where=str(left),
                fix=f"Bring {self.path.name} back beside it, or move it away to begin anew",
            )

    def _check(self) -> None:
        # One statement sees one state of the file.
        version, tables = self._db.execute(
            "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
        ).fetchone()
        refuse_version(version, SCHEMA_VERSION, self.path)
        if version < FIRST_VERSION:
            raise StateError(
                "this is a database of another program" if tables else "the file is empty: this is no store",
                where=str(self.path),
                fix="Bring the store back from a backup, or name another file in app.state_file",
            )
        self._check_owner()
        if version < SCHEMA_VERSION:
            migrate(self._db, self.path)

    def _check_owner(self) -> None:
        known = self._db.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone()
        meta = dict(self._db.execute("SELECT name, value FROM meta").fetchall()) if known else {}
        if not meta.keys() >= {"instance", "head"}:
            raise StateError(
                "the store does not say whose it is: it is damaged, or another program's",
                where=str(self.path),
                fix="Bring it back from a backup, or name another file in app.state_file",
            )
        refuse_foreign(meta["instance"], self._instance, self.path)
