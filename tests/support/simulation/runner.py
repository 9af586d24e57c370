"""What runs on the nodes: programs, stepped through in virtual time, whatever Slurm thinks of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.jobs import Element, Program, Terminated

_HANGING = 5.0


class Runner:
    """Runs programs. While `hangs` says so none gets on: each waits for the file system."""

    def __init__(self, clock: VirtualClock, hangs: Callable[[], bool], term_seconds: float) -> None:
        self._clock = clock
        self._hangs = hangs
        self._term_seconds = term_seconds

    def run(self, element: Element, ended: Callable[[int], None]) -> None:
        """Run an element's program; `ended` hears its exit code, unless it is stopped before."""
        element.wake = self._clock.later(0.0, partial(self._step, element, ended))

    def terminate(self, element: Element) -> None:
        """Ask a program to end; it has its last words a little later."""
        program = self._taken(element)
        if program is not None:
            self._clock.later(self._term_seconds, partial(self._last_words, program))

    def kill(self, element: Element) -> None:
        """End a program at once."""
        program = self._taken(element)
        if program is not None:
            program.close()

    def abandon(self, element: Element) -> None:
        """Let a program work on that Slurm has given up."""
        due = 0.0 if element.wake is None else element.wake.due - self._clock.monotonic()
        hanging = element.wake is None
        program = self._taken(element)
        if program is not None and not hanging:
            lonely = Element(element.index, program=program)
            lonely.wake = self._clock.later(due, partial(self._step, lonely, _nobody))

    def _step(self, element: Element, ended: Callable[[int], None]) -> None:
        assert element.program is not None
        wait = _HANGING
        if not self._hangs():
            try:
                wait = next(element.program)
            except StopIteration as stop:
                ended(stop.value)
                return
        step = partial(self._step, element, ended)
        element.wake = None if math.isinf(wait) else self._clock.later(wait, step)

    def _taken(self, element: Element) -> Program | None:
        program, element.program = element.program, None
        if element.wake is not None:
            element.wake.cancel()
            element.wake = None
        return program

    def _last_words(self, program: Program) -> None:
        if not self._hangs():
            try:
                program.throw(Terminated())
            except (StopIteration, Terminated):
                return
        program.close()


def _nobody(_: int) -> None:
    """Nobody hears how it ended."""
