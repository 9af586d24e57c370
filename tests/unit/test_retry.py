from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.retry import CircuitBreaker, CircuitState, RetryPolicy


def test_specified_defaults() -> None:
    assert RetryPolicy() == RetryPolicy(3, 1.0, 60.0, 2.0)
    assert (CircuitBreaker().failure_threshold, CircuitBreaker().timeout) == (5, 60.0)


def test_delays_double_up_to_the_limit_then_end() -> None:
    policy = RetryPolicy(max_attempts=9)
    assert [policy.delay(n) for n in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, None]


def test_an_outage_is_waited_out_without_giving_up() -> None:
    assert [RetryPolicy().wait(n) for n in (1, 2, 7, 100)] == [1.0, 2.0, 60.0, 60.0]


def test_a_huge_attempt_does_not_overflow() -> None:
    assert RetryPolicy(max_attempts=10**6).delay(10**5) == 60.0


@given(st.integers(1, 50), st.floats(0, 1))
def test_jitter_only_shortens_and_by_half_at_most(attempt: int, jitter: float) -> None:
    policy = RetryPolicy(max_attempts=100)
    full, shortened = policy.delay(attempt), policy.delay(attempt, jitter)
    assert full is not None and shortened is not None
    assert full / 2 <= shortened <= full


@pytest.mark.parametrize(("attempt", "jitter"), [(0, 0.0), (1, -0.1), (1, 1.1)])
def test_nonsense_is_refused(attempt: int, jitter: float) -> None:
    with pytest.raises(ValueError, match="attempt counts from 1"):
        RetryPolicy().delay(attempt, jitter)


def test_breaker_opens_at_the_threshold_and_half_opens_after_the_timeout() -> None:
    breaker = CircuitBreaker(failure_threshold=2, timeout=60.0)
    once = breaker.failed(0.0)
    assert once.state(0.0) is CircuitState.CLOSED
    assert once.allows(0.0)
    twice = once.failed(10.0)
    assert twice.state(69.9) is CircuitState.OPEN
    assert not twice.allows(69.9)
    assert twice.state(70.0) is CircuitState.HALF_OPEN
    assert twice.allows(70.0)
    assert breaker == CircuitBreaker(failure_threshold=2, timeout=60.0)


def test_a_failed_probe_opens_anew_and_a_good_one_closes() -> None:
    breaker = CircuitBreaker(failure_threshold=1, timeout=60.0).failed(0.0)
    assert not breaker.failed(60.0).allows(100.0)
    assert breaker.succeeded() == CircuitBreaker(failure_threshold=1, timeout=60.0)


def test_success_forgets_earlier_failures() -> None:
    assert CircuitBreaker(failure_threshold=2).failed(0.0).succeeded().failed(1.0).allows(1.0)
