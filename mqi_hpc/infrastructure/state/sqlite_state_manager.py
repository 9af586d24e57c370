"""The case store in SQLite: each change is durable together with the event that explains it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.infrastructure.repositories import CaseRepository, JobRepository, ResourceRepository

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE cases (
  case_id TEXT PRIMARY KEY, site TEXT NOT NULL, instance TEXT NOT NULL, label TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL, folder TEXT NOT NULL, created_at REAL NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE jobs (
  job_id TEXT PRIMARY KEY, case_id TEXT NOT NULL REFERENCES cases, number INTEGER NOT NULL,
  name TEXT NOT NULL, status TEXT NOT NULL, submit_state TEXT NOT NULL, body TEXT NOT NULL,
  UNIQUE (case_id, number)) STRICT;
CREATE TABLE tasks (
  task_id TEXT PRIMARY KEY, job_id TEXT NOT NULL REFERENCES jobs, kind INTEGER NOT NULL,
  number INTEGER NOT NULL, status TEXT NOT NULL, body TEXT NOT NULL) STRICT;
CREATE INDEX tasks_of_job ON tasks (job_id, kind, number);
CREATE TABLE files (
  job_id TEXT NOT NULL REFERENCES jobs, path TEXT NOT NULL, content BLOB NOT NULL,
  PRIMARY KEY (job_id, path)) STRICT;
CREATE TABLE holdings (job_id TEXT PRIMARY KEY, slots INTEGER NOT NULL) STRICT;
CREATE TABLE events (
  number INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, case_id TEXT, data TEXT NOT NULL,
  digest TEXT NOT NULL UNIQUE) STRICT;
CREATE INDEX events_of_case ON events (case_id, number);
CREATE TRIGGER events_stay BEFORE UPDATE ON events
  BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events
  BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
"""


class SqliteStateManager:
    """IStore on a file. Transactions are one after another, over all processes."""

    def __init__(self, path: Path, *, instance: str, secret: bytes, clock: IClock) -> None:
        self.path = path
        self._instance = instance
        self._secret = secret
        self._clock = clock
        self._inside = False
        with _in_words(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            old = os.umask(0o077)
            try:
                self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA foreign_keys=ON")
                self._migrate()
            finally:
                os.umask(old)

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
    def transaction(self) -> Iterator[StateTransaction]:
        """Open a transaction: it stands, durably, when the block ends well; else nothing of it does."""
        if self._inside:
            raise StateError("a transaction within a transaction")
        self._inside = True
        try:
            with _in_words(self.path):
                self._db.execute("BEGIN IMMEDIATE")
            try:
                with _in_words(self.path):
                    yield StateTransaction(self._db, self._clock)
                    self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        finally:
            self._inside = False

    def verify(self) -> str | None:
        """Return what is wrong with the chain of events, None where it is whole."""
        with self.transaction() as unit:
            return unit.verify()

    def _migrate(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StateError(
                    f"the store is of version {version}, this program knows {SCHEMA_VERSION}",
                    where=str(self.path),
                    fix="Use the newer mqi-hpc that wrote it",
                )
            if version == 0:
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('instance', ?), ('head', '')", [self._instance])
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            (owner,) = self._db.execute("SELECT value FROM meta WHERE name='instance'").fetchone()
            if owner != self._instance:
                raise StateError(
                    f"the store belongs to instance {owner}, not {self._instance}",
                    where=str(self.path),
                    fix="Store and .instance file belong together: bring back the one that is missing",
                )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise


class StateTransaction:
    """IUnit: the repositories and events of one transaction."""

    def __init__(self, db: sqlite3.Connection, clock: IClock) -> None:
        self._db = db
        self._clock = clock
        self.cases = CaseRepository(db)
        self.jobs = JobRepository(db)
        self.resources = ResourceRepository(db)

    def event(self, kind: str, case_id: str | None, data: Mapping[str, Any]) -> None:
        """Append an event to the chain."""
        head = self.audit_head()
        (number,) = self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM events").fetchone()
        at, body = self._clock.now(), json.dumps(dict(data), sort_keys=True, separators=(",", ":"))
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


def _statements(script: str) -> list[str]:
    found, rest = [], ""
    for line in script.splitlines():
        rest += line + "\n"
        if sqlite3.complete_statement(rest):
            found.append(rest)
            rest = ""
    return found


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StateError(
            f"the store cannot be used: {error}",
            where=str(path),
            fix="Check the disk and the permissions; nothing that was committed is lost",
        ) from error
