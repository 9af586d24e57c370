"""What a person asks for a case, carried out on a simulated cluster: sent once, refused clearly, kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.core.effects import Cancel, Download, Submit, Upload
from mqi_hpc.core.errors import ProcessingError, StateError
from mqi_hpc.core.models import CaseStatus, SubmitState, TaskStatus, TaskType
from mqi_hpc.core.requests import Request, Verb
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version="24.11", min_job_age=1e9)) as bed:
        yield Floor(bed)


def numbers(floor: Floor) -> list[int]:
    return [beam.number for beam in floor.case.beams]


def partial(floor: Floor, fault: str = "exit 7") -> int:
    """Lead the case to its end with its second beam failed, and mend that; returns the beam's number."""
    number = numbers(floor)[1]
    floor.bed.fault(number, fault)
    floor.take()
    floor.until("partial")
    floor.bed.fault(number, "none")
    return number


# Resubmit


@pytest.mark.parametrize("named", [True, False])
def test_a_failed_beam_alone_is_computed_again(floor: Floor, named: bool) -> None:
    number = partial(floor)
    said = floor.order(Verb.RESUBMIT, beams=(number,) if named else None)
    assert "j02: beams, convert for beam 3 (array index 1)" in said
    assert "taken from j01" in said
    report = floor.until("completed")
    assert [beam.verdict for beam in report.beams] == ["done"] * 3
    assert len(report.results) == 3
    assert report.job == "j02"
    assert floor.in_slurm() == {
        "j01-interpret": ["None"],
        "j01-beams": ["0", "1", "2"],
        "j01-convert": ["None"],
        "j02-beams": ["1"],
        "j02-convert": ["None"],
    }


def test_a_resubmit_while_a_sibling_runs_takes_the_stale_convert_back(floor: Floor) -> None:
    _, second, third = numbers(floor)
    floor.bed.fault(second, "exit 7")
    floor.bed.fault(third, "hang")
    floor.take()
    floor.until(lambda: floor.beams() == ["done", "failed", "running"])
    floor.bed.fault(second, "none")
    said = floor.order(Verb.RESUBMIT)
    assert "convert waits for j01, which still runs" in said
    floor.until(lambda: floor.beams() == ["done", "done", "running"])
    assert floor.report().status == "processing"
    assert not floor.port.of(Download)
    stale = next(s for s in floor.jobs()[0].submissions if s.stage == "convert")
    assert [target for cancel in floor.port.of(Cancel) for target in cancel.targets] == [
        (stale.name, stale.slurm_id)
    ]
    # The third comes to an end, well or not: what is done comes home.
    node = next(task.node for task in floor.tasks() if task.phase == "running")
    floor.bed.node_down(node)
    report = floor.until("partial")
    assert [beam.status for beam in report.beams] == ["completed", "completed", "failed"]
    assert len(report.results) == 2


def test_an_interpret_that_failed_is_run_again_with_everything(floor: Floor) -> None:
    floor.sim.script.stages["interpret"] = "exit 3"
    floor.take()
    floor.until("failed")
    with pytest.raises(ProcessingError, match="beams 3, 4 cannot be left out"):
        floor.order(Verb.RESUBMIT, beams=(numbers(floor)[0],))
    floor.sim.script.stages.clear()
    assert "j02: interpret, beams, convert for beams 2, 3, 4" in floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert len(floor.in_slurm()) == 6


def test_a_convert_that_failed_is_run_alone(floor: Floor) -> None:
    floor.sim.script.stages["convert"] = "exit 3"
    floor.take()
    assert [beam.verdict for beam in floor.until("partial").beams] == ["done"] * 3
    floor.sim.script.stages.clear()
    assert "j02: convert" in floor.order(Verb.RESUBMIT)
    assert floor.report().status == "processing"
    report = floor.until("completed")
    assert len(report.results) == 3
    assert [job.status for job in floor.jobs()] == ["partial", "completed"]


@pytest.mark.parametrize("fault", ["exit 3", "hang"])
def test_a_job_of_convert_alone_ends_as_it_went(floor: Floor, fault: str) -> None:
    floor.sim.script.stages["convert"] = "exit 3"
    floor.take()
    floor.until("partial")
    floor.sim.script.stages["convert"] = fault
    floor.order(Verb.RESUBMIT, convert_only=True)
    if fault == "hang":
        floor.until(lambda: floor.jobs()[-1].submit_state is SubmitState.STANDING)
        floor.order(Verb.CANCEL)
    floor.until("partial")
    assert floor.jobs()[-1].status == ("failed" if fault == "exit 3" else "cancelled")


def test_convert_alone_may_be_asked_for_once_more(floor: Floor) -> None:
    partial(floor)
    floor.order(Verb.RESUBMIT, convert_only=True)
    assert len(floor.until("partial").results) == 2
    assert floor.in_slurm()["j02-convert"] == ["None"]


def refused(floor: Floor, verb: Verb, **changes: object) -> str:
    before = len(floor.jobs())
    with pytest.raises(ProcessingError) as error:
        floor.order(verb, **changes)
    assert len(floor.jobs()) == before
    return str(error.value)


def test_what_cannot_be_resubmitted_is_said(floor: Floor) -> None:
    first, second, third = numbers(floor)
    with floor.bed.store.transaction() as unit:
        unit.cases.put(floor.case)
    assert "has no job yet" in refused(floor, Verb.RESUBMIT)
    floor.take()
    assert "j01 has not been submitted yet" in refused(floor, Verb.RESUBMIT)
    floor.bed.fault(second, "exit 7")
    floor.bed.fault(third, "hang")
    floor.until(lambda: floor.beams() == ["done", "failed", "running"])
    assert f"beam {third} is not ended yet" in refused(floor, Verb.RESUBMIT, beams=(third,))
    assert f"beam {first} is done" in refused(floor, Verb.RESUBMIT, beams=(first, second))
    assert "has no beam 99; its beams: 2, 3, 4" in refused(floor, Verb.RESUBMIT, beams=(99,))
    assert "j01 has not ended yet" in refused(floor, Verb.RESUBMIT, convert_only=True)


def test_a_case_that_is_done_is_not_computed_again(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    assert "convert is done, there is nothing to resubmit" in refused(floor, Verb.RESUBMIT)


def test_nothing_is_converted_where_nothing_is_done(floor: Floor) -> None:
    for number in numbers(floor):
        floor.bed.fault(number, "exit 7")
    floor.take()
    floor.until("failed")
    assert "no beam is done, there is nothing to convert" in refused(floor, Verb.RESUBMIT, convert_only=True)


def test_a_done_beam_whose_dose_convert_refuses_leaves_the_case_partial(floor: Floor) -> None:
    # Found by ./dev chaos: such a case was "completed", and its dose never came home.
    number = numbers(floor)[1]
    floor.sim.script.seconds["convert"] = 100.0
    floor.take()
    floor.until(lambda: floor.beams() == ["done"] * 3)
    folder = f"{floor.bed.case_folder}/j01/dose/beam_{number}"
    (dose,) = (path for path, _ in floor.sim.files.walk(folder) if path.endswith(".raw"))
    floor.bed.remove(f"{folder}/{dose}")
    report = floor.until("partial")
    assert f"beam {number} is done, and convert made no RT Dose of it" in (report.attention or "")
    assert len(report.results) == 2
    assert "j02: convert;" in floor.order(Verb.RESUBMIT)
    floor.until(lambda: floor.report().job == "j02" and floor.report().status == "partial")
    assert f"j03: beams, convert for beam {number}" in floor.order(Verb.RESUBMIT, beams=(number,))
    report = floor.until("completed")
    assert (report.attention, len(report.results)) == (None, 3)


def test_a_submission_in_doubt_is_not_resubmitted(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: floor.jobs()[0].submit_state is SubmitState.UPLOADED)
    floor.sim.link.lose_replies = [Submit]
    floor.sim.link.cut_submit = "receipt beams"
    floor.until(lambda: floor.jobs()[0].submit_state is SubmitState.AMBIGUOUS)
    assert "whether j01 was submitted is not known yet" in refused(floor, Verb.RESUBMIT)


def test_a_pruned_case_is_not_resubmitted(floor: Floor) -> None:
    partial(floor)
    with floor.bed.store.transaction() as unit:
        case = unit.cases.get(floor.case.case_id)
        assert case is not None
        unit.cases.put(case.evolve(metadata={"pruned": {"remote": "2026-01-01T00:00:00+00:00"}}))
    for verb in (Verb.RESUBMIT, Verb.FETCH, Verb.ACCEPT):
        assert "was pruned on 2026-01-01" in refused(floor, verb, reason="x")


def test_an_upload_that_was_refused_is_begun_again(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: bool(floor.port.of(Upload)))
    with floor.home.desk.open(floor.jobs()[0].job_id) as work:
        work.mark(SubmitState.REFUSED, "bad")
        work.end_all("bad")
    floor.until("failed")
    floor.order(Verb.RESUBMIT)
    floor.until("completed")


# An order stands, whatever dies


def test_an_order_is_carried_out_once(floor: Floor) -> None:
    partial(floor)
    request = Request(request_id="x", verb=Verb.RESUBMIT, case_id=floor.case.case_id, who="ann")
    floor.home.orders.carry_out(request)
    floor.restart()
    assert floor.home.orders.carry_out(request).endswith("done already")
    assert [job.name for job in floor.jobs()] == ["j01", "j02"]


def test_an_order_for_a_case_that_is_not_there_is_an_error(floor: Floor) -> None:
    request = Request(request_id="x", verb=Verb.CANCEL, case_id="nobody", who="ann")
    with pytest.raises(StateError, match="has gone from the store"):
        floor.home.orders.carry_out(request)


def test_a_cancel_that_was_noted_is_done_after_a_restart(floor: Floor) -> None:
    floor.bed.fault(numbers(floor)[0], "hang")
    floor.take()
    floor.until(lambda: "running" in floor.beams())
    request = Request(request_id="x", verb=Verb.CANCEL, case_id=floor.case.case_id, who="ann", reason="why")
    floor.home.orders.carry_out(request)
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until(lambda: floor.report().status != "processing")
    assert not [job for job in floor.sim.slurm.jobs.values() if job.live]


def test_a_scancel_that_failed_is_repeated(floor: Floor) -> None:
    floor.bed.fault(numbers(floor)[0], "hang")
    floor.take()
    floor.until(lambda: "running" in floor.beams())
    floor.sim.link.lose_replies = [Cancel]
    floor.order(Verb.CANCEL)
    floor.until(lambda: floor.report().status != "processing")
    assert not [job for job in floor.sim.slurm.jobs.values() if job.live]


# Cancel


def test_a_case_without_a_job_is_cancelled_at_once(floor: Floor) -> None:
    with floor.bed.store.transaction() as unit:
        unit.cases.put(floor.case)
    request = Request(request_id="x", verb=Verb.CANCEL, case_id=floor.case.case_id, who="ann")
    assert "nothing of it had been sent" in floor.home.orders.carry_out(request)
    assert floor.report().status == "cancelled"
    with pytest.raises(ProcessingError, match="is cancelled: there is nothing to cancel"):
        floor.home.orders.carry_out(Request(**{**as_dict(request), "request_id": "y"}))


def as_dict(request: Request) -> dict[str, object]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


@pytest.mark.parametrize("at", [SubmitState.PLANNED, SubmitState.UPLOADED])
def test_what_was_not_sent_is_not_sent(floor: Floor, at: SubmitState) -> None:
    floor.sim.link.seconds[Submit] = 60.0
    floor.take()
    if at is SubmitState.UPLOADED:
        floor.sim.slurm.releases = True
        floor.until(lambda: bool(floor.port.of(Upload)))
    floor.order(Verb.CANCEL)
    assert floor.report().status == "cancelled"
    assert floor.jobs()[0].submit_state is SubmitState.WITHDRAWN
    # The upload that was under way comes back, and changes nothing.
    for _ in range(20):
        floor.home.orchestrator.turn()
    assert floor.report().status == "cancelled"
    assert floor.port.of(Submit) == []
    floor.order(Verb.RESUBMIT)
    floor.until("completed")


def test_a_submission_under_way_is_not_cancelled(floor: Floor) -> None:
    floor.sim.link.stall = [Submit]
    floor.take()
    floor.until(lambda: bool(floor.port.of(Submit)))
    assert "is being submitted at this moment" in refused(floor, Verb.CANCEL)
    floor.sim.release()
    floor.until("completed")
    assert "completed: there is nothing to cancel" in refused(floor, Verb.CANCEL)


def test_a_cancelled_case_keeps_what_was_done_and_can_be_made_good(floor: Floor) -> None:
    floor.bed.fault(numbers(floor)[2], "hang")
    floor.take()
    floor.until(lambda: floor.beams() == ["done", "done", "running"])
    floor.order(Verb.CANCEL, reason="wrong calibration")
    report = floor.until("partial")
    assert [beam.status for beam in report.beams] == ["completed", "completed", "cancelled"]
    assert floor.port.of(Download) == []
    floor.bed.fault(numbers(floor)[2], "none")
    floor.order(Verb.RESUBMIT)
    assert len(floor.until("completed").results) == 3


# Fetch and accept


def test_results_are_fetched_again(floor: Floor) -> None:
    floor.take()
    report = floor.until("completed")
    for path in report.results:
        Path(path).unlink()
    assert "fetched again" in floor.order(Verb.FETCH)
    assert floor.report().status == "processing"
    floor.until("completed")
    assert all(Path(path).is_file() for path in report.results)
    assert len(floor.port.of(Download)) == 2


def test_there_is_nothing_to_fetch_before_convert(floor: Floor) -> None:
    with floor.bed.store.transaction() as unit:
        unit.cases.put(floor.case)
    assert "there is nothing to fetch" in refused(floor, Verb.FETCH)
    floor.take()
    assert "there is nothing to fetch" in refused(floor, Verb.FETCH)


def test_a_download_that_failed_is_repeated_by_submit(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    assert floor.home.orders.fetch_failed(floor.case.case_id) is False
    job = floor.jobs()[0]
    with floor.home.desk.open(job.job_id) as work:
        task = next(task for task in work.tasks if task.type is TaskType.DOWNLOAD)
        work.put_task(task.evolve(status=TaskStatus.FAILED, phase="failed", detail="disk"))
    assert floor.home.orders.fetch_failed(floor.case.case_id) is True
    floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until("completed")


def suspect(floor: Floor, *, record: bool = True) -> int:
    """The second beam of a case that is done becomes suspect."""
    floor.take()
    floor.until("completed")
    job = floor.jobs()[0]
    with floor.home.desk.open(job.job_id) as work:
        task = next(t for t in work.tasks if t.type is TaskType.BEAM_CALC and t.index == 1)
        changes = {} if record else {"record": None}
        work.put_task(task.evolve(status=TaskStatus.SUSPECT, phase="suspect", **changes))
    return numbers(floor)[1]


def test_a_suspect_beam_is_accepted_with_a_reason_and_delivered(floor: Floor) -> None:
    number = suspect(floor)
    assert floor.report().status == "partial"
    assert "suspect" in str(floor.report().attention)
    assert "nothing is accepted without a reason" in refused(floor, Verb.ACCEPT, reason=" ")
    assert "not all of them are suspect" in refused(floor, Verb.ACCEPT, reason="x", beams=(number, 99))
    assert "accepted beam 3; the results are fetched" in floor.order(
        Verb.ACCEPT, reason="looked at it", beams=(number,)
    )
    report = floor.until("completed")
    assert report.beams[1].verdict == "accepted"
    assert report.beams[1].noted == "accepted by ann: looked at it"
    assert report.attention is None
    assert "nothing is suspect" in refused(floor, Verb.ACCEPT, reason="x")


def test_a_beam_without_a_dose_cannot_be_accepted(floor: Floor) -> None:
    suspect(floor, record=False)
    assert "no valid record, so there is no dose to accept" in refused(floor, Verb.ACCEPT, reason="x")


def test_an_accepted_beam_that_was_not_converted_is_told(floor: Floor) -> None:
    suspect(floor)
    job = floor.jobs()[0]
    with floor.home.desk.open(job.job_id) as work:
        task = next(t for t in work.tasks if t.type is TaskType.CONVERT)
        work.put_task(task.evolve(status=TaskStatus.FAILED, phase="failed", record=None))
    assert "resubmit --convert-only" in floor.order(Verb.ACCEPT, reason="x")
    floor.order(Verb.RESUBMIT, convert_only=True)
    assert len(floor.until("completed").results) == 3


# Leading and priority


def test_a_lead_takes_the_case_in_hand_with_its_priority(floor: Floor) -> None:
    with floor.bed.store.transaction() as unit:
        unit.cases.put(floor.case)
    assert "taken in hand" in floor.order(Verb.LEAD, priority=5)
    assert floor.jobs()[0].priority == 5
    floor.order(Verb.LEAD, priority=7)
    assert floor.jobs()[0].priority == 7
    floor.home.orders.prioritise(floor.case.case_id, 9)
    assert floor.jobs()[0].priority == 9
    floor.order(Verb.LEAD)
    assert floor.jobs()[0].priority == 9


def test_a_case_that_grew_asks_for_attention_until_its_end(floor: Floor) -> None:
    with floor.bed.store.transaction() as unit:
        unit.cases.put(floor.case.evolve(metadata={"grown": "x"}, status=CaseStatus.NEW))
    floor.take()
    assert "turned up later" in str(floor.until("completed").attention)


def test_an_accepted_beam_that_convert_did_not_take_is_told(floor: Floor) -> None:
    number = partial(floor)
    job = floor.jobs()[0]
    with floor.home.desk.open(job.job_id) as work:
        beams = [t for t in work.tasks if t.type is TaskType.BEAM_CALC]
        changes = {"status": TaskStatus.SUSPECT, "phase": "suspect", "record": beams[0].record}
        work.put_task(beams[1].evolve(**changes))
    assert "resubmit --convert-only" in floor.order(Verb.ACCEPT, reason="x", beams=(number,))


def test_a_download_under_way_is_not_begun_twice(floor: Floor) -> None:
    floor.sim.link.stall = [Download]
    floor.take()
    floor.until(lambda: bool(floor.port.of(Download)))
    assert "fetched again" in floor.order(Verb.FETCH)
    for _ in range(5):
        floor.home.orchestrator.turn()
    assert len(floor.port.of(Download)) == 1
    # Cancelled meanwhile, its end changes nothing.
    assert "cancelled" in floor.order(Verb.CANCEL)
    floor.sim.release()
    for _ in range(5):
        floor.home.orchestrator.turn()
    assert floor.report().status == "partial"


def test_a_change_that_changes_nothing_leaves_no_event(floor: Floor) -> None:
    floor.take()
    with floor.home.desk.open(floor.jobs()[0].job_id) as work:
        before = len(work.unit.events(floor.case.case_id))
        work.put_task(work.tasks[0])
        work.put_job(work.job)
        assert len(work.unit.events(floor.case.case_id)) == before


def test_a_job_that_has_gone_is_an_error(floor: Floor) -> None:
    with pytest.raises(StateError, match="has gone from the store"), floor.home.desk.open("nobody"):
        pass


def test_a_suspect_interpret_is_accepted_with_the_case(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    with floor.home.desk.open(floor.jobs()[0].job_id) as work:
        task = next(t for t in work.tasks if t.type is TaskType.INTERPRET)
        work.put_task(task.evolve(status=TaskStatus.SUSPECT, phase="suspect"))
    assert floor.report().status == "partial"
    assert "accepted interpret" in floor.order(Verb.ACCEPT, reason="its log is whole")
    floor.until("completed")
