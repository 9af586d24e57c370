"""How the way to the cluster is: while it is down all pauses, and one thing at a time tries it again."""

from __future__ import annotations

from mqi_hpc.core.retry import RetryPolicy

_REFUSED_SECONDS = 900.0
"""Between attempts after our key or the host's was refused: a person has to act, an account may be locked."""
_STEADY_AFTER = 5
_JITTER = 0.2
_SOON_SECONDS = 5.0


class Outage:
    """Failures in a row, what the last one said, and when the way may be tried again.

    `refused` tells that our key or the host's was refused. In the long run at most one attempt a
    `max_delay` of the policy (a minute) is made, whatever waits.
    """

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._next = 0.0
        self._probing = False
        self.failures = 0
        self.why = ""
        self.refused = False

    @property
    def active(self) -> bool:
        """Whether the last attempt failed."""
        return self.failures > 0

    def may_try(self, now: float) -> bool:
        """Whether something may be begun: anything while all is well, one attempt when it is due."""
        return not self.active or (not self._probing and now >= self._next)

    def trying(self) -> None:
        """Note that an attempt is under way."""
        self._probing = self.active

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next attempt, None where there is none to wait for."""
        return max(0.0, self._next - now) if self.active and not self._probing else None

    def failed(self, now: float, why: str, *, refused: bool, draw: float) -> bool:
        """Note a failure; True where it tells something new.

        What had been begun before the outage and fails during it does not put the next attempt off.
        """
        if self.active and not self._probing and now < self._next:
            return False
        self.failures, self.why, self.refused, self._probing = self.failures + 1, why, refused, False
        if refused:
            wait = _REFUSED_SECONDS
        elif self.failures <= _STEADY_AFTER:
            wait = self._retry.wait(self.failures, draw)
        else:
            wait = self._retry.max_delay * (1.0 + _JITTER * draw)
        self._next = now + wait
        return True

    def undecided(self, now: float) -> None:
        """Note that an attempt came to an end that tells nothing of the way: another may be made soon."""
        if self._probing:
            self._probing = False
            self._next = now + _SOON_SECONDS

    def succeeded(self) -> bool:
        """Note that the way is open; True where it was not before."""
        before = self.active
        self.failures, self.why, self.refused, self._probing, self._next = 0, "", False, False, 0.0
        return before

    def retry_now(self) -> None:
        """Make the next attempt due: a person has changed something."""
        self._next = 0.0
