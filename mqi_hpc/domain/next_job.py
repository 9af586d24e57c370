"""A case's next job in place of what went wrong: what it replaces is called off in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence

from mqi_hpc.core.interfaces import IUnit
from mqi_hpc.core.models import Case, Job, Task, TaskStatus, TaskType
from mqi_hpc.core.resubmit import History, JobPlan, current_tasks, stale
from mqi_hpc.domain.desk import OpenJob
from mqi_hpc.services.job_service import JobService


def history_of(jobs: Sequence[OpenJob]) -> History:
    """Return the jobs of an open case as they stand in this transaction."""
    return History(
        jobs=tuple(work.job for work in jobs), tasks={work.job.job_id: tuple(work.tasks) for work in jobs}
    )


def plan_next(
    service: JobService,
    unit: IUnit,
    case: Case,
    jobs: Sequence[OpenJob],
    plan: JobPlan,
    *,
    priority: int | None = None,
    retries: Sequence[Task] = (),
) -> Job:
    """Plan a case's next job; a convert that waits, and a download that is to come, are its own now."""
    why = "retried" if retries else "resubmitted"
    replaced = {job.job_id for job, _ in stale(history_of(jobs))}
    for work in jobs:
        if work.job.job_id in replaced:
            work.put_job(work.job.evolve(cancelled=(*work.job.cancelled, "convert")))
        for task in work.tasks:
            if task.type is TaskType.DOWNLOAD and not task.status.terminal:
                ended = task.evolve(status=TaskStatus.CANCELLED, phase="superseded", detail="")
                work.put_task(ended, why=why)
    return service.plan(unit, case, plan, priority, retries=retries)


def call_off_retries(unit: IUnit, case: Case, jobs: Sequence[OpenJob], why: str) -> bool:
    """Take back what was promised to follow by itself; False: nothing was."""
    promised = {task.task_id for task in current_tasks(history_of(jobs)) if task.retry is not None}
    for work in jobs:
        for task in [one for one in work.tasks if one.task_id in promised]:
            work.put_task(task.evolve(retry=None, not_retried=why), why=why)
    if promised:
        unit.event("retry called off", case.case_id, {"tasks": sorted(promised), "why": why})
    return bool(promised)
