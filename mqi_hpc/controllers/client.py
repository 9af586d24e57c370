"""The commands beside a running daemon: what changes something is asked of it, and its answer is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mqi_hpc.controllers.application import Application, Outcome, ordered, outcome_code, refused_lines
from mqi_hpc.controllers.watch import OPEN
from mqi_hpc.core.errors import LockHeld, ProcessingError
from mqi_hpc.core.models import CaseStatus, SubmitState, TaskStatus, TaskType
from mqi_hpc.core.requests import Reply, Request, Verb
from mqi_hpc.services.case_service import CaseService, Registration
from mqi_hpc.services.report_service import CaseReport, ReportService

_PATIENCE = 60.0
"""Seconds in which whoever holds the lock should answer: its loop turns every second."""
_LOOK_SECONDS = 0.5
_GRACE_LOOKS = 40
"""Looks in a row at which nobody held the lock before a daemon's place is taken: it may be restarting."""
_SEND_LOOKS = 240
"""Looks at which another command's sending is watched, before the rest is left to it."""


class IMailbox(Protocol):
    """The asking side of requests."""

    def leave(self, request: Request) -> None: ...  # noqa: D102 - told above
    def await_reply(self, request_id: str, seconds: float) -> Reply | None: ...  # noqa: D102 - told above


class Client:
    """Submits and orders through whoever holds the lock.

    `nobody_leads` says whether the lock is free at this moment; `take_over` takes it, and returns None where
    another was faster.
    """

    def __init__(
        self,
        *,
        cases: CaseService,
        reports: ReportService,
        mailbox: IMailbox,
        new_id: Callable[[], str],
        sleep: Callable[[float], None],
        nobody_leads: Callable[[], bool],
        take_over: Callable[[], Application | None],
    ) -> None:
        self._cases = cases
        self._reports = reports
        self._mailbox = mailbox
        self._new_id = new_id
        self._sleep = sleep
        self._nobody_leads = nobody_leads
        self._take_over = take_over

    def submit(
        self, folder: str, deliveries: Sequence[str] | None, *, wait: bool, priority: int | None = None
    ) -> Outcome:
        """Register a folder's cases, and have them taken in hand; raises RejectedCase, LockHeld."""
        found = self._cases.register(folder, deliveries)
        stays = True
        for case in found.cases:
            if self._to_lead(self._reports.case(case.case_id)):
                request = Request(
                    request_id=self._new_id(),
                    verb=Verb.LEAD,
                    case_id=case.case_id,
                    who="submit",
                    priority=priority,
                )
                stays = self._ask(request).stays and stays
        return self._outcome([case.case_id for case in found.cases], found, wait=wait, stays=stays)

    def order(self, request: Request, *, wait: bool) -> Outcome:
        """Have an order carried out; raises ProcessingError with the answer where it was refused."""
        reply = self._ask(request)
        found = Registration((), (), (reply.said,))
        outcome = self._outcome([request.case_id], found, wait=wait, stays=reply.stays)
        return ordered(request, outcome)

    def _to_lead(self, report: CaseReport) -> bool:
        # Results that did not come home are fetched again; nothing is computed twice.
        return CaseStatus(report.status) in OPEN or any(
            task.task == TaskType.DOWNLOAD and task.status == TaskStatus.FAILED for task in report.tasks
        )

    def _ask(self, request: Request) -> Reply:
        self._mailbox.leave(request)
        reply = self._mailbox.await_reply(request.request_id, _PATIENCE)
        if reply is None:
            raise LockHeld(
                f"another mqi-hpc holds the store and has not answered for {_PATIENCE:.0f} s",
                fix="See whether it still moves: its log, `systemctl status`; the request was withdrawn",
            )
        if reply.refused:
            raise ProcessingError(reply.said, fix=reply.fix)
        return reply

    def _outcome(self, ids: Sequence[str], found: Registration, *, wait: bool, stays: bool) -> Outcome:
        free, looks, notes = 0, 0, found.notes
        while any(_unfinished(report, wait=wait, stays=stays) for report in self._all(ids)):
            free = free + 1 if self._nobody_leads() else 0
            # Another command ends with its own cases, and nobody comes after it: no need to wait.
            if free > (_GRACE_LOOKS if stays else 0) and (application := self._take_over()) is not None:
                return _beside(application.lead(ids, wait=wait), found)
            looks += 1
            if not wait and looks >= _SEND_LOOKS:
                notes = (*notes, "another command is still sending it; `mqi-hpc show` tells how it stands")
                break
            self._sleep(_LOOK_SECONDS)
        reports, rejected = self._all(ids), refused_lines(found)
        # What is open is led by another process: that is what was asked for.
        known = [report for report in reports if wait or CaseStatus(report.status) not in OPEN]
        code = outcome_code(known, rejected=bool(rejected), wait=wait, led=len(reports) > len(known))
        return Outcome(cases=reports, rejected=rejected, notes=notes, exit_code=code)

    def _all(self, ids: Sequence[str]) -> tuple[CaseReport, ...]:
        return tuple(self._reports.case(case_id) for case_id in ids)


def _unfinished(report: CaseReport, *, wait: bool, stays: bool) -> bool:
    """Whether there is something to wait for: the end, or that the chain stands if nobody would see to it."""
    if CaseStatus(report.status) not in OPEN:
        return False
    return wait or (not stays and report.submission != SubmitState.STANDING)


def _beside(led: Outcome, found: Registration) -> Outcome:
    """Return how leading ended, with what registering found."""
    rejected = refused_lines(found)
    code = led.exit_code if not rejected or led.exit_code in (1, 130) else 3
    notes = (*found.notes, *led.notes)
    return Outcome(cases=led.cases, rejected=rejected, notes=notes, exit_code=code)
