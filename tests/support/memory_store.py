"""An in-memory twin of the store for tests of services and domain; the contract suite holds both alike."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.event_chain import ChainedEvent, chain_fault, next_event
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.core.models import Case, Job, SeenFolder, Task, TaskType
from mqi_hpc.core.monitoring import StoreCounts
from tests.support.world import Clock

_KINDS = list(TaskType)


@dataclass
class _Data:
    """All there is. `begun` and `ended` are of the transaction that looks at it."""

    cases: dict[str, Case] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    folders: dict[str, SeenFolder] = field(default_factory=dict)
    events: list[ChainedEvent] = field(default_factory=list)
    write: bool = True
    ended: bool = False

    def begun(self, *, write: bool) -> _Data:
        parts = {name: copy.copy(part) for name, part in vars(self).items()}
        return _Data(**{**parts, "write": write, "ended": False})

    def reading(self) -> _Data:
        if self.ended:
            raise StateError("the transaction has ended; nothing can be read or kept through it any more")
        return self

    def writing(self) -> _Data:
        if not self.reading().write:
            raise StateError("the store cannot be used: attempt to write a readonly database")
        return self


class _Part:
    def __init__(self, data: _Data) -> None:
        self._data = data


class _Cases(_Part):
    def get(self, case_id: str) -> Case | None:
        return self._data.reading().cases.get(case_id)

    def put(self, case: Case) -> None:
        cases = self._data.writing().cases
        if any(c.label == case.label and c.case_id != case.case_id for c in cases.values()):
            raise StateError("UNIQUE constraint failed: cases.label")
        cases[case.case_id] = case

    def all(self) -> list[Case]:
        return sorted(self._data.reading().cases.values(), key=lambda c: (c.created_at, c.case_id))

    def remove(self, case_id: str) -> None:
        data = self._data.writing()
        if any(job.case_id == case_id for job in data.jobs.values()):
            raise StateError(f"case {case_id} has jobs: it is never removed")
        if data.cases.pop(case_id, None) is None:
            raise StateError(f"there is no case {case_id} to remove")


class _Jobs(_Part):
    def get(self, job_id: str) -> Job | None:
        return self._data.reading().jobs.get(job_id)

    def put(self, job: Job) -> None:
        data = self._data.writing()
        _require(job.case_id in data.cases)
        if any(
            (j.case_id, j.name) == (job.case_id, job.name)
            for j in data.jobs.values()
            if j.job_id != job.job_id
        ):
            raise StateError("UNIQUE constraint failed: jobs.case_id, jobs.number")
        data.jobs[job.job_id] = job

    def of_case(self, case_id: str) -> list[Job]:
        found = [job for job in self._data.reading().jobs.values() if job.case_id == case_id]
        return sorted(found, key=lambda job: int(job.name[1:]))

    def tasks(self, job_id: str) -> list[Task]:
        found = [task for task in self._data.reading().tasks.values() if task.job_id == job_id]
        return sorted(found, key=_place)

    def put_task(self, task: Task) -> None:
        data = self._data.writing()
        _require(task.job_id in data.jobs)
        others = (t for t in data.tasks.values() if t.job_id == task.job_id and t.task_id != task.task_id)
        if any(_place(other) == _place(task) for other in others):
            raise StateError("UNIQUE constraint failed: tasks.job_id, tasks.kind, tasks.number")
        data.tasks[task.task_id] = task

    def drop_tasks(self, job_id: str) -> None:
        data = self._data.writing()
        data.tasks = {key: task for key, task in data.tasks.items() if task.job_id != job_id}

    def left_out(self, now: float) -> list[Task]:
        tasks = self._data.reading().tasks.values()
        return sorted((t for t in tasks if (t.left_out_until or 0.0) > now), key=lambda t: t.task_id)

    def files(self, job_id: str) -> dict[str, bytes]:
        return dict(self._data.reading().files.get(job_id, {}))

    def put_files(self, job_id: str, files: Mapping[str, bytes]) -> None:
        data = self._data.writing()
        _require(job_id in data.jobs or not files)
        data.files[job_id] = dict(sorted(files.items()))


class _Resources(_Part):
    def holdings(self) -> dict[str, int]:
        return dict(sorted(self._data.reading().slots.items()))

    def hold(self, job_id: str, count: int) -> None:
        slots = self._data.writing().slots
        slots.pop(job_id, None)
        if count:
            slots[job_id] = count


class _Folders(_Part):
    def all(self) -> list[SeenFolder]:
        return sorted(self._data.reading().folders.values(), key=lambda seen: seen.folder)

    def put(self, seen: SeenFolder) -> None:
        self._data.writing().folders[seen.folder] = seen

    def remove(self, folder: str) -> None:
        self._data.writing().folders.pop(folder, None)


class _Unit(_Part):
    def __init__(self, data: _Data, clock: IClock) -> None:
        super().__init__(data)
        self._clock = clock
        self.cases = _Cases(data)
        self.jobs = _Jobs(data)
        self.resources = _Resources(data)
        self.folders = _Folders(data)

    def event(self, kind: str, case_id: str | None, data: Mapping[str, Any]) -> None:
        events = self._data.writing().events
        events.append(
            next_event(
                self.audit_head(),
                number=len(events) + 1,
                at=self._clock.now(),
                kind=kind,
                case_id=case_id,
                data=data,
            )
        )

    def events(self, case_id: str) -> list[dict[str, Any]]:
        return [
            {
                "number": e.number,
                "time": e.at,
                "kind": e.kind,
                "case_id": e.case_id,
                "data": json.loads(e.body),
            }
            for e in self._data.reading().events
            if e.case_id == case_id
        ]

    def all_events(self) -> list[ChainedEvent]:
        return list(self._data.reading().events)

    def restore(self, events: Sequence[ChainedEvent]) -> None:
        kept = self._data.writing().events
        if kept:
            raise StateError("the store has events of its own: no others can be put before them")
        fault = chain_fault(events, events[-1].digest if events else "")
        if fault is not None:
            raise StateError(f"the events are no whole chain: {fault}")
        kept += events

    def counts(self) -> StoreCounts:
        data = self._data.reading()
        return StoreCounts(
            cases=Counter(str(case.status) for case in data.cases.values()),
            jobs=Counter(str(job.status) for job in data.jobs.values()),
            tasks=Counter((str(task.type), str(task.status)) for task in data.tasks.values()),
            attention=sum(case.attention is not None for case in data.cases.values()),
        )

    def audit_head(self) -> str:
        events = self._data.reading().events
        return events[-1].digest if events else ""


class MemoryStore:
    """Transactions work on a copy that replaces the data when the block ends well."""

    def __init__(self, instance: str = "i1", secret: bytes = b"secret", clock: IClock | None = None) -> None:
        self.instance = instance
        self.secret = secret
        self._clock = clock or Clock()
        self._data = _Data()
        self._open = False

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[_Unit]:
        if self._open:
            raise StateError("a transaction within a transaction")
        self._open = True
        fresh = self._data.begun(write=write)
        try:
            yield _Unit(fresh, self._clock)
            if write:
                self._data = fresh.begun(write=write)
        finally:
            self._open = False
            fresh.ended = True

    def verify(self) -> str | None:
        with self.transaction(write=False) as unit:
            return chain_fault(unit.all_events(), unit.audit_head())

    def close(self) -> None:
        """Nothing is held."""


def _place(task: Task) -> tuple[int, int]:
    return _KINDS.index(task.type), task.index


def _require(there: bool) -> None:
    if not there:
        raise StateError("FOREIGN KEY constraint failed")
