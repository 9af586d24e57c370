"""The plan of the job that makes good what went wrong: properties over every history a case can have."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import (
    STAGES,
    Job,
    JobStatus,
    Submission,
    SubmitState,
    Task,
    TaskStatus,
    TaskType,
)
from mqi_hpc.core.readings import WITHOUT_ACCOUNTING
from mqi_hpc.core.resubmit import History, JobPlan, current_tasks, first_plan, kinds_of, plan_resubmit, stale
from mqi_hpc.records.layout import EXIT_NOT_NOW
from tests.support.bench import make_case

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CASE = make_case(3)
GOOD = (TaskStatus.COMPLETED, TaskStatus.SUSPECT)
STATUS = st.sampled_from(TaskStatus)


def job(number: int, indices: tuple[int, ...], stages: tuple[str, ...] = STAGES) -> Job:
    return Job(
        job_id=f"{CASE.case_id}-j{number:02d}",
        case_id=CASE.case_id,
        status=JobStatus.RUNNING,
        created_at=NOW,
        name=f"j{number:02d}",
        submit_state=SubmitState.STANDING,
        submissions=tuple(
            Submission(stage=s, name=s, indices=indices if s == "beams" else (0,)) for s in stages
        ),
    )


def tasks(of: Job, kinds: dict[TaskType, TaskStatus], beams: dict[int, TaskStatus]) -> tuple[Task, ...]:
    def task(kind: TaskType, index: int, status: TaskStatus) -> Task:
        return Task(
            task_id=f"{of.name}/{kind}-{index}",
            job_id=of.job_id,
            type=kind,
            status=status,
            index=index,
            # That of convert is read: it has a test of its own.
            record="a record" if kind is not TaskType.CONVERT and status in GOOD else None,
        )

    once = [task(kind, 0, status) for kind, status in kinds.items()]
    return (*once, *(task(TaskType.BEAM_CALC, index, status) for index, status in beams.items()))


@st.composite
def histories(draw: st.DrawFn) -> History:
    """A first job for all beams, and up to two that compute some of them again."""
    first = job(1, (0, 1, 2))
    interpret = draw(
        st.sampled_from([TaskStatus.COMPLETED, TaskStatus.SUSPECT, TaskStatus.FAILED, TaskStatus.RUNNING])
    )
    kinds = {TaskType.UPLOAD: TaskStatus.COMPLETED, TaskType.INTERPRET: interpret}
    jobs, found = [first], {}
    rest = {TaskType.CONVERT: draw(STATUS), TaskType.DOWNLOAD: draw(STATUS)}
    found[first.job_id] = tasks(first, kinds | rest, {n: draw(STATUS) for n in range(3)})
    for number in range(2, 2 + draw(st.integers(0, 2))):
        chosen = tuple(sorted(draw(st.sets(st.integers(0, 2), max_size=3))))
        stages = STAGES[1:] if chosen else STAGES[2:]
        again = job(number, chosen, stages)
        rest = {TaskType.CONVERT: draw(STATUS), TaskType.DOWNLOAD: draw(STATUS)}
        jobs.append(again)
        upload = {TaskType.UPLOAD: TaskStatus.COMPLETED}
        found[again.job_id] = tasks(again, upload | rest, {n: draw(STATUS) for n in chosen})
    return History(jobs=tuple(jobs), tasks=found)


def status(history: History, index: int) -> TaskStatus:
    found = history.beam(index)
    assert found is not None
    return found[1].status


@given(histories(), st.booleans(), st.none() | st.sets(st.sampled_from([2, 3, 4]), min_size=1))
def test_a_plan_computes_only_what_has_ended_undone(
    history: History, convert_only: bool, numbers: set[int] | None
) -> None:
    try:
        plan = plan_resubmit(
            CASE, history, numbers=None if numbers is None else sorted(numbers), convert_only=convert_only
        )
    except ProcessingError as error:
        assert error.fix or "has no beam" in error.what
        return
    names = {one.name for one in history.jobs}
    assert plan.stages == STAGES[-len(plan.stages) :]
    assert bool(plan.indices) is ("beams" in plan.stages)
    assert (plan.interpreted is None) is ("interpret" in plan.stages)
    for index in plan.indices:
        assert status(history, index).terminal
        assert status(history, index) is not TaskStatus.COMPLETED
    assert not set(plan.indices) & set(plan.sources)
    assert set(plan.sources.values()) | set(plan.waits_for) <= names
    for index in {0, 1, 2} - set(plan.indices):
        # What is done, or may yet be, is never lost from the case's results.
        if status(history, index) is TaskStatus.COMPLETED:
            assert index in plan.sources
        elif not status(history, index).terminal:
            assert index in plan.sources
            assert "interpret" not in plan.stages
        if not status(history, index).terminal and "interpret" not in plan.stages:
            assert plan.sources[index] in plan.waits_for
    if numbers is None and not convert_only and plan.indices:
        undone = {
            n
            for n in range(3)
            if status(history, n).terminal and status(history, n) is not TaskStatus.COMPLETED
        }
        assert set(plan.indices) == undone


@given(histories())
def test_the_tasks_that_count_are_the_newest_of_each_kind_and_beam(history: History) -> None:
    counting = current_tasks(history)
    beams = [task for task in counting if task.type is TaskType.BEAM_CALC]
    assert [task.index for task in beams] == [0, 1, 2]
    for task in beams:
        assert history.beam(task.index) == (by_id(history, task.job_id), task)
    once = [task for task in counting if task.type is not TaskType.BEAM_CALC]
    assert [task.type for task in once] == [kind for kind in TaskType if kind is not TaskType.BEAM_CALC]
    newest = history.jobs[-1].job_id
    assert all(task.job_id == newest for task in once if task.type is not TaskType.INTERPRET)


def by_id(history: History, job_id: str) -> Job:
    return next(one for one in history.jobs if one.job_id == job_id)


@given(histories())
def test_what_a_new_job_replaces_are_the_converts_that_have_not_ended(history: History) -> None:
    for one, stage in stale(history):
        assert stage == "convert"
        (convert,) = [t for t in history.tasks[one.job_id] if t.type is TaskType.CONVERT]
        assert not convert.status.terminal


def test_a_case_without_jobs_has_nothing() -> None:
    nothing = History(jobs=(), tasks={})
    assert current_tasks(nothing) == []
    assert nothing.beam(0) is None
    assert nothing.newest(TaskType.CONVERT) is None
    with pytest.raises(ProcessingError, match="has no job yet"):
        plan_resubmit(CASE, nothing)


def test_a_first_plan_is_everything() -> None:
    plan = first_plan(CASE)
    assert plan == JobPlan(indices=(0, 1, 2))
    assert kinds_of(plan) == tuple(TaskType)
    assert kinds_of(JobPlan(stages=("convert",), indices=())) == (
        TaskType.UPLOAD,
        TaskType.CONVERT,
        TaskType.DOWNLOAD,
    )


def resubmitted_beam(**changes: object) -> History:
    """Beam 1 failed in j01, and again in j02, which took j01's interpret output; `changes` are to j02's."""
    first, second = job(1, (0, 1, 2)), job(2, (1,), STAGES[1:])
    kinds = {TaskType.INTERPRET: TaskStatus.COMPLETED, TaskType.CONVERT: TaskStatus.FAILED}
    done = {0: TaskStatus.COMPLETED, 1: TaskStatus.FAILED, 2: TaskStatus.COMPLETED}
    old = tasks(first, kinds, done)
    new = tasks(second, {TaskType.CONVERT: TaskStatus.FAILED}, {1: TaskStatus.FAILED})
    stopped = {"slurm": "FAILED", "exit_code": EXIT_NOT_NOW, **changes}
    again = tuple(task.evolve(**stopped) if task.type is TaskType.BEAM_CALC else task for task in new)
    return History(jobs=(first, second), tasks={first.job_id: old, second.job_id: again})


@pytest.mark.parametrize("exit_code", [EXIT_NOT_NOW, None])
def test_what_the_fence_stopped_for_want_of_interprets_output_interprets_again(exit_code: int | None) -> None:
    plan = plan_resubmit(CASE, resubmitted_beam(exit_code=exit_code))
    assert (plan.stages, plan.indices, plan.interpreted) == (STAGES, (1,), None)
    assert plan.sources == {0: "j01", 2: "j01"}


@pytest.mark.parametrize(
    "changes", [{"exit_code": 3}, {"slurm": "NODE_FAIL"}, {"status": TaskStatus.CANCELLED}]
)
def test_what_failed_otherwise_takes_interprets_output_again(changes: dict[str, object]) -> None:
    plan = plan_resubmit(CASE, resubmitted_beam(**changes))
    assert (plan.stages, plan.indices, plan.interpreted) == (STAGES[1:], (1,), "j01")


def test_what_interpreted_for_itself_and_was_stopped_does_not_interpret_for_that() -> None:
    first = job(1, (0, 1, 2))
    kinds = {TaskType.INTERPRET: TaskStatus.COMPLETED, TaskType.CONVERT: TaskStatus.FAILED}
    found = tasks(first, kinds, dict.fromkeys(range(3), TaskStatus.FAILED))
    stopped = [t.evolve(slurm="FAILED") if t.type is TaskType.BEAM_CALC else t for t in found]
    plan = plan_resubmit(CASE, History(jobs=(first,), tasks={first.job_id: stopped}))
    assert (plan.stages, plan.interpreted) == (STAGES[1:], "j01")


def test_a_done_beam_that_slurm_contradicts_is_computed_again_where_it_is_named() -> None:
    first = job(1, (0, 1, 2))
    kinds = {TaskType.INTERPRET: TaskStatus.COMPLETED, TaskType.CONVERT: TaskStatus.SUSPECT}
    found = tasks(first, kinds, dict.fromkeys(range(3), TaskStatus.COMPLETED))
    doubted = {"noted": WITHOUT_ACCOUNTING, "contradicted": "Slurm has said FAILED of it since"}
    changed = [t.evolve(**doubted) if (t.type, t.index) == (TaskType.BEAM_CALC, 1) else t for t in found]
    history = History(jobs=(first,), tasks={first.job_id: changed})
    number = CASE.beams[1].number
    assert plan_resubmit(CASE, history, numbers=[number]).indices == (1,)
    with pytest.raises(ProcessingError, match=f"beam {CASE.beams[0].number} is done"):
        plan_resubmit(CASE, history, numbers=[CASE.beams[0].number])
