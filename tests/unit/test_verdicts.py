"""The table of verdicts: every combination of inputs meets one row, and each row does what it says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.models import TaskStatus
from mqi_hpc.core.readings import Accounting, Limits, Reading, TableRow, Timer, Witness, row_of
from mqi_hpc.core.verdicts import Verdict, judge

LIMITS = Limits(settle=120.0, lag=600.0, debounce=60.0)
UNKNOWN = ("REVOKED", "MOONSTRUCK")
INFRA = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED")
OTHER = ("CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY")
WORDS = (None, "COMPLETED", *INFRA, *OTHER, *UNKNOWN)
WORLD = tuple(
    Reading(
        queue_good=queue,
        live=live,
        word=word,
        accounting=accounting,
        record=record,
        exit_code=code,
        status_good=status,
        cancelled_by_us=ours,
        interpret_failed=interpret,
    )
    for queue, live, word, accounting, record, (code, status), ours, interpret in itertools.product(
        (True, False),
        (None, "PENDING", "RUNNING", "MOONSTRUCK"),
        WORDS,
        Accounting,
        Witness,
        ((0, True), (3, True), (None, True), (None, False), (0, False)),
        (False, True),
        (False, True),
    )
)
ENDED = tuple(r for r in WORLD if r.queue_good and r.live is None)
"""Where a verdict other than waiting can come from; the rest of the world is `STILL`."""
STILL = tuple(r for r in WORLD if not r.queue_good or r.live is not None)
GONE = Reading(queue_good=True)


def table(r: Reading) -> list[tuple[str, bool]]:
    """The design's table, each row by its own cells alone: live, S, M, X."""
    gone = r.queue_good and r.live is None
    s = r.word if r.word in (*INFRA, *OTHER, "COMPLETED") else "?" if r.accounting is Accounting.DOWN else "-"
    m = "?" if r.record is Witness.UNREADABLE else r.record.value
    x = "?" if not r.status_good else "absent" if r.exit_code is None else "0" if r.exit_code == 0 else "bad"
    return [
        ("none", not r.queue_good),
        ("live", r.queue_good and r.live is not None),
        ("cancelled", gone and s == "CANCELLED" and (r.cancelled_by_us or r.interpret_failed)),
        # Called off, and turned away by the fence, which lets nothing be left.
        ("cancelled", gone and s == "FAILED" and r.cancelled_by_us and (m, x) == ("absent", "absent")),
        ("waits", gone and s != "?" and m == "?"),
        ("waits", gone and s == "COMPLETED" and m == "valid" and x == "?"),
        ("completed done", gone and s == "COMPLETED" and m == "valid" and x in ("0", "absent")),
        ("completed suspect", gone and s == "COMPLETED" and m == "valid" and x == "bad"),
        ("completed failed", gone and s == "COMPLETED" and m != "valid"),
        ("infrastructure", gone and s in INFRA),
        ("other", gone and s in OTHER),
        ("silent", gone and s == "-" and r.accounting is Accounting.GOOD),
        ("waits", gone and s == "-" and x == "?"),
        ("no accounting", gone and s == "-" and r.accounting is Accounting.OFF),
        ("down", gone and s == "?"),
    ]


NAMES = {
    TableRow.NONE: "none",
    TableRow.LIVE: "live",
    TableRow.CANCELLED: "cancelled",
    TableRow.UNREADABLE: "waits",
    TableRow.EXIT_UNREADABLE: "waits",
    TableRow.COMPLETED_VALID: "completed done",
    TableRow.COMPLETED_EXIT: "completed suspect",
    TableRow.COMPLETED_NOT_VALID: "completed failed",
    TableRow.INFRASTRUCTURE: "infrastructure",
    TableRow.ENDED: "other",
    TableRow.SILENT: "silent",
    TableRow.NO_ACCOUNTING: "no accounting",
    TableRow.DOWN: "down",
}


def test_every_combination_of_inputs_meets_exactly_the_first_row_of_the_table_that_fits() -> None:
    met = set()
    for reading in WORLD:
        wanted = next(name for name, fits in table(reading) if fits)
        row = row_of(reading)
        assert NAMES[row] == wanted, reading
        met.add(row)
    assert met == set(TableRow)


def run(reading: Reading, *, seconds: float, step: float = 60.0, limits: Limits = LIMITS) -> Verdict:
    """Judge one reading in polls `step` seconds apart, for `seconds` in all, or until it is judged."""
    verdict, waited = judge(reading, Timer(), 0.0, limits), 0.0
    while waited < seconds and not verdict.final:
        elapsed = min(step, seconds - waited)
        waited += elapsed
        verdict = judge(reading, verdict.timer, elapsed, limits)
    return verdict


def outcome(r: Reading, waited: float) -> tuple[TaskStatus, bool]:
    """What the table says of a reading that has held for `waited` seconds: (status, is it noted)."""
    row, waits, ends = row_of(r), (TaskStatus.RUNNING, False), r.record is Witness.VALID
    unseen = row in (TableRow.UNREADABLE, TableRow.EXIT_UNREADABLE) or (row is TableRow.DOWN and not r.agrees)
    if r.cancelled_by_us and (unseen or (row is TableRow.SILENT and not r.status_good)):
        return (TaskStatus.CANCELLED, False) if waited >= LIMITS.lag else waits
    if row is TableRow.SILENT:
        return (by_files(r, waited - LIMITS.lag, noted=True)) if waited >= LIMITS.lag else waits
    if row is TableRow.NO_ACCOUNTING:
        return by_files(r, waited, noted=False)
    if row is TableRow.DOWN:
        agrees = r.record is Witness.VALID and r.status_good and r.exit_code == 0
        return success(r, noted=True) if agrees and waited >= LIMITS.lag else waits
    patience = {
        TableRow.COMPLETED_VALID: 0.0 if r.exit_code == 0 else LIMITS.settle,
        TableRow.COMPLETED_NOT_VALID: LIMITS.settle,
        TableRow.INFRASTRUCTURE: LIMITS.debounce,
        TableRow.COMPLETED_EXIT: 0.0,
        TableRow.ENDED: 0.0,
        TableRow.CANCELLED: 0.0,
    }
    if row not in patience or waited < patience[row]:
        return waits
    if row is TableRow.CANCELLED:
        return (TaskStatus.FAILED if r.interpret_failed else TaskStatus.CANCELLED), False
    if row is TableRow.COMPLETED_VALID:
        return TaskStatus.COMPLETED, r.exit_code is None
    return (TaskStatus.SUSPECT if ends else TaskStatus.FAILED), False


def success(r: Reading, *, noted: bool) -> tuple[TaskStatus, bool]:
    return (TaskStatus.COMPLETED if r.word is None else TaskStatus.SUSPECT), noted


def by_files(r: Reading, waited: float, *, noted: bool) -> tuple[TaskStatus, bool]:
    if not r.status_good:
        return TaskStatus.RUNNING, False
    valid = r.record is Witness.VALID
    if valid and r.exit_code == 0:
        return success(r, noted=noted)
    status, patience = (
        (TaskStatus.SUSPECT, LIMITS.lag)
        if valid
        else (TaskStatus.FAILED, LIMITS.settle)
        if r.exit_code is not None
        else (TaskStatus.LOST, LIMITS.lag)
    )
    return (status, noted) if waited >= patience else (TaskStatus.RUNNING, False)


@pytest.mark.parametrize("waited", [0, 59, 60, 119, 120, 599, 600, 719, 720, 1199, 1200])
def test_every_combination_comes_to_what_the_table_says_before_and_after_each_limit(waited: int) -> None:
    for reading in ENDED:
        verdict = run(reading, seconds=waited)
        assert (verdict.status, bool(verdict.noted)) == outcome(reading, waited), (reading, verdict)
        assert verdict.row is row_of(reading)


def test_no_good_queue_section_and_a_task_in_the_queue_are_never_judged() -> None:
    for reading in STILL:
        verdict = judge(reading, Timer(row="neither", waited=1e6, polls=99), 1e6, LIMITS)
        assert verdict.status is TaskStatus.RUNNING
        assert (verdict.phase == "none") is not reading.queue_good


def test_unknown_words_are_never_done_whatever_the_files_say_and_however_long() -> None:
    for reading in ENDED:
        if reading.word in UNKNOWN:
            verdict = run(reading, seconds=10_000, step=700)
            assert verdict.status is not TaskStatus.COMPLETED, reading


def test_done_always_rests_on_a_valid_record_and_never_on_a_bad_exit_or_an_unreadable_file() -> None:
    for reading in ENDED:
        if run(reading, seconds=10_000, step=700).status is TaskStatus.COMPLETED:
            assert reading.record is Witness.VALID
            assert reading.status_good
            assert reading.exit_code in (0, None)
            assert reading.word in (None, "COMPLETED")


timers = st.builds(
    Timer,
    row=st.sampled_from(
        [
            "",
            "in the queue",
            "no word",
            "infrastructure",
            "completed, no valid record",
            "neither",
            "silent past T_lag, neither",
            "silent past T_lag, valid record, no clean exit (interrupted)",
        ]
    ),
    waited=st.floats(0, 2000),
    polls=st.integers(0, 50),
)


@given(st.sampled_from(WORLD), timers, st.floats(0, 2000))
def test_a_bad_poll_neither_advances_nor_forgets_a_timer(
    reading: Reading, timer: Timer, elapsed: float
) -> None:
    verdict = judge(reading, timer, elapsed, LIMITS)
    unseen = verdict.row in (TableRow.UNREADABLE, TableRow.EXIT_UNREADABLE)
    unseen = unseen or (verdict.row is TableRow.DOWN and not reading.agrees)
    if verdict.row is TableRow.NONE or (unseen and not reading.cancelled_by_us):
        assert not verdict.final
        assert (verdict.timer.waited, verdict.timer.polls) == (timer.waited, timer.polls)
        assert verdict.timer == timer.interrupted()


@given(st.sampled_from([r for r in ENDED if run(r, seconds=2000, step=700).final]), st.lists(st.booleans()))
def test_only_time_between_two_good_polls_counts(reading: Reading, good: list[bool]) -> None:
    """With bad polls in between, a verdict comes no sooner than the good intervals alone would bring it."""
    step = 50.0
    timer, counted, before = Timer(), 0.0, False
    for is_good in (*good, True):
        verdict = judge(reading if is_good else replace(reading, queue_good=False), timer, step, LIMITS)
        counted += step if is_good and before else 0.0
        before = is_good
        if verdict.final:
            status, _ = outcome(reading, counted)
            assert verdict.status is status
            return
        timer = verdict.timer
    assert outcome(reading, counted)[0] is TaskStatus.RUNNING


# What timers do when the reading changes: each new finding gets its own patience.


def follow(*steps: tuple[Reading, float]) -> Verdict:
    verdict = Verdict(status=TaskStatus.RUNNING, phase="")
    for reading, elapsed in steps:
        verdict = judge(reading, verdict.timer, elapsed, LIMITS)
    return verdict


COMPLETED = replace(GONE, word="COMPLETED")
OFF = replace(GONE, accounting=Accounting.OFF)
DOWN = replace(GONE, accounting=Accounting.DOWN)
VALID: dict[str, Any] = {"record": Witness.VALID}


def test_an_exit_record_that_comes_late_still_gives_the_record_its_time_to_settle() -> None:
    ended = replace(OFF, exit_code=0)
    assert follow((OFF, 0), (OFF, 500), (ended, 50)).status is TaskStatus.RUNNING
    assert follow((OFF, 0), (OFF, 500), (ended, 50), (ended, 119)).status is TaskStatus.RUNNING
    assert follow((OFF, 0), (OFF, 500), (ended, 50), (ended, 120)).status is TaskStatus.FAILED
    late = replace(GONE, exit_code=0)
    assert follow((GONE, 0), (GONE, 599), (late, 1)).status is TaskStatus.RUNNING
    assert follow((GONE, 0), (GONE, 599), (late, 1), (late, 120)).status is TaskStatus.FAILED


def test_a_record_that_comes_late_still_gives_the_exit_record_its_time() -> None:
    valid = replace(OFF, **VALID)
    assert follow((OFF, 0), (OFF, 599), (valid, 1), (valid, 599)).status is TaskStatus.RUNNING
    assert follow((OFF, 0), (OFF, 599), (valid, 1), (valid, 600)).status is TaskStatus.SUSPECT
    assert (
        follow((OFF, 0), (OFF, 599), (valid, 1), (replace(valid, exit_code=0), 1)).status
        is TaskStatus.COMPLETED
    )


def test_absent_then_invalid_is_one_wait_for_a_valid_record() -> None:
    invalid = replace(COMPLETED, record=Witness.INVALID, why_invalid="dose.raw is missing")
    verdict = follow((COMPLETED, 0), (COMPLETED, 60), (invalid, 60))
    assert (verdict.status, verdict.phase) == (TaskStatus.FAILED, "failed (invalid output)")
    assert "dose.raw is missing" in verdict.detail
    assert follow((invalid, 0)).detail.endswith("not valid yet: dose.raw is missing")
    assert follow((COMPLETED, 0), (COMPLETED, 120)).phase == "failed (no output)"


def test_infrastructure_needs_its_time_and_two_polls_and_starts_anew_after_the_queue_shows_it_again() -> None:
    broken, back = replace(GONE, word="NODE_FAIL"), replace(GONE, live="RUNNING")
    hasty = Limits(debounce=0.0)
    assert judge(broken, Timer(), 0.0, hasty).status is TaskStatus.RUNNING
    assert run(broken, seconds=1, limits=hasty).status is TaskStatus.FAILED
    assert follow((broken, 0), (broken, 59)).status is TaskStatus.RUNNING
    assert follow((broken, 0), (back, 30), (broken, 60)).status is TaskStatus.RUNNING
    assert follow((broken, 0), (replace(GONE, word="PREEMPTED"), 60)).phase == "failed (infrastructure)"


def test_accounting_that_comes_and_goes_keeps_nobody_waiting_for_ever() -> None:
    agree_down, agree_silent = replace(DOWN, exit_code=0, **VALID), replace(GONE, exit_code=0, **VALID)
    steps = [(agree_down, 60.0), (agree_silent, 60.0)] * 6
    assert follow(*steps[:10]).status is TaskStatus.RUNNING
    assert follow(*steps).status is TaskStatus.COMPLETED
    # Without agreement only pairs of answers count, and an outage between them changes nothing.
    pair = [(GONE, 300.0), (GONE, 300.0), (DOWN, 900.0)]
    assert follow(*pair, *pair, *pair, *pair).status is TaskStatus.RUNNING
    assert follow(*pair, *pair, *pair, *pair[:2]).status is TaskStatus.LOST


def test_an_outage_of_accounting_alone_never_fails_a_task() -> None:
    for reading in ENDED:
        # Who has called it off waits for no accounting.
        if row_of(reading) is TableRow.DOWN and not reading.cancelled_by_us:
            assert run(reading, seconds=1e4, step=700).status in (
                TaskStatus.RUNNING,
                TaskStatus.COMPLETED,
                TaskStatus.SUSPECT,
            )
    waits = run(DOWN, seconds=1e4)
    assert (waits.phase, waits.attention) == ("waiting", True)


def test_past_the_lag_an_unreadable_exit_record_waits_and_the_lag_is_not_waited_again() -> None:
    blind = replace(GONE, status_good=False, **VALID)
    seen = follow((blind, 0), (blind, 600))
    assert (seen.status, seen.phase, seen.attention) == (TaskStatus.RUNNING, "unreadable", True)
    assert follow((blind, 0), (blind, 600), (blind, 5), (replace(GONE, exit_code=0, **VALID), 5)).final
    bad = replace(GONE, exit_code=3, **VALID)
    assert follow((blind, 0), (blind, 600), (bad, 500), (bad, 600)).status is TaskStatus.SUSPECT


def test_an_unreadable_exit_record_does_not_use_up_the_wait_for_an_absent_one() -> None:
    valid = replace(COMPLETED, **VALID)
    blind = replace(valid, status_good=False)
    assert follow((valid, 0), (blind, 500), (valid, 500)).status is TaskStatus.RUNNING
    assert follow((valid, 0), (valid, 60), (blind, 500), (blind, 9), (valid, 500), (valid, 60)).final


def test_a_timer_counts_time_and_polls_in_one_row() -> None:
    first = Timer().on("a", 5.0)
    assert first == Timer(row="a", waited=0.0, polls=1)
    assert first.on("a", 5.0).on("a", 2.0) == Timer(row="a", waited=7.0, polls=3)
    assert first.on("a", 5.0).on("b", 2.0) == Timer(row="b", waited=0.0, polls=1)
    paused = first.on("a", 5.0).interrupted()
    assert (paused.interrupted(), paused.waited, paused.polls) == (paused, 5.0, 2)
    assert paused.on("a", 9.0) == Timer(row="a", waited=5.0, polls=3)
    assert paused.on("b", 9.0) == Timer(row="b", waited=0.0, polls=1)
    assert Timer().interrupted() == Timer(row="", waited=0.0, polls=0)


def test_patience_is_the_designs_unless_a_site_says_otherwise() -> None:
    assert (Limits().settle, Limits().lag, Limits().debounce) == (120.0, 600.0, 60.0)


# What a person is told.


@pytest.mark.parametrize(
    ("live", "reason", "phase", "attention"),
    [
        ("PENDING", "Priority", "queued", False),
        ("PENDING", "JobHeldUser", "held", True),
        ("PENDING", "JobHeldAdmin", "held", True),
        ("PENDING", "JobHoldMaxRequeue", "held", True),
        ("PENDING", "launch failed requeued held", "held", True),
        ("CONFIGURING", "None", "starting", False),
        ("RUNNING", "None", "running", False),
        ("COMPLETING", "None", "finishing", False),
        ("SUSPENDED", "None", "suspended", False),
        ("REQUEUED", "None", "requeueing", False),
        ("REQUEUE_HOLD", "None", "held", True),
        ("MOONSTRUCK", "None", "unknown", True),
    ],
)
def test_live_tasks_are_told_in_our_words(live: str, reason: str, phase: str, attention: bool) -> None:
    verdict = judge(Reading(queue_good=True, live=live, reason=reason), Timer(), 0.0, LIMITS)
    assert (verdict.status, verdict.phase, verdict.attention) == (TaskStatus.RUNNING, phase, attention)
    assert (live in verdict.detail) is (phase == "unknown")
    assert (verdict.detail == reason) is (phase in ("queued", "held"))


def test_a_cancel_by_others_is_a_failure_that_says_who_and_where() -> None:
    by_admin = replace(GONE, word="CANCELLED", by_uid=0, node="gpu1", exit_code=143, slurm_exit="0:15")
    verdict = judge(by_admin, Timer(), 0.0, LIMITS)
    assert (verdict.status, verdict.phase) == (TaskStatus.FAILED, "failed (cancelled)")
    assert verdict.detail == "cancelled by uid 0, the program exited 143, Slurm's exit code 0:15, on gpu1"
    plain = judge(replace(GONE, word="CANCELLED"), Timer(), 0.0, LIMITS)
    assert plain.detail == "cancelled"


def test_cancelled_by_us_and_because_of_interpret_are_told_apart() -> None:
    ours = judge(replace(GONE, word="CANCELLED", cancelled_by_us=True), Timer(), 0.0, LIMITS)
    assert (ours.status, ours.phase, ours.attention) == (TaskStatus.CANCELLED, "cancelled", False)
    dead = judge(
        replace(GONE, word="CANCELLED", cancelled_by_us=True, interpret_failed=True), Timer(), 0.0, LIMITS
    )
    assert (dead.status, dead.phase) == (TaskStatus.FAILED, "failed (interpret)")


@pytest.mark.parametrize(
    ("word", "phase", "said"),
    [
        ("FAILED", "failed", "the stage program failed"),
        ("TIMEOUT", "failed (timeout)", "time limit reached"),
        ("DEADLINE", "failed (deadline)", "deadline reached"),
        ("OUT_OF_MEMORY", "failed (out of memory)", "out of memory"),
    ],
)
def test_a_failure_names_its_cause(word: str, phase: str, said: str) -> None:
    verdict = judge(replace(GONE, word=word, slurm_exit="0:0"), Timer(), 0.0, LIMITS)
    assert (verdict.phase, verdict.detail) == (phase, said)


def test_a_valid_record_of_a_task_that_slurm_calls_failed_is_suspect_and_asks_for_a_person() -> None:
    verdict = judge(replace(GONE, word="OUT_OF_MEMORY", exit_code=0, **VALID), Timer(), 0.0, LIMITS)
    assert (verdict.status, verdict.attention) == (TaskStatus.SUSPECT, True)
    assert verdict.detail == (
        "a valid record, but Slurm says OUT_OF_MEMORY, out of memory, the program exited 0"
    )


def test_the_fence_says_what_it_means() -> None:
    ghost = judge(replace(GONE, word="FAILED", exit_code=78), Timer(), 0.0, LIMITS)
    assert "no receipt names this Slurm job" in ghost.detail
    again = judge(replace(GONE, word="FAILED", exit_code=79), Timer(), 0.0, LIMITS)
    assert "another run holds its claim" in again.detail


def test_what_the_files_alone_say_is_told_in_full() -> None:
    failed = run(replace(OFF, exit_code=3), seconds=200)
    assert failed.detail == "the program exited 3, no record was written"
    wrong = run(replace(OFF, exit_code=0, record=Witness.INVALID, why_invalid="no dose"), seconds=200)
    assert wrong.detail == "the program exited 0, no dose"
    quiet = run(replace(OFF, **VALID), seconds=700)
    assert quiet.detail == "a valid record, but no exit record"
    bad = run(replace(OFF, exit_code=3, **VALID), seconds=700)
    assert bad.detail == "a valid record, but the program exited 3"
    nothing = run(OFF, seconds=700)
    assert (nothing.status, nothing.attention) == (TaskStatus.LOST, True)
