"""Plans jobs and keeps what is known of their submission."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import IClock, IRenderer, IStore, IUnit, RenderRequest
from mqi_hpc.core.left_out import left_out
from mqi_hpc.core.models import (
    Case,
    Job,
    JobStatus,
    Submission,
    SubmitState,
    Task,
    TaskStatus,
    TaskType,
    job_name,
)
from mqi_hpc.core.next_task import settled, task_of
from mqi_hpc.core.outcome import job_status
from mqi_hpc.core.resubmit import JobPlan, first_plan, kinds_of
from mqi_hpc.records.result import decode_record, encode_record
from mqi_hpc.services.history import read_history
from mqi_hpc.services.resource_service import ResourceService


class JobService:
    """Job logic (IJobService): a job is planned, rendered and stored in one transaction."""

    def __init__(
        self,
        store: IStore,
        renderer: IRenderer,
        resources: ResourceService,
        clock: IClock,
        *,
        workspace: str,
        most_left_out: int = 0,
    ) -> None:
        self._store = store
        self._renderer = renderer
        self._resources = resources
        self._clock = clock
        self._workspace = workspace
        self._most_left_out = most_left_out

    def create_job(self, case_id: str) -> Job:
        """Plan a case's first job, for all of its beams."""
        with self._store.transaction() as unit:
            case = unit.cases.get(case_id)
            if case is None:
                raise ProcessingError(f"no case {case_id!r} in the store")
            return self.plan(unit, case, first_plan(case))

    def plan(
        self,
        unit: IUnit,
        case: Case,
        plan: JobPlan,
        priority: int | None = None,
        *,
        retries: Sequence[Task] = (),
    ) -> Job:
        """Within a transaction: keep the case's next job, rendered: the intent, before anything is sent.

        `priority` None: the case's own (metadata "priority"), else 0. `retries` are the tasks whose promised
        retry it is; without them, a person asked for it.
        """
        history = read_history(unit, case.case_id)
        number = len(history.jobs) + 1
        name = job_name(number)
        submissions = _submissions(case, number, plan)
        job = Job(
            job_id=f"{case.case_id}-{name}",
            case_id=case.case_id,
            status=JobStatus.PENDING,
            priority=case.metadata.get("priority", 0) if priority is None else priority,
            created_at=self._now(),
            name=name,
            submit_state=SubmitState.PLANNED,
            submissions=submissions,
            automatic=bool(retries),
            left_out=self._left_out(unit, plan),
        )
        files = self._render(unit, case, name, submissions, plan)
        unit.jobs.put(job)
        unit.jobs.put_files(job.job_id, files)
        for task in tasks_of(job, case, plan):
            unit.jobs.put_task(task)
        beams = [case.beams[index].number for index in plan.indices]
        data: dict[str, Any] = {
            "job": name,
            "stages": list(plan.stages),
            "beams": beams,
            "files": sorted(files),
        }
        data |= {"left_out": list(job.left_out)} if job.left_out else {}
        data |= {"asks": {stage: list(asks) for stage, asks in plan.asks.items()}} if plan.asks else {}
        data |= {"automatic": _told(retries)} if retries else {}
        unit.event("job planned", case.case_id, data)
        return job

    def failed_download(self, case_id: str) -> str | None:
        """Return the id of the case's newest job where its results did not come home, else None."""
        with self._store.transaction(write=False) as unit:
            jobs = unit.jobs.of_case(case_id)
            if not jobs or jobs[-1].submit_state is not SubmitState.STANDING:
                return None
            tasks = unit.jobs.tasks(jobs[-1].job_id)
        failed = task_of(tasks, TaskType.DOWNLOAD).status is TaskStatus.FAILED
        return jobs[-1].job_id if failed else None

    def rendered(self, case: Case) -> dict[str, bytes]:
        """Return the files of a case's newest job, or those its first would have."""
        with self._store.transaction(write=False) as unit:
            if jobs := unit.jobs.of_case(case.case_id):
                return unit.jobs.files(jobs[-1].job_id)
            plan = first_plan(case)
            return self._render(unit, case, job_name(1), _submissions(case, 1, plan), plan)

    def folder(self, case_id: str, job: str) -> str:
        """Return the job's folder on the cluster, absolute."""
        return f"{self._workspace}/{case_id}/{job}"

    def input_folder(self, case_id: str) -> str:
        """Return the folder of the case's input on the cluster, absolute."""
        return f"{self._workspace}/{case_id}/input"

    def allocate_resources(self, job: Job) -> bool:
        """Take the job's GPU slots from our budget; False: wait."""
        with self._store.transaction() as unit:
            return self.hold(unit, job)

    def hold(self, unit: IUnit, job: Job) -> bool:
        """Within a transaction: take the job's GPU slots from our budget; False: wait."""
        array = job.submission("beams")
        beams = 0 if array is None else len(array.indices)
        return self._resources.hold(unit, job.job_id, self._resources.throttle(beams) or 0)

    def claim(self, unit: IUnit, job: Job) -> None:
        """Within a transaction: take the GPU slots that a job has already, free or not."""
        array = job.submission("beams")
        self._resources.claim(unit, job.job_id, 0 if array is None else len(array.indices))

    def case_folder(self, case_id: str) -> str:
        """Return the case's folder on the cluster, absolute."""
        return f"{self._workspace}/{case_id}"

    def complete_job(self, job_id: str) -> None:
        """Settle a job whose tasks have all ended, and give its slots back."""
        with self._store.transaction() as unit:
            job = unit.jobs.get(job_id)
            if job is None:
                raise ProcessingError(f"no job {job_id!r} in the store")
            self.settle(unit, job, unit.jobs.tasks(job_id))
            self._resources.release(unit, job_id)

    def settle(self, unit: IUnit, job: Job, tasks: Sequence[Task]) -> Job:
        """Within a transaction: bring the job in line with its tasks; when it ends, its slots go back."""
        live = sum(task.type is TaskType.BEAM_CALC and not task.status.terminal for task in tasks)
        self._resources.shrink(unit, job.job_id, live)
        status = job_status(tasks)
        if status is job.status:
            return job
        ended = settled(tasks)
        if ended:
            self._resources.release(unit, job.job_id)
        job = job.evolve(
            status=status,
            started_at=job.started_at or self._now(),
            completed_at=self._now() if ended else None,
        )
        unit.jobs.put(job)
        unit.event("job", job.case_id, {"job": job.name, "to": status})
        return job

    def _render(
        self, unit: IUnit, case: Case, name: str, submissions: tuple[Submission, ...], plan: JobPlan
    ) -> dict[str, bytes]:
        request = RenderRequest(
            case=case,
            job=name,
            job_folder=self.folder(case.case_id, name),
            submissions=submissions,
            beams=tuple(case.beams[index] for index in plan.indices),
            audit_head=unit.audit_head(),
            sources=plan.sources,
            interpreted=None if plan.interpreted is None else _interpreted(unit, case, plan.interpreted),
            waits_for=plan.waits_for,
            asks=plan.asks,
            left_out=self._left_out(unit, plan),
        )
        return self._renderer.job_files(request)

    def _left_out(self, unit: IUnit, plan: JobPlan) -> tuple[str, ...]:
        if "beams" not in plan.stages:
            return ()
        now = self._clock.now()
        found = left_out(unit.jobs.left_out(now), self._most_left_out, now)
        return tuple(one.node for one in found)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)


def _submissions(case: Case, number: int, plan: JobPlan) -> tuple[Submission, ...]:
    beams = [case.beams[index] for index in plan.indices]
    return plan_submissions(case.instance, case.case_id, number, beams, stages=plan.stages)


def tasks_of(job: Job, case: Case, plan: JobPlan) -> list[Task]:
    """Return the tasks of a job of this plan, none of them begun."""
    return [
        Task(
            task_id=f"{job.job_id}/{kind}" + (f"-{index}" if kind is TaskType.BEAM_CALC else ""),
            job_id=job.job_id,
            type=kind,
            index=index,
            status=TaskStatus.PENDING,
            parameters={"number": case.beams[index].number} if kind is TaskType.BEAM_CALC else {},
        )
        for kind in kinds_of(plan)
        for index in (plan.indices if kind is TaskType.BEAM_CALC else (0,))
    ]


def _told(retries: Sequence[Task]) -> list[dict[str, str | int]]:
    """Return what an event says of promised retries: which task, why, and how often by now."""
    return [
        {"task": task.task_id, "cause": str(task.retry.cause), "attempt": task.retry.attempt}
        for task in retries
        if task.retry is not None
    ]


def _interpreted(unit: IUnit, case: Case, job: str) -> tuple[str, str]:
    """Return a job and SHA-256 of its interpret's record, as the stage wrote it."""
    tasks = unit.jobs.tasks(f"{case.case_id}-{job}")
    record = next(task.record for task in tasks if task.type is TaskType.INTERPRET)
    if record is None:
        raise ProcessingError(f"{case.label}: the record of {job}'s interpret is not in the store")
    return job, hashlib.sha256(encode_record(decode_record(record)).encode()).hexdigest()
