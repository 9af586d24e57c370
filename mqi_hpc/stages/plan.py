"""The plan on the cluster: read, and held against what chain.json says of it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqi_hpc.records.chain import ChainBeam
from mqi_hpc.stages.errors import StageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read_plan(path: Path) -> Dataset:
    """Return the plan's dataset, each element of it read; raises StageError where it is no DICOM file."""
    import pydicom

    # Intake took the plan as it is, with or without a preamble; what pydicom minds is not news.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            plan.walk(lambda _, element: element.value)
    except OSError:
        raise
    except Exception as error:
        raise StageError(f"plan.dcm cannot be read as DICOM: {type(error).__name__}") from error
    return plan


def check_plan(plan: Any, plan_uid: str, beam: ChainBeam, patient_id: str) -> None:
    """Raise StageError unless `plan` is the chain's, has `beam`, and is of the log's patient."""
    if str(plan.get("SOPInstanceUID", "")) != plan_uid:
        raise StageError("plan.dcm is not the plan that chain.json names")
    # No patient's identifier in a message: it ends in logs.
    if str(plan.get("PatientID", "")).strip() != patient_id.strip():
        raise StageError("PlanInfo and plan.dcm name different patients; nothing is computed")
    names = [
        str(item.get("BeamName", "")).strip()
        for item in plan.get("IonBeamSequence", [])
        if item.get("BeamNumber") == beam.number
    ]
    if names != [beam.name.strip()]:
        raise StageError(
            f"plan.dcm has {len(names)} beams of number {beam.number}"
            + (f", named {names[0]!r:.80}, not {beam.name!r:.80}" if len(names) == 1 else "")
        )
