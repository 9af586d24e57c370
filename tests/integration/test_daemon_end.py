"""The daemon ends when asked to, whatever hangs: a command of Slurm, a transfer; or what is gone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from tests.support.cli import mqi
from tests.support.cluster import wait_until
from tests.support.daemon import DaemonProcess
from tests.support.fake_slurm import FakeSlurm
from tests.unit.test_service import write


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{slurm.path}:{os.environ['PATH']}")
    return slurm


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "cases").mkdir()
    (tmp_path / "work").mkdir(mode=0o700)
    quick = {"quiet_seconds": 1, "scan_interval_seconds": 1, "poll_min_seconds": 1, "poll_max_seconds": 1}
    return write(tmp_path / "config.yaml", processing=quick)


def drop(site: Path) -> None:
    folder = site.parent / "cases" / "P1"
    made = mqi(site, "sample-case", str(folder), "--beams", "1", "--layers", "2")
    assert made.returncode == 0, made.stderr


def ends(daemon: DaemonProcess, site: Path) -> float:
    """Ask it to end; return how long (s) it took. Nothing is left locked, and it said that it stopped."""
    code, seconds = daemon.stop()
    assert code == 0, daemon.said
    assert "Traceback" not in daemon.said
    state = site.parent / "state" / "mqi.sqlite"
    assert json.loads(state.with_name("health.json").read_text())["status"] == "stopped"
    lifecycle = LifecycleManager(state)
    assert lifecycle.acquire_lock()
    lifecycle.release_lock()
    print(f"ended in {seconds:.1f} s")  # a measurement, shown with -s
    return seconds


@pytest.mark.parametrize(("program", "call"), [("sbatch", 2), ("squeue", 1), ("squeue", 4)])
def test_while_a_command_of_slurm_hangs(slurm: FakeSlurm, site: Path, program: str, call: int) -> None:
    slurm.hangs(program, call, "before")
    drop(site)
    with DaemonProcess(site) as daemon:
        wait_until(lambda: slurm.hanging, 300, f"{program} {call}")
        ends(daemon, site)
    slurm.thaw()


def test_while_a_transfer_stalls(slurm: FakeSlurm, site: Path) -> None:
    """The far side of an upload hangs where it checks what has come."""
    program = slurm.path / "sha256sum"
    program.write_text(f"#!/bin/sh\ntouch {slurm.home}/hanging\nexec sleep 3600\n")
    program.chmod(0o700)
    drop(site)
    with DaemonProcess(site) as daemon:
        wait_until(lambda: slurm.hanging, 300, "an upload that hangs")
        ends(daemon, site)


def test_while_the_folder_of_cases_is_gone(slurm: FakeSlurm, site: Path) -> None:
    with DaemonProcess(site) as daemon:
        wait_until((site.parent / "state" / "health.json").exists, 300, "a health file")
        shutil.rmtree(site.parent / "cases")
        wait_until(lambda: "scan for cases failed" in daemon.said, 300, "a failed scan")
        ends(daemon, site)
