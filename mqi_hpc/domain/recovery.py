"""What becomes of a chain of unknown fate: found to stand, run again when that is safe, or called off.

Running submit.sh again is safe whatever happened: what has a receipt is not submitted again, and a job that
has none gets through no fence and is cancelled as a ghost. It is done only when a run that was cut can no
longer be alive, by good looks at the queue alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import STAGE_OF, SubmitState, TaskStatus
from mqi_hpc.core.next_task import head_of
from mqi_hpc.core.observation import NotParsed, Row
from mqi_hpc.core.submission import parse_receipt
from mqi_hpc.domain.desk import OpenJob
from mqi_hpc.domain.evidence import Evidence
from mqi_hpc.domain.submitter import Cancels, adopt, ambiguous, stands

MOST_RERUNS = 3
"""How often submit.sh is run again by itself; then a person decides."""
_GOOD_LOOKS = 2
_ROW = "in doubt"
_GRACE = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`stands`: the chain is whole and released. `cancels`: what of it is to be cancelled, called off."""

    stands: bool = False
    cancels: Cancels = ()


def recover(work: OpenJob, evidence: Evidence, elapsed: float, submit_seconds: float) -> Found:
    """Bring a job whose submission is in doubt in line with a look; `elapsed` seconds after the last one.

    `submit_seconds`: the longest life of submit.sh.
    """
    lines = evidence.receipts(work.job.job_id)
    if lines is None or evidence.queue is None:
        return Found()
    try:
        receipts = {stage: parse_receipt(line) for stage, line in lines.items() if stage in STAGE_OF.values()}
        complete = adopt(work, receipts)
    except (NotParsed, ProcessingError) as error:
        if work.job.submit_state is not SubmitState.AMBIGUOUS or str(error) not in (work.job.refusal or ""):
            ambiguous(work, str(error))
        return Found()
    if complete and not _held(work, evidence.queue):
        stands(work)
        return Found(stands=True)
    # While it is under way in this process, its own answer tells.
    if work.job.submit_state is not SubmitState.AMBIGUOUS or not _long_enough(work, elapsed, submit_seconds):
        return Found()
    if work.job.cancelled:
        return _called_off(work, evidence.queue)
    if work.job.reruns < MOST_RERUNS:
        _run_again(work)
    return Found()


def _long_enough(work: OpenJob, elapsed: float, submit_seconds: float) -> bool:
    """Count a good look, and return whether no run of submit.sh can be alive any more."""
    head = head_of(work.tasks)
    begun = head.row == _ROW
    waited, polls = (head.waited + elapsed, head.polls + 1) if begun else (0.0, 1)
    work.put_task(head.evolve(row=_ROW, waited=waited, polls=polls))
    return waited >= submit_seconds * _GRACE and polls >= _GOOD_LOOKS


def _run_again(work: OpenJob) -> None:
    work.put_job(work.job.evolve(reruns=work.job.reruns + 1))
    work.put_task(head_of(work.tasks).evolve(row="", waited=0.0, polls=0, status=TaskStatus.PENDING))
    work.mark(SubmitState.UPLOADED, "")
    work.notes.append("what was submitted was not known: it is looked at and completed now")


def clear(work: OpenJob, evidence: Evidence) -> Cancels:
    """Return what a job that will never run has left in Slurm, last stage first; note when it is nothing."""
    if evidence.queue is None:
        return ()
    left = _left(work, evidence.queue)
    if not left:
        work.put_job(work.job.evolve(cancelled=()))
    return left


def _left(work: OpenJob, queue: Sequence[Row]) -> Cancels:
    names = [submission.name for submission in reversed(work.job.submissions)]
    live = {(row.name, row.job) for row in queue if row.name in names and not row.terminal}
    return tuple(sorted(live, key=lambda one: (names.index(one[0]), one[1])))


def _called_off(work: OpenJob, queue: Sequence[Row]) -> Found:
    """End a job that a person has cancelled; whatever bears its names is cancelled."""
    work.end_all("cancelled before it was known whether it was submitted", TaskStatus.CANCELLED, "cancelled")
    work.mark(SubmitState.WITHDRAWN, "cancelled")
    return Found(cancels=_left(work, queue))


def _held(work: OpenJob, queue: Sequence[Row]) -> bool:
    head = work.job.head
    return any(
        row.reason.startswith("JobHeld")
        for row in queue
        if row.name == head.name and row.job == head.slurm_id
    )
