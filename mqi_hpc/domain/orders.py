"""What a person asks for a case: resubmit, accept, cancel, fetch. Decided on the store, in one transaction.

Nothing is sent from here: what is to be cancelled is noted in the job and done by the next look at the
cluster, what is to be submitted is planned. So an order that is given stands, whatever dies after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mqi_hpc.core.attention import needs_person
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import IUnit
from mqi_hpc.core.models import Case, CaseStatus, SubmitState, Task, TaskStatus, TaskType, task_name
from mqi_hpc.core.next_task import slurm_tasks, task_of
from mqi_hpc.core.pruning import marked, require_remote
from mqi_hpc.core.requests import Request, Verb
from mqi_hpc.core.resubmit import (
    History,
    JobPlan,
    beams_named,
    current_tasks,
    plan_resubmit,
)
from mqi_hpc.domain.desk import Desk, OpenJob
from mqi_hpc.domain.next_job import call_off_retries, history_of, plan_next
from mqi_hpc.records.result import ConvertRecord, decode_record
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.job_service import JobService


@dataclass(frozen=True, slots=True)
class _Case:
    """A case open for an order."""

    unit: IUnit
    case: Case
    jobs: list[OpenJob]

    @property
    def history(self) -> History:
        return history_of(self.jobs)

    def prioritise(self, priority: int) -> None:
        self.unit.cases.put(self.case.evolve(metadata={**self.case.metadata, "priority": priority}))
        for work in self.jobs:
            work.put_job(work.job.evolve(priority=priority))

    def put(self, task: Task, why: str) -> None:
        work = next(work for work in self.jobs if work.job.job_id == task.job_id)
        work.put_task(task, why=why)


class Orders:
    """Carries orders out. Each answers in words, and raises ProcessingError where it cannot be done."""

    def __init__(self, desk: Desk, cases: CaseService, jobs: JobService) -> None:
        self._desk = desk
        self._cases = cases
        self._jobs = jobs

    def carry_out(self, request: Request) -> str:
        """Carry an order out, once: one that was carried out before a crash is only answered again."""
        with self._desk.open_case(request.case_id) as (unit, case, jobs):
            asked = [e["data"] for e in unit.events(case.case_id) if e["kind"] == "order"]
            if any(data["request"] == request.request_id for data in asked):
                return f"{case.label}: done already"
            said = self._ORDERS[request.verb](self, _Case(unit, case, jobs), request)
            data = {"request": request.request_id, "verb": request.verb, "who": request.who, "said": said}
            unit.event("order", case.case_id, data)
        return said

    def fetch_failed(self, case_id: str) -> bool:
        """Make a failed download of a case's newest job due again; False where there is none to repeat."""
        job_id = self._jobs.failed_download(case_id)
        if job_id is None:
            return False
        with self._desk.open(job_id) as work:
            task = task_of(work.tasks, TaskType.DOWNLOAD)
            work.put_task(task.evolve(status=TaskStatus.PENDING, phase="", detail=""), why="asked for again")
        return True

    def prioritise(self, case_id: str, priority: int) -> None:
        """Set the priority of a case's jobs, those planned already included."""
        with self._desk.open_case(case_id) as (unit, case, jobs):
            _Case(unit, case, jobs).prioritise(priority)

    def _lead(self, open_case: _Case, request: Request) -> str:
        if request.priority is not None:
            open_case.prioritise(request.priority)
        return f"{open_case.case.label}: taken in hand"

    def _resubmit(self, open_case: _Case, request: Request) -> str:
        unit, case, history = open_case.unit, open_case.case, open_case.history
        plan = plan_resubmit(case, history, numbers=request.beams, convert_only=request.convert_only)
        job = plan_next(self._jobs, unit, case, open_case.jobs, plan, priority=request.priority)
        return f"{case.label}: {describe(case, plan, job.name)}"

    def _accept(self, open_case: _Case, request: Request) -> str:
        case, history = open_case.case, open_case.history
        require_remote(case, "accept")
        if not request.reason.strip():
            raise ProcessingError(f"{case.label}: nothing is accepted without a reason", fix="Give --reason")
        chosen = _suspects(case, history, request.beams)
        for task in chosen:
            noted = f"accepted by {request.who}: {request.reason.strip()}"
            changes = {"status": TaskStatus.COMPLETED, "phase": "accepted", "noted": noted}
            open_case.put(task.evolve(**changes), why=noted)
        said = f"{case.label}: accepted {', '.join(task_name(case, task) for task in chosen)}"
        if self._deliver_again(open_case, {t.index for t in chosen if t.type is TaskType.BEAM_CALC}):
            return f"{said}; the results are fetched"
        return f"{said}; not converted yet: `mqi-hpc resubmit --convert-only` makes the RT Dose"

    def _fetch(self, open_case: _Case, _: Request) -> str:
        case = open_case.case
        if not self._deliver_again(open_case, None):
            raise ProcessingError(
                f"{case.label}: there is nothing to fetch: no RT Dose stands on the cluster",
                fix="`mqi-hpc show` tells how it stands",
            )
        # What was pruned at home may be pruned there again.
        open_case.unit.cases.put(marked(case, local=None, local_begun=None))
        return f"{case.label}: the results are fetched again"

    def _cancel(self, open_case: _Case, request: Request) -> str:
        unit, case = open_case.unit, open_case.case
        why = f"cancelled by {request.who}" + (f": {request.reason}" if request.reason else "")
        if not open_case.jobs:
            if case.status not in (CaseStatus.NEW, CaseStatus.QUEUED):
                raise ProcessingError(f"{case.label} is {case.status}: there is nothing to cancel")
            self._cases.set_status(unit, case, CaseStatus.CANCELLED)
            return f"{case.label}: cancelled; nothing of it had been sent"
        _refuse_doubt(case, open_case.jobs[-1])
        ended = False
        for work in open_case.jobs:
            ended = _call_off(work, why) or ended
        ended = call_off_retries(unit, case, open_case.jobs, why) or ended
        if not ended:
            raise ProcessingError(f"{case.label} is {case.status}: there is nothing to cancel")
        return f"{case.label}: cancelled; what is in Slurm of it is cancelled there"

    def _deliver_again(self, open_case: _Case, indices: set[int] | None) -> bool:
        """Make the newest job's download due, if its convert holds a dose (of one of `indices`)."""
        if not open_case.jobs:
            return False
        require_remote(open_case.case, "fetch")
        work = open_case.jobs[-1]
        convert = next(task for task in work.tasks if task.type is TaskType.CONVERT)
        download = next(task for task in work.tasks if task.type is TaskType.DOWNLOAD)
        record = decode_record(convert.record) if convert.record else None
        if not isinstance(record, ConvertRecord) or convert.status is not TaskStatus.COMPLETED:
            return False
        if indices is not None and not indices <= {dose.index for dose in record.doses}:
            return False
        if download.status.terminal:
            changes = {"status": TaskStatus.PENDING, "phase": "", "detail": ""}
            work.put_task(download.evolve(**changes), why="asked for again")
        return True

    _ORDERS = {  # noqa: RUF012 - fixed
        Verb.LEAD: _lead,
        Verb.RESUBMIT: _resubmit,
        Verb.ACCEPT: _accept,
        Verb.FETCH: _fetch,
        Verb.CANCEL: _cancel,
    }


def describe(case: Case, plan: JobPlan, job: str) -> str:
    """Return what a job is to do, as a person reads it."""
    numbers = [case.beams[index].number for index in plan.indices]
    taken = sorted(set(plan.sources.values()))
    text = f"{job}: {', '.join(plan.stages)}"
    if numbers:
        text += f" for {beams_named(numbers)} (array index {', '.join(map(str, plan.indices))})"
    if taken:
        text += f"; the other doses are taken from {', '.join(taken)}"
    if plan.waits_for:
        text += f"; convert waits for {', '.join(plan.waits_for)}, which still runs"
    return text


def _suspects(case: Case, history: History, numbers: Sequence[int] | None) -> list[Task]:
    """Return the suspect tasks that are meant; without `numbers` every one, of beams and of the stages."""
    suspect = [
        task
        for task in current_tasks(history)
        if task.status is TaskStatus.SUSPECT or (task.status is TaskStatus.COMPLETED and needs_person(task))
    ]
    if numbers is not None:
        suspect = [task for task in suspect if _number(case, task) in numbers]
    if not suspect or (numbers is not None and len(suspect) < len(set(numbers))):
        named = f"{beams_named(numbers)}: not all of them are suspect" if numbers else "nothing is suspect"
        raise ProcessingError(f"{case.label}: {named}", fix="`mqi-hpc show` tells how each beam stands")
    for task in suspect:
        if task.record is None:
            raise ProcessingError(
                f"{case.label}: {task_name(case, task)} has no valid record, so there is no dose to accept",
                fix="`mqi-hpc resubmit` computes it again",
            )
    return suspect


def _number(case: Case, task: Task) -> int | None:
    return case.beams[task.index].number if task.type is TaskType.BEAM_CALC else None


def _refuse_doubt(case: Case, newest: OpenJob) -> None:
    if newest.job.submit_state is SubmitState.SUBMITTING:
        raise ProcessingError(
            f"{case.label} is being submitted at this moment", fix="Ask again in a minute", where="cancel"
        )


def _call_off(work: OpenJob, why: str) -> bool:
    """End what of a job was not sent, and note what is to be cancelled in Slurm; False: all has ended."""
    live = [task for task in work.tasks if not task.status.terminal]
    if not live:
        return False
    if work.job.submit_state is SubmitState.AMBIGUOUS:
        # A run of submit.sh may be alive still: recovery ends it when that can no longer be.
        work.put_job(work.job.evolve(cancelled=work.job.stages))
        return True
    if work.job.submit_state is not SubmitState.STANDING:
        # Slurm may have taken a part of the chain, and refused the rest for now.
        sent = work.job.placed or work.job.reruns
        work.put_job(work.job.evolve(cancelled=work.job.stages if sent else ()))
        work.end_all(why, TaskStatus.CANCELLED, "cancelled")
        work.mark(SubmitState.WITHDRAWN, why)
        return True
    if any(not task.status.terminal for task in slurm_tasks(work.tasks)):
        work.put_job(work.job.evolve(cancelled=tuple(dict.fromkeys((*work.job.cancelled, *work.job.stages)))))
    for task in work.tasks:
        if task.type is TaskType.DOWNLOAD and not task.status.terminal:
            work.put_task(task.evolve(status=TaskStatus.CANCELLED, phase="cancelled", detail=why), why=why)
    return True
