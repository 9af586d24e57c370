"""What `doctor` finds: findings and their exit code; how the login shell, its tools and clock are judged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class CheckStatus(StrEnum):
    """OK; WARNING: work can be done, a person should know; FAILURE: it cannot; SKIPPED: not looked at."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, how it stands, what was found, and what to do about it ("" where it is fine)."""

    check: str
    status: CheckStatus
    found: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """What one command on the cluster said: its exit code, its output, its errors."""

    code: int
    out: str
    err: str = ""

    @property
    def words(self) -> str:
        """Return what it said when it failed, in one line."""
        text = " ".join((self.err or self.out).split())
        late = "no answer in time" if self.code in _TIMED_OUT else ""
        return "; ".join(filter(None, (late, text[-500:]))) or f"exit code {self.code}, and it said nothing"


REACHING = ("connection", "host key", "login")
"""The checks without which the cluster cannot be reached."""
CLOCK_WARNING = 60
CLOCK_LIMIT = 600
"""A row counts where it was submitted at most so many seconds before its receipt's time."""

_TIMED_OUT = (124, 137)
_TOOLS_FROM = "GNU coreutils, bash and tar are needed on the login node: ask its administrator"


def ok(check: str, found: str) -> Finding:
    """Return a check that found nothing wrong."""
    return Finding(check, CheckStatus.OK, found)


def warning(check: str, found: str, cure: str) -> Finding:
    """Return a check that a person should know of."""
    return Finding(check, CheckStatus.WARNING, found, cure)


def failure(check: str, found: str, cure: str) -> Finding:
    """Return a check that failed."""
    return Finding(check, CheckStatus.FAILURE, found, cure)


def skipped(check: str, why: str) -> Finding:
    """Return a check that was not made."""
    return Finding(check, CheckStatus.SKIPPED, why)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 where nothing failed, 2 where the configuration is wrong, 4 out of reach, 1 for all else."""
    failed = {finding.check for finding in findings if finding.status is CheckStatus.FAILURE}
    if "configuration" in failed:
        return 2
    if failed & set(REACHING):
        return 4
    return 1 if failed else 0


def fields(text: str) -> dict[str, str]:
    """Return the `name=value` lines of a text; the last of a name counts, other lines are passed over."""
    pairs = (line.split("=", 1) for line in text.split("\n") if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs if name.strip()}


# The login shell and its tools


def judge_shell(noise: bytes) -> Finding:
    """Judge what stood around the answers of a script: a profile that prints."""
    text = " ".join(noise.decode("utf-8", "replace").split())
    if not text:
        return ok("login shell", "runs commands, prints nothing of its own")
    return warning(
        "login shell",
        f"the login profile prints: {shortly(text)}",
        "This program reads around it. Others (scp, rsync) do not: print only where [ -t 1 ] in ~/.bashrc",
    )


def judge_tools(said: Said) -> Finding:
    """Judge the tools our scripts use; `said` names those that are missing, one a line."""
    missing = said.out.split()
    if missing:
        return failure("tools", f"not on the login node: {', '.join(missing)}", _TOOLS_FROM)
    if said.code:
        return failure("tools", f"they could not be tried: {said.words}", _TOOLS_FROM)
    return ok("tools", "all there")


def judge_sessions(opened: int, wanted: int, refused: str) -> Finding:
    """Judge how many sessions a connection takes: `opened` of `wanted` at once, `refused` says why not."""
    if opened >= wanted:
        return ok("sessions", f"{opened} at once on one connection")
    return warning(
        "sessions",
        f"the server takes {opened} session{'' if opened == 1 else 's'} at once on a connection,"
        f" this program would use {wanted} ({refused})",
        "Commands then wait for each other. Ask for MaxSessions 10 in the server's sshd_config, its default",
    )


def judge_clock(before: float, after: float, said: Said) -> Finding:
    """Judge the login node's clock by ours (UTC epoch s) before and after it was asked.

    No rule of this program compares the two: receipts go by the cluster's clock, deliveries by ours.
    """
    if not re.fullmatch(r"[0-9]{9,11}", said.out.strip()):
        return warning("clock", f"the login node did not tell its time: {said.words}", "Try `date +%s` there")
    there = int(said.out)
    apart = max(0.0, before - 1 - there, there - after - 1)
    if apart <= CLOCK_WARNING:
        return ok("clock", "workstation and login node agree")
    return warning(
        "clock",
        f"workstation and login node differ by {apart:.0f} s",
        "Times in this machine's and the cluster's logs do not fit together: set up NTP where it is wrong",
    )


def shortly(text: str, most: int = 200) -> str:
    """Return a text as one printable line of at most `most` letters."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= most else f"{line[:most]}..."
