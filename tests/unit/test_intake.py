"""From plans and deliveries, as values, to cases: whose a delivery is, fractions, identity."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.fractions import decide
from mqi_hpc.core.intake import (
    Delivery,
    Fault,
    Fraction,
    IntakeResult,
    Plan,
    PlannedBeam,
    SourceFile,
    identity,
    input_files,
    rejected_with,
)
from mqi_hpc.core.models import case_key
from mqi_hpc.core.ownership import owner
from mqi_hpc.records.delivery import RangeRow
from tests.support.cases import START, refusals

GAP = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
ENERGIES = (120.0, 118.0, 116.0, 114.0)


def source(path: str) -> SourceFile:
    return SourceFile(path, 10, f"{hash(path) & (2**256 - 1):064x}")


def make_plan(numbers: tuple[int, ...] = (2, 3), **changes: Any) -> Plan:
    beams = tuple(
        PlannedBeam(number=n, name=f"B{n}", machine="G2", energies=tuple(e - n for e in ENERGIES))
        for n in numbers
    )
    values: dict[str, Any] = {
        "file": source("plan.dcm"),
        "sop_instance_uid": "1.2.3",
        "patient_id": "P1",
        "study_uid": "1.2",
        "beams": beams,
        "setup": (1,),
    }
    return Plan(**(values | changes))


PLAN = make_plan()


def deliver(number: int, when: datetime | None, layers: tuple[int, int] = (1, 4), **changes: Any) -> Delivery:
    folder = changes.pop("folder", f"{when:%Y%m%d%H%M%S}00" if when else f"d{number}")
    rows = tuple(
        RangeRow(n, ENERGIES[n - 1] - number, "2", f"{n}.ptn") for n in range(layers[0], layers[1] + 1)
    )
    values: dict[str, Any] = {
        "folder": folder,
        "info": source(f"{folder}/PlanInfo.txt"),
        "range": source(f"{folder}/PlanRange.txt"),
        "rows": rows,
        "logs": tuple((row.layer, source(f"{folder}/{row.file}")) for row in rows),
        "patient_id": "P1",
        "study_uid": "1.2",
        "beam_number": number,
        "start_layer": layers[0],
        "stop_layer": layers[1],
        "started": when,
    }
    return Delivery(**(values | changes))


def result_of(*deliveries: Delivery, plans: tuple[Plan, ...] = (PLAN,), **options: Any) -> IntakeResult:
    latest = max((d.started for d in deliveries if d.started), default=START)
    options = {"gap": GAP, "now": latest + 5 * MINUTE} | options
    return decide(plans, deliveries, **options)


def folders(fraction: Fraction) -> dict[int, list[str]]:
    return {number: [d.folder for d in pieces] for number, pieces in fraction.deliveries_by_beam}


A, B = deliver(2, START), deliver(3, START + MINUTE)


def test_a_complete_fraction() -> None:
    found = result_of(A, B)
    assert [folders(f) for f in found.fractions] == [{2: [A.folder], 3: [B.folder]}]
    assert found == IntakeResult(fractions=found.fractions)


def test_beams_are_told_by_number_not_by_order() -> None:
    first, second = deliver(3, START), deliver(2, START + MINUTE)
    (fraction,) = result_of(second, first).fractions
    assert folders(fraction) == {2: [second.folder], 3: [first.folder]}


def test_nothing_delivered_waits_and_names_every_beam() -> None:
    (waiting,) = result_of().waiting
    assert "plan.dcm: beam 2 has no whole delivery, beam 3 has no whole delivery yet" in waiting.reason


def test_a_beam_without_delivery_waits_a_day_then_is_rejected() -> None:
    young = result_of(A, now=START + timedelta(hours=24))
    assert not young.fractions
    assert not young.rejected
    assert "beam 3 has no whole delivery yet" in young.waiting[0].reason
    old = result_of(A, now=START + timedelta(hours=24, seconds=1))
    assert not old.waiting
    assert "beam 3 has no whole delivery" in refusals(old)


def test_an_incomplete_fraction_that_another_follows_is_rejected() -> None:
    day = timedelta(days=1)
    later = [deliver(2, START + day), deliver(3, START + day + MINUTE)]
    found = result_of(A, *later)
    assert [folders(f) for f in found.fractions] == [{2: [later[0].folder], 3: [later[1].folder]}]
    assert f"an incomplete fraction (deliveries {A.folder})" in refusals(found)
    assert "beam 3 has no whole delivery" in refusals(found)


def test_the_gap_counts_from_one_delivery_to_the_next() -> None:
    near = deliver(3, START + GAP)
    far = deliver(3, START + GAP + timedelta(seconds=1))
    assert len(result_of(A, near).fractions) == 1
    found = result_of(A, far)
    assert not found.fractions
    assert "beam 3 has no whole delivery" in refusals(found)


def test_a_beam_already_whole_opens_a_fraction() -> None:
    again = deliver(2, START + MINUTE)
    found = result_of(A, again, deliver(3, START + 2 * MINUTE))
    assert [folders(f)[2] for f in found.fractions] == [[again.folder]]
    assert "an incomplete fraction" in refusals(found)


def test_pieces_that_join_are_one_beam() -> None:
    pieces = [deliver(2, START, (1, 2)), deliver(2, START + 2 * MINUTE, (3, 4))]
    found = result_of(pieces[1], B, pieces[0])
    (fraction,) = found.fractions
    assert folders(fraction) == {2: [p.folder for p in pieces], 3: [B.folder]}
    remote = [r for r, *_ in input_files(fraction) if r.startswith("beam_2/")]
    assert remote == [
        "beam_2/PlanInfo.txt",
        "beam_2/PlanRange.txt",
        "beam_2/001.ptn",
        "beam_2/002.ptn",
        "beam_2/PlanInfo-2.txt",
        "beam_2/PlanRange-2.txt",
        "beam_2/003.ptn",
        "beam_2/004.ptn",
    ]


@pytest.mark.parametrize(
    ("first", "second"), [((1, 2), (2, 4)), ((1, 2), (4, 4)), ((1, 2), (1, 4)), ((2, 4), (1, 1))]
)
def test_pieces_that_do_not_join_are_refused(first: tuple[int, int], second: tuple[int, int]) -> None:
    found = result_of(
        deliver(2, START, first), deliver(2, START + MINUTE, second), deliver(3, START + 2 * MINUTE)
    )
    assert not found.fractions
    assert "do not go on at layer" in refusals(found)


def test_a_piece_alone_is_no_whole_beam() -> None:
    found = result_of(deliver(2, START, (1, 3)), B)
    assert not found.fractions
    assert "beam 2 has no whole delivery" in found.waiting[0].reason


def test_a_fault_touches_its_fraction_only() -> None:
    fault = Fault("x/1.ptn", "was cut off")
    bad = replace(A, faults=(fault,))
    day = timedelta(days=1)
    found = result_of(bad, B, deliver(2, START + day), deliver(3, START + day + MINUTE))
    assert len(found.fractions) == 1
    assert [r.faults[0] for r in found.rejected] == [fault]


def test_every_fault_of_a_fraction_is_told() -> None:
    bad = [replace(d, faults=(Fault(d.folder, "one"), Fault(d.folder, "two"))) for d in (A, B)]
    (rejected,) = result_of(*bad).rejected
    assert [f.message for f in rejected.faults[:4]] == ["one", "two"] * 2


def test_order_of_names_and_order_of_times_must_agree() -> None:
    swapped = [replace(A, folder=B.folder), replace(B, folder=A.folder)]
    found = result_of(*swapped)
    assert not found.fractions
    assert "its name says it came after" in refusals(found)
    named = [replace(A, folder="second"), replace(B, folder="first")]
    assert len(result_of(*named).fractions) == 1


def test_a_folder_of_another_kind_of_name_hides_no_disagreement() -> None:
    late = replace(A, folder=f"{START + timedelta(minutes=9):%Y%m%d%H%M%S}00")
    between = deliver(3, START + MINUTE, folder="again")
    early = deliver(4, START + 2 * MINUTE)
    said = refusals(result_of(late, between, early, plans=(make_plan((2, 3, 4)),)))
    assert f"{late.folder}: its name says it came after {early.folder}" in said


def test_without_times_the_last_part_of_the_name_gives_the_order() -> None:
    pieces = [deliver(2, None, (1, 2), folder="z/a"), deliver(2, None, (3, 4), folder="y/b")]
    (fraction,) = result_of(*pieces, deliver(3, None, folder="x/c")).fractions
    assert folders(fraction) == {2: ["z/a", "y/b"], 3: ["x/c"]}


def test_without_times_folder_names_give_the_order() -> None:
    pieces = [deliver(2, None, (1, 2), folder="a"), deliver(2, None, (3, 4), folder="b")]
    (fraction,) = result_of(pieces[1], deliver(3, START, folder="c"), pieces[0]).fractions
    assert folders(fraction) == {2: ["a", "b"], 3: ["c"]}


def test_fraction_groups_say_what_is_complete() -> None:
    grouped = make_plan((2, 3, 4), groups=((1, 2, 3), (4,), (1,)))
    found = result_of(A, B, plans=(grouped,))
    assert [sorted(folders(f)) for f in found.fractions] == [[2, 3]]
    found = result_of(deliver(4, START), plans=(grouped,))
    assert [sorted(folders(f)) for f in found.fractions] == [[4]]
    setup_only = make_plan(groups=((1,),))
    assert "beam 3" in result_of(A, plans=(setup_only,)).waiting[0].reason


def test_deliveries_chosen_by_hand_are_one_fraction() -> None:
    far = deliver(3, START + timedelta(hours=5))
    extra = deliver(2, START + timedelta(hours=6), folder="study/x")
    by_name = result_of(A, far, extra, chosen=[A.folder, far.folder])
    assert [folders(f) for f in by_name.fractions] == [{2: [A.folder], 3: [far.folder]}]
    by_last_part = result_of(far, extra, chosen=["x", far.folder])
    assert [folders(f) for f in by_last_part.fractions] == [{2: ["study/x"], 3: [far.folder]}]


def test_deliveries_chosen_by_hand_must_be_complete_and_known() -> None:
    assert "beam 3 has no whole delivery" in refusals(result_of(A, B, chosen=[A.folder]))
    twice = deliver(2, START + 2 * MINUTE)
    assert "do not go on" in refusals(result_of(A, B, twice, chosen=[d.folder for d in (A, B, twice)]))
    said = refusals(result_of(A, B, chosen=[A.folder, "nowhere"]))
    assert "no delivery is named nowhere" in said
    assert B.folder in said
    assert "there are none" in refusals(result_of(chosen=["nowhere"]))


def test_set_up_deliveries_are_ignored_and_named() -> None:
    setup = deliver(1, START - MINUTE)
    found = result_of(setup, A, B)
    assert found.ignored_setup == (setup.folder,)
    assert len(found.fractions) == 1
    assert not found.rejected


def test_a_faulty_set_up_delivery_is_ignored_too() -> None:
    setup = replace(deliver(1, START - MINUTE), faults=(Fault("x", "is missing"),))
    found = result_of(setup, A, B)
    assert found.ignored_setup == (setup.folder,)
    assert len(found.fractions) == 1


@pytest.mark.parametrize(
    ("changes", "said"), [({"patient_id": "P2"}, "wrong patient"), ({"study_uid": "9.9"}, "wrong study")]
)
def test_another_patients_set_up_delivery_is_not_ignored(changes: dict[str, Any], said: str) -> None:
    found = result_of(replace(deliver(1, START - MINUTE), **changes), A, B)
    assert not found.ignored_setup
    assert not found.fractions
    assert said in refusals(found)
    assert "beam 1 is a set-up beam of the plan" in refusals(found)


def test_a_set_up_beam_is_told_by_its_own_patients_plans() -> None:
    other = make_plan((1, 2), patient_id="P2", sop_instance_uid="7.7", setup=())
    setup = deliver(1, START - MINUTE)
    assert result_of(setup, A, B, plans=(PLAN, other)).ignored_setup == (setup.folder,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patient_id": "P2"}, "wrong patient"),
        ({"study_uid": "9.9"}, "wrong study"),
        ({"beam_number": 7}, "unknown beam number 7: the plan's treatment beams are 2, 3"),
        ({"stop_layer": 5}, "STOP_LAYER_NUMBER is 5, beam 2 of the plan has 4 layers"),
        ({"rows": (RangeRow(2, 99.0, "2", ""),)}, "layer 2 has 99 MeV, beam 2 of the plan 116"),
        ({"info": None, "range": None, "patient_id": "P2"}, "wrong patient"),
    ],
)
def test_a_delivery_that_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    found = result_of(replace(A, **changes), B)
    assert not found.fractions
    assert said in refusals(found)
    assert "P2" not in refusals(found)


def test_everything_that_does_not_fit_is_told_at_once() -> None:
    wrong = replace(
        A, patient_id="P2", study_uid="9", rows=(RangeRow(1, 1.0, "2", ""), RangeRow(2, 1.0, "2", ""))
    )
    assert len(owner(wrong, [PLAN]).faults) == 4


def test_a_study_uid_that_is_not_given_is_not_compared() -> None:
    assert len(result_of(replace(A, study_uid=""), B).fractions) == 1


def test_the_plan_that_fits_owns_a_delivery() -> None:
    other = make_plan((2, 3), sop_instance_uid="9.9", patient_id="P2", file=source("other.dcm"))
    found = result_of(A, B, plans=(other, PLAN))
    assert [f.plan for f in found.fractions] == [PLAN]
    assert not found.rejected


def test_two_plans_that_fit_or_none_is_a_refusal() -> None:
    twin = make_plan(sop_instance_uid="9.9", file=source("twin.dcm"))
    both = result_of(A, B, plans=(PLAN, twin))
    assert not both.fractions
    assert "the plans plan.dcm and twin.dcm both fit it" in refusals(both)
    none = result_of(replace(A, patient_id="P7"), plans=(PLAN, twin))
    assert "no plan fits it" in refusals(none)
    assert "wrong patient: DICOM_PATIENT_ID is not the plan's PatientID (against twin.dcm)" in refusals(none)
    unread = replace(A, faults=(Fault("x", "cannot be read"),), info=None)
    assert "x: cannot be read" in refusals(result_of(unread, plans=(PLAN, twin)))


schedules = st.lists(
    st.tuples(
        st.integers(2, 48 * 60),  # minutes after the fraction before
        st.permutations([2, 3, 4]),
        st.sampled_from([None, (2, 1), (3, 2), (4, 3)]),  # a beam interrupted, and after which layer
    ),
    min_size=1,
    max_size=4,
)


@given(schedules, st.randoms(use_true_random=False))
def test_fractions_are_found_as_they_were_delivered(schedule: Any, order: random.Random) -> None:
    """Whatever comes when: complete fractions come out, each with its own pieces, in order."""
    plan = make_plan((2, 3, 4))
    wanted, deliveries, when = [], [], START
    for wait, numbers, cut in schedule:
        when += timedelta(minutes=wait)
        fraction: dict[int, list[str]] = {}
        for number in numbers:
            ranges = [(1, cut[1]), (cut[1] + 1, 4)] if cut and cut[0] == number else [(1, 4)]
            for layers in ranges:
                one = deliver(number, when, layers)
                deliveries.append(one)
                fraction.setdefault(number, []).append(one.folder)
                when += MINUTE
        wanted.append(dict(sorted(fraction.items())))
    order.shuffle(deliveries)
    found = result_of(*deliveries, plans=(plan,))
    assert [folders(f) for f in found.fractions] == wanted
    assert not found.rejected
    assert not found.waiting


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([2, 3]), st.integers(1, 4), st.integers(0, 3)))
)
def test_a_fraction_is_always_whole_and_no_delivery_is_used_twice(steps: Any) -> None:
    deliveries, when = [], START
    for wait, number, first, more in steps:
        when += timedelta(minutes=wait, seconds=1)
        deliveries.append(deliver(number, when, (first, min(4, first + more))))
    found = result_of(*deliveries)
    used = [d.folder for f in found.fractions for _, pieces in f.deliveries_by_beam for d in pieces]
    assert len(used) == len(set(used))
    for fraction in found.fractions:
        for number, pieces in fraction.deliveries_by_beam:
            assert all(piece.beam_number == number for piece in pieces)
            assert [layer for piece in pieces for layer, _ in piece.logs] == [1, 2, 3, 4]
        assert [number for number, _ in fraction.deliveries_by_beam] == [2, 3]
    said = refusals(found)
    assert all(d.folder in used or d.folder in said for d in deliveries)


def test_identity_is_of_bytes_not_of_places() -> None:
    (fraction,) = result_of(A, B).fractions
    moved_plan = replace(PLAN, file=replace(PLAN.file, path="elsewhere/x.dcm"))
    moved = Fraction(moved_plan, fraction.deliveries_by_beam)
    assert identity(moved) == identity(fraction)
    assert identity(fraction).startswith("1.2.3 ")
    changed = Fraction(replace(PLAN, file=replace(PLAN.file, sha256="0" * 64)), fraction.deliveries_by_beam)
    assert identity(changed) != identity(fraction)
    log = replace(A.logs[0][1], sha256="1" * 64)
    bent = replace(A, logs=((1, log), *A.logs[1:]))
    assert identity(Fraction(PLAN, ((2, (bent,)), (3, (B,))))) != identity(fraction)
    assert case_key(b"secret", identity(moved)) == case_key(b"secret", identity(fraction))


def test_files_go_up_under_our_own_names() -> None:
    (fraction,) = result_of(A, B).fractions
    files = {remote: local for remote, local, _, _ in input_files(fraction)}
    assert files["plan.dcm"] == "plan.dcm"
    assert files["beam_3/PlanInfo.txt"] == f"{B.folder}/PlanInfo.txt"
    assert files["beam_3/004.ptn"] == f"{B.folder}/4.ptn"
    assert len(files) == 1 + 2 * 6
    bare = replace(A, info=None, range=None)
    assert [r for r, *_ in input_files(Fraction(PLAN, ((2, (bare,)),)))][:2] == ["plan.dcm", "beam_2/001.ptn"]


def test_faults_show_what_a_terminal_must_not_obey() -> None:
    assert str(Fault("a/b.ptn", "is empty")) == "a/b.ptn: is empty"
    assert str(Fault("a\x1b[2J\n", "is empty")) == "'a\\x1b[2J\\n': is empty"
    assert str(Fault("", "is empty")) == "is empty"


def test_rejected_with() -> None:
    fault = Fault("a", "b")
    assert rejected_with("why", [fault]).rejected[0].faults == (fault,)
