"""The state file in JSON: the tables of a store as one document, a row a line, and back."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from mqi_hpc.infrastructure.state.schema import SCHEMA_VERSION, make_tables

FORMAT = "mqi-hpc state"
_START = f'{{"format": "{FORMAT}", '.encode()
_SEAL = b'"checksum": "'


@dataclass(frozen=True, slots=True)
class _Table:
    """`columns` come first in a line; `body`, a column that is JSON already, after them."""

    columns: tuple[str, ...]
    body: str | None = None


_TABLES = {
    "cases": _Table(("case_id", "site", "instance", "label", "status", "folder", "created_at"), "body"),
    "jobs": _Table(("job_id", "case_id", "number", "name", "status", "submit_state"), "body"),
    "tasks": _Table(("task_id", "job_id", "kind", "number", "status"), "body"),
    "files": _Table(("job_id", "path", "content")),
    "holdings": _Table(("job_id", "slots")),
    "folders": _Table(("folder", "fingerprint", "again_at")),
    "events": _Table(("number", "at", "kind", "case_id", "digest"), "data"),
}


class Damaged(ValueError):  # noqa: N818 - as in core.errors
    """The text is no whole document; it says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a document says of itself."""

    version: int
    instance: str
    head: str


class DocumentWriter:
    """Writes the tables of a database in memory."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        # Events are most of the rows and never change: their lines are kept, up to one of this digest.
        self._events: list[str] = []
        self._newest = ""

    def document(self) -> bytes:
        """Return the tables as a document that ends in a checksum of all before it."""
        meta = dict(self._db.execute("SELECT name, value FROM meta").fetchall())
        about = json.dumps({
            "format": FORMAT, "version": SCHEMA_VERSION, "instance": meta["instance"], "head": meta["head"]
        })  # fmt: skip
        parts = [about.removesuffix("}"), ",\n"]
        for name, table in _TABLES.items():
            lines = self._event_lines(meta["head"]) if name == "events" else _lines(self._db, name, table)
            parts += [f'"{name}": [\n', ",\n".join(lines), "\n],\n"]
        content = "".join(parts).encode()
        return b"".join((content, _SEAL, hashlib.sha256(content).hexdigest().encode(), b'"}\n'))

    def _event_lines(self, head: str) -> list[str]:
        kept = len(self._events)
        found = self._db.execute("SELECT digest FROM events WHERE number=?", [kept]).fetchone()
        if found != (self._newest,):
            # A transaction that did not come to stand had written them.
            self._events.clear()
        self._events += _lines(self._db, "events", _TABLES["events"], after=len(self._events))
        self._newest = head
        return self._events


def read_header(text: bytes) -> Header:
    """Return what a document says of itself; raises Damaged where it is none."""
    if text.startswith(b"SQLite format 3"):
        raise Damaged("it is a SQLite file, whose name does not end in .json")
    if not text.startswith(_START):
        raise Damaged("it does not begin as a state file of mqi-hpc does")
    try:
        about = json.loads(text[: text.index(b",\n")] + b"}")
        header = Header(about["version"], about["instance"], about["head"])
    except (ValueError, KeyError, RecursionError) as error:
        raise Damaged("its first line is broken") from error
    if not (
        isinstance(header.version, int) and isinstance(header.instance, str) and isinstance(header.head, str)
    ):
        raise Damaged("its first line is broken")
    return header


def load_document(text: bytes) -> sqlite3.Connection:
    """Return a database in memory with the tables of a whole document; raises Damaged where it is none."""
    header = read_header(text)
    if header.version != SCHEMA_VERSION:
        raise Damaged(f"no release has written version {header.version} of it")
    content, seal, checksum = text.rpartition(_SEAL)
    if not seal:
        raise Damaged("its end is missing")
    if checksum != hashlib.sha256(content).hexdigest().encode() + b'"}\n':
        raise Damaged("it is not as it was written: its checksum differs")
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA foreign_keys=ON")
        make_tables(db, header.instance)
        db.execute("BEGIN")
        db.execute("UPDATE meta SET value=? WHERE name='head'", [header.head])
        _fill(db, content.decode())
        db.execute("COMMIT")
    except BaseException as error:
        db.close()
        if isinstance(error, (ValueError, TypeError, OverflowError, RecursionError, sqlite3.Error)):
            raise Damaged(f"it is whole, but no state that this program has written: {error}") from error
        raise
    return db


def _lines(db: sqlite3.Connection, name: str, table: _Table, *, after: int = 0) -> Iterator[str]:
    columns = ", ".join(table.columns if table.body is None else (*table.columns, table.body))
    sql = f"SELECT {columns} FROM {name} WHERE rowid > ? ORDER BY rowid"  # noqa: S608 - the names above
    for row in db.execute(sql, [after]):
        if table.body is not None:
            yield f"[{_ENCODE(row[:-1])}, {row[-1]}]"
        else:
            # The one column of bytes is a digest.
            yield _ENCODE([cell.hex() if isinstance(cell, bytes) else cell for cell in row])


def _fill(db: sqlite3.Connection, content: str) -> None:
    # Whole by its checksum, so as written above: what was JSON stays text, as the tables keep it.
    lines = iter(content.split("\n"))
    next(lines)
    for name, table in _TABLES.items():
        if next(lines, None) != f'"{name}": [':
            raise ValueError(f"{name} should come next")
        width = len(table.columns) + (table.body is not None)
        names = ", ".join(table.columns if table.body is None else (*table.columns, table.body))
        marks = ", ".join("?" * width)
        sql = f"INSERT INTO {name} ({names}) VALUES ({marks})"  # noqa: S608 - the names above
        db.executemany(sql, _rows(lines, table))
    if list(lines) != [""]:
        raise ValueError("there is more than it should hold")


def _rows(lines: Iterator[str], table: _Table) -> Iterator[list[object]]:
    for line in lines:
        if line == "],":
            return
        text = line.removesuffix(",")
        if not text:
            continue
        if table.body is not None:
            columns, end = _DECODER.raw_decode(text, 1)
            yield [*columns, text[end + 2 : -1]]
        else:
            row = json.loads(text)
            yield [
                bytes.fromhex(cell) if name == "content" else cell
                for name, cell in zip(table.columns, row, strict=True)
            ]


_DECODER = json.JSONDecoder()
_ENCODE = json.JSONEncoder(allow_nan=False).encode
