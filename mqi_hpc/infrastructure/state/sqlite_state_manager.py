"""The case store in SQLite: each change is durable together with the event that explains it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.infrastructure.repositories import CaseRepository, JobRepository, ResourceRepository, Rows
from mqi_hpc.infrastructure.state.schema import SCHEMA_VERSION, create


class SqliteStateManager:
    """IStore on a file. Transactions are one after another, over all processes."""

    def __init__(self, path: Path, *, instance: str, secret: bytes, clock: IClock) -> None:
        self.path = path
        self._instance = instance
        self._secret = secret
        self._clock = clock
        self._inside = False
        with _in_words(path):
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
            except BaseException:
                self._db.close()
                raise

    @property
    def instance(self) -> str:
        """The instance this store belongs to."""
        return self._instance

    @property
    def secret(self) -> bytes:
        """The instance's secret, of which case keys are made."""
        return self._secret

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[StateTransaction]:
        """Open a transaction: it stands, durably, when the block ends well; else nothing of it does.

        With `write` false it sees one committed state, waits for no writer and may change nothing.
        """
        if self._inside:
            raise StateError("a transaction within a transaction")
        self._inside = True
        rows = Rows(self._db)
        try:
            with _in_words(self.path):
                if not write:
                    self._db.execute("PRAGMA query_only=ON")
                self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            # What the block itself does beside the store keeps its own errors: OSError is not ours here.
            with _in_words(self.path, (sqlite3.Error,)):
                yield StateTransaction(rows, self._clock)
                rows.check()
                self._db.execute("COMMIT")
        finally:
            rows.end()
            self._inside = False
            self._roll_back()
            self._db.execute("PRAGMA query_only=OFF")

    def verify(self) -> str | None:
        """Return what is wrong with the chain of events, None where it is whole."""
        with self.transaction(write=False) as unit:
            return unit.verify()

    def _roll_back(self) -> None:
        # SQLite has done it by itself after some errors; a connection that cannot will at its next opening.
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

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
        if version > SCHEMA_VERSION:
            raise StateError(
                f"the store is of version {version}, this program knows {SCHEMA_VERSION}",
                where=str(self.path),
                fix="Use the newer mqi-hpc that wrote it",
            )
        if version != SCHEMA_VERSION:
            raise StateError(
                "this is a database of another program" if tables else "the file is empty: this is no store",
                where=str(self.path),
                fix="Bring the store back from a backup, or name another file in app.state_file",
            )
        meta = dict(self._db.execute("SELECT name, value FROM meta").fetchall())
        if not meta.keys() >= {"instance", "head"}:
            raise StateError(
                "the store does not say whose it is: it is damaged, or another program's",
                where=str(self.path),
                fix="Bring it back from a backup, or name another file in app.state_file",
            )
        if meta["instance"] != self._instance:
            raise StateError(
                f"the store belongs to instance {meta['instance']}, not {self._instance}",
                where=str(self.path),
                fix="Store and .instance file belong together: bring back the one that is missing",
            )


class StateTransaction:
    """IUnit: the repositories and events of one transaction."""

    def __init__(self, rows: Rows, clock: IClock) -> None:
        self._db = rows
        self._clock = clock
        self.cases = CaseRepository(rows)
        self.jobs = JobRepository(rows)
        self.resources = ResourceRepository(rows)

    def event(self, kind: str, case_id: str | None, data: Mapping[str, Any]) -> None:
        """Append an event to the chain."""
        head = self.audit_head()
        (number,) = self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM events").fetchone()
        # A float, as the column gives it back: an integer's digest would not be found again.
        at = float(self._clock.now())
        body = json.dumps(dict(data), sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = _digest(head, [number, at, kind, case_id, body])
        self._db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", [number, at, kind, case_id, body, digest]
        )
        self._db.execute("UPDATE meta SET value=? WHERE name='head'", [digest])

    def events(self, case_id: str) -> list[dict[str, Any]]:
        """Return a case's events, oldest first."""
        rows = self._db.execute(
            "SELECT number, at, kind, case_id, data FROM events WHERE case_id=? ORDER BY number", [case_id]
        )
        return [
            {"number": number, "time": at, "kind": kind, "case_id": owner, "data": json.loads(data)}
            for number, at, kind, owner, data in rows
        ]

    def audit_head(self) -> str:
        """Return the digest of the newest event, empty where there is none."""
        (head,) = self._db.execute("SELECT value FROM meta WHERE name='head'").fetchone()
        return str(head)

    def verify(self) -> str | None:
        """Return what is wrong with the chain of events, None where it is whole."""
        head, expected = "", 1
        rows = self._db.execute("SELECT number, at, kind, case_id, data, digest FROM events ORDER BY number")
        for number, at, kind, case_id, data, digest in rows:
            if number != expected:
                return f"event {expected} is missing"
            head = _digest(head, [number, at, kind, case_id, data])
            if head != digest:
                return f"event {number} has been changed, or one before it"
            expected += 1
        return None if head == self.audit_head() else "events at the end have been cut off"


def _digest(head: str, event: list[Any]) -> str:
    return hashlib.sha256(json.dumps([head, *event]).encode()).hexdigest()


@contextmanager
def _in_words(path: Path, errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise StateError(f"the store cannot be used: {error}", where=str(path), fix=_fix(error)) from error


def _fix(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_BUSY"):
        return "Another mqi-hpc has been writing for a minute: see whether it still moves"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "Keep this file for whoever looks into it, and bring the store back from a backup"
    return "Check the disk and the permissions; nothing that was committed is lost"
