"""What one poll says, section by section: a section that is not whole or does not parse says nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mqi_hpc.core.observation import (
    NotParsed,
    Row,
    Section,
    parse_receipts,
    parse_sacct,
    parse_squeue,
    split_sections,
)
from mqi_hpc.core.readings import Accounting
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import WITHDRAWN
from mqi_hpc.records.status import StatusLine, decode_lines, newest

ABSENT = 44
"""Exit code of a section whose file is not there: a good answer."""
_CLAIM = re.compile(r"(interpret|beams|convert)-([0-9]{1,7})\Z")
_DISABLED = "accounting storage is disabled"
_INTEGER = re.compile(r"[0-9]{1,18}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The parsed sections of one poll. None: that section gave no good answer.

    `asked_accounting` tells whether sacct was in the poll; `notes` say what was wrong, for people.
    """

    queue: tuple[Row, ...] | None
    asked_accounting: bool
    accounting: Accounting
    accounted: tuple[Row, ...]
    sections: Mapping[str, Section]
    notes: tuple[str, ...]

    def receipts(self, ref: str) -> Mapping[str, str] | None:
        """Return a job's receipt lines by stage."""
        section = self.sections.get(f"receipts:{ref}")
        if section is None or section.exit_code != 0:
            return None
        try:
            return parse_receipts(section.text)
        except NotParsed:
            return None

    def claims(self, ref: str) -> frozenset[tuple[str, int]] | None:
        """Return the tasks of a job, (stage, index), that have begun their work; None: no good answer."""
        receipts = self.receipts(ref)
        if receipts is None:
            return None
        found = (_CLAIM.match(word) for word in receipts.get("claimed", "").split())
        return frozenset((match[1], int(match[2])) for match in found if match is not None)

    def withdrawn(self, ref: str) -> bool:
        """Whether a job's folder is known to bear the mark that nothing of it is to begin."""
        return WITHDRAWN in (self.receipts(ref) or {})

    def status(self, ref: str) -> Mapping[tuple[str, int], StatusLine] | None:
        """Return the newest status line of each task of a job; {} where none wrote one yet."""
        section = self.sections.get(f"status:{ref}")
        if section is None or section.exit_code not in (0, ABSENT):
            return None
        try:
            return newest(decode_lines(section.text)) if section.exit_code == 0 else {}
        except FormatError:
            return None

    def record(self, ref: str) -> Section | None:
        """Return the section of a task's record, exit code 0 or ABSENT; None: no good answer."""
        section = self.sections.get(f"record:{ref}")
        return section if section is not None and section.exit_code in (0, ABSENT) else None

    def listing(self, ref: str) -> Mapping[str, int] | None:
        """Return bytes by path of the files below a record's folder; None: no good answer."""
        section = self.sections.get(f"listing:{ref}")
        if section is None or section.exit_code != 0:
            return None
        # A listing that other words ran into is none: it would give a file another size.
        *lines, rest = section.text.split("\n")
        sizes = {}
        for line in lines:
            size, _, path = line.partition(" ")
            number = _integer(size)
            if number is None or not path:
                return None
            sizes[path] = number
        if rest:
            return None
        return sizes

    def cluster_time(self) -> int | None:
        """Return the cluster's time (epoch s) at the look."""
        section = self.sections.get("date")
        if section is None or section.exit_code != 0:
            return None
        return _integer(section.text.strip())

    def free_bytes(self) -> int | None:
        """Return the free space of the workspace's file system, as `df -Pk` tells it."""
        section = self.sections.get("space")
        if section is None or section.exit_code != 0:
            return None
        words = section.text.strip().rpartition("\n")[2].split()
        # Device, blocks, used, available, ...: a device's name may hold blanks, so from the end.
        blocks = _integer(words[-3]) if len(words) >= 6 else None
        return None if blocks is None else blocks * 1024


def read_evidence(output: str, nonce: str, *, asked: bool, accounting: str) -> Evidence:
    """Return what the poll script's `output` says; `accounting` is the site's setting: auto, on or off."""
    sections = split_sections(output, nonce)
    notes: list[str] = []
    queue = _rows(sections.get("squeue"), parse_squeue, "squeue", notes)
    state, accounted = Accounting.OFF, None
    if accounting != "off" and asked:
        section = sections.get("sacct")
        if (
            accounting == "auto"
            and section is not None
            and section.exit_code
            and _DISABLED in section.text.lower()
        ):
            notes.append("Slurm has no accounting here")
        else:
            accounted = _rows(section, parse_sacct, "sacct", notes)
            state = Accounting.DOWN if accounted is None else Accounting.GOOD
    return Evidence(
        queue=queue,
        asked_accounting=asked or accounting == "off",
        accounting=state,
        accounted=accounted or (),
        sections=sections,
        notes=tuple(notes),
    )


def _integer(text: str) -> int | None:
    # `int` takes other scripts' digits, and raises where there are thousands.
    return int(text) if _INTEGER.match(text) else None


def _rows(
    section: Section | None, parse: Callable[[str], tuple[Row, ...]], what: str, notes: list[str]
) -> tuple[Row, ...] | None:
    if section is None:
        notes.append(f"{what}: its answer is missing or cut short")
        return None
    if section.exit_code != 0:
        words = " ".join(section.text.split())[:300]
        notes.append(f"{what}: exit code {section.exit_code}: {words}")
        return None
    try:
        return parse(section.text)
    except NotParsed as error:
        notes.append(f"{what}: {error}")
        return None
