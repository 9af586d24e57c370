"""tps_env as a program: `tps_env [INPUT_FILE]`; messages and exit codes are moqui's."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pydicom

from .dose import Grid, Layer, compute
from .faults import fault_of
from .parameters import Parameters, Thrown

ABORTED = 134
"""What a shell shows of a program that aborts on an uncaught exception."""
VERSION = "mqi stand-in engine version 1.0 - NOT FOR CLINICAL USE"
_ION_PLAN = "1.2.840.10008.5.1.4.1.1.481.8"
_ENERGY = re.compile(r"_([^M]*)M")


def main(argv) -> int:
    """Run; return the exit code."""
    path = Path(argv[1]) if len(argv) > 1 else Path("./moqui_tps.in")
    began = time.monotonic()
    try:
        code = _run(path)
    except Thrown as error:
        sys.stdout.flush()
        sys.stderr.write("terminate called after throwing an instance of 'std::runtime_error'\n")
        sys.stderr.write(f"  what():  {error}\n")
        return ABORTED
    if code == 0:
        print(f"Time taken by MC engine: {(time.monotonic() - began) * 1000:.0f} milli-seconds", flush=True)
    return code


def _run(path: Path) -> int:
    print(VERSION, flush=True)
    try:
        # CR is no line end to the real parser.
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        raise Thrown("Cannot open input parameter file.") from None
    given = Parameters(text)
    number = _beam_number(given)
    dicom, logs, output = _folders(given)
    plan = _plan(dicom)
    beam = next((item for item in _beams(plan) if item.get("BeamNumber") == number), None)
    if beam is None:
        raise Thrown("Invalid beam number.")
    grid = Grid(*(_three(given, name, default) for name, default in _PHANTOM))
    if min(*grid.size, *grid.unit) < 1:
        raise Thrown(f"the phantom has {grid.size} voxels of {grid.unit} mm")
    layers = _layers(logs, number, given.text("LogDialect", "rows"))
    fault = fault_of(number)
    if fault == "hang":
        print("Generating particles for (1 of 1 batches) in CPU ..", flush=True)
        while fault == "hang":
            time.sleep(0.2)
            fault = fault_of(number)
    if fault.startswith("exit "):
        sys.stderr.write(f"CUDA error: (transport particle) the stand-in engine was told to fail: {fault}\n")
        return int(fault.split()[1])
    print(f"beam {number}: {len(layers)} layers with 1 batches", flush=True)
    print("Generating particles for (1 of 1 batches) in CPU ..", flush=True)
    try:
        dose = compute(grid, layers, given.real("ParticlesPerHistory", 1.0))
    except ValueError as error:
        raise Thrown(str(error)) from None
    except MemoryError:
        raise Thrown("std::bad_alloc") from None
    print("Simlulation finalizing..", flush=True)
    name = f"{_name(plan, beam, fault)}_{_beamline(beam)}_Dose.raw"
    return _write(output, name, _spoilt(dose, fault), overwrite=given.flag("OverwriteResults", False))


_PHANTOM = (("PhantomDim", 200), ("PhantomUnit", 1), ("PhantomPosition", 1))


def _three(given: Parameters, name: str, default: int):
    return tuple(given.integer(f"{name}{axis}", default) for axis in "XYZ")


def _beam_number(given: Parameters) -> int:
    numbers = [n for n in given.text("BeamNumbers", "").split(",") if n.strip()]
    if len(numbers) != 1 or not numbers[0].strip().isdecimal():
        raise Thrown("Invalid beam number.")
    if given.integer("GantryNum", 2) not in (1, 2):
        print("Warning: GantryNum is neither 1 nor 2; 2 is assumed", flush=True)
    return int(numbers[0])


def _folders(given: Parameters):
    parent = given.text("ParentDir", None)
    if parent is None:
        raise Thrown("ParentDir is not provided")
    absolute = given.flag("UseAbsolutePath", False)
    base = Path() if absolute else Path(parent)
    dicom = given.text("DicomPath" if absolute else "DicomDir", None) or given.text("DicomDir", None)
    if dicom is None:
        raise Thrown("ParentDir is not provided")
    logs = given.text("logFilePath", None)
    if logs is None:
        raise Thrown("Log Dir is not provided")
    output = given.text("OutputDir", None)
    if output is None:
        raise Thrown("Output directory is not provided.")
    if given.text("Scorer", "EnergyDeposition").lower() != "dose":
        raise Thrown("Unrecognized scorer name")
    return base / dicom, base / logs, Path(output)


def _plan(folder: Path):
    if not folder.is_dir():
        raise Thrown("something wrong in reading the directory.")
    for path in sorted(folder.iterdir()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = pydicom.dcmread(path, stop_before_pixels=True, force=True)
                if str(found.get("SOPClassUID", "")) == _ION_PLAN:
                    return found
        except Exception:  # noqa: BLE001, S112 - pydicom raises what it likes; moqui scans on too
            continue
    raise Thrown("There is no RTPLAN in the path. Exiting.")


def _layers(logs: Path, number: int, dialect: str):
    """The (BeamNumber-1)-th entry of the sorted log folder; its files are layers, sorted by name."""
    entries = sorted(os.fsencode(entry.name) for entry in logs.iterdir()) if logs.is_dir() else []
    if not 1 <= number <= len(entries):
        raise Thrown(f"No matching log folder found for RT Plan Beam #{number}")
    field = logs / os.fsdecode(entries[number - 1])
    names = sorted(entry.name for entry in field.iterdir()) if field.is_dir() else []
    if not names:
        raise Thrown(f"No matching log folder found for RT Plan Beam #{number}")
    layers = []
    for name in names:
        match = _ENERGY.search(name)
        if match is None:
            raise Thrown(f"no energy in the log's name {name}")
        try:
            layer = Layer(float(match[1]), _samples(field / name, dialect))
        except (ValueError, OSError) as error:
            raise Thrown(f"the log {name} cannot be read: {error}") from None
        if not np.isfinite(layer.samples).all() or (layer.samples[:, 2] < 0).any():
            raise Thrown(f"the log {name} has a place or count that is no number, or a negative count")
        layers.append(layer)
    return layers


def _samples(path: Path, dialect: str) -> np.ndarray:
    """x, y, count of a log in the dialect that was asked for; the other is refused, not misread."""
    text = path.read_text()
    if dialect not in ("rows", "flat"):
        raise Thrown(f"LogDialect is {dialect!r}, not rows or flat")
    if dialect == "flat":
        values = (
            np.array([float(value) for value in text.strip().split(",")]) if "\n" not in text.strip() else []
        )
        if len(values) % 4:
            raise Thrown(f"{path.name}: not one line of time, x, y, count")
        if len(values) == 0:
            raise Thrown(f"{path.name}: not one line, as LogDialect flat has it")
        return values.reshape(-1, 4)[:, 1:]
    rows = [line.rstrip("\r").split(",") for line in text.split("\n") if line.strip()]
    if not rows or any(len(row) != 4 for row in rows):
        raise Thrown(f"{path.name}: not rows of time, x, y, count, as LogDialect rows has it")
    return np.array(rows, dtype=float)[:, 1:]


def _beams(plan):
    return plan.get("IonBeamSequence") or []


def _beamline(beam) -> int:
    return int(beam.get("NumberOfRangeShifters") or 0) + int(beam.get("NumberOfBlocks") or 0)


def _name(plan, beam, fault: str) -> str:
    name = str(beam.get("BeamName") or "")
    if fault != "other-beam":
        return name
    others = [
        str(item.BeamName)
        for item in _beams(plan)
        if item.get("BeamName") not in (None, "", name)
        and str(item.get("TreatmentDeliveryType") or "") != "SETUP"
    ]
    return others[0] if others else f"{name}-other"


def _spoilt(dose: np.ndarray, fault: str) -> np.ndarray:
    if fault == "nan":
        dose[dose.shape[0] // 2] = np.nan
    values = dose.astype("<f8", copy=False).ravel()
    if fault == "half":
        return values[: len(values) // 2]
    if fault == "wrong-size":
        return np.concatenate([values, values[: dose.shape[1] * dose.shape[2]]])
    return values


def _write(output: Path, name: str, values: np.ndarray, *, overwrite: bool) -> int:
    if output.exists() and not overwrite:
        raise Thrown("Output directory exists.")
    # As the real one: one level, and a failure shows when it writes.
    with contextlib.suppress(OSError):
        output.mkdir()
    # Put together as text: a name that begins with / must not lead elsewhere.
    path = f"{output}/{name}"
    try:
        with open(path, "wb") as file:  # noqa: PTH123 - see above
            file.write(values.data)
    except OSError:
        # The real one says so and ends with 0.
        print(f"Cannot write :{path}", flush=True)
    return 0
