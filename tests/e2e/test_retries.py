"""A node goes down under a running beam of a real cluster: that beam alone is computed again, elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mqi_hpc.core.left_out import NO_NODE_TEXTS
from mqi_hpc.core.sbatch_errors import ErrorKind, classify
from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster, wait_until
from tests.support.daemon import DaemonProcess

pytestmark = pytest.mark.cluster

GRID = {"size": [40, 30, 300], "spacing": [4, 5, 1], "position": [-80, -75, -280]}
PAUSE = 20.0
PATIENCE = 240.0


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    workspace = f"/home/mqi/{tmp_path.name}"
    rule = {"pauses_seconds": [PAUSE]}
    yield cluster.write_config(
        tmp_path,
        moqui={"grid": GRID},
        paths={"remote_workspace": workspace},
        processing={
            "quiet_seconds": 2,
            "scan_interval_seconds": 1,
            "poll_max_seconds": 2,
            "retries": {"node_fail": rule, "gpu_check": rule, "preempted": rule},
        },
    )
    cluster.reset()
    cluster.root(f"rm -rf -- {workspace}")


def sample(config: Path, beams: int) -> Path:
    folder = config.parent / "cases" / "P001"
    made = mqi(config, "sample-case", str(folder), "--beams", str(beams), "--layers", "2")
    assert made.returncode == 0, made.stderr
    return folder


def number_of(folder: Path, at: int) -> int:
    """The DICOM number of a sample case's beam by its array index."""
    found = sorted(
        int(line.split(",")[1])
        for info in folder.rglob("PlanInfo.txt")
        for line in info.read_text().splitlines()
        if line.startswith("DICOM_BEAM_NUMBER")
    )
    return found[at]


def accounted(cluster: Cluster, key: str) -> dict[str, list[tuple[str, str]]]:
    """Accounting's states and nodes, by the end of the job name: j02-beams and the like."""
    out = cluster.ssh(
        "sacct -n -P -X -D -o JobID,JobName%60,State,NodeList,Start,End -S now-1hour", check=True
    ).stdout
    found: dict[str, list[tuple[str, str]]] = {}
    for line in out.splitlines():
        _, name, state, node, *_ = line.split("|")
        if f"-{key}-" in name:
            found.setdefault("-".join(name.split("-")[-2:]), []).append((state, node))
    return found


def running_on(config: Path, folder: Path, at: int) -> str:
    """The node of a beam that runs, "" while it does not."""
    beam = shown(config, str(folder))["beams"][at]
    return str(beam["node"]) if beam["verdict"] == "running" else ""


def others_ended(config: Path, folder: Path, at: int) -> bool:
    beams: list[dict[str, Any]] = shown(config, str(folder))["beams"]
    return all(beam["status"] == "completed" for beam in beams if beam["index"] != at)


def ended(cluster: Cluster, key: str, last: str) -> dict[str, list[tuple[str, str]]]:
    """`accounted` once the last of the submissions has ended there: slurmdbd hears later than the queue."""

    def look() -> dict[str, list[tuple[str, str]]]:
        found = accounted(cluster, key)
        return found if [state for state, _ in found.get(last, [])] == ["COMPLETED"] else {}

    return wait_until(look, PATIENCE, f"{last} has ended in accounting")


def test_a_beam_whose_node_goes_down_is_computed_again_without_that_node(
    cluster: Cluster, config: Path
) -> None:
    folder = sample(config, 3)
    cluster.fault(number_of(folder, 1), "hang")
    with DaemonProcess(config) as daemon:
        daemon.until({"P001-f01": "processing"})
        node = wait_until(lambda: running_on(config, folder, 1), PATIENCE, "the beam that hangs runs")
        wait_until(lambda: others_ended(config, folder, 1), PATIENCE, "the others are done")
        cluster.fault(number_of(folder, 1), "none")
        cluster.root(f"scontrol update nodename={node} state=down reason=test")

        def told() -> list[dict[str, Any]]:
            return [one for one in shown(config, str(folder))["next"] if one["at"]]

        (promise,) = wait_until(told, PATIENCE, "the retry is said before it happens")
        assert (promise["cause"], promise["attempt"], promise["without"]) == ("node_fail", 1, [node])
        # Whether it comes does not hang on the process that said so.
        daemon.kill()
    report = shown(config, str(folder))
    assert (report["status"], report["job"]) == ("processing", "j01")
    assert f"next: {promise['text']}" in mqi(config, "show", str(folder)).stdout
    assert f"by itself: {promise['text']}" in mqi(config, "resubmit", str(folder), "--plan").stdout
    assert f"new beams keep away from {node} until" in mqi(config, "gpus").stdout
    cluster.root(f"scontrol update nodename={node} state=resume")
    with DaemonProcess(config) as daemon:
        daemon.until({"P001-f01": "completed"})
    report = shown(config, str(folder))
    assert report["job"] == "j02"
    assert [beam["verdict"] for beam in report["beams"]] == ["done"] * 3
    assert len(report["results"]) == 3
    rows = ended(cluster, report["case_id"], "j02-convert")
    assert sorted(state for state, _ in rows["j01-beams"]) == ["COMPLETED", "COMPLETED", "NODE_FAIL"]
    ((state, elsewhere),) = rows["j02-beams"]
    assert (state, elsewhere != node) == ("COMPLETED", True)
    assert sorted(rows) == ["j01-beams", "j01-convert", "j01-interpret", "j02-beams", "j02-convert"]
    script = f"/home/mqi/{config.parent.name}/{report['case_id']}/j02/submit.sh"
    assert f"--exclude={node}" in cluster.ssh(f"cat {script}", check=True).stdout


def test_a_node_without_a_gpu_that_works_is_left_and_submit_waits_for_it(
    cluster: Cluster, config: Path
) -> None:
    broken = 'if [ "$SLURMD_NODENAME" = g1 ]; then export CUDA_VISIBLE_DEVICES=; fi'
    settings = yaml.safe_load(config.read_text())
    settings["slurm"]["prologue"] = broken
    config.write_text(yaml.safe_dump(settings))
    folder = sample(config, 2)
    done = mqi(config, "submit", str(folder), "--wait", timeout=PATIENCE)
    assert done.returncode == 0, done.stderr + done.stdout
    report = shown(config, str(folder))
    assert (report["status"], report["job"]) == ("completed", "j02")
    rows = ended(cluster, report["case_id"], "j02-convert")
    assert {state for state, _ in rows["j01-beams"]} == {"FAILED"}
    assert rows["j02-beams"] == [("COMPLETED", "g2")] * 2
    assert "because GPU check failed, without g1" in done.stderr


@pytest.mark.parametrize("names", ["g1,g2", "g1,never"])
def test_where_no_node_is_left_this_slurm_says_so_in_the_words_we_know(cluster: Cluster, names: str) -> None:
    # As in a chain: an array that waits for another job, which is held.
    head = cluster.sbatch("true", "--partition=cpu", "--account=mqi", "--hold")
    options = f"--partition=gpu --account=mqi --gres=gpu:1 --array=0-1 --dependency=afterok:{head}"
    said = cluster.ssh(f"sbatch --parsable {options} --exclude={names} --wrap=true")
    cluster.root(f"scancel {head}")
    error = classify(said.stderr.splitlines(), said.returncode)
    assert (said.returncode != 0, error.kind) == (True, ErrorKind.PERMANENT), said
    assert any(text in error.text.lower() for text in NO_NODE_TEXTS)
