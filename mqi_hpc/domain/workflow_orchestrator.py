"""The loop: begins what is due, hands effects out, and applies what comes back, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from mqi_hpc.core.effects import (
    Cancel,
    Completion,
    Download,
    Failure,
    Observe,
    Prune,
    Scan,
    Submit,
    Survey,
    Upload,
)
from mqi_hpc.core.errors import ConfigurationError, ProcessingError
from mqi_hpc.core.failpoints import Failpoint, reach
from mqi_hpc.core.interfaces import IClock, IEffects, IIds, IStore
from mqi_hpc.core.models import STAGE_OF, CaseStatus, SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.next_task import head_of, task_of
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.domain.adoption import Adoption
from mqi_hpc.domain.desk import OUR_FAULT, Desk
from mqi_hpc.domain.outage import Outage
from mqi_hpc.domain.polls import Polls
from mqi_hpc.domain.retries import Retries
from mqi_hpc.domain.scans import Scans
from mqi_hpc.domain.submitter import (
    DEFERRED,
    LIMITED,
    NOT_TAKEN,
    ambiguous,
    apply_submit,
    limit_refusals,
)
from mqi_hpc.domain.task_scheduler import TaskScheduler
from mqi_hpc.domain.transfers import apply_transfer
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.transfer_service import TransferService

_IDLE_SECONDS = 1.0
_RETRY_AGAIN_SECONDS = 600.0
_FAULT_SECONDS = 600.0
"""Pause after a fault of this program over one job: it may last, and the others are led on."""
_LIMIT_SECONDS = 900.0
"""Longest pause before a chain is offered again that a limit kept out: the site's slurmctld is spared."""
_SILENT = "does not answer, and is asked again"


_OfJob = Submit | Cancel | Upload | Download | Survey
_NAMES: dict[type[_OfJob], str] = {
    Submit: "submission", Cancel: "scancel", Upload: "upload", Download: "download", Survey: "survey",
}  # fmt: skip


@dataclass(slots=True)
class Counts:
    """What the loop has done since it began, for the metrics."""

    submissions: int = 0
    uploads: int = 0
    downloads: int = 0
    outages: int = 0


class WorkflowOrchestrator:
    """Leads cases from folder to dose (IWorkflowOrchestrator).

    `outage` tells how the way to the cluster is, `polls` how it was looked at, `counts` what was done.
    Without `scans`, no new cases are looked for.
    """

    def __init__(
        self,
        *,
        store: IStore,
        jobs: JobService,
        transfers: TransferService,
        scheduler: TaskScheduler,
        polls: Polls,
        desk: Desk,
        effects: IEffects,
        clock: IClock,
        ids: IIds,
        slots_wait: float,
        retry: RetryPolicy,
        retries: Retries,
        scans: Scans | None = None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._transfers = transfers
        self._scheduler = scheduler
        self.polls = polls
        self._desk = desk
        self._effects = effects
        self._clock = clock
        self._ids = ids
        self._slots_wait = slots_wait
        self._retry = retry
        self._retries = retries
        self._scans = scans
        self._adoption = Adoption(desk, jobs, effects)
        self._running = False
        self._quiet = False
        self.outage = Outage(retry)
        self.counts = Counts()
        self._sent: set[str] = set()
        self._tries: dict[str, int] = {}
        self._refusals: dict[str, int] = {}
        self._log = structlog.get_logger("mqi_hpc.orchestrator")

    def process_case(self, case_id: str) -> None:
        """Take a case in hand: plan its job if it has none, and go on from where its job is.

        One that was cancelled, or refused, before it had a job gets none.
        """
        with self._store.transaction(write=False) as unit:
            case, jobs = unit.cases.get(case_id), unit.jobs.of_case(case_id)
        if case is not None and not jobs and case.status in (CaseStatus.CANCELLED, CaseStatus.REJECTED):
            return
        self._scheduler.schedule_case(case_id)
        self.polls.soon()
        if not jobs:
            reach(Failpoint.PLAN)
            job = self._jobs.create_job(case_id)
            reach(Failpoint.PLAN_KEPT)
            with self._desk.open(job.job_id) as work:
                work.notes.append(f"job {job.name} planned")
            return
        if jobs[-1].submit_state is SubmitState.SUBMITTING and jobs[-1].job_id not in self._sent:
            # Its submit.sh may have run: whoever started it is gone, and its answer with them.
            with self._desk.open(jobs[-1].job_id) as work:
                ambiguous(work, "this program ended while it was being submitted")

    def take(self, case_id: str) -> None:
        """Take a case in hand because a person asks: where the cluster is away, it is tried again at once."""
        self.outage.retry_now()
        self.process_case(case_id)

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases in hand."""
        return self._scheduler.cases

    @property
    def refusals(self) -> int:
        """The most times in a row that Slurm has not taken a chain which it may take later."""
        return max(self._refusals.values(), default=0)

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
        while self._running and self.polls.cancelling:
            self.turn()

    def turn(self) -> None:
        """Begin what is due, then wait for completions, at most until the next thing is due."""
        if not self._quiet:
            if self._scans is not None:
                self._scans.begin()
            self._begin_due()
        for completion in self._effects.completions(self._patience()):
            self._apply(completion)

    def drain(self) -> bool:
        """Begin nothing more, let one turn pass; True when no command is under way that must not be cut."""
        self._quiet = True
        self.turn()
        return not self._sent and not self.polls.cancelling

    def _begin_due(self) -> None:
        while (found := self._scheduler.due_retry()) is not None:
            self._begin_retry(*found)
        now = self._clock.monotonic()
        if self.outage.active:
            # One attempt, of whatever is there; a look tells most.
            if self.outage.may_try(now) and (
                self.polls.begin(self.cases, even_early=True) or self._begin_next()
            ):
                self.outage.trying()
            return
        while self._begin_next():
            pass
        self.polls.begin(self.cases)

    def _begin_retry(self, case_id: str, names: tuple[str, ...]) -> None:
        try:
            self._retries.carry_out(case_id, names)
        except (ConfigurationError, ProcessingError) as error:
            # A template or a machine that is not there now: what was promised stays so.
            self._scheduler.defer_retry(case_id, _RETRY_AGAIN_SECONDS)
            self._desk.tell(case_id, f"cannot be retried now: {error}")

    def _begin_next(self) -> bool:
        """Begin the next task, if there is one; True where an effect was started."""
        while (task := self._scheduler.get_next_task()) is not None:
            with self._desk.apart(task.job_id, "it cannot be gone on with") as tried:
                if self._begin(task):
                    return True
            if not tried.well:
                self._unsure(task.job_id)
                self._scheduler.defer_task(task.task_id, _FAULT_SECONDS)
        return False

    def _unsure(self, job_id: str) -> None:
        """Hold a job that was to be submitted when this program failed: what of it went out, a look tells."""
        self._sent.discard(job_id)
        with self._desk.apart(job_id, "it cannot be held"), self._desk.open(job_id) as work:
            if work.job.submit_state is SubmitState.SUBMITTING:
                ambiguous(work, f"{OUR_FAULT}, while it was being submitted")
            self._scheduler.complete_task(head_of(work.tasks).task_id)

    def _patience(self) -> float:
        if self._quiet:
            return _IDLE_SECONDS
        now = self._clock.monotonic()
        waits = [_IDLE_SECONDS]
        if self.outage.active:
            # Due, and nothing was there to try it with: what comes up is seen at the next turn.
            if due := self.outage.wait(now):
                waits.append(due)
        else:
            if (due := self.polls.wait()) is not None:
                waits.append(due)
            if (due := self._scheduler.next_due()) is not None:
                waits.append(due)
        if self._scans is not None:
            waits.append(self._scans.wait())
        return max(min(waits), 0.01)

    # What is begun

    def _begin(self, task: Task) -> bool:
        with self._desk.open(task.job_id) as work:
            case_id, job = work.case.case_id, work.job
            if task.type in STAGE_OF:
                if not self._jobs.hold(work.unit, job):
                    self._scheduler.defer_task(task.task_id, self._slots_wait, for_slots=True)
                    return False
                # Committed before anything is sent: after a crash it tells that something may have been.
                reach(Failpoint.SUBMIT)
                work.mark(SubmitState.SUBMITTING, "")
                if task.phase not in (DEFERRED, LIMITED, NOT_TAKEN):
                    work.notes.append("submitting")
            elif task.status is TaskStatus.PENDING:
                # Tried again, it stays as it is: why it waits is told until it has gone well.
                reach(Failpoint.UPLOAD if task.type is TaskType.UPLOAD else Failpoint.DOWNLOAD)
                work.notes.append("uploading" if task.type is TaskType.UPLOAD else "fetching results")
                work.put_task(task.evolve(status=TaskStatus.RUNNING, phase="running"))
        if task.type is TaskType.UPLOAD:
            self.counts.uploads += 1
            reach(Failpoint.UPLOAD_BEGUN)
            self._transfers.upload_case(case_id)
        elif task.type is TaskType.DOWNLOAD:
            self.counts.downloads += 1
            reach(Failpoint.DOWNLOAD_BEGUN)
            self._transfers.download_results(case_id)
        else:
            self.counts.submissions += 1
            folder = self._jobs.folder(case_id, job.name)
            self._sent.add(job.job_id)
            reach(Failpoint.SUBMIT_KEPT)
            self._effects.start(
                Submit(case_id=case_id, job_id=job.job_id, job_folder=folder, nonce=self._ids.nonce())
            )
        return True

    # What comes back

    def _apply(self, completion: Completion) -> None:
        effect = completion.effect
        if isinstance(effect, Scan):
            for case_id in self._scans.apply(completion) if self._scans is not None else ():
                self._take_up(case_id)
            return
        self._note_outage(completion)
        if isinstance(effect, Observe):
            self.polls.observed(effect, completion)
        elif not isinstance(effect, Prune):
            what = f"the answer to its {_NAMES[type(effect)]} cannot be taken"
            with self._desk.apart(effect.job_id, what) as tried:
                self._answered(effect, completion)
            if not tried.well:
                self._not_taken(effect)

    def _answered(self, effect: _OfJob, completion: Completion) -> None:
        if isinstance(effect, Submit):
            self._submitted(effect, completion)
        elif isinstance(effect, Cancel):
            self.polls.cancelled(effect, completion)
        elif isinstance(effect, Survey):
            self._surveyed(effect, completion)
        else:
            self._transferred(effect, completion)

    def _not_taken(self, effect: _OfJob) -> None:
        """Have what belongs to an answer that this program failed over tried again later, or looked for."""
        if isinstance(effect, Submit):
            self._unsure(effect.job_id)
        elif not isinstance(effect, Cancel):
            kind = TaskType.DOWNLOAD if isinstance(effect, Download) else TaskType.UPLOAD
            self._scheduler.defer_task(f"{effect.job_id}/{kind}", _FAULT_SECONDS)

    def _take_up(self, case_id: str) -> None:
        try:
            self.process_case(case_id)
        except (ConfigurationError, ProcessingError) as error:
            # A template or a machine that is not there: the next case may be of another.
            self._desk.tell(case_id, f"cannot be begun: {error}")

    def _note_outage(self, completion: Completion) -> None:
        now = self._clock.monotonic()
        if completion.failure not in (Failure.OUTAGE, Failure.ACCESS):
            if completion.error is not None:
                self.outage.undecided(now)
            elif self.outage.succeeded():
                self._tell_all("the cluster answers again")
                self._scheduler.resume()
            return
        first = not self.outage.active
        refused = completion.failure is Failure.ACCESS
        new = self.outage.failed(now, completion.error or "", refused=refused, draw=self._ids.draw())
        if first:
            self.counts.outages += 1
            what = "refuses us, and is asked again in 15 minutes" if refused else _SILENT
            self._tell_all(f"the cluster {what}: {completion.error}")
        if new:
            self._log.warning("cluster not reached", failures=self.outage.failures, why=self.outage.why)

    def _tell_all(self, text: str) -> None:
        for case_id in self._scheduler.cases:
            self._desk.tell(case_id, text)

    def _submitted(self, effect: Submit, completion: Completion) -> None:
        self._sent.discard(effect.job_id)
        reach(Failpoint.SUBMIT_ANSWERED)
        with self._desk.open(effect.job_id) as work:
            again, cancels = apply_submit(work, effect, completion)
            limits, head = limit_refusals(head_of(work.tasks)), head_of(work.tasks).task_id
            stands = work.job.submit_state is SubmitState.STANDING
        if stands:
            reach(Failpoint.STANDING_KEPT)
        if again:
            wait = self._wait(self._refusals, head)
            if limits:
                wait = replace(self._retry, max_delay=_LIMIT_SECONDS).wait(limits, self._ids.draw())
            self._scheduler.defer_task(head, wait)
        else:
            self._refusals.pop(head, None)
            self._scheduler.complete_task(head)
        if cancels:
            self.polls.cancel(effect.job_id, cancels)
        self.polls.soon()

    def _wait(self, counts: dict[str, int], task_id: str) -> float:
        """Count a task's failure in a row, and return how long (s) it waits before it is tried again."""
        counts[task_id] = counts.get(task_id, 0) + 1
        return self._retry.wait(counts[task_id], self._ids.draw())

    def _transferred(self, effect: Upload | Download, completion: Completion) -> None:
        if completion.failure is Failure.TAKEN:
            self._adoption.begin(effect.case_id, effect.job_id)
            return
        kind = TaskType.UPLOAD if isinstance(effect, Upload) else TaskType.DOWNLOAD
        upload = kind is TaskType.UPLOAD
        if completion.error is None:
            reach(Failpoint.UPLOAD_DONE if upload else Failpoint.DOWNLOAD_DONE)
        with self._desk.open(effect.job_id) as work:
            task = task_of(work.tasks, kind)
            again = apply_transfer(work, task, completion)
        if completion.error is None:
            reach(Failpoint.UPLOAD_KEPT if upload else Failpoint.DOWNLOAD_KEPT)
        self._transfer_ended(task.task_id, again=again)

    def _surveyed(self, effect: Survey, completion: Completion) -> None:
        # The upload that found its place taken was not over until now.
        again = self._adoption.apply(effect, completion)
        self._transfer_ended(f"{effect.job_id}/{TaskType.UPLOAD}", again=again)
        # One that was called off meanwhile was let go of.
        self._scheduler.schedule_case(effect.case_id)
        self.polls.soon()

    def _transfer_ended(self, task_id: str, *, again: bool) -> None:
        if again:
            self._scheduler.defer_task(task_id, self._wait(self._tries, task_id))
        else:
            self._tries.pop(task_id, None)
            self._scheduler.complete_task(task_id)
