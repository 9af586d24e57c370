"""Nodes that die or fall silent, jobs that are requeued, preempted, held, cancelled or run out of time."""

from __future__ import annotations

import pytest

from tests.faults.ledger import queued
from tests.faults.scene import Scene

pytestmark = pytest.mark.cluster

AGAIN = "j01 1/1/1 j02 -/1/1"
"""What took effect where a beam was computed again."""


def beam_says(scene: Scene, word: str) -> None:
    """Wait until the case tells what Slurm said of its first beam, or has gone on to its next job."""

    def seen() -> bool:
        case = scene.find()
        return word in str(case["beams"][0]).lower() or case["job"] == "j02"

    scene.wait(seen, word, 240)


def node_of(scene: Scene, job: str) -> str:
    return scene.cluster.root(f"squeue -h -j {job}_0 -o %N").stdout.strip()


def test_node_down(scene: Scene) -> None:
    """A node is set down under a beam."""
    scene.hang()
    scene.case()
    with scene.running():
        node = node_of(scene, scene.runs())
        scene.cluster.root(f"scontrol update nodename={node} state=down reason=test")
        beam_says(scene, "node_fail")
        scene.heal()
        scene.cluster.root(f"scontrol update nodename={node} state=resume")
        scene.mended()
        # By itself: in one job, or in one for each beam where they were told of one after the other.
        report = scene.ends(submissions=None)
        assert report["job"] != "j01"


def test_node_silent(scene: Scene) -> None:
    """A node falls silent (slurmd killed): its beam writes on after Slurm gave it up."""
    scene.slurm_conf("SlurmdTimeout=10")
    scene.hang()
    scene.case()
    with scene.running():
        node = node_of(scene, scene.runs())
        scene.cluster.ctl("kill", f"slurmd-{node}")
        beam_says(scene, "node_fail")
        # The lost beam ends only now, on a node that nobody hears.
        scene.heal()
        scene.cluster.ctl("start", f"slurmd-{node}")
        scene.mended()
        scene.ends(submissions=AGAIN)


def test_requeue(scene: Scene) -> None:
    """An admin requeues a running beam by hand."""
    scene.hang()
    scene.case()
    with scene.running():
        job = scene.runs()
        scene.wait(lambda: scene.exists(f"{scene.workspace}/{scene.key()}/j01/claim.beams-0"), "a beam begun")
        scene.cluster.root(f"scontrol update jobid={job}_0 requeue=1; scontrol requeue {job}_0")
        scene.heal()
        scene.mended()
        scene.made_good(AGAIN)


def test_preempted(scene: Scene) -> None:
    """Beams in a low partition are preempted by another user."""
    scene.configure(slurm={"stages": {"beams": {"partition": "low"}}})
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        urgent = scene.cluster.root(
            'su other -c "sbatch --parsable --chdir=/tmp -p gpu --array=0-7 --gres=gpu:1 '
            "--wrap 'sleep 300'\""
        ).stdout.strip()
        beam_says(scene, "preempted")
        scene.heal()
        scene.cluster.root(f"scancel {urgent}")
        scene.mended()
        # By itself: in one job, or in one for each beam where they were told of one after the other.
        report = scene.ends(submissions=None)
        assert report["job"] != "j01"


def test_timeout(scene: Scene) -> None:
    """TIMEOUT: a beam hangs until Slurm's time limit."""
    scene.configure(slurm={"stages": {"beams": {"time": "00:01:00"}}})
    scene.hang()
    scene.case()
    with scene.running():
        scene.until("partial")
        beams = scene.find()["beams"]
        assert ["time limit" in beam["detail"] for beam in beams] == [True, False], beams
        scene.heal()
        scene.mended()
        scene.made_good(AGAIN)


def test_submit_limit(scene: Scene) -> None:
    """A submit limit that the chain does not fit in, lifted later."""
    limit = "sacctmgr --immediate modify user where name=mqi set MaxSubmitJobs="
    scene.undo.callback(scene.cluster.root, f"{limit}-1", check=False)
    scene.cluster.root(f"{limit}2")
    shown = "scontrol show assoc_mgr users=mqi flags=assoc"
    scene.wait(lambda: "MaxSubmitJobs=2(" in scene.cluster.root(shown).stdout, "the limit")
    scene.case()
    with scene.running():
        scene.told("AssocMaxSubmitJobLimit")
        scene.cluster.root(f"{limit}-1")
        scene.mended()
        scene.ends()


def test_head_cancelled(scene: Scene) -> None:
    """scancel of the chain's head, interpret, by hand."""
    scene.cluster.root("scontrol update partitionname=cpu state=down")
    scene.undo.callback(scene.cluster.root, "scontrol update partitionname=cpu state=up")
    scene.case()
    with scene.running():
        job = scene.runs("interpret", "N/A", state="PENDING")
        scene.said("submitted")
        scene.cluster.root(f"scancel {job}; scontrol update partitionname=cpu state=up")
        scene.mended()
        assert scene.ended() == "failed"
        report = scene.judge(submissions="none")
        assert report["results"] == []


def test_element_cancelled(scene: Scene) -> None:
    """scancel of one element of the array by hand."""
    scene.hang()
    scene.case()
    with scene.running():
        job = scene.runs()
        scene.cluster.root(f"scancel {job}_0")
        scene.heal()
        scene.mended()
        report = scene.ends("partial")
        assert [beam["status"] for beam in report["beams"]] in (
            ["cancelled", "completed"],
            ["failed", "completed"],
        )
        scene.order("resubmit", "P001-f01")
        scene.ends(submissions="j01 1/1/1 j02 -/1/1")


def test_convert_cancelled(scene: Scene) -> None:
    """scancel of convert by hand."""
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        job = scene.runs("convert", "N/A", state="PENDING")
        scene.cluster.root(f"scancel {job}")
        scene.heal()
        scene.mended()
        scene.made_good("j01 1/1/- j02 -/-/1")


def test_held(scene: Scene) -> None:
    """An admin holds the array, and releases it."""
    scene.cluster.root("scontrol update partitionname=gpu state=down")
    scene.undo.callback(scene.cluster.root, "scontrol update partitionname=gpu state=up")
    scene.case()
    with scene.running():
        job = scene.runs(state="PENDING")
        scene.cluster.root(f"scontrol hold {job}; scontrol update partitionname=gpu state=up")
        scene.told("held")
        scene.looks_pass(3)
        assert scene.find()["attention"]
        scene.cluster.root(f"scontrol release {job}")
        scene.mended()
        scene.ends()
        assert not scene.find()["attention"]


def test_hung_engine(scene: Scene) -> None:
    """The engine hangs, and a person cancels the case."""
    scene.hang()
    scene.case()
    with scene.running() as daemon:
        scene.runs()
        scene.mended()
        scene.order("cancel", "P001-f01")
        scene.ended()
        key = scene.key()
        scene.wait(lambda: not queued(scene.cluster, key), "an empty queue")
        scene.heal()
        assert daemon.process.poll() is None
        scene.judge(submissions=None)
