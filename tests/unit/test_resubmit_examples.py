"""The plan of the next job by example: each way a case can stand, and what follows or what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import STAGES, SubmitState, TaskStatus, TaskType
from mqi_hpc.core.resubmit import History, JobPlan, beams_named, current_tasks, plan_resubmit, stale
from tests.unit.test_resubmit import CASE, job, tasks

DONE, FAILED, RUNS = TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.RUNNING
LOST, SUSPECT, CANCELLED = TaskStatus.LOST, TaskStatus.SUSPECT, TaskStatus.CANCELLED
LABEL = CASE.label
SHOW = "`mqi-hpc show` tells how it stands"
SUBMIT = "`mqi-hpc submit` or the daemon submits it"


def first(
    interpret: TaskStatus, beams: tuple[TaskStatus, ...], convert: TaskStatus, **changes: object
) -> History:
    """A case whose j01 computed all beams."""
    one = replace(job(1, tuple(range(len(beams)))), **changes)  # type: ignore[arg-type]
    kinds = {TaskType.INTERPRET: interpret, TaskType.CONVERT: convert}
    return History(jobs=(one,), tasks={one.job_id: tasks(one, kinds, dict(enumerate(beams)))})


def then(
    history: History, beams: dict[int, TaskStatus], convert: TaskStatus, stages: tuple[str, ...] = STAGES[1:]
) -> History:
    """The same case after one more job."""
    next_one = job(len(history.jobs) + 1, tuple(beams), stages)
    found = tasks(next_one, {TaskType.CONVERT: convert}, beams)
    return History(jobs=(*history.jobs, next_one), tasks={**history.tasks, next_one.job_id: found})


def again(indices: tuple[int, ...], sources: dict[int, str], waits_for: tuple[str, ...] = ()) -> JobPlan:
    return JobPlan(
        stages=STAGES[1:], indices=indices, sources=sources, interpreted="j01", waits_for=waits_for
    )


def convert_alone(sources: dict[int, str], waits_for: tuple[str, ...] = ()) -> JobPlan:
    return JobPlan(stages=("convert",), indices=(), sources=sources, interpreted="j01", waits_for=waits_for)


PARTLY = first(DONE, (DONE, FAILED, LOST), FAILED)
STILL = first(DONE, (DONE, FAILED, RUNS), RUNS)


@pytest.mark.parametrize(
    ("history", "asked", "plan"),
    [
        (PARTLY, {}, again((1, 2), {0: "j01"})),
        (PARTLY, {"numbers": [3]}, again((1,), {0: "j01"})),
        (PARTLY, {"numbers": [4, 3]}, again((1, 2), {0: "j01"})),
        (PARTLY, {"convert_only": True}, convert_alone({0: "j01"})),
        # What is suspect may be computed again; where it is not, its dose is still the beam's.
        (first(DONE, (DONE, SUSPECT, CANCELLED), FAILED), {}, again((1, 2), {0: "j01"})),
        (first(DONE, (DONE, SUSPECT, CANCELLED), FAILED), {"numbers": [4]}, again((2,), {0: "j01", 1: "j01"})),  # noqa: E501
        # What runs is waited for; what is chosen is not.
        (STILL, {}, again((1,), {0: "j01", 2: "j01"}, ("j01",))),
        (then(STILL, {1: FAILED}, CANCELLED), {}, again((1,), {0: "j01", 2: "j01"}, ("j01",))),
        (then(STILL, {1: RUNS}, RUNS), {"numbers": []}, None),
        (then(PARTLY, {1: DONE, 2: FAILED}, FAILED), {}, again((2,), {0: "j01", 1: "j02"})),
        (then(PARTLY, {1: DONE, 2: FAILED}, FAILED), {"convert_only": True}, convert_alone({0: "j01", 1: "j02"})),  # noqa: E501
        # Nothing to compute, but not all was converted.
        (first(DONE, (DONE, DONE, DONE), FAILED), {}, convert_alone({0: "j01", 1: "j01", 2: "j01"})),
        (first(DONE, (DONE, DONE, DONE), LOST), {}, convert_alone({0: "j01", 1: "j01", 2: "j01"})),
        (first(DONE, (DONE, DONE, DONE), DONE), {"convert_only": True},
         convert_alone({0: "j01", 1: "j01", 2: "j01"})),
        (first(DONE, (DONE, DONE, RUNS), FAILED), {}, convert_alone({0: "j01", 1: "j01", 2: "j01"}, ("j01",))),  # noqa: E501
        # Without interpret's record everything is done again.
        (first(FAILED, (FAILED, FAILED, FAILED), FAILED), {}, JobPlan(indices=(0, 1, 2))),
        (first(LOST, (CANCELLED, FAILED, LOST), FAILED), {"numbers": [2, 3, 4]}, JobPlan(indices=(0, 1, 2))),
        (first(SUSPECT, (FAILED, DONE, DONE), FAILED), {}, again((0,), {1: "j01", 2: "j01"})),
    ],
)  # fmt: skip
def test_what_follows(history: History, asked: dict[str, object], plan: JobPlan | None) -> None:
    if plan is None:
        with pytest.raises(ProcessingError):
            plan_resubmit(CASE, history, **asked)  # type: ignore[arg-type]
        return
    assert plan_resubmit(CASE, history, **asked) == plan  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("history", "asked", "words"),
    [
        (History(jobs=(), tasks={}), {}, f"{LABEL} has no job yet: there is nothing to resubmit. {SUBMIT}"),
        *(
            (first(DONE, (FAILED,) * 3, FAILED, submit_state=state), {},
             f"{LABEL}: j01 has not been submitted yet. {SUBMIT}")
            for state in (SubmitState.PLANNED, SubmitState.UPLOADED)
        ),
        *(
            (first(DONE, (FAILED,) * 3, FAILED, submit_state=state), {},
             f"{LABEL}: whether j01 was submitted is not known yet. Wait for the next looks at the cluster; "
             "`mqi-hpc show` tells")
            for state in (SubmitState.SUBMITTING, SubmitState.AMBIGUOUS)
        ),
        (PARTLY, {"numbers": [10]}, f"{LABEL} has no beam 10; its beams: 2, 3, 4"),
        (PARTLY, {"numbers": [3, 2]}, f"{LABEL}: beam 2 is done, nothing of it is computed again. "
         "`mqi-hpc show` lists the beams that failed"),
        (STILL, {"numbers": [4]}, f"{LABEL}: beam 4 is not ended yet, nothing of it is computed again. "
         "`mqi-hpc show` lists the beams that failed"),
        (first(FAILED, (FAILED, FAILED, RUNS), FAILED), {}, f"{LABEL}: interpret did not finish, and beam 4 cannot "  # noqa: E501
         "be left out. Resubmit the case without --beam, when all of its beams have ended"),
        (first(FAILED, (FAILED,) * 3, FAILED), {"numbers": [3]}, f"{LABEL}: interpret did not finish, and beams 2, 4 "  # noqa: E501
         "cannot be left out. Resubmit the case without --beam, when all of its beams have ended"),
        (first(DONE, (FAILED,) * 3, FAILED), {"convert_only": True},
         f"{LABEL}: no beam is done, there is nothing to convert. {SHOW}"),
        (first(FAILED, (DONE,) * 3, FAILED), {"convert_only": True},
         f"{LABEL}: no beam is done, there is nothing to convert. {SHOW}"),
        (first(DONE, (RUNS,) * 3, RUNS), {}, f"{LABEL}: no beam has failed, there is nothing to resubmit. {SHOW}"),  # noqa: E501
        (first(DONE, (DONE, DONE, RUNS), RUNS), {},
         f"{LABEL}: j01 has not ended yet, there is nothing to resubmit. {SHOW}; `mqi-hpc cancel` stops it"),
        (first(DONE, (DONE,) * 3, RUNS), {"convert_only": True},
         f"{LABEL}: j01 has not ended yet, there is nothing to resubmit. {SHOW}; `mqi-hpc cancel` stops it"),
        (first(DONE, (DONE,) * 3, DONE), {}, f"{LABEL}: convert is done, there is nothing to resubmit. "
         "`mqi-hpc fetch` brings results home again; `--convert-only` makes them anew"),
    ],
)  # fmt: skip
def test_what_is_said_where_nothing_follows(history: History, asked: dict[str, object], words: str) -> None:
    with pytest.raises(ProcessingError) as error:
        plan_resubmit(CASE, history, **asked)  # type: ignore[arg-type]
    assert str(error.value) == words


def test_interprets_output_counts_only_with_its_record() -> None:
    history = first(DONE, (FAILED,) * 3, FAILED)
    (one,) = history.jobs
    bare = [replace(task, record=None) for task in history.tasks[one.job_id]]
    assert plan_resubmit(CASE, History(jobs=history.jobs, tasks={one.job_id: bare})) == JobPlan(
        indices=(0, 1, 2)
    )


def test_a_record_of_an_interpret_that_failed_does_not_count() -> None:
    history = first(FAILED, (FAILED,) * 3, FAILED)
    (one,) = history.jobs
    kept = [replace(task, record="a record") for task in history.tasks[one.job_id]]
    plan = plan_resubmit(CASE, History(jobs=history.jobs, tasks={one.job_id: kept}))
    assert plan == JobPlan(indices=(0, 1, 2))


def test_what_a_new_job_replaces_is_every_convert_that_has_not_ended() -> None:
    history = then(then(STILL, {1: FAILED}, DONE), {1: RUNS}, RUNS)
    assert [(one.name, stage) for one, stage in stale(history)] == [("j01", "convert"), ("j03", "convert")]


def test_the_tasks_that_count_stand_in_the_order_of_the_work() -> None:
    counting = current_tasks(then(PARTLY, {2: DONE, 1: RUNS}, RUNS))
    assert [(task.type, task.index, task.task_id.partition("/")[0]) for task in counting] == [
        (TaskType.INTERPRET, 0, "j01"),
        (TaskType.BEAM_CALC, 0, "j01"),
        (TaskType.BEAM_CALC, 1, "j02"),
        (TaskType.BEAM_CALC, 2, "j02"),
        (TaskType.CONVERT, 0, "j02"),
    ]


def test_beams_as_a_person_reads_them() -> None:
    assert (beams_named([2]), beams_named([2, 3])) == ("beam 2", "beams 2, 3")
