"""Writes synthetic case folders: a plan, and one or more fractions of its delivery. NOT FOR CLINICAL USE."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.readiness import MARKER
from mqi_hpc.infrastructure.config import default_machines
from mqi_hpc.infrastructure.intake.sample_logs import write_delivery
from mqi_hpc.infrastructure.intake.sample_plan import Layer, planned_layers, sample_layers, sample_plan

__all__ = ["Layer", "add_fraction", "planned_layers", "sample_plan", "write_delivery", "write_sample_case"]

_MOST = 999
_STAMP = "%Y%m%d%H%M%S"
_DAY = timedelta(days=1)


def write_sample_case(
    folder: Path,
    *,
    beams: int = 3,
    layers: int = 8,
    fractions: int = 1,
    machine: str = "G2",
    start: datetime | None = None,
    mark: bool = True,
    seed: int | None = None,
) -> Path:
    """Write a case into `folder`, which must not exist or be empty, and return it.

    The plan has a set-up beam 1 and treatment beams 2, 3, ... for `machine` (G1 or G2: the room); each is
    delivered once a fraction, a minute apart, the fractions a day apart from `start` (local time; without it
    the last one has just been delivered). The marker _CASE_READY comes last. With `seed` (and `start`) the
    same case is written each time.
    """
    machines = default_machines()
    if machine not in machines or min(beams, layers, fractions) < 1 or max(beams, layers, fractions) > _MOST:
        raise ProcessingError(
            f"a sample case has 1 to {_MOST} beams of 1 to {_MOST} layers on {' or '.join(machines)}, "
            f"delivered in 1 to {_MOST} fractions"
        )
    # A beam's delivery is named by its minute: the last of the last fraction was a minute ago.
    just = datetime.now() - timedelta(minutes=beams + 1)  # noqa: DTZ005 - the machine's local time
    start = start or just - (fractions - 1) * _DAY
    planned = [sample_layers(beam, layers) for beam in range(beams)]
    plan = sample_plan(planned, machine=machine, when=start, seed=seed)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ProcessingError(
                f"{folder} is there already, and not an empty folder", fix="Name another one"
            )
        study = folder / str(plan.StudyInstanceUID)
        study.mkdir(parents=True)
        plan.save_as(study / f"RP.{plan.SOPInstanceUID}.dcm", enforce_file_format=True)
        for number in range(fractions):
            _deliver(study, plan, machine, start + number * _DAY)
        if mark:
            (folder / MARKER).touch()
    except OSError as error:
        raise ProcessingError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def add_fraction(folder: Path, *, when: datetime | None = None, mark: bool = True) -> Path:
    """Deliver every beam of a sample case once more, and return its folder; the marker is renewed.

    `when` is the local time of the fraction; without it, a day after the newest one. Raises ProcessingError
    where the folder is no sample case, or has a delivery at that time.
    """
    try:
        plans = sorted(folder.glob("*/RP.*.dcm"))
        if len(plans) != 1:
            raise ProcessingError(f"{folder} is no sample case: it has {len(plans)} plans in place of one")
        plan = pydicom.dcmread(plans[0])
        study = plans[0].parent
        machine = str(plan.IonBeamSequence[0].TreatmentMachineName)
        _deliver(study, plan, machine, when or _next(study, len(plan.IonBeamSequence) - 1))
        if mark:
            (folder / MARKER).touch()
    except FileExistsError as error:
        raise ProcessingError(f"{error.filename} is there already", fix="Name another time") from error
    except OSError as error:
        raise ProcessingError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def _deliver(study: Path, plan: Dataset, machine: str, start: datetime) -> None:
    for minute, beam in enumerate(plan.IonBeamSequence):
        if str(beam.TreatmentDeliveryType) != "SETUP":
            when = start + timedelta(minutes=minute)
            calibration = default_machines()[machine]
            write_delivery(study / f"{when:{_STAMP}}00", plan, beam.BeamNumber, calibration, when=when)


def _next(study: Path, minutes: int) -> datetime:
    """Return a day after the newest fraction began; its last delivery is named `minutes` after that."""
    names = [info.parent.name for info in study.glob("*/PlanInfo.txt")]
    if not names:
        raise ProcessingError(f"{study} has no delivery yet", fix="Say when the fraction is delivered")
    last = datetime.strptime(max(names)[:-2], _STAMP)  # noqa: DTZ007 - the machine's local time
    return last - timedelta(minutes=minutes) + _DAY
