"""A dose grid to a DICOM RT Dose, and its distal range.

The beam runs along z and enters at the grid's high-z face, as the engine's phantom has it.
"""

from __future__ import annotations

import datetime
import math
import os
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from mqi_hpc.records.chain import Grid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
ION_PLAN = "1.2.840.10008.5.1.4.1.1.481.8"
_MOST = 2**32 - 1
_DS = 16
"""Most characters of a DICOM decimal string."""
_LO, _ST = 64, 1024
_STANDIN = "stand-in"
_COPIED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)


def write_rtdose(
    path: str,
    *,
    dose: Values,
    grid: Grid,
    plan: Any,
    beam_number: int,
    dose_type: str,
    engine: str,
    engine_version: str,
    seed: int,
    log_digest: str,
    series_number: int,
    uid_root_text: str,
) -> str:
    """Write `dose` (nz, ny, nx; Gy) as an RT Dose of one beam of `plan`, and return its SOPInstanceUID.

    The UIDs follow from `uid_root_text` alone: the same dose written again is the same object. Raises
    ValueError where the dose cannot be held: not finite, negative, all zero, or of another shape.
    """
    import numpy as np
    from pydicom.uid import generate_uid

    size = tuple(reversed(grid.size))
    if dose.shape != size:
        raise ValueError(f"a dose of shape {dose.shape} is not one of a grid of {size}")
    maximum = float(dose.max())
    if not math.isfinite(maximum) or maximum <= 0 or float(dose.min()) < 0:
        raise ValueError(f"a dose from {float(dose.min())} to {maximum} Gy cannot be stored")
    scaling = dose_grid_scaling(maximum)
    uids = {
        what: generate_uid(entropy_srcs=[uid_root_text, what]) for what in ("instance", "series", "frame")
    }
    dataset = _new(uids["instance"])
    _identify(dataset, plan, uids, series_number)
    _place(dataset, grid)
    _quantify(dataset, dose_type, scaling)
    origin = f"engine {engine} {engine_version}; seed {seed}; log digest {log_digest}"
    _explain(dataset, grid, engine, engine_version, origin)
    _refer(dataset, plan, beam_number)
    # Frame by frame: the whole grid in two widths at once would not fit a small node.
    pixels = bytearray()
    for frame in dose:
        pixels += np.rint(frame / float(scaling)).clip(0, _MOST).astype("<u4").tobytes()
    dataset.PixelData = bytes(pixels)
    _save(dataset, path)
    return str(uids["instance"])


def dose_grid_scaling(maximum: float) -> str:
    """Return Gy per stored unit as a decimal string of at most 16 characters, rounded up: nothing clips."""
    exact = maximum / _MOST
    if exact < sys.float_info.min:
        raise ValueError(f"a dose maximum of {maximum} Gy is too small for a DoseGridScaling")
    for digits in range(11, 0, -1):
        text = f"{exact:.{digits}E}"
        if float(text) * _MOST < maximum:
            mantissa, exponent = text.split("E")
            text = f"{float(mantissa) + 10.0**-digits:.{digits}f}E{exponent}"
        if len(text) <= _DS and float(text) * _MOST >= maximum:
            return text
    raise ValueError(f"a dose maximum of {maximum} Gy has no DoseGridScaling")


def range80(dose: Values, grid: Grid) -> Optional[float]:
    """Return the depth (mm) below the high-z face of the laterally integrated dose's distal 80 %.

    It is the deepest such place, so that a gap between layers is not taken for the end. Linear between
    voxel centres; None where the dose does not fall so far within the grid.
    """
    depth_dose = dose.sum(axis=(1, 2))[::-1]
    limit = 0.8 * float(depth_dose.max())
    last = int((depth_dose >= limit).nonzero()[0][-1])
    if last + 1 == len(depth_dose):
        return None
    before, beyond = float(depth_dose[last]), float(depth_dose[last + 1])
    return (last + 0.5 + (before - limit) / (before - beyond)) * grid.spacing[2]


def entrance(grid: Grid) -> float:
    """Return the z (mm) of the face at which the beam enters."""
    return grid.position[2] + grid.size[2] * grid.spacing[2]


def _new(instance: str) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = RT_DOSE
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = RT_DOSE
    dataset.SOPInstanceUID = instance
    return dataset


def _identify(dataset: Any, plan: Any, uids: Dict[str, str], series_number: int) -> None:
    """Fill the patient, study, series and frame-of-reference modules; what the plan lacks stays empty."""
    if "SpecificCharacterSet" in plan:
        dataset.SpecificCharacterSet = plan.SpecificCharacterSet
    for name in (*_COPIED, *_STUDY):
        setattr(dataset, name, plan.get(name) if plan.get(name) is not None else "")
    now = datetime.datetime.now(datetime.timezone.utc).astimezone()
    dataset.InstanceCreationDate = dataset.ContentDate = f"{now:%Y%m%d}"
    dataset.InstanceCreationTime = dataset.ContentTime = f"{now:%H%M%S}"
    dataset.Modality = "RTDOSE"
    dataset.SeriesInstanceUID = uids["series"]
    dataset.SeriesNumber = series_number
    dataset.OperatorsName = ""
    dataset.FrameOfReferenceUID = str(plan.get("FrameOfReferenceUID") or uids["frame"])
    dataset.PositionReferenceIndicator = str(plan.get("PositionReferenceIndicator") or "")
    dataset.InstanceNumber = 1


def _place(dataset: Any, grid: Grid) -> None:
    """Fill the image plane: where each voxel lies."""
    from pydicom.tag import Tag

    nx, ny, nz = grid.size
    dx, dy, dz = grid.spacing
    dataset.ImagePositionPatient = [_ds(c + s / 2) for c, s in zip(grid.position, grid.spacing)]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [_ds(dy), _ds(dx)]
    dataset.SliceThickness = _ds(dz)
    dataset.Rows, dataset.Columns = ny, nx
    if nz > 1:  # a single plane is no multi-frame image, and the offsets are two or more
        dataset.NumberOfFrames = nz
        dataset.FrameIncrementPointer = Tag("GridFrameOffsetVector")
        dataset.GridFrameOffsetVector = [_ds(n * dz) for n in range(nz)]


def _quantify(dataset: Any, dose_type: str, scaling: str) -> None:
    """Fill what a stored value means."""
    from pydicom.valuerep import DSfloat

    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 32
    dataset.HighBit = 31
    dataset.PixelRepresentation = 0
    dataset.DoseUnits = "GY"
    dataset.DoseType = dose_type
    dataset.DoseSummationType = "BEAM"
    dataset.DoseGridScaling = DSfloat(scaling)
    dataset.TissueHeterogeneityCorrection = "WATER"


def _explain(dataset: Any, grid: Grid, engine: str, engine_version: str, origin: str) -> None:
    """Fill what made the dose, for people and programs."""
    standin = _STANDIN in f"{engine} {engine_version}".lower()
    warning = "NOT FOR CLINICAL USE" if standin else ""
    face = f"the beam enters at the face z = {entrance(grid):g} mm towards -z"
    dataset.Manufacturer = "mqi-hpc"
    dataset.ManufacturerModelName = _plain(engine, _LO)
    dataset.SoftwareVersions = _plain(engine_version, _LO)
    dataset.SeriesDescription = warning or "Dose recomputed from delivery logs"
    dataset.DoseComment = (warning or f"entrance z = {entrance(grid):g} mm, towards -z")[:_LO]
    dataset.ImageComments = _plain("; ".join(part for part in (warning, face, origin) if part), _ST)


def _plain(text: str, most: int) -> str:
    """Return `text` so that it fits a DICOM string of any character set: ASCII, no control, no backslash."""
    kept = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text)
    return kept[:most].strip() or "unknown"


def _refer(dataset: Any, plan: Any, beam_number: int) -> None:
    """Refer to the plan, the fraction group that has the beam (or the first), and the beam."""
    from pydicom.dataset import Dataset

    groups = list(plan.get("FractionGroupSequence") or [])
    holding = [group for group in groups if beam_number in _beams(group)] or groups
    beam, group, reference = Dataset(), Dataset(), Dataset()
    beam.ReferencedBeamNumber = beam_number
    group.ReferencedBeamSequence = [beam]
    group.ReferencedFractionGroupNumber = int(holding[0].FractionGroupNumber) if holding else 1
    reference.ReferencedSOPClassUID = ION_PLAN
    reference.ReferencedSOPInstanceUID = str(plan.SOPInstanceUID)
    reference.ReferencedFractionGroupSequence = [group]
    dataset.ReferencedRTPlanSequence = [reference]


def _beams(group: Any) -> List[int]:
    return [int(item.ReferencedBeamNumber) for item in group.get("ReferencedBeamSequence") or []]


def _ds(value: float) -> str:
    """Return a number as a decimal string of at most 16 characters, as exact as that allows."""
    for digits in range(16, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= _DS:
            return text
    raise ValueError(f"{value} is no decimal string")


def _save(dataset: Any, path: str) -> None:
    import pydicom

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        # The option that demands a whole file changed its name in pydicom 3.
        if int(pydicom.__version__.split(".")[0]) >= 3:
            dataset.save_as(file, enforce_file_format=True)
        else:
            dataset.is_little_endian, dataset.is_implicit_VR = True, False
            dataset.preamble = b"\0" * 128
            dataset.save_as(file, write_like_original=False)
        file.flush()
        os.fsync(file.fileno())
