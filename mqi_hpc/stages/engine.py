"""Runs the site's engine command in a process group of its own, and ends all of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import BinaryIO, Callable, List, Sequence

from mqi_hpc.stages.errors import (
    EXIT_BUG,
    EXIT_CANNOT_RUN,
    EXIT_NOT_THERE,
    RESERVED,
    StageError,
    one_line,
)
from mqi_hpc.stages.signals import Signals

TICK = 10.0
"""Seconds between two looks at a running engine."""
GRACE = 1.0
"""Seconds an engine has to end itself: less than the shortest KillWait, after which Slurm kills us."""
SILENT_FAILURES = (b"Cannot write :", b"Cannot open file!", b"Error occurred at writing time!")
"""What the engine prints when it could not write its dose; it exits 0 all the same."""
_VERSION_LINES = 200
_LINE_BYTES = 1 << 16
_TAIL = 4096
_VERSION = re.compile(rb"\bversion\b|\bv[0-9]+\.[0-9]+", re.IGNORECASE)


def run_engine(
    command: Sequence[str], cwd: Path, log: Path, tick: Callable[[], None], signals: Signals
) -> int:
    """Run `command` to its end, its output appended to the file `log`; return where in it that begins.

    Calls `tick` every few seconds, which must not wait for anything. Raises StageError where the engine did
    not end with 0; whatever ends this function, all of the engine's process group has been killed by then.
    """
    with log.open("ab") as output:
        begin = output.tell()
        # Held back until there is a process to end: one that comes while it starts would leave it behind.
        signals.hold()
        process = _start(_buffered(command), cwd, output)
        try:
            signals.allow()
            code = _wait(process, tick, signals)
        finally:
            _end(process)
    if code:
        raise StageError(_failure(code, log, begin), _exit_code(code))
    return begin


def _buffered(command: Sequence[str]) -> List[str]:
    """Return the command with line-wise output where there is stdbuf: an abort loses none of it."""
    stdbuf = shutil.which("stdbuf")
    return [stdbuf, "-oL", "-eL", *command] if stdbuf else list(command)


def _start(command: Sequence[str], cwd: Path, output: BinaryIO) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise StageError(_no_command(command, error), EXIT_NOT_THERE) from error
    except OSError as error:
        raise StageError(_no_command(command, error), EXIT_CANNOT_RUN) from error


def _no_command(command: Sequence[str], error: OSError) -> str:
    return f"the engine {command[0]!r} cannot be run on this node: {error.strerror}; see stages.beam"


def _wait(process: subprocess.Popen[bytes], tick: Callable[[], None], signals: Signals) -> int:
    while True:
        try:
            return process.wait(TICK)
        except subprocess.TimeoutExpired:
            # Held back meanwhile: a signal would cut a status line in two, or lose a process just begun.
            signals.hold()
            tick()
            signals.allow()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: asked first, then killed."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        # It is killed next, whether or not it is about to end.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # The group is empty: what was to be reached.


def _exit_code(code: int) -> int:
    if code < 0:
        return 128 - code
    return EXIT_BUG if code in RESERVED else code


def _failure(code: int, log: Path, begin: int) -> str:
    how = f"was ended by {_signal_name(-code)}" if code < 0 else f"exited with {code}"
    if code == EXIT_NOT_THERE:
        how += " (its command was not found)"
    last = last_line(log, begin)
    words = f"its last line: {last!r}" if last else "it said nothing"
    return f"the engine {how}; {words}; see logs/{log.name}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line(log: Path, begin: int) -> str:
    """Return the last line with words in it that the engine wrote from `begin` on, '' where there is none."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begin, size - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    return next((one_line(line)[:300] for line in reversed(lines) if line.strip()), "")


def read_log(log: Path, begin: int) -> str:
    """Return the version line of the engine's output, '' where there is none.

    Raises StageError where the output says that the dose could not be written.
    """
    version = ""
    with log.open("rb") as file:
        file.seek(begin)
        for number, line in enumerate(iter(lambda: file.readline(_LINE_BYTES), b"")):
            for words in SILENT_FAILURES:
                if words in line:
                    said = one_line(line.decode(errors="replace"))[:300]
                    raise StageError(
                        f"the engine says {said!r}: it could not write its dose, though it exited with 0"
                    )
            if not version and number < _VERSION_LINES and _VERSION.search(line):
                version = one_line(line.decode(errors="replace"))[:200]
    return version
