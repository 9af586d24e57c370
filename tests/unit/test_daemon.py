"""The daemon's loop: what it takes up, serves and tells, and how it ends or makes room for new settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from mqi_hpc.controllers.daemon import Daemon, End
from mqi_hpc.core.effects import Completion, Effect, Failure, Observe, Scan, Submit, Upload
from mqi_hpc.core.errors import ConfigurationError, ProcessingError, StateError
from mqi_hpc.core.intake import ScanReport
from mqi_hpc.core.models import CaseStatus, Job
from mqi_hpc.core.monitoring import Health, HealthStatus, LoopState
from mqi_hpc.core.requests import Request, Verb
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.domain.request_desk import RequestDesk
from mqi_hpc.domain.retries import Retries
from mqi_hpc.domain.scans import Scans
from mqi_hpc.domain.system_monitor import SystemMonitor
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.services.intake_service import IntakeOutcome
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.transfer_service import TransferService
from tests.support.bench import KEY, Bench, make_case
from tests.support.world import Ids
from tests.unit.test_application import Asked
from tests.unit.test_system_monitor import LIMITS, Probe

MANY = 50_000
"""Turns after which a test gives up."""


class Notifier:
    """systemd, as far as the daemon knows it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.beats = 0

    def ready(self, status: str = "") -> None:
        self.heard.append(f"ready: {status}")

    def status(self, text: str) -> None:
        self.heard.append(f"status: {text}")

    def reloading(self) -> None:
        self.heard.append("reloading")

    def stopping(self, status: str = "") -> None:
        self.heard.append(f"stopping: {status}")

    def beat(self) -> None:
        self.beats += 1


class Sink:
    """What was published."""

    def __init__(self) -> None:
        self.healths: list[Health] = []
        self.metricses = 0

    def metrics(self, _: object) -> None:
        self.metricses += 1

    def health(self, health: Health) -> None:
        self.healths.append(health)


class Endless(list[Callable[[Effect], Completion]]):
    """An answer that is given each time."""

    def pop(self, _: object = -1) -> Callable[[Effect], Completion]:
        return self[0]


class Intake:
    """Registers the cases that the test lays down."""

    def __init__(self) -> None:
        self.new: list[str] = []

    def apply(self, _: ScanReport) -> IntakeOutcome:
        new, self.new = tuple(self.new), []
        return IntakeOutcome(new=new)


@dataclass
class Station:
    """A daemon on the bench's cluster."""

    bench: Bench = field(default_factory=Bench)

    def __post_init__(self) -> None:
        self.notifier, self.asked, self.intake = Notifier(), Asked(), Intake()
        self.sink = Sink()
        self.asked_to_reload = False
        self.bench.world.answers[Scan] = Endless([lambda e: Completion(effect=e, payload=ScanReport())])
        self.wire()

    def wire(self) -> None:
        """Start the program anew on the same store and cluster."""
        bench = self.bench
        bench.wire()
        self.scans = Scans(
            bench.store,
            self.intake,
            bench.world,
            bench.clock,
            interval=60.0,
            stirred=lambda: False,
            tell=lambda _, text: bench.said.append(text),
        )
        self.orchestrator = WorkflowOrchestrator(
            store=bench.store,
            jobs=bench.jobs,
            transfers=TransferService(bench.store, bench.jobs, bench.world),
            scheduler=bench.scheduler,
            polls=bench.polls,
            desk=bench.desk,
            effects=bench.world,
            clock=bench.clock,
            ids=Ids(),
            slots_wait=1.0,
            retry=RetryPolicy(),
            retries=Retries(bench.desk, bench.jobs, bench.retries),
            scans=self.scans,
        )
        self.daemon = Daemon(
            store=bench.store,
            orchestrator=self.orchestrator,
            scans=self.scans,
            requests=RequestDesk(self.asked, bench.orders, self.orchestrator.process_case, stays=True),
            monitor=SystemMonitor(
                Probe(), self.sink, bench.clock, limits=LIMITS, places={"state": "/s"}, version="1"
            ),
            notifier=self.notifier,
            clock=bench.clock,
            gpu_slots=8,
            connections=lambda: 2,
        )

    def run(self, enough: Callable[[], bool], *, seconds: float | None = None) -> End:
        """Run until `enough`, or for `seconds` of the clock; a daemon that goes on for ever fails."""
        turns = iter(range(MANY))
        end = None if seconds is None else self.bench.clock.time + seconds

        def stopping() -> bool:
            assert next(turns, None) is not None, f"goes on; said {self.bench.said}"
            self._name()
            return enough() or (end is not None and self.bench.clock.time >= end)

        return self.daemon.run(stopping=stopping, reloading=lambda: self.asked_to_reload)

    def _name(self) -> None:
        """The cluster learns the names of the submissions, once there are any."""
        with self.bench.store.transaction(write=False) as unit:
            if jobs := unit.jobs.of_case(KEY):
                self.bench.world.names = {s.stage: s.name for s in jobs[-1].submissions}

    def stands(self) -> bool:
        return self.bench.report.submission == "standing"


@pytest.fixture
def station() -> Station:
    return Station()


def never() -> bool:
    return False


def test_it_takes_up_what_is_unfinished_and_leads_it_home(station: Station) -> None:
    bench = station.bench
    assert station.run(station.stands) is End.STOPPED
    station.wire()

    def finish() -> None:
        bench.interpret_done()
        for n in range(2):
            bench.beam_done(n)
        bench.convert_done(0, 1)
        bench.exits(("interpret", 0, 0), ("beams", 0, 0), ("beams", 1, 0), ("convert", 0, 0))

    bench.world.on_poll = finish
    assert station.run(lambda: bench.report.status == "completed") is End.STOPPED
    assert len(bench.world.started(Submit)) == 1
    station.wire()
    station.run(never, seconds=120)
    assert "0 cases in hand" in station.notifier.heard[-2]
    assert station.orchestrator.cases == ()


def test_it_takes_up_an_older_job_that_still_runs(station: Station) -> None:
    """A case whose newest job has ended is in hand while an older one is live."""
    bench = station.bench
    station.run(station.stands)
    with bench.store.transaction() as unit:
        case = unit.cases.get(KEY)
        assert case is not None
        unit.cases.put(case.evolve(status=CaseStatus.PARTIAL))
    station.wire()
    looks = len(bench.world.started(Observe))
    station.run(lambda: len(bench.world.started(Observe)) > looks)
    assert station.orchestrator.cases == (KEY,)


def test_what_was_being_submitted_when_it_died_is_in_doubt(station: Station) -> None:
    station.bench.world.silent.add(Submit)
    station.run(lambda: bool(station.bench.world.started(Submit)))
    station.wire()
    station.run(never, seconds=30)
    assert station.bench.report.submission == "ambiguous"
    assert len(station.bench.world.started(Submit)) == 1


def test_a_case_that_a_scan_finds_is_led(station: Station) -> None:
    with station.bench.store.transaction() as unit:
        unit.cases.put(make_case(key="bbbbbbbbbbbb", status=CaseStatus.CANCELLED))
    station.bench.world.silent.add(Upload)
    station.run(never, seconds=10)
    with station.bench.store.transaction() as unit:
        unit.cases.put(make_case(key="bbbbbbbbbbbb"))
    station.intake.new = ["bbbbbbbbbbbb"]
    station.run(never, seconds=70)
    uploads = [effect.case_id for effect in station.bench.world.started(Upload)]  # type: ignore[attr-defined]
    assert uploads == [KEY, "bbbbbbbbbbbb"]


def test_what_is_asked_is_answered_at_the_next_turn(station: Station) -> None:
    station.asked.requests = [Request(request_id="1", verb=Verb.CANCEL, case_id=KEY, who="me", reason="no")]
    station.run(lambda: bool(station.asked.replies), seconds=2)
    (reply,) = station.asked.replies
    assert (reply.refused, reply.stays) == (False, True)
    assert station.bench.report.status == "cancelled"


def test_systemd_hears_how_it_is(station: Station) -> None:
    bench = station.bench
    for _ in range(3):
        bench.world.fail(Upload, Failure.OUTAGE, "no route to host")
    station.run(station.stands)
    assert station.notifier.heard == [
        "ready: 1 case in hand",
        "status: 1 case in hand; the cluster does not answer",
        "status: 1 case in hand",
        "stopping: ending; what is on the cluster runs on",
    ]
    assert station.notifier.beats >= 3


def test_it_observes_itself_and_says_at_last_that_it_was_stopped(station: Station) -> None:
    station.run(never, seconds=200)
    told = [health.status for health in station.sink.healths]
    assert told[-1] is HealthStatus.STOPPED
    assert set(told[:-1]) == {HealthStatus.OK}
    assert len(told) >= 4
    assert station.sink.metricses >= 6
    state = station.daemon.state()
    assert (state.gpu_slots, state.gpu_slots_used, state.connections) == (8, 0, 2)
    assert (state.submissions, state.poll_failures) == (1, 0)
    assert state.polls >= 1
    assert state.last_good_look is not None
    assert state.scan_age is not None


def test_before_anything_was_seen_there_is_no_age(station: Station) -> None:
    state = station.daemon.state()
    assert isinstance(state, LoopState)
    assert (state.last_good_look, state.scan_age) == (None, None)


def test_asked_to_end_before_it_begins_it_ends_at_once(station: Station) -> None:
    assert station.run(lambda: True) is End.STOPPED
    assert station.bench.world.log == []
    assert [word.split(":")[0] for word in station.notifier.heard] == ["ready", "stopping"]
    assert [health.status for health in station.sink.healths] == [HealthStatus.STOPPED]


# New settings


def test_a_reload_ends_it_at_once_when_nothing_is_under_way(station: Station) -> None:
    station.run(station.stands)
    station.sink.healths.clear()
    station.asked_to_reload = True
    before = station.bench.clock.time
    assert station.run(never) is End.RELOAD
    assert station.bench.clock.time - before <= 2
    assert station.notifier.heard[-1] == "reloading"
    assert HealthStatus.STOPPED not in [health.status for health in station.sink.healths]


def test_a_reload_waits_for_a_submission_whose_answer_is_not_there(station: Station) -> None:
    bench = station.bench
    bench.world.silent.add(Submit)

    def asked() -> bool:
        station.asked_to_reload = station.asked_to_reload or bool(bench.world.started(Submit))
        sent = bench.world.started(Submit)
        if sent and bench.clock.time > 100 and Submit in bench.world.silent:
            bench.world.silent.discard(Submit)
            bench.world._waiting.append(bench.world._answer(sent[0]))
        return False

    assert station.run(asked) is End.RELOAD
    assert 100 < bench.clock.time < 200
    assert bench.report.submission == "standing"
    assert station.notifier.beats > 10
    station.asked_to_reload = False
    station.wire()
    station.run(never, seconds=20)
    assert len(bench.world.started(Submit)) == 1


def test_a_reload_waits_no_longer_than_five_minutes(station: Station) -> None:
    bench = station.bench
    bench.world.silent.add(Submit)
    began: list[float] = []

    def asked() -> bool:
        if bench.world.started(Submit) and not began:
            began.append(bench.clock.time)
            station.asked_to_reload = True
        return False

    assert station.run(asked) is End.RELOAD
    assert 300 <= bench.clock.time - began[0] <= 302
    # A turn a second or so: it waits, it does not spin.
    assert station.notifier.beats < 2000
    station.asked_to_reload = False
    station.wire()
    station.run(never, seconds=20)
    assert bench.report.submission == "ambiguous"
    assert len(bench.world.started(Submit)) == 1


def test_while_a_reload_waits_requests_are_served_and_nothing_begins(station: Station) -> None:
    bench = station.bench
    bench.world.silent.add(Submit)

    def asked() -> bool:
        if bench.world.started(Submit) and not station.asked_to_reload:
            station.asked_to_reload = True
            with bench.store.transaction() as unit:
                unit.cases.put(make_case(key="bbbbbbbbbbbb"))
            station.asked.requests = [
                Request(request_id="1", verb=Verb.LEAD, case_id="bbbbbbbbbbbb", who="me", priority=3)
            ]
        return False

    assert station.run(asked) is End.RELOAD
    assert [reply.refused for reply in station.asked.replies] == [False]
    assert len(bench.world.started(Upload)) == 1


def test_asked_to_end_while_a_reload_waits_it_ends(station: Station) -> None:
    bench = station.bench
    bench.world.silent.add(Submit)

    def asked() -> bool:
        station.asked_to_reload = bool(bench.world.started(Submit))
        return station.asked_to_reload and bench.clock.time > 30

    assert station.run(asked) is End.STOPPED
    assert bench.clock.time < 60
    assert [word.split(":")[0] for word in station.notifier.heard[-2:]] == ["reloading", "stopping"]
    assert station.sink.healths[-1].status is HealthStatus.STOPPED


# What fails


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (ConfigurationError("machines does not list G9"), "machines does not list G9"),
        (ProcessingError("P-Smith cannot be sent"), "ProcessingError"),
    ],
)
def test_one_case_that_cannot_be_begun_stops_no_other(
    station: Station, monkeypatch: pytest.MonkeyPatch, error: Exception, logged: str
) -> None:
    with station.bench.store.transaction() as unit:
        unit.cases.put(make_case(key="aaaaaaaaaaaa"))
    real = station.bench.jobs.create_job

    def create(case_id: str) -> Job:
        if case_id != KEY:
            raise error
        return real(case_id)

    monkeypatch.setattr(JobService, "create_job", lambda _, case_id: create(case_id))
    with capture_logs() as logs:
        station.run(station.stands)
    (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (entry["case_id"], entry["why"]) == ("aaaaaaaaaaaa", logged)


def test_a_store_that_fails_ends_it_with_the_error(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    real = station.bench.store.transaction

    def fail_later(*, write: bool = True) -> object:
        if station.notifier.beats >= 1 and write:
            raise StateError("the store cannot be written")
        return real(write=write)

    monkeypatch.setattr(station.bench.store, "transaction", fail_later)
    with pytest.raises(StateError, match="cannot be written"):
        station.run(never)
    assert HealthStatus.STOPPED not in [health.status for health in station.sink.healths]
    assert not any(word.startswith("stopping") for word in station.notifier.heard)


def test_a_store_that_fails_at_the_start_ends_it_before_it_is_ready(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> Iterator[None]:
        raise StateError("the store is damaged")

    monkeypatch.setattr(station.bench.store, "transaction", fail)
    with pytest.raises(StateError, match="damaged"):
        station.daemon.run(stopping=never, reloading=never)
    assert station.notifier.heard == []
