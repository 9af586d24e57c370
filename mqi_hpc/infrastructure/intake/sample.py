"""Writes synthetic cases, byte for byte in the formats of plan and machine logs. NOT FOR CLINICAL USE."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.infrastructure.config import default_machines
from mqi_hpc.infrastructure.intake.plans import ION_PLAN
from mqi_hpc.records.delivery import (
    BEAM_ON,
    PLAN_ON,
    ROW_WORDS,
    PlanInfo,
    format_plan_info,
    format_plan_range,
)

_NOTE = "NOT FOR CLINICAL USE"
_SPOTS = [(x, y) for y in (-10.0, 0.0, 10.0) for x in (-10.0, 0.0, 10.0)]
_HIGHEST, _STEP = 150.0, 2.5
_SETUP_BEAM = 1
_IDLE_ROWS = 3
_WORD = 0xFFFF
_MOST = 999


class Calibration(Protocol):
    """What a log's values mean: mm = (raw - offset) * gain."""

    @property
    def x_offset(self) -> float: ...  # noqa: D102 - told above
    @property
    def y_offset(self) -> float: ...  # noqa: D102
    @property
    def x_gain(self) -> float: ...  # noqa: D102
    @property
    def y_gain(self) -> float: ...  # noqa: D102
    @property
    def dose1_factors(self) -> Mapping[str, float]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as planned: energy (MeV), and spots as (x mm, y mm, weight)."""

    energy: float
    spots: tuple[tuple[float, float, float], ...]


def write_sample_case(
    folder: Path,
    *,
    beams: int = 3,
    layers: int = 8,
    machine: str = "G2",
    start: datetime | None = None,
    mark: bool = True,
) -> Path:
    """Write a case into `folder`, which must not exist or be empty, and return it.

    The plan has a set-up beam 1 and treatment beams 2, 3, ...; each is delivered once, a minute apart
    from `start` (local time; now). The marker _CASE_READY comes last.
    """
    machines = default_machines()
    if machine not in machines or min(beams, layers) < 1 or max(beams, layers) > _MOST:
        raise ProcessingError(
            f"a sample case has 1 to {_MOST} beams of 1 to {_MOST} layers on {' or '.join(machines)}"
        )
    start = start or datetime.now()  # noqa: DTZ005 - the machine's local time
    plan = sample_plan([_layers(beam, layers) for beam in range(beams)], machine=machine, when=start)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ProcessingError(
                f"{folder} is there already, and not an empty folder", fix="Name another one"
            )
        study = folder / str(plan.StudyInstanceUID)
        study.mkdir(parents=True)
        plan.save_as(study / f"RP.{plan.SOPInstanceUID}.dcm", enforce_file_format=True)
        for number, beam in enumerate(plan.IonBeamSequence):
            if str(beam.TreatmentDeliveryType) != "SETUP":
                when = start + timedelta(minutes=number)
                delivery = study / f"{when:%Y%m%d%H%M%S}00"
                write_delivery(delivery, plan, beam.BeamNumber, machines[machine], when=when)
        if mark:
            (folder / "_CASE_READY").touch()
    except OSError as error:
        raise ProcessingError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def write_delivery(
    folder: Path,
    plan: Dataset,
    number: int,
    calibration: Calibration,
    *,
    when: datetime,
    shift_mm: tuple[float, float] = (0.0, 0.0),
    counts: int = 40_000,
    rows_per_spot: int = 4,
    dose1_range: str = "2",
    layers: tuple[int, int] | None = None,
) -> Path:
    """Write the logs of beam `number` as delivered just as planned, moved by `shift_mm`; return `folder`.

    `counts` is the sum of the monitor's counts over the beam, shared by the spots' weights; `layers` (first,
    last) writes a piece of an interrupted delivery.
    """
    planned = planned_layers(plan, number)
    first, last = layers or (1, len(planned))
    folder.mkdir(parents=True)
    info = PlanInfo(
        patient_id=str(plan.PatientID),
        study_uid=str(plan.get("StudyInstanceUID") or ""),
        beam_number=int(number),
        start_layer=first,
        stop_layer=last,
        irradiated=f"{when:%Y%m%d%H%M%S}",
    )
    extra = {"TCSC_PATIENT_ID": "1", "TCSC_PLAN_NUMBER": "1", "TCSC_FIELD_NUMBER": str(number)}
    (folder / "PlanInfo.txt").write_bytes(format_plan_info(info, extra).encode())
    total = sum(weight for layer in planned for _, _, weight in layer.spots) or 1.0
    rows = []
    for layer in range(first, last + 1):
        name = f"02_{when + timedelta(seconds=layer):%H%M%S}0_001_{int(number):03d}_{layer:03d}.ptn"
        scale = counts / total / calibration.dose1_factors[dose1_range]
        content = b"".join(
            _rows(planned[layer - 1], layer, calibration, shift_mm=shift_mm, scale=scale, each=rows_per_spot)
        )
        (folder / name).write_bytes(content)
        (folder / f"{name[:-4]}.mgn").write_bytes(bytes(32))
        rows.append(_range_row(layer, planned[layer - 1].energy, number, dose1_range, name))
    (folder / "PlanRange.txt").write_bytes(format_plan_range(rows).encode())
    return folder


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


def sample_plan(
    beams: Sequence[Sequence[Layer]], *, machine: str = "G2", when: datetime
) -> pydicom.FileDataset:
    """Return an RT Ion Plan with a set-up beam 1 and the given beams as 2, 3, ..."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ION_PLAN
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plan = pydicom.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _fill(
        plan,
        SOPClassUID=ION_PLAN,
        SOPInstanceUID=meta.MediaStorageSOPInstanceUID,
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        FrameOfReferenceUID=generate_uid(),
        SpecificCharacterSet="ISO_IR 192",
        Modality="RTPLAN",
        Manufacturer="mqi-hpc",
        PatientName=f"SAMPLE^{_NOTE.replace(' ', '_')}",
        PatientID=f"SAMPLE{when:%H%M%S}",
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


def _layers(beam: int, count: int) -> list[Layer]:
    """Return descending energies, a little lower for each further beam, so that no two beams are alike."""
    step = min(_STEP, (_HIGHEST - 75.0) / max(count, 1))
    highest = _HIGHEST - 5.0 * (beam % 5)
    return [
        Layer(round(highest - step * n, 2), tuple((x, y, 1.0 + 0.1 * (n % 3)) for x, y in _SPOTS))
        for n in range(count)
    ]


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


def _rows(
    layer: Layer,
    number: int,
    calibration: Calibration,
    *,
    shift_mm: tuple[float, float],
    scale: float,
    each: int,
) -> Iterator[bytes]:
    """Yield the log's rows: a few with the beam off, then `each` rows a spot."""
    x0 = y0 = 0
    for x, y, weight in layer.spots:
        x0 = _word((x + shift_mm[0]) / calibration.x_gain + calibration.x_offset)
        y0 = _word((y + shift_mm[1]) / calibration.y_gain + calibration.y_offset)
        if scale > 0 and layer.spots[0] == (x, y, weight):
            yield _pack(x0, y0, 0, number, 0) * _IDLE_ROWS
        dose, rest = divmod(round(weight * scale), each)
        for row in range(each):
            yield _pack(x0, y0, _word(dose + (row < rest)), number, PLAN_ON | BEAM_ON)
    yield _pack(x0, y0, 0, number, 0)


def _pack(x: int, y: int, dose: int, layer: int, flags: int) -> bytes:
    return struct.pack(f">{ROW_WORDS}H", x, y, 500, 500, dose, dose, layer, flags)


def _word(value: float) -> int:
    number = round(value)
    if not 0 <= number <= _WORD:
        raise ProcessingError(f"{value:g} does not fit the log's 16 bits: fewer counts, or a smaller shift")
    return number


def _range_row(layer: int, energy: float, number: int, digit: str, name: str) -> dict[str, str]:
    return {
        "RESULT_ID": "1",
        "LAYER_NO": str(layer),
        "LAYER_ENERGY": f"{energy:.2f}",
        "PATIENT_ID": "1",
        "FLD_NO": str(number),
        "DOSE1_RANGE": digit,
        "DOSE2_RANGE": digit,
        "PLAN_DOSE1_RANGE": digit,
        "PLAN_DOSE2_RANGE": digit,
        "SCAN_OUT_FL_NM": name,
        "PLAN_SCAN_OUT_FL_NM": f"{name[:-4]}.mgn",
    }


def _fill(dataset: Any, **elements: object) -> Any:
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def _list(value: Any) -> list[float]:
    if value is None:
        return []
    return [float(value)] if isinstance(value, int | float) else [float(number) for number in value]
