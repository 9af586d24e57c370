"""Looks for new cases at its interval, or at once where something stirred; what is found is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from mqi_hpc.core.effects import Completion, Scan
from mqi_hpc.core.intake import ScanReport
from mqi_hpc.core.interfaces import IClock, IEffects, IStore


class IntakeOutcome(Protocol):
    """What a scan led to: ids of cases that are new, and texts, (case id or None, text)."""

    @property
    def new(self) -> tuple[str, ...]: ...  # noqa: D102 - told above
    @property
    def told(self) -> tuple[tuple[str | None, str], ...]: ...  # noqa: D102 - told above


class IIntake(Protocol):
    """Registers what a scan found."""

    def apply(self, report: ScanReport) -> IntakeOutcome: ...  # noqa: D102 - told above


class Scans:
    """Plans scans and applies them. `stirred` says whether something below the root has changed."""

    def __init__(
        self,
        store: IStore,
        intake: IIntake,
        effects: IEffects,
        clock: IClock,
        *,
        interval: float,
        stirred: Callable[[], bool],
        tell: Callable[[str | None, str], None],
    ) -> None:
        self._store = store
        self._intake = intake
        self._effects = effects
        self._clock = clock
        self._interval = interval
        self._stirred = stirred
        self._tell = tell
        self._flying = False
        self._due = 0.0
        self._error = ""
        self.waiting: tuple[tuple[str, str], ...] = ()
        self.last: float | None = None

    def begin(self) -> None:
        """Start a scan where one is due and none is under way."""
        if self._flying:
            return
        now = self._clock.monotonic()
        if now < self._due and not self._stirred():
            return
        with self._store.transaction(write=False) as unit:
            known = tuple(unit.folders.all())
        self._flying = True
        if self.last is None:
            # A first scan that never ends is told of too.
            self.last = now
        self._due = now + self._interval
        self._effects.start(Scan(known=known))

    def wait(self) -> float:
        """Return the seconds until the next scan is due."""
        return self._interval if self._flying else max(0.0, self._due - self._clock.monotonic())

    def apply(self, completion: Completion) -> tuple[str, ...]:
        """Register what was found; returns the ids of the cases that are new."""
        self._flying = False
        report = completion.payload
        error = completion.error or (
            report.error if isinstance(report, ScanReport) else "it brought no report"
        )
        if error or not isinstance(report, ScanReport):
            # Said when it begins, not at every scan of a long outage.
            if error != self._error:
                self._tell(None, f"the scan for cases failed, and is tried again: {error}")
            self._error = error
            return ()
        if self._error:
            self._tell(None, "the folder of cases can be looked at again")
        self._error = ""
        self.last = self._clock.monotonic()
        self.waiting = report.waiting
        outcome = self._intake.apply(report)
        for case_id, text in outcome.told:
            self._tell(case_id, text)
        structlog.get_logger("mqi_hpc.scan").debug("scan", read=len(report.read), new=len(outcome.new))
        return outcome.new
