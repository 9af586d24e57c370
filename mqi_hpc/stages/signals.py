"""Signals that ask to end: raised as Interrupted where that is safe, held back where it is not."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Optional

from mqi_hpc.stages.errors import Interrupted

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Signals:
    """From `install` on signals are held back; between `allow` and `hold` the first of them is raised."""

    def __init__(self) -> None:
        self._pending: Optional[int] = None
        self._raising = False

    def install(self) -> None:
        """Take over the signals, holding them back."""
        for number in ASKING:
            signal.signal(number, self._handle)

    def allow(self) -> None:
        """Raise Interrupted for a signal that came, and from now on for one that comes."""
        self._raising = True
        self._raise()

    def hold(self) -> None:
        """Raise Interrupted if a signal came before now; hold back those that come later."""
        self._raising = False
        self._raise()

    def close(self) -> None:
        """Hold back signals for good: the task is ending."""
        self._raising = False

    def _handle(self, number: int, _frame: Optional[FrameType]) -> None:
        if self._pending is None:
            self._pending = number
            if self._raising:
                self._raise()

    def _raise(self) -> None:
        if self._pending is not None:
            self._raising = False
            raise Interrupted(self._pending)
