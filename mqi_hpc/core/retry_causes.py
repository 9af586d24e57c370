"""From a task that ended badly to its cause, and by the site's table to what follows by itself: all pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mqi_hpc.core.causes import WORDS, Cause, Retry
from mqi_hpc.core.left_out import NO_NODE_TEXTS, is_node
from mqi_hpc.core.lost_chain import NEVER_RAN
from mqi_hpc.core.models import STAGE_OF, Job, SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.resubmit import History
from mqi_hpc.core.slurm_states import TERMINAL
from mqi_hpc.records.layout import EXIT_NO_GPU, EXIT_NOT_NOW, EXIT_NOT_OURS

EXIT_IO = 74
"""A stage could not read or write (stages.errors)."""
NOT_BEGUN = "not begun"
"""Phase of the tasks of a chain that Slurm, or the upload, never took."""

_WORDS_OF_SLURM = {
    "NODE_FAIL": Cause.NODE_FAIL,
    "BOOT_FAIL": Cause.BOOT_FAIL,
    "PREEMPTED": Cause.PREEMPTED,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "TIMEOUT": Cause.TIMEOUT,
    "DEADLINE": Cause.DEADLINE,
    "CANCELLED": Cause.CANCELLED,
    "COMPLETED": Cause.NO_OUTPUT,
}
_CODES: Mapping[int | None, Cause] = {
    EXIT_NO_GPU: Cause.GPU_CHECK,
    EXIT_NOT_OURS: Cause.FENCE,
    EXIT_NOT_NOW: Cause.FENCE,
    EXIT_IO: Cause.INPUT_OUTPUT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What follows a cause: at most `most` retries of a task in a row, after `pauses` (s; the last stays).

    One that is not `counted` leaves the count over all causes as it is. The node is left out of new beams
    for `leave_out` seconds. `factor` times what was asked for is asked for next, up to `maximum` (MB or s).
    """

    most: int
    pauses: tuple[float, ...] = (60.0, 300.0, 1200.0)
    counted: bool = True
    leave_out: float = 0.0
    factor: float = 1.0
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a stage asks Slurm for: memory (MB) and time (s)."""

    memory: int
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTable:
    """The policy of a site: a rule for each cause that is retried; `most` bounds the counted ones together.

    `asked` is what each stage asks for at first.
    """

    most: int = 0
    rules: Mapping[Cause, Rule] = field(default_factory=dict)
    asked: Mapping[str, Asked] = field(default_factory=dict)

    def rule(self, cause: Cause) -> Rule | None:
        """Return the rule of a cause, None where it asks for a person."""
        if cause is Cause.NO_NODE:
            return _WITHOUT
        found = self.rules.get(cause)
        return found if found is not None and found.most > 0 else None

    def asks(self, stage: str, causes: Sequence[Cause]) -> Asked:
        """Return what `stage` asks for after retries for `causes`."""
        first = self.asked[stage]
        memory = self._grown(first.memory, Cause.OUT_OF_MEMORY, causes)
        return Asked(memory=memory, time=self._grown(first.time, Cause.TIMEOUT, causes))

    def _grown(self, size: int, cause: Cause, causes: Sequence[Cause]) -> int:
        rule = self.rules.get(cause)
        times = list(causes).count(cause)
        # 0 is Slurm's word for all there is, or no limit: nothing is more.
        if rule is None or not times or not size:
            return size
        grown = int(-(-size * rule.factor**times // 1))
        return grown if rule.maximum is None else max(size, min(grown, rule.maximum))


_WITHOUT = Rule(most=20, pauses=(0.0,), counted=False)
"""A chain that was refused because of nodes left out goes again at once, with none left out. Each time takes
a failure on a node before it, and those are counted: more than a site's only node needs is never reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows a task's end: `retry`, or `why_not`; beams avoid its node for `leave_out` s, or not."""

    cause: Cause
    retry: Retry | None = None
    why_not: str = ""
    leave_out: float = 0.0


def cause_of(task: Task, job: Job) -> Cause | None:
    """Return why a task of `job` ended badly, None where it has not ended, or ended well."""
    if NEVER_RAN in task.parameters:
        return Cause.BURNT
    if task.status is not TaskStatus.FAILED:
        return _STATUSES.get(task.status)
    return _of_failure(task, job)


def _of_failure(task: Task, job: Job) -> Cause:
    if task.phase == "failed (interpret)":
        return Cause.INTERPRET
    if job.submit_state is SubmitState.BURNT and task.slurm not in TERMINAL:
        return Cause.BURNT
    if task.phase == NOT_BEGUN:
        words = (job.refusal or "").lower()
        without = job.left_out and any(text in words for text in NO_NODE_TEXTS)
        return Cause.NO_NODE if without else Cause.REFUSED
    return _WORDS_OF_SLURM.get(task.slurm) or _CODES.get(_code(task), Cause.PROGRAM)


_STATUSES = {
    TaskStatus.SUSPECT: Cause.SUSPECT,
    TaskStatus.LOST: Cause.LOST,
    TaskStatus.CANCELLED: Cause.CANCELLED,
}


def _code(task: Task) -> int | None:
    """Return the exit code of a stage program, by its own record, else by Slurm's."""
    if task.exit_code is not None:
        return task.exit_code
    code, _, signal = task.slurm_exit.partition(":")
    return int(code) if code.isdecimal() and signal in ("", "0") else None


def retried(history: History, job: Job, task: Task) -> list[Retry]:
    """Return the retries that led to `task` of `job`, newest first, since a person last asked for it."""
    found = []
    at = [one.job_id for one in history.jobs].index(job.job_id)
    automatic = job.automatic
    for older in reversed(history.jobs[:at]):
        before = _same(history, older, task)
        if before is None:
            continue
        if not automatic:
            break
        if before.retry is not None:
            found.append(before.retry)
        automatic = older.automatic
    return found


def _same(history: History, job: Job, task: Task) -> Task | None:
    same = (one for one in history.tasks[job.job_id] if (one.type, one.index) == (task.type, task.index))
    return next(same, None)


def decide(history: History, job: Job, task: Task, table: RetryTable, now: float) -> Decision | None:
    """Return what follows the end of a task of `job` that Slurm was to run, `now` (UTC epoch s).

    None where it ended well, has not ended, or only fell with interpret.
    """
    cause = cause_of(task, job)
    if cause is None or cause is Cause.INTERPRET or task.type not in STAGE_OF:
        return None
    stage = STAGE_OF[task.type]
    rule = table.rule(cause)
    if stage in job.cancelled and cause not in (Cause.BURNT, Cause.NO_NODE):
        # What Slurm refused is called off as well, by us: nobody is to be looked for who did it.
        refused = cause is Cause.REFUSED and job.submit_state is SubmitState.REFUSED
        return Decision(cause=cause, why_not=WORDS[cause] if refused else "it was called off")
    if rule is None:
        return Decision(cause=cause, why_not=WORDS[cause])
    apart = rule.leave_out > 0 and task.type is TaskType.BEAM_CALC and is_node(task.node)
    leave_out = rule.leave_out if apart else 0.0
    before = retried(history, job, task)
    why_not = _too_often(rule, cause, before, table) or _too_much(stage, cause, before, table)
    if why_not:
        return Decision(cause=cause, why_not=why_not, leave_out=leave_out)
    same = sum(one.cause is cause for one in before)
    pause = rule.pauses[min(same, len(rule.pauses) - 1)]
    left = table.most - sum(one.counted for one in before)
    retry = Retry(
        cause=cause,
        at=now + pause,
        pause=pause,
        attempt=same + 1,
        most=min(rule.most, same + left) if rule.counted else rule.most,
        counted=rule.counted,
        without=task.node if leave_out else "",
    )
    return Decision(cause=cause, retry=retry, leave_out=leave_out)


def _too_often(rule: Rule, cause: Cause, before: Sequence[Retry], table: RetryTable) -> str:
    same = sum(one.cause is cause for one in before)
    if same >= rule.most:
        return f"{WORDS[cause]}, and it was retried {_times(same)} for that already"
    counted = sum(one.counted for one in before)
    if rule.counted and counted >= table.most:
        return f"{WORDS[cause]}, and it was retried {_times(counted)} already"
    return ""


def _too_much(stage: str, cause: Cause, before: Sequence[Retry], table: RetryTable) -> str:
    """Return why more of what ran out is not asked for, "" where it is or nothing ran out."""
    if cause not in (Cause.OUT_OF_MEMORY, Cause.TIMEOUT):
        return ""
    causes = [one.cause for one in before]
    if table.asks(stage, [*causes, cause]) != table.asks(stage, causes):
        return ""
    return f"{WORDS[cause]}, and it had the most that processing.retries.{cause} allows"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
