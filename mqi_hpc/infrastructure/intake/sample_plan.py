"""Makes synthetic RT Ion Plans, and tells their layers. NOT FOR CLINICAL USE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mqi_hpc.infrastructure.intake.plans import ION_PLAN

_NOTE = "NOT FOR CLINICAL USE"
_SPOTS = [(x, y) for y in (-10.0, 0.0, 10.0) for x in (-10.0, 0.0, 10.0)]
_HIGHEST, _STEP = 150.0, 2.5
_SETUP_BEAM = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as planned: energy (MeV), and spots as (x mm, y mm, weight)."""

    energy: float
    spots: tuple[tuple[float, float, float], ...]


def sample_plan(
    beams: Sequence[Sequence[Layer]], *, machine: str = "G2", when: datetime, seed: int | None = None
) -> pydicom.FileDataset:
    """Return an RT Ion Plan with a set-up beam 1 and the given beams as 2, 3, ...

    Its UIDs are new ones, or with `seed` the same each time.
    """
    patient = f"SAMPLE{when:%H%M%S}" if seed is None else f"SAMPLE{seed}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ION_PLAN
    meta.MediaStorageSOPInstanceUID = _uid(seed, "plan")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plan = pydicom.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _fill(
        plan,
        SOPClassUID=ION_PLAN,
        SOPInstanceUID=meta.MediaStorageSOPInstanceUID,
        StudyInstanceUID=_uid(seed, "study"),
        SeriesInstanceUID=_uid(seed, "series"),
        FrameOfReferenceUID=_uid(seed, "frame"),
        SpecificCharacterSet="ISO_IR 192",
        Modality="RTPLAN",
        Manufacturer="mqi-hpc",
        PatientName=f"SAMPLE^{_NOTE.replace(' ', '_')}",
        PatientID=patient,
        PatientBirthDate="",
        PatientSex="O",
        StudyDate=f"{when:%Y%m%d}",
        StudyTime=f"{when:%H%M%S}",
        StudyID="1",
        SeriesNumber=1,
        AccessionNumber="",
        ReferringPhysicianName="",
        OperatorsName="",
        RTPlanLabel="SAMPLE",
        RTPlanName=_NOTE,
        RTPlanDate=f"{when:%Y%m%d}",
        RTPlanTime=f"{when:%H%M%S}",
        RTPlanGeometry="TREATMENT_DEVICE",
        ApprovalStatus="UNAPPROVED",
    )
    numbers = range(_SETUP_BEAM + 1, _SETUP_BEAM + 1 + len(beams))
    referenced = [
        _fill(Dataset(), ReferencedBeamNumber=n, BeamMeterset=_meterset(layers))
        for n, layers in zip(numbers, beams, strict=True)
    ]
    group = _fill(
        Dataset(),
        FractionGroupNumber=1,
        NumberOfFractionsPlanned=30,
        NumberOfBeams=len(beams),
        NumberOfBrachyApplicationSetups=0,
        ReferencedBeamSequence=DicomSequence(referenced),
    )
    plan.FractionGroupSequence = DicomSequence([group])
    items = [_beam(_SETUP_BEAM, "SETUP", "SETUP", machine, [Layer(70.0, ((0.0, 0.0, 1.0),))])]
    for n, layers in zip(numbers, beams, strict=True):
        items.append(_beam(n, f"{n - 1}G{90 * (n - 2) % 360:03d}:S", "TREATMENT", machine, layers))
    plan.IonBeamSequence = DicomSequence(items)
    return plan


def planned_layers(plan: Dataset, number: int) -> list[Layer]:
    """Return the layers of a plan's beam: control points with spots of positive weight."""
    beam = next(item for item in plan.IonBeamSequence if int(item.BeamNumber) == int(number))
    energy, found = 0.0, []
    for point in beam.IonControlPointSequence:
        energy = float(point.get("NominalBeamEnergy") or energy)
        weights = _list(point.get("ScanSpotMetersetWeights"))
        where = _list(point.get("ScanSpotPositionMap"))
        if sum(weights) > 0:
            spots = tuple(zip(where[::2], where[1::2], weights, strict=True))
            found.append(Layer(energy, spots))
    return found


def sample_layers(beam: int, count: int) -> list[Layer]:
    """Return descending energies, a little lower for each further beam, so that no two beams are alike."""
    step = min(_STEP, (_HIGHEST - 75.0) / max(count, 1))
    highest = _HIGHEST - 5.0 * (beam % 5)
    return [
        Layer(round(highest - step * n, 2), tuple((x, y, 1.0 + 0.1 * (n % 3)) for x, y in _SPOTS))
        for n in range(count)
    ]


def _uid(seed: int | None, what: str) -> str:
    return str(generate_uid(entropy_srcs=None if seed is None else [str(seed), what]))


def _meterset(layers: Sequence[Layer]) -> float:
    return sum(weight for layer in layers for _, _, weight in layer.spots)


def _beam(number: int, name: str, kind: str, machine: str, layers: Sequence[Layer]) -> Dataset:
    points: list[Dataset] = []
    before = 0.0
    for layer in layers:
        weights = [weight for _, _, weight in layer.spots]
        # Each layer is a pair of control points: with its spots, then with none and the meterset advanced.
        for given, meterset in ((weights, before), ([0.0] * len(weights), before + sum(weights))):
            point = _fill(
                Dataset(),
                ControlPointIndex=len(points),
                NominalBeamEnergy=layer.energy,
                CumulativeMetersetWeight=round(meterset, 6),
                ScanSpotTuneID="1.0",
                NumberOfScanSpotPositions=len(weights),
                ScanSpotPositionMap=[value for x, y, _ in layer.spots for value in (x, y)],
                ScanSpotMetersetWeights=given,
                ScanningSpotSize=[8.0, 8.0],
                NumberOfPaintings=1,
            )
            points.append(point)
        before += sum(weights)
    _fill(
        points[0],
        GantryAngle=0.0,
        GantryRotationDirection="NONE",
        BeamLimitingDeviceAngle=0.0,
        BeamLimitingDeviceRotationDirection="NONE",
        PatientSupportAngle=0.0,
        PatientSupportRotationDirection="NONE",
        IsocenterPosition=[0.0, 0.0, 0.0],
        SnoutPosition=420.0,
        GantryPitchAngle=0.0,
        GantryPitchRotationDirection="NONE",
        TableTopVerticalPosition=None,
        TableTopLongitudinalPosition=None,
        TableTopLateralPosition=None,
        TableTopPitchAngle=0.0,
        TableTopPitchRotationDirection="NONE",
        TableTopRollAngle=0.0,
        TableTopRollRotationDirection="NONE",
    )
    return _fill(
        Dataset(),
        BeamNumber=number,
        BeamName=name,
        BeamDescription=_NOTE if kind == "TREATMENT" else "Site Setup",
        BeamType="STATIC",
        RadiationType="PROTON",
        TreatmentMachineName=machine,
        Manufacturer="mqi-hpc",
        InstitutionName="mqi-hpc",
        PrimaryDosimeterUnit="MU",
        TreatmentDeliveryType=kind,
        ScanMode="MODULATED",
        VirtualSourceAxisDistances=[2000.0, 2000.0],
        NumberOfWedges=0,
        NumberOfCompensators=0,
        NumberOfBoli=0,
        NumberOfBlocks=0,
        NumberOfRangeShifters=0,
        NumberOfLateralSpreadingDevices=0,
        NumberOfRangeModulators=0,
        FinalCumulativeMetersetWeight=round(before, 6),
        NumberOfControlPoints=len(points),
        IonControlPointSequence=DicomSequence(points),
    )


def _fill(dataset: Any, **elements: object) -> Any:
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def _list(value: Any) -> list[float]:
    if value is None:
        return []
    return [float(value)] if isinstance(value, int | float) else [float(number) for number in value]
