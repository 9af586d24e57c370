"""The effects port under attack: each effect goes out, acts and comes back, or not, as the schedule says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mqi_hpc.core.effects import (
    Cancel,
    Completion,
    Download,
    Effect,
    Failure,
    Observe,
    Scan,
    Submit,
    Survey,
    Upload,
)
from mqi_hpc.core.errors import MQIError
from mqi_hpc.core.intake import ScanReport
from mqi_hpc.core.submission import EXIT_AGAIN
from mqi_hpc.infrastructure.executors.effects import classify
from tests.chaos.faults import Fault, Schedule
from tests.chaos.files import StaleView, WatchedFiles
from tests.chaos.ledger import Ledger
from tests.chaos.programs import Programs
from tests.chaos.slurm import HurtSlurm
from tests.chaos.submissions import LIFE, Submissions
from tests.chaos.transfers import HurtTransfers
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.cluster import SimulatedCluster
from tests.support.simulation.jobs import Element, Program, Site, SlurmJob
from tests.support.simulation.observe import observe
from tests.support.simulation.stages import Script
from tests.support.simulation.task import Start

PLACE: dict[type[Effect], str] = {
    Upload: "upload", Submit: "submit", Observe: "observe", Cancel: "cancel", Download: "download",
    Scan: "scan", Survey: "survey",
}  # fmt: skip
_PATIENCE = {"upload": 600.0, "submit": LIFE, "observe": 120.0, "cancel": 120.0, "download": 600.0,
             "survey": 120.0}  # fmt: skip
"""How long (s) the daemon waits for an effect before it calls it an outage."""
SUBMIT_SECONDS = 300.0
"""How long (s) a submit.sh may live, as the daemon of the simulation is told."""
_KNOWN = (0, EXIT_AGAIN)
"""Exit codes of submit.sh that leave nothing in doubt."""
_FOREIGN_SECONDS = 200.0


class Killed(BaseException):
    """SIGKILL of the daemon: nothing of it goes on."""


class _Flight:
    """An effect under way. Its completion is heard once, if the daemon that began it still lives."""

    def __init__(self, port: HurtCluster, effect: Effect, faults: dict[str, int]) -> None:
        self.port = port
        self.effect = effect
        self.faults = faults
        self.session = port.session
        self.heard = False

    @property
    def alive(self) -> bool:
        """Whether what was started runs still: it dies with a daemon that was killed with its children."""
        return self.session not in self.port.dead

    def answer(self, completion: Completion) -> None:
        """Let the daemon hear how it went, as the faults have it."""
        port, faults = self.port, self.faults
        if "after" in faults:
            port.kill(with_children=False)
            return
        if "lost" in faults or (port.link.down and not isinstance(self.effect, Scan)):
            completion = self.outage("the connection broke off", uncertain=True)
        port.clock.later(float(faults.get("late", 0)), partial(self.deliver, completion))

    def deliver(self, completion: Completion) -> None:
        """Hand a completion over."""
        if not self.heard and self.session == self.port.session:
            self.heard = True
            self.port.done.append(completion)
            self.port.heard(completion)

    def outage(self, error: str, *, uncertain: bool) -> Completion:
        """Return the completion that an outage makes."""
        return Completion(effect=self.effect, error=error, failure=Failure.OUTAGE, uncertain=uncertain)


class HurtCluster(SimulatedCluster):
    """IEffects on a simulated cluster, under a schedule. `step_clock` makes the workstation's clock jump."""

    def __init__(
        self,
        clock: VirtualClock,
        site: Site,
        script: Script,
        schedule: Schedule,
        ledger: Ledger,
        scan: Callable[[Scan], ScanReport],
    ) -> None:
        super().__init__(clock, site=site, script=script, scan=scan)
        self.ledger = ledger
        self.dead: set[int] = set()
        self.session = 0
        self.done: list[Completion] = []
        self.killed = False
        self.fetching: Callable[[Download], None] = lambda _: None
        self.in_transaction: Callable[[], bool] = lambda: False
        self.saw_queue: bool | None = None
        self.saw_accounting: bool | None = None
        self._unsure: dict[str, float] = {}
        self._sent: dict[str, _Flight] = {}
        self.step_clock: Callable[[int], None] = lambda _: None
        self._looking = False
        self._look_began = 0.0
        self.looked: Callable[[Observe, str, float], None] = lambda *_: None
        self.cancels: set[tuple[str, int]] = set()
        self.cancelling: set[str] = set()
        self._schedule: dict[tuple[str, int], list[Fault]] = {}
        for fault in schedule:
            self._schedule.setdefault((fault.place, fault.at), []).append(fault)
        self._counts: Counter[str] = Counter()
        self._standing = 0.0
        self.hurt_files = WatchedFiles(clock, ledger)
        self.files = self.hurt_files
        self.hurt_slurm = HurtSlurm(clock, site, self._launch, self._away, ledger)
        self.slurm = self.hurt_slurm
        self.programs = Programs(clock, self.hurt_files, ledger, script, self.take)
        self.programs.twice = self.hurt_slurm.beside
        self.programs.silence = lambda start, after: self._later(after, self.hurt_slurm.lose, start)
        self._stages = self.programs
        self.transfers = HurtTransfers(self.hurt_files, ledger, workspace="/work", instance="i1")
        self._transfers = self.transfers
        self.submissions = Submissions(
            clock, self.hurt_slurm, self.hurt_files, self.take, lambda: self.kill(with_children=True)
        )

    # Faults

    def take(self, place: str) -> tuple[Fault, ...]:
        """Return what strikes a place this time, and count the time."""
        self._counts[place] += 1
        found = tuple(self._schedule.get((place, self._counts[place]), ()))
        for fault in found:
            self.struck(fault)
            if fault.kind == "clock":
                self.step_clock(fault.amount)
        return found

    def struck(self, fault: Fault) -> None:
        """Note that a fault has struck."""
        self.ledger.struck.append(fault)
        self.ledger.note(self.clock.monotonic(), "FAULT", fault)

    def kill(self, *, with_children: bool) -> None:
        """Kill the daemon; with its children, or they go on and nobody hears of them."""
        if with_children:
            self.dead.add(self.session)
        self.close()
        self.killed = True

    def stand_still(self, seconds: float) -> None:
        """Let the daemon's host stand still before it does anything else."""
        self._standing += seconds

    # The effects port

    def start(self, effect: Effect) -> None:
        place = PLACE[type(effect)]
        self.ledger.execs[place] += 1
        if isinstance(effect, Observe):
            self._look_begins()
        flight = _Flight(self, effect, {fault.kind: fault.amount for fault in self.take(place)})
        if self.in_transaction():
            self._broken(f"sent before its intent was committed: {place}")
        if isinstance(effect, Submit):
            self._submitting(effect, flight)
        elif isinstance(effect, Download):
            self.fetching(effect)
        elif isinstance(effect, Cancel):
            self.cancels.update(effect.targets)
            self.cancelling.add(effect.job_id)
        self._later(self.link.seconds[type(effect)], self._arrive, flight)

    def completions(self, timeout: float) -> list[Completion]:
        if self._standing:
            seconds, self._standing = self._standing, 0.0
            self.clock.advance(seconds)
        end = self.clock.monotonic() + timeout
        while not self.done and not self.killed:
            wait = self.clock.next_due()
            left = end - self.clock.monotonic()
            if wait is None or wait > left:
                self.clock.advance(max(0.0, left))
                break
            self.clock.advance(wait)
        self.die_if_killed()
        done, self.done = self.done, []
        one = done[0] if len(done) == 1 else None
        looked = one is not None and isinstance(one.effect, Observe) and one.error is None
        self.saw_queue = " END squeue 0\n" in one.output if one is not None and looked else None
        asked = one is not None and looked and " BEGIN sacct\n" in one.output
        self.saw_accounting = " END sacct 0\n" in one.output if one is not None and asked else None
        return done

    def close(self) -> None:
        for job_id in self._sent:
            self._unsure[job_id] = self.clock.monotonic()
        self.ledger.patience.update(flight.effect.case_id for flight in self._sent.values())
        self._sent.clear()
        self._looking = False
        self.cancels.clear()
        self.cancelling.clear()
        self.session += 1
        self.done.clear()

    def die_if_killed(self) -> None:
        """Raise Killed where the daemon was killed."""
        if self.killed:
            self.killed = False
            raise Killed

    # What is asked of every submission

    def _submitting(self, effect: Submit, flight: _Flight) -> None:
        """While a run of submit.sh may be alive, no other is started on purpose."""
        ago = self.clock.monotonic() - self._unsure.pop(effect.job_id, -1e9)
        if ago < SUBMIT_SECONDS:
            self._broken(f"submitted blindly: {effect.job_id} {ago:.0f} s after a run of unknown fate")
        self._sent[effect.job_id] = flight

    def forget(self) -> None:
        """Take it that whoever submits next cannot know of what was submitted."""
        self._unsure.clear()

    def _look_begins(self) -> None:
        if self._looking:
            self._broken("two looks at the cluster at once")
        self._looking, self._look_began = True, self.clock.monotonic()

    def heard(self, completion: Completion) -> None:
        """Note what the daemon is told of a submission, a look or a scancel."""
        if isinstance(completion.effect, Observe):
            self._looking = False
            self.looked(completion.effect, completion.output, self._look_began)
        elif isinstance(completion.effect, Cancel):
            self.cancelling.discard(completion.effect.job_id)
        if isinstance(completion.effect, Submit):
            self._sent.pop(completion.effect.job_id, None)
            if completion.uncertain or completion.exit_code not in _KNOWN:
                self.ledger.patience[completion.effect.case_id] += 1
            if completion.uncertain:
                self._unsure[completion.effect.job_id] = self.clock.monotonic()

    def _broken(self, text: str) -> None:
        self.ledger.broken(self.clock.monotonic(), text)

    # An effect's way

    def _later(self, seconds: float, action: Callable[..., object], *arguments: object) -> None:
        self.clock.later(seconds, partial(action, *arguments))

    def _arrive(self, flight: _Flight) -> None:
        effect, faults = flight.effect, flight.faults
        if not flight.alive:
            return
        if isinstance(effect, Scan):
            self._perform(flight)
            return
        if self.link.refused:
            self._refuse(flight, Failure.ACCESS, "the host does not take our key")
        elif self.link.down or "before" in faults:
            self._refuse(flight, Failure.OUTAGE, "the host does not answer")
        elif "killed" in faults:
            self._half(effect)
            self.kill(with_children=True)
        else:
            self._perform(flight)

    def _refuse(self, flight: _Flight, failure: Failure, error: str) -> None:
        flight.deliver(Completion(effect=flight.effect, error=error, failure=failure))

    def _half(self, effect: Effect) -> None:
        if isinstance(effect, Upload):
            self.transfers.half(effect)
        elif isinstance(effect, Submit):
            self.submissions.cut(effect, 1 + self._counts["submit"] % 6)
        elif isinstance(effect, Cancel):
            self._cancel(replace(effect, targets=effect.targets[:1]))

    def _perform(self, flight: _Flight) -> None:
        effect, faults = flight.effect, flight.faults
        place = PLACE[type(effect)]
        frozen = float(faults.get("frozen", 0))
        patience = _PATIENCE.get(place)
        if patience is not None and (frozen > patience or isinstance(effect, Submit)):
            silent = flight.outage("no answer in time", uncertain=True)
            self._later(patience, flight.deliver, silent)
        if "twice" in faults:
            self._again(effect, float(faults["twice"] % 10))
        if isinstance(effect, Submit):
            lag = float(faults.get("stale", 0))
            self.submissions.begin(effect, flight.answer, lambda: flight.alive, lag=lag, after=frozen)
        elif isinstance(effect, Observe) and frozen:
            first = self._look(effect, 0.0)
            self._later(frozen, self._finish_look, flight, first)
        else:
            self._later(frozen, self._finish, flight)

    def _finish(self, flight: _Flight) -> None:
        if not flight.alive:
            return
        lag = float(flight.faults.get("stale", 0))
        if isinstance(flight.effect, Observe):
            flight.answer(Completion(effect=flight.effect, output=self._look(flight.effect, lag)))
        else:
            flight.answer(self._completed(flight.effect, lag))

    def _finish_look(self, flight: _Flight, first: str) -> None:
        """Slurm was asked before the host stood still, the file system after."""
        effect = flight.effect
        assert isinstance(effect, Observe)
        if not flight.alive:
            return
        second = self._look(effect, 0.0)
        cut = [text.partition(" BEGIN receipts:") for text in (first, second)]
        flight.answer(Completion(effect=effect, output="".join((cut[0][0], *cut[1][1:]))))

    def _look(self, effect: Observe, lag: float) -> str:
        files = StaleView(self.hurt_files, lag) if lag and not self.files.away else self.files
        return observe(effect, self.slurm, files, self.clock, self.workspace)

    def _again(self, effect: Effect, after: float) -> None:
        if isinstance(effect, Submit):
            self.submissions.stray(effect, after)
        elif not isinstance(effect, Scan):
            self._later(after, self._completed, effect, 0.0)

    def _completed(self, effect: Effect, lag: float) -> Completion:
        transfers = self.transfers.stale(lag) if lag else self.transfers
        try:
            if isinstance(effect, Upload):
                return Completion(effect=effect, output=transfers.upload(effect))
            if isinstance(effect, Download):
                return Completion(effect=effect, output=transfers.download(effect))
            if isinstance(effect, Observe):
                return Completion(effect=effect, output=self._look(effect, lag))
            if isinstance(effect, Survey):
                return Completion(effect=effect, payload=transfers.survey(effect))
            return self._actions[type(effect)](effect)
        except (MQIError, OSError) as error:
            return Completion(effect=effect, error=str(error), failure=classify(error))

    def _launch(self, job: SlurmJob, element: Element) -> Program:
        if not job.request.folder:
            return _sleep(_FOREIGN_SECONDS)
        return self.programs.launch(
            Start(
                folder=job.request.folder,
                stage=job.request.stage,
                name=job.request.name,
                submission_id=job.id,
                raw_id=element.raw,
                index=element.index,
                node=element.node,
                restart=self.hurt_slurm.restarts.get((job.id, element.index), 0),
            )
        )


def _sleep(seconds: float) -> Program:
    yield seconds
    return 0
