"""One run: a site, its cases and its faults from a seed, led to the end by the real orchestrator."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from mqi_hpc.core.causes import Cause
from mqi_hpc.core.effects import Download, Observe, Scan
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.intake import ScanReport
from mqi_hpc.core.interfaces import IUnit
from mqi_hpc.core.models import STAGE_OF, STAGES, CaseStatus, SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.core.requests import Request, Verb
from mqi_hpc.core.resubmit import current_tasks
from mqi_hpc.core.retry_causes import Asked, RetryTable, Rule
from mqi_hpc.domain.desk import OUR_FAULT
from mqi_hpc.domain.evidence import read_evidence
from mqi_hpc.domain.polls import SWEEP_SECONDS
from mqi_hpc.domain.recovery import MOST_RERUNS
from mqi_hpc.domain.scans import Scans
from mqi_hpc.domain.task_scheduler import over
from mqi_hpc.services.history import read_history
from mqi_hpc.services.intake_service import IntakeService
from tests.chaos.befall import Befall
from tests.chaos.faults import Fault, Schedule
from tests.chaos.ledger import Ledger
from tests.chaos.port import HurtCluster, Killed
from tests.chaos.render import renderer
from tests.chaos.store import Event, QuickStore, Unit
from tests.chaos.truth import CaseFolder
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.installation import Installation
from tests.support.simulation.jobs import Request as SlurmRequest
from tests.support.simulation.jobs import Site, SlurmJob
from tests.support.simulation.stages import Script

MOST_TURNS = 30_000
MOST_SECONDS = 20_000.0
_RHYTHM = PollRhythm(least=10.0, most=60.0)
_SCAN_SECONDS = 60.0
_JUMP = 3600.0
_AFTERMATH = 1000.0
_PATIENCE = 5000.0
"""When (s) a person cancels what asks for attention still: every fault has healed long ago."""
_WAITED = 1500.0
"""How long (s) a case has asked for a person by then: longer than any doubt that ends by itself."""
_CALLED_OFF = (SubmitState.WITHDRAWN, SubmitState.REFUSED, SubmitState.BURNT)
_OPEN = frozenset({CaseStatus.NEW, CaseStatus.QUEUED, CaseStatus.PROCESSING})


_RULE = Rule(most=2, pauses=(60.0, 200.0))
MOST_RETRIES = 3
RETRIES = RetryTable(
    most=MOST_RETRIES,
    rules={
        Cause.NODE_FAIL: replace(_RULE, leave_out=300.0),
        Cause.PREEMPTED: _RULE,
        Cause.BURNT: _RULE,
    },
    asked={stage: Asked(4096, 3600) for stage in STAGES},
)
"""What a site retries by itself; half of them do."""


class LocalClock:
    """IClock of the workstation: its wall clock may jump, its monotonic clock does not."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.offset = 0.0

    def now(self) -> float:
        return self._clock.now() + self.offset

    def monotonic(self) -> float:
        return self._clock.monotonic()


@dataclass(frozen=True, slots=True)
class Setting:
    """What a seed makes besides faults."""

    site: Site
    script: Script
    folders: tuple[CaseFolder, ...]
    gpu_count: int | None
    max_concurrent_jobs: int | None
    retries: RetryTable


def draw_setting(seed: int) -> Setting:
    """Return the site and the cases of a seed."""
    rng = random.Random(f"site of {seed}")
    site = Site(
        version=rng.choice(("22.05", "24.11", "26.05")),
        accounting=rng.random() < 0.8,
        accounting_lag=rng.choice((1.0, 5.0, 20.0)),
        min_job_age=rng.choice((5.0, 60.0, 300.0)),
        gpus={"g1": rng.choice((1, 4)), "g2": 2, "c1": 0},
    )
    seconds = {"interpret": rng.choice((4.0, 20.0)), "beams": rng.choice((10.0, 60.0)), "convert": 5.0}
    folders = tuple(
        CaseFolder(f"P{number:03d}", rng.randint(1, 4), rng.choice((0.0, 0.0, 20.0)))
        for number in range(rng.randint(2, 4))
    )
    gpu_count, most_jobs = rng.choice((None, 2, 4)), rng.choice((None, None, 2))
    retries = RETRIES if rng.random() < 0.5 else RetryTable()
    return Setting(site, Script(seconds=seconds), folders, gpu_count, most_jobs, retries)


class World:
    """A workstation and its cluster. `run` leads all cases to their end, whatever the schedule does."""

    def __init__(self, seed: int, schedule: Schedule) -> None:
        self.setting = setting = draw_setting(seed)
        self.seed = seed
        self.clock = VirtualClock()
        self.local = LocalClock(self.clock)
        self.ledger = Ledger()
        self.store = QuickStore(clock=self.local)
        self.store.before, self.store.after = self._before_commit, self._after_commit
        self.cluster = HurtCluster(
            self.clock, setting.site, setting.script, schedule, self.ledger, self._scanned
        )
        self.cluster.step_clock = self._step_clock
        self.cluster.programs.begun = self._begun
        self.cluster.fetching = self._fetching
        self.cluster.looked = self._looked
        self.cluster.in_transaction = lambda: self.store.open
        self.cluster.transfers.delivering = self._delivered
        befall = Befall(self.cluster, self.store)
        befall.others = lambda: self._another("train")
        self.over_orders: list[Fault] = []
        self.due_orders: list[Fault] = []
        self._last = 0.0
        for fault in schedule:
            if fault.place == "cluster":
                befall.plan(fault)
                self._last = max(self._last, float(fault.at))
            elif fault.place == "order" and fault.at:
                self.clock.later(float(fault.at), partial(self.due_orders.append, fault))
                self._last = max(self._last, float(fault.at))
            elif fault.place == "order":
                self.over_orders.append(fault)
        self._orders = 0
        self._given_up: set[str] = set()
        self._asked: dict[str, float] = {}
        self._kill_after = False
        self.cut_short = ""
        self.turns = 0
        self.lives = 0
        self.called_off: dict[str, float] = {}
        self._seen_live: set[tuple[str, int]] = set()
        self._backups = 0
        self._place_others()

    # A whole run

    def run(self) -> None:
        """Lead the cases to their end."""
        self._start()
        while True:
            if self._enough():
                break
            if self._now() > _PATIENCE:
                self._give_up()
            if self.turns >= MOST_TURNS or self.clock.monotonic() >= MOST_SECONDS:
                self.cut_short = f"after {self.turns} turns, at {self.clock.monotonic():.0f} s"
                break
            self._turn()
        # What was frozen goes on, and does no harm any more.
        end = self.clock.monotonic() + _AFTERMATH
        while not self.cut_short and self.clock.monotonic() < end:
            self._aftermath(end)
        # The daemon is there still: what a thawed host has put into the queue since, its next sweep finds.
        end = self.clock.monotonic() + 2 * SWEEP_SECONDS
        while not self.cut_short and self.left() and self.clock.monotonic() < end:
            self._turn()

    def left(self) -> list[SlurmJob]:
        """Return the jobs of ours that have not ended."""
        return [job for job in self.cluster.slurm.jobs.values() if job.request.folder and job.live]

    def _turn(self) -> None:
        self.turns += 1
        try:
            self._serve()
            self.home.orchestrator.turn()
            self.cluster.die_if_killed()
        except Killed:
            self._start()

    def _aftermath(self, end: float) -> None:
        wait = self.clock.next_due()
        left = end - self.clock.monotonic()
        self.clock.advance(left if wait is None or wait > left else wait)
        self.cluster.killed = False
        if self.unfinished():
            self._turn()

    def _start(self) -> None:
        """Start a daemon on the store, as systemd does after it died; killed while it starts, once more."""
        while True:
            self.lives += 1
            self.cluster.close()
            self.cluster.killed = False
            self._seen_live.clear()
            self.ledger.note(self.clock.monotonic(), "daemon", self.lives)
            self.home = self._installed()
            try:
                for case_id in self.unfinished():
                    self.home.orchestrator.process_case(case_id)
            except Killed:
                continue
            return

    def _installed(self) -> Installation:
        setting = self.setting
        home = Installation(
            self.store,
            self.cluster,
            self.local,
            renderer(setting.gpu_count),
            gpu_count=setting.gpu_count,
            max_concurrent_jobs=setting.max_concurrent_jobs,
            retries=setting.retries,
            rhythm=_RHYTHM,
            tell=self._told,
            seed=self.seed * 1000 + self.lives,
        )
        intake = IntakeService(self.store, home.cases, self.local, site="site")
        home.orchestrator._scans = Scans(
            self.store,
            intake,
            self.cluster,
            self.local,
            interval=_SCAN_SECONDS,
            stirred=lambda: False,
            tell=lambda _, __: None,
        )
        return home

    def _told(self, case_id: str, text: str) -> None:
        """An error over a case is kept from the others, and is a fault all the same."""
        if OUR_FAULT in text:
            self.ledger.broken(self._now(), f"{case_id}: {text}")

    def unfinished(self) -> list[str]:
        """Return the cases that a daemon takes in hand when it starts."""
        with self.store.transaction(write=False) as unit:
            return [
                case.case_id
                for case in unit.cases.all()
                if case.status in _OPEN or not over(read_history(unit, case.case_id))
            ]

    def _enough(self) -> bool:
        if self.home.scheduler.cases or len(self.store.cases) < len(self.setting.folders):
            return False
        if self.due_orders or self._now() < self._last:
            return False
        if self.over_orders:
            self.due_orders.append(self.over_orders.pop(0))
            return False
        return not self.unfinished()

    def _now(self) -> float:
        return self.clock.monotonic()

    # Orders

    def _serve(self) -> None:
        self.cluster.saw_queue = self.cluster.saw_accounting = None
        while self.due_orders:
            fault = self.due_orders.pop(0)
            if self._order(fault):
                self.cluster.struck(fault)

    def _order(self, fault: Fault) -> bool:
        cases = sorted(self.store.cases)
        if not cases:
            return False
        ended = [key for key in cases if self.store.cases[key].status not in (*_OPEN, CaseStatus.COMPLETED)]
        chosen = ended if fault.at == 0 and fault.kind != "cancel" and ended else cases
        key = chosen[fault.amount % len(chosen)]
        self._orders += 1
        request = Request(
            request_id=f"r{self._orders}", verb=Verb(fault.kind), case_id=key, who="ann", reason="chaos"
        )
        try:
            said = self.home.orders.carry_out(request)
            self.home.orchestrator.process_case(key)
        except ProcessingError as error:
            self.ledger.note(self._now(), "refused", fault, key, error.what)
            return False
        except Killed:
            self._ordered(fault, key, "and killed")
            raise
        self._ordered(fault, key, said)
        return True

    def _ordered(self, fault: Fault, key: str, said: str) -> None:
        self.ledger.note(self._now(), "order", fault.kind, key, said)
        if fault.kind == "cancel":
            self.ledger.hurt(key, "a person cancelled it")
        self._forget_orders()
        self.called_off.pop(key, None)
        if last_order(self.store.log, key) == "cancel":
            self.called_off[key] = self._now()

    def _give_up(self) -> None:
        """What waits for a person for long, after all is well again, is cancelled by one."""
        for key in self.unfinished():
            attention = self.store.cases[key].attention
            if not attention:
                self._asked.pop(key, None)
                continue
            # A case that waited for another's slots may be struck only now.
            since = self._asked.setdefault(key, self._now())
            if key not in self._given_up and self._now() - since >= _WAITED:
                self._given_up.add(key)
                if not self.ledger.harm.get(key) and self.ledger.patience[key] < MOST_RERUNS:
                    label = self.store.cases[key].label
                    text = f"{label} waits for a person, and nothing befell it: {attention}"
                    self.ledger.broken(self._now(), text)
                number = sorted(self.store.cases).index(key)
                self.due_orders.append(Fault("order", "cancel", 1, number))

    # Hooks

    def _begun(self, key: str, job: str, stage: str) -> None:
        """What was called off, long enough ago to be cancelled, begins no work."""
        found = self.store.jobs.get(f"{key}-{job}")
        if self.store.backups:
            # What a store has forgotten it cannot call off before it is found again.
            return
        if found is not None and found.submit_state in _CALLED_OFF:
            self.ledger.broken(
                self._now(), f"called off, and begun: {key} {job} {stage} is {found.submit_state}"
            )

    def _looked(self, effect: Observe, output: str, began: float) -> None:
        """What a person has called off, and two looks have shown, is cancelled by then."""
        self._forget_orders()
        if not self.called_off:
            self._seen_live = set()
            return
        rows = read_evidence(output, effect.nonce, asked=False, accounting="auto").queue
        if rows is None:
            return
        # What the store has taken over since, this look was not for.
        asked = {query.ref for query in effect.jobs}
        live = {
            (row.name, row.job)
            for row in rows
            if not row.ending and (job := self._standing(row.name)) and job not in self.cluster.cancelling
            if job in asked
            if self.called_off.get(job.partition("-")[0], began) < began
        }
        for name, slurm_id in sorted((live & self._seen_live) - self.cluster.cancels):
            self.ledger.broken(self._now(), f"called off, seen twice and not cancelled: {name} {slurm_id}")
        self._seen_live = live

    def _forget_orders(self) -> None:
        """An older store does not know what was ordered since."""
        if self._backups != self.store.backups:
            self._backups = self.store.backups
            self.called_off.clear()

    def _standing(self, name: str) -> str | None:
        """Return the job of ours that a submission is of, where it stands."""
        job = self.store.jobs.get("-".join(name.split("-")[2:4]))
        stands = job is not None and job.submit_state is SubmitState.STANDING
        return job.job_id if stands and job is not None else None

    def _scanned(self, effect: Scan) -> ScanReport:
        known = {seen.folder for seen in effect.known}
        here = [one for one in self.setting.folders if one.at <= self._now() and one.path not in known]
        return ScanReport(read=tuple(one.read() for one in here))

    def _step_clock(self, hours: int) -> None:
        self.local.offset += (hours - 12) * _JUMP

    def _before_commit(self, unit: Unit) -> None:
        self._judge_changes(unit)
        faults = {fault.kind: fault.amount for fault in self.cluster.take("commit")}
        if "before" in faults:
            self.cluster.kill(with_children=bool(faults["before"] % 2))
            raise Killed
        if "frozen" in faults:
            self.cluster.stand_still(float(faults["frozen"]))
        self._kill_after = "after" in faults

    def _after_commit(self) -> None:
        if self._kill_after:
            self._kill_after = False
            self.cluster.kill(with_children=False)
            raise Killed

    def _judge_changes(self, unit: Unit) -> None:
        """What has ended changes by an order alone, and nothing ends by a look that did not see the queue."""
        kinds = [kind for _, kind, _, _ in unit.new_events]
        for _, kind, key, body in unit.new_events:
            by_itself = kind == "job planned" and '"automatic":' in body
            if by_itself and last_order(self.store.log, key) == "cancel":
                self.ledger.broken(self._now(), f"called off, and retried by itself: {key}")
        for before, after in unit.changed:
            if before is None or before.status is after.status:
                continue
            if before.status.terminal and "order" not in kinds:
                text = f"{after.task_id} went from {before.status} to {after.status}, and nobody ordered it"
                self.ledger.broken(self._now(), text)
            elif after.status.terminal and self.cluster.saw_queue is False and after.type in STAGE_OF:
                text = f"{after.task_id} is {after.phase} by a look that did not see the queue"
                self.ledger.broken(self._now(), text)
            elif after.status is TaskStatus.LOST and self._accounting_failed():
                text = f"{after.task_id} is lost by a look that accounting did not answer"
                self.ledger.broken(self._now(), text)

    def _accounting_failed(self) -> bool:
        return self.setting.site.accounting and self.cluster.saw_accounting is False

    def _fetching(self, effect: Download) -> None:
        """Nothing is fetched that is not done, or accepted, at that moment."""
        with self.store.transaction(write=False) as unit:
            case, history = unit.cases.get(effect.case_id), read_history(unit, effect.case_id)
        assert case is not None
        current = [task for task in current_tasks(history) if task.type is TaskType.BEAM_CALC]
        done = {case.beams[task.index].number for task in current if task.status is TaskStatus.COMPLETED}
        for result in effect.results:
            if int(result.local.split("_")[1]) not in done:
                self.ledger.broken(self._now(), f"fetched, and not done: {case.label}/{result.local}")

    def _delivered(self, effect: object, name: str, content: bytes) -> None:
        self.ledger.delivered[name] = content
        self.ledger.note(self._now(), "delivered", name, content)

    def _place_others(self) -> None:
        """Jobs of others, and of another installation of ours, which nobody here may touch."""
        for name in ("train", "mqi-i2-abcdefghijkl-j01-beams"):
            self.cluster.slurm.sbatch(SlurmRequest(name=name, partition="gpu", gpus=1))
        self.clock.later(30.0, lambda: self._another("train"))
        self.clock.later(90.0, lambda: self._another("mqi-i2-abcdefghijkl-j01-beams"))

    def _another(self, name: str) -> None:
        if self.cluster.slurm.up:
            self.cluster.slurm.sbatch(SlurmRequest(name=name, partition="gpu", gpus=1))


def last_order(log: Sequence[Event], key: str | None) -> str:
    """Return what a person last ordered to be done, or not, with a case: "cancel", "resubmit", or ""."""
    for _, kind, case_id, body in reversed(log):
        if kind == "order" and case_id == key:
            verb = str(json.loads(body)["verb"])
            if verb in ("cancel", "resubmit"):
                return verb
    return ""


def tasks_of(unit: IUnit, case_id: str) -> list[Task]:
    """Return every task of a case, j01 first."""
    return [task for job in unit.jobs.of_case(case_id) for task in unit.jobs.tasks(job.job_id)]
