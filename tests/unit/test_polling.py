from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.polling import PollRhythm

RHYTHM = PollRhythm(least=10.0, most=180.0)


def test_waits_grow_while_nothing_happens_and_fall_back_on_a_change() -> None:
    waits = [10.0]
    for _ in range(12):
        waits.append(RHYTHM.next_wait(waits[-1], changed=False, draw=0.0))
    assert waits[:4] == [10.0, 15.0, 22.5, 33.75]
    assert waits[-1] == 180.0
    assert RHYTHM.next_wait(180.0, changed=True, draw=0.0) == 10.0


@given(st.floats(0, 1000), st.booleans(), st.floats(0, 1))
def test_never_below_the_floor_a_site_sets(last: float, changed: bool, draw: float) -> None:
    assert 10.0 <= RHYTHM.next_wait(last, changed=changed, draw=draw) <= 180.0 * 1.2
