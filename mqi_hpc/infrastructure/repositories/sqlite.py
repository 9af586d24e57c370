"""Cases, jobs, tasks and holdings as rows: explicit columns for what is asked for, JSON for the rest."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.models import Case, Job, SeenFolder, Task, TaskType
from mqi_hpc.infrastructure.repositories.codec import decode, encode

_KINDS = list(TaskType)


class Rows:
    """A connection for as long as one transaction lasts.

    After it each statement would stand by itself, committed: so there is none after it.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._ended = False

    def execute(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        """Run one statement; raises StateError where the transaction has ended, or a text is no Unicode."""
        self.check()
        with _in_unicode():
            return self._db.execute(sql, values)

    def executemany(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each of `values`."""
        self.check()
        with _in_unicode():
            self._db.executemany(sql, values)

    def check(self) -> None:
        """Raise StateError where the transaction has ended, or an error within it has undone it."""
        if self._ended or not self._db.in_transaction:
            raise StateError("the transaction has ended; nothing can be read or kept through it any more")

    def end(self) -> None:
        """Refuse everything from now on."""
        self._ended = True


@contextmanager
def _in_unicode() -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        # The name of a folder, say, in bytes that are no UTF-8; not said, it may tell of a patient.
        raise StateError("a text that is no Unicode is neither kept nor found") from error


class Contents(Protocol):
    """Where the bytes of files are: what a row holds for a content, and the content back."""

    def keep(self, content: bytes) -> bytes:
        """Return what the row is to hold; by then the content is durable if it lies elsewhere."""
        ...

    def take(self, held: bytes) -> bytes:
        """Return the content of a row; raises StateError where it is not there or not itself."""
        ...


class InRow:
    """Contents that are in their rows."""

    def keep(self, content: bytes) -> bytes:
        """Return the content itself."""
        return content

    def take(self, held: bytes) -> bytes:
        """Return the content itself."""
        return held


class CaseRepository:
    """ICaseRepository within a transaction."""

    def __init__(self, rows: Rows) -> None:
        self._db = rows

    def get(self, case_id: str) -> Case | None:
        """Return a case, None where there is none."""
        row = self._db.execute("SELECT body FROM cases WHERE case_id=?", [case_id]).fetchone()
        return None if row is None else decode(Case, row[0])

    def put(self, case: Case) -> None:
        """Keep a case, new or changed."""
        self._db.execute(
            "INSERT INTO cases VALUES (:id, :site, :instance, :label, :status, :folder, :at, :body)"
            " ON CONFLICT (case_id) DO UPDATE SET label=:label, status=:status, folder=:folder, body=:body",
            {
                "id": case.case_id,
                "site": case.site,
                "instance": case.instance,
                "label": case.label,
                "status": str(case.status),
                "folder": case.folder,
                "at": case.created_at.timestamp(),
                "body": encode(case),
            },
        )

    def all(self) -> list[Case]:
        """Return all cases, oldest first."""
        rows = self._db.execute("SELECT body FROM cases ORDER BY created_at, case_id")
        return [decode(Case, body) for (body,) in rows]

    def remove(self, case_id: str) -> None:
        """Forget a case that never had a job; raises StateError where one stands or there is no such case."""
        if self._db.execute("SELECT 1 FROM jobs WHERE case_id=? LIMIT 1", [case_id]).fetchone():
            raise StateError(f"case {case_id} has jobs: it is never removed")
        if not self._db.execute("DELETE FROM cases WHERE case_id=?", [case_id]).rowcount:
            raise StateError(f"there is no case {case_id} to remove")


class JobRepository:
    """IJobRepository within a transaction."""

    def __init__(self, rows: Rows, contents: Contents) -> None:
        self._db = rows
        self._contents = contents

    def get(self, job_id: str) -> Job | None:
        """Return a job, None where there is none."""
        row = self._db.execute("SELECT body FROM jobs WHERE job_id=?", [job_id]).fetchone()
        return None if row is None else decode(Job, row[0])

    def put(self, job: Job) -> None:
        """Keep a job, new or changed."""
        self._db.execute(
            "INSERT INTO jobs VALUES (:id, :case, :number, :name, :status, :state, :body)"
            " ON CONFLICT (job_id) DO UPDATE SET status=:status, submit_state=:state, body=:body",
            {
                "id": job.job_id,
                "case": job.case_id,
                "number": int(job.name[1:]),
                "name": job.name,
                "status": str(job.status),
                "state": str(job.submit_state),
                "body": encode(job),
            },
        )

    def of_case(self, case_id: str) -> list[Job]:
        """Return a case's jobs, j01 first."""
        rows = self._db.execute("SELECT body FROM jobs WHERE case_id=? ORDER BY number", [case_id])
        return [decode(Job, body) for (body,) in rows]

    def tasks(self, job_id: str) -> list[Task]:
        """Return a job's tasks in the order of their kinds, then of their indices."""
        rows = self._db.execute("SELECT body FROM tasks WHERE job_id=? ORDER BY kind, number", [job_id])
        return [decode(Task, body) for (body,) in rows]

    def put_task(self, task: Task) -> None:
        """Keep a task, new or changed."""
        self._db.execute(
            "INSERT INTO tasks VALUES (:id, :job, :kind, :number, :status, :body)"
            " ON CONFLICT (task_id) DO UPDATE SET status=:status, body=:body",
            {
                "id": task.task_id,
                "job": task.job_id,
                "kind": _KINDS.index(task.type),
                "number": task.index,
                "status": str(task.status),
                "body": encode(task),
            },
        )

    def drop_tasks(self, job_id: str) -> None:
        """Forget a job's tasks: others are put in their place."""
        self._db.execute("DELETE FROM tasks WHERE job_id=?", [job_id])

    def left_out(self, now: float) -> list[Task]:
        """Return the tasks because of which new beams avoid a node at `now` (UTC epoch s)."""
        rows = self._db.execute(
            "SELECT body FROM tasks WHERE json_extract(body, '$.left_out_until') > ? ORDER BY task_id", [now]
        )
        return [decode(Task, body) for (body,) in rows]

    def files(self, job_id: str) -> dict[str, bytes]:
        """Return the files rendered for a job, by path."""
        rows = self._db.execute("SELECT path, content FROM files WHERE job_id=? ORDER BY path", [job_id])
        return {path: self._contents.take(bytes(held)) for path, held in rows}

    def put_files(self, job_id: str, files: Mapping[str, bytes]) -> None:
        """Keep the files rendered for a job; they replace those there were."""
        self._db.execute("DELETE FROM files WHERE job_id=?", [job_id])
        self._db.executemany(
            "INSERT INTO files VALUES (?, ?, ?)",
            [(job_id, path, self._contents.keep(content)) for path, content in files.items()],
        )


class ResourceRepository:
    """IResourceRepository within a transaction."""

    def __init__(self, rows: Rows) -> None:
        self._db = rows

    def holdings(self) -> dict[str, int]:
        """Return how many slots each job holds."""
        return dict(self._db.execute("SELECT job_id, slots FROM holdings ORDER BY job_id").fetchall())

    def hold(self, job_id: str, count: int) -> None:
        """Set how many slots a job holds; 0 gives them back."""
        self._db.execute("DELETE FROM holdings WHERE job_id=?", [job_id])
        if count:
            self._db.execute("INSERT INTO holdings VALUES (?, ?)", [job_id, count])


class FolderRepository:
    """IFolderRepository within a transaction."""

    def __init__(self, rows: Rows) -> None:
        self._db = rows

    def all(self) -> list[SeenFolder]:
        """Return the folders by name."""
        rows = self._db.execute("SELECT folder, fingerprint, again_at FROM folders ORDER BY folder")
        return [
            SeenFolder(folder=folder, fingerprint=fingerprint, again_at=again_at)
            for folder, fingerprint, again_at in rows
        ]

    def put(self, seen: SeenFolder) -> None:
        """Keep how a folder was, in place of how it was before."""
        encode(seen)  # refuses what would not come back as it is
        self._db.execute(
            "INSERT OR REPLACE INTO folders VALUES (?, ?, ?)", [seen.folder, seen.fingerprint, seen.again_at]
        )

    def remove(self, folder: str) -> None:
        """Forget a folder; one that is not known is forgotten already."""
        self._db.execute("DELETE FROM folders WHERE folder=?", [folder])
