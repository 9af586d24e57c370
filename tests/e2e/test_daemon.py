"""The daemon beside a real Slurm cluster: cases found, led home, made good, through kills and by orders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster, wait_until
from tests.support.daemon import DaemonProcess
from tests.support.proxy import Proxy

pytestmark = pytest.mark.cluster

GRID = {"size": [40, 30, 300], "spacing": [4, 5, 1], "position": [-80, -75, -280]}


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    workspace = f"/home/mqi/{tmp_path.name}"
    yield cluster.write_config(
        tmp_path,
        moqui={"grid": GRID},
        paths={"remote_workspace": workspace},
        privacy={"names": True},
        processing={"quiet_seconds": 2, "scan_interval_seconds": 1, "poll_max_seconds": 2},
    )
    cluster.reset()
    cluster.root(f"rm -rf -- {workspace}")


def sample(config: Path, name: str, *options: str) -> Path:
    folder = config.parent / "cases" / name
    made = mqi(config, "sample-case", str(folder), *options)
    assert made.returncode == 0, made.stderr
    return folder


def rows(cluster: Cluster, key: str) -> list[list[str]]:
    """Accounting's rows of a case: id, name, state; array elements each."""
    out = cluster.ssh("sacct -n -P -X -D -o JobID,JobName%60,State -S now-1hour", check=True).stdout
    return [line.split("|") for line in out.splitlines() if f"-{key}-" in line]


def ended_rows(cluster: Cluster, key: str, count: int) -> list[list[str]]:
    """`rows` once at least `count` are there and ended: slurmdbd hears later than the queue."""

    def look() -> list[list[str]]:
        seen = rows(cluster, key)
        return seen if len(seen) >= count and not {"RUNNING", "PENDING"} & {row[2] for row in seen} else []

    return wait_until(look, 90, f"{count} rows of {key} in accounting")


def chains(found: list[list[str]]) -> dict[str, set[str]]:
    """Array or job ids by the end of the job name: j01-beams and the like."""
    result: dict[str, set[str]] = {}
    for job, name, _ in found:
        result.setdefault("-".join(name.split("-")[-2:]), set()).add(job)
    return result


def numbers(folder: Path) -> list[int]:
    """The DICOM beam numbers of a sample case, in order."""
    return sorted(
        int(line.split(",")[1])
        for info in folder.rglob("PlanInfo.txt")
        for line in info.read_text().splitlines()
        if line.startswith("DICOM_BEAM_NUMBER")
    )


def order(config: Path, *words: str) -> dict[str, Any]:
    done = mqi(config, *words, "--json")
    assert done.returncode in (0, 1, 3), done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_twelve_cases_unattended(cluster: Cluster, config: Path) -> None:
    """Ten folders dropped half-copied, three of them invalid, two with a second fraction later."""
    ready = config.parent / "ready"
    cases = config.parent / "cases"
    for n in range(10):
        made = mqi(config, "sample-case", str(ready / f"P{n:03d}"), "--beams", "2", "--layers", "2")
        assert made.returncode == 0, made.stderr
    for n in (7, 8, 9):
        logs = sorted((ready / f"P{n:03d}").rglob("*.ptn"))
        logs[0].unlink()

    with DaemonProcess(config) as daemon:
        for folder in sorted(ready.iterdir()):
            half_copied(folder, cases / folder.name)
        for folder in sorted(ready.iterdir()):
            shutil.copytree(folder, cases / folder.name, dirs_exist_ok=True)
        good = {f"P{n:03d}-f01": "completed" for n in range(7)}
        daemon.until({**good, **{f"P{n:03d}": "rejected" for n in (7, 8, 9)}}, 400)
        for n in (0, 1):
            added = mqi(config, "sample-case", str(cases / f"P{n:03d}"), "--add")
            assert added.returncode == 0, added.stderr
        found = daemon.until({"P000-f02": "completed", "P001-f02": "completed"}, 300)
        code, _ = daemon.stop()
    assert code == 0
    assert len(found) == 12
    assert sum(case["status"] == "completed" for case in found) == 9
    assert sum(case["status"] == "rejected" for case in found) == 3
    assert all(len(case["results"]) == 2 for case in found if case["status"] == "completed")
    said = daemon.said
    for n in (7, 8, 9):
        assert said.count("rejected") >= 3
        assert sum("rejected" in line and f"P{n:03d}" in line for line in said.splitlines()) == 1
    for case in found:
        ran = chains(ended_rows(cluster, case["case_id"], 4)) if case["status"] == "completed" else {}
        assert {name: len(ids) for name, ids in ran.items()} in (
            {},
            {"j01-interpret": 1, "j01-beams": 2, "j01-convert": 1},
        )


def half_copied(source: Path, target: Path) -> None:
    """Copy the first half of a folder's files, and half of one more."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    half = files[: len(files) // 2]
    for path in half:
        there = target / path.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, there)
    last = target / half[-1].relative_to(source)
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])


def test_a_kill_while_beams_run_changes_nothing(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P100", "--beams", "2", "--layers", "2")
    beams = numbers(folder)
    cluster.fault(beams[1], "hang")
    with DaemonProcess(config) as daemon:
        case = daemon.until({"P100-f01": "processing"})[0]
        key = case["case_id"]
        wait_until(lambda: states(cluster, key, 1) == ["RUNNING"], 120, "the second beam running")
        daemon.kill()
    with DaemonProcess(config) as daemon:
        cluster.fault(beams[1], "none")
        daemon.until({"P100-f01": "completed"})
    ran = chains(ended_rows(cluster, key, 4))
    assert {name: len(ids) for name, ids in ran.items()} == {
        "j01-interpret": 1, "j01-beams": 2, "j01-convert": 1,
    }  # fmt: skip


def states(cluster: Cluster, key: str, index: int) -> list[str]:
    out = cluster.ssh("squeue -h -r -o '%j|%K|%T' -u mqi", check=True).stdout
    return [
        line.split("|")[2]
        for line in out.splitlines()
        if f"-{key}-" in line and line.split("|")[1] == str(index)
    ]


@pytest.mark.parametrize("when", ["after", "while the third runs", "daemon down"])
def test_a_failed_beam_is_resubmitted_alone(cluster: Cluster, config: Path, when: str) -> None:
    folder = sample(config, "P200", "--beams", "3", "--layers", "2")
    beams = numbers(folder)
    cluster.fault(beams[1], "exit 7")
    if when == "while the third runs":
        cluster.fault(beams[2], "hang")
    with DaemonProcess(config) as daemon:
        if when == "while the third runs":
            daemon.until({"P200-f01": "processing"})
            wait_until(lambda: verdicts(config)[1:2] == ["failed"], 120, "a failed second beam")
        else:
            daemon.until({"P200-f01": "partial"})
        key = daemon.cases()[0]["case_id"]
        cluster.fault(beams[1], "none")
        if when == "daemon down":
            assert daemon.stop()[0] == 0
            again = order(config, "resubmit", "P200-f01", "--wait")
            assert again["cases"][0]["status"] == "completed"
        else:
            again = order(config, "resubmit", "P200-f01")
            assert "array index 1" in again["notes"][0]
            if when == "while the third runs":
                wait_until(lambda: "j02-convert" in queued(cluster, key), 60, "a new convert")
                cluster.fault(beams[2], "none")
            daemon.until({"P200-f01": "completed"})
    report = shown(config, "P200-f01")
    assert [beam["verdict"] for beam in report["beams"]] == ["done"] * 3
    assert len(report["results"]) == 3
    # A convert that was cancelled while it waited never was eligible: sacct's time range hides it.
    ran = chains(ended_rows(cluster, key, 6 if when == "while the third runs" else 7))
    ran.setdefault("j01-convert", {"0"})
    assert {name: {job.partition("_")[2] for job in ids} for name, ids in ran.items()} == {
        "j01-interpret": {""},
        "j01-beams": {"0", "1", "2"},
        "j01-convert": {""},
        "j02-beams": {"1"},
        "j02-convert": {""},
    }


def verdicts(config: Path) -> list[str]:
    return [beam["status"] for beam in shown(config, "P200-f01")["beams"]]


def queued(cluster: Cluster, key: str) -> set[str]:
    out = cluster.ssh("squeue -h -o %j -u mqi", check=True).stdout
    return {"-".join(line.split("-")[-2:]) for line in out.split() if f"-{key}-" in line}


def test_it_ends_within_ten_seconds_and_a_second_one_is_refused(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P300", "--beams", "1", "--layers", "2")
    cluster.fault(numbers(folder)[0], "hang")
    with DaemonProcess(config) as daemon:
        daemon.until({"P300-f01": "processing"})
        second = mqi(config, "run")
        assert second.returncode == 5
        assert str(daemon.process.pid) in second.stderr
        code, seconds = daemon.stop()
    assert (code, seconds < 10) == (0, True), daemon.said
    os.sync()
    key = mqi(config, "status", "--json").stdout
    assert json.loads(key)["cases"][0]["status"] == "processing"


def test_a_connection_that_freezes_during_an_upload_delays_no_other_case(
    cluster: Cluster, config: Path
) -> None:
    with Proxy(cluster.port) as proxy:
        known = config.parent / "known_hosts"
        host_key = cluster.known_hosts.read_text().split(" ", 1)[1]
        known.write_text(f"[127.0.0.1]:{proxy.port} {host_key}")
        behind = cluster.write_config(
            config.parent,
            moqui={"grid": GRID},
            paths={"remote_workspace": f"/home/mqi/{config.parent.name}"},
            privacy={"names": True},
            processing={"quiet_seconds": 2, "scan_interval_seconds": 1, "poll_max_seconds": 2},
            ssh={"port": proxy.port, "known_hosts": str(known), "command_timeout_seconds": 60},
        )
        with DaemonProcess(behind) as daemon:
            # The first connection was opened for the first upload; polls have another.
            sample(behind, "P400", "--beams", "1", "--layers", "2")
            daemon.until({"P400-f01": "completed"})
            assert len(proxy.pipes) == 2
            proxy.pipes[0].freeze()
            sample(behind, "P401", "--beams", "1", "--layers", "2")
            daemon.until({"P401-f01": "processing"})
            wait_until(lambda: "P401-f01: uploading" in daemon.said, 60, "an upload that hangs")
            sample(behind, "P402", "--beams", "1", "--layers", "2")
            found = daemon.until({"P402-f01": "completed"}, 180)
            assert {c["label"]: c["status"] for c in found}["P401-f01"] == "processing"
            proxy.pipes[0].thaw()
            daemon.until({"P401-f01": "completed"})
            assert "does not answer" not in daemon.said
