"""Slurm's state words, 21.08 to 26.05, and what they mean to us (job_state_codes of the manual)."""

from __future__ import annotations

import re

LIVE = {
    "PENDING": "queued",
    "CONFIGURING": "starting",
    "POWER_UP_NODE": "starting",
    "RUNNING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "RESIZING": "running",
    "COMPLETING": "finishing",
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "REQUEUED": "requeueing",
    "REQUEUE_FED": "requeueing",
    "EXPEDITING": "requeueing",
    "RECONFIG_FAIL": "requeueing",
    "UPDATE_DB": "finishing",
    "REQUEUE_HOLD": "held",
    "SPECIAL_EXIT": "held",
    "RESV_DEL_HOLD": "held",
    "LAUNCH_FAILED": "held",
    "GETENV_FAILED": "held",
}
INFRASTRUCTURE = frozenset({"NODE_FAIL", "BOOT_FAIL", "PREEMPTED"})
TERMINAL = INFRASTRUCTURE | {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"}

_WORD = re.compile(r"([A-Z_]+)\+?(?: by ([0-9]{1,10}))?\Z")
# Pending reasons that time alone does not lift (squeue manual, JOB REASON CODES; names as of 21.08 to 26.05).
# `RunMinutes` are those of what runs at once: they pass.
_BLOCKED = re.compile(
    r"BadConstraints|PartitionNodeLimit|PartitionTimeLimit|PartitionDown|PartitionInactive|InvalidAccount"
    r"|InvalidQOS|AccountNotAllowed|QOSNotAllowed|ReservationDeleted"
    r"|(?:Assoc|QOS)(?:Max|Grp)(?:(?!Run)\w)*Minutes\w*|(?:Assoc|QOS)(?:MaxWallDurationPerJob|GrpWall)\w*|QOSMin\w+"
    r"|(?:Assoc|QOS)Max(?:Cpu|Node|GRES|Mem|BB|Billing|License)\w*(?:PerJob|MinutesPerJob)\w*"
)
# JobHeldUser, JobHeldAdmin, JobHoldMaxRequeue, "launch failed requeued held"
_HELD = re.compile(r"JobHeld|JobHold|.*\bheld\b")

CAUSES = {
    "FAILED": "the stage program failed",
    "TIMEOUT": "time limit reached",
    "DEADLINE": "deadline reached",
    "OUT_OF_MEMORY": "out of memory",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node did not boot",
    "PREEMPTED": "preempted",
}


def read_word(text: str) -> tuple[str, int | None]:
    """Split a state as squeue or sacct print it into its word and the uid of who cancelled.

    Text of no known form comes back whole, with no uid: unknown is a value, never success.
    """
    match = _WORD.match(text.strip())
    if match is None:
        return text.strip(), None
    return match[1], None if match[2] is None else int(match[2])


def phase(word: str, reason: str = "") -> str:
    """Return our name for an unfinished state; "unknown" where Slurm said a word we do not know.

    "held" and "blocked" wait for a person: somebody holds it, or it cannot start as it was asked for.
    """
    if word == "PENDING" and _HELD.match(reason):
        return "held"
    if word == "PENDING" and _BLOCKED.fullmatch(reason):
        return "blocked"
    return LIVE.get(word, "unknown")
