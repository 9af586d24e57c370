"""From tasks to job and case: the design's one line, for every mixture of task states."""

from __future__ import annotations

import itertools

import pytest

from mqi_hpc.core.models import CaseStatus, JobStatus, Task, TaskStatus, TaskType
from mqi_hpc.core.outcome import case_status, exit_code, job_status

DONE, FAILED, GONE = TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED


def tasks(*beams: TaskStatus, **rest: TaskStatus) -> list[Task]:
    """A job: `beams`, and its other tasks, done unless named."""
    kinds = [(TaskType.BEAM_CALC, n, status) for n, status in enumerate(beams)]
    kinds += [(kind, 0, rest.get(kind.value, DONE)) for kind in TaskType if kind is not TaskType.BEAM_CALC]
    return [
        Task(task_id=f"{kind}-{n}", job_id="j", type=kind, index=n, status=status)
        for kind, n, status in kinds
    ]


def test_every_mixture() -> None:
    for first, second, convert, download in itertools.product(TaskStatus, repeat=4):
        beams, everything = (first, second), (first, second, convert, download)
        status = case_status(tasks(*beams, convert=convert, download=download))
        assert (status is CaseStatus.PROCESSING) is any(not s.terminal for s in everything)
        assert (status is CaseStatus.COMPLETED) is all(s is DONE for s in everything)
        if all(s.terminal for s in everything):
            assert (status in (CaseStatus.PARTIAL, CaseStatus.COMPLETED)) is (DONE in beams)
            assert (status is CaseStatus.CANCELLED) is (set(beams) == {GONE})


def test_words_people_hear() -> None:
    assert case_status(tasks(DONE, TaskStatus.SUSPECT)) is CaseStatus.PARTIAL
    assert case_status(tasks(DONE, TaskStatus.LOST)) is CaseStatus.PARTIAL
    assert case_status(tasks(TaskStatus.SUSPECT, TaskStatus.SUSPECT)) is CaseStatus.FAILED
    assert case_status(tasks(GONE, FAILED)) is CaseStatus.FAILED
    assert case_status(tasks(DONE, DONE, convert=FAILED)) is CaseStatus.PARTIAL


def test_a_job_without_beams_has_done_nothing() -> None:
    assert case_status(tasks()) is CaseStatus.FAILED
    assert case_status([]) is CaseStatus.QUEUED


@pytest.mark.parametrize(
    ("job", "status"),
    [
        ([], JobStatus.PENDING),
        (tasks(DONE), JobStatus.COMPLETED),
        (tasks(DONE, FAILED), JobStatus.PARTIAL),
        (tasks(FAILED), JobStatus.FAILED),
        (tasks(GONE), JobStatus.CANCELLED),
        (tasks(TaskStatus.RUNNING), JobStatus.RUNNING),
        (tasks(TaskStatus.PENDING), JobStatus.RUNNING),
    ],
)
def test_jobs_speak_of_themselves(job: list[Task], status: JobStatus) -> None:
    assert job_status(job) is status


def test_a_job_of_which_nothing_has_begun_is_pending() -> None:
    assert job_status([t.evolve(status=TaskStatus.PENDING) for t in tasks(DONE, DONE)]) is JobStatus.PENDING


def test_exit_codes() -> None:
    assert {status: exit_code(status) for status in CaseStatus} == {
        status: {CaseStatus.COMPLETED: 0, CaseStatus.PARTIAL: 3}.get(status, 1) for status in CaseStatus
    }
