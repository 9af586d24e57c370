"""Applies what a scan found: cases registered, refusals kept, folders remembered as they were."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.intake import FolderRead, Fraction, IntakeResult, ScanReport, identity
from mqi_hpc.core.interfaces import IClock, IStore, IUnit
from mqi_hpc.core.models import Case, SeenFolder
from mqi_hpc.services.case_service import CaseService, late
from mqi_hpc.services.refusals import Refusals, lines_of, settled

GROWN = "grown"
"""Key in a case's metadata: the identity of the fraction that something turned up in later."""
LATE = "a delivery or file turned up later within this registered fraction; it stays as it was"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeOutcome:
    """What a scan led to.

    `new` are case ids, the one delivered first before the others. `told` is what a person should hear, once:
    (case id, or None where the text is of no case; text). `waiting` are folders not ready yet, with why;
    `error` why the scan folder could not be looked at.
    """

    new: tuple[str, ...] = ()
    told: tuple[tuple[str | None, str], ...] = ()
    waiting: tuple[tuple[str, str], ...] = ()
    error: str = ""


@dataclass(slots=True)
class _Work:
    """What one folder led to, told only once its transaction stands."""

    new: list[tuple[tuple[bool, datetime], str]] = field(default_factory=list)
    told: list[tuple[str | None, str]] = field(default_factory=list)


class IntakeService:
    """Turns the reports of scans into cases and refusals."""

    def __init__(self, store: IStore, cases: CaseService, clock: IClock, *, site: str) -> None:
        self._store = store
        self._cases = cases
        self._refusals = Refusals(store, clock, site=site)
        self._broken: set[tuple[str, str]] = set()
        self._log = structlog.get_logger("mqi_hpc.intake")

    def known(self) -> tuple[SeenFolder, ...]:
        """Return the folders as they were when last read: what the next Scan is to know."""
        with self._store.transaction(write=False) as unit:
            return tuple(unit.folders.all())

    def apply(self, report: ScanReport) -> IntakeOutcome:
        """Keep what a scan found, each folder in a transaction of its own.

        A folder that cannot be kept, by a fault of this program, harms no other. Raises StateError where the
        store itself fails.
        """
        work = _Work()
        for read in sorted(report.read, key=_oldest):
            one = self._folder(read)
            work.new += one.new
            work.told += one.told
        for folder in report.gone:
            work.told += self._gone(folder)
        return IntakeOutcome(
            new=tuple(case_id for _, case_id in sorted(work.new, key=lambda new: new[0])),
            told=tuple(work.told),
            waiting=report.waiting,
            error=report.error,
        )

    def _folder(self, read: FolderRead) -> _Work:
        work = _Work()
        try:
            with self._store.transaction() as unit:
                self._keep(unit, read, work)
        except StateError:
            raise
        except Exception as error:  # noqa: BLE001 - told with the folder, and logged
            # Not kept as seen: it is read again, but what went wrong is said once.
            frames = "".join(traceback.format_tb(error.__traceback__))
            self._log.error("a folder cannot be kept", kind=type(error).__name__, traceback=frames)
            broken = (read.seen.folder, read.seen.fingerprint)
            if broken in self._broken:
                return _Work()
            self._broken.add(broken)
            what = f"rejected: {read.seen.folder!r}: {type(error).__name__} (a fault of this program)"
            return _Work(told=[(None, what)])
        return work

    def _keep(self, unit: IUnit, read: FolderRead, work: _Work) -> None:
        folder, result = read.seen.folder, read.result or IntakeResult()
        first: str | None = None
        for fraction in result.fractions:
            case, new = self._cases.keep(unit, folder, fraction)
            if new:
                first = first or case.case_id
                work.new.append((_time(fraction), case.case_id))
                work.told.append((case.case_id, f"registered, {_beams(case)}: {folder!r}"))
            elif case.folder != folder:
                work.told.append((case.case_id, f"the same files lie in {folder!r}: the same case"))
            elif late(case, fraction):
                self._ask(unit, case, identity(fraction), work)
        if first is not None:
            work.told += [(first, f"set-up delivery {name!r} is ignored") for name in result.ignored_setup]
        work.told += [(None, f"{folder!r} waits: {waiting.reason}") for waiting in result.waiting]
        refused = lines_of(settled(unit, folder, result.rejected))
        reasons = (*([read.refused.removeprefix("rejected: ")] if read.refused else []), *refused)
        if (said := self._refusals.keep(unit, folder, reasons)) is not None:
            work.told.append(said)
        unit.folders.put(read.seen)

    def _ask(self, unit: IUnit, case: Case, grown: str, work: _Work) -> None:
        """Ask a person to look at a case that something turned up in, once for each thing."""
        if case.metadata.get(GROWN) == grown:
            return
        marked = case.evolve(metadata={**case.metadata, GROWN: grown})
        unit.cases.put(marked)
        others = (case.attention or "").removesuffix(LATE).removesuffix("; ")
        self._cases.set_status(unit, marked, marked.status, f"{others}; {LATE}" if others else LATE)
        unit.event("grown", case.case_id, {"identity": grown})
        work.told.append((case.case_id, LATE))

    def _gone(self, folder: str) -> list[tuple[str | None, str]]:
        with self._store.transaction() as unit:
            unit.folders.remove(folder)
            said = self._refusals.keep(unit, folder, (), why="the folder is gone")
        return [] if said is None else [said]


def _time(fraction: Fraction) -> tuple[bool, datetime]:
    """Return when a fraction's first delivery began; what tells no time comes last."""
    times = [d.started for _, pieces in fraction.deliveries_by_beam for d in pieces if d.started is not None]
    return not times, min(times, default=datetime.max)  # noqa: DTZ901 - the machine's local time


def _oldest(read: FolderRead) -> tuple[bool, datetime, str]:
    fractions = read.result.fractions if read.result else ()
    return (*min(map(_time, fractions), default=(True, datetime.max)), read.seen.folder)  # noqa: DTZ901


def _beams(case: Case) -> str:
    return "1 beam" if case.beam_count == 1 else f"{case.beam_count} beams"
