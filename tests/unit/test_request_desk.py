"""What other processes ask is carried out once, answered always, and stops nothing."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from mqi_hpc.core.effects import Download, Failure, Submit
from mqi_hpc.core.errors import ProcessingError, StateError
from mqi_hpc.core.requests import Reply, Request, Verb
from mqi_hpc.domain.request_desk import RequestDesk
from tests.support.bench import KEY, Bench
from tests.unit.test_application import Asked, Desktop


class Counter:
    """The desk of a bench, with what is asked and answered."""

    def __init__(self, bench: Bench, *, stays: bool = True) -> None:
        self.bench = bench
        self.asked = Asked()
        self.led: list[str] = []
        self.desk = RequestDesk(self.asked, bench.orders, self._lead, stays=stays)

    def _lead(self, case_id: str) -> None:
        self.led.append(case_id)
        self.bench.orchestrator.process_case(case_id)

    def ask(self, verb: Verb, name: str = "1", case_id: str = KEY, **more: object) -> Reply:
        request = Request(request_id=name, verb=verb, case_id=case_id, who="me", **more)  # type: ignore[arg-type]
        self.asked.requests.append(request)
        assert self.desk.serve() == 1
        return self.asked.replies[-1]


@pytest.fixture
def counter() -> Counter:
    return Counter(Bench())


def test_nothing_asked_is_nothing_done(counter: Counter) -> None:
    assert counter.desk.serve() == 0
    assert counter.asked.replies == []


@pytest.mark.parametrize("stays", [True, False])
def test_what_is_asked_is_done_and_answered(stays: bool) -> None:
    counter = Counter(Bench(), stays=stays)
    with capture_logs() as logs:
        reply = counter.ask(Verb.LEAD, priority=7)
    assert (reply.refused, reply.stays) == (False, stays)
    assert "taken in hand" in reply.said
    assert counter.led == [KEY]
    assert counter.bench.report.job == "j01"
    (entry,) = [entry for entry in logs if entry["event"] == "request"]
    assert (entry["verb"], entry["case_id"], entry["refused"]) == ("lead", KEY, False)


def test_asked_again_after_a_crash_it_is_only_answered_again(counter: Counter) -> None:
    counter.ask(Verb.LEAD)
    assert "done already" in counter.ask(Verb.LEAD).said
    counter.bench.begin()
    counter.bench.until_sent()
    assert len(counter.bench.world.started(Submit)) == 1


def test_a_refusal_tells_who_asked_and_not_the_log(counter: Counter) -> None:
    label = counter.bench.report.label
    with capture_logs() as logs:
        reply = counter.ask(Verb.FETCH)
    assert reply.refused
    assert label in reply.said
    assert reply.fix
    assert counter.led == []
    assert label not in str(logs)


def test_one_case_that_is_not_there_harms_no_other(counter: Counter) -> None:
    counter.asked.requests.append(Request(request_id="0", verb=Verb.LEAD, case_id="nobody", who="me"))
    counter.asked.requests.append(Request(request_id="1", verb=Verb.LEAD, case_id=KEY, who="me"))
    assert counter.desk.serve() == 2
    assert [reply.refused for reply in counter.asked.replies] == [True, False]


def test_a_fault_of_ours_is_answered_and_logged_without_its_words(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = "Smith, John"

    def fail(_: Request) -> str:
        raise KeyError(patient)

    monkeypatch.setattr(counter.bench.orders, "carry_out", fail)
    with capture_logs() as logs:
        reply = counter.ask(Verb.LEAD)
    assert reply == Reply(
        request_id="1",
        said="KeyError (a fault of this program)",
        refused=True,
        fix="Its log tells more",
        stays=True,
    )
    error = next(entry for entry in logs if entry["log_level"] == "error")
    assert "carry_out" in error["traceback"]
    assert patient not in str(logs)


def test_a_store_that_fails_is_said(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Request) -> str:
        raise StateError("the store cannot be written", fix="Make room")

    monkeypatch.setattr(counter.bench.orders, "carry_out", fail)
    reply = counter.ask(Verb.LEAD)
    assert (reply.refused, reply.said, reply.fix) == (True, "the store cannot be written", "Make room")


def test_what_cannot_be_led_is_refused(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ProcessingError("cannot be led")

    counter.desk = RequestDesk(counter.asked, counter.bench.orders, fail)
    assert counter.ask(Verb.LEAD).said == "cannot be led"


def test_results_that_did_not_come_home_are_fetched_when_it_is_submitted_again() -> None:
    desktop = Desktop()
    desktop.finishes()
    desktop.bench.world.fail(Download, Failure.CASE, "another file has this result's name")
    assert desktop.submit().exit_code == 3
    counter = Counter(desktop.bench)
    counter.ask(Verb.LEAD)
    counter.bench.until("completed")


def test_a_case_that_was_cancelled_before_it_was_begun_is_not_begun(counter: Counter) -> None:
    assert "nothing of it had been sent" in counter.ask(Verb.CANCEL).said
    counter.bench.turn(20)
    assert counter.bench.report.status == "cancelled"
    assert counter.bench.world.log == []
