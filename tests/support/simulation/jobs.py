"""What Slurm knows: sites, jobs and their elements, as values that the scheduler changes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from tests.support.simulation.clock import Planned

Program = Generator[float, None, int]
"""A batch script at work: yields the seconds until it goes on, returns its exit code. Slurm may `close` it
(it is killed) or throw Terminated into it (it is asked to end)."""

MQI = 1000
"""Our user's uid."""

LIVE = frozenset({"PENDING", "RUNNING"})


class Terminated(Exception):  # noqa: N818 - a signal, not an error
    """SIGTERM, as a program hears it."""


class SlurmError(Exception):
    """A command of Slurm's failed: its exit code, and its words on stderr."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(slots=True)
class Node:
    """A node's resources that are free now, and whether it is up."""

    cpus: int = 16
    gpus: int = 0
    up: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A cluster as its slurm.conf makes it (the defaults are those of docker/slurm-cluster); seconds.

    `version` decides between 22.05, 24.11 and 26.05 where they differ. `accounting` False: no slurmdbd.
    """

    version: str = "22.05"
    gpus: dict[str, int] = field(default_factory=lambda: {"g1": 4, "g2": 4, "c1": 0})
    partitions: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"gpu": ("g1", "g2"), "low": ("g1", "g2"), "cpu": ("c1",)}
    )
    accounts: tuple[str, ...] = ("mqi",)
    accounting: bool = True
    accounting_lag: float = 5.0
    min_job_age: float = 300.0
    schedule_interval: float = 1.0
    term_seconds: float = 0.5
    most_jobs: int = 10_000

    @property
    def before_23(self) -> bool:
        """Whether a dependency on a forgotten id counts as met, instead of being refused."""
        return self.version < "23.02"

    @property
    def node_fail_code(self) -> str:
        """ExitCode of a job that its node took down."""
        return "0:0" if self.version < "24.11" else "1:0"

    @property
    def splits_last(self) -> bool:
        """Whether the last element that waits of an array has become a record of its own."""
        return "24.11" <= self.version < "25.05"

    def exit_code(self, code: int) -> str:
        """Return ExitCode as sacct prints it: up to 25.05 a code of a signal's form is read as one."""
        return f"{code - 128}:0" if code >= 128 and self.version < "25.11" else f"{code}:0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sbatch. `indices` None: no array. `waits` are (afterok or afterany, job id).

    `left_out` are the nodes of its --exclude.
    """

    name: str
    partition: str = "gpu"
    account: str = "mqi"
    gpus: int = 0
    indices: tuple[int, ...] | None = None
    throttle: int | None = None
    waits: tuple[tuple[str, int], ...] = ()
    hold: bool = False
    folder: str = ""
    stage: str = ""
    left_out: tuple[str, ...] = ()
    memory: str = ""
    time: str = ""


@dataclass(slots=True)
class Element:
    """One task of an array, or the one of a job that is none (`index` None). Times are epoch s."""

    index: int | None
    raw: int = 0
    word: str = "PENDING"
    start: float | None = None
    end: float | None = None
    node: str = ""
    code: str = "0:0"
    by: int | None = None
    reason: str = "None"
    program: Program | None = None
    wake: Planned | None = None

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return self.word in LIVE

    @property
    def never_ran(self) -> bool:
        """Whether it was cancelled while it waited in its array: Slurm shows all of these as one."""
        return self.index is not None and not self.raw and self.word == "CANCELLED"


@dataclass(slots=True)
class SlurmJob:
    """A job or array. `never` tells that its dependency can never be met.

    `bad` tells that some of it has not ended well, which may be forgotten already.
    """

    id: int
    request: Request
    submit: float
    held: bool
    waits: list[tuple[str, int]]
    elements: dict[int | None, Element]
    total: int
    reason: str = "None"
    never: bool = False
    released: float = 0.0
    bad: bool = False

    @property
    def live(self) -> bool:
        """Whether any of it has not ended."""
        return any(element.live for element in self.elements.values())

    @property
    def pending(self) -> list[Element]:
        """What waits."""
        return [element for element in self.elements.values() if element.word == "PENDING"]

    @property
    def running(self) -> list[Element]:
        """What runs."""
        return [element for element in self.elements.values() if element.word == "RUNNING"]
