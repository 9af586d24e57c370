"""The values the kernel works on."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.models import (
    STAGE_OF,
    STAGES,
    Beam,
    Case,
    CaseStatus,
    Job,
    JobStatus,
    Submission,
    SubmitState,
    TaskStatus,
    TaskType,
    case_key,
    job_name,
)
from mqi_hpc.records.layout import STAGES as WIRE_STAGES
from mqi_hpc.records.layout import is_job, is_key

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
BEAM = Beam(index=0, number=2, name="G", energies=(100.0,), input_digest="a" * 64, seed=1)
JOB = Job(
    job_id="k-j01",
    case_id="k",
    status=JobStatus.PENDING,
    created_at=WHEN,
    name="j01",
    submit_state=SubmitState.PLANNED,
    submissions=tuple(Submission(stage=s, name=f"mqi-{s}", indices=(0,)) for s in STAGES),
)


@given(st.binary(min_size=32, max_size=32), st.text("aé0. -/", max_size=40))
def test_a_key_has_its_form_and_stays(secret: bytes, identity: str) -> None:
    key = case_key(secret, identity)
    assert is_key(key)
    assert case_key(secret, identity) == key


def test_keys_depend_on_secret_and_identity_and_are_the_same_for_ever() -> None:
    assert case_key(b"secret", "case") == "gkjuobzdi1re"
    assert case_key(b"secret", "case2") != case_key(b"secret", "case")
    assert case_key(b"other", "case") != case_key(b"secret", "case")


@given(st.integers(1, 9999))
def test_job_names_are_folders_of_jobs(number: int) -> None:
    assert is_job(job_name(number))
    assert int(job_name(number)[1:]) == number


def test_jobs_are_numbered_from_one() -> None:
    assert [job_name(1), job_name(99), job_name(100)] == ["j01", "j99", "j100"]
    with pytest.raises(ValueError, match="from 1"):
        job_name(0)


def test_only_pending_and_running_tasks_have_not_ended() -> None:
    assert {s for s in TaskStatus if not s.terminal} == {TaskStatus.PENDING, TaskStatus.RUNNING}


def test_both_ends_know_the_same_stages() -> None:
    assert tuple(STAGE_OF.values()) == STAGES == WIRE_STAGES
    assert set(TaskType) - set(STAGE_OF) == {TaskType.UPLOAD, TaskType.DOWNLOAD}


def test_values_change_by_being_copied() -> None:
    other = BEAM.evolve(name="H")
    assert (BEAM.name, other.name, other.number) == ("G", "H", 2)
    for field in ("name", "index"):
        with pytest.raises(AttributeError):
            setattr(BEAM, field, 1)


def test_a_job_finds_its_submissions_and_says_who_it_is() -> None:
    assert [JOB.submission(stage).name for stage in STAGES] == [f"mqi-{stage}" for stage in STAGES]
    assert JOB.log_context() == {"case_id": "k", "job_id": "k-j01"}


def test_a_case_logs_its_key_and_nothing_of_the_patient() -> None:
    case = Case(
        case_id="k",
        status=CaseStatus.NEW,
        beam_count=1,
        created_at=WHEN,
        updated_at=WHEN,
        site="s",
        instance="i1",
        identity="plan 1.2.3",
        label="Doe-f01",
        folder="/cases/Doe",
        plan_uid="1.2.3",
        machine="G2",
        beams=(BEAM,),
        files=(),
    )
    assert case.log_context() == {"case_id": "k"}
