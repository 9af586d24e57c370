"""Whether a chain in doubt can still be completed, and whose doing it is where it cannot: pure questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mqi_hpc.core.models import Job
from mqi_hpc.core.observation import SUBMIT_TOLERANCE, Row

NEVER_RAN = "never_ran"
"""Among a lost task's parameters: it had not begun when the controller lost it."""


def head_held(job: Job, queue: Sequence[Row]) -> bool:
    """Whether the queue shows the chain's head held, under its receipt's name and id."""
    head = job.head
    return any(
        row.reason.startswith("JobHeld")
        for row in queue
        if row.name == head.name and row.job == head.slurm_id
    )


def released(job: Job, queue: Sequence[Row], claims: Iterable[tuple[str, int]]) -> bool:
    """Whether the chain's head is known not to be held: the queue shows it otherwise, or it has begun.

    The queue was looked at before the receipts were read: a head that it does not show may be younger.
    """
    head = job.head
    shown = any((row.name, row.job) == (head.name, head.slurm_id) for row in queue)
    begun = any(stage == head.stage for stage, _ in claims)
    return not head_held(job, queue) and (shown or begun)


def why_lost(job: Job, queue: Sequence[Row], claims: Iterable[tuple[str, int]]) -> str | None:
    """Return why submit.sh could not complete a chain that does not stand, None where it could.

    It is what submit.sh itself asks before it goes on. `claims` are the tasks (stage, index) that have begun.
    """
    head = job.head
    if head.slurm_id is None:
        return None
    live = {(row.name, row.job) for row in queue if not row.terminal}
    if (head.name, head.slurm_id) not in live:
        return f"{head.stage} ({head.slurm_id}) is not in the queue any more"
    if not head_held(job, queue):
        return f"{head.stage} ({head.slurm_id}) was released before what waits for it was submitted"
    if any(stage == head.stage for stage, _ in claims):
        return f"{head.stage} ({head.slurm_id}) is held again, although it has begun its work"
    gone = [s for s in job.submissions if s.slurm_id is not None and (s.name, s.slurm_id) not in live]
    return f"{gone[0].stage} ({gone[0].slurm_id}) is not in the queue any more" if gone else None


def cancelled_row(job: Job, rows: Iterable[Row]) -> Row | None:
    """Return a row that says that a submission of the job was cancelled, None where no row does.

    A row counts under the receipt's name and id, and not from an older life of the id.
    """
    ids = {(s.name, s.slurm_id): s.cluster_time or 0.0 for s in job.submissions if s.slurm_id is not None}
    for row in rows:
        since = ids.get((row.name, row.job))
        if row.word == "CANCELLED" and since is not None and (row.submit or 0.0) >= since - SUBMIT_TOLERANCE:
            return row
    return None


def left_in_queue(job: Job, queue: Iterable[Row]) -> tuple[tuple[str, int], ...]:
    """Return (name, id) of what the queue shows unfinished under the job's names, last stage first.

    In that order it is to be cancelled: with the array gone, `afterany` would let convert run.
    """
    names = [submission.name for submission in reversed(job.submissions)]
    live = {(row.name, row.job) for row in queue if row.name in names and not row.ending}
    return tuple(sorted(live, key=lambda one: (names.index(one[0]), one[1])))
