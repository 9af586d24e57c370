"""Evidence in, changed tasks out: what each witness says of each task, judged by the table of verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mqi_hpc.core.lost_chain import NEVER_RAN
from mqi_hpc.core.models import STAGE_OF, STAGES, Job, Submission, Task, TaskStatus, TaskType
from mqi_hpc.core.next_task import interpret_of, slurm_tasks
from mqi_hpc.core.observation import Row, belongs, newest
from mqi_hpc.core.readings import Accounting, Limits, Reading, TableRow, Timer, Witness
from mqi_hpc.core.slurm_states import LIVE
from mqi_hpc.core.verdicts import Verdict, judge
from mqi_hpc.domain.evidence import Evidence
from mqi_hpc.records.chain import Chain
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.result import Expected, decode_record, faults
from mqi_hpc.records.status import StatusLine

_SOON = frozenset({"starting", "finishing", "settling"})
"""Phases that do not last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A task after a poll: what it was, what it is, and the verdict and reading that made it so."""

    before: Task
    after: Task
    verdict: Verdict
    reading: Reading

    @property
    def changed(self) -> bool:
        """Whether more than the timer has changed: an event is due."""
        a, b = self.before, self.after
        return (a.status, a.phase, a.detail) != (b.status, b.phase, b.detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What a poll means for one job.

    `unseen`: a task is not live in the queue, so accounting is to be asked next time. `dead_stages`
    wait for a dependency that can never be met, or are live although we have called them off, in the order
    in which they must be cancelled. `ghosts` are jobs (name, id) under our exact name that no receipt names,
    or whose every task is judged: a controller that came back from an older state runs them again.
    `soon`: something is about to change, so the next look should come early.
    """

    judged: tuple[Judged, ...]
    unseen: bool
    dead_stages: tuple[str, ...]
    ghosts: tuple[tuple[str, int], ...]
    soon: bool = False


class Reconciler:
    """Judges the tasks of a job by what one poll said of them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def reconcile(
        self, job: Job, chain: Chain, tasks: Sequence[Task], evidence: Evidence, elapsed: float
    ) -> Reconciliation:
        """Return what the poll means; `elapsed` is the time (s) since the last poll, 0 for the first.

        Terminal tasks are not judged again: a verdict is kept.
        """
        judged = []
        unseen = False
        interpret = interpret_of(tasks)
        for task in tasks:
            if task.type not in STAGE_OF or task.status.terminal:
                continue
            failed = interpret is not None and _failed(interpret)
            reading = self._reading(job, chain, task, evidence, failed)
            if reading is None or (reading.queue_good and reading.live is None):
                unseen = True
            if reading is None:
                continue
            if task is not interpret and _falls_with(interpret, reading):
                # Cancelled because of interpret, it seems, whose own verdict comes first.
                unseen = True
                continue
            timer = Timer(row=task.row, waited=task.waited, polls=task.polls)
            verdict = judge(reading, timer, elapsed, self.limits)
            after = _after(task, reading, verdict, evidence, job)
            judged.append(Judged(before=task, after=after, verdict=verdict, reading=reading))
            if task is interpret:
                interpret = after
        return Reconciliation(
            judged=tuple(judged),
            unseen=unseen,
            dead_stages=_dead_stages(job, evidence.queue or (), _in_vain(_with_verdicts(tasks, judged))),
            ghosts=_ghosts(job, _with_verdicts(tasks, judged), evidence.queue or ()),
            soon=any(one.after.phase in _SOON for one in judged),
        )

    def _reading(
        self, job: Job, chain: Chain, task: Task, evidence: Evidence, interpret_failed: bool
    ) -> Reading | None:
        """Return what the witnesses say of a task; None where it cannot be asked yet."""
        stage = STAGE_OF[task.type]
        submission = job.submission(stage)
        if evidence.queue is None or submission is None:
            return Reading(queue_good=False)
        lines = evidence.status(job.job_id)
        line = (lines or {}).get((stage, task.index))
        live, ended = slurm_rows(submission, task, evidence, begun=lines is None or line is not None)
        if live is None and ended is None and not evidence.asked_accounting:
            return None
        expected = Expected(
            chain=chain,
            stage=stage,
            index=task.index,
            array_id=submission.slurm_id or 0,
            restart=line.restart if line is not None else 0,
        )
        witness, why = _witness(task.task_id, evidence, expected)
        return Reading(
            queue_good=True,
            live=None if live is None else live.word,
            reason="" if live is None or live.reason == "None" else live.reason,
            accounting=evidence.accounting,
            word=None if ended is None else ended.word,
            by_uid=None if ended is None else ended.by_uid,
            record=witness,
            exit_code=line.exit_code if line is not None else None,
            status_good=lines is not None,
            cancelled_by_us=stage in job.cancelled,
            interpret_failed=interpret_failed and stage != "interpret",
            slurm_exit="" if ended is None else ended.exit_code,
            node=_node(live, ended, line),
            why_invalid=why,
        )


def slurm_rows(
    submission: Submission, task: Task, evidence: Evidence, *, begun: bool
) -> tuple[Row | None, Row | None]:
    """Return the row that shows a task unfinished in the queue, and the newest that shows its end.

    `begun`: the task has left a status line, or it cannot be told whether it has.
    """
    index = task.index if task.type is TaskType.BEAM_CALC else None
    queue, accounted = (
        rows_of(submission, index, rows) for rows in (evidence.queue or (), evidence.accounted)
    )
    if index is not None and not begun and not queue and not accounted:
        # An array cancelled by name before any of it ran may stand there as if it were no array: `14`, not
        # `14_[0-3]`, in the queue and in accounting for ever. It speaks for tasks that have left nothing.
        queue, accounted = (
            tuple(row for row in rows_of(submission, None, rows) if row.word == "CANCELLED")
            for rows in (evidence.queue or (), evidence.accounted)
        )
    in_queue = newest(queue)
    if in_queue is not None and not in_queue.terminal:
        return in_queue, None
    # Accounting lags behind the queue: a row that says "not ended" does not outweigh one that says how.
    last = max((row.submit or 0.0 for row in (*queue, *accounted)), default=0.0)
    ended = newest(
        tuple(row for row in (*queue, *accounted) if row.word not in LIVE and (row.submit or 0.0) >= last)
    )
    return None, ended


def rows_of(submission: Submission, index: int | None, rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows that speak of a task of a submission; `index` None: it is no array."""
    return tuple(
        row
        for row in rows
        if belongs(
            row,
            name=submission.name,
            job=submission.slurm_id or 0,
            task=index,
            cluster_time=submission.cluster_time or 0.0,
        )
    )


def _witness(task_id: str, evidence: Evidence, expected: Expected) -> tuple[Witness, str]:
    """Return what the task's own record says, and why it is invalid where it is."""
    section = evidence.record(task_id)
    if section is None:
        return Witness.UNREADABLE, ""
    if section.exit_code != 0:
        return Witness.ABSENT, ""
    sizes = evidence.listing(task_id)
    if sizes is None:
        return Witness.UNREADABLE, ""
    try:
        found = faults(decode_record(section.text), expected, sizes)
    except FormatError as error:
        found = [str(error)]
    if found:
        return Witness.INVALID, f"its record is not valid: {'; '.join(found)}"
    return Witness.VALID, ""


def _after(task: Task, reading: Reading, verdict: Verdict, evidence: Evidence, job: Job) -> Task:
    timer = {"row": verdict.timer.row, "waited": verdict.timer.waited, "polls": verdict.timer.polls}
    if verdict.row is TableRow.NONE:
        return task.evolve(**timer)
    section = evidence.record(task.task_id)
    valid = reading.record is Witness.VALID and section is not None
    detail = verdict.detail
    if verdict.phase == "running":
        lines = evidence.status(job.job_id) or {}
        line = lines.get((STAGE_OF[task.type], task.index))
        detail = line.text if line is not None else detail
    never = verdict.status is TaskStatus.LOST and _never_ran(task, reading, evidence, job)
    if never:
        detail = "Slurm knows nothing of it, and it never began: the controller has lost it"
    return task.evolve(
        status=verdict.status,
        phase=verdict.phase,
        detail=detail,
        **timer,
        slurm=reading.word or reading.live or task.slurm,
        slurm_exit=reading.slurm_exit or task.slurm_exit,
        node=reading.node or task.node,
        exit_code=reading.exit_code,
        noted=verdict.noted or task.noted,
        parameters=task.parameters | ({NEVER_RAN: True} if never else {}),
        record=section.text if valid and section is not None else None,
    )


def _never_ran(task: Task, reading: Reading, evidence: Evidence, job: Job) -> bool:
    """Whether a task of which good accounting knows no end left neither claim nor status line.

    One that was called off never is: nothing is to be made good.
    """
    claims, lines = evidence.claims(job.job_id), evidence.status(job.job_id)
    if claims is None or lines is None or reading.accounting is not Accounting.GOOD:
        return False
    if reading.cancelled_by_us:
        return False
    it = (STAGE_OF[task.type], task.index)
    return it not in claims and it not in lines


def _falls_with(interpret: Task | None, reading: Reading) -> bool:
    ending = interpret is not None and interpret.phase == "settling"
    return ending and reading.word == "CANCELLED"


def _failed(interpret: Task) -> bool:
    return interpret.status in (TaskStatus.FAILED, TaskStatus.SUSPECT, TaskStatus.LOST)


def _dead_stages(job: Job, queue: Sequence[Row], vain: frozenset[str]) -> tuple[str, ...]:
    """Return the stages to cancel, convert first: with the array gone, `afterany` would let it run.

    Those in `vain` wait for what has ended, or nothing waits for them: where the controller has lost it, they
    may wait, or be held, for ever.
    """
    dead: set[str] = set()
    for submission in job.submissions:
        mine = [row for row in queue if row.name == submission.name and row.job == submission.slurm_id]
        waits = [row.reason for row in mine if row.word == "PENDING"]
        waits_on = "Dependency" in waits or "JobHeldUser" in waits
        if "DependencyNeverSatisfied" in waits or (submission.stage in vain and waits_on):
            dead.update(("convert", "beams") if submission.stage == "beams" else (submission.stage,))
        if submission.stage in job.cancelled and any(not row.ending for row in mine):
            dead.add(submission.stage)
    return tuple(stage for stage in reversed(STAGES) if stage in dead)


def _with_verdicts(tasks: Sequence[Task], judged: Sequence[Judged]) -> list[Task]:
    after = {one.after.task_id: one.after for one in judged}
    return [after.get(task.task_id, task) for task in tasks]


def _in_vain(tasks: Sequence[Task]) -> frozenset[str]:
    """Return the stages that wait in vain: interpret left nothing to build on, or beams are lost.

    So does interpret where all that waited for it has ended: one that came back held nobody releases.
    """
    interpret, beams = interpret_of(tasks), [task for task in tasks if task.type is TaskType.BEAM_CALC]
    if interpret is not None and _failed(interpret):
        return frozenset({"beams", "convert"})
    if all(task is interpret or task.status.terminal for task in slurm_tasks(tasks)):
        return frozenset({"interpret"})
    ended = all(task.status.terminal for task in beams)
    lost = any(task.status is TaskStatus.LOST for task in beams)
    return frozenset({"convert"}) if ended and lost else frozenset()


def _ghosts(job: Job, tasks: Sequence[Task], queue: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    ids: Mapping[str, int | None] = {s.name: s.slurm_id for s in job.submissions}
    open_stages = {STAGE_OF[task.type] for task in slurm_tasks(tasks) if not task.status.terminal}
    over = {s.name for s in job.submissions if s.stage not in open_stages}
    found = {
        (row.name, row.job)
        for row in queue
        if row.name in ids
        and not row.ending
        and ids[row.name] is not None
        and (row.name in over or ids[row.name] != row.job)
    }
    return tuple(sorted(found))


def _node(live: Row | None, ended: Row | None, line: StatusLine | None) -> str:
    named = [row.node for row in (live, ended) if row is not None and row.node]
    return named[0] if named else (line.node if line is not None else "")
