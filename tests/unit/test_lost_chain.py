"""What a look tells of a chain in doubt: released or held, lost, cancelled."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mqi_hpc.core.lost_chain import cancelled_row, head_held, left_in_queue, released, why_lost
from mqi_hpc.core.models import STAGES, Job, JobStatus, Submission, SubmitState
from mqi_hpc.core.observation import Row

T0 = 1_700_000_000.0


def name(stage: str) -> str:
    return f"mqi-i1-abcdefghijkl-j01-{stage}"


def job(**ids: int) -> Job:
    return Job(
        job_id="abcdefghijkl-j01",
        case_id="abcdefghijkl",
        status=JobStatus.PENDING,
        created_at=datetime(2027, 1, 1, tzinfo=UTC),
        name="j01",
        submit_state=SubmitState.AMBIGUOUS,
        submissions=tuple(
            Submission(stage=s, name=name(s), indices=(), slurm_id=ids.get(s), cluster_time=T0)
            for s in STAGES
        ),
    )


def row(stage: str, slurm_id: int, word: str = "PENDING", reason: str = "Dependency", **more: object) -> Row:
    return Row(job=slurm_id, task=None, name=name(stage), word=word, reason=reason, submit=T0, **more)  # type: ignore[arg-type]


WHOLE = job(interpret=1, beams=2, convert=3)
HELD = row("interpret", 1, reason="JobHeldUser")
WAIT = [row("beams", 2), row("convert", 3)]


@pytest.mark.parametrize(
    ("queue", "claims", "expected"),
    [
        ([HELD, *WAIT], [], False),
        ([row("interpret", 1, reason="Priority"), *WAIT], [], True),
        ([row("interpret", 1, "COMPLETED", "None"), *WAIT], [], True),
        # The queue was looked at before the chain was submitted: it says nothing of the head.
        ([], [], False),
        (WAIT, [("beams", 0)], False),
        (WAIT, [("interpret", 0)], True),
        ([HELD, *WAIT], [("interpret", 0)], False),
        # A ghost of our name, another's job of the id.
        ([row("interpret", 9, reason="Priority")], [], False),
    ],
)
def test_released_is_what_is_seen_and_not_what_is_missing(
    queue: list[Row], claims: list[tuple[str, int]], expected: bool
) -> None:
    assert released(WHOLE, queue, claims) is expected


@pytest.mark.parametrize(
    ("chain", "queue", "claims", "expected"),
    [
        (job(), [], [], None),
        (job(interpret=1), [HELD], [], None),
        (WHOLE, [HELD, *WAIT], [], None),
        (job(interpret=1), [], [], "interpret (1) is not in the queue any more"),
        (job(interpret=1), [row("interpret", 1, "CANCELLED", "None")], [], "not in the queue"),
        (job(interpret=1), [row("interpret", 2, reason="JobHeldUser")], [], "interpret (1) is not in"),
        (job(interpret=1), [row("interpret", 1, "RUNNING", "None")], [], "was released before"),
        (job(interpret=1, beams=2), [HELD], [], "beams (2) is not in the queue any more"),
        (WHOLE, [HELD, WAIT[0]], [], "convert (3) is not in the queue any more"),
        (job(interpret=1), [HELD], [("interpret", 0)], "held again, although it has begun"),
        (job(interpret=1), [HELD], [("beams", 0)], None),
    ],
)
def test_why_a_chain_cannot_be_completed(
    chain: Job, queue: list[Row], claims: list[tuple[str, int]], expected: str | None
) -> None:
    found = why_lost(chain, queue, claims)
    assert (found is None) if expected is None else expected in str(found)


def test_a_cancelled_row_counts_under_our_name_and_id_and_of_this_life() -> None:
    cancelled = row("beams", 2, "CANCELLED", "None", by_uid=0)
    assert cancelled_row(WHOLE, [HELD, cancelled]) is cancelled
    others = [
        row("beams", 9, "CANCELLED", "None"),
        row("interpret", 2, "CANCELLED", "None"),
        row("beams", 2, "FAILED", "None"),
        Row(job=2, task=None, name=name("beams"), word="CANCELLED", submit=T0 - 601),
        Row(job=2, task=None, name=name("beams"), word="CANCELLED"),
    ]
    assert cancelled_row(WHOLE, others) is None


def test_a_head_of_many_tasks_is_held_where_one_is() -> None:
    assert head_held(WHOLE, [row("interpret", 1, "RUNNING", "None"), HELD])
    assert not head_held(
        WHOLE, [row("interpret", 1, "RUNNING", "None"), row("beams", 2, reason="JobHeldUser")]
    )


def test_what_is_left_is_cancelled_last_stage_first() -> None:
    queue = [
        HELD, row("interpret", 9), *WAIT, row("beams", 2), row("convert", 4, "COMPLETED"),
        row("convert", 5, "COMPLETING"), Row(job=7, task=None, name="mqi-i1-other-j01-beams", word="PENDING"),
    ]  # fmt: skip
    assert left_in_queue(WHOLE, queue) == (
        (name("convert"), 3), (name("beams"), 2), (name("interpret"), 1), (name("interpret"), 9),
    )  # fmt: skip
