"""The store is deleted while beams run on a real cluster: it is rebuilt, and nothing is computed twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.controllers.failpoint import VARIABLE
from tests.e2e.test_daemon import GRID, chains, ended_rows, numbers, rows, sample
from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster, wait_until
from tests.support.daemon import DaemonProcess

pytestmark = pytest.mark.cluster


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


def verdicts(config: Path) -> list[str]:
    """What is said of each beam; nothing while the case is not known yet."""
    done = mqi(config, "show", "P600-f01", "--json")
    return [beam["verdict"] for beam in json.loads(done.stdout)["beams"]] if done.returncode == 0 else []


def lose_the_store(config: Path) -> None:
    """What is left is the identity: the file that ends in .instance."""
    home = config.parent
    left = [path for path in home.rglob("*.sqlite*") if not path.name.endswith(".instance")]
    assert left
    for path in left:
        path.unlink()
    begun = mqi(config, "init", "--adopt")
    assert begun.returncode == 0, begun.stderr
    assert "as it should" in begun.stdout


def test_a_store_lost_while_beams_run(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P600", "--beams", "3", "--layers", "2")
    beam = numbers(folder)[1]
    cluster.fault(beam, "hang")
    with DaemonProcess(config) as daemon:
        wait_until(
            lambda: verdicts(config) == ["done", "running", "done"],
            240,
            "two beams done and one that runs",
        )
        key = shown(config, "P600-f01")["case_id"]
        daemon.kill()
    lose_the_store(config)
    with DaemonProcess(config) as daemon:
        wait_until(
            lambda: verdicts(config) == ["done", "running", "done"],
            240,
            "the same, by a store that was rebuilt",
        )
        assert shown(config, "P600-f01")["case_id"] == key
        assert "taken over from there" in daemon.said
        cluster.fault(beam, "none")
        daemon.until({"P600-f01": "completed"}, 300)
        daemon.stop()
    report = shown(config, "P600-f01")
    assert len(report["results"]) == 3
    ran = chains(ended_rows(cluster, key, 5))
    assert {name: len(ids) for name, ids in ran.items()} == {
        "j01-interpret": 1,
        "j01-beams": 3,
        "j01-convert": 1,
    }
    assert {state for _, _, state in rows(cluster, key)} == {"COMPLETED"}


@pytest.mark.parametrize("died", ["upload-kept", "submit-sent", "standing-kept"])
def test_a_store_lost_while_a_chain_is_submitted(
    cluster: Cluster, config: Path, monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    folder = sample(config, "P600", "--beams", "2", "--layers", "2")
    assert folder.is_dir()
    monkeypatch.setenv(VARIABLE, died)
    with DaemonProcess(config) as daemon:
        daemon.process.wait(timeout=120)
    monkeypatch.delenv(VARIABLE)
    lose_the_store(config)
    with DaemonProcess(config) as daemon:
        daemon.until({"P600-f01": "completed"}, 400)
        assert "taken over from there" in daemon.said
        daemon.stop()
    key = shown(config, "P600-f01")["case_id"]
    ran = chains(ended_rows(cluster, key, 4))
    assert {name: len(ids) for name, ids in ran.items()} == {
        "j01-interpret": 1,
        "j01-beams": 2,
        "j01-convert": 1,
    }
