"""Twenty cases while the daemon is killed every few seconds: each runs once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.faults.ledger import STAGES, Ledger, settled
from tests.faults.scene import Dose, Scene
from tests.support.cli import shown
from tests.support.cluster import wait_until
from tests.support.daemon import DaemonProcess

pytestmark = pytest.mark.cluster

CASES = 20
SECONDS = (0.5, 5.0)
"""A life of the daemon is as long as this, drawn anew each time; mostly from when it leads its cases, ..."""
ALIVE = 0.8
"""... and else from its start, which it may not survive."""


@pytest.mark.timeout(1800)
def test_twenty_cases(scene: Scene) -> None:
    """20 cases, the daemon killed (SIGKILL) every 0.5 to 5 s of its life until they are done."""
    scene.configure(resources={"max_concurrent_jobs": CASES})
    names = [f"P{n:03d}" for n in range(CASES)]
    for name in names:
        scene.case(name)
    draw, health = random.Random(20), scene.state / "health.json"
    kills, began = 0, time.monotonic()
    while [case["status"] for case in scene.cases()] != ["completed"] * CASES:
        assert time.monotonic() - began < 1500, [(c["label"], c["status"]) for c in scene.cases()]
        with DaemonProcess(scene.config) as daemon:
            if draw.random() < ALIVE:
                health.unlink(missing_ok=True)
                wait_until(health.exists, 90, "a daemon that leads its cases")
            # What is struck is drawn: nothing is waited for.
            time.sleep(draw.uniform(*SECONDS))
            assert daemon.process.poll() is None, daemon.said
            daemon.kill()
            kills += 1
    seconds = time.monotonic() - began

    ledgers = [settled(scene.cluster, str(case["case_id"])) for case in scene.cases()]
    took = [ledger.text() for ledger in ledgers]
    counts = {stage: sum(distinct(ledger, stage) for ledger in ledgers) for stage in STAGES}
    doses = right(scene, names)
    ran = f"{counts['interpret']} interprets, {counts['beams']} arrays, {counts['convert']} converts"
    scene.tell(
        submissions=ran,
        results=f"{doses} right",
        polls=f"{kills} kills",
        seconds=f"{seconds:.0f}",
    )
    print(f"{kills} kills in {seconds:.0f} s; {counts}")
    assert took == ["1/1/1"] * CASES, took
    assert [fault for ledger in ledgers for fault in ledger.faults()] == []
    assert counts == dict.fromkeys(STAGES, CASES)
    assert doses == 2 * CASES
    assert scene.cluster.root("squeue -h -u mqi").stdout == ""


def distinct(ledger: Ledger, stage: str) -> int:
    """Submissions of a stage that accounting knows as having run, whatever came of them."""
    return len({row.id for row in ledger.rows if row.stage == stage and row.began})


def right(scene: Scene, names: list[str]) -> int:
    count = 0
    for name in names:
        for beam in shown(scene.config, f"{name}-f01")["beams"]:
            count += Dose.of(Path(beam["dose"]["file"])).same(scene.doses[beam["number"]])
    return count
