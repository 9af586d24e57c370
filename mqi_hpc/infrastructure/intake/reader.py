"""A case folder to what it makes (ICaseReader): read here, decided in the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from mqi_hpc.core.fractions import decide
from mqi_hpc.core.intake import IntakeResult, Plan, Rejected, rejected_with
from mqi_hpc.infrastructure.intake.deliveries import read_deliveries
from mqi_hpc.infrastructure.intake.folder import walk
from mqi_hpc.infrastructure.intake.plans import read_plans


class Machine(Protocol):
    """What intake needs to know of a machine: the factors by digit of DOSE1_RANGE."""

    @property
    def dose1_factors(self) -> Mapping[str, float]: ...  # noqa: D102 - told above


class CaseReader:
    """Reads case folders against the machines that have a calibration.

    `ignore` are patterns of names that do not count, beside those of what is still being copied.
    """

    def __init__(
        self,
        machines: Mapping[str, Machine],
        *,
        fraction_gap_seconds: float,
        ignore: Sequence[str] = (),
    ) -> None:
        self._machines = machines
        self._gap = timedelta(seconds=fraction_gap_seconds)
        self._ignore = tuple(ignore)

    def read(self, folder: str, *, chosen: Sequence[str] | None, now: float) -> IntakeResult:
        """Return what a folder holds. `now` is epoch seconds; raises RejectedCase where it is no folder."""
        tree = walk(folder, self._ignore)
        plans, plan_faults = read_plans(tree, list(self._machines))
        faults = [*tree.faults, *plan_faults]
        deliveries = read_deliveries(tree, self._ranges(plans))
        if not plans:
            faults += [fault for delivery in deliveries for fault in delivery.faults]
            which = "usable RT Ion Plan" if plan_faults else "RT Ion Plan"
            return rejected_with(f"no {which} was found in the folder", faults)
        # The logs tell the machine's local time.
        local = datetime.fromtimestamp(now)  # noqa: DTZ006
        found = decide(plans, deliveries, gap=self._gap, now=local, chosen=chosen)
        if faults:
            # What cannot be read might be of any case here: none is taken, all that is wrong is said.
            rejected = (Rejected("the folder has faults", tuple(faults)), *found.rejected)
            return replace(found, fractions=(), rejected=rejected)
        return found

    def _ranges(self, plans: Sequence[Plan]) -> set[str]:
        names = {beam.machine for plan in plans for beam in plan.beams} or set(self._machines)
        return set.intersection(*(set(self._machines[name].dose1_factors) for name in names))
