"""The tables of a store, how they come to be, and how those of an older program become today's."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from mqi_hpc.infrastructure.state.publish import first_to_publish, remove_leftovers, replacing

_FOLDERS = "CREATE TABLE folders (folder TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, again_at REAL) STRICT"
_SCHEMA = f"""
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
CREATE UNIQUE INDEX tasks_of_job ON tasks (job_id, kind, number);
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
{_FOLDERS};
"""

# What makes version n of version n - 1, statement by statement. A step that a release has shipped is never
# changed; a new one is added here, and its outcome to the tables above.
STEPS: dict[int, tuple[str, ...]] = {2: (_FOLDERS,)}
FIRST_VERSION = 1
SCHEMA_VERSION = max(STEPS)


def make_tables(db: sqlite3.Connection, instance: str) -> None:
    """Make today's tables in an empty database, whole or not at all."""
    db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    db.execute("INSERT INTO meta VALUES ('instance', ?), ('head', '')", [instance])


def create(path: Path, instance: str) -> None:
    """Make the store of `instance` at `path`, unless another process just has.

    It is built beside and linked into place: SQLite answers "locked" at once, not after its patience,
    where two make one file together, and a kill in between would leave an empty one.
    """
    with first_to_publish(path) as fresh, closing(sqlite3.connect(fresh, isolation_level=None)) as db:
        # No journal beside the file: what is not yet published needs none.
        db.execute("PRAGMA journal_mode=MEMORY")
        make_tables(db, instance)
        db.execute("PRAGMA journal_mode=WAL")


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a store to today's version in one transaction; a copy of it as it was stays beside it.

    `db` must be in no transaction. Of two that open it at once one does it and the other waits.
    """
    db.execute("PRAGMA synchronous=FULL")
    db.execute("BEGIN IMMEDIATE")
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version < SCHEMA_VERSION:
            _copy(path, backup_file(path, version))
            for number in range(version + 1, SCHEMA_VERSION + 1):
                for statement in STEPS[number]:
                    db.execute(statement)
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def backup_file(path: Path, version: int) -> Path:
    """Return where the copy of a store that is made before its migration from `version` lies."""
    return path.with_name(f"{path.name}.v{version}.bak")


def _copy(path: Path, backup: Path) -> None:
    # Whoever migrates is the only one to write. Through a connection of its own, which reads what is
    # committed, the journal's part included.
    remove_leftovers(backup)
    with (
        replacing(backup) as fresh,
        closing(sqlite3.connect(path, timeout=60)) as source,
        closing(sqlite3.connect(fresh)) as target,
    ):
        target.execute("PRAGMA journal_mode=MEMORY")
        source.backup(target)
