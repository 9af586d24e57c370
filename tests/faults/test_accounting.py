"""Faults of accounting: slurmdbd down for a whole run, frozen, and back with all it missed."""

from __future__ import annotations

import pytest

from tests.faults.ledger import Ledger
from tests.faults.means import sshd_killed
from tests.faults.scene import Scene

pytestmark = pytest.mark.cluster


def test_down_for_a_whole_run(scene: Scene) -> None:
    """slurmdbd down for a whole run, its rows replayed later."""
    scene.cluster.ctl("kill", "slurmdbd")
    scene.case()
    with scene.running():
        scene.until("completed")
        scene.cluster.ctl("start", "slurmdbd")
        scene.mended()
        key = scene.key()
        scene.wait(lambda: Ledger.of(scene.cluster, key).ended(), "the rows that were replayed")
        scene.judge()


def test_frozen(scene: Scene) -> None:
    """slurmdbd frozen (SIGSTOP) while beams run, and thawed."""
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        scene.cluster.ctl("pause", "slurmdbd")
        scene.heal()
        scene.looks_pass(2)
        scene.cluster.ctl("resume", "slurmdbd")
        scene.mended()
        scene.ends()


def test_database_down(scene: Scene) -> None:
    """The database behind slurmdbd down while beams run."""
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        scene.cluster.ctl("stop", "mariadb")
        scene.heal()
        scene.looks_pass(3)
        scene.cluster.ctl("start", "mariadb")
        scene.mended()
        scene.ends()


def test_a_failed_beam_that_nobody_saw(scene: Scene) -> None:
    """slurmdbd and the link down while a beam fails and is forgotten: no verdict until both are back."""
    scene.slurm_conf("MinJobAge=2")
    scene.hang(2)
    scene.hang(3)
    scene.case()
    with scene.running():
        scene.runs(index="1")
        scene.cluster.ctl("kill", "slurmdbd")
        sshd_killed(scene)
        scene.cluster.fault(2, "exit 7")
        scene.heal(3)
        key = scene.key()
        forgotten = f"squeue -h -t all -u mqi -o %j | grep -e -{key}-"
        scene.wait(lambda: not scene.cluster.root(forgotten, check=False).stdout, "an empty queue", 240)
        scene.cluster.ctl("start", "sshd")
        scene.told("accounting does not answer", seconds=180)
        scene.looks_pass(5)
        assert scene.find()["status"] == "processing"
        scene.cluster.ctl("start", "slurmdbd")
        scene.mended()
        report = scene.ends("partial")
        assert report["beams"][0]["status"] == "failed"
        assert report["beams"][0]["exit_code"] == 7
