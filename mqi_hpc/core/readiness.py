"""Says whether a case folder may be read: its copy has ended, and it is not as it was when last read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mqi_hpc.core.models import SeenFolder

MARKER = "_CASE_READY"
"""The file, directly in a case folder, by which a sender says that all of it has been copied."""
POLICIES = ("marker", "quiet", "either")
SETTLE_SECONDS = 2.0
"""For how long a folder that its marker vouches for must have been seen to stay the same."""
_COPIED_NS = 2_000_000_000
"""A marker that says it is older than it has been here by more than this was copied, times and all. Some
file systems keep times to 2 s."""


@dataclass(frozen=True, slots=True)
class SeenFile:
    """One entry of a case folder as a walk saw it: path below the folder, bytes, and two times (epoch ns).

    `mtime_ns` is what the file says of itself; a copy may keep the original's. `ctime_ns` is when this file
    system last changed the entry, which no copy can set back. `mode` is its type and permissions.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int = 0


class Readiness(StrEnum):
    """What is to be done with a folder now."""

    READY = "ready"
    WAIT = "wait"
    KNOWN = "known"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is to be done with a folder, and why it waits; `soon` tells that a look is due in a moment."""

    readiness: Readiness
    why: str = ""
    soon: bool = False


def fingerprint(files: Iterable[SeenFile]) -> str:
    """Return the SHA-256 of all names, sizes, modification times and modes, in any order of `files`.

    The marker is among them: who touches it anew asks for the folder to be looked at again.
    """
    # A name may hold any character but NUL.
    lines = [f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.mode}\0" for file in files]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def judge(
    files: Sequence[SeenFile],
    *,
    policy: str,
    quiet_seconds: float,
    unchanged_seconds: float | None,
    known: SeenFolder | None,
    now: float,
) -> Standing:
    """Return what is to be done with a folder that holds `files`.

    `policy` is one of POLICIES. `unchanged_seconds` is for how long its fingerprint was seen to stay the
    same, by an unbroken clock; None: it has been looked at once only. `known` is how it was when it was
    last read, `now` UTC epoch seconds.
    """
    if known is not None and known.fingerprint == fingerprint(files):
        due = known.again_at is not None and now >= known.again_at
        return Standing(Readiness.READY if due else Readiness.KNOWN)
    if not files:
        return Standing(Readiness.WAIT, "it holds no files yet")
    quiet = unchanged_seconds is not None and unchanged_seconds >= quiet_seconds
    missing = "" if policy == "quiet" else _not_vouched(files, quiet=quiet)
    if policy != "quiet" and not missing:
        # In a copy of a folder that has a marker, all may seem well just when the marker comes.
        stands = unchanged_seconds is not None and unchanged_seconds >= min(quiet_seconds, SETTLE_SECONDS)
        if stands:
            return Standing(Readiness.READY)
        return Standing(Readiness.WAIT, f"{MARKER} vouches for it; it is looked at once more", soon=True)
    if policy != "marker" and quiet:
        return Standing(Readiness.READY)
    still = f"it has not been unchanged for {quiet_seconds:g} s"
    return Standing(
        Readiness.WAIT, {"marker": missing, "quiet": still, "either": f"{missing}, and {still}"}[policy]
    )


def _not_vouched(files: Sequence[SeenFile], *, quiet: bool) -> str:
    """Return why the marker does not vouch for the folder, "" where it does.

    In a copy that keeps times (cp -p, rsync -a) the marker comes like any file, at any moment of its course:
    only the quiet tells that its end has come.
    """
    marker = next((file for file in files if file.path == MARKER), None)
    if marker is None:
        return f"there is no {MARKER}"
    if newer := [file.path for file in files if file.mtime_ns > marker.mtime_ns]:
        return f"{len(newer)} file{'s are' if len(newer) > 1 else ' is'} newer than {MARKER}"
    copied = marker.mtime_ns < marker.ctime_ns - _COPIED_NS
    if not quiet and (copied or any(file.ctime_ns > marker.ctime_ns for file in files)):
        return f"{MARKER} or files after it came with older times, as in a copy under way"
    return ""
