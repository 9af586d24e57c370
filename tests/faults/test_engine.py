"""An engine that says 0 and lies: nothing, NaN, half, too much, another beam's dose; and one that fails."""

from __future__ import annotations

import pytest

from tests.faults.ledger import COUNTING_ENGINE
from tests.faults.scene import ENGINE, Scene
from tests.support.cli import mqi

pytestmark = pytest.mark.cluster


def judged(scene: Scene, word: str = "") -> None:
    """The first beam is failed, and its log says why; the other is delivered; then it is made good."""
    report = scene.ends("partial")
    first, second = report["beams"]
    assert (first["status"], second["verdict"]) == ("failed", "done"), report["beams"]
    log = mqi(scene.config, "logs", "P001-f01", "--beam", "2").stdout
    assert word in log, log
    assert len(report["results"]) == 1
    scene.heal()
    scene.cluster.root(f"cat >{ENGINE}", COUNTING_ENGINE)
    scene.mended()
    scene.order("resubmit", "P001-f01")
    scene.ends(submissions="j01 1/1/1 j02 -/1/1")


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("exit 7", "7"),
        ("nan", "NaN"),
        ("half", "bytes"),
        ("wrong-size", "bytes"),
        ("other-beam", "not the dose of beam"),
    ],
    ids=["exits 7", "writes NaN", "writes half", "writes too much", "writes another beam's dose"],
)
def test_wrong_dose(scene: Scene, fault: str, word: str) -> None:
    """Engine."""
    scene.cluster.fault(2, fault)
    scene.case()
    with scene.running():
        judged(scene, word)


def test_nothing(scene: Scene) -> None:
    """Engine: exits 0 without any output."""
    quiet = '[ "$SLURM_ARRAY_TASK_ID" != 0 ] || exit 0\n'
    scene.cluster.root(f"cat >{ENGINE}", COUNTING_ENGINE.replace("exec ", quiet + "exec "))
    scene.case()
    with scene.running():
        judged(scene)


def test_killed_from_within(scene: Scene) -> None:
    """Engine: killed by a signal (SIGKILL, as by the kernel for want of memory)."""
    dies = '[ "$SLURM_ARRAY_TASK_ID" != 0 ] || kill -KILL $$\n'
    scene.cluster.root(f"cat >{ENGINE}", COUNTING_ENGINE.replace("exec ", dies + "exec "))
    scene.case()
    with scene.running():
        judged(scene)
