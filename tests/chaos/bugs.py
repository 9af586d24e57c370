"""Planted bugs: each a small patch that a careless hand might make. The simulation has to find every one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from mqi_hpc.core import retry_causes, verdicts
from mqi_hpc.core.effects import Completion, ResultFile, Submit
from mqi_hpc.core.interfaces import IEffects
from mqi_hpc.core.models import STAGE_OF, Case, Job, SubmitState, Task, TaskStatus
from mqi_hpc.core.readings import Accounting, Limits, Reading, TableRow, Timer, Witness
from mqi_hpc.core.resubmit import JobPlan
from mqi_hpc.domain import desk, reconciler, recovery, submitter, watcher, workflow_orchestrator
from mqi_hpc.domain.desk import OpenJob
from mqi_hpc.domain.evidence import Evidence, read_evidence
from mqi_hpc.domain.polls import Polls
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.records import layout
from mqi_hpc.records.result import Expected, Record, faults
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


def _suspect_is_done() -> AbstractContextManager[Any]:
    ended = verdicts._ended_badly

    def well(reading: Reading, kind: str, timer: Timer) -> verdicts.Verdict:
        if reading.record is Witness.VALID:
            return verdicts._end(TaskStatus.COMPLETED, "done", "", timer)
        return ended(reading, kind, timer)

    # The rule for words that nobody knows would make it suspect again.
    return _both(patch.object(verdicts, "_ended_badly", well), patch.object(reconciler, "judge", _by_rule))


def _by_rule(reading: Reading, timer: Timer, elapsed: float, limits: Limits) -> verdicts.Verdict:
    row = verdicts.row_of(reading)
    return replace(verdicts._RULES[row](verdicts._Poll(reading, timer, elapsed, limits)), row=row)


@contextmanager
def _both(*patches: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield


def _exit_record_unread() -> AbstractContextManager[Any]:
    def done(poll: verdicts._Poll) -> verdicts.Verdict:
        return verdicts._end(TaskStatus.COMPLETED, "done", "", poll.timer)

    return patch.dict(verdicts._RULES, {TableRow.COMPLETED_EXIT: done})


def _sizes_unread() -> AbstractContextManager[Any]:
    def believed(record: Record, expected: Expected, _: Mapping[str, int]) -> list[str]:
        return faults(record, expected, {file.path: file.bytes for file in record.files})

    return patch.object(reconciler, "faults", believed)


def _mark_never_made() -> AbstractContextManager[Any]:
    call_off = watcher.Watcher._call_off

    def unmarked(self: watcher.Watcher, work: OpenJob, found: recovery.Found) -> watcher.CallOff | None:
        return call_off(self, work, replace(found, mark=False))

    return patch.object(watcher.Watcher, "_call_off", unmarked)


def _accounting_down_is_silent() -> AbstractContextManager[Any]:
    def silent(*arguments: Any, **how: Any) -> Evidence:
        found = read_evidence(*arguments, **how)
        return replace(found, accounting=Accounting.GOOD) if found.accounting is Accounting.DOWN else found

    return patch.object(watcher, "read_evidence", silent)


def _late_answer() -> AbstractContextManager[Any]:
    apply = submitter.apply_submit
    known = (SubmitState.SUBMITTING, SubmitState.STANDING, SubmitState.AMBIGUOUS)

    def late(work: OpenJob, effect: Submit, completion: Completion) -> tuple[bool, submitter.Cancels]:
        if work.job.submit_state in known:
            work.job = work.job.evolve(submit_state=SubmitState.SUBMITTING)
        return apply(work, effect, completion)

    return patch.object(workflow_orchestrator, "apply_submit", late)


def _impatient() -> AbstractContextManager[Any]:
    may_act = recovery._may_act

    def soon(work: OpenJob, elapsed: float, _: float, *, lost: bool) -> bool:
        return may_act(work, elapsed, 0.0, lost=lost)

    return patch.object(recovery, "_may_act", soon)


def _called_off_in_vain() -> AbstractContextManager[Any]:
    dead = reconciler._dead_stages

    def forgotten(job: Job, *rest: Any) -> tuple[str, ...]:
        return dead(job.evolve(cancelled=()), *rest)

    return patch.object(reconciler, "_dead_stages", forgotten)


def _called_off_retried() -> AbstractContextManager[Any]:
    decide = retry_causes.decide

    def again(history: Any, job: Job, task: Task, *rest: Any) -> retry_causes.Decision | None:
        if task.status is TaskStatus.CANCELLED:
            task = task.evolve(status=TaskStatus.FAILED, phase="failed", slurm="NODE_FAIL")
        return decide(history, job.evolve(cancelled=()), task, *rest)

    return patch.object(desk, "decide", again)


def _retried_for_ever() -> AbstractContextManager[Any]:
    return patch.object(retry_causes, "_too_often", lambda *_: "")


def _two_looks() -> AbstractContextManager[Any]:
    begin = Polls.begin

    def another(self: Polls, cases: Sequence[str], *, even_early: bool = False) -> bool:
        self._flying = False
        return begin(self, cases, even_early=even_early)

    return patch.object(Polls, "begin", another)


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
    "suspect-is-done": Bug("a valid record outweighs Slurm's word", _suspect_is_done),
    "exit-record-unread": Bug("Slurm's COMPLETED outweighs the exit record", _exit_record_unread),
    "sizes-unread": Bug("a record is believed without a look at its files", _sizes_unread),
    "mark-never-made": Bug("what is called off bears no mark in its folder", _mark_never_made),
    "accounting-down": Bug("accounting that does not answer knows of no job", _accounting_down_is_silent),
    "late-answer": Bug("submit.sh's late answer outweighs what a look has found", _late_answer),
    "impatient": Bug("submit.sh is run again although the one before may be alive", _impatient),
    "called-off-in-vain": Bug("what stands and is called off is not cancelled", _called_off_in_vain),
    "called-off-retried": Bug("what was called off is retried by itself", _called_off_retried),
    "retried-for-ever": Bug("retries are not counted", _retried_for_ever),
    "two-looks": Bug("a look begins while another is under way", _two_looks),
}
