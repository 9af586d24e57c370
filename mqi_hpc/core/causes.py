"""Why a task ended badly, in words that a policy can be given for; and a promised retry, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why a task did not come to a good end.

    BURNT: its job folder is used up, Slurm has lost what the receipts name. NO_NODE: Slurm has no node left
    beside those that were left out. INTERPRET: it fell with interpret. Those from CANCELLED on ask for a
    person, always.
    """

    NODE_FAIL = "node_fail"
    BOOT_FAIL = "boot_fail"
    GPU_CHECK = "gpu_check"
    PREEMPTED = "preempted"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    BURNT = "burnt"
    NO_NODE = "no_node"
    INTERPRET = "interpret"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    PROGRAM = "program"
    INPUT_OUTPUT = "input_output"
    NO_OUTPUT = "no_output"
    FENCE = "fence"
    REFUSED = "refused"
    SUSPECT = "suspect"
    LOST = "lost"


WORDS = {
    Cause.NODE_FAIL: "node failed",
    Cause.BOOT_FAIL: "node did not boot",
    Cause.GPU_CHECK: "GPU check failed",
    Cause.PREEMPTED: "preempted",
    Cause.OUT_OF_MEMORY: "out of memory",
    Cause.TIMEOUT: "time limit reached",
    Cause.BURNT: "Slurm lost the chain",
    Cause.NO_NODE: "no node beside those left out",
    Cause.INTERPRET: "interpret failed",
    Cause.CANCELLED: "cancelled",
    Cause.DEADLINE: "deadline reached",
    Cause.PROGRAM: "engine or stage program failed",
    Cause.INPUT_OUTPUT: "reading or writing failed",
    Cause.NO_OUTPUT: "no valid output",
    Cause.FENCE: "stopped by the fence",
    Cause.REFUSED: "refused",
    Cause.SUSPECT: "witnesses disagree",
    Cause.LOST: "nobody knows how it ended",
}
"""Each cause as a person reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A retry that was promised when a task ended: in the next job, at `at` (UTC epoch s), `pause` s later.

    It is number `attempt` of at most `most` for its cause; `counted`: it uses up the count over all causes.
    `without` is the node that is left out because of it.
    """

    cause: Cause
    at: float
    pause: float
    attempt: int
    most: int
    counted: bool = True
    without: str = ""
