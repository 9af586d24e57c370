"""Many cases at once: who goes first, how many, what an outage and a stall cost the others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from mqi_hpc.core.effects import Download, Observe, Prune, Scan, Submit, Upload
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import CaseStatus, SubmitState
from mqi_hpc.core.requests import Request, Verb
from mqi_hpc.core.resubmit import JobPlan
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.domain.outage import Outage
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site

HOUR = 3600.0


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version="22.05")) as bed:
        yield Floor(bed)


def limited(floor: Floor, **changes: int) -> Floor:
    return Floor(floor.bed, **changes)


def statuses(floor: Floor) -> list[str]:
    return [report.status for report in floor.home.reports.cases() if report.label != floor.case.label]


def all_are(floor: Floor, status: str) -> bool:
    return set(statuses(floor)) == {status}


# Who goes first


def test_at_most_so_many_cases_are_in_flight(floor: Floor) -> None:
    floor = limited(floor, max_concurrent_jobs=2)
    for case in floor.more(6):
        floor.take(case)
    most = 0

    def over() -> bool:
        nonlocal most
        begun = {e.case_id for e in floor.port.of(Upload)}
        ended = {r.case_id for r in floor.home.reports.cases() if r.status == "completed"}
        most = max(most, len(begun - ended))
        return all_are(floor, "completed")

    floor.until(over)
    assert most == 2


def test_a_case_that_waits_for_its_turn_is_queued(floor: Floor) -> None:
    floor = limited(floor, max_concurrent_jobs=1)
    for case in floor.more(2):
        floor.take(case)
    floor.until(lambda: "processing" in statuses(floor))
    assert sorted(statuses(floor)) == ["processing", "queued"]
    assert floor.home.scheduler.waiting == 1


def test_the_oldest_goes_first_and_priority_before_age(floor: Floor) -> None:
    floor = limited(floor, max_concurrent_jobs=1)
    cases = floor.more(4)
    for case in cases:
        floor.take(case)
        floor.sim.advance(1.0)
    floor.home.orders.prioritise(cases[3].case_id, 5)
    floor.until(lambda: all_are(floor, "completed"))
    assert [effect.case_id for effect in floor.port.of(Upload)] == [cases[n].case_id for n in (3, 0, 1, 2)]


def test_slots_are_never_oversubscribed_and_come_back_one_by_one(floor: Floor) -> None:
    floor = limited(floor, gpu_count=3)
    cases = floor.more(3, beams=2)
    floor.bed.fault(3, "hang")
    for case in cases:
        floor.take(case)
        floor.sim.advance(1.0)
    seen: set[int] = set()

    def held() -> int:
        with floor.bed.store.transaction(write=False) as unit:
            return sum(unit.resources.holdings().values())

    def one_is_free() -> bool:
        seen.add(held())
        return len(floor.port.of(Submit)) == 2

    # Beam 2 of the first case ends, its slot is free, and then two are: the second case fits.
    floor.until(one_is_free)
    assert 2 in seen
    assert max(seen) <= 3
    assert held() == 3
    floor.until(lambda: [r.submission for r in floor.home.reports.cases()].count("standing") == 2)
    for case in cases:
        floor.home.orders.carry_out(
            Request(request_id=case.case_id, verb=Verb.CANCEL, case_id=case.case_id, who="ann")
        )
    floor.until(lambda: held() == 0 and "processing" not in statuses(floor))


def test_a_small_case_does_not_overtake_one_that_waits_for_slots(floor: Floor) -> None:
    floor = limited(floor, gpu_count=3)
    first, large, small = (*floor.more(2, beams=2), *floor.more(3, beams=1)[2:])
    large = large.evolve(beam_count=3, beams=floor.case.beams)
    for case in (first, large, small):
        floor.take(case)
        floor.sim.advance(1.0)
    floor.until(lambda: all_are(floor, "completed"))
    assert [effect.case_id for effect in floor.port.of(Submit)] == [
        case.case_id for case in (first, large, small)
    ]


def test_what_is_submitted_again_is_not_held_up_by_who_waits_for_its_slots(floor: Floor) -> None:
    # Found by ./dev chaos: each waited for the other, for ever.
    floor = limited(floor, gpu_count=2)
    small, large = floor.more(1, beams=1)[0], floor.more(2, beams=2)[1]
    floor.take(large)
    floor.sim.link.cut_submit = "sbatch beams"
    floor.until(lambda: bool(floor.port.of(Submit)))
    floor.take(small)
    floor.home.orders.prioritise(small.case_id, 5)
    floor.until(lambda: all_are(floor, "completed"))
    assert [effect.case_id for effect in floor.port.of(Submit)] == [
        case.case_id for case in (large, large, small)
    ]


def test_an_outage_with_nothing_to_try_it_with_does_not_spin(floor: Floor) -> None:
    # Found by ./dev chaos: a hundred turns a second while the only upload waited for disk space.
    floor.sim.files.free_bytes = 0
    floor.take()
    floor.until(lambda: len(floor.port.of(Upload)) == 6)
    floor.sim.link.down = True
    floor.until(lambda: floor.home.orchestrator.outage.active)
    began, turns = floor.bed.clock.monotonic(), 0
    while floor.bed.clock.monotonic() < began + 30.0:
        floor.home.orchestrator.turn()
        turns += 1
    assert turns < 60


def test_a_case_without_a_job_gives_nothing_to_do(floor: Floor) -> None:
    with floor.bed.store.transaction() as unit:
        unit.cases.put(floor.case)
    floor.home.scheduler.schedule_case(floor.case.case_id)
    assert floor.home.scheduler.get_next_task() is None
    assert floor.home.scheduler.waiting == 1


def test_who_no_longer_waits_for_slots_holds_nobody_up(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: floor.report().submission == "uploaded")
    task = floor.home.scheduler.get_next_task()
    assert task is not None
    floor.home.scheduler.defer_task(task.task_id, 5.0, for_slots=True)
    assert floor.home.scheduler.next_due() == 5.0
    floor.home.scheduler.defer_task(task.task_id, 5.0)
    floor.sim.advance(5.0)
    assert floor.home.scheduler.next_due() is None
    assert floor.home.scheduler.get_next_task() == task


def test_what_the_loop_did_not_start_changes_nothing(floor: Floor) -> None:
    floor.port.start(Prune(case_id=floor.case.case_id, folder=floor.bed.case_folder))
    for _ in range(5):
        floor.home.orchestrator.turn()
    assert floor.report().status == "new"


def test_a_job_is_not_planned_on_a_record_that_is_not_there(floor: Floor) -> None:
    floor.take()
    with floor.bed.store.transaction() as unit, pytest.raises(ProcessingError, match="is not in the store"):
        plan = JobPlan(stages=("convert",), indices=(), interpreted="j01")
        floor.home.jobs.plan(unit, floor.case, plan)


def test_a_case_leaves_the_hand_when_all_of_it_has_ended(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    floor.home.orchestrator.turn()
    assert floor.home.scheduler.cases == ()
    looks = len(floor.port.of(Observe))
    floor.sim.advance(HOUR)
    for _ in range(50):
        floor.home.orchestrator.turn()
    # Now and then the queue alone is looked at, for what may have come back.
    assert [effect.jobs for effect in floor.port.of(Observe)[looks:] if isinstance(effect, Observe)] == [()]


# Outages


def test_a_weekend_without_a_cluster_costs_a_connection_a_minute_and_no_case(floor: Floor) -> None:
    floor = limited(floor, max_concurrent_jobs=4)
    cases = floor.more(12)
    for case in cases[:6]:
        floor.take(case)
    floor.until(lambda: len(floor.port.of(Submit)) >= 2)
    floor.sim.link.down = True
    began = floor.bed.clock.monotonic()
    for case in cases[6:]:
        floor.take(case)
    while floor.bed.clock.monotonic() - began < 8 * HOUR:
        floor.home.orchestrator.turn()
    tried = [at - began for at, _ in floor.port.started if at > began]
    assert not {"failed", "rejected", "cancelled", "partial"} & set(statuses(floor))
    assert len(tried) <= 8 * 60
    steady = [at for at in tried if at > 600]
    assert all(b - a >= 60 for a, b in pairwise(steady))
    assert len(steady) > 300
    assert sum("does not answer" in text for text in floor.said) <= 2 * len(cases)
    floor.sim.link.down = False
    floor.until(lambda: all_are(floor, "completed"))
    assert any("answers again" in text for text in floor.said)


def test_after_an_outage_what_waits_goes_on_at_once(floor: Floor) -> None:
    cases = floor.more(5)
    floor.sim.link.down = True
    for case in cases:
        floor.take(case)
    floor.until(lambda: floor.home.orchestrator.outage.failures >= 8)
    floor.sim.link.down = False
    began = floor.bed.clock.monotonic()
    floor.until(lambda: len({e.case_id for e in floor.port.of(Submit)}) == 5)
    assert floor.bed.clock.monotonic() - began < 120


def test_a_refused_key_is_tried_four_times_an_hour(floor: Floor) -> None:
    floor.take()
    floor.sim.link.refused = True
    floor.until(lambda: floor.home.orchestrator.outage.refused)
    began, count = floor.bed.clock.monotonic(), len(floor.port.started)
    while floor.bed.clock.monotonic() - began < HOUR:
        floor.home.orchestrator.turn()
    assert len(floor.port.started) - count <= 4
    floor.home.orchestrator.outage.retry_now()
    floor.sim.link.refused = False
    floor.until("completed")


def test_a_stalled_upload_delays_no_other_verdict(floor: Floor) -> None:
    stuck, case = floor.more(2)
    floor.sim.link.stall = [Upload]
    floor.take(stuck)
    floor.until(lambda: bool(floor.port.of(Upload)))
    floor.take(case)
    floor.until(lambda: floor.home.report(case.case_id).status == "completed")
    looks = [at for at, effect in floor.port.started if isinstance(effect, Observe)]
    assert max(b - a for a, b in pairwise(looks)) < 80
    assert floor.home.report(stuck.case_id).status == "processing"
    floor.sim.release()
    floor.until(lambda: all_are(floor, "completed"))


def test_a_stalled_download_delays_no_other_case(floor: Floor) -> None:
    first, second = floor.more(2)
    floor.sim.link.stall = [Download]
    floor.take(first)
    floor.until(lambda: bool(floor.port.of(Download)))
    floor.take(second)
    floor.until(lambda: floor.home.report(second.case_id).status == "completed")
    assert floor.home.report(first.case_id).status == "processing"


def test_a_restart_takes_everything_up_where_it_was(floor: Floor) -> None:
    cases = floor.more(4)
    for case in cases:
        floor.take(case)
    floor.until(lambda: len(floor.port.of(Submit)) >= 2)
    floor.until(lambda: SubmitState.STANDING in [r.submission for r in floor.home.reports.cases()])
    for _ in range(3):
        floor.sim.close()
        floor.restart()
        for case in cases:
            floor.home.orchestrator.process_case(case.case_id)
        for _ in range(5):
            floor.home.orchestrator.turn()
    floor.until(lambda: CaseStatus.PROCESSING not in statuses(floor))
    assert len(floor.sim.slurm.jobs) == 12
    assert all_are(floor, "completed")


def test_a_loop_that_is_drained_begins_nothing_more(floor: Floor) -> None:
    first, second = floor.more(2)
    floor.sim.link.stall = [Submit]
    floor.take(first)
    floor.until(lambda: bool(floor.port.of(Submit)))
    floor.take(second)
    assert not floor.home.orchestrator.drain()
    assert len(floor.port.of(Upload)) == 1
    floor.sim.release()
    while not floor.home.orchestrator.drain():
        pass
    assert floor.home.report(first.case_id).submission == "standing"


# The value


def test_what_was_under_way_when_it_began_does_not_put_the_next_attempt_off() -> None:
    outage = Outage(RetryPolicy())
    assert outage.may_try(0.0)
    assert outage.wait(0.0) is None
    assert outage.failed(0.0, "no route", refused=False, draw=0.0)
    assert not outage.may_try(0.5)
    assert not outage.failed(0.5, "no route", refused=False, draw=0.0)
    assert outage.wait(0.5) == 0.5
    assert outage.may_try(1.0)
    outage.trying()
    assert not outage.may_try(1.0)
    assert outage.wait(1.0) is None
    assert outage.failed(2.0, "no route", refused=False, draw=0.0)
    assert outage.failures == 2
    assert outage.succeeded()
    assert not outage.succeeded()


class Finds:
    """Scans that find cases once."""

    def __init__(self, *case_ids: str) -> None:
        self.case_ids = case_ids

    def begin(self) -> None:
        """Nothing is due by itself."""

    def wait(self) -> float:
        return 1.0

    def apply(self, _: object) -> tuple[str, ...]:
        return self.case_ids


def test_a_case_that_cannot_be_begun_stops_no_other(floor: Floor) -> None:
    with floor.bed.store.transaction() as unit:
        unit.cases.put(floor.case)
    floor.home.orchestrator._scans = Finds("nobody", floor.case.case_id)  # type: ignore[assignment]
    floor.port.start(Scan(known=()))
    floor.until("completed")
    assert any(text.startswith("cannot be begun: no case 'nobody'") for text in floor.said)


def test_who_asks_for_a_case_has_the_cluster_tried_at_once(floor: Floor) -> None:
    floor.sim.link.refused = True
    floor.take()
    floor.until(lambda: floor.home.orchestrator.outage.refused)
    floor.sim.link.refused = False
    began = floor.bed.clock.monotonic()
    floor.home.orchestrator.take(floor.case.case_id)
    floor.until(lambda: not floor.home.orchestrator.outage.active)
    assert floor.bed.clock.monotonic() - began < 60
