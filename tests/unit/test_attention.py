"""Whatever waits for a person says so, and says which way leads on."""

from __future__ import annotations

import pytest

from mqi_hpc.core.attention import WAYS, asks, needs_person, reason, way_on
from mqi_hpc.core.causes import Cause, Retry
from mqi_hpc.core.models import Task, TaskStatus, TaskType
from mqi_hpc.core.readings import WITHOUT_ACCOUNTING
from mqi_hpc.core.slurm_states import LIVE, phase

TASK = Task(task_id="k-j01/beam_calc-0", job_id="k-j01", type=TaskType.BEAM_CALC, status=TaskStatus.RUNNING)


@pytest.mark.parametrize("name", sorted(set(WAYS) - {"contradicted"}))
def test_every_phase_that_asks_for_a_person_has_a_way_on(name: str) -> None:
    status = TaskStatus(name) if name in set(TaskStatus) else TaskStatus.RUNNING
    task = TASK.evolve(phase=name, status=status, detail="JobHeldUser")
    assert needs_person(task)
    assert reason(task) == f"{name}: JobHeldUser"
    assert way_on(task) == WAYS[name] != ""


@pytest.mark.parametrize("word", sorted(LIVE))
def test_of_what_lives_only_what_is_held_asks(word: str) -> None:
    assert asks(TaskStatus.RUNNING, phase(word)) is (phase(word) == "held")


@pytest.mark.parametrize("status", list(TaskStatus))
def test_what_has_ended_badly_is_resubmitted_unless_that_comes_by_itself(status: TaskStatus) -> None:
    ended = TASK.evolve(status=status)
    bad = status in (TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.LOST, TaskStatus.SUSPECT)
    assert ("resubmit" in way_on(ended)) is bad
    retry = Retry(cause=Cause.NODE_FAIL, attempt=1, most=3, at=1.0, pause=1.0, without="")
    if status is TaskStatus.FAILED:
        assert way_on(ended.evolve(retry=retry)) == ""


def test_results_that_did_not_come_home_are_fetched_or_made_anew() -> None:
    # A plain resubmit is refused: all is done. Without a chain there is nothing to fetch.
    ended = TASK.evolve(type=TaskType.DOWNLOAD, status=TaskStatus.FAILED, phase="failed")
    assert way_on(ended).startswith("`mqi-hpc fetch`")
    assert "--convert-only" in way_on(ended)
    assert way_on(ended.evolve(phase="not begun")) == "`mqi-hpc resubmit`"


def test_a_contradiction_asks_only_where_slurm_had_not_agreed_before() -> None:
    done = TASK.evolve(
        status=TaskStatus.COMPLETED, phase="done", contradicted="Slurm has said FAILED of it since"
    )
    assert not needs_person(done)
    alone = done.evolve(noted=f"{WITHOUT_ACCOUNTING}, which did not answer")
    assert needs_person(alone)
    assert reason(alone) == "done, but Slurm has said FAILED of it since"
    assert way_on(alone) == WAYS["contradicted"]
    accepted = alone.evolve(phase="accepted", noted="accepted by ann: looked at")
    assert not needs_person(accepted)
    assert way_on(accepted) == ""
