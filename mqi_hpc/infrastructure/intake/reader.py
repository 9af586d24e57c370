"""A case folder to what it makes (ICaseReader): read here, decided in the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from mqi_hpc.core.fractions import decide
from mqi_hpc.core.intake import IntakeResult, Plan, rejected_with
from mqi_hpc.infrastructure.intake.deliveries import read_deliveries
from mqi_hpc.infrastructure.intake.folder import walk
from mqi_hpc.infrastructure.intake.plans import read_plans


class Machine(Protocol):
    """What intake needs to know of a machine: the factors by digit of DOSE1_RANGE."""

    @property
    def dose1_factors(self) -> Mapping[str, float]: ...  # noqa: D102 - told above


class CaseReader:
    """Reads case folders against the machines that have a calibration."""

    def __init__(self, machines: Mapping[str, Machine], *, fraction_gap_seconds: float) -> None:
        self._machines = machines
        self._gap = timedelta(seconds=fraction_gap_seconds)

    def read(self, folder: str, *, chosen: Sequence[str] | None, now: float) -> IntakeResult:
        """Return what a folder holds. `now` is epoch seconds; raises RejectedCase where it is no folder."""
        tree = walk(folder)
        plans, faults = read_plans(tree, list(self._machines))
        faults = [*tree.faults, *faults]
        deliveries = read_deliveries(tree, self._ranges(plans))
        if not plans or faults:
            faults += [fault for delivery in deliveries for fault in delivery.faults]
            reason = "the folder has faults" if plans or faults else "no RT Ion Plan was found in the folder"
            if not plans and not any("plan" in str(fault) for fault in faults):
                reason = "no RT Ion Plan was found in the folder"
            return rejected_with(reason, faults)
        # The logs tell the machine's local time.
        local = datetime.fromtimestamp(now)  # noqa: DTZ006
        return decide(plans, deliveries, gap=self._gap, now=local, chosen=chosen)

    def _ranges(self, plans: Sequence[Plan]) -> set[str]:
        names = {beam.machine for plan in plans for beam in plan.beams} or set(self._machines)
        return set.intersection(*(set(self._machines[name].dose1_factors) for name in names))
