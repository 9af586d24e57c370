"""sbatch's errors in four classes, by Slurm's own texts (slurm_errno.c, 21.08 to 26.05)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ErrorKind(StrEnum):
    """What may be done after a failed sbatch.

    UNKNOWN: it may have been accepted; find out before anything else. TRANSIENT: not submitted, try
    again. BACKPRESSURE: not submitted, wait for slots. PERMANENT: never will be, as it stands.
    """

    UNKNOWN = "unknown"
    TRANSIENT = "transient"
    BACKPRESSURE = "backpressure"
    PERMANENT = "permanent"


@dataclass(frozen=True, slots=True)
class SbatchError:
    """The class of a failed sbatch, and Slurm's own words."""

    kind: ErrorKind
    text: str


_UNKNOWN = (
    "socket timed out", "receive failure", "send failure", "shutdown failure", "zero bytes were transmitted",
    "unexpected message received", "header lengths are longer", "message receive failure",
    "it may have been accepted",
)  # fmt: skip
_BACKPRESSURE = (
    "assocmaxsubmitjoblimit", "qosmaxsubmitjobperuserlimit", "assocgrpsubmitjobslimit",
    "qosgrpsubmitjobslimit", "maxsubmitjobsperaccount", "assocmaxjobslimit",
)  # fmt: skip
_TRANSIENT = (
    "connect failure", "resource temporarily unavailable", "unable to create job record",
    "backup controller in standby", "system submissions disabled", "requested nodes are busy",
    "required ports are in use", "failed to connect to authentication agent",
    "protocol authentication error", "invalid authentication credential", "i/o error writing script",
    "unable to process configuration file", "unable to resolve", "unable to open slurm.conf",
    "requested partition configuration not available now", "required node not available",
    "required partition not available",
)  # fmt: skip
_PERMANENT = (
    "invalid partition", "group not permitted", "invalid account", "invalid qos", "invalid wckey",
    "invalid feature", "invalid generic resource", "requested node configuration is not available",
    "more processors requested", "memory required by task is not available", "time limit is invalid",
    "invalid job array specification", "invalid time specified", "access denied to requested reservation",
    "too long", "job dependency problem", "circular job dependency", "batch script", "permission denied",
    "invalid user id", "job violates accounting/qos policy", "unrecognized option", "invalid option",
    "failed to run command", "unable to open file", "invalid node name",
)  # fmt: skip
_TIMED_OUT = (124, 137)


def classify(lines: Sequence[str], exit_code: int) -> SbatchError:
    """Return the class of a failed sbatch from its stderr lines and exit code; what is not known is UNKNOWN.

    A limit's name stands on a line of its own before "Job violates accounting/QOS policy": the limit decides.
    """
    said = [line for line in lines if "error:" in line.lower()] or list(lines)
    text = "; ".join(line.replace("sbatch: error: ", "").strip() for line in said) or f"exit code {exit_code}"
    words = text.lower()
    if exit_code in _TIMED_OUT:
        return SbatchError(ErrorKind.UNKNOWN, f"no answer in time; {text}")
    for kind, phrases in (
        (ErrorKind.UNKNOWN, _UNKNOWN),
        (ErrorKind.BACKPRESSURE, _BACKPRESSURE),
        (ErrorKind.TRANSIENT, _TRANSIENT),
        (ErrorKind.PERMANENT, _PERMANENT),
    ):
        if any(phrase in words for phrase in phrases):
            return SbatchError(kind, text)
    return SbatchError(ErrorKind.UNKNOWN, text)
