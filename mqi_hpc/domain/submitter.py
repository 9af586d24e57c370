"""What a run of submit.sh means for its job: it stands, is refused, waits, or nobody knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from mqi_hpc.core.effects import Completion, Submit
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import Submission, SubmitState, Task, TaskStatus
from mqi_hpc.core.next_task import head_of, slurm_tasks
from mqi_hpc.core.submission import Receipt, parse_submit
from mqi_hpc.core.submit_fate import Fate, Meaning, meaning
from mqi_hpc.domain.desk import OpenJob

DEFERRED = "deferred"
"""Phase of a chain's head that was not taken and is to be tried again."""

LIMITED = "limited"
"""Phase of one that a limit has kept from Slurm for long: a person should know."""
NOT_TAKEN = "not taken"
"""Phase of one that Slurm takes for no other reason (a closed partition, no slurmctld) for as long."""
LIMIT = "submit limit"
_SINCE = "limited_since"
_LONG_SECONDS = 3600.0

Cancels = tuple[tuple[str, int], ...]
"""Jobs to cancel, (name, id), in this order."""


def adopt(work: OpenJob, receipts: Mapping[str, Receipt]) -> bool:
    """Take the ids of receipts into the job; True when all of them stand.

    Raises ProcessingError where a receipt names another submission than ours.
    """
    submissions = tuple(_with(s, receipts.get(s.stage)) for s in work.job.submissions)
    work.put_job(work.job.evolve(submissions=submissions))
    return all(s.slurm_id is not None for s in submissions)


def _with(submission: Submission, receipt: Receipt | None) -> Submission:
    if receipt is None:
        return submission
    if receipt.name != submission.name:
        raise ProcessingError(
            f"the receipt of {submission.stage} names {receipt.name!r}, not {submission.name!r}"
        )
    return submission.evolve(slurm_id=receipt.id, cluster_time=receipt.time)


def stands(work: OpenJob) -> None:
    """Record that the chain stands: its tasks are Slurm's now."""
    work.mark(SubmitState.STANDING, "")
    for task in slurm_tasks(work.tasks):
        work.put_task(task.evolve(status=TaskStatus.RUNNING, phase="queued", detail=""))
    work.notes.append("submitted: " + ", ".join(f"{s.stage} {s.slurm_id}" for s in work.job.submissions))


def apply_submit(work: OpenJob, effect: Submit, completion: Completion) -> tuple[bool, Cancels]:
    """Bring a job in line with what its submit.sh said.

    Returns whether to try again, and what to cancel. Only a submission that is known not to have happened
    is tried again; an ambiguous one is held. An answer that comes when a look has found the chain standing
    tells nothing: its tasks may have been judged since, and a verdict is kept.
    """
    if work.job.submit_state is not SubmitState.SUBMITTING:
        # A look was faster: what it found stands, and what has been judged since.
        return False, ()
    report = parse_submit(completion.output, effect.nonce)
    try:
        adopt(work, report.receipts)
    except ProcessingError as error:
        ambiguous(work, str(error))
        return False, ()
    found = meaning(report, completion, work.job.stages)
    if found.fate is Fate.REFUSED:
        give_up(work, SubmitState.REFUSED, found.why)
        return False, placed(work.job.submissions)
    if found.fate is Fate.AGAIN:
        _back(work, found)
        return True, ()
    if found.fate is Fate.STANDS:
        stands(work)
    else:
        ambiguous(work, found.why)
    return False, ()


def ambiguous(work: OpenJob, why: str) -> None:
    """Record that it is not known what was submitted: held for attention, looked for, never retried."""
    looked = f"squeue --name={work.job.head.name}"
    said = f"what was submitted is not known: {why} (nothing is sent again; to look for it: {looked})"
    work.mark(SubmitState.AMBIGUOUS, said)
    work.notes.append(f"held: {work.job.refusal}")


def _back(work: OpenJob, found: Meaning) -> None:
    """Record that nothing was submitted and that it is to be tried again."""
    work.mark(SubmitState.UPLOADED, "")
    head = head_of(work.tasks)
    phase, why = DEFERRED, found.why
    # Kept in the store: after a restart the pauses go on from where they were.
    since = head.parameters.get(_SINCE, work.now)
    polls = limit_refusals(head) + 1 if found.limit else 0
    head = head.evolve(
        row=LIMIT if found.limit else "", polls=polls, parameters={**head.parameters, _SINCE: since}
    )
    if work.now - since >= _LONG_SECONDS:
        phase = LIMITED if found.limit else NOT_TAKEN
        began = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M UTC")
        why = f"{why} (since {began}; it is tried on. Ask the cluster's administrator, or cancel the case)"
    if (head.phase, head.detail) != (phase, why):
        work.notes.append(f"not submitted yet: {why}")
    work.put_task(head.evolve(status=TaskStatus.PENDING, phase=phase, detail=why))


def limit_refusals(head: Task) -> int:
    """Return how often in a row Slurm has not taken a chain for a limit on how many jobs we may have."""
    return head.polls if head.row == LIMIT else 0


def give_up(work: OpenJob, state: SubmitState, why: str) -> None:
    """Record that nothing of a job will run, as `state`; looks see to what bears its names."""
    # Where a scancel does not get out, or an earlier run left a ghost, a later look sees to it.
    work.put_job(work.job.evolve(cancelled=work.job.stages))
    work.mark(state, why)
    work.end_all(why)
    work.notes.append(why)


def placed(submissions: Sequence[Submission]) -> Cancels:
    """Return what of these submissions is to be cancelled, last stage first: `afterany` would let it run."""
    return tuple((s.name, s.slurm_id) for s in reversed(submissions) if s.slurm_id is not None)
