"""What retention allows to be removed, and why or why not, told from the stored state alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from mqi_hpc.core.models import (
    Case,
    CaseStatus,
    Job,
    JobStatus,
    SubmitState,
    Task,
    TaskStatus,
    TaskType,
)
from mqi_hpc.core.pruning import DeliveredFile, pruned
from mqi_hpc.records.result import ConvertRecord, decode_record

_ENDED_JOB = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.PARTIAL, JobStatus.CANCELLED})
_ENDED_CASE = frozenset(
    {
        CaseStatus.COMPLETED,
        CaseStatus.PARTIAL,
        CaseStatus.FAILED,
        CaseStatus.CANCELLED,
        CaseStatus.REJECTED,
    }
)
_UNSETTLED = frozenset({SubmitState.SUBMITTING, SubmitState.AMBIGUOUS})
_DOUBTFUL = frozenset({TaskStatus.SUSPECT, TaskStatus.LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRules:
    """The settings `retention`: days after a case ended, 0: for ever."""

    remote_completed_days: float
    remote_failed_days: float
    local_results_days: float


@dataclass(frozen=True, slots=True)
class JobHistory:
    """A job with its tasks."""

    job: Job
    tasks: tuple[Task, ...]


class Side(StrEnum):
    """Where something is removed."""

    REMOTE = "remote"
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePlan:
    """Whether a side of a case may go, and why or why not.

    `bytes` is what is known to be there, None where nothing is. `files` are what goes here, empty on the
    cluster, where the whole folder goes.
    """

    allowed: bool
    why: str
    bytes: int | None = None
    files: tuple[DeliveredFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlan:
    """What may go of one case. `ended_at` is None where it has not ended."""

    case_id: str
    label: str
    status: CaseStatus
    ended_at: datetime | None
    named: bool
    remote: SidePlan
    local: SidePlan

    def of(self, side: Side) -> SidePlan:
        """Return the plan of one side."""
        return self.remote if side is Side.REMOTE else self.local


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What may go of all cases that were asked about."""

    cases: tuple[CasePlan, ...]

    def of(self, side: Side) -> Iterator[tuple[CasePlan, SidePlan]]:
        """Yield what is allowed to go on one side."""
        for case in self.cases:
            if case.of(side).allowed:
                yield case, case.of(side)


def plan_case(
    case: Case,
    history: Sequence[JobHistory],
    rules: RetentionRules,
    *,
    now: datetime,
    named: bool,
) -> CasePlan:
    """Return what may go of a case with the jobs of `history`, oldest first.

    `named`: a person asked for this very case, which lifts a need for attention and nothing else.
    """
    ended = _ended_at(history)
    # What has not ended is of no age: no setting is ever less.
    age = timedelta.min if ended is None else now - ended
    held = _still_needed(case, history) or ("" if named else _attention(case, history))
    return CasePlan(
        case_id=case.case_id,
        label=case.label,
        status=case.status,
        ended_at=ended,
        named=named,
        remote=_remote(case, history, rules, held, age),
        local=_local(case, history, rules, held, age),
    )


def _ended_at(history: Sequence[JobHistory]) -> datetime | None:
    """Return when the last of a case's jobs ended; None where one has not, or there is none."""
    times = [entry.job.completed_at for entry in history]
    known = [at for at in times if at is not None]
    return max(known) if known and len(known) == len(times) else None


def _still_needed(case: Case, history: Sequence[JobHistory]) -> str:
    """Return what of a case is live or open, "" where nothing is."""
    if case.status not in _ENDED_CASE:
        return f"it is {case.status}"
    for entry in history:
        job = entry.job
        if job.submit_state in _UNSETTLED:
            return f"whether {job.name} was submitted is open ({job.submit_state})"
        if job.status not in _ENDED_JOB or job.completed_at is None:
            return f"{job.name} has not ended"
        if any(not task.status.terminal for task in entry.tasks):
            return f"{job.name} has tasks that have not ended"
    return ""


def _attention(case: Case, history: Sequence[JobHistory]) -> str:
    """Return what a person should look at first, "" where nothing is."""
    fix = "look at it, or name the case to prune it all the same"
    if case.attention is not None:
        return f"it asks for attention ({case.attention}): {fix}"
    newest: dict[tuple[TaskType, int], Task] = {}
    for entry in history:
        newest.update({(task.type, task.index): task for task in entry.tasks})
    for task in newest.values():
        if task.status in _DOUBTFUL:
            return f"{task.type} {task.index} is {task.status}: {fix}"
    return ""


def _remote(
    case: Case, history: Sequence[JobHistory], rules: RetentionRules, held: str, age: timedelta
) -> SidePlan:
    marks = pruned(case)
    if marks.remote is not None:
        return SidePlan(allowed=False, why=f"pruned on {marks.remote[:10]}")
    if not history:
        return SidePlan(allowed=False, why="nothing of it was ever sent")
    size = _sent_bytes(case, history)
    if held:
        return SidePlan(allowed=False, why=held, bytes=size)
    if away := _not_home(case, history):
        numbers = ", ".join(map(str, away))
        why = f"done, and not home: beam {numbers} (`mqi-hpc fetch` or `resubmit --convert-only` first)"
        return SidePlan(allowed=False, why=why, bytes=size)
    if marks.remote_begun is not None:
        why = f"begun on {marks.remote_begun[:10]}, to be brought to its end"
        return SidePlan(allowed=True, why=why, bytes=size)
    completed = case.status is CaseStatus.COMPLETED
    setting = "remote_completed_days" if completed else "remote_failed_days"
    allowed, why = _old_enough(getattr(rules, setting), setting, age)
    return SidePlan(allowed=allowed, why=why, bytes=size)


def _local(
    case: Case, history: Sequence[JobHistory], rules: RetentionRules, held: str, age: timedelta
) -> SidePlan:
    marks = pruned(case)
    if marks.local is not None:
        return SidePlan(allowed=False, why=f"pruned on {marks.local[:10]}")
    files = tuple(file for entry in history for file in delivered_files(entry.tasks))
    if not files:
        return SidePlan(allowed=False, why="nothing of it was delivered")
    size = sum(file.bytes or 0 for file in files)
    if held:
        return SidePlan(allowed=False, why=held, bytes=size, files=files)
    if marks.local_begun is not None:
        why = f"begun on {marks.local_begun[:10]}, to be brought to its end"
        return SidePlan(allowed=True, why=why, bytes=size, files=files)
    allowed, why = _old_enough(rules.local_results_days, "local_results_days", age)
    return SidePlan(allowed=allowed, why=why, bytes=size, files=files)


def _old_enough(days: float, setting: str, age: timedelta) -> tuple[bool, str]:
    if days == 0:
        return False, f"kept for ever (retention.{setting} is 0)"
    text = f"ended {age / timedelta(days=1):.1f} days ago, retention.{setting} is {days:g}"
    return age >= _days(days), text


def _days(days: float) -> timedelta:
    try:
        return timedelta(days=days)
    except OverflowError:
        return timedelta.max


def delivered_files(tasks: Sequence[Task]) -> Iterator[DeliveredFile]:
    """Yield what a job's download wrote: results as convert's record describes them, then log tails.

    A log tail has bytes and SHA-256 where the download told them ("digests": {path: [bytes, SHA-256]}).
    """
    told = _told(tasks)
    record = _converted(tasks)
    known = {} if record is None else {_name(entry.path): entry for entry in record.files}
    for path in told.get("files", ()):
        entry = known.get(_name(path))
        yield DeliveredFile(path) if entry is None else DeliveredFile(path, entry.bytes, entry.sha256)
    digests = told.get("digests", {})
    for path in told.get("logs", {}).values():
        yield DeliveredFile(path, *digests.get(path, ()))


def _not_home(case: Case, history: Sequence[JobHistory]) -> list[int]:
    """Return the numbers of done beams whose newest dose no download brought home."""
    done: dict[int, int] = {}
    home: dict[int, int] = {}
    for number, entry in enumerate(history):
        for task in entry.tasks:
            if task.type is TaskType.BEAM_CALC and task.status is TaskStatus.COMPLETED:
                done[task.index] = number
        record = _converted(entry.tasks)
        here = {_name(path) for path in _told(entry.tasks).get("files", ())}
        for dose in record.doses if record is not None else ():
            if _name(dose.file) in here:
                home[dose.index] = number
    return sorted(case.beams[index].number for index, at in done.items() if home.get(index, -1) < at)


def _told(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return what a job's download said it had written, {} where it did not come to its end."""
    for task in tasks:
        if task.type is TaskType.DOWNLOAD and "delivered" in task.parameters:
            told: dict[str, Any] = json.loads(task.parameters["delivered"])
            return told
    return {}


def _converted(tasks: Sequence[Task]) -> ConvertRecord | None:
    for task in tasks:
        if task.type is TaskType.CONVERT and task.record is not None:
            record = decode_record(task.record)
            return record if isinstance(record, ConvertRecord) else None
    return None


def _sent_bytes(case: Case, history: Sequence[JobHistory]) -> int:
    """Return the bytes known to lie on the cluster: the input, and what the records list."""
    records = (decode_record(task.record) for entry in history for task in entry.tasks if task.record)
    return sum(file.bytes for file in case.files) + sum(
        file.bytes for record in records for file in record.files
    )


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
