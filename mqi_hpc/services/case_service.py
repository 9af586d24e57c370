"""Registers cases: a folder is read once, its identity is fixed, and it gets a key and a label for ever."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath

from mqi_hpc.core.errors import ProcessingError, RejectedCase
from mqi_hpc.core.intake import Fraction, IntakeResult, Rejected, identity, input_files
from mqi_hpc.core.interfaces import ICaseReader, IClock, IStore, IUnit
from mqi_hpc.core.models import Beam, Case, CaseStatus, InputFile, case_key
from mqi_hpc.records.manifest import subset_digest
from mqi_hpc.services.refusals import Refusals, is_refusal, lines_of, plain, settled

TWIN = "twin"
"""Key in a case's metadata: the label of a case whose deliveries have the same names, and other bytes."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a folder gave: the cases it holds (new ones and known ones), and what was refused."""

    cases: tuple[Case, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]


class _Undone(Exception):  # noqa: N818 - no error: it takes a transaction back
    pass


class CaseService:
    """Finds, checks and keeps cases (ICaseService)."""

    def __init__(
        self, store: IStore, reader: ICaseReader, clock: IClock, *, site: str, seed_base: int
    ) -> None:
        self._store = store
        self._reader = reader
        self._clock = clock
        self._site = site
        self._seed_base = seed_base
        self._refusals = Refusals(store, clock, site=site)

    def register(self, folder: str, chosen: Sequence[str] | None = None) -> Registration:
        """Read a case folder and store every complete fraction of it; a known one is found again.

        `chosen` groups deliveries by hand. Raises RejectedCase, with all faults, where it holds none; unless
        it was grouped by hand, the refusal is kept until the folder is better.
        """
        found = self._read(folder, chosen)
        if not found.fractions:
            if chosen is None:
                with self._store.transaction() as unit:
                    self._refusals.keep(unit, folder, _reasons(found))
            raise _refusal(folder, found)
        notes = _notes(found)
        cases = []
        with self._store.transaction() as unit:
            for fraction in found.fractions:
                case, _ = self.keep(unit, folder, fraction, by_hand=chosen is not None)
                cases.append(case)
                if late(case, fraction):
                    notes.append(
                        f"{case.label}: files have turned up since it was registered; it stays as it was"
                    )
            refused = () if chosen is not None else settled(unit, folder, found.rejected)
            self._refusals.keep(unit, folder, lines_of(refused))
        return Registration(tuple(cases), tuple(found.rejected), tuple(notes))

    def look(self, folder: str, chosen: Sequence[str] | None = None) -> Registration:
        """Return what `register` would; nothing is kept, a known case is as it was. Raises RejectedCase."""
        found = self._read(folder, chosen)
        if not found.fractions:
            raise _refusal(folder, found)
        cases: list[Case] = []
        # Each counts for the labels of the next; none of them stays.
        with suppress(_Undone), self._store.transaction() as unit:
            for fraction in found.fractions:
                cases.append(self.keep(unit, folder, fraction, by_hand=chosen is not None)[0])
            raise _Undone
        return Registration(tuple(cases), tuple(found.rejected), tuple(_notes(found)))

    def preview(self, folder: str, chosen: Sequence[str] | None = None) -> tuple[Case, ...]:
        """Return the cases a folder would be registered as, and keep nothing. Raises RejectedCase."""
        found = self._read(folder, chosen)
        if not found.fractions:
            raise _refusal(folder, found)
        with self._store.transaction(write=False) as unit:
            return tuple(self._case(unit, folder, fraction) for fraction in found.fractions)

    def _read(self, folder: str, chosen: Sequence[str] | None) -> IntakeResult:
        try:
            folder.encode()
        except UnicodeEncodeError as error:
            raise RejectedCase(f"rejected: {folder!r}: its name is not UTF-8; rename it") from error
        return self._reader.read(folder, chosen=chosen, now=self._clock.now())

    def scan_for_new_cases(self) -> list[str]:
        """Return the ids of cases registered but not yet begun, oldest first."""
        with self._store.transaction(write=False) as unit:
            new = [case for case in unit.cases.all() if case.status is CaseStatus.NEW]
        return [case.case_id for case in sorted(new, key=lambda case: case.created_at)]

    def get_case(self, case_id: str) -> Case:
        """Return a case; raises ProcessingError where the store has none of this id."""
        with self._store.transaction(write=False) as unit:
            case = unit.cases.get(case_id)
        if case is None:
            raise ProcessingError(f"no case {case_id!r} in the store; `mqi-hpc status` lists those there are")
        return case

    def find(self, text: str) -> list[Case]:
        """Return the cases that `text` may mean: a folder, a label, an id's beginning, or a Slurm job id."""
        with self._store.transaction(write=False) as unit:
            cases = unit.cases.all()
            exact = [c for c in cases if text in (c.case_id, c.label, c.folder)]
            real = [c for c in exact if not is_refusal(c)]
            if real or text in [c.case_id for c in exact]:
                return real or exact
            if exact:
                # A refused folder's label is how the labels of its good fractions begin.
                beside = [c for c in cases if not is_refusal(c) and c.label.startswith(f"{text}-")]
                return beside or exact
            if text.isdecimal():
                wanted = int(text)
                owners = {
                    job.case_id
                    for case in cases
                    for job in unit.jobs.of_case(case.case_id)
                    if wanted in [s.slurm_id for s in job.submissions]
                }
                if owners:
                    return [c for c in cases if c.case_id in owners]
        return [c for c in cases if text and (c.case_id.startswith(text) or c.label.startswith(text))]

    def update_case_status(self, case_id: str, status: str) -> None:
        """Set a case's status (one of CaseStatus) and record the event."""
        case = self.get_case(case_id)
        with self._store.transaction() as unit:
            self.set_status(unit, case, CaseStatus(status))

    def set_status(self, unit: IUnit, case: Case, status: CaseStatus, attention: str | None = None) -> Case:
        """Within a transaction: set status and attention, with an event where something changed."""
        if (case.status, case.attention) == (status, attention):
            return case
        now = self._now()
        changed = case.evolve(status=status, attention=attention, updated_at=now)
        unit.cases.put(changed)
        unit.event("case", case.case_id, {"from": case.status, "to": status, "attention": attention})
        return changed

    def keep(
        self, unit: IUnit, folder: str, fraction: Fraction, *, by_hand: bool = False
    ) -> tuple[Case, bool]:
        """Within a transaction: return a fraction's case, and whether it is a new one, registered here.

        A fraction that a registered case of the folder shares a delivery with is that case, as it was,
        whatever else turned up (see `late`). One grouped `by_hand` is so only where it holds the whole case.
        """
        name = identity(fraction)
        key = case_key(self._store.secret, name)
        known = unit.cases.get(key) or _grown(unit, folder, fraction, by_hand=by_hand)
        if known is not None:
            return known, False
        case = self._case(unit, folder, fraction)
        if (twin := _twin(unit, folder, fraction)) is not None:
            case = case.evolve(metadata={**case.metadata, TWIN: twin.label})
        unit.cases.put(case)
        data = {"label": case.label, "identity": name, "beams": [b.number for b in case.beams]}
        unit.event("registered", key, data)
        return case, True

    def _case(self, unit: IUnit, folder: str, fraction: Fraction) -> Case:
        name = identity(fraction)
        files = tuple(
            InputFile(remote=remote, local=local, bytes=size, sha256=sha256)
            for remote, local, size, sha256 in input_files(fraction)
        )
        manifest = {file.remote: file.sha256 for file in files}
        planned = {beam.number: beam for beam in fraction.plan.beams}
        beams = tuple(
            Beam(
                index=index,
                number=number,
                name=planned[number].name,
                energies=planned[number].energies,
                input_digest=subset_digest(manifest, ("plan.dcm", f"beam_{number}/")),
                seed=self._seed_base + number,
            )
            for index, (number, _) in enumerate(sorted(fraction.deliveries_by_beam))
        )
        now = self._now()
        return Case(
            case_id=case_key(self._store.secret, name),
            status=CaseStatus.NEW,
            beam_count=len(beams),
            created_at=now,
            updated_at=now,
            site=self._site,
            instance=self._store.instance,
            identity=name,
            label=self._label(unit, folder, fraction.plan.sop_instance_uid),
            folder=folder,
            plan_uid=fraction.plan.sop_instance_uid,
            machine=planned[beams[0].number].machine,
            beams=beams,
            files=files,
        )

    def _label(self, unit: IUnit, folder: str, plan_uid: str) -> str:
        every = unit.cases.all()
        cases = [case for case in every if not is_refusal(case)]
        here = [case for case in cases if case.folder == folder]
        same = [case.label for case in here if case.plan_uid == plan_uid]
        taken = {case.label for case in every}
        stem = same[0].rpartition("-f")[0] if same else self._stem(cases, folder, here)
        number = 1 + len(same)
        while f"{stem}-f{number:02d}" in taken:
            number += 1
        return f"{stem}-f{number:02d}"

    def _stem(self, cases: Sequence[Case], folder: str, here: Sequence[Case]) -> str:
        """Return what the labels of a plan new to its folder begin with."""
        path = PurePath(folder)
        stem = plain(path.name)
        if any(case.folder != folder and case.label.startswith(f"{stem}-") for case in cases):
            stem = f"{plain(path.parent.name)}-{stem}"
        plans = len({case.plan_uid for case in here})
        return f"{stem}-p{plans + 1}" if plans else stem

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)


def _twin(unit: IUnit, folder: str, fraction: Fraction) -> Case | None:
    """Return a registered case of the folder with a delivery of the same name, and so with other bytes."""
    infos = {d.info.path for _, pieces in fraction.deliveries_by_beam for d in pieces if d.info is not None}
    for case in unit.cases.all():
        if case.folder == folder and infos & {file.local for file in case.files}:
            return case
    return None


def late(case: Case, fraction: Fraction) -> bool:
    """Whether a fraction holds a file that its registered case does not."""
    held = {file.local for file in case.files}
    return case.identity != identity(fraction) and any(
        local not in held for _, local, _, _ in input_files(fraction)
    )


def _grown(unit: IUnit, folder: str, fraction: Fraction, *, by_hand: bool) -> Case | None:
    """Return the registered case that a fraction shares a delivery with, where files only turned up.

    Such a case stays as it was registered; changed bytes make another identity, and so another case.
    """
    here = {local: sha256 for _, local, _, sha256 in input_files(fraction)}
    infos = {d.info.path for _, pieces in fraction.deliveries_by_beam for d in pieces if d.info is not None}
    for case in unit.cases.all():
        files = {file.local: file.sha256 for file in case.files}
        shared = files.keys() & here.keys()
        if case.folder != folder or not infos & shared or any(files[name] != here[name] for name in shared):
            continue
        if not by_hand or len(shared) == len(files):
            return case
    return None


def _refusal(folder: str, found: IntakeResult) -> RejectedCase:
    text = "\n".join(f"  {line}" for line in _reasons(found))
    return RejectedCase(f"rejected: {folder!r}\n{text}")


def _notes(found: IntakeResult) -> list[str]:
    notes = [f"set-up delivery {name!r} is ignored" for name in found.ignored_setup]
    return notes + [waiting.reason for waiting in found.waiting]


def _reasons(found: IntakeResult) -> tuple[str, ...]:
    reasons = (*lines_of(found.rejected), *(waiting.reason for waiting in found.waiting))
    return reasons or ("it holds no delivery",)
