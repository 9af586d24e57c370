"""The daemon: turns the loop for months, serves requests, observes itself, and ends or reloads when asked."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import structlog

from mqi_hpc.controllers.watch import OPEN
from mqi_hpc.core.errors import ConfigurationError, ProcessingError
from mqi_hpc.core.interfaces import IClock, IStore
from mqi_hpc.core.monitoring import LoopState
from mqi_hpc.domain.request_desk import RequestDesk
from mqi_hpc.domain.scans import Scans
from mqi_hpc.domain.system_monitor import SystemMonitor, Tally
from mqi_hpc.domain.task_scheduler import over
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.services.history import read_history

_DRAIN_SECONDS = 300.0
"""Longest wait of a reload for a submission that is under way."""


class End(StrEnum):
    """Why the daemon's loop ended."""

    STOPPED = "stopped"
    RELOAD = "reload"


class INotifier(Protocol):
    """Who watches over the daemon: systemd."""

    def ready(self, status: str = "") -> None: ...  # noqa: D102 - told above
    def status(self, text: str) -> None: ...  # noqa: D102 - told above
    def reloading(self) -> None: ...  # noqa: D102 - told above
    def stopping(self, status: str = "") -> None: ...  # noqa: D102 - told above
    def beat(self) -> None: ...  # noqa: D102 - told above


class Daemon:
    """Leads every unfinished case, and every one that turns up, until asked to end.

    `stopping` and `reloading` tell what has been asked of the process.
    """

    def __init__(
        self,
        *,
        store: IStore,
        orchestrator: WorkflowOrchestrator,
        scans: Scans,
        requests: RequestDesk,
        monitor: SystemMonitor,
        notifier: INotifier,
        clock: IClock,
        gpu_slots: int | None,
        connections: Callable[[], int],
    ) -> None:
        self._store = store
        self._orchestrator = orchestrator
        self._scans = scans
        self._requests = requests
        self._monitor = monitor
        self._notifier = notifier
        self._clock = clock
        self._gpu_slots = gpu_slots
        self._connections = connections
        self._tally = Tally()
        self._status = ""
        self._log = structlog.get_logger("mqi_hpc.daemon")

    def run(self, *, stopping: Callable[[], bool], reloading: Callable[[], bool]) -> End:
        """Run until asked to stop or to reload; jobs on the cluster run on."""
        for case_id in self._unfinished():
            self._take_up(case_id)
        self._log.info("started", cases=len(self._orchestrator.cases))
        self._notifier.ready(self._summary())
        while not stopping():
            if not reloading():
                self._turn()
                continue
            self._notifier.reloading()
            self._drain(stopping)
            if not stopping():
                return End.RELOAD
        self._notifier.stopping("ending; what is on the cluster runs on")
        self._monitor.stopped()
        self._log.info("stopped")
        return End.STOPPED

    def _take_up(self, case_id: str) -> None:
        """Lead a case; one that cannot be, such as of a machine no longer configured, stops no other."""
        try:
            self._orchestrator.process_case(case_id)
        except ConfigurationError as error:
            # Its words are of settings and templates, of no patient.
            self._log.error("a case cannot be begun", case_id=case_id, why=str(error))
        except ProcessingError as error:
            self._log.error("a case cannot be begun", case_id=case_id, why=type(error).__name__)

    def _turn(self) -> None:
        self._requests.serve()
        self._orchestrator.turn()
        self._monitor.tick(self.state)
        self._notifier.beat()
        if (summary := self._summary()) != self._status:
            self._status = summary
            self._notifier.status(summary)

    def _drain(self, stopping: Callable[[], bool]) -> None:
        """Let what must not be cut come to its end: whether a submission stands is known only from it."""
        end = self._clock.monotonic() + _DRAIN_SECONDS
        while not self._orchestrator.drain() and self._clock.monotonic() < end and not stopping():
            # Orders are decided in the store: what they lead to begins after the reload.
            self._requests.serve()
            self._monitor.tick(self.state)
            self._notifier.beat()

    def _unfinished(self) -> list[str]:
        with self._store.transaction(write=False) as unit:
            return [
                case.case_id
                for case in unit.cases.all()
                if case.status in OPEN or not over(read_history(unit, case.case_id))
            ]

    def _summary(self) -> str:
        outage = self._orchestrator.outage
        cases = len(self._orchestrator.cases)
        text = f"{cases} case{'' if cases == 1 else 's'} in hand"
        if outage.active:
            return f"{text}; the cluster {'refuses us' if outage.refused else 'does not answer'}"
        return text

    def state(self) -> LoopState:
        """Return what the loop knows of its own work, for metrics and health."""
        loop, outage, now = self._orchestrator, self._orchestrator.outage, self._clock.monotonic()
        polls, last_scan = loop.polls, self._scans.last
        with self._store.transaction(write=False) as unit:
            return self._tally.into(
                LoopState(
                    last_good_look=None if polls.unseen_since is None else now - polls.unseen_since,
                    scan_age=None if last_scan is None else now - last_scan,
                    outage_failures=outage.failures,
                    outage_why=outage.why,
                    refused=outage.refused,
                    connections=self._connections(),
                    polls=polls.looks,
                    poll_failures=polls.looks - polls.good_looks,
                    submissions=loop.counts.submissions,
                    gpu_slots_used=sum(unit.resources.holdings().values()),
                    gpu_slots=self._gpu_slots,
                    cluster_free=polls.cluster_free,
                ),
                unit,
            )
