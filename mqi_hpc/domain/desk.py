"""One job as the loop works on it: read whole, changed whole, in one transaction with its events."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from mqi_hpc.core.attention import needs_person, reason, way_on
from mqi_hpc.core.causes import Cause, Retry
from mqi_hpc.core.errors import StateError
from mqi_hpc.core.interfaces import IClock, IStore, IUnit
from mqi_hpc.core.models import Case, Job, SubmitState, Task, TaskStatus, task_name
from mqi_hpc.core.outcome import case_status, left_out
from mqi_hpc.core.resubmit import History, current_tasks
from mqi_hpc.core.retry_causes import RetryTable, decide
from mqi_hpc.core.retry_plan import promise
from mqi_hpc.services.case_service import TWIN, CaseService
from mqi_hpc.services.history import read_history
from mqi_hpc.services.intake_service import GROWN, LATE
from mqi_hpc.services.job_service import JobService

_log = structlog.get_logger("mqi_hpc.case")

OUR_FAULT = "a fault of this program"
_MOST_WORDS = 300

Listener = Callable[[str, str], None]
"""Told of what happens: (case id, text for a person)."""


@dataclass(slots=True)
class OpenJob:
    """A job under change, `now` (UTC epoch s). Tell `notes` what a person should hear once the change stands.

    `ended` are the tasks that have come to an end in it.
    """

    unit: IUnit
    case: Case
    job: Job
    tasks: list[Task]
    now: float
    notes: list[str] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)

    def put_task(self, task: Task, why: str = "", evidence: Mapping[str, Any] | None = None) -> None:
        """Keep a changed task, with an event where its status or phase is another; it bears the evidence."""
        at = next(n for n, old in enumerate(self.tasks) if old.task_id == task.task_id)
        before = self.tasks[at]
        if task.status.terminal and not before.status.terminal:
            task = task.evolve(ended_at=self.now)
            self.ended.add(task.task_id)
        elif not task.status.terminal and before.status.terminal:
            task = task.evolve(ended_at=None)
            self.ended.discard(task.task_id)
        self.tasks[at] = task
        if before == task:
            return
        self.unit.jobs.put_task(task)
        if _turned(before, task):
            data = {"task": task.task_id, "from": before.status, "to": task.status, "phase": task.phase}
            seen = {} if evidence is None else {"evidence": evidence}
            self.unit.event("task", self.case.case_id, {**data, "detail": task.detail, "why": why, **seen})
            # Details may name files, and so a patient: they stay in the store.
            _log.info(
                "task", **self.job.log_context(), task=task.task_id, status=task.status, phase=task.phase
            )

    def put_job(self, job: Job) -> None:
        """Keep a changed job."""
        if job != self.job:
            self.job = job
            self.unit.jobs.put(job)

    def mark(self, state: SubmitState, why: str) -> None:
        """Record how far the submission has come, with an event."""
        self.put_job(self.job.evolve(submit_state=state, refusal=why or None))
        ids = {s.stage: s.slurm_id for s in self.job.submissions}
        data = {"job": self.job.name, "to": state, "why": why, "ids": ids}
        self.unit.event("submission", self.case.case_id, data)
        _log.info("submission", **self.job.log_context(), state=state, slurm_ids=ids)

    def end_all(self, why: str, status: TaskStatus = TaskStatus.FAILED, phase: str = "not begun") -> None:
        """End every task that has not ended: nothing of this job will run any more."""
        for task in list(self.tasks):
            if not task.status.terminal:
                self.put_task(task.evolve(status=status, phase=phase, detail=why))


@dataclass(slots=True)
class Tried:
    """Whether a block came to its end without an error."""

    well: bool = False


def _turned(before: Task, after: Task) -> bool:
    """Whether a task has come to another state. How far a running one says it is, is none."""
    if (before.status, before.phase) != (after.status, after.phase):
        return True
    return after.phase != "running" and before.detail != after.detail


class Desk:
    """Opens jobs for a change, and brings job and case in line with their tasks when it is done.

    `changed` hears the id of every case of which something changed.
    """

    def __init__(
        self,
        store: IStore,
        cases: CaseService,
        jobs: JobService,
        listener: Listener,
        changed: Callable[[str], None],
        *,
        clock: IClock,
        retries: RetryTable,
    ) -> None:
        self._store = store
        self._clock = clock
        self._retries = retries
        self._cases = cases
        self._jobs = jobs
        self._listener = listener
        self._changed = changed

    @contextmanager
    def open(self, job_id: str) -> Iterator[OpenJob]:
        """Open a job; what is changed in the block stands together with its events, or not at all."""
        with self._store.transaction() as unit:
            job = unit.jobs.get(job_id)
            case = None if job is None else unit.cases.get(job.case_id)
            if job is None or case is None:
                raise StateError(f"job {job_id!r} has gone from the store")
            work = OpenJob(unit, case, job, unit.jobs.tasks(job_id), self._clock.now())
            yield work
            self._settle(work)
        self._changed(case.case_id)
        for text in work.notes:
            self._listener(case.case_id, text)

    @contextmanager
    def open_case(self, case_id: str) -> Iterator[tuple[IUnit, Case, list[OpenJob]]]:
        """Open all jobs of a case, j01 first; raises StateError where the store has no such case."""
        with self._store.transaction() as unit:
            case = unit.cases.get(case_id)
            if case is None:
                raise StateError(f"case {case_id!r} has gone from the store")
            now = self._clock.now()
            opened = [
                OpenJob(unit, case, job, unit.jobs.tasks(job.job_id), now)
                for job in unit.jobs.of_case(case_id)
            ]
            yield unit, case, opened
            for work in opened:
                self._settle(work)
            if not opened or len(unit.jobs.of_case(case_id)) > len(opened):
                self._settle_case(unit, unit.cases.get(case_id) or case)
        self._changed(case_id)

    @contextmanager
    def apart(self, job_id: str, what: str) -> Iterator[Tried]:
        """Keep an error over one job from the others: a person is told that `what`, and asked.

        Raises StateError: without the store nothing can be led on.
        """
        tried = Tried()
        try:
            yield tried
            tried.well = True
        except StateError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one case brings, the others are led on
            # Its words may name files, and so a patient: the log gets where it was, a person gets the text.
            frames = "".join(traceback.format_tb(error.__traceback__))
            kind = type(error).__name__
            _log.error(what, job_id=job_id, kind=kind, traceback=frames)
            said = f"{kind}: {error}"[:_MOST_WORDS]
            self.fault(job_id, f"{what}: {said} ({OUR_FAULT}: please report it)")

    def fault(self, job_id: str, why: str) -> None:
        """Ask for attention to a case of which a job could not be brought in line; the next that can takes it
        back. Raises StateError where the job has gone."""
        with self._store.transaction() as unit:
            job = unit.jobs.get(job_id)
            case = None if job is None else unit.cases.get(job.case_id)
            if job is None or case is None:
                raise StateError(f"job {job_id!r} has gone from the store")
            said = f"{job.name}: {why}"
            new = self._cases.set_status(unit, case, case.status, said) is not case
        if new:
            self._listener(case.case_id, said)

    def tell(self, case_id: str, text: str) -> None:
        """Tell the listener something that changes nothing in the store."""
        self._listener(case_id, text)

    def _settle(self, work: OpenJob) -> None:
        self._decide(work)
        work.job = self._jobs.settle(work.unit, work.job, work.tasks)
        work.case = self._settle_case(work.unit, work.unit.cases.get(work.case.case_id) or work.case)

    def _decide(self, work: OpenJob) -> None:
        """Promise what follows by itself to what has just ended badly, or keep why nothing does."""
        badly = [t for t in work.tasks if t.task_id in work.ended and t.status is not TaskStatus.COMPLETED]
        if not badly:
            return
        history = read_history(work.unit, work.case.case_id)
        current = {task.task_id for task in current_tasks(history)}
        for task in badly:
            decision = decide(history, work.job, task, self._retries, work.now)
            if decision is None:
                continue
            until = work.now + decision.leave_out if decision.leave_out else None
            work.put_task(
                task.evolve(retry=decision.retry, not_retried=decision.why_not, left_out_until=until)
            )
            if decision.retry is not None:
                self._promised(work, task, decision.retry, current=task.task_id in current)

    def _promised(self, work: OpenJob, task: Task, retry: Retry, *, current: bool) -> None:
        if retry.cause is Cause.NO_NODE:
            self._take_back(work)
        data = {"task": task.task_id, "cause": retry.cause, "attempt": retry.attempt, "most": retry.most}
        data |= {"at": retry.at, "without": retry.without}
        work.unit.event("retry promised", work.case.case_id, data)
        _log.info("retry promised", **work.job.log_context(), task=task.task_id, cause=retry.cause)
        if not current:
            # A later job that was found on the cluster has it in hand already.
            return
        who = task_name(work.case, task)
        work.notes.append(f"{who}: {promise(retry)}{f', without {retry.without}' if retry.without else ''}")

    def _take_back(self, work: OpenJob) -> None:
        """Let beams go to the nodes again that a job was kept away from: Slurm has no other."""
        for task in work.unit.jobs.left_out(work.now):
            if task.node in work.job.left_out:
                work.unit.jobs.put_task(task.evolve(left_out_until=None))

    def _settle_case(self, unit: IUnit, case: Case) -> Case:
        history = read_history(unit, case.case_id)
        if not history.jobs:
            return case
        status = case_status(current_tasks(history))
        return self._cases.set_status(unit, case, status, attention_of(case, history))


def attention_of(case: Case, history: History) -> str | None:
    """Return why a person should look at a case, None where nobody need."""
    newest = history.jobs[-1]
    if newest.submit_state is SubmitState.AMBIGUOUS:
        return newest.refusal or "whether the chain was submitted is not known"
    current = current_tasks(history)
    for task in current:
        if needs_person(task):
            return f"{task_name(case, task)}: {reason(task)} ({way_on(task)})"
    for index, why in left_out(current).items():
        number = case.beams[index].number
        way = f"`mqi-hpc resubmit`, or where its dose is gone, `mqi-hpc resubmit --beam {number}`"
        return f"beam {number} is done, and convert made no RT Dose of it: {why} ({way})"
    if TWIN in case.metadata:
        return (
            f"its files bear the names of {case.metadata[TWIN]}'s, with other bytes: which of them are right?"
        )
    return LATE if GROWN in case.metadata else None
