"""What becomes of a chain of unknown fate: found to stand, run again when that is safe, burnt, or called off.

Running submit.sh again is safe whatever happened: what has a receipt is not submitted again, and a job that
has none gets through no fence and is cancelled as a ghost. It is done only when a run that was cut can no
longer be alive, by good looks at the queue alone. A chain that no run of it can complete is burnt, unless
somebody has cancelled it: who does that is obeyed.

A host that froze may thaw after any time. So what is called off gets a mark in its folder as well, which
submit.sh and the fence obey; it is made as soon as it is known that nothing of the job is wanted any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.lost_chain import cancelled_row, left_in_queue, released, why_lost
from mqi_hpc.core.models import STAGE_OF, SubmitState, TaskStatus
from mqi_hpc.core.next_task import head_of
from mqi_hpc.core.observation import NotParsed, Row
from mqi_hpc.core.readings import Accounting, Timer
from mqi_hpc.core.submission import parse_receipt
from mqi_hpc.domain.desk import OpenJob
from mqi_hpc.domain.evidence import Evidence
from mqi_hpc.domain.submitter import Cancels, adopt, ambiguous, give_up, stands

MOST_RERUNS = 3
"""How often submit.sh is run again by itself; then a person decides."""
_GOOD_LOOKS = 2
_IN_DOUBT = "in doubt"
_LOST = "lost"
_CLEARED = "to be cleared"
MOST_MARKS = 30
"""Looks in which the mark is asked for; a folder that is gone or closed to us must not be waited for."""
_GRACE = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds of good looks: `submit`, the longest life of submit.sh; `lag`, how late accounting may be."""

    submit: float
    lag: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`stands`: the chain is whole and released. `cancels`: what of it is to be cancelled.

    `mark`: its folder is to bear the mark that nothing of it is to begin. `ask`: accounting is to be asked
    about it in the next look.
    """

    stands: bool = False
    cancels: Cancels = ()
    mark: bool = False
    ask: bool = False


def recover(work: OpenJob, evidence: Evidence, elapsed: float, patience: Patience) -> Found:
    """Bring a job whose submission is in doubt in line with a look; `elapsed` seconds after the last one."""
    if evidence.queue is None:
        return Found()
    lines = evidence.receipts(work.job.job_id)
    if lines is None:
        found = _unread(work, evidence.queue, elapsed, patience)
    else:
        found = _read(work, evidence, lines, elapsed, patience)
    unmarked = _called_off_in_doubt(work) and not evidence.withdrawn(work.job.job_id)
    return replace(found, mark=True) if unmarked else found


def _called_off_in_doubt(work: OpenJob) -> bool:
    return work.job.submit_state is SubmitState.AMBIGUOUS and bool(work.job.cancelled)


def _read(
    work: OpenJob, evidence: Evidence, lines: Mapping[str, str], elapsed: float, patience: Patience
) -> Found:
    """Bring a job in line with its receipts."""
    damaged = _take_receipts(work, lines)
    whole = not damaged and all(s.slurm_id is not None for s in work.job.submissions)
    if whole and released(work.job, evidence.queue or (), evidence.claims(work.job.job_id) or ()):
        stands(work)
        return Found(stands=True)
    # While it is under way in this process, its own answer tells.
    if work.job.submit_state is SubmitState.AMBIGUOUS:
        return _decide(work, evidence, elapsed, patience, damaged)
    return Found()


def _unread(work: OpenJob, queue: Sequence[Row], elapsed: float, patience: Patience) -> Found:
    """Wait for receipts that cannot be read; of a chain that was called off nothing depends on them."""
    if _called_off_in_doubt(work) and _may_act(work, elapsed, patience.submit * _GRACE, lost=False):
        return _called_off(work, queue)
    return Found()


def _decide(work: OpenJob, evidence: Evidence, elapsed: float, patience: Patience, damaged: str) -> Found:
    """Decide what becomes of a chain that does not stand, once no run of submit.sh can be alive."""
    queue = evidence.queue or ()
    if damaged and damaged not in (work.job.refusal or ""):
        ambiguous(work, damaged)
    lost = damaged or why_lost(work.job, queue, evidence.claims(work.job.job_id) or ())
    if not _may_act(work, elapsed, patience.submit * _GRACE, lost=lost is not None):
        return Found()
    if work.job.cancelled:
        return _called_off(work, queue)
    if damaged:
        # Nobody who cancels a job damages a receipt: there is nothing to ask accounting.
        return _burn(work, queue, damaged)
    if lost is not None:
        return _judge_lost(work, evidence, lost, elapsed, patience.lag)
    if work.job.reruns < MOST_RERUNS:
        _run_again(work)
    return Found()


def _take_receipts(work: OpenJob, lines: Mapping[str, str]) -> str:
    """Take the ids of receipts into the job; returns what is wrong with one of them, or ""."""
    try:
        adopt(
            work, {stage: parse_receipt(line) for stage, line in lines.items() if stage in STAGE_OF.values()}
        )
    except (NotParsed, ProcessingError) as error:
        return str(error)
    return ""


def _may_act(work: OpenJob, elapsed: float, least: float, *, lost: bool) -> bool:
    """Count a good look, and return whether no run of submit.sh can be alive any more."""
    timer = _timer(work)
    if lost and timer.row.startswith(_LOST):
        return True
    timer = timer.on(_IN_DOUBT, elapsed)
    _keep(work, timer)
    return timer.waited >= least and timer.polls >= _GOOD_LOOKS


def _timer(work: OpenJob) -> Timer:
    head = head_of(work.tasks)
    return Timer(row=head.row, waited=head.waited, polls=head.polls)


def _keep(work: OpenJob, timer: Timer) -> None:
    head = head_of(work.tasks)
    work.put_task(head.evolve(row=timer.row, waited=timer.waited, polls=timer.polls))


def _judge_lost(work: OpenJob, evidence: Evidence, lost: str, elapsed: float, lag: float) -> Found:
    """Decide what a chain that cannot be completed is: cancelled by somebody, or lost by the controller."""
    queue = evidence.queue or ()
    row = cancelled_row(work.job, (*queue, *evidence.accounted))
    if row is not None:
        who = "" if row.by_uid is None else f" by uid {row.by_uid}"
        why = f"somebody cancelled it ({row.name} {row.job}: CANCELLED{who}), and is obeyed"
        return _refuse(work, queue, f"{lost}: {why}; `mqi-hpc resubmit` makes a new one")
    timer = _timer(work)
    if not evidence.asked_accounting or evidence.accounting is Accounting.DOWN:
        timer = (timer if timer.row.startswith(_LOST) else Timer(row=_LOST)).interrupted()
        _keep(work, timer)
        return Found(ask=True)
    timer = timer.on(_LOST, elapsed)
    _keep(work, timer)
    if timer.waited < lag:
        return Found(ask=True)
    if evidence.accounting is Accounting.OFF:
        why = "without accounting it cannot be told whether somebody cancelled it"
        return _refuse(work, queue, f"{lost}, and {why}; `mqi-hpc resubmit` makes a new one")
    return _burn(work, queue, f"{lost}, and accounting knows of nobody who cancelled it")


def _refuse(work: OpenJob, queue: Sequence[Row], why: str) -> Found:
    give_up(work, SubmitState.REFUSED, why)
    return Found(cancels=left_in_queue(work.job, queue))


def _burn(work: OpenJob, queue: Sequence[Row], why: str) -> Found:
    said = f"{work.job.name} is burnt: {why}; what is left of it is cancelled, and only a new job can go on"
    give_up(work, SubmitState.BURNT, said)
    return Found(cancels=left_in_queue(work.job, queue))


def _run_again(work: OpenJob) -> None:
    work.put_job(work.job.evolve(reruns=work.job.reruns + 1))
    work.put_task(head_of(work.tasks).evolve(row="", waited=0.0, polls=0, status=TaskStatus.PENDING))
    work.mark(SubmitState.UPLOADED, "")
    work.notes.append("what was submitted was not known: it is looked at and completed now")


def clear(work: OpenJob, evidence: Evidence, elapsed: float) -> Found:
    """Return what a job that will never run has left in Slurm, last stage first, and whether to mark it.

    Notes when there is nothing left to do. What its folder keeps for itself is asked for so many times.
    """
    if evidence.queue is None:
        return Found()
    left, marked = left_in_queue(work.job, evidence.queue), evidence.withdrawn(work.job.job_id)
    timer = _timer(work).on(_CLEARED, elapsed)
    _keep(work, timer)
    if not left and (marked or timer.polls > MOST_MARKS):
        work.put_job(work.job.evolve(cancelled=()))
        return Found()
    return Found(cancels=left, mark=not marked and timer.polls <= MOST_MARKS)


def _called_off(work: OpenJob, queue: Sequence[Row]) -> Found:
    """End a job that a person has cancelled; whatever bears its names is cancelled."""
    work.end_all("cancelled before it was known whether it was submitted", TaskStatus.CANCELLED, "cancelled")
    work.mark(SubmitState.WITHDRAWN, "cancelled")
    return Found(cancels=left_in_queue(work.job, queue))
