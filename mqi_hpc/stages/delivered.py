"""What was delivered for a beam, layer by layer: the log's files and their monitor range, pieces joined."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List

from mqi_hpc.records.chain import ChainBeam
from mqi_hpc.records.delivery import PlanInfo, parse_plan_info, parse_plan_range, same_energy
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import PLAN_INFO, PLAN_RANGE, beam_folder

_PIECE = re.compile(re.escape(PLAN_INFO).replace(r"\.", r"(-[0-9]+)?\.") + r"\Z")
_LAYER = re.compile(r"([0-9]{3,})\.ptn\Z")


@dataclass(frozen=True)
class Layer:
    """One layer: its number from 1, its log's path below the input folder, the digit of DOSE1_RANGE."""

    number: int
    log: str
    dose1_range: str


@dataclass(frozen=True)
class Delivered:
    """A beam's delivery; `patient_id` is for comparison alone."""

    patient_id: str
    layers: List[Layer]


def read_delivered(input_folder: Path, paths: Iterable[str], beam: ChainBeam) -> Delivered:
    """Return the delivery of `beam` from its files (`paths` as the manifest lists them).

    Raises FormatError where the files do not hold exactly this beam's layers, one log each.
    """
    prefix = beam_folder(beam.number) + "/"
    names = sorted(path[len(prefix) :] for path in paths if path.startswith(prefix))
    pieces = [match for match in (_PIECE.match(name) for name in names) if match is not None]
    if not pieces:
        raise FormatError(f"beam {beam.number} has no {PLAN_INFO}")
    ranges: Dict[int, str] = {}
    patients = set()
    for piece in pieces:
        name = prefix + piece[0]
        info = parse_plan_info(_text(input_folder, name), name)
        if info.beam_number != beam.number:
            raise FormatError(f"{name} is of beam {info.beam_number}")
        patients.add(info.patient_id)
        name = prefix + PLAN_RANGE.replace(".", f"{piece[1] or ''}.")
        for number, digit in _ranges(_text(input_folder, name), name, info, beam).items():
            if number in ranges:
                raise FormatError(f"{name}: layer {number} of beam {beam.number} was delivered twice")
            ranges[number] = digit
    if len(patients) != 1:
        raise FormatError(f"the PlanInfo files of beam {beam.number} name different patients")
    logs = {int(match[1]): match[0] for match in map(_LAYER.match, names) if match is not None}
    wanted = list(range(1, len(beam.energies) + 1))
    for what, found in ((PLAN_RANGE, list(ranges)), ("the .ptn files", list(logs))):
        if sorted(found) != wanted:
            have = ", ".join(str(n) for n in sorted(found)) or "none"
            raise FormatError(f"beam {beam.number} has {len(wanted)} layers, {what} of it {have}")
    return Delivered(
        patient_id=patients.pop(),
        layers=[Layer(number=n, log=prefix + logs[n], dose1_range=ranges[n]) for n in wanted],
    )


def _text(folder: Path, name: str) -> str:
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise FormatError(f"{name} is missing") from error
    try:
        return content.decode()
    except UnicodeDecodeError:
        # As intake reads it: what counts is ASCII, but a machine's share may be named in another code page.
        return content.decode("latin-1")


def _ranges(text: str, name: str, info: PlanInfo, beam: ChainBeam) -> Dict[int, str]:
    """Return the digit of DOSE1_RANGE by layer number, for the layers that PlanInfo says this piece holds."""
    found: Dict[int, str] = {}
    for row in parse_plan_range(text, name):
        if not info.start_layer <= row.layer <= info.stop_layer:
            continue
        if row.layer > len(beam.energies):
            raise FormatError(f"{name}: layer {row.layer} is none of beam {beam.number}")
        planned = beam.energies[row.layer - 1]
        if not same_energy(row.energy, planned):
            raise FormatError(f"{name}: layer {row.layer} has {row.energy:g} MeV, the plan {planned:g} MeV")
        found[row.layer] = row.dose1_range
    return found
