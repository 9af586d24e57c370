"""What one poll says of one task, which row of the table of verdicts fits it, and how long that has lasted.

Timers run over good polls only: an interval counts where every section that the timed row reads was good
at both of its ends. A poll with a bad section interrupts a timer: it adds nothing, and nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from mqi_hpc.core.slurm_states import INFRASTRUCTURE, TERMINAL

WITHOUT_ACCOUNTING = "judged without accounting"
"""Begins the note of a verdict that rests on record and exit record alone where there is accounting."""


class Witness(StrEnum):
    """What a stage's own record says: there and right, there and wrong, not there, or not readable."""

    VALID = "valid"
    INVALID = "invalid"
    ABSENT = "absent"
    UNREADABLE = "unreadable"


class Accounting(StrEnum):
    """Whether accounting answered in this poll, did not, or does not exist at the site."""

    GOOD = "good"
    DOWN = "down"
    OFF = "off"


class TableRow(StrEnum):
    """The rows of the table, in its order; EXIT_UNREADABLE is what `?` means for the exit record."""

    NONE = "no good queue section"
    LIVE = "in the queue"
    CANCELLED = "cancelled by us"
    UNREADABLE = "record unreadable"
    EXIT_UNREADABLE = "exit record unreadable"
    COMPLETED_VALID = "completed, record valid"
    COMPLETED_EXIT = "completed, exit record differs"
    COMPLETED_NOT_VALID = "completed, no valid record"
    INFRASTRUCTURE = "infrastructure"
    ENDED = "other end"
    SILENT = "accounting silent"
    NO_ACCOUNTING = "no accounting"
    DOWN = "accounting down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that one poll says about one task.

    `live` is Slurm's word where a good queue section shows the task unfinished; `word` the newest
    terminal word of queue or accounting (or one we do not know), None where good sections hold none;
    `by_uid` who cancelled, where Slurm says. `exit_code` is the exit record of the stage program, None
    where it is absent; `status_good` tells whether that could be read.
    """

    queue_good: bool
    live: str | None = None
    reason: str = ""
    accounting: Accounting = Accounting.GOOD
    word: str | None = None
    by_uid: int | None = None
    record: Witness = Witness.ABSENT
    exit_code: int | None = None
    status_good: bool = True
    cancelled_by_us: bool = False
    interpret_failed: bool = False
    slurm_exit: str = ""
    node: str = ""
    why_invalid: str = ""

    @property
    def agrees(self) -> bool:
        """Whether record and exit record both say success."""
        return self.record is Witness.VALID and self.status_good and self.exit_code == 0

    @property
    def turned_away(self) -> bool:
        """Whether it was called off and failed with nothing done: at the fence, which sees the job's mark."""
        nothing = self.record is Witness.ABSENT and self.status_good and self.exit_code is None
        return self.cancelled_by_us and self.word == "FAILED" and nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Patience, in seconds of observed time."""

    settle: float = 120.0
    lag: float = 600.0
    debounce: float = 60.0


_INTERRUPTED = " (interrupted)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """How long (s) and over how many good polls a task has been in `row`."""

    row: str = ""
    waited: float = 0.0
    polls: int = 0

    def on(self, row: str, elapsed: float) -> Timer:
        """Return the timer after one more good poll in `row`, `elapsed` seconds after the poll before."""
        if self.row == row:
            return Timer(row=row, waited=self.waited + elapsed, polls=self.polls + 1)
        if self.row == row + _INTERRUPTED:
            return Timer(row=row, waited=self.waited, polls=self.polls + 1)
        return Timer(row=row, polls=1)

    def interrupted(self) -> Timer:
        """Return the timer after a poll that was not good for its row: the time up to the next is void."""
        if not self.row or self.row.endswith(_INTERRUPTED):
            return self
        return replace(self, row=self.row + _INTERRUPTED)


def row_of(reading: Reading) -> TableRow:
    """Return the first row of the table that fits a reading."""
    r, ended = reading, reading.word in TERMINAL
    completed, valid = r.word == "COMPLETED", r.record is Witness.VALID
    table = (
        (TableRow.NONE, not r.queue_good),
        (TableRow.LIVE, r.live is not None),
        (TableRow.CANCELLED, r.word == "CANCELLED" and (r.cancelled_by_us or r.interpret_failed)),
        (TableRow.CANCELLED, r.turned_away),
        # A word the queue still holds stands without accounting; without one, S is unknown.
        (TableRow.DOWN, not ended and r.accounting is Accounting.DOWN),
        (TableRow.UNREADABLE, r.record is Witness.UNREADABLE),
        (TableRow.COMPLETED_NOT_VALID, completed and not valid),
        (TableRow.EXIT_UNREADABLE, completed and not r.status_good),
        (TableRow.COMPLETED_EXIT, completed and r.exit_code not in (0, None)),
        (TableRow.COMPLETED_VALID, completed),
        (TableRow.INFRASTRUCTURE, r.word in INFRASTRUCTURE),
        (TableRow.ENDED, ended),
        (TableRow.SILENT, r.accounting is Accounting.GOOD),
        (TableRow.EXIT_UNREADABLE, not r.status_good),
        (TableRow.NO_ACCOUNTING, True),
    )
    return next(row for row, fits in table if fits)
