"""Says when a command has waited enough for its cases."""

from __future__ import annotations

from collections.abc import Sequence

from mqi_hpc.core.errors import AuthenticationError, ConnectionError
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.core.models import CaseStatus, SubmitState, TaskStatus, TaskType
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.services.report_service import CaseReport, ReportService, TaskReport

OPEN = frozenset({CaseStatus.NEW, CaseStatus.QUEUED, CaseStatus.PROCESSING})
_GOOD_LOOKS = 2
_DOUBT_FACTOR = 1.5


class Watch:
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
        """Whether the command may end: the cases have, or (without `wait`) their chains stand and what can be
        fetched is at home.
        """
        reports = [self._reports.case(case_id) for case_id in ids]
        pending = [report for report in reports if CaseStatus(report.status) in OPEN]
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
        if stuck := [task for report in pending for task in report.tasks if _needs_a_person(task)]:
            self.notes = tuple(f"{task.task} waits: {task.detail}. Then submit it again" for task in stuck)
            return True
        if wait or len(standing) < len(pending) or any(map(_comes_home, pending)):
            return False
        fresh = not (standing & self._standing)
        looked = self._orchestrator.polls.good_looks >= _GOOD_LOOKS
        return fresh or looked or all(map(_only_retried, pending))

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
        """Whether a submission of unknown fate has been looked for longer than recovery takes."""
        now = self._clock.monotonic()
        if self._doubt_since is None:
            self._doubt_since = now
        return (
            now - self._doubt_since >= _DOUBT_FACTOR * self._submit_seconds
            and self._orchestrator.polls.good_looks > 0
        )


def _needs_a_person(task: TaskReport) -> bool:
    return task.task in (TaskType.UPLOAD, TaskType.DOWNLOAD) and task.verdict in ("no space", "no folder")


def _only_retried(report: CaseReport) -> bool:
    """Whether nothing of a case goes on now, and it is processing for a retry that is to come."""
    states = [*(task.status for task in report.tasks), *(beam.status for beam in report.beams)]
    return all(TaskStatus(state).terminal for state in states) and any(
        one.at is not None for one in report.next
    )


def _comes_home(report: CaseReport) -> bool:
    """Whether results are there and not at home yet: nobody else fetches them when the command has ended."""
    tasks = {task.task: TaskStatus(task.status) for task in report.tasks}
    fetched = tasks.get(TaskType.DOWNLOAD, TaskStatus.COMPLETED).terminal
    return tasks.get(TaskType.CONVERT) is TaskStatus.COMPLETED and not fetched
