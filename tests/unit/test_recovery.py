"""A submission of unknown fate: found, completed or called off; never sent twice, never silently given up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.effects import Cancel, Completion, Observe, Submit
from mqi_hpc.core.models import SubmitState
from mqi_hpc.core.requests import Verb
from mqi_hpc.domain.recovery import MOST_MARKS, MOST_RERUNS
from mqi_hpc.domain.submitter import apply_submit
from mqi_hpc.records.layout import WITHDRAWN
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site, SlurmJob
from tests.support.simulation.submit import SubmitScript

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


def marked(floor: Floor, job: str = "j01") -> bool:
    return floor.sim.files.exists(f"{floor.bed.workspace}/{floor.case.case_id}/{job}/{WITHDRAWN}")


@pytest.mark.parametrize("step", STEPS)
def test_a_host_that_thaws_after_its_job_was_called_off_begins_nothing(floor: Floor, step: str) -> None:
    in_doubt(floor, step)
    effect = floor.port.of(Submit)[0]
    assert isinstance(effect, Submit)
    script = SubmitScript(floor.sim.files, floor.sim.slurm, floor.bed.clock, effect.job_folder, "n")
    frozen = script.run()
    while next(frozen) != step:
        pass
    floor.order(Verb.CANCEL)
    # At once: nobody waits for a run that may live.
    floor.until(lambda: marked(floor))
    assert state(floor) is SubmitState.AMBIGUOUS
    floor.until("cancelled")
    for _ in frozen:
        pass
    pass_time(floor, 2000)
    assert not live(floor)
    names = floor.sim.files.names(effect.job_folder)
    assert not [name for name in names if name.startswith("claim.")]
    assert state(floor) is SubmitState.WITHDRAWN


def test_a_folder_that_takes_no_mark_is_not_waited_for(floor: Floor) -> None:
    in_doubt(floor, "sbatch interpret")
    floor.sim.files.rename(floor.bed.workspace, "/elsewhere")
    floor.order(Verb.CANCEL)
    floor.until("cancelled")
    floor.until(lambda: floor.jobs()[0].cancelled == ())
    marks = [effect for effect in floor.port.of(Cancel) if isinstance(effect, Cancel) and effect.mark]
    looks = len(floor.port.of(Observe))
    pass_time(floor, 3600)
    assert len(marks) >= MOST_MARKS
    assert len(floor.port.of(Cancel)) == len(marks)
    # Only sweeps.
    assert len(floor.port.of(Observe)) - looks <= 5


def test_an_answer_that_comes_after_a_look_has_found_the_chain_changes_nothing(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    effect = floor.port.of(Submit)[0]
    assert isinstance(effect, Submit)
    before, said = floor.report(), [f"\x1e{effect.nonce} DONE 0\n", ""]
    for text in said:
        with floor.home.desk.open(effect.job_id) as work:
            assert apply_submit(work, effect, Completion(effect=effect, output=text)) == (False, ())
    assert floor.report() == before


# A chain that no run of submit.sh can complete


def live(floor: Floor) -> list[str]:
    return [job.request.name for job in floor.sim.slurm.jobs.values() if job.live]


def pass_time(floor: Floor, seconds: float) -> None:
    began = floor.bed.clock.monotonic()
    while floor.bed.clock.monotonic() - began < seconds:
        floor.home.orchestrator.turn()


def head(floor: Floor) -> SlurmJob:
    return next(j for j in floor.sim.slurm.jobs.values() if j.request.name.endswith("j01-interpret"))


def lose(floor: Floor, *ids: int) -> None:
    """The controller forgets jobs that it had accepted; accounting never heard of them."""
    for slurm_id in ids:
        del floor.sim.slurm.jobs[slurm_id]
        floor.sim.slurm.accounting.forget(slurm_id)


@pytest.mark.parametrize(
    "content", [b"", b"somebody else 7 7\n", b"mqi-i1", b"mqi-other-j01-interpret 7 7\n"]
)
def test_a_receipt_that_is_none_burns_the_job(floor: Floor, content: bytes) -> None:
    in_doubt(floor, "receipt beams")
    began = floor.bed.clock.monotonic()
    floor.bed.overwrite(f"{floor.bed.case_folder}/j01/receipt.interpret", content)
    report = floor.until("failed")
    # Not before a run of submit.sh can be alive no more.
    assert floor.bed.clock.monotonic() - began >= 300
    assert state(floor) is SubmitState.BURNT
    assert "receipt" in str(report.refusal)
    assert len(floor.port.of(Submit)) == 1
    assert sum("held:" in text for text in floor.said) <= 2
    floor.until(lambda: not live(floor))
    assert took_effect(floor) == []
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert took_effect(floor) == ONCE


@pytest.mark.parametrize("step", ["sbatch beams", "receipt beams", "sbatch convert", "receipt convert"])
def test_a_head_that_somebody_cancelled_uses_the_job_up_and_is_obeyed(floor: Floor, step: str) -> None:
    in_doubt(floor, step)
    floor.sim.slurm.scancel(head(floor).request.name, head(floor).id, uid=0)
    report = floor.until("failed")
    assert state(floor) is SubmitState.REFUSED
    assert "somebody cancelled it" in str(report.refusal)
    floor.until(lambda: not live(floor))
    pass_time(floor, 7200)
    assert len(floor.port.of(Submit)) == 1
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert took_effect(floor) == ONCE


@pytest.mark.parametrize("step", ["receipt beams", "sbatch convert", "receipt convert"])
def test_a_head_that_the_controller_lost_burns_the_job(floor: Floor, step: str) -> None:
    in_doubt(floor, step)
    lose(floor, head(floor).id)
    began = floor.bed.clock.monotonic()
    report = floor.until("failed")
    assert state(floor) is SubmitState.BURNT
    assert "accounting knows of nobody who cancelled it" in str(report.refusal)
    # submit.sh may live for 300 s, and accounting may be 600 s late.
    assert floor.bed.clock.monotonic() - began >= 900
    floor.until(lambda: not live(floor))
    floor.until(lambda: floor.jobs()[0].cancelled == ())
    assert len(floor.port.of(Submit)) == 1
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert took_effect(floor) == ONCE


def test_a_dependant_that_the_controller_lost_burns_the_job(floor: Floor) -> None:
    in_doubt(floor, "release")
    array = next(j.id for j in floor.sim.slurm.jobs.values() if j.request.name.endswith("beams"))
    lose(floor, array)
    report = floor.until("failed")
    assert state(floor) is SubmitState.BURNT
    assert f"beams ({array})" in str(report.refusal)
    floor.until(lambda: not live(floor))
    assert took_effect(floor) == []


def test_a_head_that_somebody_released_burns_the_job(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    floor.sim.slurm.release(head(floor).id)
    report = floor.until("failed")
    assert state(floor) is SubmitState.BURNT
    assert "interpret" in str(report.refusal)
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert sorted(set(took_effect(floor))) == ONCE


def test_a_head_that_is_held_again_after_it_began_burns_the_job(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    floor.sim.files.write(f"{floor.bed.case_folder}/j01/claim.interpret-0", b"1 1 0 c1 7 1.0\n")
    report = floor.until("failed")
    assert state(floor) is SubmitState.BURNT
    assert "although it has begun" in str(report.refusal)


def test_nothing_is_burnt_while_accounting_does_not_answer(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    lose(floor, head(floor).id)
    floor.bed.accounting(up=False)
    pass_time(floor, 7200)
    assert state(floor) is SubmitState.AMBIGUOUS
    floor.bed.accounting(up=True)
    began = floor.bed.clock.monotonic()
    floor.until("failed")
    assert state(floor) is SubmitState.BURNT
    assert floor.bed.clock.monotonic() - began >= 600


def test_accounting_that_comes_and_goes_delays_and_nothing_more(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    lose(floor, head(floor).id)
    for _ in range(40):
        floor.bed.accounting(up=False)
        pass_time(floor, 150)
        floor.bed.accounting(up=True)
        pass_time(floor, 150)
    assert state(floor) is SubmitState.BURNT


def test_a_head_that_comes_back_ends_the_suspicion(floor: Floor) -> None:
    in_doubt(floor, "receipt beams")
    lost = head(floor)
    del floor.sim.slurm.jobs[lost.id]
    pass_time(floor, 600)
    assert state(floor) is SubmitState.AMBIGUOUS
    floor.sim.slurm.jobs[lost.id] = lost
    floor.until("completed")
    assert took_effect(floor) == ONCE


def test_without_accounting_who_may_have_cancelled_it_is_obeyed(tmp_path: Path) -> None:
    with simulated_bed(tmp_path, Site(version="24.11", accounting=False)) as bed:
        floor = Floor(bed)
        in_doubt(floor, "receipt beams")
        lose(floor, head(floor).id)
        report = floor.until("failed")
        assert state(floor) is SubmitState.REFUSED
        assert "cannot be told" in str(report.refusal)
        assert "resubmit" in str(report.refusal)
        floor.until(lambda: not live(floor))


# A chain that stood, and lost a part


@pytest.mark.parametrize("stage", ["interpret", "beams", "convert"])
def test_a_part_that_the_controller_lost_burns_a_chain_that_stood(floor: Floor, stage: str) -> None:
    floor.bed.partition("cpu", up=False)
    floor.take()
    floor.until(lambda: state(floor) is SubmitState.STANDING)
    lost = next(j.id for j in floor.sim.slurm.jobs.values() if j.request.name.endswith(stage))
    lose(floor, lost)
    floor.bed.partition("cpu", up=True)
    floor.until(lambda: state(floor) is SubmitState.BURNT)
    assert f"lost {stage}" in str(floor.report().refusal)
    floor.until(lambda: not live(floor))
    assert len(floor.port.of(Submit)) == 1
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert took_effect(floor) == ONCE


def test_interpret_that_came_back_held_is_cancelled_where_what_waited_for_it_is_lost(floor: Floor) -> None:
    floor.bed.partition("cpu", up=False)
    floor.take()
    floor.until(lambda: state(floor) is SubmitState.STANDING)
    # The controller came back as it was before the release, and before it heard of the rest.
    head(floor).held = True
    for job in [job for job in floor.sim.slurm.jobs.values() if job is not head(floor)]:
        lose(floor, job.id)
    floor.bed.partition("cpu", up=True)
    floor.until(lambda: state(floor) is SubmitState.BURNT)
    assert "lost beams, convert" in str(floor.report().refusal)
    floor.until(lambda: not live(floor))
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert took_effect(floor) == ONCE


def test_interpret_that_somebody_holds_is_left_to_them_while_anything_waits_for_it(floor: Floor) -> None:
    floor.bed.partition("cpu", up=False)
    floor.take()
    floor.until(lambda: state(floor) is SubmitState.STANDING)
    head(floor).held = True
    lose(floor, next(j.id for j in floor.sim.slurm.jobs.values() if j.request.name.endswith("convert")))
    floor.bed.partition("cpu", up=True)
    pass_time(floor, 7200)
    assert sorted(name.rsplit("-", 1)[-1] for name in live(floor)) == ["beams", "interpret"]
    assert "held" in str(floor.report().attention)
    floor.sim.slurm.release(head(floor).id)
    floor.until(lambda: floor.beams() == ["done", "done", "done"])


def test_a_task_that_began_and_was_lost_is_not_burnt(floor: Floor) -> None:
    floor.take()
    floor.bed.fault(3, "hang")
    floor.until(lambda: floor.beams()[1:2] == ["running"])
    array = next(j.id for j in floor.sim.slurm.jobs.values() if j.request.name.endswith("beams"))
    lose(floor, array)
    floor.until(lambda: "lost" in floor.beams())
    floor.until(lambda: not live(floor))
    pass_time(floor, 3600)
    assert state(floor) is SubmitState.STANDING
    assert "lost" in str(floor.report().attention)


# How often it is looked


def test_looks_at_a_chain_in_doubt_grow_rarer(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: state(floor) is SubmitState.UPLOADED)
    for run in range(1 + MOST_RERUNS):
        floor.sim.link.lose_replies = [Submit]
        floor.sim.link.cut_submit = "receipt beams"
        floor.until(lambda run=run: len(floor.port.of(Submit)) == run + 1)  # type: ignore[misc]
        floor.until(lambda: state(floor) is SubmitState.AMBIGUOUS)
    pass_time(floor, 600)
    looks = len(floor.port.of(Observe))
    pass_time(floor, 3600)
    # A minute, and up to a fifth more, is the longest wait.
    assert 45 <= len(floor.port.of(Observe)) - looks <= 61


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


# What comes back of jobs that are over


def come_back(floor: Floor, stage: str) -> int:
    """A job of our name turns up in the queue: a thawed run of submit.sh, or an older state."""
    request = next(
        j.request for j in floor.sim.slurm.jobs.values() if j.request.name.endswith(f"j01-{stage}")
    )
    return floor.sim.slurm.sbatch(dataclasses.replace(request, hold=True, waits=()))


@pytest.mark.parametrize("stage", ["interpret", "beams", "convert"])
def test_what_comes_back_of_a_case_that_is_over_is_cancelled(floor: Floor, stage: str) -> None:
    floor.take()
    floor.until("completed")
    before = floor.report()
    come_back(floor, stage)
    floor.until(lambda: not live(floor))
    assert floor.report() == before
    assert took_effect(floor) == ONCE


def test_what_comes_back_is_seen_beside_other_cases_and_after_a_restart(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    floor.restart()
    other = floor.more(1)[0]
    floor.take(other)
    come_back(floor, "interpret")
    floor.until(lambda: not [name for name in live(floor) if floor.case.case_id in name])


def test_jobs_of_others_and_of_cases_we_do_not_know_are_left_alone(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    request = next(j.request for j in floor.sim.slurm.jobs.values() if j.request.stage == "interpret")
    names = ["mqi-other-aaaaaaaaaaaa-j01-interpret", "mqi-i1-bbbbbbbbbbbb-j01-interpret"]
    names.append(request.name.replace("j01", "j02"))
    names.append(f"{request.name}-more")
    for name in names:
        floor.sim.slurm.sbatch(dataclasses.replace(request, name=name, hold=True, waits=()))
    pass_time(floor, 7200)
    assert sorted(live(floor)) == sorted(names)


def test_work_that_an_older_state_runs_again_changes_nothing(floor: Floor) -> None:
    floor.take()
    floor.bed.fault(4, "hang")
    floor.until(lambda: floor.beams()[:2] == ["done", "done"])
    floor.sim.slurm.crash(lost=3600)
    floor.sim.slurm.start()
    floor.bed.fault(4, "none")
    floor.until(lambda: floor.report().status not in ("queued", "processing"))
    floor.until(lambda: not live(floor))
    assert floor.beams()[:2] == ["done", "done"]
    claims = [name for name in floor.sim.files.names(f"{floor.bed.case_folder}/j01") if "claim" in name]
    assert len(claims) == len(set(claims))


def test_an_outage_that_a_sweep_has_met_ends_with_a_sweep(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    floor.sim.link.down = True
    floor.until(lambda: floor.home.orchestrator.outage.active)
    floor.sim.link.down = False
    floor.until(lambda: not floor.home.orchestrator.outage.active)


def test_sweeps_end_a_day_after_the_last_look_and_none_are_made_where_nothing_was_sent(floor: Floor) -> None:
    pass_time(floor, 3600)
    assert floor.port.of(Observe) == []
    floor.take()
    floor.until("completed")
    pass_time(floor, 100_000)
    looks = len(floor.port.of(Observe))
    pass_time(floor, 10_000)
    assert len(floor.port.of(Observe)) == looks


def test_an_answer_that_comes_when_all_is_over_changes_nothing(floor: Floor, monkeypatch: Any) -> None:
    # Found by ./dev chaos: a case that had ended was queued again, for ever.
    late: list[Completion] = []
    ask = floor.port.completions

    def without_answers(timeout: float) -> list[Completion]:
        found = ask(timeout)
        late.extend(one for one in found if isinstance(one.effect, Submit))
        return [one for one in found if one not in late]

    monkeypatch.setattr(floor.port, "completions", without_answers)
    floor.take()
    floor.until("completed")
    before = floor.tasks()
    monkeypatch.setattr(floor.port, "completions", lambda _: late)
    floor.home.orchestrator.turn()
    assert (floor.report().status, floor.tasks()) == ("completed", before)
