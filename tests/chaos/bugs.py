"""Planted bugs: each a small patch that a careless hand might make. The simulation has to find every one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from mqi_hpc.core import verdicts
from mqi_hpc.core.effects import ResultFile, Submit
from mqi_hpc.core.interfaces import IEffects
from mqi_hpc.core.models import STAGE_OF, Case, Job, SubmitState, Task, TaskStatus
from mqi_hpc.core.readings import TableRow
from mqi_hpc.core.resubmit import JobPlan
from mqi_hpc.domain import watcher
from mqi_hpc.domain.evidence import Evidence, read_evidence
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.records import layout
from mqi_hpc.services.job_service import JobService
from tests.chaos import works
from tests.chaos.transfers import HurtTransfers
from tests.support.simulation import submit, task
from tests.support.simulation.filesystem import Stored
from tests.support.simulation.stages import Stages
from tests.support.simulation.submit import SubmitScript


@dataclass(frozen=True, slots=True)
class Bug:
    """`what` it is, and a context in which it is there."""

    what: str
    planted: Callable[[], AbstractContextManager[Any]]


def _exec_before_commit() -> AbstractContextManager[Any]:
    begin = WorkflowOrchestrator._begin

    def early(self: WorkflowOrchestrator, due: Task) -> bool:
        if due.type not in STAGE_OF:
            return begin(self, due)
        with self._desk.open(due.job_id) as work:
            case_id, job = work.case.case_id, work.job
            if not self._jobs.hold(work.unit, job):
                self._scheduler.defer_task(due.task_id, self._slots_wait, for_slots=True)
                return False
            folder = self._jobs.folder(case_id, job.name)
            self._sent.add(job.job_id)
            # Past what writes commands down: that takes a transaction of its own.
            inner: IEffects = self._effects._inner  # type: ignore[attr-defined]
            inner.start(
                Submit(case_id=case_id, job_id=job.job_id, job_folder=folder, nonce=self._ids.nonce())
            )
            work.mark(SubmitState.SUBMITTING, "")
        return True

    return patch.object(WorkflowOrchestrator, "_begin", early)


def _blind_retry() -> AbstractContextManager[Any]:
    once = SubmitScript._sbatch

    def again(self: SubmitScript, *arguments: Any) -> int:
        try:
            return once(self, *arguments)
        except submit._Finished:
            return once(self, *arguments)

    return patch.object(SubmitScript, "_sbatch", again)


def _absence_is_done() -> AbstractContextManager[Any]:
    def done(poll: Any) -> verdicts.Verdict:
        return verdicts._end(TaskStatus.COMPLETED, "done", "", poll.timer)

    return patch.dict(verdicts._RULES, {TableRow.SILENT: done, TableRow.NO_ACCOUNTING: done})


def _index_renumbered() -> AbstractContextManager[Any]:
    plan_job = JobService.plan

    def renumbered(self: JobService, unit: Any, case: Case, plan: JobPlan, *rest: Any, **named: Any) -> Job:
        if plan.indices and len(plan.indices) < len(case.beams):
            beams = tuple(case.beams[index].evolve(index=at) for at, index in enumerate(plan.indices))
            case = case.evolve(beams=beams)
            plan = replace(plan, indices=tuple(range(len(beams))), sources={})
        return plan_job(self, unit, case, plan, *rest, **named)

    return patch.object(JobService, "plan", renumbered)


def _rename_before_verify() -> AbstractContextManager[Any]:
    def settle(self: HurtTransfers, temporary: str, folder: str) -> None:
        self._rename(temporary, folder)
        self._verify(folder)

    return patch.object(HurtTransfers, "_settle", settle)


def _receipt_replaced() -> AbstractContextManager[Any]:
    def write(self: SubmitScript, submission: Any, slurm_id: int) -> None:
        line = f"{submission.name} {slurm_id} {int(self.clock.now())}\n"
        self.files.write(f"{self.folder}/{layout.receipt(submission.stage)}", line.encode())

    return patch.object(SubmitScript, "_publish", write)


def _no_fence() -> AbstractContextManager[Any]:
    def admitted(self: Stages, start: task.Start) -> Generator[float, None, task.Task]:
        job = task.JobFolder(self._files, start.folder)
        chain = job.chain
        beam = chain.beam(start.index or 0) if start.stage == "beams" else None
        found = task.Task(self._clock, job, chain, start, beam)
        found.claim()
        if start.stage != "interpret":
            found.interpreted = job.interpreted(chain)
        yield 0.0
        return found

    return patch.object(Stages, "_admitted", admitted)


def _outputs_shared() -> AbstractContextManager[Any]:
    def folder(self: task.Task) -> str:
        number = self.beam.number if self.beam is not None else 0
        case = self.job.path.rpartition("/")[0]
        return f"{case}/output/{layout.output_folder(self.start.stage, number)}"

    return patch.object(task.Task, "_folder", property(folder))


@contextmanager
def _stale_queue() -> Iterator[None]:
    last: list[Evidence] = []

    def remembering(output: str, nonce: str, **how: Any) -> Evidence:
        found = read_evidence(output, nonce, **how)
        if found.queue is None and last:
            return replace(found, queue=last[-1].queue)
        last[:] = [found]
        return found

    with patch.object(watcher, "read_evidence", remembering):
        yield


def _wrong_hash() -> AbstractContextManager[Any]:
    def whole(self: HurtTransfers, came: bytes, stored: Stored, result: ResultFile) -> bool:
        return (len(came), stored.sha256) == (result.bytes, result.sha256)

    return patch.object(HurtTransfers, "is_whole", whole)


def _dose_unchecked() -> AbstractContextManager[Any]:
    return patch.object(works, "checked", lambda content, entry: len(content) == entry.bytes)


BUGS = {
    "exec-before-commit": Bug("submit.sh is run before the intent is committed", _exec_before_commit),
    "blind-retry": Bug("an sbatch that failed is repeated at once", _blind_retry),
    "absence-is-done": Bug("what is gone from the queue is done", _absence_is_done),
    "index-renumbered": Bug("a resubmit counts its beams from 0", _index_renumbered),
    "rename-before-verify": Bug("an upload gets its name before it is verified", _rename_before_verify),
    "receipt-replaced": Bug("a receipt is written over, not linked", _receipt_replaced),
    "no-fence": Bug("stages begin without receipt and claim", _no_fence),
    "outputs-shared": Bug("all jobs of a case write into one folder", _outputs_shared),
    "stale-queue": Bug("where squeue fails its last answer is used", _stale_queue),
    "wrong-hash": Bug("a download looks at the hash of the file there, not of what came", _wrong_hash),
    "dose-unchecked": Bug("convert does not look at the hash of the dose", _dose_unchecked),
}
