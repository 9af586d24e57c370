"""What a command asks of whoever leads the cases, as a value: given in person, or left beside the store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verb(StrEnum):
    """LEAD: take a registered case in hand. The others are the commands of their names."""

    LEAD = "lead"
    RESUBMIT = "resubmit"
    ACCEPT = "accept"
    CANCEL = "cancel"
    FETCH = "fetch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An order for one case. `beams` are DICOM beam numbers, None: all it applies to; `who` asked it."""

    request_id: str
    verb: Verb
    case_id: str
    who: str
    beams: tuple[int, ...] | None = None
    convert_only: bool = False
    reason: str = ""
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a request: `said` in words; `refused` where it was not carried out, `fix` what to do.

    `stays`: who answers is the daemon and leads the case to its end; another command ends with its own cases.
    """

    request_id: str
    said: str
    refused: bool = False
    fix: str = ""
    stays: bool = False
