"""What a case folder holds, as values, and what that makes: cases, refusals, or neither yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from mqi_hpc.core.models import SeenFolder
from mqi_hpc.records.delivery import RangeRow
from mqi_hpc.records.layout import PLAN, PLAN_INFO, PLAN_RANGE, beam_folder


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a file (path below the case folder): what was found and what was expected."""

    path: str
    message: str

    def __str__(self) -> str:
        # A name may hold what a terminal obeys.
        path = self.path if self.path.isprintable() else repr(self.path)
        return f"{path}: {self.message}" if path else self.message


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a case: path below the case folder, bytes, SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBeam:
    """A treatment beam of a plan; `energies` (MeV) of its layers, `machine` by its configured name."""

    number: int
    name: str
    machine: str
    energies: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An RT Ion Plan. `setup` are the beams left out; `groups` the beam numbers of each fraction group."""

    file: SourceFile
    sop_instance_uid: str
    patient_id: str
    study_uid: str
    beams: tuple[PlannedBeam, ...]
    setup: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    def beam(self, number: int) -> PlannedBeam | None:
        """Return a treatment beam by its number."""
        return next((beam for beam in self.beams if beam.number == number), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delivery folder. `faults` are what reading found wrong; with any, the fields after may be empty.

    `logs` are (layer number, file); `started` is local time, None where nothing tells it.
    """

    folder: str
    faults: tuple[Fault, ...] = ()
    info: SourceFile | None = None
    range: SourceFile | None = None
    rows: tuple[RangeRow, ...] = ()
    logs: tuple[tuple[int, SourceFile], ...] = ()
    patient_id: str = ""
    study_uid: str = ""
    beam_number: int = 0
    start_layer: int = 0
    stop_layer: int = 0
    started: datetime | None = None


@dataclass(frozen=True, slots=True)
class Fraction:
    """A complete fraction: its plan, and the delivery (or its pieces, in order) of each beam number."""

    plan: Plan
    deliveries_by_beam: tuple[tuple[int, tuple[Delivery, ...]], ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that can never become a case as it stands, and all that is wrong with it.

    `deliveries` are the folders of the fraction that is meant, where it is one.
    """

    reason: str
    faults: tuple[Fault, ...] = ()
    deliveries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Deliveries that do not make a fraction yet.

    `until` is the local time after which they are refused, None where nothing tells their age.
    `deliveries` are their folders.
    """

    reason: str
    until: datetime | None = None
    deliveries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeResult:
    """What a folder holds; `ignored_setup` are deliveries of set-up beams."""

    fractions: tuple[Fraction, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    ignored_setup: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRead:
    """A folder that was ready and was read: what it holds, or (`refused`) why it could not be read at all."""

    seen: SeenFolder
    result: IntakeResult | None
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What one scan found: folders read, folders that are not ready yet (with why), folders that are gone.

    `error` tells that the root itself could not be looked at; then nothing else is told.
    """

    read: tuple[FolderRead, ...] = ()
    waiting: tuple[tuple[str, str], ...] = ()
    gone: tuple[str, ...] = ()
    error: str = ""


def input_files(fraction: Fraction) -> Iterator[tuple[str, str, int, str]]:
    """Yield (remote name, local path, bytes, SHA-256) of all that is uploaded, in a fixed order.

    Further pieces of an interrupted beam have a number from 2 on in the names of PlanInfo and PlanRange.
    """
    yield PLAN, *_triple(fraction.plan.file)
    for number, pieces in fraction.deliveries_by_beam:
        folder = beam_folder(number)
        for piece, delivery in enumerate(pieces, start=1):
            for name, file in ((PLAN_INFO, delivery.info), (PLAN_RANGE, delivery.range)):
                if file is not None:
                    numbered = name if piece == 1 else name.replace(".", f"-{piece}.")
                    yield f"{folder}/{numbered}", *_triple(file)
            for layer, log in delivery.logs:
                yield f"{folder}/{layer:03d}.ptn", *_triple(log)


def identity(fraction: Fraction) -> str:
    """Return what makes a case this case: plan UID, and a digest of every byte that is uploaded."""
    lines = sorted(f"{sha256}  {remote}\n" for remote, _, _, sha256 in input_files(fraction))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return f"{fraction.plan.sop_instance_uid} {digest}"


def rejected_with(reason: str, faults: Sequence[Fault]) -> IntakeResult:
    """Return the result of a folder that holds nothing but faults."""
    return IntakeResult(rejected=(Rejected(reason, tuple(faults)),))


def _triple(file: SourceFile) -> tuple[str, int, str]:
    return file.path, file.bytes, file.sha256
