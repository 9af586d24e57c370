"""An in-memory twin of the store for tests of services and domain; the contract suite holds both alike."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mqi_hpc.core.models import Case, Job, Task, TaskType


class _Cases:
    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def get(self, case_id: str) -> Case | None:
        return self._data["cases"].get(case_id)

    def put(self, case: Case) -> None:
        self._data["cases"][case.case_id] = case

    def all(self) -> list[Case]:
        return sorted(self._data["cases"].values(), key=lambda c: (c.created_at, c.case_id))


class _Jobs:
    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def get(self, job_id: str) -> Job | None:
        return self._data["jobs"].get(job_id)

    def put(self, job: Job) -> None:
        self._data["jobs"][job.job_id] = job

    def of_case(self, case_id: str) -> list[Job]:
        return sorted((j for j in self._data["jobs"].values() if j.case_id == case_id), key=lambda j: j.name)

    def tasks(self, job_id: str) -> list[Task]:
        order = list(TaskType)
        found = [t for t in self._data["tasks"].values() if t.job_id == job_id]
        return sorted(found, key=lambda t: (order.index(t.type), t.index))

    def put_task(self, task: Task) -> None:
        self._data["tasks"][task.task_id] = task

    def files(self, job_id: str) -> dict[str, bytes]:
        return dict(self._data["files"].get(job_id, {}))

    def put_files(self, job_id: str, files: Mapping[str, bytes]) -> None:
        self._data["files"][job_id] = dict(files)


class _Resources:
    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def holdings(self) -> dict[str, int]:
        return dict(self._data["holdings"])

    def hold(self, job_id: str, count: int) -> None:
        self._data["holdings"].pop(job_id, None)
        if count:
            self._data["holdings"][job_id] = count


class _Unit:
    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data
        self.cases = _Cases(data)
        self.jobs = _Jobs(data)
        self.resources = _Resources(data)

    def event(self, kind: str, case_id: str | None, data: Mapping[str, Any]) -> None:
        body = json.loads(json.dumps({"kind": kind, "case_id": case_id, "data": dict(data)}))
        self._data["events"].append(body)

    def events(self, case_id: str) -> list[dict[str, Any]]:
        return [event for event in self._data["events"] if event["case_id"] == case_id]

    def audit_head(self) -> str:
        return hashlib.sha256(json.dumps(self._data["events"], sort_keys=True).encode()).hexdigest()


class MemoryStore:
    """Transactions work on a copy that replaces the data when the block ends well."""

    def __init__(self, instance: str = "i1", secret: bytes = b"secret") -> None:
        self.instance = instance
        self.secret = secret
        self.data: dict[str, Any] = {
            "cases": {}, "jobs": {}, "tasks": {}, "files": {}, "holdings": {}, "events": []
        }  # fmt: skip
        self._open = False

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[_Unit]:
        if self._open:
            raise RuntimeError("a transaction within a transaction")
        self._open = True
        fresh = {name: copy.copy(part) for name, part in self.data.items()}
        try:
            yield _Unit(fresh)
            if write:
                self.data = fresh
        finally:
            self._open = False
