"""Registration: identity is fixed once, labels never move, a folder that grew changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from mqi_hpc.core.errors import ProcessingError, RejectedCase
from mqi_hpc.core.intake import (
    Delivery,
    Fault,
    Fraction,
    IntakeResult,
    Plan,
    PlannedBeam,
    Rejected,
    SourceFile,
    Waiting,
)
from mqi_hpc.core.models import CaseStatus, Job, JobStatus, SubmitState
from mqi_hpc.core.resubmit import History
from mqi_hpc.domain.desk import attention_of
from mqi_hpc.services.case_service import TWIN, CaseService
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock


def source(path: str, content: str = "") -> SourceFile:
    return SourceFile(path, 16, (content or path).encode().hex().ljust(64, "0")[:64])


def delivery(number: int, day: str = "1", content: str = "") -> Delivery:
    folder = f"day{day}/{number}"
    return Delivery(
        folder=folder,
        info=source(f"{folder}/PlanInfo.txt", content),
        range=source(f"{folder}/PlanRange.txt", content),
        logs=((1, source(f"{folder}/a.ptn", content)),),
        beam_number=number,
        start_layer=1,
        stop_layer=1,
    )


def fraction(
    numbers: Sequence[int] = (3, 2), *, plan: str = "1.2.3", day: str = "1", content: str = ""
) -> Fraction:
    beams = tuple(PlannedBeam(number=n, name=f"B{n}", machine="G2", energies=(100.0 + n,)) for n in numbers)
    made = Plan(
        file=source("RP.dcm", plan), sop_instance_uid=plan, patient_id="x", study_uid="y", beams=beams
    )
    return Fraction(made, tuple((n, (delivery(n, day, content),)) for n in numbers))


class Reader:
    def __init__(self) -> None:
        self.result = IntakeResult(fractions=(fraction(),))
        self.chosen: object = "never asked"

    def read(self, folder: str, *, chosen: Sequence[str] | None, now: float) -> IntakeResult:
        self.chosen = chosen
        return self.result


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def service(reader: Reader) -> CaseService:
    return CaseService(MemoryStore(), reader, Clock(), site="s", seed_base=1000)


def test_beams_are_numbered_by_dicom_and_indexed_from_0(service: CaseService) -> None:
    (case,) = service.register("/data/P001").cases
    assert [(b.index, b.number, b.name, b.seed) for b in case.beams] == [
        (0, 2, "B2", 1002),
        (1, 3, "B3", 1003),
    ]
    assert case.beams[0].energies == (102.0,)
    assert case.beams[0].input_digest != case.beams[1].input_digest
    assert (case.status, case.label, case.machine, case.site) == (CaseStatus.NEW, "P001-f01", "G2", "s")
    assert [f.remote for f in case.files] == [
        "plan.dcm", "beam_3/PlanInfo.txt", "beam_3/PlanRange.txt", "beam_3/001.ptn",
        "beam_2/PlanInfo.txt", "beam_2/PlanRange.txt", "beam_2/001.ptn",
    ]  # fmt: skip


def test_a_folder_read_again_is_the_same_case(service: CaseService) -> None:
    assert service.register("/data/P001").cases == service.register("/data/P001").cases
    assert len(service.scan_for_new_cases()) == 1


def test_another_byte_is_another_case(service: CaseService, reader: Reader) -> None:
    (first,) = service.register("/data/P001").cases
    reader.result = IntakeResult(fractions=(fraction(content="changed"),))
    found = service.register("/data/P001")
    assert found.cases[0].case_id != first.case_id
    assert found.cases[0].label == "P001-f02"
    assert found.notes == ()


def test_files_that_turn_up_later_change_nothing_and_are_told(service: CaseService, reader: Reader) -> None:
    (first,) = service.register("/data/P001").cases
    reader.result = IntakeResult(fractions=(fraction((3, 2, 4)),))
    found = service.register("/data/P001")
    assert found.cases == (first,)
    assert "files have turned up" in found.notes[0]


def test_the_same_files_elsewhere_are_the_same_case(service: CaseService) -> None:
    assert service.register("/data/P001").cases == service.register("/elsewhere/P001").cases


def test_labels(service: CaseService, reader: Reader) -> None:
    reader.result = IntakeResult(
        fractions=(fraction(), fraction(day="2"), fraction(plan="9", day="3"), fraction(plan="9", day="4"))
    )
    labels = [case.label for case in service.register("/data/P 001").cases]
    assert labels == ["P-001-f01", "P-001-f02", "P-001-p2-f01", "P-001-p2-f02"]
    reader.result = IntakeResult(fractions=(fraction(plan="7", day="5"),))
    assert service.register("/data/G1/P 001").cases[0].label == "G1-P-001-f01"
    (other,) = service.register("/data/G1/P 001").cases
    with service._store.transaction() as unit:
        unit.cases.put(other.evolve(label="G2-P-001-f01"))
    reader.result = IntakeResult(fractions=(fraction(plan="6", day="7"),))
    assert service.register("/data/G2/P 001").cases[0].label == "G2-P-001-f02"
    reader.result = IntakeResult(fractions=(fraction(plan="8", day="6"),))
    assert service.register("/data/--").cases[0].label == "case-f01"


def test_what_is_refused_says_why_with_all_faults(service: CaseService, reader: Reader) -> None:
    faults = (Fault("a/PlanInfo.txt", "is missing"), Fault("", "odd"))
    reader.result = IntakeResult(
        rejected=(Rejected("faults", faults),), waiting=(Waiting("beam 3 is not there yet"),)
    )
    with pytest.raises(RejectedCase) as caught:
        service.register("/data/P001", ["x"])
    text = str(caught.value)
    for part in ("rejected", "'/data/P001'", "a/PlanInfo.txt: is missing", "odd", "beam 3 is not there yet"):
        assert part in text
    assert reader.chosen == ["x"]
    with pytest.raises(RejectedCase, match="rejected"):
        service.preview("/data/P001")
    reader.result = IntakeResult()
    with pytest.raises(RejectedCase, match="no delivery"):
        service.register("/data/P001")


def test_a_folder_whose_name_is_no_text_is_refused_in_words(service: CaseService) -> None:
    with pytest.raises(RejectedCase, match=r"rejected: .*not UTF-8"):
        service.register("/data/P\udcff")


def test_what_is_good_is_kept_beside_what_is_refused(service: CaseService, reader: Reader) -> None:
    reader.result = IntakeResult(
        fractions=(fraction(),), rejected=(Rejected("faults"),), ignored_setup=("s",), waiting=(Waiting("w"),)
    )
    found = service.register("/data/P001")
    assert len(found.cases) == len(found.rejected) == 1
    assert found.notes == ("set-up delivery 's' is ignored", "w")


def test_a_preview_keeps_nothing(service: CaseService) -> None:
    (case,) = service.preview("/data/P001")
    assert service.scan_for_new_cases() == []
    assert service.register("/data/P001").cases == (case,)


def test_a_look_tells_what_registering_would_and_keeps_nothing(service: CaseService, reader: Reader) -> None:
    reader.result = IntakeResult(
        fractions=(fraction(), fraction(day="2")), rejected=(Rejected("faults"),), ignored_setup=("s",)
    )
    seen = service.look("/data/P001")
    assert service.find("P001-f01") == []
    assert [case.label for case in seen.cases] == ["P001-f01", "P001-f02"]
    assert seen == service.register("/data/P001") == service.look("/data/P001")
    reader.result = IntakeResult()
    with pytest.raises(RejectedCase, match="no delivery"):
        service.look("/data/P001")


def test_finding(service: CaseService, reader: Reader) -> None:
    (one,) = service.register("/data/P001").cases
    reader.result = IntakeResult(fractions=(fraction(day="2"),))
    (two,) = service.register("/data/P002").cases
    assert service.find("/data/P001") == [one]
    assert service.find(two.case_id) == service.find(two.case_id[:5]) == service.find("P002") == [two]
    assert sorted(case.label for case in service.find("P00")) == ["P001-f01", "P002-f01"]
    assert service.find("") == service.find("nobody") == service.find("123") == []


def test_a_status_is_set_with_an_event_and_only_where_it_changes(service: CaseService) -> None:
    (case,) = service.register("/data/P001").cases
    service.update_case_status(case.case_id, "processing")
    service.update_case_status(case.case_id, "processing")
    assert service.get_case(case.case_id).status is CaseStatus.PROCESSING
    assert service.scan_for_new_cases() == []
    store = service._store
    with store.transaction() as unit:
        assert [event["kind"] for event in unit.events(case.case_id)] == ["registered", "case"]
    with pytest.raises(ProcessingError, match="no case 'x'"):
        service.get_case("x")
    with pytest.raises(ValueError, match="is not a valid CaseStatus"):
        service.update_case_status(case.case_id, "fine")


def rows(service: CaseService) -> dict[str, CaseStatus]:
    with service._store.transaction(write=False) as unit:
        return {case.label: case.status for case in unit.cases.all()}


def test_what_submit_refuses_is_kept_until_the_folder_is_better(service: CaseService, reader: Reader) -> None:
    good = reader.result
    reader.result = IntakeResult(
        rejected=(Rejected("faults", (Fault("a", "odd"),)),), waiting=(Waiting("w"),)
    )
    for _ in range(2):
        with pytest.raises(RejectedCase):
            service.register("/data/P001")
    assert rows(service) == {"P001": CaseStatus.REJECTED}
    (row,) = service.find("P001")
    assert row.rejected == ("faults", "a: odd", "w")
    assert service.find("/data/P001") == [row]
    assert service.scan_for_new_cases() == []
    # What a person grouped by hand and was refused for is an answer to that person.
    reader.result = IntakeResult(rejected=(Rejected("no delivery is named x"),))
    with pytest.raises(RejectedCase):
        service.register("/data/P001", ["x"])
    assert service.find("P001") == [row]
    reader.result = good
    assert service.register("/data/P001").cases[0].label == "P001-f01"
    assert rows(service) == {"P001-f01": CaseStatus.NEW}
    with service._store.transaction(write=False) as unit:
        assert [event["kind"] for event in unit.events(row.case_id)] == ["rejected", "rejection withdrawn"]


def test_what_submit_takes_in_part_leaves_the_refusal_of_the_rest(
    service: CaseService, reader: Reader
) -> None:
    reader.result = IntakeResult(fractions=(fraction(),), rejected=(Rejected("faults"),))
    service.register("/data/P001")
    assert rows(service) == {"P001": CaseStatus.REJECTED, "P001-f01": CaseStatus.NEW}
    service.register("/data/P001", ["a", "b"])
    assert rows(service) == {"P001-f01": CaseStatus.NEW}


def test_a_folder_that_is_none_is_not_kept(service: CaseService, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise RejectedCase("rejected: no folder")

    monkeypatch.setattr(service._reader, "read", read)
    with pytest.raises(RejectedCase):
        service.register("/data/typo")
    assert rows(service) == {}


def test_fewer_files_than_registered_are_nothing_late(service: CaseService, reader: Reader) -> None:
    (first,) = service.register("/data/P001").cases
    reader.result = IntakeResult(fractions=(fraction((3,)),))
    found = service.register("/data/P001")
    assert found.cases == (first,)
    assert found.notes == ()


def test_changed_bytes_are_another_case_that_asks_which_are_right(
    service: CaseService, reader: Reader
) -> None:
    (first,) = service.register("/data/P001").cases
    reader.result = IntakeResult(fractions=(fraction(content="one byte flipped"),))
    (second,) = service.register("/data/P001").cases
    assert second.case_id != first.case_id
    assert second.metadata == {TWIN: "P001-f01"}
    reader.result = IntakeResult(fractions=(fraction(day="2"),))
    assert service.register("/data/P001").cases[0].metadata == {}
    said = attention_of(second, History(jobs=(a_job(),), tasks={"j": ()}))
    assert "the names of P001-f01's, with other bytes" in str(said)


def a_job() -> Job:
    return Job(
        job_id="j",
        case_id="c",
        status=JobStatus.PENDING,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        name="j01",
        submit_state=SubmitState.PLANNED,
        submissions=(),
    )
