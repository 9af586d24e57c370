"""Prunes from plan to record: an intent first, a mark last, and nothing touched that may not go."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from mqi_hpc.cli import prune as shown
from mqi_hpc.core.effects import Cancel, Completion, Failure, Prune
from mqi_hpc.core.errors import ConfigurationError, ProcessingError, StateError
from mqi_hpc.core.models import JobStatus, TaskStatus
from mqi_hpc.core.pruning import DeliveredFile, LocalFate, PruneAnswer, pruned, require_remote
from mqi_hpc.core.requests import Request, Verb
from mqi_hpc.core.retention import JobHistory, Side
from mqi_hpc.services.retention_service import RetentionService
from tests.support.bench import KEY, Bench
from tests.support.memory_store import MemoryStore
from tests.unit.test_retention import NOW, RULES, case_of, job_with

OTHER = "zzzzzzzzzzzz"
EFFECT = Prune(case_id=KEY, folder=f"/scratch/mqi/{KEY}")


class Clock:
    def now(self) -> float:
        return NOW.timestamp()

    def monotonic(self) -> float:
        return 0.0


@dataclass
class Results:
    """Delivered files as a test says they are; `refuse` is raised by a removal."""

    fates: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    refuse: Exception | None = None
    on_remove: Callable[[], None] = lambda: None

    def look(self, files: Sequence[DeliveredFile]) -> tuple[LocalFate, ...]:
        return tuple(LocalFate(f, self.fates.get(f.path[-5], "removed"), "why") for f in files)  # type: ignore[arg-type]

    def remove(self, files: Sequence[DeliveredFile]) -> tuple[LocalFate, ...]:
        self.on_remove()
        if self.refuse is not None:
            raise self.refuse
        fates = self.look(files)
        self.removed += [fate.file.path for fate in fates if fate.fate == "removed"]
        return fates


@dataclass
class Desk:
    """A store with one case of the given jobs, and the service on it."""

    history: tuple[JobHistory, ...] = field(default_factory=lambda: (job_with(),))
    results: Results = field(default_factory=Results)
    store: MemoryStore = field(default_factory=MemoryStore)

    def __post_init__(self) -> None:
        with self.store.transaction() as unit:
            unit.cases.put(case_of(*self.history))
        self.put(*self.history)
        self.service = RetentionService(self.store, self.results, Clock(), RULES, workspace="/scratch/mqi")

    def put(self, *history: JobHistory) -> None:
        with self.store.transaction() as unit:
            for entry in history:
                unit.jobs.put(entry.job)
                for task in entry.tasks:
                    unit.jobs.put_task(task)

    def case(self) -> object:
        with self.store.transaction(write=False) as unit:
            return unit.cases.get(KEY)

    def marks(self) -> set[str]:
        found = pruned(self.case())  # type: ignore[arg-type]
        return {name for name in type(found).__dataclass_fields__ if getattr(found, name)}

    def events(self) -> list[tuple[str, dict[str, object]]]:
        with self.store.transaction(write=False) as unit:
            return [(event["kind"], event["data"]) for event in unit.events(KEY)]

    def begin(self) -> list[Prune]:
        return list(self.service.remote_effects(self.service.plan(NOW)))


def answered(**answer: object) -> Completion:
    return Completion(effect=EFFECT, output=PruneAnswer(**answer).encode())  # type: ignore[arg-type]


def failed(*, uncertain: bool) -> Completion:
    return Completion(effect=EFFECT, error="no route", failure=Failure.OUTAGE, uncertain=uncertain)


def test_planning_and_looking_change_nothing() -> None:
    desk = Desk()
    before = desk.case()
    plan = desk.service.plan(NOW)
    assert [case.case_id for case, _ in plan.of(Side.REMOTE)] == [KEY]
    assert {key: len(fates) for key, fates in desk.service.look(plan).items()} == {KEY: 2}
    assert (desk.case(), desk.events()) == (before, [])
    assert desk.results.removed == []


def test_all_cases_or_those_that_are_named() -> None:
    desk = Desk(history=(job_with(beams=(TaskStatus.COMPLETED, TaskStatus.LOST)),))
    assert not desk.service.plan(NOW).cases[0].remote.allowed
    (named,) = desk.service.plan(NOW, [KEY, KEY]).cases
    assert named.remote.allowed
    assert desk.service.plan(NOW, []).cases == ()
    with pytest.raises(ProcessingError, match="no case 'x'"):
        desk.service.plan(NOW, ["x"])


def test_the_intent_stands_before_the_effect_and_holds_resubmit_off() -> None:
    desk = Desk()
    assert desk.begin() == [EFFECT]
    assert desk.marks() == {"remote_begun"}
    assert desk.events() == [("pruning", {"side": "remote", "where": EFFECT.folder})]
    with pytest.raises(ProcessingError, match="resubmit is not possible"):
        require_remote(desk.case(), "resubmit")  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", ["removed", "gone"])
def test_what_has_gone_is_recorded_once_and_for_all(outcome: str) -> None:
    desk = Desk()
    desk.begin()
    made = desk.service.apply(answered(outcome=outcome, bytes=5))
    assert (made.done, made.bytes, made.side) == (True, 5, Side.REMOTE)
    assert desk.marks() == {"remote"}
    data = {"side": "remote", "where": EFFECT.folder, "bytes": 5, "why": ""}
    assert desk.events()[-1] == ("pruned", data)
    assert desk.begin() == []
    assert "pruned on 2026-11-24" in desk.service.plan(NOW).cases[0].remote.why


@pytest.mark.parametrize(
    "completion", [failed(uncertain=False), answered(outcome="kept", why="Slurm shows x as RUNNING")]
)
def test_where_nothing_was_touched_the_intent_is_taken_back(completion: Completion) -> None:
    desk = Desk()
    desk.begin()
    made = desk.service.apply(completion)
    assert not made.done
    assert made.text.startswith("nothing removed: ")
    assert desk.marks() == set()
    assert desk.events()[-1][0] == "prune failed"
    assert desk.begin() == [EFFECT]


@pytest.mark.parametrize("open_end", [failed(uncertain=True), answered(outcome="left", why="busy"), None])
def test_what_is_open_stays_marked_until_a_later_prune_finds_it_gone(open_end: Completion | None) -> None:
    desk = Desk()
    desk.begin()
    if open_end is not None:  # else the program was killed before it heard
        assert not desk.service.apply(open_end).done
    for again in (failed(uncertain=False), answered(outcome="kept", why="no .owner"), failed(uncertain=True)):
        assert desk.begin() == [EFFECT]
        assert not desk.service.apply(again).done
        assert desk.marks() == {"remote_begun", "remote_open"}
    assert desk.begin() == [EFFECT]
    assert desk.service.apply(answered(outcome="gone")).done
    assert desk.marks() == {"remote"}


def test_a_case_that_was_taken_up_again_since_the_plan_is_left_out() -> None:
    desk = Desk()
    plan = desk.service.plan(NOW)
    entry = job_with(name="j02", days=None, beams=(TaskStatus.RUNNING,) * 2)
    desk.put(replace(entry, job=entry.job.evolve(status=JobStatus.RUNNING)))
    assert list(desk.service.remote_effects(plan)) == []
    assert desk.service.local(plan) == []
    assert (desk.marks(), desk.results.removed) == (set(), [])


@dataclass
class Cluster:
    """An effects port that answers each effect so, after a wait in which nothing comes."""

    answers: list[Completion]
    desk: Desk
    started: list[tuple[str, set[str]]] = field(default_factory=list)
    waited: bool = False

    def start(self, effect: Prune) -> None:
        with self.desk.store.transaction(write=False) as unit:
            begun = {c.case_id for c in unit.cases.all() if pruned(c).remote_begun}
        self.started.append((effect.case_id, begun))

    def completions(self, timeout: float) -> list[Completion]:
        self.waited = not self.waited
        if self.waited:
            return []
        effect = replace(EFFECT, case_id=self.started[-1][0])
        return [replace(self.answers.pop(0), effect=effect)]

    def close(self) -> None: ...


def two_cases() -> Desk:
    desk = Desk()
    with desk.store.transaction() as unit:
        (first,) = unit.cases.all()
        unit.cases.put(first.evolve(case_id=OTHER, label="Q-f01"))
        for entry in desk.history:
            unit.jobs.put(entry.job.evolve(job_id=f"{OTHER}-j01", case_id=OTHER))
            for task in entry.tasks:
                changes = {"job_id": f"{OTHER}-j01", "task_id": f"{OTHER}{task.task_id}"}
                unit.jobs.put_task(task.evolve(**changes))
    return desk


def test_cases_go_one_after_the_other_each_with_its_own_intent() -> None:
    desk = two_cases()
    cluster = Cluster([answered(outcome="kept", why="x"), answered(outcome="removed")], desk)
    outcomes = desk.service.remote(desk.service.plan(NOW), cluster)  # type: ignore[arg-type]
    assert [outcome.done for outcome in outcomes] == [False, True]
    assert [(case, begun) for case, begun in cluster.started] == [(KEY, {KEY}), (OTHER, {OTHER})]
    assert desk.service.remote(desk.service.plan(NOW, []), cluster) == []  # type: ignore[arg-type]


def test_a_cluster_that_is_not_reached_is_not_asked_for_every_case() -> None:
    desk = two_cases()
    cluster = Cluster([failed(uncertain=True)], desk)
    (outcome,) = desk.service.remote(desk.service.plan(NOW), cluster)  # type: ignore[arg-type]
    assert "no route" in outcome.text
    assert [case for case, _ in cluster.started] == [KEY]


def test_another_effect_or_an_unknown_case_is_refused() -> None:
    desk = Desk()
    with pytest.raises(StateError, match="Cancel is no removal"):
        desk.service.apply(Completion(effect=Cancel(case_id=KEY, job_id="j", targets=())))
    with pytest.raises(ProcessingError, match="no case"):
        desk.service.apply(Completion(effect=replace(EFFECT, case_id="qqqqqqqqqqqq"), error="x"))


def test_local_results_go_with_an_intent_before_and_a_mark_after() -> None:
    desk = Desk()
    seen: list[set[str]] = []
    desk.results.on_remove = lambda: seen.append(desk.marks())
    (made,) = desk.service.local(desk.service.plan(NOW))
    assert (made.done, made.bytes, made.side) == (True, 2001, Side.LOCAL)
    assert seen == [{"local_begun"}]
    assert desk.marks() == {"local"}
    kind, data = desk.events()[-1]
    assert (kind, data["bytes"]) == ("pruned", 2001)
    assert [entry["fate"] for entry in data["where"]] == ["removed", "removed"]  # type: ignore[attr-defined]
    assert desk.service.local(desk.service.plan(NOW)) == []
    require_remote(desk.case(), "fetch")  # type: ignore[arg-type]


def test_a_changed_file_is_left_and_told() -> None:
    desk = Desk(results=Results(fates={"1": "left"}))
    (made,) = desk.service.local(desk.service.plan(NOW))
    assert (made.done, made.bytes) == (True, 1000)
    assert [fate.fate for fate in made.files] == ["removed", "left"]


def test_files_that_went_without_us_are_no_prune() -> None:
    desk = Desk(results=Results(fates={"0": "gone", "1": "left"}))
    (made,) = desk.service.local(desk.service.plan(NOW))
    assert (made.done, made.text) == (True, "nothing to remove")
    assert (desk.marks(), desk.events()) == (set(), [])


def test_a_removal_that_was_interrupted_is_finished_though_all_is_gone() -> None:
    desk = Desk()
    desk.results.refuse = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        desk.service.local(desk.service.plan(NOW))
    assert desk.marks() == {"local_begun"}
    desk.results.refuse, desk.results.fates = None, {"0": "gone", "1": "gone"}
    (made,) = desk.service.local(desk.service.plan(NOW))
    assert (made.done, desk.marks()) == (True, {"local"})


@pytest.mark.parametrize(
    "refuse", [ConfigurationError("results cannot be looked at"), OSError(5, "Input/output error")]
)
def test_a_results_folder_that_fails_is_told_and_tried_again(refuse: Exception) -> None:
    desk = Desk()
    desk.results.refuse = refuse
    (made,) = desk.service.local(desk.service.plan(NOW))
    assert (made.done, made.text) == (False, str(refuse))
    desk.results.refuse = None
    assert desk.service.local(desk.service.plan(NOW))[0].done


def test_a_file_that_cannot_be_removed_is_tried_again() -> None:
    desk = Desk(results=Results(fates={"1": "failed"}))
    (made,) = desk.service.local(desk.service.plan(NOW))
    assert (made.done, made.text) == (False, "why")
    assert desk.marks() == {"local_begun"}
    assert desk.events()[-1][0] == "prune failed"
    desk.results.fates = {"0": "gone"}
    assert desk.service.local(desk.service.plan(NOW))[0].done


# What is shown


def test_a_dry_run_says_what_would_go(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk(results=Results(fates={"1": "left"}))
    plan = desk.service.plan(NOW)
    shown.plan_text(plan, desk.service.look(plan), list(Side))
    said = capsys.readouterr().out
    assert said.count("yes") >= 2
    assert "stays: /results/P-f01/j01/beam_1.dcm: why" in said
    assert "Nothing was removed. --yes removes" in said
    data = json.loads(shown.plan_json(plan, desk.service.look(plan), list(Side)))
    assert data["dry_run"]
    (case,) = data["cases"]
    assert (case["status"], case["remote"]["would_go"], case["local"]["would_go"]) == (
        "completed",
        True,
        True,
    )
    assert case["local"]["bytes"] == 1000
    assert [file["fate"] for file in case["local"]["files"]] == ["removed", "left"]


def test_a_dry_run_in_which_nothing_may_go(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk(history=(job_with(days=1),))
    shown.plan_text(desk.service.plan(NOW), {}, [Side.REMOTE])
    assert capsys.readouterr().out == (
        "Nothing may go.\nCases of which nothing may go: 1 (`mqi-hpc prune CASE`, or --json, tells why).\n"
    )
    shown.plan_text(desk.service.plan(NOW, [KEY]), {}, [Side.REMOTE])
    said = capsys.readouterr().out
    assert "remote_completed_days is 14" in said
    assert said.endswith("Nothing may go.\n")
    shown.plan_text(desk.service.plan(NOW, []), {}, [Side.REMOTE])
    assert "No cases" in capsys.readouterr().out
    assert json.loads(shown.plan_json(desk.service.plan(NOW), {}, [Side.REMOTE]))["cases"][0].keys() == {
        "case_id", "label", "status", "ended_at", "remote"
    }  # fmt: skip
    empty = Desk(history=())
    assert '"ended_at": null' in shown.plan_json(empty.service.plan(NOW), {}, list(Side))


def test_outcomes_are_told_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk(results=Results(fates={"1": "left"}))
    desk.begin()
    outcomes = [*desk.service.local(desk.service.plan(NOW)), desk.service.apply(answered(outcome="kept"))]
    unreached = desk.service.apply(failed(uncertain=True))
    shown.outcome_text([unreached])
    shown.outcome_text(outcomes)
    said = capsys.readouterr().out
    assert "(0.0 MB)" in said
    assert "how it ended is not known, prune again: no route" in said
    assert "stays: /results/P-f01/j01/beam_1.dcm: why" in said
    data = json.loads(shown.outcome_json(outcomes))
    assert [entry["done"] for entry in data["outcomes"]] == [True, False]
    assert (shown.exit_code(outcomes), shown.exit_code(outcomes[:1])) == (3, 0)
    assert (shown.exit_code(outcomes[1:]), shown.exit_code([])) == (1, 0)
    assert shown.exit_code([*outcomes, unreached]) == 4
    shown.outcome_text([])
    assert "Nothing may go" in capsys.readouterr().out
    assert shown.megabytes(None) == "-"


def test_a_case_that_the_loop_led_to_its_end_goes_and_is_then_refused() -> None:
    bench = Bench()
    bench.begin()
    bench.until_sent()
    bench.interpret_done()
    bench.beam_done(0)
    bench.beam_done(1)
    bench.convert_done(0, 1)
    bench.exits(("interpret", 0, 0), ("beams", 0, 0), ("beams", 1, 0), ("convert", 0, 0))
    bench.until("completed")
    results = Results()
    bench.clock.time += 31 * 86400
    service = RetentionService(bench.store, results, bench.clock, RULES, workspace="/work")
    now = datetime.fromtimestamp(bench.clock.now(), UTC)
    (planned,) = service.plan(now).cases
    assert (planned.remote.allowed, planned.local.allowed) == (True, True)
    assert [file.sha256 is not None for file in planned.local.files] == [True, True]
    (effect,) = service.remote_effects(service.plan(now))
    assert effect == Prune(case_id=KEY, folder=bench.jobs.folder(KEY, "j01").rpartition("/")[0])
    answer = PruneAnswer(outcome="removed", bytes=1).encode()
    assert service.apply(Completion(effect=effect, output=answer)).done
    assert service.local(service.plan(now))[0].done
    assert len(results.removed) == 2
    assert bench.report.status == "completed"
    request = Request(request_id="1", verb=Verb.FETCH, case_id=KEY, who="me")
    with pytest.raises(ProcessingError, match="fetch is not possible"):
        bench.orders.carry_out(request)
