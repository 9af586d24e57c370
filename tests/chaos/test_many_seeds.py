"""More seeds than each test run has time for: `./dev chaos` plays as many as it is told to."""

from __future__ import annotations

import pytest

from tests.chaos.play import play, quiet


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1_000_000, 1_001_000, 100))
def test_every_invariant_holds(first: int) -> None:
    with quiet():
        for seed in range(first, first + 100):
            outcome = play(seed)
            assert outcome.broken == (), outcome.replay
