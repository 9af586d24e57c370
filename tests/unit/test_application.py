"""The submit use case: what it waits for, when it gives up, and with which exit code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mqi_hpc.controllers.application import Application, Outcome
from mqi_hpc.core.causes import Cause
from mqi_hpc.core.effects import Completion, Download, Effect, Failure, Submit, Upload
from mqi_hpc.core.errors import AuthenticationError, ConnectionError, LockHeld, ProcessingError, ResourceError
from mqi_hpc.core.intake import Fault, Rejected
from mqi_hpc.core.requests import Reply, Request, Verb
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.core.retry_causes import Asked as Asks
from mqi_hpc.core.retry_causes import RetryTable, Rule
from mqi_hpc.domain.request_desk import RequestDesk
from mqi_hpc.services.case_service import Registration
from tests.support.bench import KEY, Bench, make_case


class Lifecycle:
    def __init__(self) -> None:
        self.held = False
        self.free = True
        self.handler: Callable[[], None] = lambda: None

    def acquire_lock(self) -> bool:
        self.held = self.free
        return self.free

    def release_lock(self) -> None:
        self.held = False

    def register_shutdown_handler(self, handler: Callable[[], None]) -> None:
        self.handler = handler


class Cases:
    """A folder that holds the bench's case."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rejected: tuple[Rejected, ...] = ()

    def register(self, folder: str, chosen: object) -> Registration:
        return Registration((self.bench.cases.get_case(KEY),), self.rejected, ("a note",))


class Asked:
    """What other processes ask (IRequests)."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.replies: list[Reply] = []

    def take(self) -> list[Request]:
        taken, self.requests = self.requests, []
        return taken

    def answer(self, reply: Reply) -> None:
        self.replies.append(reply)


class Desktop:
    """Bench and application on it; the cluster finishes everything unless told otherwise."""

    def __init__(self, **kind: object) -> None:
        self.bench = bench = Bench(**kind)  # type: ignore[arg-type]
        self.lifecycle = Lifecycle()
        self.cases = Cases(bench)
        self.asked = Asked()
        self.wire()
        bench.begin()

    def wire(self) -> None:
        bench = self.bench
        self.application = Application(
            lifecycle=self.lifecycle,
            cases=self.cases,  # type: ignore[arg-type]
            resources=bench.resources,
            reports=bench.reports,
            orchestrator=bench.orchestrator,
            orders=bench.orders,
            requests=RequestDesk(self.asked, bench.orders, bench.orchestrator.process_case),
            effects=bench.world,
            clock=bench.clock,
            retry=RetryPolicy(),
            submit_seconds=30.0,
        )

    def submit(self, *, wait: bool = True) -> Outcome:
        return self.application.submit("/cases/x", None, wait=wait)

    def finishes(self, *failed: int) -> None:
        """From the second look on, everything has ended; `failed` beams failed."""
        bench = self.bench

        def finish() -> None:
            if bench.report.submission != "standing":
                return
            bench.interpret_done()
            good = [n for n in range(2) if n not in failed]
            for n in range(2):
                if n in good:
                    bench.beam_done(n)
                else:
                    bench.world.end("beams", "FAILED", task=n, exit_code="3:0")
            if good:
                bench.convert_done(*good)
            else:
                bench.world.end("convert", "FAILED", exit_code="1:0")
            bench.exits(
                ("interpret", 0, 0), *(("beams", n, 3 if n in failed else 0) for n in range(2)),
                ("convert", 0, 0 if good else 1),
            )  # fmt: skip

        bench.world.on_poll = finish


@pytest.fixture
def desktop() -> Desktop:
    return Desktop()


@pytest.mark.parametrize(
    ("failed", "status", "code"), [((), "completed", 0), ((1,), "partial", 3), ((0, 1), "failed", 1)]
)
def test_waiting_ends_with_the_case(
    desktop: Desktop, failed: tuple[int, ...], status: str, code: int
) -> None:
    desktop.finishes(*failed)
    outcome = desktop.submit()
    assert [case.status for case in outcome.cases] == [status]
    assert outcome.exit_code == code
    assert outcome.notes == ("a note",)
    again = desktop.submit()
    assert (again.exit_code, again.cases[0].status) == (code, status)
    assert len(desktop.bench.world.started(Submit)) == 1


def test_without_waiting_it_returns_when_the_chain_stands(desktop: Desktop) -> None:
    outcome = desktop.submit(wait=False)
    assert outcome.exit_code == 0
    assert (outcome.cases[0].status, outcome.cases[0].submission) == ("processing", "standing")


def test_run_again_without_waiting_it_looks_and_returns(desktop: Desktop) -> None:
    desktop.submit(wait=False)
    desktop.bench.wire()
    desktop.wire()
    assert desktop.submit(wait=False).exit_code == 0
    assert desktop.bench.orchestrator.polls.good_looks >= 2
    desktop.bench.wire()
    desktop.wire()
    desktop.finishes()
    assert desktop.submit(wait=False).cases[0].status in ("processing", "completed")
    assert desktop.submit(wait=True).cases[0].status == "completed"


def test_run_again_while_a_retry_is_to_come_it_says_so_and_returns() -> None:
    rule = Rule(most=1, pauses=(1e6,))
    table = RetryTable(most=1, rules={Cause.NODE_FAIL: rule}, asked={"beams": Asks(1, 1)})
    desktop = Desktop(retries=table)
    desktop.finishes(1)
    whole = desktop.bench.world.on_poll

    def on_poll() -> None:
        whole()
        desktop.bench.world.end("beams", "NODE_FAIL", task=1)

    desktop.bench.world.on_poll = on_poll
    desktop.submit(wait=False)
    for _ in range(200):
        desktop.bench.turn()
    before = desktop.bench.clock.monotonic()
    outcome = desktop.submit(wait=False)
    assert desktop.bench.clock.monotonic() - before < 60
    (report,) = outcome.cases
    assert (outcome.exit_code, report.status, report.job) == (0, "processing", "j01")
    assert [one.what for one in report.next] == ["beam 3"]


def test_an_unreachable_cluster_is_said_and_nothing_is_lost(desktop: Desktop) -> None:
    for _ in range(5):
        desktop.bench.world.fail(Upload, Failure.OUTAGE, "no route to host")
    with pytest.raises(ConnectionError, match=r"no route to host.*submit the folder again"):
        desktop.submit()
    assert desktop.bench.report.status == "processing"


def test_an_outage_after_the_chain_stands_is_waited_out(desktop: Desktop) -> None:
    desktop.submit(wait=False)
    for _ in range(8):
        desktop.bench.world.fail(Download, Failure.OUTAGE, "no route to host")
    desktop.finishes()
    assert desktop.submit().exit_code == 0


def test_a_refused_key_ends_the_wait(desktop: Desktop) -> None:
    desktop.bench.world.fail(Upload, Failure.ACCESS, "our key was refused")
    with pytest.raises(AuthenticationError, match="our key was refused"):
        desktop.submit()


def test_too_little_space_on_the_cluster_ends_the_wait(desktop: Desktop) -> None:
    desktop.bench.world.fail(Upload, Failure.SPACE, "3 GB are free")
    outcome = desktop.submit()
    assert outcome.exit_code == 1
    assert "3 GB are free" in outcome.notes[-1]


def test_a_folder_that_cannot_be_used_ends_the_wait(desktop: Desktop) -> None:
    desktop.bench.world.fail(Upload, Failure.FOLDER, "the case's folder is empty")
    outcome = desktop.submit()
    assert outcome.exit_code == 1
    assert "the case's folder is empty" in outcome.notes[-1]
    assert "empty" in (outcome.cases[0].attention or "")


def test_too_little_space_here_is_said_first(desktop: Desktop) -> None:
    desktop.bench.resources._min_free = 10**15
    with pytest.raises(ResourceError, match="free where results go"):
        desktop.submit()
    assert desktop.bench.world.log == []


def test_a_doubtful_submission_is_looked_for_as_long_as_it_can_live(desktop: Desktop) -> None:
    desktop.bench.world.fail(Submit, Failure.OUTAGE, "the link broke", uncertain=True)
    desktop.finishes()
    outcome = desktop.submit()
    assert outcome.exit_code == 0
    assert desktop.bench.clock.time >= 30.0
    assert len(desktop.bench.world.started(Submit)) == 2


def test_who_does_not_get_out_of_doubt_is_told(desktop: Desktop) -> None:
    for _ in range(10):
        desktop.bench.world.fail(Submit, Failure.OUTAGE, "the link broke", uncertain=True)
    outcome = desktop.submit()
    assert outcome.exit_code == 1
    assert "the link broke" in (outcome.cases[0].attention or "")
    assert len(desktop.bench.world.started(Submit)) == 4


def test_results_that_did_not_come_home_are_fetched_again(desktop: Desktop) -> None:
    desktop.finishes()
    desktop.bench.world.fail(Download, Failure.CASE, "another file has this result's name")
    first = desktop.submit()
    assert (first.exit_code, first.cases[0].status) == (3, "partial")
    again = desktop.submit()
    assert (again.exit_code, again.cases[0].status) == (0, "completed")
    assert len(again.cases[0].results) == 2
    assert len(desktop.bench.world.started(Submit)) == 1


def test_a_slurm_that_takes_nothing_now_is_said_to_who_does_not_wait(desktop: Desktop) -> None:
    lines = [
        "BEGIN",
        "SBATCH interpret sbatch: error: QOSMaxSubmitJobPerUserLimit",
        "FAILED interpret 1",
        "DONE 75",
    ]
    for _ in range(3):
        desktop.bench.world.say(Submit, lines, 75)
    with pytest.raises(ConnectionError, match="does not take the chain now"):
        desktop.submit(wait=False)
    desktop.bench.wire()
    desktop.wire()
    assert desktop.submit(wait=False).exit_code == 0


def test_what_was_rejected_beside_a_good_case_makes_it_partial(desktop: Desktop) -> None:
    desktop.cases.rejected = (Rejected("a fraction with faults", (Fault("a.ptn", "cut off"),)),)
    desktop.finishes()
    outcome = desktop.submit()
    assert outcome.rejected == ("a fraction with faults", "a.ptn: cut off")
    assert outcome.exit_code == 3


def test_a_signal_ends_the_wait_and_leaves_the_jobs(desktop: Desktop) -> None:
    desktop.application.initialize()
    desktop.bench.world.on_poll = desktop.lifecycle.handler
    outcome = desktop.submit()
    assert outcome.exit_code == 130
    assert "submit the folder again" in outcome.notes[-1]
    assert outcome.cases[0].submission == "standing"
    desktop.application.shutdown()
    assert not desktop.lifecycle.held


def test_a_lock_that_is_held_is_said(desktop: Desktop) -> None:
    desktop.lifecycle.free = False
    with pytest.raises(LockHeld, match="another mqi-hpc"):
        desktop.application.initialize()


def test_run_leads_what_is_unfinished(desktop: Desktop) -> None:
    desktop.finishes()
    bench = desktop.bench

    def stop_when_done(effect: Effect) -> Completion:
        desktop.application._stop()
        return Completion(effect=effect, output="{}")

    bench.world.answers[Download] = [stop_when_done]
    desktop.application.run()
    assert bench.report.status == "completed"


def test_a_priority_is_kept_before_anything_is_sent(desktop: Desktop) -> None:
    bench = desktop.bench
    desktop.application.submit("/cases/x", None, wait=False, priority=9)
    with bench.store.transaction(write=False) as unit:
        assert [job.priority for job in unit.jobs.of_case(KEY)] == [9]


# Orders


def order(verb: Verb, **more: object) -> Request:
    return Request(request_id="7", verb=verb, case_id=KEY, who="me", **more)  # type: ignore[arg-type]


def test_an_order_that_cannot_be_carried_out_is_an_error(desktop: Desktop) -> None:
    with pytest.raises(ProcessingError, match="nothing to fetch"):
        desktop.application.order(order(Verb.FETCH), wait=False)


def test_a_cancel_is_fine_and_let_out_before_the_end(desktop: Desktop) -> None:
    desktop.submit(wait=False)
    desktop.bench.wire()
    desktop.wire()
    outcome = desktop.application.order(order(Verb.CANCEL, reason="wrong plan"), wait=False)
    assert outcome.exit_code == 0
    assert "is cancelled there" in outcome.notes[0]
    assert {row.word for row in desktop.bench.world.rows} == {"CANCELLED"}


def test_a_cancel_before_anything_was_sent_is_fine_too(desktop: Desktop) -> None:
    outcome = desktop.application.order(order(Verb.CANCEL), wait=False)
    assert (outcome.exit_code, outcome.cases[0].status) == (0, "cancelled")
    assert desktop.bench.world.log == []


def test_what_is_fetched_is_at_home_when_it_ends(desktop: Desktop) -> None:
    """Though nobody waits for the case: it takes its time."""
    desktop.finishes()
    assert desktop.submit().exit_code == 0
    world = desktop.bench.world
    fetched, began = len(world.started(Download)), world.clock.time
    world.silent.add(Download)
    real = desktop.asked.take

    def take() -> list[Request]:
        started = world.started(Download)[fetched:]
        if started and world.clock.time > began + 60 and Download in world.silent:
            world.silent.discard(Download)
            world._waiting.append(world._answer(started[0]))
        assert world.clock.time < began + 600, "goes on"
        return real()

    desktop.asked.take = take  # type: ignore[method-assign]
    outcome = desktop.application.order(order(Verb.FETCH), wait=False)
    assert (outcome.exit_code, outcome.cases[0].status) == (0, "completed")
    assert len(world.started(Download)) == fetched + 1


def test_while_it_leads_it_serves_others(desktop: Desktop) -> None:
    with desktop.bench.store.transaction() as unit:
        unit.cases.put(make_case(key="bbbbbbbbbbbb"))
    desktop.asked.requests = [Request(request_id="1", verb=Verb.LEAD, case_id="bbbbbbbbbbbb", who="other")]
    desktop.submit(wait=False)
    (reply,) = desktop.asked.replies
    assert (reply.refused, reply.stays) == (False, False)
    assert "bbbbbbbbbbbb" in desktop.bench.orchestrator.cases


def test_another_case_is_led_beside(desktop: Desktop) -> None:
    with desktop.bench.store.transaction() as unit:
        unit.cases.put(make_case(key="bbbbbbbbbbbb"))
    desktop.application.lead_too("bbbbbbbbbbbb")
    assert desktop.application.lead([KEY], wait=False).exit_code == 0
    assert desktop.bench.reports.case("bbbbbbbbbbbb").job == "j01"
