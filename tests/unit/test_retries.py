"""What is done again by itself, on a simulated cluster: once, for what may be retried, when it was said."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.causes import Cause
from mqi_hpc.core.effects import Submit
from mqi_hpc.core.errors import ConfigurationError, ProcessingError
from mqi_hpc.core.models import STAGES, SubmitState
from mqi_hpc.core.requests import Verb
from mqi_hpc.core.resubmit import first_plan
from mqi_hpc.core.retention import JobHistory, RetentionRules, plan_case
from mqi_hpc.core.retry_causes import Asked, RetryTable, Rule
from mqi_hpc.domain.task_scheduler import over
from mqi_hpc.services.job_service import JobService
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


def test_where_there_is_but_one_node_it_is_used_again(tmp_path: Path) -> None:
    site = Site(version="24.11", min_job_age=1e9, partitions={"gpu": ("g1",), "low": ("g1",), "cpu": ("c1",)})
    with simulated_bed(tmp_path, site) as bed:
        floor = Floor(bed, retries=TABLE)
        floor.take()
        for number in (1, 3):
            floor.until(lambda n=number: len(floor.jobs()) == n and "running" in floor.beams())
            floor.sim.slurm.end("NODE_FAIL")
        floor.until("completed")
        states = [(job.submit_state, job.left_out) for job in floor.jobs()]
        refused, again = (SubmitState.REFUSED, ("g1",)), (SubmitState.STANDING, ())
        assert states == [again, refused, again, refused, again]


def test_a_case_that_waits_for_a_retry_keeps_no_other_from_its_place_and_is_not_pruned(
    tmp_path: Path,
) -> None:
    with simulated_bed(tmp_path, Site(version="24.11", min_job_age=1e9)) as bed:
        floor = Floor(bed, retries=TABLE, max_concurrent_jobs=1)
        (other,) = floor.more(1)
        fail_with_its_node(floor)
        rules = RetentionRules(remote_completed_days=0.1, remote_failed_days=0.1, local_results_days=0.1)
        jobs = [JobHistory(one, tuple(floor.history().tasks[one.job_id])) for one in floor.jobs()]
        with bed.store.transaction(write=False) as unit:
            case = unit.cases.get(floor.case.case_id)
        assert case is not None
        late = datetime.fromtimestamp(bed.clock.now() + 1e6, UTC)
        plan = plan_case(case, jobs, rules, now=late, named=True)
        assert (plan.remote.allowed, plan.remote.why) == (False, "it is processing")
        floor.take(other)
        floor.until(lambda: floor.report(other.case_id).submission == "standing")
        assert len(floor.jobs()) == 1
        floor.until(lambda: floor.report(other.case_id).status == "completed")
        floor.until("completed")


def test_a_retry_has_the_priority_of_what_it_replaces(floor: Floor) -> None:
    fail_with_its_node(floor)
    floor.order(Verb.RESUBMIT, priority=7)
    running(floor)
    floor.sim.slurm.end("PREEMPTED")
    floor.until(lambda: len(floor.jobs()) == 3)
    assert [job.priority for job in floor.jobs()] == [0, 7, 7]


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


# A person in between


def fail_with_its_node(floor: Floor) -> None:
    floor.take()
    running(floor)
    floor.bed.node_down("g1")
    floor.until(lambda: len(promised(floor)) == 3)
    floor.bed.sim.slurm.node_up("g1")


def test_a_cancel_before_a_retry_ends_it(floor: Floor) -> None:
    fail_with_its_node(floor)
    said = floor.order(Verb.CANCEL, reason="enough")
    assert "cancelled" in said
    report = floor.report()
    assert report.status == "failed"
    assert "not retried by itself: cancelled by ann: enough" in report.next[0].text
    floor.turns(300)
    assert len(floor.jobs()) == 1
    with pytest.raises(ProcessingError, match="there is nothing to cancel"):
        floor.order(Verb.CANCEL)


def test_a_beam_whose_node_fails_while_it_is_being_cancelled_is_not_retried(floor: Floor) -> None:
    floor.take()
    running(floor)
    floor.bed.node_down("g1")
    floor.order(Verb.CANCEL)
    report = floor.until("failed")
    assert not promised(floor)
    assert {one.text for one in report.next if "beam" in one.what} == {
        "beams 2, 3, 4: not retried by itself: it was called off; `mqi-hpc resubmit`"
    }


def test_a_case_that_is_called_off_while_the_controller_loses_it_is_not_retried(floor: Floor) -> None:
    floor.bed.partition("cpu", up=False)
    floor.take()
    floor.until(lambda: floor.report().submission == "standing")
    floor.sim.slurm.stop()
    floor.order(Verb.CANCEL, reason="the wrong plan")
    for slurm_id in list(floor.sim.slurm.jobs):
        del floor.sim.slurm.jobs[slurm_id]
        floor.sim.slurm.accounting.forget(slurm_id)
    floor.sim.slurm.start()
    floor.bed.partition("cpu", up=True)
    report = floor.until("failed")
    floor.turns(300)
    assert len(floor.jobs()) == 1
    assert all(one.at is None for one in report.next)
    assert {beam.verdict for beam in report.beams} == {"lost"}


def test_who_resubmits_first_is_obeyed_and_the_count_begins_anew(floor: Floor) -> None:
    fail_with_its_node(floor)
    floor.order(Verb.RESUBMIT)
    assert not promised(floor)
    running(floor)
    floor.bed.node_down("g2")
    floor.until(lambda: len(promised(floor)) == 3)
    assert {t.retry.attempt for t in floor.tasks() if t.retry} == {1}
    floor.bed.sim.slurm.node_up("g2")
    floor.until("completed")
    # The last goes in place of one that had no node left beside the two that failed.
    assert [job.automatic for job in floor.jobs()] == [False, False, True, True]
    assert [job.left_out for job in floor.jobs()] == [(), ("g1",), ("g1", "g2"), ()]


def test_a_beam_that_a_person_left_is_retried_beside_the_one_that_was_resubmitted(floor: Floor) -> None:
    fail_with_its_node(floor)
    floor.order(Verb.RESUBMIT, beams=(floor.case.beams[0].number,))
    floor.until("completed")
    assert floor.in_slurm()["j02-beams"] == ["0"]
    assert floor.in_slurm()["j03-beams"] == ["1", "2"]
    assert len(floor.jobs()) == 3


# A restart, a clock, a death


def test_a_retry_is_made_once_whenever_the_program_is_restarted(floor: Floor) -> None:
    fail_with_its_node(floor)
    (at,) = set(promised(floor))
    assert not over(floor.history())
    while len(floor.jobs()) == 1:
        floor.sim.close()
        floor.restart()
        floor.home.orchestrator.process_case(floor.case.case_id)
        floor.turns(1)
    assert 0 <= floor.jobs()[1].created_at.timestamp() - at + 0.01 < 5
    floor.until("completed")
    assert len(floor.jobs()) == 2


def test_a_program_that_was_away_for_long_retries_at_once(floor: Floor) -> None:
    fail_with_its_node(floor)
    floor.sim.close()
    floor.sim.advance(86400.0)
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    before = floor.bed.clock.now()
    floor.until(lambda: len(floor.jobs()) == 2)
    assert floor.bed.clock.now() - before < 5


def test_a_clock_set_back_by_a_day_makes_a_retry_wait_its_pause_anew_and_no_longer(floor: Floor) -> None:
    fail_with_its_node(floor)
    floor.bed.clock.step(-86400.0)
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    before = floor.bed.clock.monotonic()
    floor.until(lambda: len(floor.jobs()) == 2)
    assert 55 < floor.bed.clock.monotonic() - before < 70


def test_a_clock_set_forward_while_it_runs_shortens_no_pause(floor: Floor) -> None:
    fail_with_its_node(floor)
    floor.turns(1)
    before = floor.bed.clock.monotonic()
    floor.bed.clock.step(86400.0)
    floor.until(lambda: len(floor.jobs()) == 2)
    assert 50 < floor.bed.clock.monotonic() - before < 70


def test_a_clock_that_was_a_year_ahead_keeps_no_node_away_for_a_year(floor: Floor) -> None:
    floor.take()
    running(floor)
    floor.bed.clock.step(365 * 86400.0)
    floor.bed.node_down("g1")
    floor.until(lambda: len(promised(floor)) == 3)
    floor.bed.sim.slurm.node_up("g1")
    floor.bed.clock.step(-365 * 86400.0)
    floor.until("completed")
    assert [job.left_out for job in floor.jobs()] == [(), ()]


def test_nodes_are_taken_back_by_the_job_that_was_kept_away_from_them_and_no_others(floor: Floor) -> None:
    fail_with_its_node(floor)
    floor.until(lambda: len(floor.jobs()) == 2)
    first, second = floor.jobs()
    assert second.left_out == ("g1",)
    with floor.home.desk.open(first.job_id) as work:
        last = work.tasks[-2]
        later = work.now + 5000.0
        work.unit.jobs.put_task(last.evolve(node="g9", left_out_until=later))
    with floor.home.desk.open(second.job_id) as work:
        work.end_all("Slurm refuses beams: Requested node configuration is not available")
        work.mark(SubmitState.REFUSED, "Slurm refuses beams: Requested node configuration is not available")
    with floor.bed.store.transaction(write=False) as unit:
        assert {task.node for task in unit.jobs.left_out(later - 1.0)} == {"g9"}


def test_a_retry_whose_transaction_fails_is_made_later_and_once(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with_its_node(floor)
    whole = floor.home.renderer.job_files

    def broken(request: object) -> dict[str, bytes]:
        raise ConfigurationError("the template is being edited")

    monkeypatch.setattr(floor.bed.renderer, "job_files", broken)
    floor.until(lambda: any("cannot be retried now" in text for text in floor.said))
    assert len(promised(floor)) == 3
    assert floor.report().status == "processing"
    monkeypatch.setattr(floor.bed.renderer, "job_files", whole)
    floor.until("completed")
    assert len(floor.jobs()) == 2
    assert sum("cannot be retried now" in text for text in floor.said) == 1


class Killed(BaseException):
    """The program has ended here."""


def test_a_death_while_a_retry_is_planned_leaves_the_promise_and_no_job(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with_its_node(floor)
    whole = JobService.plan

    def plan(*args: Any, **kwargs: Any) -> None:
        whole(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JobService, "plan", plan)
        with pytest.raises(Killed):
            floor.until("completed")
    assert len(floor.jobs()) == 1
    assert sum(event["kind"] == "job planned" for event in floor.events()) == 1
    assert len(promised(floor)) == 3
    floor.sim.close()
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until("completed")
    assert len(floor.jobs()) == 2
    (planned,) = (e for e in floor.events() if e["kind"] == "job planned" and "automatic" in e["data"])
    assert [one["cause"] for one in planned["data"]["automatic"]] == ["node_fail"] * 3
    assert planned["data"]["left_out"] == ["g1"]


def test_a_beam_that_a_later_job_has_in_hand_is_said_to_be_retried_by_nobody(floor: Floor) -> None:
    # As where the store was an older one, and the later job was found on the cluster.
    floor.take()
    running(floor)
    with floor.bed.store.transaction() as unit:
        floor.home.jobs.plan(unit, floor.case, first_plan(floor.case))
    floor.bed.node_down("g1")
    floor.until(lambda: old_ended(floor))
    assert not promised(floor)
    assert not any("retry 1 of 3" in text for text in floor.said)


def old_ended(floor: Floor) -> bool:
    beams = [task for task in floor.history().tasks[floor.jobs()[0].job_id] if task.type == "beam_calc"]
    return all(task.retry is not None for task in beams)


# Interpret and convert


def test_an_interpret_whose_node_failed_is_run_again_with_all_that_follows(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: floor.phase("interpret") == "running")
    floor.bed.node_down("c1")
    report = floor.until(lambda: bool(promised(floor)))
    assert [one.what for one in report.next] == ["interpret"]
    floor.bed.sim.slurm.node_up("c1")
    floor.until("completed")
    assert {name: len(tasks) for name, tasks in floor.in_slurm().items() if name.startswith("j02")} == {
        "j02-interpret": 1,
        "j02-beams": 3,
        "j02-convert": 1,
    }
    # A node that fails under interpret says nothing of the beams' GPUs.
    assert floor.jobs()[1].left_out == ()


def test_a_convert_whose_node_failed_is_run_again_alone(floor: Floor) -> None:
    floor.sim.script.seconds["convert"] = 120.0
    floor.take()
    floor.until(lambda: floor.phase("convert") == "running")
    floor.bed.node_down("c1")
    floor.until(lambda: bool(promised(floor)))
    floor.bed.sim.slurm.node_up("c1")
    report = floor.until("completed")
    assert floor.in_slurm()["j02-convert"] == ["None"]
    assert "j02-beams" not in floor.in_slurm()
    assert len(report.results) == 3


def test_a_convert_that_had_nothing_to_convert_is_not_retried_for_ever(floor: Floor) -> None:
    floor.sim.script.seconds["convert"] = 120.0
    for beam in floor.case.beams:
        floor.bed.fault(beam.number, "exit 7")
    floor.take()
    floor.until(lambda: floor.phase("convert") == "running")
    floor.bed.node_down("c1")
    floor.until(lambda: bool(promised(floor)))
    floor.bed.sim.slurm.node_up("c1")
    report = floor.until("failed")
    assert not promised(floor)
    assert len(floor.jobs()) == 1
    (convert,) = (one for one in report.next if one.what == "convert")
    assert "it cannot be: P001-f01: no beam is done, there is nothing to convert" in convert.text
    floor.sim.script.beams.clear()
    floor.order(Verb.RESUBMIT)
    floor.until("completed")


def test_good_beams_come_home_while_a_retry_is_to_come(floor: Floor) -> None:
    floor.bed.fault(floor.case.beams[2].number, "hang")
    floor.take()
    running(floor, ["done", "done", "running"])
    floor.bed.fault(floor.case.beams[2].number, "none")
    for _ in range(2):
        # The second pause is long enough for the rest to come home.
        floor.until(lambda: floor.beams()[2] == "running")
        floor.sim.slurm.end("PREEMPTED", index=2)
        floor.until(lambda: len(promised(floor)) == 1)
    report = floor.until(lambda: bool(floor.report().results))
    assert report.status == "processing"
    assert len(report.results) == 2
    assert len(floor.until("completed").results) == 3


# More of what ran out


def asked(floor: Floor, what: str) -> dict[str, str]:
    found = {}
    for job in floor.sim.slurm.jobs.values():
        found["-".join(job.request.name.split("-")[-2:])] = getattr(job.request, what)
    return found


def test_a_beam_out_of_memory_gets_more_of_what_was_asked_for_up_to_the_most(floor: Floor) -> None:
    floor.take()
    for _ in range(3):
        floor.until(lambda: floor.beams()[0] == "running")
        floor.sim.slurm.end("OUT_OF_MEMORY", index=0)
        floor.until(lambda: floor.beams()[0].startswith("failed"))
    report = floor.until("partial")
    memory = asked(floor, "memory")
    assert [memory[f"j0{n}-beams"] for n in (1, 2, 3)] == ["4G", "6144M", "8192M"]
    assert memory["j02-convert"] == "4G"
    assert "out of memory, and it was retried 2 times" in report.next[0].text


def test_a_stage_past_its_time_gets_more_until_it_had_the_most(floor: Floor) -> None:
    floor.take()
    for _ in range(3):
        floor.until(lambda: "running" in floor.beams())
        floor.sim.slurm.end("TIMEOUT")
        floor.until(lambda: all(phase.startswith("failed") for phase in floor.beams()))
    floor.until("failed")
    times = asked(floor, "time")
    assert [times[f"j0{n}-beams"] for n in (1, 2, 3)] == ["01:00:00", "02:00:00", "03:00:00"]


def test_more_memory_is_kept_when_the_next_failure_is_another(floor: Floor) -> None:
    floor.take()
    running(floor)
    floor.sim.slurm.end("OUT_OF_MEMORY")
    floor.until(lambda: floor.jobs()[-1].name == "j02" and "running" in floor.beams())
    floor.sim.slurm.end("PREEMPTED")
    floor.until("completed")
    assert asked(floor, "memory")["j03-beams"] == "6144M"


# A chain that Slurm lost, and limits


def test_a_burnt_job_is_followed_by_the_same_plan_three_times(floor: Floor) -> None:
    floor.take()
    for number in range(1, 5):
        floor.until(lambda n=number: len(floor.jobs()) == n and "running" in floor.beams())
        with floor.home.desk.open(floor.jobs()[-1].job_id) as work:
            work.put_job(work.job.evolve(cancelled=work.job.placed))
            work.end_all("Slurm has lost it")
            work.mark(SubmitState.BURNT, "Slurm has lost it")
    report = floor.until("failed")
    assert len(floor.jobs()) == 4
    assert [job.stages for job in floor.jobs()] == [STAGES, *[STAGES[1:]] * 3]
    assert "Slurm lost the chain, and it was retried 3 times" in report.next[0].text


def test_a_submit_limit_is_waited_for_ever_longer_and_a_person_is_told(floor: Floor) -> None:
    floor.sim.slurm.submit_limit = "AssocMaxSubmitJobLimit"
    floor.take()
    floor.until(lambda: floor.tasks()[1].polls == 3)
    assert floor.report().attention is None
    floor.sim.close()
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until(lambda: floor.report().attention is not None)
    times = [at for at, effect in floor.port.started if isinstance(effect, Submit)]
    waits = [b - a for a, b in pairwise(times[3:])]
    # Doubled each time, up to a quarter of an hour, and shortened by up to half by chance.
    assert max(waits[:2]) <= 16
    assert min(waits[-2:]) >= 450
    assert max(waits) <= 910
    assert "AssocMaxSubmitJobLimit" in str(floor.report().attention)
    assert "Ask the cluster's administrator" in str(floor.report().attention)
    floor.sim.slurm.submit_limit = ""
    report = floor.until("completed")
    assert report.attention is None
    assert len(floor.jobs()) == 1
