"""Finds and reads RT Ion Plans (SOP class 1.2.840.10008.5.1.4.1.1.481.8) among a folder's DICOM files."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from mqi_hpc.core.intake import Fault, Plan, PlannedBeam, SourceFile
from mqi_hpc.infrastructure.intake.folder import Tree, Unreadable, read_file

ION_PLAN = "1.2.840.10008.5.1.4.1.1.481.8"
PHOTON_PLAN = "1.2.840.10008.5.1.4.1.1.481.5"
_SETUP_NAMES = ("setup", "site setup")
_MOST = 256 * 1024 * 1024
_MOST_NUMBER = 9999


class _PhotonPlan(Unreadable):
    """A plan, but not one of ions."""


def read_plans(tree: Tree, machines: Sequence[str]) -> tuple[list[Plan], list[Fault]]:
    """Return the folder's plans, each once, and what is wrong with those that cannot be used.

    `machines` are the names that have a calibration. CT, structures and doses are passed over.
    """
    plans: dict[str, Plan] = {}
    faults: list[Fault] = []
    photon: list[Fault] = []
    for path in tree.files():
        try:
            dataset, file = _open(tree.root, path)
            if dataset is None or file is None:
                continue
            plan = _plan(dataset, file, machines)
            known = plans.setdefault(plan.sop_instance_uid, plan)
            if known.file.sha256 != file.sha256:
                raise Unreadable(path, f"is another plan than {known.file.path} under the same UID")
        except _PhotonPlan as error:
            photon.append(error.fault)
        except Unreadable as error:
            faults.append(error.fault)
    # Beside an ion plan, a photon plan is one of the many things that are passed over.
    return list(plans.values()), faults if plans else [*faults, *photon]


def _open(root: Path, path: str) -> tuple[Dataset | None, SourceFile | None]:
    """Return an RT Ion Plan and its file; None where the file is no plan at all."""
    name = path.rsplit("/", 1)[-1].lower()
    if not name.endswith(".dcm") and "." in name:
        return None, None
    sop_class = _sop_class(root / path, named=name.endswith(".dcm"), path=path)
    if sop_class == PHOTON_PLAN:
        raise _PhotonPlan(path, "is a photon plan (RT Plan); an RT Ion Plan is expected")
    if sop_class != ION_PLAN:
        return None, None
    file, content = read_file(root, path, most=_MOST)
    return _read(io.BytesIO(content), path), file


def _sop_class(where: Path, *, named: bool, path: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = pydicom.dcmread(where, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            except InvalidDicomError:
                if not named:
                    return None
                # Some systems leave out the preamble.
                found = pydicom.dcmread(
                    where, stop_before_pixels=True, specific_tags=["SOPClassUID"], force=True
                )
        sop_class = found.get("SOPClassUID")
    except Exception as error:
        if named:
            raise Unreadable(path, f"cannot be read as DICOM: {type(error).__name__}") from error
        return None
    if sop_class is None and named:
        raise Unreadable(path, "cannot be read as DICOM: it names no SOP class")
    return None if sop_class is None else str(sop_class)


def _read(content: io.BytesIO, path: str) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(content, force=True)
            # Lazily read elements show their faults only when they are looked at.
            dataset.walk(lambda _, element: element.value)
    except Exception as error:
        raise Unreadable(path, f"cannot be read as DICOM: {type(error).__name__}: {error}") from error
    return dataset


def _plan(dataset: Dataset, file: SourceFile, machines: Sequence[str]) -> Plan:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _checked(dataset, file, machines)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise Unreadable(file.path, f"is no usable RT Ion Plan: {error}") from error


def _checked(dataset: Dataset, file: SourceFile, machines: Sequence[str]) -> Plan:
    texts = {name: str(dataset.get(name) or "").strip() for name in ("SOPInstanceUID", "PatientID")}
    for name, text in texts.items():
        if not text:
            raise Unreadable(file.path, f"has no {name}")
    setup, beams = [], []
    for item in dataset.get("IonBeamSequence") or []:
        number = int(item.BeamNumber)
        if _is_setup(item):
            setup.append(number)
        else:
            beams.append(_beam(item, number, file.path, machines))
    if not beams:
        raise Unreadable(file.path, "has no treatment beam")
    numbers = [beam.number for beam in beams] + setup
    if len(set(numbers)) != len(numbers):
        raise Unreadable(file.path, "two of its beams have one BeamNumber")
    if len(used := sorted({beam.machine for beam in beams})) != 1:
        raise Unreadable(file.path, f"its beams are for several machines: {', '.join(used)}")
    return Plan(
        file=file,
        sop_instance_uid=texts["SOPInstanceUID"],
        patient_id=texts["PatientID"],
        study_uid=str(dataset.get("StudyInstanceUID") or "").strip(),
        beams=tuple(beams),
        setup=tuple(setup),
        groups=tuple(
            tuple(int(ref.ReferencedBeamNumber) for ref in group.get("ReferencedBeamSequence") or [])
            for group in dataset.get("FractionGroupSequence") or []
        ),
    )


def _is_setup(item: Dataset) -> bool:
    names = (str(item.get(name) or "").strip().lower() for name in ("BeamName", "BeamDescription"))
    return str(item.get("TreatmentDeliveryType") or "") == "SETUP" or any(n in _SETUP_NAMES for n in names)


def _beam(item: Dataset, number: int, path: str, machines: Sequence[str]) -> PlannedBeam:
    name = str(item.get("BeamName") or "").strip()
    if not 1 <= number <= _MOST_NUMBER:
        raise Unreadable(path, f"BeamNumber {number} is not from 1 to {_MOST_NUMBER}")
    if not name or not name.isprintable() or "/" in name:
        raise Unreadable(path, f"beam {number} has no BeamName that can be a file name: {name!r}")
    energies = _energies(item.get("IonControlPointSequence") or [])
    if not energies or not all(math.isfinite(energy) and energy > 0 for energy in energies):
        raise Unreadable(path, f"beam {number} has no energy layers with spots and a NominalBeamEnergy")
    machine = str(item.get("TreatmentMachineName") or "").strip()
    return PlannedBeam(
        number=number, name=name, machine=_machine(machine, number, path, machines), energies=tuple(energies)
    )


def _energies(points: Sequence[Dataset]) -> list[float]:
    """Return the energy (MeV) of each layer: a control point with spots of positive weight.

    Line-scan plans keep their spots in private tags; there a layer is a control point from which the
    cumulative meterset weight rises to the next. An energy left out is that of the point before.
    """
    energy = math.nan
    energies, weights, metersets = [], [], []
    for point in points:
        if point.get("NominalBeamEnergy") is not None:
            energy = float(point.NominalBeamEnergy)
        energies.append(energy)
        weights.append(sum(_numbers(point.get("ScanSpotMetersetWeights"))))
        metersets.append(float(point.get("CumulativeMetersetWeight") or 0.0))
    if any(weight > 0 for weight in weights):
        return [e for e, weight in zip(energies, weights, strict=True) if weight > 0]
    rises = [b > a for a, b in pairwise(metersets)]
    return [e for e, rise in zip(energies, rises, strict=False) if rise]


def _numbers(value: Any) -> Iterable[float]:
    """Return a multi-valued element as numbers; one of multiplicity 1 comes as a scalar."""
    if value is None:
        return []
    if isinstance(value, int | float):
        return [float(value)]
    return [float(number) for number in value]


def _machine(name: str, number: int, path: str, machines: Sequence[str]) -> str:
    """Return the configured machine that a TreatmentMachineName means: its own name, else one within it."""
    if name in machines:
        return name
    within = [machine for machine in machines if machine in name]
    if len(within) == 1:
        return within[0]
    what = f"may be {' or '.join(within)}" if within else "is unknown"
    raise Unreadable(
        path,
        f"the machine {name!r} of beam {number} {what}; machines with a calibration: {', '.join(machines)}",
    )
