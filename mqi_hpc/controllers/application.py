"""The use cases: take the lock, register, lead cases, and tell how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mqi_hpc.core.errors import AuthenticationError, ConnectionError, LockHeld
from mqi_hpc.core.interfaces import IClock, IEffects, ILifecycleManager
from mqi_hpc.core.models import CaseStatus, SubmitState
from mqi_hpc.core.outcome import exit_code
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.report_service import CaseReport, ReportService
from mqi_hpc.services.resource_service import ResourceService

_OPEN = frozenset({CaseStatus.NEW, CaseStatus.QUEUED, CaseStatus.PROCESSING})
_GOOD_LOOKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a submit ended: the cases, what was refused, what a person should know, and the exit code."""

    cases: tuple[CaseReport, ...]
    rejected: tuple[str, ...]
    notes: tuple[str, ...]
    exit_code: int


class Application:
    """The program (IApplication): one at a time on a store."""

    def __init__(
        self,
        *,
        lifecycle: ILifecycleManager,
        cases: CaseService,
        resources: ResourceService,
        reports: ReportService,
        orchestrator: WorkflowOrchestrator,
        effects: IEffects,
        clock: IClock,
        retry: RetryPolicy,
        submit_seconds: float,
    ) -> None:
        self._lifecycle = lifecycle
        self._cases = cases
        self._resources = resources
        self._reports = reports
        self._orchestrator = orchestrator
        self._effects = effects
        self._clock = clock
        self._retry = retry
        self._submit_seconds = submit_seconds
        self._stopped = False

    def initialize(self) -> None:
        """Take the lock; raises LockHeld where another instance has it."""
        if not self._lifecycle.acquire_lock():
            raise LockHeld("another mqi-hpc works on this store; wait until it has ended")
        self._lifecycle.register_shutdown_handler(self._stop)

    def run(self) -> None:
        """Lead every unfinished case of the store until asked to stop."""
        for report in self._reports.cases():
            if CaseStatus(report.status) in _OPEN:
                self._orchestrator.process_case(report.case_id)
        self._orchestrator.start()

    def shutdown(self) -> None:
        """End effects and give the lock back; jobs on the cluster run on."""
        self._effects.close()
        self._lifecycle.release_lock()

    def submit(self, folder: str, deliveries: Sequence[str] | None, *, wait: bool) -> Outcome:
        """Register a folder's cases and lead them until their chains stand, or with `wait` to their end.

        Raises RejectedCase where the folder holds no case, ConnectionError where the cluster cannot be
        reached; what was registered stays, and is taken up when it is submitted again.
        """
        found = self._cases.register(folder, deliveries)
        for case in found.cases:
            # Results that did not come home are fetched again; nothing is computed twice.
            if case.status in _OPEN or self._orchestrator.fetch_again(case.case_id):
                self._resources.require_disk_space()
                self._orchestrator.process_case(case.case_id)
        ids = [case.case_id for case in found.cases]
        watch = _Watch(self._reports, self._orchestrator, self._clock, self._retry, self._submit_seconds)
        self._orchestrator.run_until(lambda: self._stopped or watch.enough(ids, wait=wait))
        reports = tuple(self._reports.case(case_id) for case_id in ids)
        if watch.unreachable is not None:
            raise watch.unreachable
        rejected = tuple(line for one in found.rejected for line in (one.reason, *map(str, one.faults)))
        notes = (*found.notes, *watch.notes)
        if self._stopped:
            return Outcome(cases=reports, rejected=rejected, notes=(*notes, _STOPPED), exit_code=130)
        code = _exit_code(reports, rejected=bool(rejected), wait=wait)
        return Outcome(cases=reports, rejected=rejected, notes=notes, exit_code=code)

    def _stop(self) -> None:
        self._stopped = True
        self._orchestrator.stop()


_STOPPED = "stopped; what is on the cluster runs on: submit the folder again to take it up"


class _Watch:
    """Says when a submit has waited enough."""

    def __init__(
        self,
        reports: ReportService,
        orchestrator: WorkflowOrchestrator,
        clock: IClock,
        retry: RetryPolicy,
        submit_seconds: float,
    ) -> None:
        self._reports = reports
        self._orchestrator = orchestrator
        self._clock = clock
        self._retry = retry
        self._submit_seconds = submit_seconds
        self._doubt_since: float | None = None
        self._standing: frozenset[str] | None = None
        self.unreachable: ConnectionError | None = None
        self.notes: tuple[str, ...] = ()

    def enough(self, ids: Sequence[str], *, wait: bool) -> bool:
        reports = [self._reports.case(case_id) for case_id in ids]
        pending = [report for report in reports if CaseStatus(report.status) in _OPEN]
        standing = frozenset(r.case_id for r in pending if r.submission == SubmitState.STANDING)
        if self._standing is None:
            self._standing = standing
        if not pending:
            return True
        if self._given_up(all_stand=len(standing) == len(pending), wait=wait):
            return True
        if all(report.submission == SubmitState.AMBIGUOUS for report in pending):
            return self._doubted()
        self._doubt_since = None
        if any(task.verdict == "no space" for report in pending for task in report.tasks):
            self.notes = ("there is too little space; make room and submit the folder again",)
            return True
        if wait or len(standing) < len(pending):
            return False
        fresh = not (standing & self._standing)
        return fresh or self._orchestrator.good_looks >= _GOOD_LOOKS

    def _given_up(self, *, all_stand: bool, wait: bool) -> bool:
        outage = self._orchestrator.outage
        if outage.refused:
            self.unreachable = AuthenticationError(outage.why)
        elif self._orchestrator.refusals >= self._retry.max_attempts and not wait:
            self.unreachable = ConnectionError(
                "Slurm does not take the chain now",
                fix="`mqi-hpc show` says why; nothing is lost: submit the folder again later, or with --wait",
            )
        elif outage.failures >= self._retry.max_attempts and not (all_stand and wait):
            self.unreachable = ConnectionError(
                outage.why, fix="Nothing is lost: submit the folder again when the cluster can be reached"
            )
        return self.unreachable is not None

    def _doubted(self) -> bool:
        """Whether a submission of unknown fate has been looked for as long as submit.sh can live."""
        now = self._clock.monotonic()
        if self._doubt_since is None:
            self._doubt_since = now
        return now - self._doubt_since >= self._submit_seconds and self._orchestrator.good_looks > 0


def _exit_code(reports: Sequence[CaseReport], *, rejected: bool, wait: bool) -> int:
    codes = {
        0
        if CaseStatus(report.status) in _OPEN and not wait and report.submission == SubmitState.STANDING
        else exit_code(CaseStatus(report.status))
        for report in reports
    }
    if rejected:
        codes.add(1)
    return codes.pop() if len(codes) == 1 else 3
