"""Takes jobs into the store that are on the cluster already: the store was lost, or is an older one.

Nothing is sent from here. What an adopted job has in Slurm is judged by the looks that follow; one that was
submitted in part, or not at all, is in doubt, and is completed by its own submit.sh as any other in doubt: so
a run of it that froze and thaws later finds the same receipts, and not a second chain beside it.
"""

from __future__ import annotations

from dataclasses import replace

from mqi_hpc.core.adoption import Adopted, CaseRemains, adoption
from mqi_hpc.core.effects import Completion, Failure, Survey
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.failpoints import Failpoint, reach
from mqi_hpc.core.interfaces import IEffects
from mqi_hpc.core.models import (
    Case,
    Job,
    JobStatus,
    Submission,
    SubmitState,
    Task,
    TaskStatus,
    TaskType,
)
from mqi_hpc.core.next_task import task_of
from mqi_hpc.core.resubmit import JobPlan
from mqi_hpc.domain.desk import Desk, OpenJob
from mqi_hpc.domain.submitter import ambiguous, stands
from mqi_hpc.domain.transfers import apply_transfer
from mqi_hpc.services.job_service import JobService, tasks_of

_IN_PART = "the store was lost or is an older one, and this job is on the cluster, perhaps submitted in part"
_GIVEN_UP = "a later job of the case is on the cluster, and this one never began: it is given up"
_CALLED_OFF = "it was called off or given up before: its folder on the cluster bears the mark of that"


class Adoption:
    """Has a case's folder read, and takes over what it holds; one transaction a case."""

    def __init__(self, desk: Desk, jobs: JobService, effects: IEffects) -> None:
        self._desk = desk
        self._jobs = jobs
        self._effects = effects

    def begin(self, case_id: str, job_id: str) -> None:
        """Have the folder of a case read, whose job `job_id` could not be sent as it is there already."""
        reach(Failpoint.SURVEY)
        self._effects.start(Survey(case_id=case_id, job_id=job_id, folder=self._jobs.case_folder(case_id)))

    def apply(self, effect: Survey, completion: Completion) -> bool:
        """Take over what was found, or refuse it; True: its upload is to be tried again."""
        notes: list[str] = []
        again = False
        with self._desk.open_case(effect.case_id) as (unit, case, opened):
            planned = next(work for work in opened if work.job.job_id == effect.job_id)
            if planned.job.submit_state not in _UNSENT:
                return False
            try:
                found = self._found(case, planned.job, completion)
            except ProcessingError as error:
                completion = replace(completion, error=str(error), failure=Failure.CASE)
            if completion.error is not None:
                again = apply_transfer(planned, task_of(planned.tasks, TaskType.UPLOAD), completion)
                notes = planned.notes
            else:
                reach(Failpoint.ADOPT)
                first = planned.job
                known = {work.job.name for work in opened if work is not planned}
                # One planned meanwhile finds by its own upload what is in its place.
                for adopted in (one for one in found if one.name not in known):
                    own = adopted.name == first.name
                    work = planned if own else OpenJob(unit, case, first, [], planned.now)
                    self._take_over(work, adopted, first)
                    notes += work.notes
        if completion.error is None:
            reach(Failpoint.ADOPT_KEPT)
        for text in notes:
            self._desk.tell(effect.case_id, text)
        return again

    def _found(self, case: Case, planned: Job, completion: Completion) -> tuple[Adopted, ...]:
        if completion.error is not None:
            return ()
        assert isinstance(completion.payload, CaseRemains)  # noqa: S101 - what a Survey brings
        return adoption(case, planned.name, completion.payload)

    def _take_over(self, work: OpenJob, adopted: Adopted, planned: Job) -> None:
        """Keep an adopted job: `work` is that which was planned in its place, or is open for it."""
        unit, case = work.unit, work.case
        job = _job(case, adopted, planned)
        plan = JobPlan(stages=adopted.chain.stages, indices=adopted.chain.computed)
        fetched = adopted.newest and not _called_off(planned)
        work.job = job
        work.tasks = [_begun(task, fetched=fetched) for task in tasks_of(job, case, plan)]
        unit.jobs.drop_tasks(job.job_id)
        unit.jobs.put(job)
        unit.jobs.put_files(job.job_id, adopted.files)
        for task in work.tasks:
            unit.jobs.put_task(task)
        unit.event("adopted", case.case_id, _told(job, adopted))
        work.notes.append(f"{job.name} is on the cluster already: taken over from there")
        if adopted.state is SubmitState.REFUSED:
            why = _CALLED_OFF if adopted.newest else _GIVEN_UP
            work.mark(SubmitState.REFUSED, why)
            work.end_all(why)
            return
        self._jobs.claim(unit, job)
        if adopted.state is SubmitState.STANDING:
            stands(work)
        else:
            ambiguous(work, _IN_PART)


_UNSENT = (SubmitState.PLANNED, SubmitState.WITHDRAWN)
"""A case that was called off while its folder was read is adopted all the same, to be cancelled there."""


def _job(case: Case, adopted: Adopted, planned: Job) -> Job:
    chain = adopted.chain
    submissions = tuple(
        Submission(
            stage=one.stage,
            name=one.name,
            indices=one.indices,
            slurm_id=receipt.id if (receipt := adopted.receipts.get(one.stage)) else None,
            cluster_time=receipt.time if receipt else None,
        )
        for one in chain.submissions
    )
    called_off = _called_off(planned) or adopted.state is SubmitState.REFUSED
    stale = () if adopted.newest else ("convert",)
    return Job(
        job_id=f"{case.case_id}-{adopted.name}",
        case_id=case.case_id,
        status=JobStatus.PENDING,
        priority=planned.priority,
        created_at=planned.created_at,
        name=adopted.name,
        submit_state=SubmitState.PLANNED,
        submissions=submissions,
        # A newer job's convert takes the place of an older one's.
        cancelled=chain.stages if called_off else stale,
        # Whether a person asked for it is not known any more: so its retries are counted, and bounded.
        automatic=not adopted.first,
    )


def _called_off(planned: Job) -> bool:
    return planned.submit_state is SubmitState.WITHDRAWN


def _begun(task: Task, *, fetched: bool) -> Task:
    """Return a task as it is where its job's folder is on the cluster; `fetched`: its results are wanted."""
    if task.type is TaskType.UPLOAD:
        return task.evolve(status=TaskStatus.COMPLETED, phase="done", detail="")
    if task.type is TaskType.DOWNLOAD and not fetched:
        return task.evolve(status=TaskStatus.CANCELLED, phase="superseded")
    return task


def _told(job: Job, adopted: Adopted) -> dict[str, object]:
    return {
        "job": job.name,
        "state": adopted.state,
        "ids": {s.stage: s.slurm_id for s in job.submissions},
        "stages": list(adopted.chain.stages),
        "beams": [adopted.chain.beam(index).number for index in adopted.chain.computed],
        "audit_head": adopted.chain.audit_head,
    }
