"""The loop: begins what is due, hands effects out, and applies what comes back, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from mqi_hpc.core.effects import Cancel, Completion, Download, Failure, Observe, Submit, Upload
from mqi_hpc.core.interfaces import IClock, IEffects, IIds, IStore
from mqi_hpc.core.models import SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.next_task import task_of
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.domain.desk import Desk, OpenJob
from mqi_hpc.domain.submitter import Cancels, ambiguous, apply_submit
from mqi_hpc.domain.task_scheduler import TaskScheduler
from mqi_hpc.domain.watcher import Watcher
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.transfer_service import TransferService

_IDLE_SECONDS = 1.0


@dataclass(slots=True)
class Outage:
    """How the way to the cluster is: failures in a row, and what the last one said.

    `refused` tells that our key or the host's was refused: nothing is tried until a person acts.
    """

    failures: int = 0
    why: str = ""
    refused: bool = False


@dataclass(slots=True)
class _Polls:
    flying: bool = False
    due: float = 0.0
    wait: float = 0.0
    last_good: float | None = None
    cancelling: set[str] = field(default_factory=set)


class WorkflowOrchestrator:
    """Leads cases from folder to dose (IWorkflowOrchestrator).

    `outage` tells how the way to the cluster is, `good_looks` how often its queue has been seen.
    """

    def __init__(
        self,
        *,
        store: IStore,
        jobs: JobService,
        transfers: TransferService,
        scheduler: TaskScheduler,
        watcher: Watcher,
        desk: Desk,
        effects: IEffects,
        clock: IClock,
        ids: IIds,
        rhythm: PollRhythm,
        retry: RetryPolicy,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._transfers = transfers
        self._scheduler = scheduler
        self._watcher = watcher
        self._desk = desk
        self._effects = effects
        self._clock = clock
        self._ids = ids
        self._rhythm = rhythm
        self._retry = retry
        self._polls = _Polls(wait=rhythm.least)
        self._running = False
        self.outage = Outage()
        self.good_looks = 0
        self._refusals: dict[str, int] = {}
        self._log = structlog.get_logger("mqi_hpc.orchestrator")

    def process_case(self, case_id: str) -> None:
        """Take a case in hand: plan its job if it has none, and go on from where its job is."""
        self._scheduler.schedule_case(case_id)
        with self._store.transaction(write=False) as unit:
            jobs = unit.jobs.of_case(case_id)
        if not jobs:
            job = self._jobs.create_job(case_id)
            self._desk.tell(case_id, f"job {job.name} planned")
            return
        if jobs[-1].submit_state is SubmitState.SUBMITTING:
            # Its submit.sh may have run: whoever started it is gone, and its answer with them.
            with self._desk.open(jobs[-1].job_id) as work:
                ambiguous(work, "this program ended while it was being submitted")

    def fetch_again(self, case_id: str) -> bool:
        """Make a failed download of a case due again; False where there is none to repeat."""
        job_id = self._jobs.failed_download(case_id)
        if job_id is None:
            return False
        with self._desk.open(job_id) as work:
            task = task_of(work.tasks, TaskType.DOWNLOAD)
            work.put_task(task.evolve(status=TaskStatus.PENDING, phase="", detail=""), why="asked for again")
        return True

    def start(self) -> None:
        """Run until `stop` is called."""
        self.run_until(lambda: False)

    def stop(self) -> None:
        """Ask the loop to end after the turn it is in; jobs on the cluster run on."""
        self._running = False

    def run_until(self, enough: Callable[[], bool]) -> None:
        """Turn the loop until `enough` says so, or `stop` is called."""
        self._running = True
        while self._running and not enough():
            self.turn()
        # A chain that was refused half way leaves a held head behind, unless its cancel is let out.
        while self._running and self._polls.cancelling:
            self.turn()

    def turn(self) -> None:
        """Begin what is due, then wait for completions, at most until the next thing is due."""
        if not self.outage.refused:
            while (task := self._scheduler.get_next_task()) is not None:
                self._begin(task)
            self._poll()
        for completion in self._effects.completions(self._patience()):
            self._apply(completion)

    def _patience(self) -> float:
        waits = [_IDLE_SECONDS]
        if not self._polls.flying:
            waits.append(max(0.0, self._polls.due - self._clock.monotonic()))
        if (due := self._scheduler.next_due()) is not None:
            waits.append(due)
        return max(min(waits), 0.01)

    # What is begun

    def _begin(self, task: Task) -> None:
        with self._desk.open(task.job_id) as work:
            case_id, job = work.case.case_id, work.job
            if task.type is TaskType.INTERPRET:
                if not self._jobs.hold(work.unit, job):
                    self._scheduler.defer_task(task.task_id, self._rhythm.least)
                    return
                # Committed before anything is sent: after a crash it tells that something may have been.
                work.mark(SubmitState.SUBMITTING, "")
                work.notes.append("submitting")
            else:
                if task.status is TaskStatus.PENDING:
                    work.notes.append("uploading" if task.type is TaskType.UPLOAD else "fetching results")
                work.put_task(task.evolve(status=TaskStatus.RUNNING, phase="running"))
        if task.type is TaskType.UPLOAD:
            self._transfers.upload_case(case_id)
        elif task.type is TaskType.DOWNLOAD:
            self._transfers.download_results(case_id)
        else:
            folder = self._jobs.folder(case_id, job.name)
            self._effects.start(
                Submit(case_id=case_id, job_id=job.job_id, job_folder=folder, nonce=self._ids.nonce())
            )

    def _poll(self) -> None:
        if self._polls.flying or self._clock.monotonic() < self._polls.due:
            return
        effect = self._watcher.plan(self._scheduler.cases, self._ids.nonce())
        if effect is None:
            # Nothing to look at: a submission makes a look due at once.
            self._polls.last_good = None
            self._polls.due = self._clock.monotonic() + _IDLE_SECONDS
            return
        self._polls.flying = True
        self._effects.start(effect)

    # What comes back

    def _apply(self, completion: Completion) -> None:
        effect = completion.effect
        self._note_outage(completion)
        if isinstance(effect, Observe):
            self._observed(effect, completion)
        elif isinstance(effect, Submit):
            self._submitted(effect, completion)
        elif isinstance(effect, Cancel):
            self._polls.cancelling.discard(effect.job_id)
            with self._desk.open(effect.job_id) as work:
                said = completion.error or completion.output
                data = {"targets": [list(t) for t in effect.targets], "said": said[-500:]}
                work.unit.event("cancelled", effect.case_id, data)
                if completion.error is not None or completion.exit_code:
                    ids = " ".join(str(slurm_id) for _, slurm_id in effect.targets)
                    work.notes.append(f"not cancelled: {said[-500:]}; to do it by hand: scancel {ids}")
        else:
            self._transferred(effect, completion)

    def _note_outage(self, completion: Completion) -> None:
        watching = isinstance(completion.effect, Observe)
        if completion.failure not in (Failure.OUTAGE, Failure.ACCESS):
            if completion.error is None:
                if watching and self.outage.failures:
                    self._tell_all("the cluster answers again")
                self.outage = Outage()
            return
        if watching and not self.outage.failures:
            self._tell_all(f"the cluster does not answer, and is asked again: {completion.error}")
        self.outage = Outage(
            self.outage.failures + 1, completion.error or "", completion.failure is Failure.ACCESS
        )
        self._log.warning("cluster not reached", failures=self.outage.failures, why=self.outage.why)

    @property
    def refusals(self) -> int:
        """The most times in a row that Slurm has not taken a chain which it may take later."""
        return max(self._refusals.values(), default=0)

    def _tell_all(self, text: str) -> None:
        for case_id in self._scheduler.cases:
            self._desk.tell(case_id, text)

    def _backoff(self) -> float:
        return self._retry.wait(max(self.outage.failures, 1), self._ids.draw())

    def _observed(self, effect: Observe, completion: Completion) -> None:
        now = self._clock.monotonic()
        polls = self._polls
        polls.flying = False
        if completion.error is not None:
            polls.last_good = None
            polls.due = now + max(self._backoff(), polls.wait)
            return
        elapsed = 0.0 if polls.last_good is None else now - polls.last_good
        seen = self._watcher.apply(effect, completion, elapsed)
        polls.last_good = now if seen.good else None
        self.good_looks += seen.good
        for note in seen.notes:
            self._log.warning("poll", note=note)
        polls.wait = self._rhythm.next_wait(polls.wait, changed=seen.changed, draw=self._ids.draw())
        polls.due = now + polls.wait
        for job_id, targets in seen.cancels:
            self._cancel(job_id, targets)

    def _submitted(self, effect: Submit, completion: Completion) -> None:
        with self._desk.open(effect.job_id) as work:
            again, cancels = apply_submit(work, effect, completion)
            head = task_of(work.tasks, TaskType.INTERPRET)
        if again:
            self._refusals[head.task_id] = self._refusals.get(head.task_id, 0) + 1
            wait = self._retry.wait(self._refusals[head.task_id], self._ids.draw())
            self._scheduler.defer_task(head.task_id, max(wait, self._backoff()))
        else:
            self._refusals.pop(head.task_id, None)
            self._scheduler.complete_task(head.task_id)
        if cancels:
            self._cancel(effect.job_id, cancels)
        self._polls.due = self._clock.monotonic()
        self._polls.wait = self._rhythm.least

    def _cancel(self, job_id: str, targets: Cancels) -> None:
        if job_id in self._polls.cancelling:
            return
        with self._desk.open(job_id) as work:
            case_id = work.case.case_id
            work.unit.event("cancelling", case_id, {"targets": [list(target) for target in targets]})
        self._polls.cancelling.add(job_id)
        self._effects.start(Cancel(case_id=case_id, job_id=job_id, targets=targets))

    def _transferred(self, effect: Upload | Download, completion: Completion) -> None:
        kind = TaskType.UPLOAD if isinstance(effect, Upload) else TaskType.DOWNLOAD
        with self._desk.open(effect.job_id) as work:
            task = task_of(work.tasks, kind)
            again = self._apply_transfer(work, task, completion)
        if again:
            self._scheduler.defer_task(task.task_id, self._backoff())
        else:
            self._scheduler.complete_task(task.task_id)

    def _apply_transfer(self, work: OpenJob, task: Task, completion: Completion) -> bool:
        """Bring the job in line with how a transfer went; True: it is to be tried again."""
        upload = task.type is TaskType.UPLOAD
        if completion.error is None:
            parameters = task.parameters if upload else {**task.parameters, "delivered": completion.output}
            work.put_task(
                task.evolve(status=TaskStatus.COMPLETED, phase="done", detail="", parameters=parameters)
            )
            if upload:
                work.mark(SubmitState.UPLOADED, "")
            return False
        work.notes.append(f"{'upload' if upload else 'download'}: {completion.error}")
        if completion.failure in (Failure.OUTAGE, Failure.ACCESS, Failure.SPACE):
            phase = "no space" if completion.failure is Failure.SPACE else "paused"
            work.put_task(task.evolve(phase=phase, detail=completion.error))
            return True
        work.put_task(task.evolve(status=TaskStatus.FAILED, phase="failed", detail=completion.error))
        if upload:
            work.mark(SubmitState.REFUSED, completion.error)
            work.end_all(f"the upload failed: {completion.error}")
        return False
