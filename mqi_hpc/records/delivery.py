"""The machine's delivery logs: PlanInfo, PlanRange and the rows of a .ptn, read and written in one place.

PlanInfo holds `KEY,VALUE` lines, PlanRange a header and a row a layer. A .ptn holds big-endian 16-bit words,
eight a row: x, y, their widths, dose 1, dose 2, layer, flags.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Dict, List, Optional, Sequence

from mqi_hpc.records.form import FormatError

ROW_WORDS = 8
ROW_BYTES = 2 * ROW_WORDS
BEAM_ON = 0x4000
"""Flag bit 14: the beam was on."""
PLAN_ON = 0x8000
"""Flag bit 15: the plan wants the beam on."""
ENERGY_TOLERANCE = 0.05
"""MeV: PlanRange gives energies with fewer digits than the plan."""
MOST_LAYERS = 1000
"""A layer has three digits in its log's name."""
RANGE_COLUMNS = (
    "RESULT_ID",
    "LAYER_NO",
    "LAYER_ENERGY",
    "PATIENT_ID",
    "FLD_NO",
    "DOSE1_RANGE",
    "DOSE2_RANGE",
    "PLAN_DOSE1_RANGE",
    "PLAN_DOSE2_RANGE",
    "SCAN_OUT_FL_NM",
    "PLAN_SCAN_OUT_FL_NM",
)
_STAMP = re.compile(r"[0-9]{14}([0-9]{2})?\Z")
_INTEGER = re.compile(r"([0-9]{1,6})(\.0*)?\Z")
"""Spreadsheets and scripts write 3 as 3.0; nothing else can be meant by it."""


@dataclass(frozen=True)
class PlanInfo:
    """What PlanInfo says. `study_uid` and `irradiated` (yyyymmddhhmmss, local time) may be ''."""

    patient_id: str
    study_uid: str
    beam_number: int
    start_layer: int
    stop_layer: int
    irradiated: str


@dataclass(frozen=True)
class RangeRow:
    """A layer in PlanRange: number from 1, energy (MeV), monitor range's digit, its .ptn ('': not named)."""

    layer: int
    energy: float
    dose1_range: str
    file: str


def same_energy(a: float, b: float) -> bool:
    """Whether two energies (MeV) are one, as exactly as PlanRange can tell."""
    return abs(a - b) <= ENERGY_TOLERANCE + 1e-9


def parse_plan_info(text: str, name: str) -> PlanInfo:
    """Return what a PlanInfo.txt says; raises FormatError, naming `name`, for too little or nonsense."""
    entries: Dict[str, str] = {}
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip(" \t,"):
            continue
        key, comma, value = line.partition(",")
        key, value = key.strip().upper(), value.strip(" \t,")
        if not comma:
            raise FormatError(f"{name}: line {number} is not `KEY,VALUE`")
        if entries.get(key, value) != value:
            raise FormatError(f"{name}: {key} stands in it twice, with two values")
        entries[key] = value
    patient = entries.get("DICOM_PATIENT_ID", "")
    if not patient:
        raise FormatError(f"{name}: DICOM_PATIENT_ID is missing")
    irradiated = entries.get("TCSC_IRRAD_DATETIME", "")
    if irradiated and not _is_stamp(irradiated):
        raise FormatError(f"{name}: TCSC_IRRAD_DATETIME should be 16 digits, yyyymmddhhmmss and two more")
    start = _integer(entries, "START_LAYER_NUMBER", name) if entries.get("START_LAYER_NUMBER") else 1
    stop = _integer(entries, "STOP_LAYER_NUMBER", name)
    if not 1 <= start <= stop:
        raise FormatError(f"{name}: layers {start} to {stop} are no range of layers")
    return PlanInfo(
        patient_id=patient,
        study_uid=entries.get("DICOM_STUDY_INS_UID", ""),
        beam_number=_integer(entries, "DICOM_BEAM_NUMBER", name),
        start_layer=start,
        stop_layer=stop,
        irradiated=irradiated[:14],
    )


def parse_plan_range(text: str, name: str) -> List[RangeRow]:
    """Return the rows of a PlanRange.txt in its order; raises FormatError, naming `name`, for nonsense."""
    try:
        rows = [row for row in csv.reader(_lines(text), skipinitialspace=True, strict=True) if any(row)]
    except csv.Error as error:
        raise FormatError(f"{name}: {error}") from error
    header = [cell.strip().upper() for cell in rows[0]] if rows else []
    missing = [c for c in ("LAYER_NO", "LAYER_ENERGY", "DOSE1_RANGE") if c not in header]
    if missing:
        raise FormatError(f"{name}: its first line should name the columns; missing: {', '.join(missing)}")
    if len(rows) > MOST_LAYERS:
        raise FormatError(f"{name}: has {len(rows) - 1} rows, fewer than {MOST_LAYERS} layers are expected")
    found: Dict[int, RangeRow] = {}
    for row in rows[1:]:
        cells = dict(zip(header, (cell.strip() for cell in row)))
        layer = _integer(cells, "LAYER_NO", name)
        try:
            energy = float(cells.get("LAYER_ENERGY", ""))
        except ValueError as error:
            raise FormatError(f"{name}: LAYER_ENERGY of layer {layer} should be a number of MeV") from error
        if not math.isfinite(energy) or energy <= 0:
            raise FormatError(f"{name}: LAYER_ENERGY of layer {layer} should be a number of MeV")
        if layer in found:
            raise FormatError(f"{name}: layer {layer} stands in it twice")
        digit = cells.get("DOSE1_RANGE", "")
        whole = _INTEGER.match(digit)
        file = cells.get("SCAN_OUT_FL_NM", "")
        found[layer] = RangeRow(layer, energy, whole[1] if whole else digit, file)
    return list(found.values())


def format_plan_info(info: PlanInfo, extra: Optional[Dict[str, str]] = None) -> str:
    """Return the text of a PlanInfo.txt; `extra` are further entries."""
    entries = {
        "DICOM_PATIENT_ID": info.patient_id,
        "DICOM_STUDY_INS_UID": info.study_uid,
        "DICOM_BEAM_NUMBER": str(info.beam_number),
        "TCSC_IRRAD_DATETIME": f"{info.irradiated}00" if info.irradiated else "",
        "START_LAYER_NUMBER": str(info.start_layer),
        "STOP_LAYER_NUMBER": str(info.stop_layer),
        **(extra or {}),
    }
    return "".join(f"{key},{value}\r\n" for key, value in entries.items() if value)


def format_plan_range(rows: Sequence[Dict[str, str]]) -> str:
    """Return the text of a PlanRange.txt; each row gives values by column, of RANGE_COLUMNS."""
    out = io.StringIO()
    writer = csv.DictWriter(out, RANGE_COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _lines(text: str) -> List[str]:
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _time(text: str) -> datetime:
    # No time zone: it is the machine's own clock.
    return datetime.strptime(text[:14], "%Y%m%d%H%M%S")  # noqa: DTZ007


def _is_stamp(text: str) -> bool:
    try:
        return _STAMP.match(text) is not None and bool(_time(text))
    except ValueError:
        return False


def _integer(entries: Dict[str, str], key: str, name: str) -> int:
    value = entries.get(key, "")
    match = _INTEGER.match(value)
    if match is None:
        what = "is missing" if not value else f"should be a whole number, not {value!r:.40}"
        raise FormatError(f"{name}: {key} {what}")
    return int(match[1])
