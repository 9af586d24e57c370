"""An installation as the container wires it, on whatever store, cluster and clock a simulation brings."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mqi_hpc.core.interfaces import IClock, IEffects, IRenderer, IStore
from mqi_hpc.core.models import Case
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.core.readings import Limits
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.core.retry_causes import RetryTable
from mqi_hpc.domain.audited import AuditedEffects
from mqi_hpc.domain.desk import Desk
from mqi_hpc.domain.orders import Orders
from mqi_hpc.domain.polls import Polls
from mqi_hpc.domain.reconciler import Reconciler
from mqi_hpc.domain.retries import Retries
from mqi_hpc.domain.task_scheduler import TaskScheduler
from mqi_hpc.domain.watcher import Watcher
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.report_service import CaseReport, ReportService
from mqi_hpc.services.resource_service import ResourceService
from mqi_hpc.services.transfer_service import TransferService
from tests.support.bench import NoReader


class SeededIds:
    """IIds that are the same in every run of one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._count = 0

    def nonce(self) -> str:
        """Return a word never returned before."""
        self._count += 1
        return f"n{self._count}"

    def draw(self) -> float:
        """Return a number from 0 to 1."""
        return self._random.random()


@dataclass
class Installation:
    """Services and orchestrator, without a case reader: cases are put into the store as they are.

    Make a new one on the same store, and it is what a restart makes.
    """

    store: IStore
    effects: IEffects
    clock: IClock
    renderer: IRenderer
    workspace: str = "/work"
    gpu_count: int | None = None
    max_concurrent_jobs: int | None = None
    rhythm: PollRhythm = field(default_factory=lambda: PollRhythm(least=5.0, most=60.0))
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    tell: Callable[[str, str], None] = lambda _, __: None
    retries: RetryTable = field(default_factory=RetryTable)

    def __post_init__(self) -> None:
        ids = SeededIds(self.seed)
        effects = AuditedEffects(self.store, self.effects)
        resources = ResourceService(
            self.store, gpu_count=self.gpu_count, min_disk_space_gb=0, free_bytes=lambda: 10**12
        )
        reader = NoReader()
        self.cases = CaseService(self.store, reader, self.clock, site="site", seed_base=1000)  # type: ignore[arg-type]
        self.jobs = JobService(
            self.store, self.renderer, resources, self.clock, workspace=self.workspace, most_left_out=3
        )
        self.reports = ReportService(self.store)
        self.scheduler = TaskScheduler(self.store, self.clock, max_concurrent_jobs=self.max_concurrent_jobs)
        self.desk = desk = Desk(
            self.store,
            self.cases,
            self.jobs,
            self.tell,
            self.scheduler.changed,
            clock=self.clock,
            retries=self.retries,
        )
        self.orders = Orders(desk, self.cases, self.jobs)
        watcher = Watcher(
            self.store, desk, self.jobs, Reconciler(self.limits), accounting="auto", submit_seconds=300.0
        )
        polls = Polls(
            watcher=watcher,
            desk=desk,
            effects=effects,
            clock=self.clock,
            ids=ids,
            rhythm=self.rhythm,
        )
        self.orchestrator = WorkflowOrchestrator(
            store=self.store,
            jobs=self.jobs,
            transfers=TransferService(self.store, self.jobs, effects),
            scheduler=self.scheduler,
            polls=polls,
            desk=desk,
            effects=effects,
            clock=self.clock,
            ids=ids,
            slots_wait=self.rhythm.least,
            retry=RetryPolicy(),
            retries=Retries(desk, self.jobs, self.retries),
        )

    def take(self, case: Case) -> None:
        """Put a case into the store, unless it is there, and take it in hand."""
        with self.store.transaction() as unit:
            if unit.cases.get(case.case_id) is None:
                unit.cases.put(case)
        self.orchestrator.process_case(case.case_id)

    def report(self, case_id: str) -> CaseReport:
        """Return what a person is told of a case."""
        return self.reports.case(case_id)

    def run_until(self, enough: Callable[[], bool], turns: int = 100_000) -> None:
        """Turn the loop until `enough`; raises AssertionError where that does not come."""
        for _ in range(turns):
            if enough():
                return
            self.orchestrator.turn()
        raise AssertionError(f"not enough after {turns} turns, at {self.clock.monotonic():.0f} s")
