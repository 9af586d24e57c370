"""What each file of a case has to hold, computed from its folder alone: the measure of all results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from mqi_hpc.core.intake import (
    Delivery,
    FolderRead,
    Fraction,
    IntakeResult,
    Plan,
    PlannedBeam,
    SourceFile,
)
from mqi_hpc.core.models import Beam, Case, SeenFolder

_MORNING = datetime(2026, 11, 2, 9)  # noqa: DTZ001 - the machine's local time


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class CaseFolder:
    """A case folder that a scan finds from `at` (s) on: beams 2, 3, ..., each delivered once."""

    name: str
    beams: int
    at: float

    @property
    def path(self) -> str:
        """Where it lies."""
        return f"/cases/{self.name}"

    def read(self) -> FolderRead:
        """Return what reading it gives: one complete fraction."""
        numbers = range(2, 2 + self.beams)
        plan = Plan(
            file=self._file("RP.dcm"),
            sop_instance_uid=f"1.2.{int(self.name[1:]) + 1}",
            patient_id=self.name,
            study_uid="1.9",
            beams=tuple(
                PlannedBeam(number=n, name=f"G{n}", machine="G2", energies=(100.0, 90.0)) for n in numbers
            ),
        )
        deliveries = tuple((n, (self._delivery(n),)) for n in numbers)
        result = IntakeResult(fractions=(Fraction(plan, deliveries),))
        return FolderRead(seen=SeenFolder(folder=self.path, fingerprint="1"), result=result)

    def _delivery(self, number: int) -> Delivery:
        folder = f"delivery {number}"
        return Delivery(
            folder=folder,
            info=self._file(f"{folder}/PlanInfo.txt"),
            range=self._file(f"{folder}/PlanRange.txt"),
            logs=((1, self._file(f"{folder}/1.ptn")), (2, self._file(f"{folder}/2.ptn"))),
            patient_id=self.name,
            beam_number=number,
            start_layer=1,
            stop_layer=2,
            started=_MORNING + timedelta(minutes=number),
        )

    def _file(self, path: str) -> SourceFile:
        content = f"{path} of {self.name}".encode()
        return SourceFile(path, len(content), sha256(content))


def interpreted(key: str, number: int, digests: Mapping[str, str]) -> bytes:
    """Return what interpret makes of a beam's input: SHA-256 of the files it read, by remote name."""
    read = " ".join(f"{name}={digests[name][:16]}" for name in sorted(digests))
    return f"interpreted {key} {number} of {read}\n".encode()


def dose(number: int, seed: int, interpreted_input: bytes) -> bytes:
    """Return what the engine makes of interpreted input."""
    return f"dose beam {number} seed {seed} of {sha256(interpreted_input)}\n".encode()


def rt_dose(key: str, number: int, raw: bytes) -> bytes:
    """Return what convert makes of a raw dose."""
    return f"RT Dose {key} beam {number} of {sha256(raw)}\n".encode()


def true_dose(case: Case, beam: Beam) -> bytes:
    """Return the dose that belongs to a beam."""
    mine = ("plan.dcm", f"beam_{beam.number}/")
    digests = {file.remote: file.sha256 for file in case.files if file.remote.startswith(mine)}
    return dose(beam.number, beam.seed, interpreted(case.case_id, beam.number, digests))


def true_rt_dose(case: Case, beam: Beam) -> bytes:
    """Return the RT Dose that belongs to a beam."""
    return rt_dose(case.case_id, beam.number, true_dose(case, beam))
