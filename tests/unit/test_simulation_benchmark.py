"""The benchmark of a thousand cases runs, with a few."""

from __future__ import annotations

from pathlib import Path

from benchmarks.thousand_cases import run


def test_cases_are_led_to_their_end_and_measured_twice(tmp_path: Path) -> None:
    first, last, virtual = run(tmp_path, 6, 3)
    assert (first.threads, first.files) == (last.threads, last.files)
    assert 0 < first.seconds <= last.seconds
    assert virtual > 50.0
