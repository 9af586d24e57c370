from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mqi_hpc.core.models import Job, JobStatus, Submission, SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.next_task import next_task, settled, slurm_tasks, task_of, watched

KINDS = (TaskType.UPLOAD, TaskType.INTERPRET, TaskType.BEAM_CALC, TaskType.CONVERT, TaskType.DOWNLOAD)


def job(state: SubmitState) -> Job:
    return Job(
        job_id="k-j01",
        case_id="k",
        status=JobStatus.PENDING,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        name="j01",
        submit_state=state,
        submissions=(Submission(stage="interpret", name="n", indices=(0,)),),
    )


def tasks(**status: TaskStatus) -> list[Task]:
    return [
        Task(task_id=f"k-j01/{kind}", job_id="k-j01", type=kind, status=status.get(kind, TaskStatus.PENDING))
        for kind in KINDS
    ]


ENDED = dict.fromkeys(("interpret", "beam_calc", "convert"), TaskStatus.COMPLETED)


@pytest.mark.parametrize(
    ("state", "expected"),
    [(SubmitState.PLANNED, TaskType.UPLOAD), (SubmitState.UPLOADED, TaskType.INTERPRET)],
)
def test_upload_comes_first_then_the_chain(state: SubmitState, expected: TaskType) -> None:
    found = next_task(job(state), tasks())
    assert found is not None
    assert found.type is expected


@pytest.mark.parametrize("state", [SubmitState.SUBMITTING, SubmitState.AMBIGUOUS])
def test_a_chain_that_may_have_been_sent_is_never_sent_again(state: SubmitState) -> None:
    assert next_task(job(state), tasks()) is None
    assert watched(job(state), tasks())


def test_while_slurm_has_work_nothing_is_begun() -> None:
    running = tasks(interpret=TaskStatus.COMPLETED, beam_calc=TaskStatus.RUNNING)
    assert next_task(job(SubmitState.STANDING), running) is None


def test_results_are_fetched_once_all_is_judged() -> None:
    found = next_task(job(SubmitState.STANDING), tasks(**ENDED))
    assert found is not None
    assert found.type is TaskType.DOWNLOAD
    assert not watched(job(SubmitState.STANDING), tasks(**ENDED))
    done = tasks(**ENDED, download=TaskStatus.COMPLETED)
    assert next_task(job(SubmitState.STANDING), done) is None


def test_what_was_never_sent_is_not_watched() -> None:
    assert not watched(job(SubmitState.UPLOADED), tasks())


def test_settled_means_every_task_has_ended() -> None:
    everything = tasks(**ENDED, upload=TaskStatus.COMPLETED, download=TaskStatus.COMPLETED)
    assert settled(everything)
    assert not settled(tasks(**ENDED))


def test_lookups() -> None:
    assert task_of(tasks(), TaskType.CONVERT).type is TaskType.CONVERT
    assert [t.type for t in slurm_tasks(tasks())] == list(KINDS[1:4])
