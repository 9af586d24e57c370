"""Writes synthetic delivery logs, byte for byte in the machine's formats. NOT FOR CLINICAL USE."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.infrastructure.intake.sample_plan import Layer, planned_layers
from mqi_hpc.records.delivery import (
    BEAM_ON,
    PLAN_ON,
    ROW_WORDS,
    PlanInfo,
    format_plan_info,
    format_plan_range,
)

_IDLE_ROWS = 3
_WORD = 0xFFFF


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
