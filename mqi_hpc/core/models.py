"""Cases, jobs, submissions and tasks as immutable values, in the words of the specification and DICOM."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from mqi_hpc.core.causes import Retry

_KEY_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_KEY_LENGTH = 12


class CaseStatus(StrEnum):
    """The specification's five, and three more that a physicist must be able to tell apart."""

    NEW = "new"
    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    PARTIAL = "partial"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


class JobStatus(StrEnum):
    """State of one run of the chain."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    PARTIAL = "partial"
    CANCELLED = "cancelled"


class TaskType(StrEnum):
    """What a job does, in order."""

    UPLOAD = "upload"
    INTERPRET = "interpret"
    BEAM_CALC = "beam_calc"
    CONVERT = "convert"
    DOWNLOAD = "download"


class TaskStatus(StrEnum):
    """State of one task. Everything from COMPLETED on is terminal and never changes silently."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SUSPECT = "suspect"
    LOST = "lost"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing more is expected to happen to the task by itself."""
        return self not in (TaskStatus.PENDING, TaskStatus.RUNNING)


class SubmitState(StrEnum):
    """How far the submission of a job's chain has come; committed before and after each step.

    REFUSED: Slurm, or the upload, will never take it. WITHDRAWN: cancelled by a person before it was sent.
    BURNT: the controller has lost what it had accepted; nobody cancelled it, and this job will never be
    whole.
    """

    PLANNED = "planned"
    UPLOADED = "uploaded"
    SUBMITTING = "submitting"
    STANDING = "standing"
    AMBIGUOUS = "ambiguous"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    BURNT = "burnt"


STAGES = ("interpret", "beams", "convert")
STAGE_OF = {TaskType.INTERPRET: "interpret", TaskType.BEAM_CALC: "beams", TaskType.CONVERT: "convert"}


class _Evolving:
    """A value that changes by being copied."""

    def evolve(self, **changes: Any) -> Self:
        """Return a copy with the named fields changed."""
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam(_Evolving):
    """A treatment beam of a case: its place in the Slurm array is fixed at intake and immutable.

    `energies` (MeV) are those of its layers, in the plan's order; `name` is the plan's BeamName as it is.
    """

    index: int
    number: int
    name: str
    energies: tuple[float, ...]
    input_digest: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile(_Evolving):
    """One file of a case: our remote name, the path below the case folder, bytes and SHA-256."""

    remote: str
    local: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(_Evolving):
    """One plan and one fraction of its delivery. `case_id` is the key, which names nobody.

    A folder that was refused is kept as a case too: REJECTED, without beams, `rejected` says why.
    """

    case_id: str
    status: CaseStatus
    beam_count: int
    created_at: datetime
    updated_at: datetime
    metadata: dict[str, Any] = field(default_factory=dict)
    site: str
    instance: str
    identity: str
    label: str
    folder: str
    plan_uid: str
    machine: str
    beams: tuple[Beam, ...]
    files: tuple[InputFile, ...]
    attention: str | None = None
    rejected: tuple[str, ...] = ()

    def log_context(self) -> dict[str, str]:
        """The fields every log line about this case bears."""
        return {"case_id": self.case_id}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFolder:
    """A case folder as it was when it was last read, so that it is not read again while it stays so.

    `fingerprint` tells of names, sizes and times of its files; `again_at` (UTC epoch s) when it is to be
    read again all the same, None: not before it changes.
    """

    folder: str
    fingerprint: str
    again_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission(_Evolving):
    """One sbatch of a job. `slurm_id` and `cluster_time` (epoch s) are those of its receipt."""

    stage: str
    name: str
    indices: tuple[int, ...]
    slurm_id: int | None = None
    cluster_time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(_Evolving):
    """One run of the chain for some beams of a case.

    `cancelled` are the stages that we called off, `reruns` how often submit.sh was run again after its fate
    was not known. `automatic`: it is a retry that nobody asked for; `left_out` are nodes its beams avoid.
    """

    job_id: str
    case_id: str
    status: JobStatus
    gpu_allocation: tuple[int, ...] = ()
    priority: int = 0
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    name: str
    submit_state: SubmitState
    submissions: tuple[Submission, ...]
    refusal: str | None = None
    cancelled: tuple[str, ...] = ()
    reruns: int = 0
    automatic: bool = False
    left_out: tuple[str, ...] = ()

    def submission(self, stage: str) -> Submission | None:
        """Return the submission of `stage` ("interpret", "beams" or "convert"), None where it has none."""
        return next((s for s in self.submissions if s.stage == stage), None)

    @property
    def head(self) -> Submission:
        """The first submission of the chain: held until all stand, and released last."""
        return self.submissions[0]

    @property
    def placed(self) -> tuple[str, ...]:
        """The stages that Slurm has taken, in order."""
        return tuple(s.stage for s in self.submissions if s.slurm_id is not None)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this job, in order."""
        return tuple(s.stage for s in self.submissions)

    def log_context(self) -> dict[str, str]:
        """The fields every log line about this job bears."""
        return {"case_id": self.case_id, "job_id": self.job_id}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(_Evolving):
    """One step of a job: `index` is the beam's array index for BEAM_CALC, 0 elsewhere.

    `contradicted` tells what Slurm has said since against a verdict that stands.
    `phase` and `detail` are the last verdict in words; `row`, `waited` (s) and `polls` its timer; `slurm`
    the newest terminal word of Slurm; `record` the text of the stage's own valid record. `ended_at` (UTC
    epoch s) is when it was judged; `retry` what follows by itself, else `not_retried` says why nothing does;
    new beams avoid its node until `left_out_until` (UTC epoch s).
    """

    task_id: str
    job_id: str
    type: TaskType
    parameters: dict[str, Any] = field(default_factory=dict)
    status: TaskStatus = TaskStatus.PENDING
    index: int = 0
    phase: str = ""
    detail: str = ""
    row: str = ""
    waited: float = 0.0
    polls: int = 0
    slurm: str = ""
    slurm_exit: str = ""
    node: str = ""
    exit_code: int | None = None
    noted: str = ""
    record: str | None = None
    contradicted: str = ""
    ended_at: float | None = None
    retry: Retry | None = None
    not_retried: str = ""
    left_out_until: float | None = None


def task_name(case: Case, task: Task) -> str:
    """Return a task as a person calls it: `beam 3` by its DICOM number, else its kind."""
    return f"beam {case.beams[task.index].number}" if task.type is TaskType.BEAM_CALC else str(task.type)


def case_key(secret: bytes, identity: str) -> str:
    """Return 12 letters and digits that name a case on the cluster and tell nothing of the patient.

    `secret` is the instance's; the same identity gives the same key for ever.
    """
    number = int.from_bytes(hmac.new(secret, identity.encode(), hashlib.sha256).digest(), "big")
    letters = []
    for _ in range(_KEY_LENGTH):
        number, rest = divmod(number, len(_KEY_ALPHABET))
        letters.append(_KEY_ALPHABET[rest])
    return "".join(letters)


def job_name(number: int) -> str:
    """Return the folder name of the case's `number`-th job, from 1 on: j01, j02, ..."""
    if number < 1:
        raise ValueError(f"jobs are numbered from 1, not {number}")
    return f"j{number:02d}"
