"""Finds and reads RT Ion Plans (SOP class 1.2.840.10008.5.1.4.1.1.481.8) among a folder's DICOM files."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial

from mqi_hpc.core.intake import Fault, Plan, PlannedBeam, SourceFile
from mqi_hpc.infrastructure.intake.folder import PassingFault, Tree, Unreadable, read_file, read_head

ION_PLAN = "1.2.840.10008.5.1.4.1.1.481.8"
PHOTON_PLAN = "1.2.840.10008.5.1.4.1.1.481.5"
_SETUP_NAMES = ("setup", "site setup")
_NO_DICOM = (".ptn", ".mgn", ".txt", ".csv")
_HEAD = 64 * 1024
"""Bytes within which a DICOM file says what it is."""
_FIRST_GROUPS = (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02")
_SOP_CLASS = 0x00080016
_ELEMENT_HEAD = 8
_MOST = 256 * 1024 * 1024
_MOST_NUMBER = 9999
_UID = re.compile(r"[0-9.]{1,64}")


def read_plans(tree: Tree, machines: Sequence[str]) -> tuple[list[Plan], list[Fault]]:
    """Return the folder's plans, each once, and what is wrong with those that cannot be used.

    `machines` are the names that have a calibration. CT, structures and doses are passed over.
    """
    plans: dict[str, Plan] = {}
    faults: list[Fault] = []
    photon: list[Fault] = []
    for path in tree.files():
        try:
            sop_class = _sop_class(tree.root, path)
            if sop_class == PHOTON_PLAN:
                photon.append(Fault(path, "is a photon plan (RT Plan); an RT Ion Plan is expected"))
            if sop_class != ION_PLAN:
                continue
            file, content = read_file(tree.root, path, most=_MOST)
            plan, wrong = _plan(_read(content, path), file, machines)
            faults += wrong
            if plan is not None:
                known = plans.setdefault(plan.sop_instance_uid, plan)
                if known.file.sha256 != file.sha256:
                    raise Unreadable(path, f"is another plan than {known.file.path} under the same UID")
        except Unreadable as error:
            faults.append(error.fault)
    # Beside an ion plan, a photon plan is one of the many things that are passed over.
    return list(plans.values()), faults if plans else [*faults, *photon]


def _sop_class(root: Path, path: str) -> str | None:
    """Return what a DICOM file is; None where it is none. Raises Unreadable where a .dcm cannot be read."""
    name = path.rsplit("/", 1)[-1].lower()
    if name.endswith(_NO_DICOM):
        return None
    named = name.endswith(".dcm")
    try:
        head = read_head(root, path, _HEAD)
    except Unreadable as error:
        if named or isinstance(error.fault, PassingFault):
            raise
        return None
    # Some systems leave out the preamble; then only the name says that the file may be DICOM.
    if head[128:132] != b"DICM" and not (named and head.startswith(_FIRST_GROUPS)):
        if named:
            raise Unreadable(path, "cannot be read as DICOM: it does not begin like it")
        return None
    watched = _Watched(head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_partial(
                watched,
                stop_when=lambda tag, _vr, _length: tag > _SOP_CLASS,
                specific_tags=[_SOP_CLASS],
                force=True,
            )
            sop_class = str(found.get("SOPClassUID") or found.file_meta.get("MediaStorageSOPClassUID") or "")
    except Exception as error:
        raise Unreadable(path, f"cannot be read as DICOM: {type(error).__name__}") from error
    if watched.cut:
        raise Unreadable(path, "cannot be read as DICOM: it is cut off")
    if not sop_class:
        raise Unreadable(path, "cannot be read as DICOM: it names no SOP class")
    return sop_class


class _Watched(io.BytesIO):
    """A file's bytes that tell whether a reader ran off their end: pydicom keeps that to itself."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.cut = False
        self._ends = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and note where less is left than was asked for."""
        chunk = super().read(size)
        if size is not None and len(chunk) < size:
            # A whole file's end is met once, where the head of a further element would be.
            self._ends += 1
            self.cut = self.cut or bool(chunk) or size != _ELEMENT_HEAD or self._ends > 1
        return chunk


def _read(content: bytes, path: str) -> Dataset:
    watched = _Watched(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(watched, force=True)
            # Lazily read elements show their faults only when they are looked at.
            dataset.walk(lambda _, element: element.value)
    except Exception as error:
        # Not its own words: they may quote an element, and so the patient.
        said = "it is cut off" if watched.cut else type(error).__name__
        raise Unreadable(path, f"cannot be read as DICOM: {said}") from error
    if watched.cut:
        raise Unreadable(path, "cannot be read as DICOM: it is cut off")
    return dataset


def _plan(dataset: Dataset, file: SourceFile, machines: Sequence[str]) -> tuple[Plan | None, list[Fault]]:
    """Return the plan, or None and all that is wrong with it."""
    wrong: list[str] = []
    uid, patient, study = (
        str(dataset.get(name) or "").strip() for name in ("SOPInstanceUID", "PatientID", "StudyInstanceUID")
    )
    if not _UID.fullmatch(uid):
        wrong.append("has no valid SOPInstanceUID" if uid else "has no SOPInstanceUID")
    if not patient:
        wrong.append("has no PatientID")
    setup, beams = [], []
    for position, item in enumerate(dataset.get("IonBeamSequence") or [], start=1):
        number = _integer(item.get("BeamNumber"))
        if number is None or not 1 <= number <= _MOST_NUMBER:
            wrong.append(f"the BeamNumber of its beam at place {position} is not from 1 to {_MOST_NUMBER}")
        elif _is_setup(item):
            setup.append(number)
        else:
            beam, faults = _beam(item, number, machines)
            wrong += faults
            beams.append(beam)
    numbers = [beam.number for beam in beams] + setup
    groups = _groups(dataset)
    if not beams and not wrong:
        wrong.append("has no treatment beam")
    if len(set(numbers)) != len(numbers):
        wrong.append("two of its beams have one BeamNumber")
    if len(used := sorted({beam.machine for beam in beams} - {""})) > 1:
        wrong.append(f"its beams are for several machines: {', '.join(used)}")
    if not wrong and (unknown := sorted({n for group in groups for n in group} - set(numbers))):
        said = f"its fraction group has beams {', '.join(map(str, unknown))}, which are not among its beams"
        wrong.append(f"{said}: it is not whole")
    if wrong:
        return None, [Fault(file.path, said) for said in wrong]
    plan = Plan(
        file=file,
        sop_instance_uid=uid,
        patient_id=patient,
        study_uid=study,
        beams=tuple(beams),
        setup=tuple(setup),
        groups=groups,
    )
    return plan, []


def _groups(dataset: Dataset) -> tuple[tuple[int, ...], ...]:
    found = []
    for group in dataset.get("FractionGroupSequence") or []:
        references = group.get("ReferencedBeamSequence") or []
        numbers = (_integer(reference.get("ReferencedBeamNumber")) for reference in references)
        found.append(tuple(number for number in numbers if number is not None))
    return tuple(found)


def _is_setup(item: Dataset) -> bool:
    names = (str(item.get(name) or "").strip().lower() for name in ("BeamName", "BeamDescription"))
    return str(item.get("TreatmentDeliveryType") or "") == "SETUP" or any(n in _SETUP_NAMES for n in names)


def _beam(item: Dataset, number: int, machines: Sequence[str]) -> tuple[PlannedBeam, list[str]]:
    """Return a treatment beam and what is wrong with it."""
    wrong = []
    name = str(item.get("BeamName") or "").strip()
    if not name or not name.isprintable() or "/" in name:
        wrong.append(f"beam {number} has no BeamName that can be a file name: {name!r}")
    points = list(item.get("IonControlPointSequence") or [])
    count = _integer(item.get("NumberOfControlPoints"))
    if count is not None and count != len(points):
        wrong.append(f"beam {number} has {len(points)} control points; NumberOfControlPoints says {count}")
    energies: list[float] = []
    try:
        energies = _energies(points)
    except (TypeError, ValueError) as error:
        wrong.append(f"beam {number} has control points that cannot be read: {error}")
    else:
        if not energies or not all(math.isfinite(energy) and energy > 0 for energy in energies):
            wrong.append(f"beam {number} has no energy layers with spots and a NominalBeamEnergy")
    machine, why = _machine(str(item.get("TreatmentMachineName") or "").strip(), machines)
    if why:
        wrong.append(f"the machine of beam {number}, {why}")
    return PlannedBeam(number=number, name=name, machine=machine, energies=tuple(energies)), wrong


def _energies(points: Sequence[Dataset]) -> list[float]:
    """Return the energy (MeV) of each layer: a control point with spots of positive weight.

    Line-scan plans keep their spots in private tags; there a layer is a control point from which the
    cumulative meterset weight rises to the next. An energy left out is that of the point before. Raises
    ValueError for weights that are no weights.
    """
    energy = math.nan
    energies, weights, metersets = [], [], []
    spots = False
    for point in points:
        if point.get("NominalBeamEnergy") is not None:
            energy = float(point.NominalBeamEnergy)
        energies.append(energy)
        found = list(_numbers(point.get("ScanSpotMetersetWeights")))
        if not all(math.isfinite(weight) and weight >= 0 for weight in found):
            raise ValueError("a ScanSpotMetersetWeights is negative or no number")
        spots = spots or bool(found)
        weights.append(sum(found))
        metersets.append(float(point.get("CumulativeMetersetWeight") or 0.0))
    if spots:
        return [e for e, weight in zip(energies, weights, strict=True) if weight > 0]
    rises = [b > a for a, b in pairwise(metersets)]
    return [e for e, rise in zip(energies, rises, strict=False) if rise]


def _integer(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _numbers(value: Any) -> Iterable[float]:
    """Return a multi-valued element as numbers; one of multiplicity 1 comes as a scalar."""
    if value is None:
        return []
    if isinstance(value, int | float):
        return [float(value)]
    return [float(number) for number in value]


def _machine(name: str, machines: Sequence[str]) -> tuple[str, str]:
    """Return the configured machine that a TreatmentMachineName means, or "" and why none is it.

    It is the machine of that very name, else the only one whose name is within it; G1 is not within G10.
    """
    if name in machines:
        return name, ""
    within = [one for one in machines if _holds(name, one)]
    if len(within) == 1:
        return within[0], ""
    what = f"may be {' or '.join(within)}" if within else "is unknown"
    return "", f"{name!r}, {what}; machines with a calibration: {', '.join(machines)}"


def _holds(name: str, machine: str) -> bool:
    before = "(?<![0-9])" if machine[:1].isdigit() else ""
    after = "(?![0-9])" if machine[-1:].isdigit() else ""
    return re.search(before + re.escape(machine) + after, name) is not None
