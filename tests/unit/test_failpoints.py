"""The program dies at every step that matters, and is started again: every case ends exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqi_hpc.controllers.failpoint import VARIABLE, arm
from mqi_hpc.core import failpoints
from mqi_hpc.core.effects import Submit
from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.core.failpoints import Failpoint
from mqi_hpc.core.requests import Verb
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site
from tests.unit.test_adoption import store_lost

ONCE = ["beams 0", "beams 1", "beams 2", "convert None", "interpret None"]
CANCELS = [Failpoint.CANCEL, Failpoint.CANCEL_KEPT, Failpoint.CANCEL_ANSWERED]
DOUBTS = {
    Failpoint.FOUND: None,
    Failpoint.FOUND_KEPT: None,
    Failpoint.AGAIN: "receipt beams",
    Failpoint.AGAIN_KEPT: "receipt beams",
}
ADOPTIONS = [Failpoint.SURVEY, Failpoint.ADOPT, Failpoint.ADOPT_KEPT]
USUAL = [point for point in Failpoint if point not in (*CANCELS, *DOUBTS, *ADOPTIONS)]


class Killed(BaseException):
    """The program has ended here."""


@pytest.fixture(params=["22.05", "24.11"])
def floor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version=request.param, min_job_age=1e9)) as bed:
        yield Floor(bed)
    failpoints.install(None)


class Life:
    """A program that is killed the `nth` time it comes to `point`, and started again; `deaths` counts.

    `with_it`: commands that it had begun die with it, as where the machine they run on is its own.
    """

    def __init__(self, floor: Floor, point: Failpoint, nth: int, *, with_it: bool) -> None:
        self._floor, self._point, self._left, self._with_it = floor, point, nth, with_it
        self.deaths = 0
        failpoints.install(self._reached)

    def _reached(self, at: Failpoint) -> None:
        if at is self._point:
            self._left -= 1
            if self._left == 0:
                raise Killed

    def through(self, *steps: Callable[[], object]) -> None:
        """Take the steps; one in which it dies is taken again by the program started after it."""
        for step in steps:
            try:
                step()
            except Killed:
                self.deaths += 1
                (self._floor.sim.die if self._with_it else self._floor.sim.close)()
                self._floor.restart()
                self._floor.home.orchestrator.process_case(self._floor.case.case_id)
                step()


def took_effect(floor: Floor) -> list[str]:
    return sorted(
        f"{job.request.name.rsplit('-', 1)[-1]} {index}"
        for job in floor.sim.slurm.jobs.values()
        for index, element in job.elements.items()
        if element.word == "COMPLETED"
    )


def live(floor: Floor) -> list[str]:
    return [job.request.name for job in floor.sim.slurm.jobs.values() if job.live]


def lead(floor: Floor, point: Failpoint, nth: int, *, with_it: bool) -> int:
    """Lead a case from its folder to its end through one death; returns how many there were."""
    if point in ADOPTIONS:
        floor.take()
        floor.until(lambda: "done" in floor.beams())
        store_lost(floor)
    life = Life(floor, point, nth, with_it=with_it)
    if point in DOUBTS:
        floor.sim.link.lose_replies = [Submit]
        floor.sim.link.cut_submit = DOUBTS[point]
    if point in CANCELS:
        running = lambda: "running" in floor.beams()  # noqa: E731 - named for what it tells
        life.through(
            floor.take,
            lambda: floor.until(running),
            lambda: floor.order(Verb.CANCEL) if floor.report().status == "processing" else None,
            lambda: floor.until("cancelled"),
            lambda: floor.until(lambda: not live(floor)),
        )
        assert len(floor.port.of(Submit)) == 1
    else:
        life.through(floor.take, lambda: floor.until("completed"))
        assert len(floor.report().results) == 3
        assert took_effect(floor) == ONCE
        assert not live(floor)
    return life.deaths


@pytest.mark.parametrize("with_it", [True, False], ids=["its commands too", "its commands live on"])
@pytest.mark.parametrize("point", Failpoint)
def test_every_case_ends_once_although_the_program_dies(
    floor: Floor, point: Failpoint, with_it: bool
) -> None:
    assert lead(floor, point, 1, with_it=with_it) == 1


@pytest.mark.parametrize("nth", range(2, 6))
def test_it_may_die_at_any_verdict(floor: Floor, nth: int) -> None:
    # Interpret, three beams and convert are judged in as many looks, or in fewer.
    lead(floor, Failpoint.VERDICT, nth, with_it=True)


def test_nothing_happens_at_a_failpoint_that_nobody_named(floor: Floor) -> None:
    arm({})
    floor.take()
    floor.until("completed")


def test_a_named_one_ends_the_process_there_and_at_no_other(floor: Floor) -> None:
    died: list[str] = []
    arm({VARIABLE: "upload-kept"}, lambda: died.append(floor.jobs()[0].submit_state))
    floor.take()
    floor.until("completed")
    assert died == ["uploaded"]


def test_a_name_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="names no failpoint") as told:
        arm({VARIABLE: "somewhere"})
    assert "submit-sent" in told.value.fix
