"""`prune` as a user has it: told first, then done, on both sides of a real cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

GRID = {"size": [20, 20, 100], "spacing": [8, 8, 3], "position": [-80, -80, -280]}
AT_ONCE = {"remote_completed_days": 1e-9, "local_results_days": 1e-9}


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    workspace = f"/home/mqi/{tmp_path.name}"
    yield cluster.write_config(
        tmp_path, moqui={"grid": GRID}, paths={"remote_workspace": workspace}, retention=AT_ONCE
    )
    cluster.reset()
    cluster.root(f"rm -rf -- {workspace}")


def test_a_case_is_told_then_pruned_then_refused(cluster: Cluster, config: Path) -> None:
    folder, workspace = config.parent / "cases" / "P001", f"/home/mqi/{config.parent.name}"
    assert mqi(config, "sample-case", str(folder), "--beams", "2", "--layers", "3").returncode == 0
    submitted = mqi(config, "submit", str(folder), "--wait")
    assert submitted.returncode == 0, submitted.stderr
    report = shown(config, "P001-f01")
    key, annotated, plain = report["case_id"], *map(Path, report["results"])
    annotated.write_bytes(annotated.read_bytes()[:-1] + b"\1")

    told = mqi(config, "prune", "--json")
    (case,) = json.loads(told.stdout)["cases"]
    assert (case["remote"]["would_go"], case["local"]["would_go"]) == (True, True)
    assert [file["fate"] for file in case["local"]["files"]] == ["left", "removed"]
    assert "Nothing was removed" in mqi(config, "prune").stdout
    assert key in cluster.ssh(f"ls {workspace}").stdout
    assert plain.exists()

    # Slurm knows the case's jobs for minutes after they ended; a live one holds it back.
    job = cluster.sbatch("sleep 600", "--hold", f"--job-name=mqi-{report['instance']}-{key}-j09-beams")
    kept = mqi(config, "prune", "P001-f01", "--remote", "--yes")
    assert (kept.returncode, "Slurm shows mqi-" in kept.stdout) == (1, True), kept.stdout + kept.stderr
    cluster.ssh(f"scancel {job}", check=True)

    gone = mqi(config, "prune", "--yes", "--json")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    outcomes = {one["side"]: one for one in json.loads(gone.stdout)["outcomes"]}
    assert outcomes["remote"]["bytes"] > 100_000
    assert cluster.ssh(f"ls -A {workspace}").stdout == ".owner\n"
    assert (annotated.exists(), plain.exists()) == (True, False)

    assert shown(config, "P001-f01")["status"] == "completed"
    for command in ("resubmit", "fetch"):
        refused = mqi(config, command, "P001-f01")
        assert (refused.returncode, "was pruned on" in refused.stderr) == (1, True), refused.stderr
    assert "Nothing may go" in mqi(config, "prune", "--yes").stdout


def test_a_cluster_that_is_away_leaves_the_case_as_it_is(cluster: Cluster, config: Path) -> None:
    folder = config.parent / "cases" / "P001"
    assert mqi(config, "sample-case", str(folder), "--beams", "1", "--layers", "3").returncode == 0
    assert mqi(config, "submit", str(folder), "--wait").returncode == 0
    cluster.ctl("stop", "sshd")
    try:
        away = mqi(config, "prune", "--remote", "--yes")
        assert (away.returncode, "nothing removed" in away.stdout) == (4, True), away.stdout + away.stderr
    finally:
        cluster.ctl("start", "sshd")
    assert mqi(config, "fetch", "P001-f01").returncode == 0
    assert mqi(config, "prune", "--remote", "--yes").returncode == 0
