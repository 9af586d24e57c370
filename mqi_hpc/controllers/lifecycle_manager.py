"""One instance at a time on a store, and a clean end on a signal."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from mqi_hpc.core.errors import LockHeld, StateError

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_KILLED_BY = 128


class LifecycleManager:
    """ILifecycleManager on an operating system's lock: it goes with its process, however that ends.

    So a process id left behind, or used again by another program, means nothing.
    """

    def __init__(self, state_file: Path) -> None:
        self._path = state_file.with_name(f"{state_file.name}.lock")
        self._holder = state_file.with_name(f"{state_file.name}.lock.holder")
        self._lock = FileLock(self._path, mode=0o600)
        self._handlers: list[Callable[[], None]] = []
        self._before: dict[signal.Signals, Any] = {}
        self._asked = False

    def acquire_lock(self, patience: float = 0.0) -> bool:
        """Take the lock; raises LockHeld, saying by whom, where another process has it for `patience` s.

        Raises StateError where the lock's files cannot be written.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience)
            self._say_who()
        except Timeout as error:
            raise LockHeld(
                f"another mqi-hpc works on this store{self._who()}",
                where=str(self._path),
                fix="Wait until it has ended, or ask it to: kill -TERM",
            ) from error
        except OSError as error:
            self._lock.release()
            raise StateError(
                f"the lock cannot be taken: {error.strerror}",
                where=str(self._path),
                fix="app.state_file says where it lies; its folder must be writable",
            ) from error
        return True

    def release_lock(self) -> None:
        """Give the lock back, and the signals their former handlers."""
        for number, former in self._before.items():
            signal.signal(number, former)
        self._before.clear()
        self._handlers.clear()
        self._asked = False
        if self._lock.is_locked:
            try:
                self._holder.unlink(missing_ok=True)
            finally:
                self._lock.release()

    def register_shutdown_handler(self, handler: Callable[[], None]) -> None:
        """Call `handler` when asked to end (SIGTERM, SIGINT, SIGHUP); asked a second time, end at once.

        A signal that is ignored, as SIGHUP under nohup, stays so.
        """
        self._handlers.append(handler)
        for number in _ENDING:
            if number not in self._before and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._asked_to_end)

    def register_reload_handler(self, handler: Callable[[], None]) -> None:
        """Call `handler` on SIGHUP, which then no longer asks to end."""
        former = signal.signal(signal.SIGHUP, lambda *_: handler())
        self._before.setdefault(signal.SIGHUP, former)

    def _asked_to_end(self, number: int, _: FrameType | None) -> None:
        if self._asked:
            sys.exit(_KILLED_BY + number)
        self._asked = True
        for handler in self._handlers:
            handler()

    def _say_who(self) -> None:
        descriptor = os.open(self._holder, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "command": Path(sys.argv[0]).name}, file)

    def _who(self) -> str:
        try:
            holder = json.loads(self._holder.read_text(encoding="utf-8"))
            return f" (process {holder['pid']}, {holder['command']})"
        except (OSError, ValueError, KeyError, TypeError):
            # It has not yet said who it is, or has just ended: the lock alone counts.
            return ""
