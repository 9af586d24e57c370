"""The one way to the cluster's programs: run a command there, with bytes in, bytes out and a deadline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mqi_hpc.core.errors import TransportTimeout

OUTPUT_CAP = 8 * 1024 * 1024
CHUNK = 128 * 1024
# A command is ended by `timeout` on its own side; only where that shows no effect is the link given up.
KILL_AFTER = 10
GRACE = 20.0
# A background process may keep the pipes open after the command itself has ended.
LINGER = 4.0
TIMED_OUT = (124, 137)

Sink = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command left: output up to a cap (`truncated` tells), and its exit code."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    truncated: bool = False


class OutcomeUnknown(TransportTimeout):
    """The command was sent, and how it ended is not known. `partial` is the output that came."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", partial: bytes = b"") -> None:
        super().__init__(what, where=where, fix=fix)
        self.partial = partial


class Shell(Protocol):
    """Runs commands where Slurm is; LocalExecutor and RemoteExecutor differ in nothing else."""

    @property
    def target(self) -> str:
        """Where the commands run, in words."""
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        timeout: float,
        control: bool = False,
        cap: int = OUTPUT_CAP,
        sink: Sink | None = None,
        stall: float | None = None,
    ) -> Result:
        """Run `argv`, ended by force after `timeout` seconds (exit code 124 or 137).

        `stdin` is fed while output is read; what it raises ends the command and is raised here. Output
        beyond `cap` bytes is dropped; with `sink`, stdout goes there instead, in chunks, and what it raises
        ends the command too. `stall`: most seconds without a byte moving while stdin is fed or a sink waits.
        `control`: a short command that must not queue behind transfers. Raises ConnectionError where it was
        not run, OutcomeUnknown where that is open.
        """
        ...

    def close(self) -> None:
        """End what runs; its callers get an error."""
        ...


def bounded(argv: Sequence[str], timeout: float) -> list[str]:
    """Return `argv` under a time limit of its own side."""
    if any("\0" in word for word in argv):
        raise ValueError("a command cannot hold a NUL")
    return ["timeout", "-k", str(KILL_AFTER), f"{max(1.0, timeout):.0f}", *argv]
