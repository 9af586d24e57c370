"""A submission of unknown fate: found, completed or called off; never sent twice, never silently given up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.core.effects import Submit
from mqi_hpc.core.models import SubmitState
from mqi_hpc.core.requests import Verb
from mqi_hpc.domain.recovery import MOST_RERUNS
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site

STEPS = [f"{do} {stage}" for stage in ("interpret", "beams", "convert") for do in ("sbatch", "receipt")]
STEPS.append("release")


@pytest.fixture(params=["22.05", "24.11"])
def floor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version=request.param, min_job_age=1e9)) as bed:
        yield Floor(bed)


def state(floor: Floor) -> SubmitState:
    return floor.jobs()[-1].submit_state


def in_doubt(floor: Floor, step: str) -> None:
    """submit.sh dies before `step`, and its answer is lost."""
    floor.take()
    floor.until(lambda: state(floor) is SubmitState.UPLOADED)
    floor.sim.link.lose_replies = [Submit]
    floor.sim.link.cut_submit = step
    floor.until(lambda: state(floor) is SubmitState.AMBIGUOUS)


def took_effect(floor: Floor) -> list[str]:
    """Tasks that ended well in Slurm, by stage and index."""
    return sorted(
        f"{job.request.name.rsplit('-', 1)[-1]} {index}"
        for job in floor.sim.slurm.jobs.values()
        for index, element in job.elements.items()
        if element.word == "COMPLETED"
    )


ONCE = ["beams 0", "beams 1", "beams 2", "convert None", "interpret None"]


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_was_cut_is_completed_when_it_can_no_longer_live(floor: Floor, step: str) -> None:
    in_doubt(floor, step)
    began = floor.bed.clock.monotonic()
    report = floor.until("completed")
    assert len(report.results) == 3
    assert took_effect(floor) == ONCE
    # submit.sh may live for 300 s: until then nothing is sent again.
    second = [at for at, effect in floor.port.started if isinstance(effect, Submit)][1]
    assert second - began >= 300
    assert len(floor.port.of(Submit)) == 2
    assert report.attention is None
    assert not [job for job in floor.sim.slurm.jobs.values() if job.live]


def test_a_whole_chain_whose_reply_was_lost_is_adopted_at_once(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: state(floor) is SubmitState.UPLOADED)
    floor.sim.link.lose_replies = [Submit]
    floor.until("completed")
    assert len(floor.port.of(Submit)) == 1
    assert took_effect(floor) == ONCE


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_while_it_is_submitted_changes_nothing(floor: Floor, step: str) -> None:
    floor.sim.link.cut_submit = step
    floor.take()
    floor.until(lambda: bool(floor.port.of(Submit)))
    floor.sim.die() if step == "sbatch interpret" else floor.sim.close()
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    assert state(floor) is SubmitState.AMBIGUOUS
    floor.until("completed")
    assert took_effect(floor) == ONCE


def test_the_wait_goes_on_over_a_restart(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    began = floor.bed.clock.monotonic()
    while floor.bed.clock.monotonic() - began < 250:
        floor.home.orchestrator.turn()
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until("completed")
    assert [at for at, e in floor.port.started if isinstance(e, Submit)][1] - began < 500


def test_a_slurm_that_does_not_answer_pauses_the_doubt(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    floor.bed.controller(up=False)
    began = floor.bed.clock.monotonic()
    while floor.bed.clock.monotonic() - began < 3600:
        floor.home.orchestrator.turn()
    assert state(floor) is SubmitState.AMBIGUOUS
    assert len(floor.port.of(Submit)) == 1
    floor.bed.controller(up=True)
    floor.until("completed")
    assert took_effect(floor) == ONCE


def test_after_three_reruns_a_person_decides(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: state(floor) is SubmitState.UPLOADED)
    for run in range(1 + MOST_RERUNS):
        floor.sim.link.lose_replies = [Submit]
        floor.sim.link.cut_submit = "receipt beams"
        floor.until(lambda run=run: len(floor.port.of(Submit)) == run + 1)  # type: ignore[misc]
        floor.until(lambda: state(floor) is SubmitState.AMBIGUOUS)
    began = floor.bed.clock.monotonic()
    while floor.bed.clock.monotonic() - began < 7200:
        floor.home.orchestrator.turn()
    assert len(floor.port.of(Submit)) == 1 + MOST_RERUNS
    assert "not known" in str(floor.report().attention)
    floor.order(Verb.CANCEL)
    assert floor.until("cancelled").attention is None
    floor.until(lambda: not [job for job in floor.sim.slurm.jobs.values() if job.live])
    floor.order(Verb.RESUBMIT)
    floor.until("completed")


@pytest.mark.parametrize("step", STEPS)
def test_a_case_in_doubt_can_be_called_off(floor: Floor, step: str) -> None:
    in_doubt(floor, step)
    assert "cancelled" in floor.order(Verb.CANCEL)
    floor.until("cancelled")
    for _ in range(30):
        floor.home.orchestrator.turn()
    assert not [job for job in floor.sim.slurm.jobs.values() if job.live]
    assert state(floor) is SubmitState.WITHDRAWN
    assert len(floor.port.of(Submit)) == 1
    assert took_effect(floor) == []


def test_a_damaged_receipt_is_said_once_and_nothing_is_sent(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    floor.bed.overwrite(f"{floor.bed.case_folder}/j01/receipt.interpret", b"somebody else 7 7\n")
    began = floor.bed.clock.monotonic()
    while floor.bed.clock.monotonic() - began < 3600:
        floor.home.orchestrator.turn()
    assert len(floor.port.of(Submit)) == 1
    assert sum("held:" in text for text in floor.said) <= 2
    assert "receipt" in str(floor.report().attention)


def test_a_head_that_somebody_cancelled_uses_the_job_up(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    head = next(job for job in floor.sim.slurm.jobs.values() if job.request.name.endswith("interpret"))
    floor.sim.slurm.scancel(head.request.name, head.id)
    report = floor.until("failed")
    assert "somebody cancelled it" in str(report.refusal)
    floor.until(lambda: not [job for job in floor.sim.slurm.jobs.values() if job.live])
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert took_effect(floor) == ONCE


# What a job that will never run has left in Slurm


def test_a_refused_chain_is_cleared_although_the_program_dies_before_its_scancel(floor: Floor) -> None:
    floor.bed.partition("gpu", up=True)
    in_doubt(floor, "sbatch convert")
    with floor.home.desk.open(floor.jobs()[0].job_id) as work:
        stages = tuple(s.stage for s in work.job.submissions if s.slurm_id is not None)
        work.put_job(work.job.evolve(cancelled=("interpret", "beams")))
        work.mark(SubmitState.REFUSED, "Slurm refuses convert")
        work.end_all("Slurm refuses convert")
    assert stages in ((), ("interpret", "beams"))
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until(lambda: not [job for job in floor.sim.slurm.jobs.values() if job.live])
    floor.until(lambda: floor.jobs()[0].cancelled == ())
    floor.home.orchestrator.turn()
    assert floor.home.scheduler.cases == ()
    assert floor.report().status == "failed"


def test_nothing_is_cleared_by_a_look_that_saw_no_queue(floor: Floor) -> None:
    in_doubt(floor, "sbatch convert")
    floor.order(Verb.CANCEL)
    floor.until("cancelled")
    floor.bed.controller(up=False)
    for _ in range(20):
        floor.home.orchestrator.turn()
    floor.bed.controller(up=True)
    floor.until(lambda: floor.jobs()[0].cancelled == ())
    assert not [job for job in floor.sim.slurm.jobs.values() if job.live]
