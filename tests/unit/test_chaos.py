"""The simulation under faults: the invariants hold, a seed is a run, and what is planted is found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chaos.bugs import BUGS
from tests.chaos.faults import (
    CELLS,
    KINDS,
    NO_SENSE,
    PLACES,
    Fault,
    draw_schedule,
    format_schedule,
    parse_schedule,
)
from tests.chaos.play import Outcome, play, quiet, shrink
from tests.chaos.report import Tally, tell, tell_schedule

RUNS = 150


@pytest.fixture(autouse=True)
def unheard() -> Iterator[None]:
    with quiet():
        yield


# Invariants


@pytest.mark.parametrize("first", range(0, RUNS, 30))
def test_every_invariant_holds_under_the_faults_of_these_seeds(first: int) -> None:
    for seed in range(first, first + 30):
        outcome = play(seed)
        assert outcome.broken == (), outcome.replay
        assert not outcome.cut_short


CAUGHT = {
    "exec-before-commit": (0, "sent before its intent was committed"),
    "blind-retry": (17, "sbatch was repeated blindly"),
    "absence-is-done": (20, "done is not verified"),
    "index-renumbered": (43, "wrong beam"),
    "rename-before-verify": (3, "stands under its name"),
    "receipt-replaced": (6, "was replaced"),
    "no-fence": (1, "exactly once"),
    "outputs-shared": (0, "was written by a job whose folder is"),
    "stale-queue": (101, "a look that did not see the queue"),
    "wrong-hash": (59, "wrong dose delivered"),
    "dose-unchecked": (55, "wrong beam"),
    "suspect-is-done": (4, "and Slurm ended it as"),
    "exit-record-unread": (154, "its program did not exit 0"),
    "sizes-unread": (5, "its output is spoilt"),
    "mark-never-made": (416, "called off, and begun"),
    "accounting-down": (66, "by a look that accounting did not answer"),
    "late-answer": (27, "and nobody ordered it"),
    "impatient": (4, "submitted blindly"),
    "called-off-in-vain": (0, "seen twice and not cancelled"),
    "called-off-retried": (3, "called off, and retried by itself"),
    "retried-for-ever": (65, "retried too often"),
    "two-looks": (0, "two looks at the cluster at once"),
}
"""A seed that finds each planted bug, and what it is found by. Where the program has changed since, and goes
another way under that seed, one soon after it will do."""
SEEDS = 200


def caught(bug: str) -> Outcome:
    first, said = CAUGHT[bug]
    for seed in range(first, first + SEEDS):
        found = play(seed, bug=bug)
        if any(said in text for text in found.broken):
            return found
    raise AssertionError(f"{bug} is not found under the seeds {first} to {first + SEEDS - 1}")


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    found = caught(bug)
    assert play(found.seed).broken == ()


def test_what_fails_is_shrunk_to_faults_none_of_which_can_be_left_out() -> None:
    found = caught("receipt-replaced")
    short = shrink(found, "receipt-replaced")
    assert 0 < len(short.schedule) < len(found.schedule)
    assert short.kind == found.kind
    again, _, schedule = short.replay.partition(":")
    assert play(int(again), parse_schedule(schedule), "receipt-replaced").digest == short.digest
    for left_out in range(len(short.schedule)):
        rest = short.schedule[:left_out] + short.schedule[left_out + 1 :]
        assert play(found.seed, rest, "receipt-replaced").kind != short.kind


# The same seed


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    digests = {play(5).digest}
    for hash_seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-m", "tests.chaos", "--replay", "5"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        digests.add(told.partition("ledger: ")[2].split()[0])
    assert len(digests) == 1


def test_a_schedule_is_said_in_one_word_and_read_back() -> None:
    for seed in range(50):
        schedule = draw_schedule(seed)
        assert parse_schedule(format_schedule(schedule)) == schedule
        assert tell_schedule(schedule).count("\n") == len(schedule) - 1
    assert tell_schedule(()) == "  (no fault at all)"


@pytest.mark.parametrize(
    "text", ["submit", "submit:frozen@2", "cancel:stale@1~3", "order:stale@1~3", "x:y@1~1"]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no fault"):
        parse_schedule(text)


def test_every_cell_is_drawn_and_every_other_has_its_reason() -> None:
    drawn = {(fault.place, fault.kind) for seed in range(2000) for fault in draw_schedule(seed)}
    assert drawn >= set(CELLS)
    assert set(CELLS) | set(NO_SENSE) == {(place, kind) for place in PLACES for kind in KINDS}
    assert all(NO_SENSE.values())


# What is told


def test_the_table_tells_what_struck_and_what_too_seldom() -> None:
    tally = Tally()
    for seed in range(3):
        tally.add(play(seed, (Fault("submit", "lost", 1, 0),)))
    assert (tally.runs, tally.median, tally.held) == (3, 1, False)
    assert tally.thin == []
    tally.runs = 10_000
    assert "submit lost" in tally.thin
    text = tell(tally, 1.0, 2.0)
    assert "median 1; runs by number of faults: 1: 3" in text
    assert "struck too seldom" in text
