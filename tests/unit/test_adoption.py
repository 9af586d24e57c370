"""The store lost, or an older backup of it: what is on the cluster is found again, nothing is sent twice.

Each case is led on simulated Slurm up to a stage of its life, then its store is replaced.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mqi_hpc.core.effects import Completion, Failure, Submit, Survey, Upload
from mqi_hpc.core.models import Case, SubmitState
from mqi_hpc.core.requests import Verb
from mqi_hpc.records.layout import MANIFEST
from mqi_hpc.records.manifest import format_manifest, parse_manifest
from tests.support.floor import Floor
from tests.support.memory_store import MemoryStore
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site

STEPS = [f"{do} {stage}" for stage in ("interpret", "beams", "convert") for do in ("sbatch", "receipt")]
STEPS.append("release")
ONCE = ["beams 0", "beams 1", "beams 2", "convert None", "interpret None"]


@pytest.fixture(params=["22.05", "24.11"])
def floor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version=request.param, min_job_age=1e9)) as bed:
        yield Floor(bed)


def store_lost(floor: Floor) -> None:
    """The program dies and its store with it; an empty one is begun for the same identity."""
    floor.sim.die()
    floor.bed.store = MemoryStore(clock=floor.bed.clock)
    with floor.bed.store.transaction() as unit:
        unit.event("registered", floor.case.case_id, {"at": floor.bed.clock.now()})
    floor.restart()


def took_effect(floor: Floor, case: Case | None = None) -> list[str]:
    """Tasks that ended well in Slurm, by stage and index."""
    return sorted(
        f"{job.request.name.rsplit('-', 1)[-1]} {index}"
        for job in floor.sim.slurm.jobs.values()
        for index, element in job.elements.items()
        if element.word == "COMPLETED" and (case or floor.case).case_id in job.request.name
    )


def state(floor: Floor) -> SubmitState:
    return floor.jobs()[-1].submit_state


def live(floor: Floor) -> list[str]:
    return [job.request.name for job in floor.sim.slurm.jobs.values() if job.live]


def adopted(floor: Floor) -> list[str]:
    with floor.bed.store.transaction(write=False) as unit:
        return [e["data"]["job"] for e in unit.events(floor.case.case_id) if e["kind"] == "adopted"]


def beams_done(floor: Floor, count: int) -> Callable[[], bool]:
    return lambda: floor.beams().count("done") >= count


STAGES: dict[str, Callable[[Floor], object]] = {
    "before the upload": lambda f: None,
    "planned": lambda f: f.take(),
    "uploaded": lambda f: f.until(lambda: state(f) is SubmitState.UPLOADED),
    "submitted": lambda f: f.until(lambda: state(f) is SubmitState.STANDING),
    "running": lambda f: f.until(lambda: "running" in f.beams()),
    "one beam done": lambda f: f.until(beams_done(f, 1)),
    "all beams done": lambda f: f.until(beams_done(f, 3)),
    "delivered": lambda f: f.until("completed"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_store_lost_at_any_stage_is_rebuilt_and_nothing_runs_twice(floor: Floor, stage: str) -> None:
    if stage != "before the upload":
        floor.take()
    STAGES[stage](floor)
    store_lost(floor)
    floor.take()
    report = floor.until("completed")
    assert took_effect(floor) == ONCE
    assert [Path(path).read_bytes() for path in report.results]
    assert len(report.results) == 3
    assert report.attention is None
    assert adopted(floor) == ([] if stage in ("before the upload", "planned") else ["j01"])
    assert not live(floor)


@pytest.mark.parametrize("step", STEPS)
def test_a_store_lost_at_each_step_of_the_submission(floor: Floor, step: str) -> None:
    floor.sim.link.cut_submit = step
    floor.take()
    floor.until(lambda: bool(floor.port.of(Submit)))
    floor.sim.advance(1.5)
    store_lost(floor)
    floor.take()
    floor.until("completed")
    assert took_effect(floor) == ONCE
    assert adopted(floor) == ["j01"]
    assert not live(floor)


@pytest.mark.parametrize("turns", range(12))
def test_a_kill_at_any_turn_of_the_adoption_changes_nothing(floor: Floor, turns: int) -> None:
    floor.take()
    floor.until(beams_done(floor, 1))
    store_lost(floor)
    floor.take()
    for _ in range(turns):
        floor.home.orchestrator.turn()
    floor.sim.die()
    floor.restart()
    floor.take()
    floor.until("completed")
    assert took_effect(floor) == ONCE
    assert adopted(floor) == ["j01"]


def test_a_kill_while_the_adoption_is_kept_leaves_the_planned_job(floor: Floor) -> None:
    floor.take()
    floor.until(beams_done(floor, 1))
    store_lost(floor)
    floor.take()
    floor.until(lambda: bool(floor.port.of(Survey)))
    with floor.bed.store.transaction() as unit:
        put, calls = type(unit.jobs).put_task, []

        def dies(part: object, task: object) -> None:
            calls.append(task)
            if len(calls) == 3:
                raise KeyboardInterrupt
            put(part, task)  # type: ignore[arg-type]

        kind = type(unit.jobs)
    kind.put_task = dies  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            floor.until("completed")
    finally:
        kind.put_task = put  # type: ignore[method-assign]
    assert state(floor) is SubmitState.PLANNED
    assert adopted(floor) == []
    floor.sim.die()
    floor.restart()
    floor.take()
    floor.until("completed")
    assert took_effect(floor) == ONCE


def test_an_outage_while_the_folder_is_read_only_delays_it(floor: Floor) -> None:
    floor.take()
    floor.until(beams_done(floor, 1))
    store_lost(floor)
    floor.take()
    floor.until(lambda: bool(floor.port.of(Survey)))
    floor.bed.link(up=False)
    began = floor.bed.clock.monotonic()
    floor.until(lambda: floor.bed.clock.monotonic() - began > 3600)
    assert adopted(floor) == []
    floor.bed.link(up=True)
    floor.until("completed")
    assert took_effect(floor) == ONCE


# After a resubmit


def resubmitted(floor: Floor, *, hangs: bool = True) -> None:
    """Beam 0 fails, and is computed again as j02 while beam 1 still runs."""
    first, second, _ = (beam.number for beam in floor.case.beams)
    floor.bed.fault(first, "exit 3")
    if hangs:
        floor.bed.fault(second, "hang")
    floor.take()
    floor.until(lambda: floor.beams()[0] == "failed (exit code)" or "failed" in floor.beams()[0])
    floor.sim.script.beams.pop(first)
    floor.order(Verb.RESUBMIT)


LATER: dict[str, Callable[[Floor], object]] = {
    "uploaded": lambda f: f.until(lambda: state(f) is SubmitState.UPLOADED),
    "submitted": lambda f: f.until(lambda: state(f) is SubmitState.STANDING),
    "running": lambda f: f.until(lambda: f.beams()[0] == "running"),
    "done there": lambda f: f.until(lambda: f.beams()[0] == "done"),
}


@pytest.mark.parametrize("stage", LATER)
def test_a_store_lost_after_a_resubmit_while_siblings_run(floor: Floor, stage: str) -> None:
    resubmitted(floor)
    LATER[stage](floor)
    store_lost(floor)
    floor.take()
    floor.until(lambda: adopted(floor) == ["j01", "j02"])
    assert [job.name for job in floor.jobs()] == ["j01", "j02"]
    assert floor.jobs()[1].stages == ("beams", "convert")
    floor.until(lambda: floor.beams()[0] == "done")
    # The sibling is ended by an administrator: the rest is done, and it can be computed again.
    floor.sim.slurm.scancel(floor.jobs()[0].submissions[1].name, floor.jobs()[0].submissions[1].slurm_id or 0)
    floor.sim.script.beams.clear()
    floor.until("partial")
    floor.order(Verb.RESUBMIT)
    report = floor.until("completed")
    assert len(report.results) == 3
    effects = took_effect(floor)
    assert [effects.count(f"beams {index}") for index in range(3)] == [1, 1, 1]
    assert effects.count("interpret None") == 1
    assert not live(floor)


# What cannot be believed


def lost_while_running(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: "running" in floor.beams())
    store_lost(floor)


def written(floor: Floor, name: str, change: Callable[[bytes], bytes], job: str = "j01") -> None:
    """A file of the job is another, and its MANIFEST fits it."""
    path = f"{floor.bed.case_folder}/{job}/{name}"
    floor.bed.overwrite(path, change(floor.sim.files.read(path) or b""))
    manifest = parse_manifest(
        (floor.sim.files.read(f"{floor.bed.case_folder}/{job}/{MANIFEST}") or b"").decode()
    )
    stored = floor.sim.files.stat(path)
    assert stored is not None
    text = format_manifest({**manifest, name: stored.sha256})
    floor.bed.overwrite(f"{floor.bed.case_folder}/{job}/{MANIFEST}", text.encode())


def chain_with(**changes: object) -> Callable[[bytes], bytes]:
    def change(text: bytes) -> bytes:
        return json.dumps({**json.loads(text), **changes}).encode()

    return change


def other_beam(text: bytes) -> bytes:
    chain = json.loads(text)
    chain["beams"][0]["input_digest"], chain["beams"][1]["input_digest"] = (
        chain["beams"][1]["input_digest"],
        chain["beams"][0]["input_digest"],
    )
    return json.dumps(chain).encode()


DAMAGE: dict[str, tuple[Callable[[Floor], object], str]] = {
    "chain.json changed": (
        lambda f: f.bed.overwrite(f"{f.bed.case_folder}/j01/chain.json", b"{}"),
        "not what MANIFEST.sha256 says",
    ),
    "chain.json no JSON": (lambda f: written(f, "chain.json", lambda _: b"\xff"), "decode"),
    "of a later version": (lambda f: written(f, "chain.json", chain_with(version=2)), "version 2"),
    "another plan": (lambda f: written(f, "chain.json", chain_with(plan_uid="9.9")), "plan '9.9'"),
    "another beam": (lambda f: written(f, "chain.json", other_beam), "beams (index, number, input digest)"),
    "submit.sh changed": (
        lambda f: f.bed.overwrite(f"{f.bed.case_folder}/j01/submit.sh", b"#!/bin/bash\n"),
        "submit.sh",
    ),
    "no MANIFEST": (lambda f: f.bed.remove(f"{f.bed.case_folder}/j01/MANIFEST.sha256"), "MANIFEST"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_believed_is_refused_and_nothing_is_sent(floor: Floor, damage: str) -> None:
    lost_while_running(floor)
    hurt, why = DAMAGE[damage]
    hurt(floor)
    sent = len(floor.port.of(Submit))
    floor.take()
    report = floor.until("failed")
    assert why in str(report.refusal)
    assert any(why in text for text in floor.said)
    assert len(floor.port.of(Submit)) == sent
    assert state(floor) is SubmitState.REFUSED
    assert adopted(floor) == []


def test_after_a_refusal_a_person_may_go_on_with_the_next_folder(floor: Floor) -> None:
    lost_while_running(floor)
    written(floor, "chain.json", other_beam)
    floor.take()
    floor.until("failed")
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert [job.name for job in floor.jobs()] == ["j01", "j02"]
    assert len(floor.report().results) == 3


def test_an_input_of_other_bytes_is_refused(floor: Floor) -> None:
    lost_while_running(floor)
    floor.bed.remove(f"{floor.bed.case_folder}/input/MANIFEST.sha256")
    floor.take()
    assert "input" in str(floor.until("failed").refusal)


def test_a_later_job_without_the_one_before_is_refused(floor: Floor) -> None:
    resubmitted(floor, hangs=False)
    floor.until("completed")
    store_lost(floor)
    floor.sim.files.remove(f"{floor.bed.case_folder}/j01")
    floor.take()
    assert "j02 is there, j01 is not" in str(floor.until("failed").refusal)
    assert not live(floor)


def test_a_damaged_receipt_is_held_for_a_person(floor: Floor) -> None:
    lost_while_running(floor)
    floor.bed.overwrite(f"{floor.bed.case_folder}/j01/receipt.interpret", b"somebody else 7 7\n")
    sent = len(floor.port.of(Submit))
    floor.take()
    floor.until(lambda: "somebody else" in str(floor.report().attention))
    assert len(floor.port.of(Submit)) == sent


# An older backup


def backup(floor: Floor) -> MemoryStore:
    kept = copy.copy(floor.bed.store)
    kept._data = copy.deepcopy(kept._data)
    return kept


def restored(floor: Floor, store: MemoryStore) -> None:
    floor.sim.die()
    floor.bed.store = store
    floor.restart()


BEFORE: dict[str, Callable[[Floor], object]] = {
    "planned": lambda f: None,
    "uploading": lambda f: f.until(lambda: bool(f.port.of(Upload))),
    "uploaded": STAGES["uploaded"],
    "submitting": lambda f: f.until(lambda: state(f) is SubmitState.SUBMITTING),
    "submitted": STAGES["submitted"],
    "running": STAGES["running"],
}


@pytest.mark.parametrize("then", BEFORE)
@pytest.mark.parametrize("now", ["one beam done", "delivered"])
def test_an_older_backup_goes_on_from_what_is_there(floor: Floor, then: str, now: str) -> None:
    floor.take()
    BEFORE[then](floor)
    kept = backup(floor)
    STAGES[now](floor)
    restored(floor, kept)
    floor.take()
    floor.until("completed")
    assert took_effect(floor) == ONCE
    assert not live(floor)


def test_an_older_backup_that_knows_no_resubmit_adopts_it_when_one_is_asked_for(floor: Floor) -> None:
    number = floor.case.beams[0].number
    floor.bed.fault(number, "exit 3")
    floor.take()
    floor.until("partial")
    kept = backup(floor)
    floor.sim.script.beams.clear()
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    restored(floor, kept)
    assert floor.report().status == "partial"
    with floor.bed.store.transaction() as unit:
        unit.event("order", floor.case.case_id, {"request": "of another day"})
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert adopted(floor) == ["j02"]
    assert len(floor.report().results) == 3
    effects = took_effect(floor)
    assert [effects.count(f"beams {index}") for index in range(3)] == [1, 1, 1]
    assert effects.count("convert None") == 2


def test_a_case_called_off_while_its_folder_is_read_is_cancelled_there(floor: Floor) -> None:
    lost_while_running(floor)
    floor.take()
    floor.until(lambda: bool(floor.port.of(Survey)))
    floor.order(Verb.CANCEL)
    floor.until(lambda: adopted(floor) == ["j01"])
    floor.until(lambda: not live(floor))
    floor.until("cancelled")


def test_a_budget_counts_what_runs_already(tmp_path: Path) -> None:
    with simulated_bed(tmp_path, Site(version="22.05", min_job_age=1e9)) as bed:
        floor = Floor(bed, gpu_count=2)
        floor.take()
        floor.until(lambda: "running" in floor.beams())
        store_lost(floor)
        floor.take()
        floor.until(lambda: adopted(floor) == ["j01"])
        with floor.bed.store.transaction(write=False) as unit:
            assert unit.resources.holdings() == {f"{floor.case.case_id}-j01": 2}
        floor.until("completed")
        with floor.bed.store.transaction(write=False) as unit:
            assert unit.resources.holdings() == {}


def test_an_older_job_that_never_began_is_given_up_and_what_is_left_of_it_ended(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: state(floor) is SubmitState.UPLOADED)
    floor.sim.link.cut_submit = "receipt beams"
    floor.sim.link.lose_replies = [Submit]
    floor.until(lambda: state(floor) is SubmitState.AMBIGUOUS)
    floor.order(Verb.CANCEL)
    floor.until("cancelled")
    floor.order(Verb.RESUBMIT)
    floor.until(lambda: state(floor) is SubmitState.STANDING)
    store_lost(floor)
    # It comes back with an older state of the controller.
    left = next(job for job in floor.sim.slurm.jobs.values() if "-j01-beams" in job.request.name)
    floor.sim.slurm.sbatch(replace(left.request, hold=True, waits=()))
    floor.take()
    floor.until("completed")
    assert adopted(floor) == ["j01", "j02"]
    assert floor.jobs()[0].submit_state is SubmitState.REFUSED
    floor.until(lambda: not live(floor))
    assert took_effect(floor) == ONCE


def test_older_jobs_that_wait_in_the_queue_beside_later_ones_go_on(floor: Floor) -> None:
    for beam in floor.case.beams:
        floor.bed.fault(beam.number, "hang")
    floor.take()
    floor.until(lambda: floor.beams() == ["running"] * 3)
    floor.bed.partition("gpu", up=False)
    for index, beam in enumerate(floor.case.beams):
        floor.sim.slurm.end("PREEMPTED", index=index)
        floor.until(lambda n=index: "failed" in floor.beams()[n])
        floor.order(Verb.RESUBMIT, beams=(beam.number,))
        floor.until(lambda: state(floor) is SubmitState.STANDING)
    floor.sim.script.beams.clear()
    store_lost(floor)
    floor.take()
    floor.until(lambda: adopted(floor) == ["j01", "j02", "j03", "j04"])
    waiting = [name for name in live(floor) if name.endswith("beams")]
    assert len(waiting) == 3
    floor.turns(50)
    assert [name for name in live(floor) if name.endswith("beams")] == waiting
    floor.bed.partition("gpu", up=True)
    floor.until("completed")
    assert len(floor.jobs()) == 4
    effects = took_effect(floor)
    assert [effects.count(f"beams {index}") for index in range(3)] == [1, 1, 1]


def test_after_a_refusal_the_dose_of_a_later_job_is_kept_and_the_rest_computed(floor: Floor) -> None:
    resubmitted(floor, hangs=False)
    floor.until("completed")
    store_lost(floor)
    written(floor, "chain.json", other_beam)
    floor.take()
    floor.until("failed")
    floor.order(Verb.RESUBMIT)
    floor.until("partial")
    assert adopted(floor) == ["j02"]
    floor.order(Verb.RESUBMIT)
    report = floor.until("completed")
    assert floor.jobs()[-1].stages == ("interpret", "beams", "convert")
    assert len(report.results) == 3
    assert took_effect(floor).count("beams 0") == 1


def test_a_case_called_off_and_resubmitted_while_its_folder_is_read_runs_once(floor: Floor) -> None:
    lost_while_running(floor)
    floor.take()
    floor.until(lambda: bool(floor.port.of(Survey)))
    floor.order(Verb.CANCEL)
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    assert [job.name for job in floor.jobs()] == ["j01", "j02"]
    assert adopted(floor) == ["j01"]
    words = {
        element.word
        for job in floor.sim.slurm.jobs.values()
        for element in job.elements.values()
        if "-j01-beams" in job.request.name
    }
    assert words == {"CANCELLED"}
    assert not live(floor)


def test_no_space_there_keeps_nobody_from_what_is_there_already(floor: Floor) -> None:
    lost_while_running(floor)
    floor.sim.files.free_bytes = 0
    floor.take()
    floor.until(lambda: adopted(floor) == ["j01"])


def test_an_answer_that_comes_twice_changes_nothing(floor: Floor) -> None:
    lost_while_running(floor)
    floor.take()
    floor.until(lambda: adopted(floor) == ["j01"])
    (effect,) = floor.port.of(Survey)
    before = floor.jobs()
    assert isinstance(effect, Survey)
    floor.home.orchestrator._surveyed(effect, Completion(effect=effect, error="late", failure=Failure.OUTAGE))
    assert floor.jobs() == before
    floor.until("completed")
    assert adopted(floor) == ["j01"]
    assert took_effect(floor) == ONCE
