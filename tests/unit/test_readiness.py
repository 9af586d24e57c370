"""A folder is read when its copy has ended, and once only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.models import SeenFolder
from mqi_hpc.core.readiness import (
    _COPIED_NS,
    MARKER,
    POLICIES,
    SETTLE_SECONDS,
    Readiness,
    SeenFile,
    Standing,
    fingerprint,
    judge,
)

QUIET = 300.0


def seen(path: str, mtime: int = 1, ctime: int | None = None, size: int = 10) -> SeenFile:
    return SeenFile(path, size, mtime, mtime if ctime is None else ctime)


PLAN, LOG = seen("s/RP.dcm", 1), seen("s/d/a.ptn", 2)


def say(
    *files: SeenFile,
    policy: str = "either",
    unchanged: float | None = SETTLE_SECONDS,
    known: SeenFolder | None = None,
    now: float = 1000.0,
) -> Standing:
    return judge(files, policy=policy, quiet_seconds=QUIET, unchanged_seconds=unchanged, known=known, now=now)


@pytest.mark.parametrize(
    ("policy", "marked", "unchanged", "readiness", "why"),
    [
        ("marker", True, SETTLE_SECONDS, "ready", ""),
        ("marker", False, 9999.0, "wait", "there is no _CASE_READY"),
        ("quiet", True, None, "wait", "it has not been unchanged for 300 s"),
        ("quiet", False, QUIET, "ready", ""),
        ("quiet", False, QUIET - 1, "wait", "it has not been unchanged for 300 s"),
        ("either", True, SETTLE_SECONDS, "ready", ""),
        ("either", False, QUIET, "ready", ""),
        (
            "either",
            False,
            QUIET - 1,
            "wait",
            "there is no _CASE_READY, and it has not been unchanged for 300 s",
        ),
    ],
)
def test_policies(policy: str, marked: bool, unchanged: float | None, readiness: str, why: str) -> None:
    files = [PLAN, LOG, *([seen(MARKER, 3)] if marked else [])]
    assert say(*files, policy=policy, unchanged=unchanged) == Standing(Readiness(readiness), why)


@pytest.mark.parametrize("unchanged", [None, SETTLE_SECONDS - 0.1])
def test_what_a_marker_vouches_for_is_looked_at_once_more(unchanged: float | None) -> None:
    standing = say(PLAN, LOG, seen(MARKER, 3), policy="marker", unchanged=unchanged)
    assert (standing.readiness, standing.soon) == (Readiness.WAIT, True)
    hasty = {"policy": "marker", "known": None, "now": 0.0, "quiet_seconds": 0.0}
    assert judge([seen(MARKER, 3)], unchanged_seconds=0.0, **hasty).readiness is Readiness.READY
    assert judge([seen(MARKER, 3)], unchanged_seconds=None, **hasty).soon


def test_a_marker_vouches_only_for_files_not_newer_than_it() -> None:
    marker = seen(MARKER, 5)
    assert say(PLAN, seen("b", 5), marker).readiness is Readiness.READY
    late = say(PLAN, seen("b", 6), marker)
    assert late == Standing(
        Readiness.WAIT, "1 file is newer than _CASE_READY, and it has not been unchanged for 300 s"
    )
    two = [PLAN, seen("b", 6), seen("c", 7), marker]
    assert say(*two, policy="marker", unchanged=9999.0) == Standing(
        Readiness.WAIT, "2 files are newer than _CASE_READY"
    )
    assert say(*two, unchanged=QUIET).readiness is Readiness.READY
    assert say(*two[:-1], seen(MARKER, 7), policy="marker").readiness is Readiness.READY


@pytest.mark.parametrize("policy", ["marker", "either"])
def test_a_copy_that_keeps_times_brings_a_marker_that_vouches_for_nothing_yet(policy: str) -> None:
    late = [seen("b", 1, ctime=90), seen(MARKER, 5, ctime=80)]
    first = [seen("b", 1, ctime=7), seen(MARKER, 5, ctime=6 + _COPIED_NS)]
    assert say(seen("b", 1), seen(MARKER, 5, ctime=5 + _COPIED_NS)).readiness is Readiness.READY
    for files in (late, first):
        check_copied(files, policy)


def check_copied(files: list[SeenFile], policy: str) -> None:
    waits = say(*files, policy=policy, unchanged=QUIET - 1)
    assert waits.readiness is Readiness.WAIT
    assert "as in a copy under way" in waits.why
    assert say(*files, policy=policy, unchanged=QUIET).readiness is Readiness.READY


def test_a_marker_elsewhere_is_a_file_like_any() -> None:
    assert say(PLAN, seen(f"s/{MARKER}", 9), policy="marker").readiness is Readiness.WAIT


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_folder_waits(policy: str) -> None:
    assert say(policy=policy, unchanged=9999.0) == Standing(Readiness.WAIT, "it holds no files yet")


def test_a_folder_once_read_is_known_until_it_changes_or_its_time_has_come() -> None:
    known = SeenFolder(folder="/x", fingerprint=fingerprint([PLAN, LOG]))
    assert say(PLAN, LOG, known=known, unchanged=QUIET).readiness is Readiness.KNOWN
    due = replace(known, again_at=1000.0)
    assert say(PLAN, LOG, known=due, now=999.9).readiness is Readiness.KNOWN
    # It was whole when it was read, and is as it was: nothing more is waited for.
    assert say(PLAN, LOG, known=due).readiness is Readiness.READY
    assert say(PLAN, LOG, seen("c"), known=due).readiness is Readiness.WAIT
    empty = SeenFolder(folder="/x", fingerprint=fingerprint([]))
    assert say(known=empty).readiness is Readiness.KNOWN


def test_a_touched_marker_asks_for_another_look() -> None:
    known = SeenFolder(folder="/x", fingerprint=fingerprint([PLAN, seen(MARKER, 5)]))
    assert say(PLAN, seen(MARKER, 5), known=known).readiness is Readiness.KNOWN
    assert say(PLAN, seen(MARKER, 6), known=known).readiness is Readiness.READY


files = st.lists(
    st.builds(
        SeenFile,
        st.sampled_from(["a", "b", "c/d", "c/é", "\\udc", MARKER]),
        st.integers(-1, 3),
        st.integers(0, 3),
        st.integers(0, 3) | st.just(2 * _COPIED_NS),
        st.sampled_from([0o100644, 0o100000]),
    ),
    unique_by=lambda file: file.path,
    min_size=1,
    max_size=6,
)


def key(file: SeenFile) -> tuple[str, int, int, int]:
    return file.path, file.size, file.mtime_ns, file.mode


@given(files, files)
def test_fingerprints_are_alike_for_the_same_files_only(one: list[SeenFile], two: list[SeenFile]) -> None:
    same = {*map(key, one)} == {*map(key, two)}
    assert (fingerprint(one) == fingerprint(two)) is same
    assert fingerprint(reversed(one)) == fingerprint(one)


@given(files, st.sampled_from(POLICIES), st.none() | st.floats(0, 2 * QUIET))
def test_never_ready_while_anything_is_newer_than_the_marker_and_not_quiet(
    found: list[SeenFile], policy: str, unchanged: float | None
) -> None:
    marker = next((file for file in found if file.path == MARKER), None)
    vouched = marker is not None and all(
        file.mtime_ns <= marker.mtime_ns and file.ctime_ns <= marker.ctime_ns < 2 * _COPIED_NS
        for file in found
    )
    quiet = unchanged is not None and unchanged >= QUIET
    settled = unchanged is not None and unchanged >= SETTLE_SECONDS
    standing = say(*found, policy=policy, unchanged=unchanged)
    if standing.readiness is Readiness.READY:
        assert quiet or (vouched and settled and policy != "quiet")
        assert standing.why == ""
        assert policy != "marker" or (
            marker is not None and all(file.mtime_ns <= marker.mtime_ns for file in found)
        )
    else:
        assert standing.why
        assert standing.soon is (vouched and not settled and policy != "quiet")
        assert not (vouched and settled and policy != "quiet")


@given(files, st.sampled_from(POLICIES), st.none() | st.floats(0, 2 * QUIET))
def test_never_read_twice_unchanged(found: list[SeenFile], policy: str, unchanged: float | None) -> None:
    known = SeenFolder(folder="/x", fingerprint=fingerprint(found))
    assert say(*found, policy=policy, unchanged=unchanged, known=known).readiness is Readiness.KNOWN
