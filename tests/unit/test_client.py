"""Commands beside whoever holds the lock: asked, answered, waited for, and taken over when nobody leads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mqi_hpc.controllers import client as module
from mqi_hpc.controllers.application import Application, Outcome
from mqi_hpc.controllers.client import Client
from mqi_hpc.core.effects import Download, Failure, Submit
from mqi_hpc.core.errors import LockHeld, ProcessingError
from mqi_hpc.core.intake import Rejected
from mqi_hpc.core.models import CaseStatus
from mqi_hpc.core.requests import Reply, Request, Verb
from mqi_hpc.domain.request_desk import RequestDesk
from mqi_hpc.infrastructure.state.requests import RequestFolder
from tests.support.bench import KEY
from tests.unit.test_application import Desktop

BAD = Rejected("a fraction with faults")


class Mailbox(RequestFolder):
    """The folder, whose other side turns whenever an answer is waited for."""

    def __init__(self, folder: Path, serve: Callable[[], None]) -> None:
        super().__init__(folder)
        self._serve = serve
        self.left: list[Request] = []

    def leave(self, request: Request) -> None:
        self.left.append(request)
        super().leave(request)

    def await_reply(self, request_id: str, seconds: float) -> Reply | None:
        self._serve()
        return super().await_reply(request_id, 0)


class Beside:
    """A client beside a holder of the lock, both on one store; each look is a turn of the holder."""

    def __init__(self, folder: Path, *, stays: bool = True) -> None:
        self.desktop = Desktop()
        self.bench = self.desktop.bench
        self.alive = True
        self.deaf = False
        self.looks = 0
        self.on_look: Callable[[], None] = lambda: None
        self.rival = False
        served = RequestFolder(folder)
        self.desk = RequestDesk(served, self.bench.orders, self.bench.orchestrator.process_case, stays=stays)
        self.mailbox = Mailbox(folder, self._serve)
        self.client = Client(
            cases=self.desktop.cases,  # type: ignore[arg-type]
            reports=self.bench.reports,
            mailbox=self.mailbox,
            new_id=lambda: f"{len(self.mailbox.left):03d}",
            sleep=self._turn,
            nobody_leads=lambda: not self.alive,
            take_over=self._take_over,
        )

    def _serve(self) -> None:
        if not self.deaf:
            self.desk.serve()

    def _turn(self, _: float) -> None:
        self.looks += 1
        assert self.looks < 1000, "waits for ever"
        if self.alive:
            self.bench.turn()
        self.on_look()

    def _take_over(self) -> Application | None:
        if self.rival:
            self.rival = False
            return None
        self.bench.wire()
        self.desktop.wire()
        return self.desktop.application

    def dies_at(self, look: int) -> None:
        def die() -> None:
            if self.looks >= look:
                self.alive = False

        self.on_look = die

    def submit(self, *, wait: bool = False, **more: int) -> Outcome:
        return self.client.submit("/cases/x", None, wait=wait, **more)

    def ends(self, status: CaseStatus) -> None:
        with self.bench.store.transaction() as unit:
            case = unit.cases.get(KEY)
            assert case is not None
            unit.cases.put(case.evolve(status=status))


@pytest.fixture
def beside(tmp_path: Path) -> Beside:
    return Beside(tmp_path / "requests")


@pytest.fixture
def passing(tmp_path: Path) -> Beside:
    """Beside a command that ends with its own cases."""
    return Beside(tmp_path / "requests", stays=False)


def test_a_daemon_takes_it_in_hand_and_nobody_waits(beside: Beside) -> None:
    outcome = beside.submit(priority=4)
    assert (outcome.exit_code, outcome.cases[0].status, beside.looks) == (0, "queued", 0)
    assert outcome.notes == ("a note",)
    assert [(each.verb, each.priority) for each in beside.mailbox.left] == [(Verb.LEAD, 4)]
    beside.bench.until_sent()


def test_waiting_ends_with_the_case(beside: Beside) -> None:
    beside.desktop.finishes(1)
    outcome = beside.submit(wait=True)
    assert (outcome.exit_code, outcome.cases[0].status) == (3, "partial")
    assert len(beside.bench.world.started(Submit)) == 1


def test_a_case_that_has_ended_is_not_asked_for(beside: Beside) -> None:
    beside.ends(CaseStatus.COMPLETED)
    outcome = beside.submit(wait=True)
    assert (outcome.exit_code, beside.mailbox.left) == (0, [])
    beside.ends(CaseStatus.FAILED)
    assert beside.submit().exit_code == 1


def test_results_that_did_not_come_home_are_asked_for(beside: Beside) -> None:
    beside.desktop.finishes()
    beside.bench.world.fail(Download, Failure.CASE, "another file has this result's name")
    assert beside.submit(wait=True).exit_code == 3
    again = beside.submit(wait=True)
    assert (again.exit_code, again.cases[0].status) == (0, "completed")
    assert len(beside.bench.world.started(Submit)) == 1


@pytest.mark.parametrize("wait", [True, False])
def test_what_was_rejected_is_told(beside: Beside, wait: bool) -> None:
    beside.desktop.cases.rejected = (BAD,)
    beside.desktop.finishes()
    outcome = beside.submit(wait=wait)
    assert outcome.rejected == ("a fraction with faults",)
    assert outcome.exit_code == 3


def order(verb: Verb, **more: object) -> Request:
    return Request(request_id="7", verb=verb, case_id=KEY, who="me", **more)  # type: ignore[arg-type]


def test_an_order_is_carried_out_and_its_answer_told(beside: Beside) -> None:
    beside.desktop.finishes(1)
    beside.submit(wait=True)
    beside.desktop.finishes()
    outcome = beside.client.order(order(Verb.RESUBMIT, beams=(3,)), wait=False)
    assert outcome.exit_code == 0
    assert "array index 1" in outcome.notes[0]
    assert beside.mailbox.left[-1].beams == (3,)


def test_an_order_that_is_refused_is_an_error(beside: Beside) -> None:
    beside.submit()
    with pytest.raises(ProcessingError, match="there is nothing to fetch") as caught:
        beside.client.order(order(Verb.FETCH), wait=True)
    assert caught.value.fix
    assert beside.looks == 0


def test_whoever_does_not_answer_is_told_of_and_the_request_withdrawn(beside: Beside) -> None:
    beside.deaf = True
    with pytest.raises(LockHeld, match=r"has not answered for 60 s.*withdrawn"):
        beside.submit()
    beside.deaf = False
    assert beside.desk.serve() == 0


# When the holder ends


def test_the_place_of_a_daemon_that_ended_is_taken(beside: Beside) -> None:
    beside.desktop.cases.rejected = (BAD,)
    beside.desktop.finishes()
    beside.dies_at(3)
    outcome = beside.submit(wait=True)
    assert outcome.cases[0].status == "completed"
    assert outcome.notes[0] == "a note"
    assert (outcome.rejected, outcome.exit_code) == (("a fraction with faults",), 3)
    assert len(beside.bench.world.started(Submit)) == 1


def test_a_daemon_that_restarts_finds_its_place_free(beside: Beside) -> None:
    beside.desktop.finishes()

    def restart() -> None:
        beside.alive = beside.looks % 30 > 10

    beside.on_look = restart
    taken: list[int] = []
    real = beside._take_over
    beside.client._take_over = lambda: (taken.append(1), real())[1]
    assert beside.submit(wait=True).exit_code == 0
    assert taken == []


def test_another_that_was_faster_leads_on(beside: Beside) -> None:
    beside.desktop.finishes()
    beside.rival = True
    beside.dies_at(1)
    assert beside.submit(wait=True).exit_code == 0
    assert not beside.rival


def test_a_signal_to_who_took_over_says_so(beside: Beside) -> None:
    beside.desktop.cases.rejected = (BAD,)
    beside.dies_at(1)

    def signalled() -> None:
        # The one that took over, not the one there is now.
        beside.desktop.application._stop()

    beside.bench.world.on_poll = signalled
    outcome = beside.submit(wait=True)
    assert outcome.exit_code == 130
    assert "stopped" in outcome.notes[-1]


def test_beside_a_command_it_stays_until_the_chain_stands(passing: Beside) -> None:
    outcome = passing.submit()
    assert (outcome.exit_code, outcome.cases[0].submission) == (0, "standing")
    assert passing.looks > 0


def test_when_that_command_ends_before_it_leads_itself(passing: Beside) -> None:
    passing.dies_at(1)
    outcome = passing.submit()
    assert (outcome.exit_code, outcome.cases[0].submission) == (0, "standing")
    assert passing.looks == 1
    assert len(passing.bench.world.started(Submit)) == 1


def test_a_command_that_does_not_come_to_send_it_is_not_watched_for_ever(
    passing: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEND_LOOKS", 20)
    for _ in range(200):
        passing.bench.world.fail(Submit, Failure.OUTAGE, "no route to host")
    outcome = passing.submit()
    assert passing.looks == 19
    assert "still sending it" in outcome.notes[-1]
    assert outcome.exit_code == 0
