"""Exactly once on a real Slurm, whatever dies, lies, freezes or comes back: by sacct and by the files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.controllers.failpoint import VARIABLE
from mqi_hpc.core.failpoints import Failpoint
from tests.support.cli import mqi
from tests.support.cluster import Cluster, wait_until
from tests.support.daemon import DaemonProcess
from tests.support.misfortunes import Misfortunes

pytestmark = pytest.mark.cluster

GRID = {"size": [20, 15, 100], "spacing": [8, 10, 3], "position": [-80, -75, -280]}
STAGES = ("interpret", "beams", "convert")
FENCED = ("78:0", "79:0")


@dataclass
class Site:
    """An installation of its own on the cluster."""

    cluster: Cluster
    config: Path
    workspace: str

    def drop(self, *names: str) -> None:
        """Put sample cases of two small beams into the scan root, ready."""

        def make(name: str) -> None:
            folder = self.config.parent / "cases" / name
            made = mqi(self.config, "sample-case", str(folder), "--beams", "2", "--layers", "2")
            assert made.returncode == 0, made.stderr

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(make, names))

    def daemon(self, failpoint: Failpoint | None = None) -> DaemonProcess:
        return DaemonProcess(self.config, {VARIABLE: failpoint} if failpoint else {})

    def dies(self, failpoint: Failpoint) -> None:
        """Run the daemon to a failpoint."""
        with self.daemon(failpoint) as daemon:
            wait_until(lambda: daemon.process.poll() is not None, 240, f"death at {failpoint}")
            assert daemon.process.returncode == -signal.SIGKILL, daemon.said

    def folder(self, key: str, job: str = "j01") -> str:
        return f"{self.workspace}/{key}/{job}"


def make_site(cluster: Cluster, home: Path, **changes: Any) -> Site:
    home.mkdir(exist_ok=True)
    workspace = f"/home/mqi/{home.name}-{os.getpid()}"
    quick = {
        "quiet_seconds": 1,
        "scan_interval_seconds": 1,
        "poll_max_seconds": 2,
        "submit_timeout_seconds": 12,
        "t_lag_seconds": 8,
        "t_settle_seconds": 8,
    }
    settings = {"moqui": {"grid": GRID}, "paths": {"remote_workspace": workspace}, "privacy": {"names": True}}
    # No budget of GPUs: the cases are not to wait for each other.
    resources = {"gpu_count": None, "max_concurrent_jobs": 30}
    config = cluster.write_config(
        home, **settings, **{"processing": quick, "resources": resources, **changes}
    )
    return Site(cluster, config, workspace)


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Iterator[Site]:
    made = make_site(cluster, tmp_path)
    yield made
    cluster.reset()
    cluster.root(f"rm -rf -- {made.workspace}")


# What Slurm and the files tell


def rows(cluster: Cluster, keys: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """(id, name, state, exit code) of every job that Slurm ever took of these cases, duplicates too."""
    queue = cluster.ssh("squeue -h -t all -u mqi -o '%F|%j'", check=True).stdout.splitlines()
    ids = sorted({line.split("|")[0] for line in queue if any(f"-{key}-" in line for key in keys)})
    fields = "-n -P -X -D -o JobID,JobName%80,State,ExitCode"
    by_time = cluster.ssh(f"sacct {fields} -S now-2hours", check=True).stdout.splitlines()
    by_id = cluster.ssh(f"sacct {fields} -j {','.join(ids)}", check=True).stdout.splitlines() if ids else []
    found = {tuple(line.split("|")) for line in (*by_time, *by_id)}
    return sorted(row for row in found if any(f"-{key}-" in row[1] for key in keys))  # type: ignore[misc]


def live(cluster: Cluster) -> list[str]:
    return cluster.ssh("squeue -h -u mqi -o '%i %j %T %r'", check=True).stdout.splitlines()


def receipts(site: Site, key: str, job: str = "j01") -> dict[str, str]:
    out = site.cluster.ssh(f"cd {site.folder(key, job)} && cat receipt.*", check=True).stdout
    return {line.split()[0].rsplit("-", 1)[1]: line.split()[1] for line in out.splitlines()}


def ran_once(site: Site, keys: Sequence[str], job: str = "j01") -> int:
    """Of each stage exactly the submission that its receipt names took effect; the rest touched nothing.

    Returns how many more there were.
    """
    extras = set()
    wait_until(lambda: not live(site.cluster), 90, "an empty queue")

    def settled() -> list[tuple[str, str, str, str]]:
        seen = rows(site.cluster, keys)
        return [] if {"RUNNING", "PENDING"} & {row[2] for row in seen} else seen

    seen = wait_until(settled, 90, "all rows in accounting")
    for key in keys:
        own = receipts(site, key, job)
        assert set(own) == set(STAGES)
        for stage in STAGES:
            mine = [row for row in seen if row[1].endswith(f"-{key}-{job}-{stage}")]
            effective = [row[0] for row in mine if row[2] == "COMPLETED"]
            wanted = [f"{own[stage]}_{n}" for n in (0, 1)] if stage == "beams" else [own[stage]]
            assert sorted(effective) == wanted, (key, stage, mine)
            for row in mine:
                if row[0].split("_")[0] != own[stage]:
                    extras.add(row[0].split("_")[0])
                    assert row[2].startswith("CANCELLED") or row[3] in FENCED, row
        untouched(site, key, own, job)
    return len(extras)


def untouched(site: Site, key: str, own: dict[str, str], job: str) -> None:
    """Every claim is of the receipt's job, and there is one output folder a task."""
    folder = site.folder(key, job)
    claims = site.cluster.ssh(f"cd {folder} && grep -H . claim.*", check=True).stdout.splitlines()
    holders = {line.split(":")[0]: line.split(":")[1].split()[0] for line in claims}
    assert holders == {
        "claim.interpret-0": own["interpret"],
        "claim.beams-0": own["beams"],
        "claim.beams-1": own["beams"],
        "claim.convert-0": own["convert"],
    }
    find = "find interpreted results dose/beam_* -mindepth 1 -maxdepth 1 -type d | sort"
    outputs = site.cluster.ssh(f"cd {folder} && {find}", check=True).stdout.split()
    assert len(outputs) == 4, outputs


def keys_of(cases: list[dict[str, Any]]) -> dict[str, str]:
    return {case["label"].removesuffix("-f01"): case["case_id"] for case in cases}


# A submit.sh to which everything happens

LIES = [
    *(f"{kind} {stage}" for stage in STAGES for kind in ("timed-out", "die-after", "twice")),
    "die-before interpret", "die-before convert",
    "deaf release", "die-before release", "die-after release",
]  # fmt: skip


def test_lies_and_deaths_of_a_submission(site: Site) -> None:
    names = [f"L{n:02d}" for n in range(len(LIES))]
    site.drop(*names)
    with Misfortunes(site.cluster, LIES) as misfortunes, site.daemon() as daemon:
        cases = daemon.until({f"{name}-f01": "completed" for name in names}, 400)
        spent = misfortunes.spent()
    assert sorted(spent.values()) == sorted(LIES)
    # Of the six that were submitted and not told, and of those that raced, some in vain.
    assert ran_once(site, list(keys_of(cases).values())) >= 6


# The daemon dies

CANCELS = (Failpoint.CANCEL, Failpoint.CANCEL_KEPT, Failpoint.CANCEL_ANSWERED)
DOUBTS = (Failpoint.FOUND, Failpoint.FOUND_KEPT, Failpoint.AGAIN, Failpoint.AGAIN_KEPT)
USUAL = [point for point in Failpoint if point not in (*CANCELS, *DOUBTS)]
SHORT = [
    Failpoint.SUBMIT_KEPT, Failpoint.SUBMIT_SENT, Failpoint.SUBMIT_ANSWERED, Failpoint.STANDING_KEPT,
    Failpoint.VERDICT, Failpoint.DOWNLOAD_DONE,
]  # fmt: skip


@pytest.mark.parametrize("points", [SHORT, pytest.param(USUAL, marks=pytest.mark.slow)], ids=["short", "all"])
def test_the_daemon_is_killed_at_each_failpoint(site: Site, points: list[Failpoint]) -> None:
    """A case for each: the daemon dies at the point, and one that dies at the next goes on."""
    for n, point in enumerate(points):
        site.drop(f"K{n:02d}")
        site.dies(point)
    with site.daemon() as daemon:
        cases = daemon.until({f"K{n:02d}-f01": "completed" for n in range(len(points))}, 400)
    ran_once(site, list(keys_of(cases).values()))
