"""Virtual time: it moves when somebody moves it, and does on its way what was planned for then."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

START = 1_800_000_000.0
"""UTC epoch s at which virtual time begins."""


@dataclass(slots=True, order=True)
class Planned:
    """Something that is to be done at `due`; `cancel` it, and it is not."""

    due: float
    order: int
    action: Callable[[], object] | None = field(compare=False)

    def cancel(self) -> None:
        """Forget the action: nothing of it is kept."""
        self.action = None


class VirtualClock:
    """IClock, and the one timeline of a simulation. What falls on one moment is done in order of planning."""

    def __init__(self, start: float = START) -> None:
        self._start = start
        self._now = 0.0
        self._plan: list[Planned] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Return UTC epoch seconds."""
        return self._start + self._now

    def monotonic(self) -> float:
        """Return the seconds since the simulation began."""
        return self._now

    def step(self, seconds: float) -> None:
        """Set the calendar's clock forward or back; nothing else moves."""
        self._start += seconds

    def later(self, seconds: float, action: Callable[[], object]) -> Planned:
        """Plan an action `seconds` from now; it is done when time is moved that far."""
        planned = Planned(self._now + max(0.0, seconds), next(self._order), action)
        heapq.heappush(self._plan, planned)
        return planned

    def next_due(self) -> float | None:
        """Return the seconds until the next planned action, None where nothing is planned."""
        while self._plan and self._plan[0].action is None:
            heapq.heappop(self._plan)
        return max(0.0, self._plan[0].due - self._now) if self._plan else None

    def advance(self, seconds: float) -> None:
        """Move time on by `seconds`, doing what is planned until then, that at its very end included."""
        end = self._now + seconds
        while (wait := self.next_due()) is not None and self._now + wait <= end:
            planned = heapq.heappop(self._plan)
            self._now = max(self._now, planned.due)
            if planned.action is not None:
                planned.action()
        self._now = end
