"""What is done again by itself, on a simulated cluster: once, for what may be retried, when it was said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.core.causes import Cause
from mqi_hpc.core.retry_causes import Asked, RetryTable, Rule
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site

PAUSES = (60.0, 300.0, 1200.0)
NODE = Rule(most=3, pauses=PAUSES, leave_out=3600.0)
TABLE = RetryTable(
    most=3,
    rules={
        Cause.NODE_FAIL: NODE,
        Cause.GPU_CHECK: NODE,
        Cause.PREEMPTED: Rule(most=20, pauses=PAUSES, counted=False),
        Cause.BURNT: Rule(most=3, pauses=PAUSES),
        Cause.OUT_OF_MEMORY: Rule(most=2, pauses=(60.0,), factor=1.5, maximum=8192),
        Cause.TIMEOUT: Rule(most=2, pauses=(60.0,), factor=2.0, maximum=3 * 3600),
    },
    asked={stage: Asked(4096, 3600) for stage in ("interpret", "beams", "convert")},
)


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version="24.11", min_job_age=1e9)) as bed:
        yield Floor(bed, retries=TABLE)


def running(floor: Floor, phases: list[str] | None = None) -> None:
    floor.until(lambda: floor.beams() == (phases or ["running"] * 3))


def nodes(floor: Floor) -> list[str]:
    return [task.node for task in floor.tasks() if task.type == "beam_calc"]


def promised(floor: Floor) -> list[float]:
    return [task.retry.at for task in floor.tasks() if task.retry is not None]


def test_beams_of_a_node_that_failed_are_computed_again_elsewhere_when_it_was_said(floor: Floor) -> None:
    floor.take()
    running(floor)
    floor.bed.node_down("g1")
    report = floor.until(lambda: len(promised(floor)) == 3)
    (at,) = set(promised(floor))
    assert report.status == "processing"
    assert [one.what for one in report.next] == ["beams 2, 3, 4"]
    assert "retry 1 of 3" in report.next[0].text
    assert "because node failed, without node g1" in report.next[0].text
    ended = [task.ended_at for task in floor.tasks() if task.retry is not None]
    assert ended == [at - 60.0] * 3
    floor.bed.sim.slurm.node_up("g1")
    report = floor.until("completed")
    assert report.next == ()
    _, second = floor.jobs()
    assert (second.automatic, second.left_out) == (True, ("g1",))
    assert at - 0.01 <= second.created_at.timestamp() < at + 10
    assert floor.in_slurm()["j02-beams"] == ["0", "1", "2"]
    assert "j02-interpret" not in floor.in_slurm()
    assert set(nodes(floor)) == {"g2"}


def test_a_beam_that_fails_its_gpu_check_burns_no_further_retry_on_that_node(floor: Floor) -> None:
    floor.sim.script.bad_nodes = {"g1"}
    floor.take()
    report = floor.until("completed")
    assert [beam.status for beam in report.beams] == ["completed"] * 3
    assert [job.left_out for job in floor.jobs()] == [(), ("g1",)]


def test_an_engine_error_asks_for_a_person(floor: Floor) -> None:
    floor.bed.fault(floor.case.beams[1].number, "exit 7")
    floor.take()
    report = floor.until("partial")
    (one,) = report.next
    assert one.at is None
    assert one.text == "beam 3: not retried by itself: engine or stage program failed; `mqi-hpc resubmit`"
    assert len(floor.jobs()) == 1


def test_what_cannot_be_retried_stays_failed_beside_what_can(floor: Floor) -> None:
    floor.bed.fault(floor.case.beams[1].number, "exit 7")
    floor.bed.fault(floor.case.beams[2].number, "hang")
    floor.take()
    running(floor, ["done", "failed", "running"])
    floor.bed.fault(floor.case.beams[2].number, "none")
    floor.sim.slurm.end("PREEMPTED", index=2)
    report = floor.until("partial")
    assert [beam.status for beam in report.beams] == ["completed", "failed", "completed"]
    assert floor.in_slurm()["j02-beams"] == ["2"]
    assert len(floor.jobs()) == 2


def test_preempted_again_and_again_pauses_grow_and_nothing_counts(floor: Floor) -> None:
    floor.take()
    for number in range(6):
        floor.until(lambda: any(phase == "running" for phase in floor.beams()))
        floor.sim.slurm.end("PREEMPTED")
        floor.until(lambda: len(promised(floor)) == 3)
        retries = {(t.retry.attempt, t.retry.most, t.retry.pause) for t in floor.tasks() if t.retry}
        assert retries == {(number + 1, 20, PAUSES[min(number, 2)])}
    floor.until("completed")
    assert len(floor.jobs()) == 7


def test_a_cluster_without_a_good_gpu_is_tried_three_times_and_then_a_person_is_asked(floor: Floor) -> None:
    floor.sim.script.bad_nodes = {"g1", "g2"}
    floor.take()
    report = floor.until("failed")
    # The third is refused for want of a node, so that none is left out any more, and goes again at once.
    states = [(job.submit_state, job.left_out) for job in floor.jobs()]
    assert states == [
        ("standing", ()),
        ("standing", ("g1",)),
        ("refused", ("g1", "g2")),
        ("standing", ()),
        ("standing", ("g1",)),
    ]
    (beams,) = (one for one in report.next if one.what == "beams 2, 3, 4")
    assert "GPU check failed, and it was retried 3 times for that already; `mqi-hpc resubmit`" in beams.text
    assert floor.jobs()[3].created_at.timestamp() - floor.jobs()[2].created_at.timestamp() < 30
