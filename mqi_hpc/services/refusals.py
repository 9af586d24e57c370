"""Keeps what was refused: one row a folder, said once, taken back when the folder is better."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import PurePath

from mqi_hpc.core.intake import Rejected
from mqi_hpc.core.interfaces import IClock, IStore, IUnit
from mqi_hpc.core.models import Case, CaseStatus, case_key


class Refusals:
    """The rejected rows of the store."""

    def __init__(self, store: IStore, clock: IClock, *, site: str) -> None:
        self._store = store
        self._clock = clock
        self._site = site

    def keep(
        self, unit: IUnit, folder: str, reasons: tuple[str, ...], *, why: str = "what was wrong is right now"
    ) -> tuple[str | None, str] | None:
        """Within a transaction: make the row of a folder say `reasons`; none: take it back, saying `why`.

        Returns what a person is to be told (case id, None where the row is gone; text), None where nothing
        changed.
        """
        key = case_key(self._store.secret, f"rejected {folder}")
        row = unit.cases.get(key)
        if not reasons:
            return None if row is None else self._withdraw(unit, row, why)
        if row is not None and row.rejected == reasons:
            return None
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        if row is None:
            unit.cases.put(self._row(unit, key, folder, reasons, now))
        else:
            unit.cases.put(row.evolve(rejected=reasons, updated_at=now))
        unit.event("rejected", key, {"reasons": list(reasons)})
        return key, "\n".join([f"rejected: {folder!r}", *(f"  {line}" for line in reasons)])

    def _withdraw(self, unit: IUnit, row: Case, why: str) -> tuple[None, str]:
        unit.event("rejection withdrawn", row.case_id, {"why": why, "reasons": list(row.rejected)})
        unit.cases.remove(row.case_id)
        return None, f"no longer rejected: {row.folder!r}: {why}"

    def _row(self, unit: IUnit, key: str, folder: str, reasons: tuple[str, ...], now: datetime) -> Case:
        taken = {case.label for case in unit.cases.all()}
        label = stem = plain(PurePath(folder).name)
        number = 1
        while label in taken:
            number += 1
            label = f"{stem}-r{number}"
        return Case(
            case_id=key,
            status=CaseStatus.REJECTED,
            beam_count=0,
            created_at=now,
            updated_at=now,
            site=self._site,
            instance=self._store.instance,
            identity=f"rejected {folder}",
            label=label,
            folder=folder,
            plan_uid="",
            machine="",
            beams=(),
            files=(),
            rejected=reasons,
        )


def is_refusal(case: Case) -> bool:
    """Whether a row is a refused folder, and no case that could ever run."""
    return case.status is CaseStatus.REJECTED


def lines_of(rejected: Iterable[Rejected]) -> tuple[str, ...]:
    """Return all reasons and faults, a line each."""
    return tuple(line for one in rejected for line in (one.reason, *map(str, one.faults)))


def settled(unit: IUnit, folder: str, rejected: Sequence[Rejected]) -> tuple[Rejected, ...]:
    """Return what is refused, but for fractions whose every delivery a registered case of the folder holds.

    Those are what is left when a delivery that turned up late took another's place.
    """
    held = {
        PurePath(file.local).parent.as_posix()
        for case in unit.cases.all()
        if case.folder == folder
        for file in case.files
    }
    return tuple(one for one in rejected if not one.deliveries or not held.issuperset(one.deliveries))


def plain(name: str) -> str:
    """Return a folder's name as it may stand in a label."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "case"
