"""What a scan found becomes cases and refusals: each said once, each folder by itself, good beside bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.intake import FolderRead, Fraction, IntakeResult, Rejected, ScanReport, Waiting
from mqi_hpc.core.models import Case, CaseStatus, SeenFolder
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.intake_service import LATE, IntakeOutcome, IntakeService
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock
from tests.unit.test_case_service import Reader, delivery, fraction

DAY = datetime(2026, 3, 2, 9, 0)  # noqa: DTZ001 - the machine's local time


class Here:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = Clock()
        self.reader = Reader()
        self.cases = CaseService(self.store, self.reader, self.clock, site="s", seed_base=1)
        self.intake = IntakeService(self.store, self.cases, self.clock, site="s")
        self.looks = 0

    def apply(self, *reads: FolderRead, **report: Any) -> IntakeOutcome:
        self.clock.time += 60
        return self.intake.apply(ScanReport(read=reads, **report))

    def read(self, folder: str = "/data/P1", refused: str = "", **result: Any) -> FolderRead:
        self.looks += 1
        seen = SeenFolder(folder=folder, fingerprint=f"f{self.looks}", again_at=float(self.looks))
        return FolderRead(seen=seen, result=None if refused else IntakeResult(**result), refused=refused)

    def rows(self) -> dict[str, Case]:
        with self.store.transaction(write=False) as unit:
            return {case.label: case for case in unit.cases.all()}

    def events(self, case_id: str) -> list[str]:
        with self.store.transaction(write=False) as unit:
            return [event["kind"] for event in unit.events(case_id)]


@pytest.fixture
def here() -> Here:
    return Here()


def at(when: datetime | None, **options: Any) -> Fraction:
    made = fraction(**options)
    timed = tuple(
        (number, tuple(replace(piece, started=when) for piece in pieces))
        for number, pieces in made.deliveries_by_beam
    )
    return replace(made, deliveries_by_beam=timed)


BAD = Rejected("an incomplete fraction", deliveries=("day2/2",))
WORSE = Rejected("a fraction with faults")


def test_a_new_case_is_registered_and_told(here: Here) -> None:
    read = here.read(fractions=(fraction(),), ignored_setup=("s1",))
    outcome = here.apply(read, waiting=(("/data/P2", "why"),))
    (case,) = here.rows().values()
    assert outcome == IntakeOutcome(
        new=(case.case_id,),
        told=(
            (case.case_id, "registered, 2 beams: '/data/P1'"),
            (case.case_id, "set-up delivery 's1' is ignored"),
        ),
        waiting=(("/data/P2", "why"),),
    )
    assert (case.label, case.status, case.folder) == ("P1-f01", CaseStatus.NEW, "/data/P1")
    assert here.intake.known() == (read.seen,)
    again = here.apply(here.read(fractions=(fraction(),), ignored_setup=("s1",)))
    assert again == IntakeOutcome()
    assert here.intake.known()[0].fingerprint == "f2"
    # What `submit` finds is the same case.
    here.reader.result = IntakeResult(fractions=(fraction(),))
    assert here.cases.register("/data/P1").cases == (case,)


def test_the_oldest_delivery_comes_first(here: Here) -> None:
    def days(day: int | None, name: str) -> Fraction:
        return at(None if day is None else DAY + timedelta(days=day), plan=name, day=name, numbers=[2])

    outcome = here.apply(
        here.read("/data/A", fractions=(days(5, "1"), days(9, "2"))),
        here.read("/data/B", fractions=(days(None, "3"),)),
        here.read("/data/C", fractions=(days(1, "4"), days(7, "5"))),
        here.read("/data/D", rejected=(WORSE,)),
        here.read("/data/E", refused="rejected: x"),
    )
    labels = {case.case_id: label for label, case in here.rows().items()}
    order = [labels[case_id] for case_id in outcome.new]
    assert order == ["C-f01", "A-f01", "C-p2-f01", "A-p2-f01", "B-f01"]
    assert outcome.told[0][1] == "registered, 1 beam: '/data/C'"


def test_a_refusal_is_kept_and_said_once_until_it_changes(here: Here) -> None:
    outcome = here.apply(here.read(rejected=(BAD,)))
    (row,) = here.rows().values()
    assert outcome == IntakeOutcome(told=((row.case_id, "rejected: '/data/P1'\n  an incomplete fraction"),))
    assert (row.label, row.status, row.beams, row.files) == ("P1", CaseStatus.REJECTED, (), ())
    assert (row.rejected, row.folder, row.beam_count) == (("an incomplete fraction",), "/data/P1", 0)
    assert here.apply(here.read(rejected=(BAD,))).told == ()
    assert here.rows() == {"P1": row}
    changed = here.apply(here.read(rejected=(BAD, WORSE)))
    text = "rejected: '/data/P1'\n  an incomplete fraction\n  a fraction with faults"
    assert changed.told == ((row.case_id, text),)
    assert here.rows()["P1"].rejected == ("an incomplete fraction", "a fraction with faults")
    assert here.rows()["P1"].created_at < here.rows()["P1"].updated_at
    better = here.apply(here.read(fractions=(fraction(),)))
    (case,) = here.rows().values()
    assert case.status is CaseStatus.NEW
    assert better.told[1] == (None, "no longer rejected: '/data/P1': what was wrong is right now")
    assert here.events(row.case_id) == ["rejected", "rejected", "rejection withdrawn"]


def test_good_and_bad_stand_beside_each_other(here: Here) -> None:
    outcome = here.apply(here.read(fractions=(fraction(),), rejected=(BAD,)))
    assert len(outcome.new) == 1
    assert sorted(here.rows()) == ["P1", "P1-f01"]
    found = here.cases.find("/data/P1")
    assert [case.label for case in found] == ["P1-f01"]
    assert here.cases.find("P1") == found
    row = here.rows()["P1"]
    assert here.cases.find(row.case_id) == [row]
    assert here.apply(here.read(fractions=(fraction(), fraction(day="3")), rejected=(BAD,))).new
    assert sorted(here.rows()) == ["P1", "P1-f01", "P1-f02"]


def test_a_refused_folder_is_found_by_all_its_names(here: Here) -> None:
    here.apply(here.read(rejected=(BAD,)))
    here.apply(here.read("/data/P2", fractions=(fraction(),)))
    row = here.rows()["P1"]
    for text in ("P1", "/data/P1", row.case_id, row.case_id[:6]):
        assert here.cases.find(text) == [row]
    assert here.cases.find("123") == []


def test_labels_of_refusals_are_unlike_any_other(here: Here) -> None:
    for folder in ("/data/G1/P1", "/data/G2/P1", "/data/G3/P1"):
        here.apply(here.read(folder, rejected=(BAD,)))
    assert sorted(here.rows()) == ["P1", "P1-r2", "P1-r3"]
    # They are in no case's way.
    here.apply(here.read("/data/G2/P1", fractions=(fraction(), fraction(plan="9", day="2"))))
    assert sorted(here.rows()) == ["P1", "P1-f01", "P1-p2-f01", "P1-r3"]


def test_a_folder_that_cannot_be_read_at_all(here: Here) -> None:
    outcome = here.apply(here.read(refused="rejected: '/data/P1' is a symbolic link"))
    (row,) = here.rows().values()
    assert outcome.told == ((row.case_id, "rejected: '/data/P1'\n  '/data/P1' is a symbolic link"),)
    assert here.apply(here.read(refused="rejected: '/data/P1' is a symbolic link")).told == ()


def test_what_waits_is_told_and_is_no_refusal(here: Here) -> None:
    here.apply(here.read(rejected=(BAD,)))
    outcome = here.apply(here.read(waiting=(Waiting("beam 3 has no whole delivery yet"),)))
    assert [text for _, text in outcome.told] == [
        "'/data/P1' waits: beam 3 has no whole delivery yet",
        "no longer rejected: '/data/P1': what was wrong is right now",
    ]
    assert here.rows() == {}
    assert here.apply(here.read()).told == ()


def test_a_folder_that_is_gone(here: Here) -> None:
    here.apply(here.read(rejected=(BAD,)), here.read("/data/P2", fractions=(fraction(),)))
    outcome = here.apply(gone=("/data/P1", "/data/P2"))
    assert outcome.told == ((None, "no longer rejected: '/data/P1': the folder is gone"),)
    assert sorted(here.rows()) == ["P2-f01"]
    assert here.intake.known() == ()


def test_a_root_that_tells_nothing_changes_nothing(here: Here) -> None:
    here.apply(here.read(rejected=(BAD,)))
    assert here.apply(error="away") == IntakeOutcome(error="away")
    assert len(here.rows()) == len(here.intake.known()) == 1


def test_what_turns_up_later_asks_for_attention_once(here: Here) -> None:
    (case_id,) = here.apply(here.read(fractions=(fraction(),))).new
    outcome = here.apply(here.read(fractions=(fraction((3, 2, 4)),)))
    assert outcome == IntakeOutcome(told=((case_id, LATE),))
    (case,) = here.rows().values()
    assert (case.attention, case.status, case.beam_count) == (LATE, CaseStatus.NEW, 2)
    assert here.events(case_id) == ["registered", "case", "grown"]
    assert here.apply(here.read(fractions=(fraction((3, 2, 4)),))).told == ()
    assert here.apply(here.read(fractions=(fraction((3, 2, 5)),))).told == ((case_id, LATE),)
    assert here.rows()["P1-f01"].attention == LATE


def test_the_same_files_elsewhere_are_the_same_case(here: Here) -> None:
    (case_id,) = here.apply(here.read(fractions=(fraction(),))).new
    outcome = here.apply(here.read("/data/copy", fractions=(fraction(),)))
    assert outcome == IntakeOutcome(told=((case_id, "the same files lie in '/data/copy': the same case"),))
    assert list(here.rows()) == ["P1-f01"]


def test_attention_for_another_reason_stays(here: Here) -> None:
    here.apply(here.read(fractions=(fraction(),)))
    suspect = here.rows()["P1-f01"].evolve(attention="beam_calc 0: suspect")
    with here.store.transaction() as unit:
        unit.cases.put(suspect)
    here.apply(here.read(fractions=(fraction((3, 2, 4)),)))
    here.apply(here.read(fractions=(fraction((3, 2, 5)),)))
    assert here.rows()["P1-f01"].attention == f"beam_calc 0: suspect; {LATE}"


def mixed(*deliveries: Any) -> Fraction:
    return replace(fraction(), deliveries_by_beam=tuple((d.beam_number, (d,)) for d in deliveries))


def test_a_late_delivery_takes_no_other_delivery_from_a_registered_case(here: Here) -> None:
    """Between the deliveries of a fraction another one turns up: the next grouping pairs it with the last."""
    (case_id,) = here.apply(here.read(fractions=(fraction(),))).new
    late = mixed(delivery(3, "2"), delivery(2, "1"))
    left = Rejected("an incomplete fraction (deliveries day1/3)", deliveries=("day1/3",))
    outcome = here.apply(here.read(fractions=(late,), rejected=(left,)))
    assert outcome == IntakeOutcome(told=((case_id, LATE),))
    assert list(here.rows()) == ["P1-f01"]
    # What no registered case holds is refused as ever.
    more = here.apply(here.read(fractions=(late,), rejected=(left, BAD)))
    assert more.told[0][1] == "rejected: '/data/P1'\n  an incomplete fraction"


def test_a_fraction_grouped_by_hand_holds_those_the_scan_would_see(here: Here) -> None:
    here.reader.result = IntakeResult(fractions=(fraction((2, 3, 4)),))
    here.cases.register("/data/P1", ["a", "b", "c"])
    assert here.apply(here.read(fractions=(fraction((2, 3)),))) == IntakeOutcome()
    # By hand a person may still single it out, or pair deliveries anew.
    here.reader.result = IntakeResult(fractions=(fraction((2, 3)),))
    assert here.cases.register("/data/P1", ["a", "b"]).cases[0].label == "P1-f02"


def test_one_folder_that_cannot_be_kept_harms_no_other(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    real = here.cases.keep

    def keep(unit: Any, folder: str, found: Fraction) -> Any:
        if folder == "/data/P1":
            raise ZeroDivisionError("secret")
        return real(unit, folder, found)

    monkeypatch.setattr(here.cases, "keep", keep)
    bad, good = here.read(fractions=(fraction(),)), here.read("/data/P2", fractions=(fraction(plan="8"),))
    outcome = here.apply(bad, good)
    assert outcome.told[0] == (None, "rejected: '/data/P1': ZeroDivisionError (a fault of this program)")
    assert len(outcome.new) == 1
    assert here.intake.known() == (good.seen,)
    assert here.apply(bad).told == ()
    assert list(here.rows()) == ["P2-f01"]


def test_what_is_told_of_a_folder_stands(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails stops everything, and nothing is half kept."""

    def full(*_: object) -> None:
        raise StateError("disk full")

    def put(unit: Any, read: FolderRead, work: Any, keep: Callable[..., None] = here.intake._keep) -> None:
        keep(unit, read, work)
        full()

    monkeypatch.setattr(here.intake, "_keep", put)
    with pytest.raises(StateError, match="disk full"):
        here.apply(here.read(fractions=(fraction(),)))
    assert here.rows() == {}
    assert here.intake.known() == ()
