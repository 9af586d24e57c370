"""Everything that touches the world, as data: an effect goes out, a completion comes back.

The loop decides; whoever implements `IEffects` acts (threads in production, a seeded scheduler in
simulation). Paths below a job's folder are relative and in our own names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mqi_hpc.core.models import InputFile, SeenFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Bring a case's input and a job's folder to the cluster, verified. Idempotent."""

    case_id: str
    job_id: str
    source: str
    input_folder: str
    inputs: tuple[InputFile, ...]
    job_folder: str
    files: dict[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Run the job's submit.sh, once."""

    case_id: str
    job_id: str
    job_folder: str
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """What to read of one job: `records` are (reference, folder that holds result.json)."""

    ref: str
    folder: str
    records: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    """One poll for all jobs. `sacct_ids` empty: accounting is not asked."""

    nonce: str
    jobs: tuple[JobQuery, ...]
    sacct_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """scancel by exact name and id, in this order (convert before the array it waits for).

    `mark`: the job's folder, in which the mark is made before that nothing of it is to begin; "": none.
    """

    case_id: str
    job_id: str
    targets: tuple[tuple[str, int], ...]
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """A file to bring home: path below the job's folder, name below the case's results folder."""

    remote: str
    local: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Bring verified results home, and the tails of `logs` (paths below the job's folder)."""

    case_id: str
    job_id: str
    job_folder: str
    folder: str
    results: tuple[ResultFile, ...]
    logs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Look below the scan root once; `known` are the folders that were read before, as they were then.

    Its completion's `payload` is a ScanReport (core.intake).
    """

    known: tuple[SeenFolder, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Remove a case's whole folder (`folder`, absolute, <workspace>/<key>) from the cluster."""

    case_id: str
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Read what a case's folder (`folder`, absolute, <workspace>/<key>) holds of jobs; changes nothing.

    `job_id` is the job that could not be uploaded, as its folder is taken. The completion's `payload` is
    CaseRemains (core.adoption).
    """

    case_id: str
    job_id: str
    folder: str


Effect = Upload | Submit | Observe | Cancel | Download | Scan | Prune | Survey


class Failure(StrEnum):
    """Why an effect did not come to be, as far as the loop acts differently."""

    OUTAGE = "outage"
    """The cluster cannot be reached or used now: pause and try again; no case fails of it."""
    ACCESS = "access"
    """Our key or the host's is refused: stop trying and tell a person."""
    SPACE = "space"
    """Too little disk space, here or there: wait, and tell a person."""
    FOLDER = "folder"
    """A folder that this transfer needs, here or there, cannot be used: it waits, and a person is told."""
    TAKEN = "taken"
    """Where a job was to be uploaded there is another of this case, which this store does not know."""
    CASE = "case"
    """Something is wrong with this case's own bytes or folders: this case only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What became of an effect: `output` is what the other side said, `error` why it did not come to be.

    `failure` classes the error; `uncertain` tells that it may have had its effect all the same (a reply
    was lost). A command that ran and exited non-zero is no error: `exit_code` tells. `payload` is what a
    Scan or a Survey found.
    """

    effect: Effect
    output: str = ""
    exit_code: int = 0
    error: str | None = None
    failure: Failure | None = None
    uncertain: bool = False
    payload: object = field(default=None, repr=False)
