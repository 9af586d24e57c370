"""From evidence to verdict: the table of the design as one pure function.

`readings.row_of` finds the first row that fits what a poll said; `judge` says what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from mqi_hpc.core.attention import asks
from mqi_hpc.core.models import TaskStatus
from mqi_hpc.core.readings import (
    WITHOUT_ACCOUNTING,
    Accounting,
    Limits,
    Reading,
    TableRow,
    Timer,
    Witness,
    row_of,
)
from mqi_hpc.core.slurm_states import CAUSES, phase
from mqi_hpc.records.layout import EXIT_NOT_NOW, EXIT_NOT_OURS

__all__ = ["Accounting", "Limits", "Reading", "TableRow", "Timer", "Verdict", "Witness", "judge", "row_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What we conclude, by which `row` of the table. `status` RUNNING means: not yet judged."""

    status: TaskStatus
    phase: str
    detail: str = ""
    noted: str = ""
    timer: Timer = field(default_factory=Timer)
    row: TableRow = TableRow.NONE

    @property
    def attention(self) -> bool:
        """Whether a person should look at it."""
        return asks(self.status, self.phase)

    @property
    def final(self) -> bool:
        """Whether the task is judged."""
        return self.status.terminal


@dataclass(frozen=True, slots=True)
class _Poll:
    """What a row's rule is given."""

    reading: Reading
    timer: Timer
    elapsed: float
    limits: Limits


def judge(reading: Reading, timer: Timer, elapsed: float, limits: Limits) -> Verdict:
    """Return the verdict of the first row of the table that fits.

    `timer` is the task's before this poll, `elapsed` the time (s) since the poll before, 0 for the first.
    """
    row = row_of(reading)
    verdict = _RULES[row](_Poll(reading, timer, elapsed, limits))
    if verdict.status is TaskStatus.COMPLETED and reading.word not in (None, "COMPLETED"):
        # REVOKED, or a word of a later Slurm: it ended in a way we cannot vouch for.
        detail = f"Slurm says {reading.word!r}, which this program cannot take for success"
        verdict = _end(TaskStatus.SUSPECT, "suspect", detail, verdict.timer, noted=verdict.noted)
    return replace(verdict, row=row)


def _none(poll: _Poll) -> Verdict:
    return _wait("none", "no good queue section", poll.timer.interrupted())


def _live(poll: _Poll) -> Verdict:
    reading = poll.reading
    name = phase(str(reading.live), reading.reason)
    detail = reading.reason if name in ("queued", "held", "blocked") else ""
    if name == "unknown":
        detail = f"Slurm says {reading.live!r}, which this program does not know"
    timer = poll.timer.on(TableRow.LIVE, poll.elapsed)
    return _wait(name, detail, timer)


def _cancelled(poll: _Poll) -> Verdict:
    if poll.reading.interpret_failed:
        detail = "interpret failed, so this was cancelled before it ran"
        return _end(TaskStatus.FAILED, "failed (interpret)", detail, poll.timer)
    return _end(TaskStatus.CANCELLED, "cancelled", "cancelled by mqi-hpc", poll.timer)


def _unreadable(poll: _Poll) -> Verdict:
    return _unseen(poll, "unreadable", "the record cannot be read, or not its folder")


def _exit_unreadable(poll: _Poll) -> Verdict:
    return _unseen(poll, "unreadable", _NO_STATUS)


_NO_STATUS = "the status file cannot be read"


def _unseen(poll: _Poll, name: str, why: str) -> Verdict:
    """Wait for a witness that does not answer; what was called off waits for it no longer than T_lag."""
    if not poll.reading.cancelled_by_us:
        return _wait(name, why, poll.timer.interrupted())
    timer = poll.timer.on(_CALLED_OFF, poll.elapsed)
    if timer.waited < poll.limits.lag:
        return _wait(name, why, timer)
    return _given_up(why, timer)


def _given_up(why: str, timer: Timer) -> Verdict:
    detail = f"called off, and not in the queue; how it ended is not known: {why}"
    return _end(TaskStatus.CANCELLED, "cancelled", detail, timer)


_CALLED_OFF = "called off, and a witness does not answer"


def _completed_valid(poll: _Poll) -> Verdict:
    timer = poll.timer.on(TableRow.COMPLETED_VALID, poll.elapsed)
    if poll.reading.exit_code == 0:
        return _end(TaskStatus.COMPLETED, "done", "", timer)
    if timer.waited < poll.limits.settle:
        return _wait("settling", "Slurm says COMPLETED, the exit record is not there yet", timer)
    return _end(TaskStatus.COMPLETED, "done", "", timer, noted="it left no exit record")


def _completed_exit(poll: _Poll) -> Verdict:
    code = _exit(poll.reading.exit_code)
    detail = f"Slurm says COMPLETED and the record is valid, but {code}"
    return _end(TaskStatus.SUSPECT, "suspect", detail, poll.timer)


def _completed_not_valid(poll: _Poll) -> Verdict:
    reading = poll.reading
    absent = reading.record is Witness.ABSENT
    timer = poll.timer.on(TableRow.COMPLETED_NOT_VALID, poll.elapsed)
    if timer.waited < poll.limits.settle:
        state = "not there yet" if absent else f"not valid yet: {reading.why_invalid}"
        return _wait("settling", f"Slurm says COMPLETED, the record is {state}", timer)
    said = "Slurm says COMPLETED, but no record was written" if absent else reading.why_invalid
    name = "failed (no output)" if absent else "failed (invalid output)"
    return _end(TaskStatus.FAILED, name, _join(said, _exit(reading.exit_code), _place(reading)), timer)


def _infrastructure(poll: _Poll) -> Verdict:
    timer = poll.timer.on(TableRow.INFRASTRUCTURE, poll.elapsed)
    # Slurm may requeue: one look is not enough to call it the end.
    if timer.waited < poll.limits.debounce or timer.polls < 2:
        detail = f"Slurm says {poll.reading.word}; waiting whether it stays so"
        return _wait("settling", detail, timer)
    return _ended_badly(poll.reading, "infrastructure", timer)


def _ended(poll: _Poll) -> Verdict:
    return _ended_badly(poll.reading, str(poll.reading.word).lower().replace("_", " "), poll.timer)


def _ended_badly(reading: Reading, kind: str, timer: Timer) -> Verdict:
    if reading.record is Witness.VALID:
        detail = _join(f"a valid record, but Slurm says {reading.word}", _cause(reading))
        return _end(TaskStatus.SUSPECT, "suspect", detail, timer)
    name = "failed" if kind == "failed" else f"failed ({kind})"
    return _end(TaskStatus.FAILED, name, _join(_cause(reading), reading.why_invalid), timer)


_NO_WORD = "no word"
"""The timer of rows SILENT and DOWN. They share it, so that accounting that comes and goes cannot keep
two witnesses that agree waiting for ever; without agreement a further timer follows it (`_by_files`)."""
_AFTER_LAG = "silent past T_lag, "


def _silent(poll: _Poll) -> Verdict:
    passed = poll.timer.row.startswith(_AFTER_LAG)
    timer = poll.timer if passed else poll.timer.on(_NO_WORD, poll.elapsed)
    if not passed and timer.waited < poll.limits.lag:
        return _wait("settling", "gone from the queue, not yet in accounting", timer)
    if not poll.reading.status_good:
        if poll.reading.cancelled_by_us:
            return _given_up(_NO_STATUS, timer)
        return _exit_unreadable(replace(poll, timer=timer))
    noted = f"{WITHOUT_ACCOUNTING}, which answered but knew nothing of it"
    return _by_files(replace(poll, timer=timer), _AFTER_LAG, noted)


def _no_accounting(poll: _Poll) -> Verdict:
    return _by_files(poll, "", "")


def _by_files(poll: _Poll, prefix: str, noted: str) -> Verdict:
    """Judge by record and exit record alone; `prefix` keeps apart the timers of the rows that come here."""
    reading, patience = poll.reading, poll.limits.lag
    if reading.agrees:
        return _end(TaskStatus.COMPLETED, "done", "", poll.timer, noted=noted)
    if reading.record is Witness.VALID:
        case, status, name = "valid record, no clean exit", TaskStatus.SUSPECT, "suspect"
        waiting = "gone from the queue; the exit record does not say success"
        detail = f"a valid record, but {_exit(reading.exit_code) or 'no exit record'}"
    elif reading.exit_code is not None:
        case, status, name = "exit record, no valid record", TaskStatus.FAILED, "failed"
        waiting, patience = "the program has ended, the record is not valid yet", poll.limits.settle
        detail = _join(_cause(reading), reading.why_invalid or "no record was written")
    else:
        case, status, name = "neither", TaskStatus.LOST, "lost"
        waiting = "gone from the queue; waiting for what it left"
        detail = _join("Slurm does not know how it ended, and it left no exit record", reading.why_invalid)
    timer = poll.timer.on(prefix + case, poll.elapsed)
    if timer.waited < patience:
        return _wait("settling", waiting, timer)
    return _end(status, name, detail, timer, noted=noted)


def _down(poll: _Poll) -> Verdict:
    if not poll.reading.agrees:
        return _unseen(poll, "waiting", "not in the queue, and accounting does not answer")
    timer = poll.timer.on(_NO_WORD, poll.elapsed)
    if timer.waited < poll.limits.lag:
        return _wait("settling", "accounting does not answer; record and exit record agree", timer)
    noted = f"{WITHOUT_ACCOUNTING}, which did not answer"
    return _end(TaskStatus.COMPLETED, "done", "", timer, noted=noted)


_RULES: Mapping[TableRow, Callable[[_Poll], Verdict]] = {
    TableRow.NONE: _none,
    TableRow.LIVE: _live,
    TableRow.CANCELLED: _cancelled,
    TableRow.UNREADABLE: _unreadable,
    TableRow.EXIT_UNREADABLE: _exit_unreadable,
    TableRow.COMPLETED_VALID: _completed_valid,
    TableRow.COMPLETED_EXIT: _completed_exit,
    TableRow.COMPLETED_NOT_VALID: _completed_not_valid,
    TableRow.INFRASTRUCTURE: _infrastructure,
    TableRow.ENDED: _ended,
    TableRow.SILENT: _silent,
    TableRow.NO_ACCOUNTING: _no_accounting,
    TableRow.DOWN: _down,
}

_FENCE = {
    EXIT_NOT_OURS: " (the fence: no receipt names this Slurm job, or its job was called off)",
    EXIT_NOT_NOW: " (the fence: what it builds on does not stand, or another run holds its claim)",
}


def _cause(reading: Reading) -> str:
    """Return why it ended, as Slurm and the program say: cause, who, exit codes, node."""
    cause = CAUSES.get(reading.word or "", "")
    if reading.word == "CANCELLED" and reading.by_uid is not None:
        cause = f"cancelled by uid {reading.by_uid}"
    slurm = "" if reading.slurm_exit in ("", "0:0") else f"Slurm's exit code {reading.slurm_exit}"
    return _join(cause, _exit(reading.exit_code), slurm, _place(reading))


def _exit(code: int | None) -> str:
    return "" if code is None else f"the program exited {code}{_FENCE.get(code, '')}"


def _place(reading: Reading) -> str:
    return f"on {reading.node}" if reading.node else ""


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _wait(name: str, detail: str, timer: Timer) -> Verdict:
    return Verdict(status=TaskStatus.RUNNING, phase=name, detail=detail, timer=timer)


def _end(status: TaskStatus, name: str, detail: str, timer: Timer, *, noted: str = "") -> Verdict:
    return Verdict(status=status, phase=name, detail=detail, noted=noted, timer=timer)
