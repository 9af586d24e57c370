"""A verdict stands; what speaks against it later is an event, and asks a person where it was given alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.effects import Observe
from mqi_hpc.core.models import TaskStatus
from mqi_hpc.core.requests import Verb
from mqi_hpc.domain.polls import SWEEP_SECONDS
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    """A cluster that forgets ended jobs soon."""
    with simulated_bed(tmp_path, Site(version="24.11", min_job_age=30.0)) as bed:
        yield Floor(bed)


def events(floor: Floor, kind: str) -> list[dict[str, Any]]:
    with floor.bed.store.transaction(write=False) as unit:
        return [e["data"] for e in unit.events(floor.case.case_id) if e["kind"] == kind]


def done_alone(floor: Floor) -> None:
    """The case is computed and delivered while accounting does not answer."""
    floor.bed.accounting(up=False)
    floor.take()
    report = floor.until("completed")
    assert {beam.noted for beam in report.beams} == {"judged without accounting, which did not answer"}


def rewrite(floor: Floor, job: int, word: str) -> None:
    """Accounting comes to say another end of a job than it had."""
    rows = floor.sim.slurm.accounting._rows[job]
    for label, row in rows.items():
        rows[label] = row.replace("COMPLETED", word)


def array(floor: Floor) -> int:
    number = floor.jobs()[0].submissions[1].slurm_id
    assert number is not None
    return number


def swept(floor: Floor) -> None:
    """Let time pass in which what is over is looked at again."""
    looks = len(floor.port.of(Observe))
    began = floor.bed.clock.monotonic()
    while floor.bed.clock.monotonic() - began < 2 * SWEEP_SECONDS:
        floor.home.orchestrator.turn()
    assert len(floor.port.of(Observe)) > looks


@pytest.mark.parametrize("restarted", [False, True])
def test_accounting_that_comes_back_confirms_what_was_judged_without_it(
    floor: Floor, *, restarted: bool
) -> None:
    done_alone(floor)
    if restarted:
        floor.restart()
    swept(floor)
    assert events(floor, "confirmed") == []
    floor.bed.accounting(up=True)
    swept(floor)
    assert len(events(floor, "confirmed")) == 4
    report = floor.report()
    assert (report.status, report.attention) == ("completed", None)
    assert all(beam.noted.endswith("; accounting has agreed since") for beam in report.beams)
    asked = [look for look in floor.port.of(Observe) if isinstance(look, Observe) and look.sacct_ids]
    swept(floor)
    again = [look for look in floor.port.of(Observe) if isinstance(look, Observe) and look.sacct_ids]
    assert len(again) == len(asked)


def test_accounting_that_says_another_end_asks_a_person_and_changes_nothing(floor: Floor) -> None:
    done_alone(floor)
    floor.bed.accounting(up=True)
    rewrite(floor, array(floor), "NODE_FAIL")
    swept(floor)
    assert [data["slurm"] for data in events(floor, "contradicted")] == ["NODE_FAIL"] * 3
    assert f"{array(floor)}_0|" in events(floor, "contradicted")[0]["line"]
    report = floor.report()
    first = report.beams[0]
    assert (report.status, first.verdict) == ("completed", "done")
    assert report.attention is not None
    assert "beam 2: done, but Slurm has said NODE_FAIL of it since" in report.attention
    assert "accept --reason" in first.way_on
    swept(floor)
    assert len(events(floor, "contradicted")) == 3
    floor.order(Verb.ACCEPT, reason="the node failed afterwards")
    assert floor.report().attention is None
    assert {task.status for task in floor.tasks()} >= {TaskStatus.COMPLETED}


def test_a_contradicted_beam_is_computed_again_where_it_is_named(floor: Floor) -> None:
    done_alone(floor)
    floor.bed.accounting(up=True)
    rewrite(floor, array(floor), "FAILED")
    swept(floor)
    number = floor.case.beams[1].number
    floor.order(Verb.RESUBMIT, beams=(number,))
    floor.until("completed")
    assert [s.indices for s in floor.jobs()[1].submissions] == [(1,), (0,)]
    assert floor.report().beams[1].noted == ""


def test_the_doubted_dose_is_not_shown_as_that_of_the_job_that_computed_the_beam_anew(floor: Floor) -> None:
    done_alone(floor)
    floor.bed.accounting(up=True)
    rewrite(floor, array(floor), "FAILED")
    swept(floor)
    doubted, *others = floor.report().results
    floor.sim.script.stages["convert"] = "exit 7"
    floor.order(Verb.RESUBMIT, beams=(floor.case.beams[0].number,))
    report = floor.until("partial")
    assert (report.job, report.beams[0].verdict, report.beams[0].dose) == ("j02", "done", None)
    assert report.beams[1].dose is not None
    assert list(report.results) == others
    assert "beam_2" in doubted
    floor.sim.script.stages.clear()
    floor.order(Verb.RESUBMIT)
    report = floor.until("completed")
    assert report.beams[0].dose is not None
    assert len(report.results) == 3


def test_where_slurm_had_agreed_a_later_word_is_an_event_alone(floor: Floor) -> None:
    # A controller that came back from an older state rewrites ended elements, about a minute later.
    floor.bed.fault(floor.case.beams[2].number, "hang")
    floor.take()
    floor.until(lambda: floor.beams()[:2] == ["done", "done"])
    rewrite(floor, array(floor), "NODE_FAIL")
    floor.until(lambda: bool(events(floor, "contradicted")))
    assert (floor.beams()[:2], floor.report().attention) == (["done", "done"], None)
    floor.order(Verb.CANCEL)
    report = floor.until("partial")
    assert [beam.verdict for beam in report.beams] == ["done", "done", "cancelled"]


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[Floor]:
    """A cluster that forgets nothing, where the third beam runs on while the others are done."""
    with simulated_bed(tmp_path, Site(version="24.11", min_job_age=1e9)) as bed:
        floor = Floor(bed)
        floor.bed.fault(floor.case.beams[2].number, "hang")
        floor.take()
        floor.until(lambda: floor.beams()[:2] == ["done", "done"])
        yield floor


def test_a_beam_that_was_lost_and_that_slurm_knows_after_all_is_an_event(lasting: Floor) -> None:
    with lasting.home.desk.open(lasting.jobs()[0].job_id) as work:
        first = next(task for task in work.tasks if task.task_id.endswith("beam_calc-0"))
        work.put_task(first.evolve(status=TaskStatus.LOST, phase="lost", slurm=""))
    lasting.until(lambda: bool(events(lasting, "contradicted")))
    (data,) = events(lasting, "contradicted")
    assert (data["verdict"], data["slurm"]) == ("lost", "COMPLETED")
    assert "resubmit" in str(lasting.report().attention)


def test_a_done_beam_that_an_admin_requeues_is_an_event_and_stays_done(lasting: Floor) -> None:
    lasting.sim.slurm.jobs[array(lasting)].elements[0].word = "REQUEUED"
    lasting.until(lambda: bool(events(lasting, "contradicted")))
    assert [data["slurm"] for data in events(lasting, "contradicted")] == ["REQUEUED"]
    assert (lasting.beams()[0], lasting.report().attention) == ("done", None)


def test_what_we_cancelled_is_not_contradicted(lasting: Floor) -> None:
    lasting.order(Verb.CANCEL)
    lasting.until("partial")
    lasting.sim.slurm.jobs[array(lasting)].elements[2].word = "FAILED"
    swept(lasting)
    assert events(lasting, "contradicted") == []
