"""A dose grid to a DICOM RT Dose, and its distal range.

The beam runs along z and enters at the grid's high-z face, as the engine's phantom has it.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import struct
import sys
import warnings
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
_FORMS = {
    "PatientBirthDate": r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])",
    "StudyDate": r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])",
    "StudyTime": r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}
"""What an archive accepts; a plan's value of another form stays empty, as the standard lets it."""


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

    Its UIDs follow from `uid_root_text` alone: the same dose written again is the same object. A study or
    frame of reference that the plan lacks is made from the plan's UID, one for all its beams. Raises
    ValueError where the dose cannot be held: not finite, negative, all zero, too large, or of another shape.
    """
    from pydicom.uid import generate_uid

    size = tuple(reversed(grid.size))
    if dose.shape != size:
        raise ValueError(f"a dose of shape {dose.shape} is not one of a grid of {size}")
    if 4 * dose.size >= _MOST:
        raise ValueError(f"a grid of {dose.size} voxels does not fit the pixel data of one RT Dose")
    maximum = float(dose.max())
    if not math.isfinite(maximum) or maximum <= 0 or float(dose.min()) < 0:
        raise ValueError(f"a dose from {float(dose.min())} to {maximum} Gy cannot be stored")
    scaling = dose_grid_scaling(maximum)
    plan_uid = str(plan.SOPInstanceUID)
    roots = {"instance": uid_root_text, "series": uid_root_text, "frame": plan_uid, "study": plan_uid}
    uids = {what: str(generate_uid(entropy_srcs=[root, what])) for what, root in roots.items()}
    origin = f"engine {engine} {engine_version}; seed {seed}; log digest {log_digest}"
    with warnings.catch_warnings():
        # pydicom's warnings quote what they mind, the patient's data too; a job's log must not.
        warnings.simplefilter("ignore")
        dataset = _new(uids["instance"])
        _identify(dataset, plan, uids, series_number)
        _place(dataset, grid)
        _quantify(dataset, dose_type, scaling)
        _explain(dataset, grid, engine, engine_version, origin)
        _refer(dataset, plan, beam_number)
        dataset.SeriesDescription = _title(plan, beam_number, _warning(engine, engine_version))
        _save(dataset, dose, float(scaling), path)
    return uids["instance"]


def dose_grid_scaling(maximum: float) -> str:
    """Return Gy per stored unit as a decimal string of at most 16 characters, rounded up: nothing clips."""
    exact = maximum / _MOST
    if exact < sys.float_info.min:
        raise ValueError(f"a dose maximum of {maximum} Gy is too small for a DoseGridScaling")
    # With one digit it fits, whatever the exponent: there is always an answer.
    texts = (_no_less(maximum, exact, digits) for digits in range(11, 0, -1))
    return next(text for text in texts if len(text) <= _DS)


def _no_less(maximum: float, exact: float, digits: int) -> str:
    """Return `exact` with so many digits, rounded up where the largest stored value would miss `maximum`."""
    text = f"{exact:.{digits}E}"
    if float(text) * _MOST >= maximum:
        return text
    mantissa, exponent = text.split("E")
    return f"{float(mantissa) + 10.0**-digits:.{digits}f}E{exponent}"


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
        setattr(dataset, name, _copy(plan, name))
    if not dataset.StudyInstanceUID:
        dataset.StudyInstanceUID = uids["study"]
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


def _copy(plan: Any, name: str) -> Any:
    """Return the plan's value of a tag, '' where it has none or none of the form it must have."""
    value = plan.get(name)
    if value is None or (name in _FORMS and not re.fullmatch(_FORMS[name], str(value).strip())):
        return ""
    return value


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


def _warning(engine: str, engine_version: str) -> str:
    return "NOT FOR CLINICAL USE" if _STANDIN in f"{engine} {engine_version}".lower() else ""


def _explain(dataset: Any, grid: Grid, engine: str, engine_version: str, origin: str) -> None:
    """Fill what made the dose, for people and programs."""
    warning = _warning(engine, engine_version)
    face = f"the beam enters at the face z = {entrance(grid):g} mm towards -z"
    dataset.Manufacturer = "mqi-hpc"
    dataset.ManufacturerModelName = _plain(engine, _LO)
    dataset.SoftwareVersions = _plain(engine_version, _LO)
    short = f"entrance z = {entrance(grid):g} mm, towards -z"
    dataset.DoseComment = "; ".join(part for part in (warning, short) if part)[:_LO]
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
    group.ReferencedFractionGroupNumber = int(holding[0].get("FractionGroupNumber") or 1) if holding else 1
    reference.ReferencedSOPClassUID = ION_PLAN
    reference.ReferencedSOPInstanceUID = str(plan.SOPInstanceUID)
    reference.ReferencedFractionGroupSequence = [group]
    dataset.ReferencedRTPlanSequence = [reference]


def _title(plan: Any, beam_number: int, warning: str) -> str:
    """Return what a viewer lists: it must tell one beam's dose from another's."""
    beams = [item for item in plan.get("IonBeamSequence") or [] if item.get("BeamNumber") == beam_number]
    names = [str(item.get("BeamName") or "") for item in beams]
    return _plain(f"{warning or 'Recomputed'}: " + " ".join(("beam", str(beam_number), *names)), _LO)


def _beams(group: Any) -> List[int]:
    return [int(item.ReferencedBeamNumber) for item in group.get("ReferencedBeamSequence") or []]


def _ds(value: float) -> str:
    """Return a number as a decimal string of at most 16 characters, as exact as that allows."""
    texts = (f"{value:.{digits}g}" for digits in range(16, 0, -1))
    return next(text for text in texts if len(text) <= _DS)


def _save(dataset: Any, dose: Values, scaling: float, path: str) -> None:
    """Write all but the pixels by pydicom, the pixels frame by frame: copies of them would not fit a node."""
    import numpy as np
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
        # Pixel Data (7FE0,0010), explicit VR: the tag above all others in the file, so it comes last.
        file.write(struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OW", 4 * dose.size))
        for frame in dose:
            file.write(np.rint(frame / scaling).clip(0, _MOST).astype("<u4").tobytes())
        file.flush()
        os.fsync(file.fileno())
