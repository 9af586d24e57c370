"""How long to wait before the next look at the cluster, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

_GROWTH = 1.5
_JITTER = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class PollRhythm:
    """Short after a change, longer while nothing happens; never below `least`, which a site sets."""

    least: float
    most: float

    def next_wait(self, last: float, *, changed: bool, draw: float) -> float:
        """Return the wait after a poll that came `last` seconds after the one before.

        `draw` (0..1) spreads the wait by up to 20 % upwards, so that installations part.
        """
        base = self.least if changed else min(max(last, self.least) * _GROWTH, self.most)
        return base * (1.0 + _JITTER * draw)
