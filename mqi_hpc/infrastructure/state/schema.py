"""The tables of the store, and how a new store comes to be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from mqi_hpc.infrastructure.state.publish import first_to_publish

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
"""


def create(path: Path, instance: str) -> None:
    """Make the store of `instance` at `path`, unless another process just has.

    It is built beside and linked into place: SQLite answers "locked" at once, not after its patience,
    where two make one file together, and a kill in between would leave an empty one.
    """
    with first_to_publish(path) as fresh, closing(sqlite3.connect(fresh, isolation_level=None)) as db:
        # No journal beside the file: what is not yet published needs none.
        db.execute("PRAGMA journal_mode=MEMORY")
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        db.execute("INSERT INTO meta VALUES ('instance', ?), ('head', '')", [instance])
        db.execute("PRAGMA journal_mode=WAL")
