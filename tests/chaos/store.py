"""IStore in memory, for thousands of runs: values are immutable and kept as they are, a failure is undone.

Commits are where a run may be hurt, and where it is seen whether an ended task changes silently.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.event_chain import ChainedEvent, chain_fault, next_event
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.core.models import Case, Job, SeenFolder, Task, TaskType
from mqi_hpc.core.monitoring import StoreCounts
from tests.support.world import Clock

_KINDS = {kind: at for at, kind in enumerate(TaskType)}
Snapshot = tuple[Any, ...]
Event = tuple[float, str, str | None, str]


class _Part:
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    @property
    def _read(self) -> QuickStore:
        if self._unit.ended:
            raise StateError("the transaction has ended; nothing can be read or kept through it any more")
        return self._unit.store

    @property
    def _write(self) -> QuickStore:
        store = self._read
        if not self._unit.write:
            raise StateError("the store cannot be used: attempt to write a readonly database")
        return store


class _Cases(_Part):
    def get(self, case_id: str) -> Case | None:
        return self._read.cases.get(case_id)

    def put(self, case: Case) -> None:
        cases = self._write.cases
        if case.case_id not in cases or cases[case.case_id].label != case.label:
            _require_free(
                (c.label == case.label and c.case_id != case.case_id for c in cases.values()),
                "cases.label",
            )
        self._unit.set(cases, case.case_id, case)

    def all(self) -> list[Case]:
        return sorted(self._read.cases.values(), key=lambda c: (c.created_at, c.case_id))

    def remove(self, case_id: str) -> None:
        store = self._write
        if store.jobs_of.get(case_id):
            raise StateError(f"case {case_id} has jobs: it is never removed")
        if case_id not in store.cases:
            raise StateError(f"there is no case {case_id} to remove")
        self._unit.set(store.cases, case_id, None)


class _Jobs(_Part):
    def get(self, job_id: str) -> Job | None:
        return self._read.jobs.get(job_id)

    def put(self, job: Job) -> None:
        store = self._write
        _require_there(job.case_id in store.cases)
        old = store.jobs.get(job.job_id)
        if old is None or (old.case_id, old.name) != (job.case_id, job.name):
            _require_free(
                (
                    (j.case_id, j.name) == (job.case_id, job.name) and j.job_id != job.job_id
                    for j in store.jobs.values()
                ),
                "jobs.case_id, jobs.number",
            )
            if old is not None:
                self._unit.set(store.jobs_of[old.case_id], old.job_id, None)
            self._unit.set(store.jobs_of.setdefault(job.case_id, {}), job.job_id, job.name)
        self._unit.set(store.jobs, job.job_id, job)

    def of_case(self, case_id: str) -> list[Job]:
        store = self._read
        found = [store.jobs[job_id] for job_id in store.jobs_of.get(case_id, ())]
        return sorted(found, key=lambda job: int(job.name[1:])) if len(found) > 1 else found

    def tasks(self, job_id: str) -> list[Task]:
        return sorted(self._read.tasks.get(job_id, {}).values(), key=_place)

    def put_task(self, task: Task) -> None:
        store = self._write
        _require_there(task.job_id in store.jobs)
        mine = store.tasks.setdefault(task.job_id, {})
        old = mine.get(task.task_id)
        if old is None or _place(old) != _place(task):
            _require_free(
                (_place(t) == _place(task) and t.task_id != task.task_id for t in mine.values()),
                "tasks.job_id, tasks.kind, tasks.number",
            )
        self._unit.changed.append((old, task))
        self._unit.set(mine, task.task_id, task)

    def drop_tasks(self, job_id: str) -> None:
        self._unit.set(self._write.tasks, job_id, None)

    def left_out(self, now: float) -> list[Task]:
        tasks = (task for mine in self._read.tasks.values() for task in mine.values())
        return sorted((t for t in tasks if (t.left_out_until or 0.0) > now), key=lambda t: t.task_id)

    def files(self, job_id: str) -> dict[str, bytes]:
        return dict(self._read.files.get(job_id, {}))

    def put_files(self, job_id: str, files: Mapping[str, bytes]) -> None:
        store = self._write
        _require_there(job_id in store.jobs or not files)
        self._unit.set(store.files, job_id, dict(sorted(files.items())))


class _Resources(_Part):
    def holdings(self) -> dict[str, int]:
        return dict(sorted(self._read.slots.items()))

    def hold(self, job_id: str, count: int) -> None:
        self._unit.set(self._write.slots, job_id, count or None)


class _Folders(_Part):
    def all(self) -> list[SeenFolder]:
        return sorted(self._read.folders.values(), key=lambda seen: seen.folder)

    def put(self, seen: SeenFolder) -> None:
        self._unit.set(self._write.folders, seen.folder, seen)

    def remove(self, folder: str) -> None:
        self._unit.set(self._write.folders, folder, None)


class Unit(_Part):
    """One transaction. `changed` are the tasks put in it, (before or None, after)."""

    def __init__(self, store: QuickStore, *, write: bool) -> None:
        super().__init__(self)
        self.store = store
        self.write = write
        self.ended = False
        self.changed: list[tuple[Task | None, Task]] = []
        self.cases = _Cases(self)
        self.jobs = _Jobs(self)
        self.resources = _Resources(self)
        self.folders = _Folders(self)
        self._begun = len(store.log)
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []

    def set(self, where: dict[Any, Any], key: Any, value: Any) -> None:
        """Keep a value, None: none; what was there comes back where the transaction fails."""
        self._undo.append((where, key, where.get(key)))
        _put(where, key, value)

    def undo(self) -> None:
        """Make everything as it was."""
        for where, key, value in reversed(self._undo):
            _put(where, key, value)
        self.store.cut(self._begun)

    @property
    def new_events(self) -> list[Event]:
        """The events of this transaction."""
        return self.store.log[self._begun :]

    def event(self, kind: str, case_id: str | None, data: Mapping[str, Any]) -> None:
        store = self._write
        body = json.dumps(dict(data), sort_keys=True, separators=(",", ":"), allow_nan=False)
        store.log.append((float(store.clock.now()), kind, case_id, body))

    def events(self, case_id: str) -> list[dict[str, Any]]:
        return [
            {"number": number, "time": at, "kind": kind, "case_id": case, "data": json.loads(body)}
            for number, (at, kind, case, body) in enumerate(self._read.log, start=1)
            if case == case_id
        ]

    def all_events(self) -> list[ChainedEvent]:
        return list(self._read.chain())

    def restore(self, events: Sequence[ChainedEvent]) -> None:
        store = self._write
        if store.log:
            raise StateError("the store has events of its own: no others can be put before them")
        fault = chain_fault(events, events[-1].digest if events else "")
        if fault is not None:
            raise StateError(f"the events are no whole chain: {fault}")
        store.log += [(e.at, e.kind, e.case_id, e.body) for e in events]

    def counts(self) -> StoreCounts:
        store = self._read
        tasks = [task for mine in store.tasks.values() for task in mine.values()]
        return StoreCounts(
            cases=Counter(str(case.status) for case in store.cases.values()),
            jobs=Counter(str(job.status) for job in store.jobs.values()),
            tasks=Counter((str(task.type), str(task.status)) for task in tasks),
            attention=sum(case.attention is not None for case in store.cases.values()),
        )

    def audit_head(self) -> str:
        events = self._read.chain()
        return events[-1].digest if events else ""


class QuickStore:
    """What it promises is what tests/contract/test_store.py asks of every store.

    `before` and `after` are called round each commit; either may raise, and `before` then undoes it.
    """

    def __init__(self, instance: str = "i1", secret: bytes = b"secret", clock: IClock | None = None) -> None:
        self.instance = instance
        self.secret = secret
        self.clock = clock or Clock()
        self.before: Callable[[Unit], None] = lambda _: None
        self.after: Callable[[], None] = lambda: None
        self.open = False
        self.backups = 0
        self.cases: dict[str, Case] = {}
        self.jobs: dict[str, Job] = {}
        self.jobs_of: dict[str, dict[str, str]] = {}
        self.tasks: dict[str, dict[str, Task]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.slots: dict[str, int] = {}
        self.folders: dict[str, SeenFolder] = {}
        self.log: list[Event] = []
        self._chained: list[ChainedEvent] = []

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Unit]:
        """Open a transaction: what is put in it stands together, or not at all."""
        if self.open:
            raise StateError("a transaction within a transaction")
        self.open = True
        unit = Unit(self, write=write)
        try:
            yield unit
            if write:
                self.before(unit)
        except BaseException:
            unit.undo()
            raise
        finally:
            self.open = False
            unit.ended = True
        if write:
            self.after()

    def chain(self) -> list[ChainedEvent]:
        """Return the events, chained up to the last: a digest is made when it is first asked for."""
        head = self._chained[-1].digest if self._chained else ""
        for number in range(len(self._chained), len(self.log)):
            at, kind, case_id, body = self.log[number]
            event = next_event(
                head, number=number + 1, at=at, kind=kind, case_id=case_id, data=json.loads(body)
            )
            self._chained.append(event)
            head = event.digest
        return self._chained

    def snapshot(self) -> Snapshot:
        """Return all there is now."""
        tasks = {job_id: dict(mine) for job_id, mine in self.tasks.items()}
        jobs_of = {case_id: dict(mine) for case_id, mine in self.jobs_of.items()}
        parts = (dict(self.cases), dict(self.jobs), jobs_of, tasks, dict(self.files), dict(self.slots))
        return (*parts, dict(self.folders), list(self.log))

    def put_back(self, snapshot: Snapshot) -> None:
        """Be what the store was once: a backup of it was put in its place."""
        self.backups += 1
        self.cases, self.jobs, self.jobs_of, self.tasks, *rest = snapshot
        self.files, self.slots, self.folders, self.log = rest
        self._chained.clear()

    def cut(self, length: int) -> None:
        """Forget the events from number `length` + 1 on: they did not come to stand."""
        del self.log[length:]
        del self._chained[length:]

    def verify(self) -> str | None:
        """Return what is wrong with the chain of events, None where nothing is."""
        events = self.chain()
        return chain_fault(events, events[-1].digest if events else "")

    def close(self) -> None:
        """Nothing is held."""


def _put(where: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        where.pop(key, None)
    else:
        where[key] = value


def _place(task: Task) -> tuple[int, int]:
    return _KINDS[task.type], task.index


def _require_free(clashes: Iterable[bool], what: str) -> None:
    if any(clashes):
        raise StateError(f"UNIQUE constraint failed: {what}")


def _require_there(there: bool) -> None:
    if not there:
        raise StateError("FOREIGN KEY constraint failed")
