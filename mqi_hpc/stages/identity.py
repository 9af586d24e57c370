"""Who this process is, as Slurm tells it in the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Mapping, Optional

from mqi_hpc.records.layout import EXIT_NOT_OURS
from mqi_hpc.stages.errors import Refused

_NUMBER = re.compile(r"[0-9]{1,18}\Z")


@dataclass(frozen=True)
class Identity:
    """A running task. `slurm_id` is its own raw id; `array_id` and `array_index` stand in an array alone."""

    name: str
    slurm_id: int
    array_id: Optional[int]
    array_index: Optional[int]
    restart: int
    node: str

    @property
    def submission_id(self) -> int:
        """The id sbatch gave: the array's in an array, else the job's own."""
        return self.slurm_id if self.array_id is None else self.array_id


def read_identity(environ: Mapping[str, str], host: str) -> Identity:
    """Return who we are; raises Refused where Slurm's variables are missing or no numbers.

    `host` names the node where Slurm does not.
    """
    name = environ.get("SLURM_JOB_NAME", "")
    slurm_id = _number(environ, "SLURM_JOB_ID")
    if not name or slurm_id is None:
        raise Refused(
            "SLURM_JOB_ID or SLURM_JOB_NAME is not set: this program runs within a Slurm job only",
            EXIT_NOT_OURS,
        )
    array_id = _number(environ, "SLURM_ARRAY_JOB_ID")
    array_index = _number(environ, "SLURM_ARRAY_TASK_ID")
    if (array_id is None) is not (array_index is None):
        raise Refused(
            "of SLURM_ARRAY_JOB_ID and SLURM_ARRAY_TASK_ID only one is set: no telling which task this is",
            EXIT_NOT_OURS,
        )
    return Identity(
        name=name,
        slurm_id=slurm_id,
        array_id=array_id,
        array_index=array_index,
        restart=_number(environ, "SLURM_RESTART_COUNT") or 0,
        node=environ.get("SLURMD_NODENAME") or host,
    )


def _number(environ: Mapping[str, str], name: str) -> Optional[int]:
    text = environ.get(name, "")
    if not text:
        return None
    if not _NUMBER.match(text):
        raise Refused(f"{name} is {text!r:.80}, which is no number", EXIT_NOT_OURS)
    return int(text)
