"""The effects port in production: threads act, every effect comes back as exactly one completion."""

from __future__ import annotations

import errno
import queue
import threading
import time
import traceback
from collections.abc import Callable

import structlog

from mqi_hpc.core.effects import (
    Cancel,
    Completion,
    Download,
    Effect,
    Failure,
    Observe,
    Prune,
    Scan,
    Submit,
    Survey,
    Upload,
)
from mqi_hpc.core.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionError,
    HostKeyError,
    LocalFolderError,
    MQIError,
    ResourceError,
)
from mqi_hpc.infrastructure.executors.control import Control
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown, Shell
from mqi_hpc.infrastructure.executors.transfer import TransferExecutor
from mqi_hpc.infrastructure.executors.upload import FolderTaken, WorkspaceRefused

CLOSE_SECONDS = 4.0
"""Twice this, at most, passes between SIGTERM and the end: systemd and people wait for it."""
SUBMIT_THREADS = 2

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_AWAY = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
)

_CLASSES: tuple[tuple[tuple[type[BaseException], ...], Failure], ...] = (
    ((AuthenticationError, HostKeyError, ConfigurationError), Failure.ACCESS),
    ((ConnectionError,), Failure.OUTAGE),
    ((LocalFolderError, WorkspaceRefused), Failure.FOLDER),
    ((FolderTaken,), Failure.TAKEN),
    ((ResourceError,), Failure.SPACE),
)


def classify(error: BaseException) -> Failure:
    """Return the class of an error; what nobody expected is the case's own, so that it stops nothing else."""
    for kinds, failure in _CLASSES:
        if isinstance(error, kinds):
            return failure
    if isinstance(error, OSError) and error.errno in _FULL:
        return Failure.SPACE
    return Failure.FOLDER if isinstance(error, OSError) and error.errno in _AWAY else Failure.CASE


def _of_transfer(error: BaseException) -> Failure:
    """Return the class of a transfer's failure: a folder that is wrong there stops transfers alone."""
    return Failure.FOLDER if isinstance(error, ConfigurationError) else classify(error)


class ThreadedEffects:
    """IEffects on threads: one for polls, some for submit and cancel, some for transfers, one for scans.

    So neither a transfer that stalls nor a submission that waits for Slurm ever delays a poll.
    """

    def __init__(
        self,
        shell: Shell,
        control: Control,
        transfer: TransferExecutor,
        *,
        transfer_threads: int,
        scan: Callable[[Scan], Completion] | None = None,
        prune: Callable[[Prune], Completion] | None = None,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._shell = shell
        self._close_seconds = close_seconds
        self._actions: dict[type[Effect], Callable[..., Completion]] = {
            Upload: transfer.upload,
            Download: transfer.download,
            Survey: transfer.survey,
            Submit: control.submit,
            Cancel: control.cancel,
            Observe: control.observe,
            **({Scan: scan} if scan is not None else {}),
            **({Prune: prune} if prune is not None else {}),
        }
        self._log = structlog.get_logger("mqi_hpc.effects")
        self._done: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._stopping = threading.Event()
        transfers, commands, polls, scans = _Lane(), _Lane(), _Lane(), _Lane()
        self._lanes: dict[type[Effect], _Lane] = {
            Upload: transfers,
            Download: transfers,
            Submit: commands,
            Cancel: commands,
            Observe: polls,
            Scan: scans,
            Prune: transfers,
            Survey: transfers,
        }
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"{name}-{n}", daemon=True)
            for lane, name, count in (
                (transfers, "transfer", transfer_threads),
                (commands, "command", SUBMIT_THREADS),
                (polls, "poll", 1),
                *(((scans, "scan", 1),) if scan is not None else ()),
            )
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, effect: Effect) -> None:
        """Hand an effect over; returns at once. After `close` it comes back as an outage."""
        if self._stopping.is_set():
            self._done.put(_stopped(effect))
        else:
            self._lanes[type(effect)].put(effect)

    def completions(self, timeout: float) -> list[Completion]:
        """Return what has come to its end, waiting up to `timeout` seconds for the first."""
        found: list[Completion] = []
        try:
            found.append(self._done.get(timeout=timeout) if timeout > 0 else self._done.get_nowait())
            while True:
                found.append(self._done.get_nowait())
        except queue.Empty:
            return found

    def close(self) -> None:
        """Let commands end for a while, then cut every connection; returns within about twice that while.

        What was waiting, or was cut, completes as an outage, a submission among it as uncertain.
        """
        self._stopping.set()
        for lane in self._lanes.values():
            for _ in self._threads:
                lane.put(None)
        slow = ("transfer", "scan")
        self._join(self._close_seconds, [t for t in self._threads if not t.name.startswith(slow)])
        self._shell.close()
        self._join(self._close_seconds, self._threads)

    def _join(self, seconds: float, threads: list[threading.Thread]) -> None:
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self, lane: _Lane) -> None:
        while True:
            effect = lane.get()
            if effect is None:
                return
            self._done.put(self._act(effect))

    def _act(self, effect: Effect) -> Completion:
        log = self._log.bind(effect=type(effect).__name__.lower(), **_context(effect))
        if self._stopping.is_set():
            return _stopped(effect)
        began = time.monotonic()
        try:
            completion = self._actions[type(effect)](effect)
        except BaseException as error:  # noqa: BLE001 - a thread must answer whatever happens
            completion = _failed(effect, error)
            if not isinstance(error, MQIError | OSError):
                frames = "".join(traceback.format_tb(error.__traceback__))
                log.error("effect failed unexpectedly", kind=type(error).__name__, traceback=frames)
        # Error texts name folders, which may name patients: the log gets the kind, people get the text.
        log.debug(
            "effect ended",
            seconds=round(time.monotonic() - began, 3),
            exit_code=completion.exit_code,
            failure=completion.failure,
        )
        return completion


_Lane = queue.SimpleQueue[Effect | None]


def _context(effect: Effect) -> dict[str, str]:
    if isinstance(effect, Observe | Scan):
        return {}
    job = {} if isinstance(effect, Prune) else {"job_id": effect.job_id}
    return {"case_id": effect.case_id, **job}


def _stopped(effect: Effect) -> Completion:
    return _failed(effect, ConnectionError("the program is stopping"))


def _failed(effect: Effect, error: BaseException) -> Completion:
    expected = isinstance(error, MQIError | OSError)
    return Completion(
        effect=effect,
        error=str(error) if expected else f"{type(error).__name__}: {error} (a fault of this program)",
        failure=_of_transfer(error) if isinstance(effect, Upload | Download | Survey) else classify(error),
        uncertain=isinstance(error, OutcomeUnknown),
    )
