"""An error of this program over one case is told, keeps no other case waiting, and is made up for later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.effects import Submit
from mqi_hpc.core.errors import StateError
from mqi_hpc.core.models import SubmitState
from mqi_hpc.core.requests import Verb
from mqi_hpc.domain import workflow_orchestrator
from mqi_hpc.domain.adoption import Adoption
from mqi_hpc.domain.desk import OUR_FAULT
from mqi_hpc.domain.polls import Polls
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.transfer_service import TransferService
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site
from tests.unit.test_adoption import store_lost


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version="24.11", min_job_age=1e9)) as bed:
        yield Floor(bed)


# Where it fails, how the case is found among the arguments, and what is told of it.
BREAKS: dict[str, tuple[object, str, Callable[..., str], str]] = {
    "its upload begins": (TransferService, "upload_case", lambda _, case_id: case_id, "gone on with"),
    "its upload ends": (workflow_orchestrator, "apply_transfer", lambda w, *_: w.case.case_id, "its upload"),
    "it is to be submitted": (JobService, "hold", lambda _, __, job: job.case_id, "gone on with"),
    "it has been submitted": (
        workflow_orchestrator, "apply_submit", lambda w, *_: w.case.case_id, "its submission"
    ),
    "it is to be fetched": (TransferService, "download_results", lambda _, case_id: case_id, "gone on with"),
}  # fmt: skip


def broken(
    patch: pytest.MonkeyPatch, where: object, name: str, case_of: Callable[..., str], case_id: str
) -> None:
    whole = getattr(where, name)

    def breaks(*arguments: Any) -> Any:
        if case_of(*arguments) == case_id:
            raise ZeroDivisionError("by chance")
        return whole(*arguments)

    patch.setattr(where, name, breaks)


@pytest.mark.parametrize("when", BREAKS)
def test_the_others_are_led_on_and_it_is_made_up_for(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    where, name, case_of, words = BREAKS[when]
    (other,) = floor.more(1)
    with monkeypatch.context() as patch:
        broken(patch, where, name, case_of, floor.case.case_id)
        floor.take()
        floor.take(other)
        floor.until(lambda: floor.report(other.case_id).status == "completed")
        floor.until(lambda: any(OUR_FAULT in text for text in floor.said))
        floor.turns(50)
    told = [text for text in floor.said if OUR_FAULT in text]
    assert any(words in text and "ZeroDivisionError: by chance" in text for text in told)
    # A chain that stands is found by the next look, whoever failed over the answer.
    assert (floor.report().status == "completed") is (when == "it has been submitted")
    assert floor.until("completed").attention is None
    assert len(floor.report().results) == 3
    assert len([e for e in floor.port.of(Submit) if e.case_id == floor.case.case_id]) == 1


def test_a_submission_of_which_nothing_went_out_is_in_doubt_and_made_up_for(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        start = floor.port.start
        patch.setattr(
            floor.port, "start", lambda effect: 1 / 0 if isinstance(effect, Submit) else start(effect)
        )
        floor.take()
        floor.until(lambda: floor.jobs()[0].submit_state is SubmitState.AMBIGUOUS)
        assert OUR_FAULT in str(floor.report().attention)
    floor.until("completed")
    assert len(floor.port.of(Submit)) == 1


@pytest.mark.parametrize("name", ["cancel", "cancelled"])
def test_a_cancel_is_made_up_for(floor: Floor, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    floor.take()
    floor.until(lambda: floor.beams() == ["running"] * 3)
    with monkeypatch.context() as patch:
        patch.setattr(Polls, name, lambda *_, **__: 1 / 0)
        floor.order(Verb.CANCEL)
        floor.until(lambda: any(OUR_FAULT in text for text in floor.said))
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until("cancelled")
    floor.until(lambda: not [job for job in floor.sim.slurm.jobs.values() if job.live])


def test_a_survey_is_made_up_for(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    floor.take()
    floor.until(lambda: floor.beams() == ["running"] * 3)
    store_lost(floor)
    with monkeypatch.context() as patch:
        patch.setattr(Adoption, "apply", lambda *_: 1 / 0)
        floor.take()
        floor.until(lambda: any("its survey" in text for text in floor.said))
    floor.until("completed")
    assert len(floor.port.of(Submit)) == 1


def test_one_that_cannot_even_be_held_stops_nobody(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    (other,) = floor.more(1)
    with monkeypatch.context() as patch:
        _, _, case_of, _ = BREAKS["it has been submitted"]
        broken(patch, workflow_orchestrator, "apply_submit", case_of, floor.case.case_id)
        broken(patch, workflow_orchestrator, "ambiguous", case_of, floor.case.case_id)
        floor.take()
        floor.take(other)
        floor.until(lambda: floor.report(other.case_id).status == "completed")
        assert any("it cannot be held" in text for text in floor.said)
        # Its chain stands, as the next look tells.
        floor.until("completed")


def test_without_its_store_it_does_not_go_on(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise StateError("the store has gone")

    monkeypatch.setattr(WorkflowOrchestrator, "_begin", gone)
    floor.take()
    with pytest.raises(StateError, match="has gone"):
        floor.turns(5)
