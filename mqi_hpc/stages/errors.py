"""How a stage can end other than well: exit codes, in this one place, and the errors that carry them.

===========  ==================================================================================
exit code    meaning
===========  ==================================================================================
0            the work is done and its record published; or it was done before (a repeat)
1            the work failed for a reason the message names: input, engine output, settings
2            wrong arguments
70           a bug of these programs (with a traceback), or an engine's exit code that is reserved
74           reading or writing failed: no space left, quota, an unreadable folder
77           the GPU check: a GPU is required, and the node gives none that works
78           the fence: no receipt names this Slurm job, or it was called off; nothing was touched
79           the fence: interpret's record does not stand, or another run holds the claim
126, 127     the engine's command cannot be run, or is not there
128 + n      signal n ended this program or the engine
others       the engine's own exit code
===========  ==================================================================================
"""

from __future__ import annotations

import errno
import signal

from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import EXIT_NO_GPU, EXIT_NOT_NOW, EXIT_NOT_OURS

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_IO = 74
EXIT_CANNOT_RUN = 126
EXIT_NOT_THERE = 127
RESERVED = (0, EXIT_NO_GPU, EXIT_NOT_OURS, EXIT_NOT_NOW)
"""Exit codes with which an engine's failure must not be confused."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ONE_LINE = 600


class StageError(Exception):
    """A failure that was foreseen. The message says what, where, and what to do."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Refused(StageError):  # noqa: N818 - the fence's word
    """The fence lets this run not work. Nothing was touched."""


class AlreadyDone(Exception):  # noqa: N818 - an outcome, not an error
    """The task's claim is taken and its valid record stands: there is nothing left to do."""


class Interrupted(BaseException):
    """A signal came. Not an Exception, so that no handler of failures takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def describe(error: BaseException) -> tuple[int, str]:
    """Return exit code and one line for people."""
    if isinstance(error, (StageError, Interrupted)):
        return error.exit_code, one_line(str(error))
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        if error.filename:
            what += f": {error.filename}"
        advice = "; free space or quota on the cluster, then resubmit" if error.errno in _FULL else ""
        return EXIT_IO, one_line(what + advice)
    if isinstance(error, FormatError):
        return EXIT_FAILED, one_line(str(error))
    if isinstance(error, MemoryError):
        return EXIT_FAILED, "not enough memory: raise slurm.stages.<stage>.memory, then resubmit"
    if isinstance(error, ImportError):
        return EXIT_FAILED, one_line(
            f"{error}: the stages' Python needs numpy and pydicom; see slurm.prologue"
        )
    return EXIT_BUG, one_line(f"internal error: {type(error).__name__}: {error}")


def foreseen(error: BaseException) -> bool:
    """Whether an error is one that cluster, site or input can cause; any other is a bug of ours."""
    return isinstance(error, (StageError, Interrupted, OSError, FormatError, MemoryError, ImportError))


def one_line(text: str) -> str:
    """Return `text` as one printable line of bounded length."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= _ONE_LINE else line[: _ONE_LINE - 3] + "..."
