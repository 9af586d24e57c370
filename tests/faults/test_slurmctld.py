"""Faults of Slurm's controller: stopped, frozen, restarted, killed; slow; and one that forgets fast."""

from __future__ import annotations

import pytest

from tests.faults.means import in_the_middle
from tests.faults.scene import Scene

pytestmark = pytest.mark.cluster


def test_no_fault(scene: Scene) -> None:
    """No fault."""
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()


def test_stopped(scene: Scene) -> None:
    """slurmctld stopped while a beam runs."""
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        scene.cluster.ctl("stop", "slurmctld")
        scene.looks_pass(2, "poll_failures")
        scene.heal()
        scene.cluster.ctl("start", "slurmctld")
        scene.mended()
        scene.ends()


def test_stopped_before_the_submission(scene: Scene) -> None:
    """slurmctld stopped before the submission."""
    scene.cluster.ctl("stop", "slurmctld")
    scene.case()
    with scene.running():
        scene.told("Unable to contact slurm controller")
        scene.cluster.ctl("start", "slurmctld")
        scene.mended()
        scene.ends()


def test_paused(scene: Scene) -> None:
    """slurmctld frozen (SIGSTOP) while a chain is submitted, and thawed."""
    scene.case()
    scene.cluster.ctl("pause", "slurmctld")
    with scene.running():
        scene.said("submitting")
        scene.told("not known")
        scene.cluster.ctl("resume", "slurmctld")
        scene.mended()
        scene.ends()


def test_paused_while_beams_run(scene: Scene) -> None:
    """slurmctld frozen (SIGSTOP) while beams run, and thawed."""
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        scene.cluster.ctl("pause", "slurmctld")
        scene.looks_pass(1, "poll_failures")
        scene.cluster.ctl("resume", "slurmctld")
        scene.mended()
        scene.heal()
        scene.ends()


@pytest.mark.parametrize("stage", ["interpret", "beams", "convert"])
def test_restarted_in_the_middle(scene: Scene, stage: str) -> None:
    """slurmctld restarted in the middle of a submission."""
    reached, go = in_the_middle(scene, stage, accepted=True)
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        scene.cluster.ctl("restart", "slurmctld")
        scene.cluster.root(f"touch {go}")
        scene.mended()
        scene.ends()


@pytest.mark.parametrize("stage", ["interpret", "convert"])
def test_killed_after_accept(scene: Scene, stage: str) -> None:
    """slurmctld killed (SIGKILL) just after it accepted."""
    reached, go = in_the_middle(scene, stage, accepted=True)
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        scene.slurmctld_dies()
        scene.cluster.root(f"touch {go}")
        scene.mended()
        scene.ends(submissions=None)


def test_killed_while_beams_run(scene: Scene) -> None:
    """slurmctld killed (SIGKILL) just after the beams began."""
    scene.hang(2)
    scene.hang(3)
    scene.case()
    with scene.running():
        scene.runs()
        scene.slurmctld_dies()
        scene.mended()
        scene.heal(2)
        scene.heal(3)
        # An older queue shows interpret, which has long ended, as held: a person is asked, and releases it.
        scene.wait(
            lambda: scene.over() or "held" in str(scene.find()["attention"]), "an end, or a question", 300
        )
        if not scene.over():
            head = next(task["slurm_id"] for task in scene.find()["tasks"] if task["task"] == "interpret")
            scene.cluster.root(f"scontrol release {head}")
        scene.made_good(None)


def test_min_job_age(scene: Scene) -> None:
    """MinJobAge 2 s: Slurm forgets jobs as they end."""
    scene.slurm_conf("MinJobAge=2")
    scene.hang(3)
    scene.case()
    with scene.running():
        scene.runs(index="1")
        scene.wait(lambda: scene.find()["beams"][0]["verdict"] == "done", "a first beam that is done")
        key = scene.key()
        gone = f"squeue -h -t all -u mqi -o %j | grep -e -{key}-j01-interpret"
        scene.wait(lambda: not scene.cluster.root(gone, check=False).stdout, "interpret forgotten")
        scene.mended()
        scene.heal(3)
        scene.ends()


def test_slow_scheduler(scene: Scene) -> None:
    """A very slow scheduler: it starts jobs every 15 s."""
    scene.slurm_conf("SchedulerParameters=defer,batch_sched_delay=20,sched_interval=15,bf_interval=15")
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()


def test_slow_client(scene: Scene) -> None:
    """A busy controller: sbatch, squeue and scontrol take 6 s each."""
    for program in ("sbatch", "squeue", "scontrol"):
        scene.wrap(program, 'sleep 6\nexec {real} "$@"\n')
    scene.configure(processing={"submit_timeout_seconds": 120})
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()
