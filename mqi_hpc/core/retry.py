"""When to try again, as values: the caller brings clock and random numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter; delays in seconds."""

    max_attempts: int = 3
    base_delay: float = 1.0
    max_delay: float = 60.0
    exponential_base: float = 2.0

    def delay(self, attempt: int, jitter: float = 0.0) -> float | None:
        """Seconds to wait after failed attempt number `attempt` (from 1); None: give up.

        `jitter` (0..1) shortens the wait by up to half, so that clients that failed together part.
        """
        if attempt < 1 or not 0.0 <= jitter <= 1.0:
            raise ValueError(f"attempt counts from 1 and jitter is 0..1, not {attempt} and {jitter}")
        return None if attempt >= self.max_attempts else self.wait(attempt, jitter)

    def wait(self, failures: int, jitter: float = 0.0) -> float:
        """Seconds to wait after `failures` (from 1) in a row, where giving up is no answer: an outage."""
        try:
            wait = min(self.base_delay * self.exponential_base ** (failures - 1), self.max_delay)
        except OverflowError:
            wait = self.max_delay
        return wait * (1.0 - jitter / 2.0)


class CircuitState(Enum):
    """CLOSED: calls pass. OPEN: none does. HALF_OPEN: one may try."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """Stops calls after `failure_threshold` failures in a row, for `timeout` seconds.

    `now` is any clock in seconds, always the same one. The value does not count probes: a caller that
    is told a HALF_OPEN breaker allows a call makes one and reports how it went before it asks again.
    """

    failure_threshold: int = 5
    timeout: float = 60.0
    failures: int = 0
    opened_at: float | None = None

    def failed(self, now: float) -> CircuitBreaker:
        """The breaker after a failed call: at the threshold, or when it was the probe, it opens anew."""
        failures = self.failures + 1
        opens = failures >= self.failure_threshold
        return replace(self, failures=failures, opened_at=now if opens else None)

    def succeeded(self) -> CircuitBreaker:
        """The breaker after a call that worked: closed, nothing counted."""
        return replace(self, failures=0, opened_at=None)

    def state(self, now: float) -> CircuitState:
        """What the breaker is at `now`."""
        if self.opened_at is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now - self.opened_at < self.timeout else CircuitState.HALF_OPEN

    def allows(self, now: float) -> bool:
        """Whether a call may be made at `now`."""
        return self.state(now) is not CircuitState.OPEN
