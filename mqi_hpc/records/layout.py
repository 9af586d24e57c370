"""Names of folders and files of a case on the cluster; all paths are relative to the job's folder."""

from __future__ import annotations

import re
from typing import Tuple

STAGES: Tuple[str, str, str] = ("interpret", "beams", "convert")
CHAIN = "chain.json"
STAGES_ARCHIVE = "stages.pyz"
SUBMIT_SCRIPT = "submit.sh"
MANIFEST = "MANIFEST.sha256"
RECORD = "result.json"
WITHDRAWN = "withdrawn"
"""The mark in a job's folder that nothing of it is to begin any more; it is never taken away."""
PLAN = "plan.dcm"
PLAN_INFO = "PlanInfo.txt"
PLAN_RANGE = "PlanRange.txt"

EXIT_NO_GPU = 77
"""The GPU check: a beam needs a GPU, and this node gives none that works."""
EXIT_NOT_OURS = 78
"""The fence: no receipt names this Slurm job, or its job was called off."""
EXIT_NOT_NOW = 79
"""The fence: what this stage builds on does not stand, or another run holds its claim."""

_KEY = re.compile(r"[a-z0-9]{12}\Z")
_JOB = re.compile(r"j(?:0[1-9]|[1-9][0-9]{1,5})\Z")


def is_key(text: str) -> bool:
    """Whether `text` has the form of a case key: 12 lower-case letters and digits."""
    return _KEY.match(text) is not None


def is_job(text: str) -> bool:
    """Whether `text` has the form of a job's folder name: j01, j02, ..."""
    return _JOB.match(text) is not None


def submission_name(instance: str, key: str, job: str, stage: str) -> str:
    """Return the Slurm job name of a submission, which no other submission ever bears."""
    return f"mqi-{instance}-{key}-{job}-{stage}"


def beam_folder(number: int) -> str:
    """Return the folder name of a beam, by DICOM BeamNumber: below input/, interpreted output and dose/."""
    return f"beam_{number}"


def output_folder(stage: str, number: int = 0) -> str:
    """Return the folder that holds a stage's record and, below it, a folder for each claim.

    `number` is the DICOM BeamNumber, for stage "beams" alone.
    """
    if stage == "interpret":
        return "interpreted"
    if stage == "convert":
        return "results"
    return f"dose/{beam_folder(number)}"


def script(stage: str) -> str:
    """Return the name of a stage's sbatch script."""
    return f"{stage}.sbatch"


def engine_input(number: int) -> str:
    """Return the name of a beam's engine input as rendered on the workstation."""
    return f"beam_{number}.in"


def receipt(stage: str) -> str:
    """Return the name of the receipt that a submission leaves: one line, `name id cluster-time`."""
    return f"receipt.{stage}"


def claim(stage: str, index: int) -> str:
    """Return the name of the exclusive claim that a task takes before it works."""
    return f"claim.{stage}-{index}"


def status_file(stage: str, index: int) -> str:
    """Return the file of a task's status lines."""
    return f"status/{stage}-{index}.jsonl"


def engine_log(number: int) -> str:
    """Return the file that the engine's own output goes to."""
    return f"logs/beam_{number}.engine.log"


def safe_name(name: str) -> str:
    """Return a DICOM name as a file name: all but ASCII letters, digits, `_` and `-` becomes `_`.

    The rule of the engine's own interpreter for log folders.
    """
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
