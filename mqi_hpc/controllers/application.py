"""The use cases: take the lock, register, lead cases, carry orders out, and tell how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mqi_hpc.controllers.watch import OPEN, Watch
from mqi_hpc.core.errors import LockHeld
from mqi_hpc.core.interfaces import IClock, IEffects, ILifecycleManager
from mqi_hpc.core.models import CaseStatus, SubmitState
from mqi_hpc.core.outcome import exit_code
from mqi_hpc.core.requests import Request, Verb
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.domain.orders import Orders
from mqi_hpc.domain.request_desk import RequestDesk
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.services.case_service import CaseService, Registration
from mqi_hpc.services.report_service import CaseReport, ReportService
from mqi_hpc.services.resource_service import ResourceService


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended: the cases, what was refused, what a person should know, and the exit code."""

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
        orders: Orders,
        requests: RequestDesk,
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
        self._orders = orders
        self._requests = requests
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
        """Lead every unfinished case of the store until asked to stop; looks for no new ones."""
        for report in self._reports.cases():
            if CaseStatus(report.status) in OPEN:
                self._orchestrator.process_case(report.case_id)

        def enough() -> bool:
            self._requests.serve()
            return self._stopped

        self._orchestrator.run_until(enough)

    def shutdown(self) -> None:
        """End effects and give the lock back; jobs on the cluster run on."""
        self._effects.close()
        self._lifecycle.release_lock()

    def submit(
        self, folder: str, deliveries: Sequence[str] | None, *, wait: bool, priority: int | None = None
    ) -> Outcome:
        """Register a folder's cases and lead them until their chains stand, or with `wait` to their end.

        Raises RejectedCase where the folder holds no case, ConnectionError where the cluster cannot be
        reached; what was registered stays, and is taken up when it is submitted again.
        """
        found = self._cases.register(folder, deliveries)
        for case in found.cases:
            if priority is not None:
                self._orders.prioritise(case.case_id, priority)
            # Results that did not come home are fetched again; nothing is computed twice.
            if case.status in OPEN or self._orders.fetch_failed(case.case_id):
                self._resources.require_disk_space()
                self._orchestrator.process_case(case.case_id)
        return self._lead([case.case_id for case in found.cases], found, wait=wait)

    def order(self, request: Request, *, wait: bool) -> Outcome:
        """Carry an order out, and lead its case until its chain stands, or with `wait` to its end.

        Raises ProcessingError where the order cannot be carried out, ConnectionError as `submit`.
        """
        said = self._orders.carry_out(request)
        self._orchestrator.process_case(request.case_id)
        outcome = self._lead([request.case_id], Registration((), (), (said,)), wait=wait)
        return ordered(request, outcome)

    def lead_too(self, case_id: str) -> None:
        """Lead another case beside those that this command is about."""
        self._orchestrator.process_case(case_id)

    def lead(self, case_ids: Sequence[str], *, wait: bool) -> Outcome:
        """Lead cases that are registered already, as `submit` does."""
        for case_id in case_ids:
            self._orchestrator.process_case(case_id)
        return self._lead(case_ids, Registration((), (), ()), wait=wait)

    def _lead(self, ids: Sequence[str], found: Registration, *, wait: bool) -> Outcome:
        watch = Watch(self._reports, self._orchestrator, self._clock, self._retry, self._submit_seconds)

        def enough() -> bool:
            self._requests.serve()
            return self._stopped or watch.enough(ids, wait=wait)

        self._orchestrator.run_until(enough)
        reports = tuple(self._reports.case(case_id) for case_id in ids)
        if watch.unreachable is not None:
            raise watch.unreachable
        rejected = refused_lines(found)
        notes = (*found.notes, *watch.notes)
        if self._stopped:
            return Outcome(
                cases=reports, rejected=rejected, notes=(*notes, _STOPPED), exit_code=_STOPPED_CODE
            )
        code = outcome_code(reports, rejected=bool(rejected), wait=wait)
        return Outcome(cases=reports, rejected=rejected, notes=notes, exit_code=code)

    def _stop(self) -> None:
        self._stopped = True
        self._orchestrator.stop()


_STOPPED = "stopped; what is on the cluster runs on: submit the folder again to take it up"
_STOPPED_CODE = 130


def ordered(request: Request, outcome: Outcome) -> Outcome:
    """Return how an order ended: a case that was cancelled is no failure of a cancel."""
    done = request.verb is Verb.CANCEL and outcome.exit_code != _STOPPED_CODE
    return replace(outcome, exit_code=0) if done else outcome


def refused_lines(found: Registration) -> tuple[str, ...]:
    """Return what of a folder was refused, and why, as lines."""
    return tuple(line for one in found.rejected for line in (one.reason, *map(str, one.faults)))


def outcome_code(reports: Sequence[CaseReport], *, rejected: bool, wait: bool, led: bool = False) -> int:
    """Return a command's exit code: 0 fine, 1 failed or rejected, 3 of different kinds.

    `led`: beside `reports` there are cases that another process has in hand, which is fine.
    """
    codes = {
        0
        if CaseStatus(report.status) in OPEN and not wait and report.submission == SubmitState.STANDING
        else exit_code(CaseStatus(report.status))
        for report in reports
    }
    codes |= {0} if led else set()
    codes |= {1} if rejected else set()
    return codes.pop() if len(codes) == 1 else 3
