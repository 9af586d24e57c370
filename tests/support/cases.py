"""Case folders for tests: made whole, then altered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom

from mqi_hpc.core.intake import IntakeResult
from mqi_hpc.infrastructure.config import default_machines
from mqi_hpc.infrastructure.intake import CaseReader, write_delivery, write_sample_case

START = datetime(2026, 3, 2, 9, 0, 0)  # noqa: DTZ001 - the machine's local time
GAP = 3600.0


@dataclass(frozen=True)
class CaseFolder:
    """A case folder: patient folder, study folder, plan, and the delivery of each beam number."""

    folder: Path
    study: Path
    plan: Path
    deliveries: dict[int, Path]

    def relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def edit_plan(self, change: Callable[[Any], None]) -> None:
        dataset = pydicom.dcmread(self.plan)
        change(dataset)
        dataset.save_as(self.plan)

    def add_fraction(self, start: datetime, numbers: Sequence[int] = ()) -> dict[int, Path]:
        """Deliver the beams (all of them, where none are named) once more, a minute apart from `start`."""
        plan = pydicom.dcmread(self.plan)
        made = {}
        for minute, number in enumerate(numbers or sorted(self.deliveries)):
            when = start + timedelta(minutes=minute)
            made[number] = deliver(self, number, when, plan=plan)
        return made


def make_case(folder: Path, *, beams: int = 2, layers: int = 3, start: datetime = START) -> CaseFolder:
    """Write a sample case: a set-up beam 1 and treatment beams 2, 3, ..., each delivered once."""
    write_sample_case(folder, beams=beams, layers=layers, start=start)
    (plan,) = folder.rglob("*.dcm")
    deliveries = {beam_of(info.parent): info.parent for info in sorted(folder.rglob("PlanInfo.txt"))}
    return CaseFolder(folder, plan.parent, plan, deliveries)


def deliver(case: CaseFolder, number: int, when: datetime, *, plan: Any = None, **options: Any) -> Path:
    """Write one more delivery into a case; `options` are those of `write_delivery`."""
    plan = plan or pydicom.dcmread(case.plan)
    folder = case.study / f"{when:%Y%m%d%H%M%S}00"
    return write_delivery(folder, plan, number, default_machines()["G2"], when=when, **options)


def beam_of(delivery: Path) -> int:
    found = re.search(r"DICOM_BEAM_NUMBER,(\d+)", (delivery / "PlanInfo.txt").read_text())
    assert found
    return int(found[1])


def edit_info(delivery: Path, **entries: str | None) -> None:
    """Set entries of a PlanInfo.txt; None takes one away."""
    path = delivery / "PlanInfo.txt"
    lines = [line.split(",", 1) for line in path.read_text().splitlines()]
    kept = {key: value for key, value in lines if key not in entries}
    kept |= {key: value for key, value in entries.items() if value is not None}
    path.write_text("".join(f"{key},{value}\n" for key, value in kept.items()))


def logs(delivery: Path) -> list[Path]:
    """The .ptn of a delivery, in the order of layers."""
    return sorted(delivery.glob("*.ptn"), key=lambda path: path.name.rsplit("_", 1)[-1])


def read(
    folder: Path | str,
    *,
    chosen: Sequence[str] | None = None,
    now: datetime | None = None,
    machines: Mapping[str, Any] | None = None,
) -> IntakeResult:
    """Read a folder as intake does; `now` is local time, half an hour after START where none is given."""
    reader = CaseReader(machines or default_machines(), fraction_gap_seconds=GAP)
    moment = now or START + timedelta(minutes=30)
    return reader.read(str(folder), chosen=chosen, now=moment.timestamp())


def refusals(result: IntakeResult) -> str:
    """All that a result says against a folder, a line each."""
    lines = [line for one in result.rejected for line in (one.reason, *map(str, one.faults))]
    return "\n".join([*lines, *(one.reason for one in result.waiting)])
