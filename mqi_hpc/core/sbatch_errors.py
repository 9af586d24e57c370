"""sbatch's errors in four classes, by Slurm's own texts (slurm_errno.c, 21.08 to 26.05).

What decides is what slurmctld answered ("Batch job submission failed: ..."), or where it was never asked, a
line of sbatch itself; both are known from their first word on. tests/corpus holds real ones.
"""

from __future__ import annotations

import re
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


# Said anywhere, these leave it open whether the request arrived.
_DOUBT = (
    "socket timed out", "receive failure", "send failure", "shutdown failure", "zero bytes were transmitted",
    "unexpected message received", "header lengths are longer", "message receive failure",
    "it may have been accepted",
)  # fmt: skip
_ANSWER = re.compile(r"(?:batch job submission failed|allocation failure): *(.*)")
_POLICY = "job violates accounting/qos policy"
# The limit stands on a line of its own before the policy's: one on the number of jobs passes.
_SLOTS = re.compile(r"[a-z]*(?:submitjob|maxjobslimit|grpjobslimit|maxjobsper)[a-z]*\Z")
_REFUSED_FOR_NOW = (
    "unable to contact slurm controller (connect failure)", "resource temporarily unavailable",
    "unable to create job record", "slurm backup controller in standby mode", "system submissions disabled",
    "requested nodes are busy", "required ports are in use", "failed to connect to authentication agent",
    "protocol authentication error", "invalid authentication credential", "i/o error writing script",
    "unable to process configuration file", "requested partition configuration not available now",
    "required node not available", "required partition not available",
)  # fmt: skip
_REFUSED = (
    "invalid partition", "user's group not permitted", "invalid account", "invalid qos", "invalid wckey",
    "invalid feature", "invalid generic resource", "invalid trackable resource",
    "requested node configuration is not available", "more processors requested",
    "memory required by task is not available", "requested time limit is invalid",
    "invalid job array specification", "invalid time specified", "access denied to requested reservation",
    "requested reservation is invalid", "invalid node name", "invalid license", "node count specification",
    "memory specification can not be satisfied", "cpu count per node can not be satisfied",
    "pathname of a file, directory or other parameter too long", "job dependency problem",
    "circular job dependency", "access/permission denied", "invalid user id", _POLICY,
)  # fmt: skip
# What sbatch says of itself, before it asks slurmctld.
_NOT_ASKED_FOR_NOW = re.compile(
    r"fatal: (?:unable to process configuration file|could not establish a configuration source)"
    r"|(?:s_p_parse_file: )?unable to (?:status|open|read) (?:file )?\S*slurm\.conf"
    r"|failed to connect to authentication agent|unable to establish control machine address"
)
_NOT_ASKED = re.compile(
    r"invalid --[a-z-]+ specification|unrecognized option|invalid option --|option '?--[a-z-]+'? requires"
    r"|invalid generic resource \(gres\) specification|invalid trackable resource \(tres\) specification"
    r"|unable to open file |batch script (?:is empty|contains )|this does not look like a batch script"
    r"|--uid only permitted by root|no cluster '.*' known by database"
    r"|timeout: failed to run command|timeout: failed to execute"
)
_TIMED_OUT = (124, 137)


def classify(lines: Sequence[str], exit_code: int) -> SbatchError:
    """Return the class of a failed sbatch from its stderr lines and exit code.

    What is not known, or not sure, is UNKNOWN.
    """
    said = [line for line in lines if _is_error(line)] or list(lines)
    text = "; ".join(line.replace("sbatch: error: ", "").strip() for line in said) or f"exit code {exit_code}"
    if exit_code in _TIMED_OUT:
        return SbatchError(ErrorKind.UNKNOWN, f"no answer in time; {text}")
    words = [_bare(line) for line in lines]
    if any(phrase in line for line in words for phrase in _DOUBT):
        return SbatchError(ErrorKind.UNKNOWN, text)
    # "No error" is what is told where slurmctld was not reached at all.
    told = [match[1] for line in words if (match := _ANSWER.match(line)) and match[1] != "no error"]
    answers = {_answered(answer, words) for answer in told}
    if not answers:
        answers = {kind for line in words if (kind := _of_sbatch(line, words))}
    # Two that do not agree are no answer.
    return SbatchError(answers.pop() if len(answers) == 1 else ErrorKind.UNKNOWN, text)


def _is_error(line: str) -> bool:
    return "error:" in line.lower() or "fatal:" in line.lower()


def _bare(line: str) -> str:
    return line.lower().strip().removeprefix("sbatch: ").removeprefix("error: ").strip()


def _answered(answer: str, words: Sequence[str]) -> ErrorKind:
    """Return the class of slurmctld's answer."""
    if answer.startswith(_POLICY) and any(_SLOTS.match(line) for line in words):
        return ErrorKind.BACKPRESSURE
    if answer.startswith(_REFUSED_FOR_NOW):
        return ErrorKind.TRANSIENT
    return ErrorKind.PERMANENT if answer.startswith(_REFUSED) else ErrorKind.UNKNOWN


def _of_sbatch(line: str, words: Sequence[str]) -> ErrorKind | None:
    """Return the class of a line that sbatch, or what was to start it, says; None: it says nothing."""
    if _NOT_ASKED_FOR_NOW.match(line):
        return ErrorKind.TRANSIENT
    if _SLOTS.match(line):
        return ErrorKind.BACKPRESSURE
    if _NOT_ASKED.match(line):
        return ErrorKind.PERMANENT
    # Some wrappers of sites leave the front of the answer out.
    kind = _answered(line, words)
    return None if kind is ErrorKind.UNKNOWN else kind
