"""The audit log: what is in it, and that whatever is done to it is found and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.audit import Anchor, verify
from mqi_hpc.core.commands import MOST_WORDS, answered, capped, told
from mqi_hpc.core.effects import Cancel, Completion, Failure, Observe, Submit
from mqi_hpc.core.errors import ProcessingError, StateError
from mqi_hpc.core.event_chain import ChainedEvent, next_event
from mqi_hpc.core.observation import MARK
from mqi_hpc.core.requests import Verb
from mqi_hpc.core.story import story
from mqi_hpc.domain.audited import AuditedEffects
from mqi_hpc.records.chain import decode_chain
from mqi_hpc.records.layout import CHAIN
from tests.support.bench import make_case
from tests.support.floor import Floor
from tests.support.memory_store import MemoryStore
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, Site(version="22.05")) as bed:
        yield Floor(bed)


def chain(count: int = 6) -> list[ChainedEvent]:
    """Events of a case with two jobs: 2 and 5 plan them."""
    events, head = [], ""
    for number in range(1, count + 1):
        planned = number in (2, 5)
        kind, data = ("job planned", {"job": f"j0{1 + (number > 2)}"}) if planned else ("task", {"n": number})
        event = next_event(head, number=number, at=10.0 * number, kind=kind, case_id="k", data=data)
        events.append(event)
        head = event.digest
    return events


WHOLE = chain()
ANCHORS = [
    Anchor(case_id="k", job="j01", head=WHOLE[0].digest, where="chain.json of P j01"),
    Anchor(case_id="k", job="j02", head=WHOLE[3].digest, where="chain.json of P j02"),
]


def rewritten(events: list[ChainedEvent], start: int) -> list[ChainedEvent]:
    """What a forger makes: event `start` another, and all digests after it made to fit."""
    made = events[: start - 1]
    head = made[-1].digest if made else ""
    for event in events[start - 1 :]:
        data = {**json.loads(event.body), **({"forged": True} if event.number == start else {})}
        again = next_event(
            head, number=event.number, at=event.at, kind=event.kind, case_id=event.case_id, data=data
        )
        made.append(again)
        head = again.digest
    return made


def test_a_whole_chain_is_borne_out_by_its_jobs() -> None:
    found = verify(WHOLE, WHOLE[-1].digest, ANCHORS, [WHOLE[2].digest, ""])
    assert (found.events, found.head, found.anchors, found.faults) == (6, WHOLE[-1].digest, 2, ())
    empty = verify([], "", [])
    assert (empty.events, empty.head, empty.faults) == (0, "", ())


CHANGES: dict[str, Any] = {
    "at": lambda event: event.at + 1,
    "kind": lambda event: event.kind + "x",
    "case_id": lambda _: "other",
    "body": lambda event: event.body.replace("{", '{"a":1,', 1),
    "digest": lambda event: event.digest[::-1],
}


@given(st.integers(1, 6), st.sampled_from(sorted(CHANGES)))
def test_a_change_of_any_column_is_found_and_named(number: int, column: str) -> None:
    event = WHOLE[number - 1]
    events = [*WHOLE]
    events[number - 1] = replace(event, **{column: CHANGES[column](event)})
    found = verify(events, WHOLE[-1].digest, ANCHORS)
    assert f"event {number} " in found.faults[0]
    assert found.events == number - 1


@given(st.integers(1, 5), st.integers(1, 3))
def test_missing_events_are_found_and_named(first: int, count: int) -> None:
    last = min(first + count - 1, 5)
    events = [event for event in WHOLE if not first <= event.number <= last]
    (fault,) = verify(events, WHOLE[-1].digest, ANCHORS).faults
    assert fault == (
        f"event {first} is missing" if first == last else f"events {first} to {last} are missing"
    )


@given(st.integers(0, 5))
def test_what_is_cut_off_is_found(left: int) -> None:
    (fault,) = verify(WHOLE[:left], WHOLE[-1].digest, []).faults
    assert fault == f"events after event {left} have been cut off"


@given(st.permutations(range(6)))
def test_another_order_is_found(order: list[int]) -> None:
    events = [WHOLE[n] for n in order]
    numbered = [replace(event, number=n + 1) for n, event in enumerate(events)]
    for shuffled in (events, numbered):
        faults = verify(shuffled, WHOLE[-1].digest, ANCHORS).faults
        assert bool(faults) is (order != sorted(order))


@given(st.integers(1, 6))
def test_an_event_put_in_or_repeated_is_found(number: int) -> None:
    again = [*WHOLE[:number], WHOLE[number - 1], *WHOLE[number:]]
    assert verify(again, WHOLE[-1].digest, ANCHORS).faults
    renumbered = [replace(event, number=n + 1) for n, event in enumerate(again)]
    assert f"event {number + 1} " in verify(renumbered, WHOLE[-1].digest, ANCHORS).faults[0]


@given(st.integers(1, 6))
def test_a_chain_that_was_rewritten_whole_is_given_away_by_its_jobs(start: int) -> None:
    forged = rewritten(WHOLE, start)
    found = verify(forged, forged[-1].digest, ANCHORS, [WHOLE[-1].digest])
    # Only what came after the newest job's chain.json needs a head that somebody has written down.
    strayed = [fault for fault in found.faults if "chain.json" in fault]
    assert len(strayed) == (start <= 1) + (start <= 4)
    assert any(WHOLE[-1].digest in fault for fault in found.faults)
    assert found.anchors == 2 - len(strayed)


def test_a_head_that_is_not_from_before_the_plan_and_a_job_without_a_plan() -> None:
    late = replace(ANCHORS[0], head=WHOLE[2].digest)
    unplanned = replace(ANCHORS[0], job="j09")
    found = verify(WHOLE, WHOLE[-1].digest, [late, unplanned])
    assert "of event 3, after it was planned (2)" in found.faults[0]
    assert "no event tells that j09" in found.faults[1]


def test_a_job_that_was_adopted_bears_the_head_of_the_store_that_was_lost() -> None:
    event = next_event(
        "", number=1, at=1.0, kind="adopted", case_id="k", data={"job": "j01", "audit_head": "old"}
    )
    anchor = Anchor(case_id="k", job="j01", head="old", where="here")
    assert verify([event], event.digest, [anchor]).faults == ()
    assert verify([event], event.digest, [replace(anchor, head="new")]).faults


# What is written

SUBMIT = Submit(case_id="k", job_id="k-j02", job_folder="/w/k/j02", nonce="n1")


def events(floor: Floor, *kinds: str) -> list[dict[str, Any]]:
    with floor.bed.store.transaction(write=False) as unit:
        return [e for e in unit.events(floor.case.case_id) if not kinds or e["kind"] in kinds]


def test_every_command_is_written_down_before_it_is_sent_and_its_answer_after(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    said = [(e["kind"], e["data"]["command"]) for e in events(floor, "sent", "answered")]
    assert said == [(kind, c) for c in ("upload", "submit", "download") for kind in ("sent", "answered")]
    upload, _, submit, answer, download, _ = [e["data"] for e in events(floor, "sent", "answered")]
    there = [path for path, _ in floor.sim.files.walk("/work") if path.endswith("MANIFEST.sha256")]
    digests = {hashlib.sha256(floor.sim.files.read(f"/work/{path}") or b"").hexdigest() for path in there}
    assert {upload["input"]["manifest"], upload["folder"]["manifest"]} <= digests
    (job,) = floor.jobs()
    with floor.bed.store.transaction(write=False) as unit:
        files = unit.jobs.files(job.job_id)
    assert submit["script"] == hashlib.sha256(files["submit.sh"]).hexdigest()
    ids = {stage: one["id"] for stage, one in answer["receipts"].items()}
    assert ids == {s.stage: s.slurm_id for s in floor.jobs()[0].submissions}
    assert len(download["results"]) == 3
    order = [(e["kind"], e["data"].get("to")) for e in events(floor)]
    submitting = order.index(("submission", "submitting"))
    assert order[submitting + 1 : submitting + 3] == [("sent", None), ("answered", None)]


class _Full(MemoryStore):
    def transaction(self, *, write: bool = True) -> Any:
        raise StateError("disk full")


def test_what_cannot_be_written_down_is_not_sent(floor: Floor) -> None:
    with pytest.raises(StateError, match="disk full"):
        AuditedEffects(_Full(), floor.port).start(SUBMIT)
    assert floor.port.started == []


def test_looks_are_no_commands_and_a_cancel_is_told_by_whoever_decides_it(floor: Floor) -> None:
    store = MemoryStore()
    port = AuditedEffects(store, floor.port)
    port.start(Observe(nonce="n", jobs=(), sacct_ids=()))
    port.start(Cancel(case_id="k", job_id="k-j01", targets=()))
    while not port.completions(10.0):
        pass
    port.close()
    with store.transaction(write=False) as unit:
        assert unit.all_events() == []


def test_the_answer_of_submit_is_kept_in_slurms_words() -> None:
    said = [
        "RECEIPT interpret a 7 100",
        f"SBATCH beams sbatch: error: {'x' * 2000}",
        "FAILED beams 1",
        "HEAD gone",
        "NOTE scancel 7: no answer",
        "DONE 75",
    ]
    output = "".join(f"{MARK}n1 {line}\n" for line in said)
    data = answered(SUBMIT, Completion(effect=SUBMIT, output=output, exit_code=75))
    assert (data["command"], data["job"], data["exit_code"], data["ended"]) == ("submit", "j02", 75, 75)
    assert data["receipts"] == {"interpret": {"name": "a", "id": 7, "time": 100.0}}
    assert (data["sbatch"]["stage"], data["sbatch"]["exit_code"]) == ("beams", 1)
    assert data["sbatch"]["said"].endswith("more not kept)")
    assert (data["head"], data["notes"]) == ("gone", ["scancel 7: no answer"])
    assert "error" not in data
    json.dumps(data)


def test_an_answer_that_was_lost_says_so() -> None:
    lost = Completion(effect=SUBMIT, error="cut", failure=Failure.OUTAGE, uncertain=True)
    data = answered(SUBMIT, lost)
    assert (data["error"], data["failure"], data["uncertain"]) == ("cut", "outage", True)
    assert (data["receipts"], data["ended"]) == ({}, None)
    assert told(SUBMIT, {})["script"] is None


def test_words_are_kept_up_to_a_length() -> None:
    assert capped("a" * MOST_WORDS) == "a" * MOST_WORDS
    assert capped("a" * (MOST_WORDS + 1)) == "a" * MOST_WORDS + " (1 more not kept)"


def test_a_verdict_bears_what_each_witness_said(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    done = [e["data"] for e in events(floor, "task") if e["data"]["to"] == "completed"]
    judged = {data["task"].rpartition("/")[2]: data["evidence"] for data in done if "evidence" in data}
    assert sorted(judged) == ["beam_calc-0", "beam_calc-1", "beam_calc-2", "convert", "interpret"]
    tasks = {task.task_id.rpartition("/")[2]: task for task in floor.tasks()}
    for name, said in judged.items():
        record = tasks[name].record
        assert record is not None
        assert said["record"] == {
            "is": "valid",
            "sha256": hashlib.sha256(record.encode()).hexdigest(),
            "why": "",
        }
        assert (said["exit_record"], said["row"]) == (0, "completed, record valid")
        lines = [*said["queue"], *(said["accounting"] or ())]
        name_ = floor.jobs()[0].submissions[0].name.rpartition("-")[0]
        assert lines
        assert all("COMPLETED" in line and name_ in line for line in lines)
        assert said["at"] is not None


def test_a_word_that_is_not_known_is_kept_as_slurm_printed_it(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: "running" in floor.beams())
    array = floor.jobs()[0].submissions[1].slurm_id
    assert array is not None
    for element in floor.sim.slurm.jobs[array].elements.values():
        element.word = "MOONSTRUCK"
    floor.until(lambda: "unknown" in floor.beams())
    (first, *_) = [e["data"] for e in events(floor, "task") if e["data"]["phase"] == "unknown"]
    (line,) = first["evidence"]["queue"]
    assert f"{array}|0|MOONSTRUCK|" in line


# The story


def words(floor: Floor, beam: int | None = None) -> str:
    told_ = floor.home.reports.story(floor.case.case_id, beam)
    return "\n".join("\n".join([one.text, *(f"  {line}" for line in one.evidence)]) for one in told_)


def test_the_story_of_a_case(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    text = words(floor)
    ids = {s.stage: s.slurm_id for s in floor.jobs()[0].submissions}
    first = floor.case.beams[0].number
    for said in (
        "j01 planned: interpret, beams, convert of beams",
        "j01: upload begun: ",
        "j01: upload done",
        "j01: submission submitting",
        "j01: submit.sh started, sha256 ",
        f"receipts: interpret {ids['interpret']}, beams {ids['beams']}, convert {ids['convert']}",
        f"j01 beam {first} (array index 0): done, completed",
        "row of the table: completed, record valid (for 0 s, 1 look)",
        "record: valid, sha256 ",
        "exit record: 0",
        "j01: download begun: 3 results, 0 logs",
        "case completed (was processing)",
    ):
        assert said in text, text
    assert [one.number for one in floor.home.reports.story(floor.case.case_id, None)] == sorted(
        event["number"] for event in events(floor)
    )


def test_the_story_of_a_beam_leaves_out_the_others_and_keeps_what_they_share(floor: Floor) -> None:
    second = floor.case.beams[1].number
    floor.sim.script.beams[second] = "exit 3"
    floor.take()
    floor.until("partial")
    text = words(floor, second)
    assert f"beam {second} (array index 1): failed" in text
    assert "exit record: 3" in text
    assert "(array index 0)" not in text
    assert "j01 convert" in text
    assert "j01 interpret" in text


def test_orders_cancels_and_refusals_are_told(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: "running" in floor.beams())
    floor.order(Verb.CANCEL, reason="wrong day")
    floor.until("cancelled")
    text = words(floor)
    assert "ann asked for cancel: " in text
    assert "scancel started: mqi-" in text
    assert "scancel of mqi-" in text


@pytest.mark.parametrize(
    ("uncertain", "told_"),
    [
        (True, "j02: submit failed: the link broke, it may have had its effect"),
        (False, "j02: submit failed: the link broke"),
    ],
)
def test_an_answer_that_failed_is_told(uncertain: bool, told_: str) -> None:
    lost = Completion(effect=SUBMIT, error="the link broke", failure=Failure.OUTAGE, uncertain=uncertain)
    event = {"number": 1, "time": 1.0, "kind": "answered", "data": answered(SUBMIT, lost)}
    assert [one.text for one in story(make_case(), [event])] == [told_]


def test_what_an_older_or_newer_program_wrote_is_told_as_it_stands() -> None:
    case = make_case()
    kinds = ["task", "sent", "cancelled", "unheard of", "grown"]
    made = [
        {"number": n, "time": 1.0, "kind": kind, "data": {"x": [1, {"y": 2}]}} for n, kind in enumerate(kinds)
    ]
    assert [one.text for one in story(case, made)] == [f"{kind}: x 1 y 2" for kind in kinds]
    strange = {"task": "k-j01/beam_calc-99", "from": "running", "to": "failed", "phase": "", "detail": "d"}
    (one,) = story(case, [{"number": 1, "time": 1.0, "kind": "task", "data": strange}])
    assert one.text == "j01 beam_calc: failed: d"


def test_a_beam_that_is_not_there_is_refused(floor: Floor) -> None:
    floor.take()
    with pytest.raises(ProcessingError, match="no beam 99; its beams: "):
        floor.home.reports.story(floor.case.case_id, 99)
    with pytest.raises(ProcessingError, match="no case 'x'"):
        floor.home.reports.story("x", None)


def test_each_job_carries_the_head_of_the_chain_before_it(floor: Floor) -> None:
    floor.sim.script.beams[floor.case.beams[0].number] = "exit 3"
    floor.take()
    floor.until("partial")
    floor.sim.script.beams.clear()
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    anchors = []
    jobs = floor.jobs()
    with floor.bed.store.transaction(write=False) as unit:
        for job in jobs:
            read = decode_chain(unit.jobs.files(job.job_id)[CHAIN].decode())
            anchors.append(Anchor(case_id=job.case_id, job=job.name, head=read.audit_head, where=job.name))
        found = verify(unit.all_events(), unit.audit_head(), anchors)
    assert (found.faults, found.anchors) == ((), 2)
