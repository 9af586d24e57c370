"""What the program observes of itself, its machine and its work, as immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUStatus:
    """One GPU of this machine. Memory in bytes, utilization in percent, temperature in °C, power in W.

    Each is None where the driver does not say; `note` says what is out of the ordinary (MIG mode, lost).
    """

    index: int
    uuid: str | None = None
    name: str | None = None
    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    temperature: float | None = None
    power: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUReading:
    """What was last heard of the local GPUs: `age` seconds ago, None: nothing yet.

    `note` is empty, or says why there is none ("none: ...") or why no newer answer came.
    """

    gpus: tuple[GPUStatus, ...] = ()
    note: str = ""
    age: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """A file system: bytes in all, used, and free to this user; `device` is its number, 0 where unknown."""

    path: str
    total: int
    used: int
    free: int
    device: int = 0

    @property
    def free_percent(self) -> float:
        """The free share of what this user may fill, in percent, as df counts it."""
        usable = self.used + self.free
        return 100.0 * self.free / usable if usable else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReading:
    """What was last heard of a disk, `age` seconds ago; None: nothing yet.

    `error` is the system's word where there is no usage; `waiting` how many seconds a question is open.
    """

    path: str
    usage: DiskUsage | None = None
    error: str = ""
    age: float | None = None
    waiting: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """This machine and this process: percent of all CPUs in use, load averages, bytes, counts.

    None where the system does not say.
    """

    cpu_percent: float | None = None
    cpus: int | None = None
    load: tuple[float, float, float] | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    process_rss: int | None = None
    process_threads: int | None = None
    process_fds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCounts:
    """How many cases, jobs and tasks a store holds, by status; tasks by (type, status)."""

    cases: Mapping[str, int]
    jobs: Mapping[str, int]
    tasks: Mapping[tuple[str, str], int]
    attention: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """What the loop knows of its own work; it feeds this to the SystemMonitor.

    Counts are by the words of CaseStatus, JobStatus, and (TaskType, TaskStatus). Ages in seconds;
    `last_good_look` None: nothing of ours is on the cluster, or it was not seen yet; `scan_age` None: no
    scan has ended yet, or none is asked for. `outage_failures` counts failures in a row to reach the
    cluster, `outage_why` is the last one's text, `refused`: our key or the host's was refused. `polls`,
    `poll_failures` and `submissions` count from the start of the program. `cluster_free` is in bytes, None
    where no poll has told it.
    """

    cases: Mapping[str, int] = field(default_factory=dict)
    jobs: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[tuple[str, str], int] = field(default_factory=dict)
    attention: int = 0
    last_good_look: float | None = None
    scan_age: float | None = None
    outage_failures: int = 0
    outage_why: str = ""
    refused: bool = False
    connections: int = 0
    polls: int = 0
    poll_failures: int = 0
    submissions: int = 0
    gpu_slots_used: int = 0
    gpu_slots: int | None = None
    cluster_free: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One sample: `time` is UTC epoch seconds; disks by the place they serve ("state", "results")."""

    time: float
    host: HostStatus
    disks: Mapping[str, DiskReading]
    gpus: GPUReading


class MetricKind(StrEnum):
    """A gauge goes up and down; a counter only up, from the start of the program."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: a name by Prometheus' rules, its help, and samples as (labels, value)."""

    name: str
    help: str
    samples: tuple[tuple[Mapping[str, str], float], ...]
    kind: MetricKind = MetricKind.GAUGE


class HealthStatus(StrEnum):
    """How the daemon is; STOPPED: it ended as it was asked to."""

    OK = "ok"
    WARNING = "warning"
    FAILING = "failing"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be: how bad, what, and what to do about it."""

    status: HealthStatus
    what: str
    cure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The daemon's word about itself at `time` (UTC epoch s); it is said again every `interval` seconds."""

    status: HealthStatus
    time: float
    interval: float
    findings: tuple[Finding, ...] = ()
