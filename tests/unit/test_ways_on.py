"""What a person is told to do leads on: with a folder gone from the cluster, an accounting that is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.core.effects import Submit
from mqi_hpc.core.requests import Verb
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version="24.11", min_job_age=300.0)) as bed:
        yield Floor(bed, gpu_count=3)


def slots(floor: Floor) -> dict[str, int]:
    with floor.bed.store.transaction(write=False) as unit:
        return dict(unit.resources.holdings())


def test_a_case_whose_job_folder_is_gone_is_given_up_by_a_cancel_and_computed_anew(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: floor.beams() == ["running"] * 3)
    floor.sim.files.remove(f"{floor.bed.case_folder}/j01")
    floor.until(lambda: floor.beams() == ["unreadable"] * 3)
    floor.turns(1000)
    assert floor.report().status == "processing"
    assert "`mqi-hpc cancel` gives it up" in str(floor.report().attention)
    floor.order(Verb.CANCEL)
    report = floor.until("cancelled")
    assert "how it ended is not known" in report.beams[0].detail
    assert slots(floor) == {}
    # What interpret had left went with the folder: the first job finds that, the next makes it again.
    floor.order(Verb.RESUBMIT)
    floor.until("failed")
    floor.order(Verb.RESUBMIT)
    report = floor.until("completed")
    assert [job.stages[0] for job in floor.jobs()] == ["interpret", "beams", "interpret"]
    assert len(report.results) == 3


def test_a_cancel_gives_up_what_accounting_never_tells(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: floor.beams() == ["running"] * 3)
    floor.bed.accounting(up=False)
    floor.order(Verb.CANCEL)
    floor.until("cancelled")
    assert slots(floor) == {}


def test_a_chain_in_doubt_whose_folder_is_gone_is_given_up_by_a_cancel(floor: Floor) -> None:
    floor.sim.link.cut_submit = "receipt beams"
    floor.sim.link.lose_replies = [Submit]
    floor.take()
    floor.until(lambda: floor.report().submission == "ambiguous")
    floor.sim.files.remove(floor.bed.case_folder)
    floor.turns(500)
    assert floor.report().submission == "ambiguous"
    floor.order(Verb.CANCEL)
    report = floor.until("cancelled")
    assert report.submission == "withdrawn"
    floor.until(lambda: not any(job.live for job in floor.sim.slurm.jobs.values()))
    floor.order(Verb.RESUBMIT)
    floor.until("completed")


def test_doses_that_are_gone_are_computed_anew_where_their_beams_are_named(floor: Floor) -> None:
    first, *others = (beam.number for beam in floor.case.beams)
    floor.bed.fault(first, "exit 7")
    floor.take()
    floor.until("partial")
    floor.sim.script.beams.clear()
    floor.sim.files.remove(floor.bed.case_folder)
    # The first finds interpret's output gone, the second makes it again.
    for verdict in ("failed", "done"):
        floor.order(Verb.RESUBMIT)
        report = floor.until("partial")
        assert report.beams[0].verdict == verdict
    assert f"`mqi-hpc resubmit --beam {others[0]}`" in str(report.attention)
    floor.order(Verb.RESUBMIT, beams=tuple(others))
    report = floor.until("completed")
    assert report.attention is None
    assert len(report.results) == 3
