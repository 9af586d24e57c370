"""The health file: the daemon's word about itself, and what it is worth to whoever reads it later."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from mqi_hpc import __version__
from mqi_hpc.core.monitoring import Finding, Health, HealthStatus
from mqi_hpc.infrastructure.monitoring.replaced import replace_file

_MODE = 0o600
_MISSED = 3
"""So many intervals without a new word: the daemon is dead or hangs."""
_CAP = 1024 * 1024
_PIDS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """What a health file is worth now.

    `status`: ok, warning, failing or stopped as the daemon said; stale: said too long ago; dead: its process
    is gone; missing: there is no file; unreadable. `why` says it in words, `cure` what to do. `age` in s.
    """

    status: str
    why: str
    cure: str = ""
    age: float | None = None
    pid: int | None = None
    version: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the daemon lives and finds nothing wrong."""
        return self.status == HealthStatus.OK


def health_text(health: Health, pid: int) -> bytes:
    """Return a health file's text."""
    told = {
        "status": str(health.status),
        "time": health.time,
        "time_utc": datetime.fromtimestamp(health.time, UTC).isoformat(timespec="seconds"),
        "interval_seconds": health.interval,
        "next_write_expected": health.time + health.interval,
        "pid": pid,
        "version": __version__,
        "findings": [{"status": str(f.status), "what": f.what, "cure": f.cure} for f in health.findings],
    }
    return (json.dumps(told, indent=2) + "\n").encode()


def write_health(path: Path, health: Health) -> None:
    """Replace the health file as a whole, for this user alone; raises OSError."""
    replace_file(path, health_text(health, os.getpid()), _MODE)


def read_health(path: Path, now: float) -> HealthReport:
    """Return what the health file is worth at `now` (UTC epoch s); never raises for what it finds."""
    try:
        with path.open("rb") as file:
            raw = json.loads(file.read(_CAP))
        health, pid, version = _health(raw), _pid(raw), str(raw["version"])
    except FileNotFoundError:
        return HealthReport(
            status="missing", why=f"{path} is not there: the daemon never ran here", cure="Start mqi-hpc run"
        )
    except OSError as error:
        return HealthReport(
            status="unreadable",
            why=f"{path}: {error.strerror}",
            cure="Look as the user that runs mqi-hpc",
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return HealthReport(
            status="unreadable",
            why=f"{path} is no health file",
            cure="Is monitoring.health_file right? The daemon replaces it at its next check",
        )
    return _judged(health, pid, version, now)


def _judged(health: Health, pid: int, version: str, now: float) -> HealthReport:
    age = now - health.time
    status, why, cure = str(health.status), f"said {age:.0f} s ago", ""
    if health.status is HealthStatus.STOPPED:
        why, cure = f"it ended as it was asked to, {age:.0f} s ago", "Start mqi-hpc run"
    elif not psutil.pid_exists(pid):
        status, why = "dead", f"its process {pid} is gone; it last spoke {age:.0f} s ago"
        cure = "Start mqi-hpc run; its log tells why it ended"
    elif age > _MISSED * health.interval:
        status, why = "stale", f"silent for {age:.0f} s, though it should speak every {health.interval:.0f} s"
        cure = "It hangs or another process has its number: see its log, then restart it"
    elif age < -_MISSED * health.interval:
        status, why = "stale", f"its word is {-age:.0f} s in the future: the clock was set back"
        cure = "Check the clock of this machine"
    return HealthReport(
        status=status, why=why, cure=cure, age=age, pid=pid, version=version, findings=health.findings
    )


def _pid(raw: Any) -> int:
    pid = int(raw["pid"])
    if not 0 < pid < _PIDS:
        raise ValueError("no process")
    return pid


def _health(raw: Any) -> Health:
    """Return what a file says; raises ValueError, TypeError or KeyError where it is none of ours."""
    findings = tuple(
        Finding(status=HealthStatus(each["status"]), what=str(each["what"]), cure=str(each["cure"]))
        for each in raw["findings"]
    )
    time, interval = float(raw["time"]), float(raw["interval_seconds"])
    if not (0 <= time < 1e12 and 0 < interval < 1e9):
        raise ValueError("no time")
    return Health(status=HealthStatus(raw["status"]), time=time, interval=interval, findings=findings)
