"""One question to the GPUs' driver, put by a process of its own, so that nobody has to wait for it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

from mqi_hpc.records.form import Form, FormatError, loads
from mqi_hpc.stages.errors import one_line

BOUND = 10.0
"""Seconds that the driver has for an answer."""
REAP = 1.0
"""Seconds to wait for a killed process; with a broken driver it may never end, not even killed."""
_NONE = ("", "NoDevFiles", "-1")
_MOST = 1 << 16
_NUMBERS = ("utilization", "memory", "temperature", "power")
# -c puts the current folder first on the path: what stands there is not to be taken for a module.
_START = (
    "import sys; sys.path[0] = sys.argv.pop(1); from mqi_hpc.stages.gpu_probe import main; main(sys.argv[1:])"
)
_ROOT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class State:
    """What the driver said of one device; `values` are %, MiB, C and W, None where it did not tell."""

    uuid: str
    name: str
    values: Tuple[Optional[float], ...]


@dataclass(frozen=True)
class Answer:
    """Who answered ("nvml", "nvidia-smi"), what of each device, in order; without states, `why`."""

    source: str = ""
    states: Tuple[State, ...] = ()
    why: str = ""


class Probe:
    """One question to the driver, put by a process of its own; whoever asks need not wait."""

    def __init__(self, devices: Sequence[str], source: str, clock: Callable[[], float]) -> None:
        """Ask about `devices` (CUDA's names) by way of `source`; where that is "", any way will do."""
        self._clock = clock
        self._deadline = clock() + BOUND
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._answer: Optional[Answer] = None
        self._heard = b""
        command = [sys.executable or "python3", "-B", "-c", _START, _ROOT, source, *devices]
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._answer = Answer(why=f"no process to ask the driver with: {error.strerror}")
            return
        os.set_blocking(self._pipe(), False)

    def answer(self) -> Optional[Answer]:
        """Return the answer, or why there will be none; None while it may still come."""
        if self._answer is None:
            if self._whole():
                self._answer = _read(self._heard)
            elif self._clock() >= self._deadline:
                self._answer = Answer(why=f"the driver gave no answer within {BOUND:.0f} s")
            else:
                return None
            self.close()
        return self._answer

    def wait(self) -> Answer:
        """Wait for the answer, at most BOUND seconds."""
        while (answer := self.answer()) is None:
            select.select([self._pipe()], [], [], max(0.0, self._deadline - self._clock()))
        return answer

    def close(self) -> None:
        """End the process, and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        process.stdout.close()
        # Not waited for before: its number is still its own, and its group's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # One that is stuck in the driver does not end, not even killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(REAP)

    def _pipe(self) -> int:
        assert self._process is not None and self._process.stdout is not None  # noqa: S101 - without: an answer
        return self._process.stdout.fileno()

    def _whole(self) -> bool:
        """Whether all has been heard: one line, or the end. What still runs may hold the pipe open."""
        try:
            while part := os.read(self._pipe(), _MOST):
                self._heard += part
                if part.endswith(b"\n") or len(self._heard) >= _MOST:
                    return True
        except BlockingIOError:
            return False
        return True


def visible_devices(visible: str) -> List[str]:
    """Return the devices in CUDA_VISIBLE_DEVICES: indices, GPU UUIDs, MIG UUIDs; CUDA stops at a -1."""
    devices: List[str] = []
    for device in (part.strip() for part in visible.split(",")):
        if device in _NONE:
            break
        devices.append(device)
    return devices


def _read(heard: bytes) -> Answer:
    if not heard:
        return Answer(why="the program that asks the driver ended without a word")
    try:
        form = loads(heard.decode(errors="replace"), "what the driver was heard to say")
        answer = Answer(
            source=form.text("source"),
            states=tuple(_state(item) for item in form.forms("devices")),
            why=one_line(form.text("why")),
        )
        form.end()
    except FormatError as error:
        return Answer(why=one_line(str(error)))
    return answer


def _state(form: Form) -> State:
    state = State(
        uuid=one_line(form.text("uuid")),
        name=one_line(form.text("name")),
        values=tuple(form.optional(name, form.number) for name in _NUMBERS),
    )
    form.end()
    return state
