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
from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster, wait_until
from tests.support.daemon import DaemonProcess
from tests.support.misfortunes import Misfortunes
from tests.support.proxy import Proxy

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
    for partition in ("cpu", "gpu"):
        cluster.root(f"scontrol update partitionname={partition} state=up")
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
SHORT = [Failpoint.SUBMIT_SENT, Failpoint.SUBMIT_ANSWERED, Failpoint.VERDICT]


@pytest.mark.parametrize("points", [SHORT, pytest.param(USUAL, marks=pytest.mark.slow)], ids=["short", "all"])
def test_the_daemon_is_killed_at_each_failpoint(site: Site, points: list[Failpoint]) -> None:
    """A case for each: the daemon dies at the point, and one that dies at the next goes on."""
    for n, point in enumerate(points):
        site.drop(f"K{n:02d}")
        site.dies(point)
    with site.daemon() as daemon:
        cases = daemon.until({f"K{n:02d}-f01": "completed" for n in range(len(points))}, 400)
    ran_once(site, list(keys_of(cases).values()))


@pytest.mark.slow
def test_the_daemon_is_killed_in_doubt(site: Site) -> None:
    """A whole chain of which nobody was told, and one that was never sent: found, and sent again."""
    site.drop("F0")
    for point in (Failpoint.SUBMIT_ANSWERED, Failpoint.FOUND, Failpoint.FOUND_KEPT):
        site.dies(point)
    site.drop("F1")
    for point in (Failpoint.SUBMIT_KEPT, Failpoint.AGAIN, Failpoint.AGAIN_KEPT, Failpoint.SUBMIT_KEPT):
        site.dies(point)
    with site.daemon() as daemon:
        cases = daemon.until({"F0-f01": "completed", "F1-f01": "completed"}, 300)
    ran_once(site, list(keys_of(cases).values()))


@pytest.mark.slow
@pytest.mark.parametrize("point", CANCELS)
def test_the_daemon_is_killed_while_it_cancels(site: Site, point: Failpoint) -> None:
    site.cluster.root("scontrol update partitionname=gpu state=down")
    site.drop("G0")
    with site.daemon(point) as daemon:
        wait_until(lambda: len(live(site.cluster)) == 3, 120, "a chain")
        wait_until(lambda: shown(site.config, "G0-f01")["submission"] == "standing", 60, "a standing chain")
        key = daemon.cases()[0]["case_id"]
        done = mqi(site.config, "cancel", "G0-f01")
        assert done.returncode in (0, 1), done.stderr
        wait_until(lambda: daemon.process.poll() is not None, 120, f"death at {point}")
        assert daemon.process.returncode == -signal.SIGKILL
    with site.daemon() as daemon:
        daemon.until({"G0-f01": "cancelled"})
        wait_until(lambda: not live(site.cluster), 60, "an empty queue")
    site.cluster.root("scontrol update partitionname=gpu state=up")
    assert not [row for row in rows(site.cluster, [key]) if "-beams" in row[1] and row[2] == "COMPLETED"]


# The link breaks


def behind(site: Site, proxy: Proxy) -> None:
    """Let the daemon reach the cluster through a proxy alone."""
    known = site.config.parent / "known_hosts"
    known.write_text(f"[127.0.0.1]:{proxy.port} {site.cluster.known_hosts.read_text().split(' ', 1)[1]}")
    text = site.config.read_text()
    for old, new in (
        (f"port: {site.cluster.port}", f"port: {proxy.port}"),
        (str(site.cluster.known_hosts), str(known)),
    ):
        assert old in text
        text = text.replace(old, new)
    site.config.write_text(text)


@pytest.mark.slow
def test_the_link_breaks_before_during_and_after_a_submission(site: Site) -> None:
    # Kept for the last look at it: a whole chain, released, of which nobody was told.
    standing = "squeue -h -u mqi -t all -o '%j %r' | grep -e -interpret | grep -v JobHeld"
    with (
        Proxy(site.cluster.port) as proxy,
        Misfortunes(site.cluster, ["none x", "wait beams", "wait interpret"]) as m,
    ):
        behind(site, proxy)
        site.drop("B1")
        site.dies(Failpoint.UPLOAD_KEPT)
        proxy.refusing = True
        with site.daemon() as daemon:
            wait_until(lambda: "does not answer" in daemon.said, 60, "an outage before it is sent")
            assert rows(site.cluster, [case["case_id"] for case in daemon.cases()]) == []
            proxy.refusing = False
            daemon.until({"B1-f01": "completed"})
            # During: it is cut while the second sbatch has submitted and not told.
            site.drop("B2")
            wait_until(m.waiting, 60, "an sbatch that waits")
            proxy.cut()
            m.let_go()
            daemon.until({"B2-f01": "completed"})
        site.cluster.root("rm /var/tmp/misfortunes/go /var/tmp/misfortunes/waits.*")
        with site.daemon() as daemon:
            # After: all is submitted and released while nothing gets through, then it is cut.
            site.drop("B3")
            (chain,) = wait_until(m.waiting, 60, "an sbatch that waits")
            for pipe in proxy.pipes:
                pipe.freeze()
            m.let_go()
            look = f"{standing} | grep -q {chain}-"
            wait_until(lambda: site.cluster.ssh(look).returncode == 0, 60, "a released chain")
            proxy.cut()
            cases = daemon.until({"B3-f01": "completed"})
    ran_once(site, list(keys_of(cases).values()))


# A host freezes and thaws when all is over


@pytest.mark.slow
def test_a_host_that_freezes_and_thaws_after_the_end(site: Site) -> None:
    names = [f"Z-{stage}" for stage in STAGES]
    with Misfortunes(site.cluster, [f"freeze {stage}" for stage in STAGES]) as misfortunes:
        for name in names:
            # It froze with the daemon on it: another goes on.
            site.drop(name)
            with site.daemon() as daemon:
                count = names.index(name) + 1
                wait_until(lambda: len(misfortunes.frozen()) == count, 120, "a frozen run")  # noqa: B023
                daemon.kill()
        with site.daemon() as daemon:
            cases = daemon.until({f"{name}-f01": "completed" for name in names})
            for chain in misfortunes.frozen():
                misfortunes.thaw(chain)
            again = daemon.cases()
    assert [case["status"] for case in again] == ["completed"] * 3
    assert ran_once(site, list(keys_of(cases).values())) == 3


# Somebody cancels


@pytest.mark.slow
def test_an_admin_who_cancels_is_obeyed(site: Site) -> None:
    """The held head of a chain in doubt, a waiting array, and a waiting convert: no next job by itself."""
    site.cluster.root("scontrol update partitionname=cpu state=down")
    site.drop("A-head", "A-array", "A-convert")
    with Misfortunes(site.cluster, ["cancelled beams"]) as misfortunes, site.daemon() as daemon:
        labels = ["A-head-f01", "A-array-f01", "A-convert-f01"]
        wait_until(lambda: len(live(site.cluster)) >= 6, 120, "two chains that wait")
        wait_until(misfortunes.spent, 60, "a head that was cancelled")
        doubtful = next(iter(misfortunes.spent())).split("-")[-2]
        keys = keys_of(daemon.cases())
        standing = [key for key in keys.values() if key != doubtful]
        wait_until(lambda: len(submitted(site, standing)) == 6, 60, "two whole chains")
        for key, stage in zip(standing, ("beams", "convert"), strict=True):
            site.cluster.root(f"scancel {receipts(site, key)[stage]}")
        site.cluster.root("scontrol update partitionname=cpu state=up")
        daemon.until(dict.fromkeys(labels, "failed") | by_label(daemon, standing[1], "partial"), 300)
        wait_until(lambda: not live(site.cluster), 60, "an empty queue")
        assert all(shown(site.config, label)["job"] == "j01" for label in labels)
    head = shown(site.config, doubtful)
    assert (head["submission"], "somebody cancelled it" in head["refusal"]) == ("refused", True)
    seen = rows(site.cluster, list(keys.values()))
    assert {row[1].rsplit("-", 1)[1] for row in seen if doubtful in row[1] and row[2] == "COMPLETED"} == set()
    assert not [row for row in seen if "-j02-" in row[1]]


def by_label(daemon: DaemonProcess, key: str, status: str) -> dict[str, str]:
    return {case["label"]: status for case in daemon.cases() if case["case_id"] == key}


def submitted(site: Site, keys: Sequence[str]) -> set[str]:
    return {row[1] for row in rows(site.cluster, keys)}


# Receipts that are none


@pytest.mark.slow
def test_a_receipt_half_published_burns_the_job(site: Site) -> None:
    kinds = ["empty beams", "damaged convert"]
    site.drop("R0", "R1")
    with Misfortunes(site.cluster, kinds), site.daemon() as daemon:
        keys = goes_on_in_the_next_job(site, daemon, ["R0-f01", "R1-f01"])
    seen = rows(site.cluster, keys)
    assert not [row for row in seen if "-j01-" in row[1] and row[2] == "COMPLETED"]
    ran_once(site, keys, "j02")


def goes_on_in_the_next_job(site: Site, daemon: DaemonProcess, labels: list[str]) -> list[str]:
    """Wait until j01 of each is burnt and j02 has done the work, by itself or because a person asks."""

    def known() -> bool:
        return {case["label"] for case in daemon.cases()} >= set(labels)

    def burnt(label: str) -> bool:
        report = shown(site.config, label)
        return report["job"] == "j02" or report["submission"] == "burnt"

    wait_until(known, 60, f"cases {labels}")
    for label in labels:
        wait_until(lambda: burnt(label), 300, f"a burnt job of {label}")  # noqa: B023
        if shown(site.config, label)["job"] == "j01":
            done = mqi(site.config, "resubmit", label)
            # Refused where it went on by itself meanwhile.
            assert done.returncode == 0 or shown(site.config, label)["job"] == "j02", done.stderr
    cases = daemon.until(dict.fromkeys(labels, "completed"))
    return [case["case_id"] for case in cases if case["label"] in labels]


# Slurm's own daemons


@pytest.mark.slow
def test_accounting_is_silent_throughout(site: Site) -> None:
    site.cluster.ctl("pause", "slurmdbd")
    site.drop("D1")
    with site.daemon() as daemon:
        daemon.until({"D1-f01": "completed"})
        before = shown(site.config, "D1-f01")
        site.cluster.ctl("resume", "slurmdbd")
        (case,) = daemon.cases()
        ran_once(site, [case["case_id"]])
        assert shown(site.config, "D1-f01") == before


class OlderState:
    """slurmctld's state as it was, to be put back."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        # Saved within seconds of a change; a clean stop would save it too, and close connections.
        cluster.ctl("stop", "slurmctld")
        cluster.root("rm -rf /var/tmp/state && cp -a /var/lib/slurm/ctld /var/tmp/state")
        cluster.ctl("start", "slurmctld")

    def comes_back(self) -> None:
        """Kill slurmctld before it saves, and start it on this state."""
        self._cluster.ctl("kill", "slurmctld")
        self._cluster.root("rm -rf /var/lib/slurm/ctld && cp -a /var/tmp/state /var/lib/slurm/ctld")
        self._cluster.ctl("start", "slurmctld")


def test_a_controller_that_comes_back_runs_finished_work_again(site: Site) -> None:
    """Verdicts are kept, the fence ends every second start, and another case takes ids that were lost."""
    site.cluster.root("scontrol update partitionname=cpu state=down")
    site.drop("C1")
    with site.daemon() as daemon:
        wait_until(lambda: len(live(site.cluster)) >= 3, 120, "a chain that waits")
        wait_until(lambda: shown(site.config, "C1-f01")["submission"] == "standing", 60, "a standing chain")
        older = OlderState(site.cluster)
        site.cluster.root("scontrol update partitionname=cpu state=up")
        daemon.until({"C1-f01": "completed"})
        before = shown(site.config, "C1-f01")
        key = daemon.cases()[0]["case_id"]
        look = f"cd {site.folder(key)} && find . -type f ! -path './logs/*' -exec sha256sum {{}} + | sort"
        files = site.cluster.ssh(look, check=True).stdout
        older.comes_back()
        site.cluster.root("scontrol update partitionname=cpu state=up")
        assert [line for line in live(site.cluster) if key in line]
        site.drop("C2")
        daemon.until({"C2-f01": "completed"})
        wait_until(lambda: not live(site.cluster), 120, "an empty queue")
        assert shown(site.config, "C1-f01") == before
    assert site.cluster.ssh(look, check=True).stdout == files
    untouched(site, key, receipts(site, key), "j01")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["interpret", "beams"])
def test_a_controller_that_lost_what_it_had_accepted(site: Site, stage: str) -> None:
    """Its ids are handed out again, to another case; the job is burnt, and the next one does the work."""
    with Misfortunes(site.cluster, [f"wait {stage}"]) as misfortunes:
        older = OlderState(site.cluster)
        site.drop("E1")
        with site.daemon() as daemon:
            wait_until(misfortunes.waiting, 120, "an sbatch that waits")
            older.comes_back()
            misfortunes.let_go()
            site.drop("E2")
            daemon.until({"E2-f01": "completed"})
            keys = goes_on_in_the_next_job(site, daemon, ["E1-f01"])
            other = next(c["case_id"] for c in daemon.cases() if c["label"] == "E2-f01")
    ran_once(site, keys, "j02")
    ran_once(site, [other])
    lost, taken = (set(receipts(site, key).values()) for key in (keys[0], other))
    assert lost & taken, (lost, taken)
