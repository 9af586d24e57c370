"""Runs a case's whole chain here, without Slurm: rendered files, real stage programs, stand-in engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqi_hpc.controllers.container import Container
from mqi_hpc.core.models import Case
from mqi_hpc.records.layout import MANIFEST, receipt, submission_name
from mqi_hpc.records.manifest import format_manifest
from tests.support.cluster import ENGINE
from tests.support.cluster_config import merged, write_config

FIRST_ID = 100


@dataclass
class LocalChain:
    """A job folder on this machine, made as an upload makes it."""

    case: Case
    job: Path
    environment: dict[str, str]

    def run(self, stage: str, index: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one stage as Slurm would."""
        number = FIRST_ID + ("interpret", "beams", "convert").index(stage)
        name = submission_name(self.case.instance, self.case.case_id, "j01", stage)
        (self.job / receipt(stage)).write_text(f"{name} {number} 1800000000\n")
        slurm = {"SLURM_JOB_NAME": name, "SLURM_JOB_ID": str(number), "SLURMD_NODENAME": "here"}
        if stage == "beams":
            slurm |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}
            slurm |= {"SLURM_JOB_ID": str(number + 1000 + index), "CUDA_VISIBLE_DEVICES": "0"}
        command = [sys.executable, "-B", str(self.job / "stages.pyz"), stage, "--job-dir", str(self.job)]
        return subprocess.run(
            command, env=self.environment | slurm, capture_output=True, text=True, check=False, cwd=self.job
        )

    def run_all(self) -> dict[int, Path]:
        """Run the whole chain; return the RT Dose of each beam number."""
        stages = [("interpret", 0), *(("beams", beam.index) for beam in self.case.beams), ("convert", 0)]
        for stage, index in stages:
            done = self.run(stage, index)
            assert done.returncode == 0, f"{stage} {index}: {done.stderr}"
        found = {}
        for beam in self.case.beams:
            (found[beam.number],) = self.job.glob(f"results/*/RD.beam_{beam.number}_*.dcm")
        return found


def local_config(home: Path, **overrides: Any) -> Path:
    """Write settings whose engine runs here; `overrides` are laid over them."""
    base = {
        "app": {
            "state_file": str(home / "state" / "mqi.sqlite"),
            "log_file": str(home / "state" / "mqi.log"),
        },
        "paths": {"local_logdata": str(home / "cases"), "remote_workspace": str(home / "workspace")},
        "transport": "local",
        "stages": {"python": sys.executable, "engine": [sys.executable, "-B", str(ENGINE / "tps_env")]},
    }
    home.mkdir(parents=True, exist_ok=True)
    return write_config(home / "config.yaml", merged(base, overrides))


def local_chain(folder: Path, home: Path, **overrides: Any) -> LocalChain:
    """Return the chain of the one case in `folder`, ready to run below `home`."""
    container = Container.open(local_config(home, **overrides), tell=None)
    (case,) = container.cases.preview(str(folder))
    key = home / "workspace" / case.case_id
    job = key / "j01"
    for name in ("status", "logs", "interpreted", "dose", "results"):
        (job / name).mkdir(parents=True)
    for name, content in container.jobs.rendered(case).items():
        (job / name).write_bytes(content)
    for file in case.files:
        target = key / "input" / file.remote
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file.local, target)
    (key / "input" / MANIFEST).write_text(format_manifest({f.remote: f.sha256 for f in case.files}))
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return LocalChain(case, job, keep | {"MQI_ENGINE_FAULTS": str(home / "faults")})
