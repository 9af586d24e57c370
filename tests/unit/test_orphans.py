"""doctor --orphans: what bears this instance's name and is not accounted for, and what is never touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.controllers.parts import SystemClock
from mqi_hpc.core.causes import Cause, Retry
from mqi_hpc.core.models import Job, SubmitState, Task, TaskStatus
from mqi_hpc.core.observation import Row
from mqi_hpc.core.orphans import (
    OrphanKind,
    Verdict,
    expected,
    find_lost,
    find_orphans,
    left,
    own_rows,
    targets,
)
from mqi_hpc.core.resubmit import History
from mqi_hpc.infrastructure.state import load_or_create_instance, open_store
from mqi_hpc.main import run
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.resource_service import ResourceService
from tests.support.bench import KEY, PlainRenderer, make_case
from tests.support.fake_slurm import FakeSlurm
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock
from tests.unit.test_service import write

OTHER = "otherkey0000"
IDS = {"interpret": 11, "beams": 12, "convert": 13}


def named(stage: str, key: str = KEY, job: str = "j01", instance: str = "i1") -> str:
    return f"mqi-{instance}-{key}-{job}-{stage}"


def row(name: str, job: int, word: str = "RUNNING", task: int | None = None) -> Row:
    return Row(job=job, task=task, name=name, word=word)


def history(
    state: SubmitState = SubmitState.STANDING, over: Sequence[str] = (), ids: dict[str, int] | None = None
) -> History:
    """A case of one job of two beams; the stages in `over` have ended."""
    store = MemoryStore()
    with store.transaction() as unit:
        unit.cases.put(make_case())
    resources = ResourceService(store, gpu_count=None, min_disk_space_gb=0, free_bytes=lambda: 1)
    job = JobService(store, PlainRenderer(), resources, Clock(), workspace="/w").create_job(KEY)
    with store.transaction(write=False) as unit:
        tasks = unit.jobs.tasks(job.job_id)
    job = stood(job, state, IDS if ids is None else ids)
    return History(jobs=(job,), tasks={job.job_id: [ended(task, over) for task in tasks]})


def stood(job: Job, state: SubmitState, ids: dict[str, int]) -> Job:
    submissions = tuple(s.evolve(slurm_id=ids.get(s.stage), cluster_time=1.0) for s in job.submissions)
    return job.evolve(submit_state=state, submissions=submissions)


def ended(task: Task, over: Sequence[str]) -> Task:
    kinds = {"interpret": "interpret", "beam_calc": "beams", "convert": "convert"}
    done = kinds.get(task.type) in over
    return task.evolve(status=TaskStatus.COMPLETED if done else TaskStatus.RUNNING)


def look(*rows: Row, cases: dict[str, History] | None = None, folders: Sequence[str] = ()) -> Verdict:
    return find_orphans(
        "i1", {KEY: history()} if cases is None else cases, before=rows, after=rows, folders=folders
    )


# What is an orphan


def test_what_the_store_holds_live_is_none() -> None:
    rows = [row(named(stage), slurm_id) for stage, slurm_id in IDS.items()]
    assert look(*rows, folders=[KEY]) == Verdict(orphans=(), not_judged={})


@pytest.mark.parametrize(
    ("name", "slurm_id", "words"),
    [
        (named("beams", key=OTHER), 12, f"knows no case {OTHER}"),
        (named("beams"), 99, "has the id 12"),
    ],
)
def test_what_it_does_not_know_is_one(name: str, slurm_id: int, words: str) -> None:
    (found,) = look(row(name, slurm_id)).orphans
    assert (found.kind, found.name, found.slurm_id) == (OrphanKind.JOB, name, slurm_id)
    assert words in found.what
    assert "--cancel" in found.cure
    assert found.cancellable


OVER = ("interpret", "beams", "convert")


def test_a_job_that_a_case_which_is_over_does_not_know_is_one() -> None:
    (found,) = look(row(named("beams", job="j02"), 12), cases={KEY: history(over=OVER)}).orphans
    assert "knows no j02" in found.what
    assert found.cancellable


def test_a_job_that_a_store_restored_from_a_backup_may_take_over_yet_is_left_alone() -> None:
    promised = history(over=OVER)
    (job,) = promised.jobs
    retry = Retry(cause=Cause.NODE_FAIL, at=1.0, pause=1.0, attempt=1, most=3)
    tasks = [
        task.evolve(status=TaskStatus.FAILED, retry=retry) if task.type == "beam_calc" else task
        for task in promised.tasks[job.job_id]
    ]
    for one in (history(over=["interpret"]), replace(promised, tasks={job.job_id: tasks})):
        found = look(row(named("beams", job="j02"), 12), cases={KEY: one})
        assert found.orphans == ()
        assert "takes it over" in found.not_judged[KEY]


def test_a_job_of_a_case_without_any_is_one() -> None:
    (found,) = look(row(named("beams"), 12), cases={KEY: History(jobs=(), tasks={})}).orphans
    assert "knows no j01" in found.what


@pytest.mark.parametrize("state", [SubmitState.REFUSED, SubmitState.BURNT, SubmitState.WITHDRAWN])
def test_a_job_that_was_given_up_should_have_nothing_in_slurm(state: SubmitState) -> None:
    (found,) = look(row(named("beams"), 12), cases={KEY: history(state)}).orphans
    assert str(state) in found.what


def test_a_stage_that_is_over_should_not_run() -> None:
    (found,) = look(row(named("beams"), 12), cases={KEY: history(over=["beams"])}).orphans
    assert "is over" in found.what


def test_a_stage_that_a_job_does_not_have() -> None:
    one = history()
    job = one.jobs[0].evolve(submissions=one.jobs[0].submissions[1:])
    (found,) = look(row(named("interpret"), 11), cases={KEY: replace(one, jobs=(job,))}).orphans
    assert "has no interpret" in found.what


@pytest.mark.parametrize("end", ["check-beams", f"{KEY}-j1-beams", f"{KEY}-j01-other"])
def test_a_name_of_another_form_is_shown_and_left_alone(end: str) -> None:
    (found,) = look(row(f"mqi-i1-{end}", 5)).orphans
    assert not found.cancellable
    assert targets([found]) == ()


@pytest.mark.parametrize("name", [named("beams", instance="i2"), "mqi-i1", "mqi-i12-x", "somebody-else"])
def test_jobs_of_others_are_not_seen(name: str) -> None:
    assert look(row(name, 5)).orphans == ()


def test_what_has_ended_is_none() -> None:
    assert look(row(named("beams", key=OTHER), 12, "COMPLETED")).orphans == ()


def test_what_ended_between_the_looks_is_none() -> None:
    found = find_orphans(
        "i1", {}, before=[row(named("beams"), 12)], after=[row(named("beams"), 12, "COMPLETED")], folders=()
    )
    assert found.orphans == ()


def test_what_was_sent_after_the_store_was_read_is_none() -> None:
    found = find_orphans("i1", {}, before=[], after=[row(named("beams"), 12)], folders=())
    assert found.orphans == ()


@pytest.mark.parametrize(
    "state",
    [SubmitState.PLANNED, SubmitState.UPLOADED, SubmitState.SUBMITTING, SubmitState.AMBIGUOUS],
)
def test_a_case_that_is_being_submitted_is_not_judged_and_said_so(state: SubmitState) -> None:
    found = look(row(named("interpret"), 99), cases={KEY: history(state, ids={})})
    assert found.orphans == ()
    assert str(state) in found.not_judged[KEY]


def test_nothing_is_said_of_a_case_in_submission_of_which_slurm_has_nothing() -> None:
    assert look(cases={KEY: history(SubmitState.AMBIGUOUS, ids={})}).not_judged == {}


def test_a_folder_of_no_case_is_shown_and_others_are_passed_over() -> None:
    (found,) = look(folders=[KEY, OTHER, ".owner", "notes"]).orphans
    assert (found.kind, found.name, found.slurm_id) == (OrphanKind.FOLDER, OTHER, None)
    assert not found.cancellable


def test_a_convert_is_cancelled_before_the_array_it_waits_for() -> None:
    rows = [row(named(stage, key=OTHER), slurm_id) for stage, slurm_id in IDS.items()]
    rows += [row(named("beams", key=OTHER), 12, task=n) for n in range(3)]
    assert [slurm_id for _, slurm_id in targets(look(*rows).orphans)] == [13, 12, 11]


# The reverse


def test_what_the_store_holds_live_and_slurm_does_not_know_is_lost() -> None:
    wanted = expected({KEY: history(over=["interpret"])})
    assert wanted == {(named("beams"), 12): KEY, (named("convert"), 13): KEY}
    (found,) = find_lost(wanted, queue=[row(named("beams"), 12, "COMPLETED")], accounted=[])
    assert (found.kind, found.name, found.cancellable) == (OrphanKind.LOST, named("convert"), False)
    assert find_lost(wanted, queue=[], accounted=[row(name, one, "FAILED") for name, one in wanted]) == ()


def test_only_what_stands_is_expected_in_slurm() -> None:
    assert expected({KEY: history(SubmitState.AMBIGUOUS)}) == {}


def test_what_is_about_to_end_counts_as_ended() -> None:
    wanted = [(named("beams"), 12), (named("convert"), 13), (named("interpret"), 11)]
    rows = [row(named("beams"), 12), row(named("convert"), 13, "COMPLETING"), row(named("interpret"), 99)]
    assert left(wanted, rows) == ((named("beams"), 12),)
    assert len(own_rows(rows, "i1")) == 3


# The command, on this machine with stand-ins for Slurm's programs


class Place:
    """An installation with one case whose chain stands, and a queue to fill."""

    def __init__(self, home: Path, slurm: FakeSlurm) -> None:
        self.slurm = slurm
        self.work = home / "work"
        self.work.mkdir(mode=0o700)
        self.path = write(home / "config.yaml")
        self.state = home / "state" / "mqi.sqlite"
        self.state.parent.mkdir(mode=0o700, exist_ok=True)
        instance = load_or_create_instance(self.state)
        self.instance = instance.id
        self.store = open_store(self.state, instance=instance.id, secret=instance.secret, clock=SystemClock())
        (self.work / ".owner").write_text(f"{self.instance}\n")

    def stands(self, state: SubmitState = SubmitState.STANDING) -> None:
        one = history(state)
        with self.store.transaction() as unit:
            unit.cases.put(make_case().evolve(instance=self.instance))
            unit.jobs.put(
                one.jobs[0].evolve(
                    submissions=tuple(
                        s.evolve(name=s.name.replace("-i1-", f"-{self.instance}-"))
                        for s in one.jobs[0].submissions
                    )
                )
            )
            for task in one.tasks[one.jobs[0].job_id]:
                unit.jobs.put_task(task)

    def other(self) -> None:
        """A case that has no job yet: the store is not an empty one."""
        with self.store.transaction() as unit:
            unit.cases.put(make_case(key=OTHER).evolve(instance=self.instance, identity="another"))

    def queue(self, *jobs: tuple[str, int]) -> None:
        rows = [{"id": number, "name": name, "state": "RUNNING", "reason": "None"} for name, number in jobs]
        self.slurm.set(jobs=rows)

    def named(self, stage: str, key: str = KEY) -> str:
        return named(stage, key=key, instance=self.instance)

    def asked(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
        code = run(["--config", str(self.path), "doctor", "--orphans", "--json", *words])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return code, answer


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    slurm = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{slurm.path}:{os.environ['PATH']}")
    monkeypatch.setattr("mqi_hpc.controllers.orphans._PAUSE", 0.0)
    return Place(tmp_path, slurm)


def whole(place: Place) -> list[tuple[str, int]]:
    return [(place.named(stage), number) for stage, number in IDS.items()]


def test_nothing_found_is_exit_0(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.stands()
    (place.work / KEY).mkdir()
    place.queue(*whole(place), ("somebody-else", 7))
    place.slurm.set(noise="squeue: warning: hello\n")
    assert place.asked(capsys) == (0, {"orphans": [], "not_judged": {}, "notes": []})
    assert run(["--config", str(place.path), "doctor", "--orphans"]) == 0
    assert "Nothing on the cluster" in capsys.readouterr().out


def test_r37_orphans_are_listed_and_cancelled_by_name_and_id(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.stands()
    (place.work / OTHER).mkdir()
    foreign = [("somebody-else", 7), (named("beams", instance="zzzzzz"), 8)]
    orphan = (place.named("beams", key=OTHER), 77)
    place.queue(*whole(place), *foreign, orphan)
    code, found = place.asked(capsys)
    assert code == 1
    assert [(one["kind"], one["name"], one["slurm_id"]) for one in found["orphans"]] == [
        ("job", *orphan),
        ("folder", OTHER, None),
    ]
    assert place.slurm.calls("scancel") == []

    assert run(["--config", str(place.path), "doctor", "--orphans", "--cancel"]) == 1
    told = capsys.readouterr().out
    assert "cancelled" in told
    assert "1 cancelled" in told
    ((arguments, _),) = place.slurm.calls("scancel")
    assert f"--name={orphan[0]}" in arguments
    assert "-u" in arguments
    states = {job["id"]: job["state"] for job in place.slurm.jobs}
    assert states == {
        11: "RUNNING",
        12: "RUNNING",
        13: "RUNNING",
        7: "RUNNING",
        8: "RUNNING",
        77: "CANCELLED",
    }
    with place.store.transaction(write=False) as unit:
        told_of = [(event.kind, json.loads(event.body)["targets"]) for event in unit.all_events()]
    assert told_of == [("cancelling", [list(orphan)]), ("cancelled", [list(orphan)])]
    (place.work / OTHER).rmdir()
    assert place.asked(capsys, "--cancel")[0] == 0


def test_a_scancel_that_says_yes_and_ends_nothing_is_told(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.other()
    place.queue((place.named("beams", key="unknownkey00"), 77))
    (place.slurm.path / "scancel").write_text("#!/bin/sh\nexit 0\n")
    code, found = place.asked(capsys, "--cancel")
    assert code == 1
    assert not found["orphans"][0]["cancelled"]
    assert "the queue still shows it" in found["notes"][0]


def test_a_job_that_is_just_being_submitted_is_not_cancelled(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.stands(SubmitState.SUBMITTING)
    place.queue((place.named("interpret"), 99))
    code, found = place.asked(capsys, "--cancel")
    assert code == 0
    assert "submitting" in found["not_judged"][f"P-{KEY}"]
    assert place.slurm.calls("scancel") == []
    assert run(["--config", str(place.path), "doctor", "--orphans"]) == 0
    assert "not judged" in capsys.readouterr().out


def test_a_store_that_was_begun_anew_ends_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.queue((place.named("beams"), 12))
    code, found = place.asked(capsys, "--cancel")
    assert code == 2
    assert "holds no case" in found["error"]
    assert place.slurm.calls("scancel") == []


def test_a_queue_that_does_not_answer_says_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.slurm.fails("squeue", 1, "slurm_load_jobs error: Unable to contact slurm controller")
    code, found = place.asked(capsys, "--cancel")
    assert code == 4
    assert "Unable to contact slurm controller" in found["error"]


def test_a_queue_of_another_form_says_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.slurm.path / "squeue").write_text("#!/bin/sh\nprintf '1\\037mqi-\\n'\n")
    assert place.asked(capsys)[0] == 4


def test_what_neither_queue_nor_accounting_knows(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.stands()
    place.queue(*whole(place)[:2])
    code, found = place.asked(capsys)
    assert code == 1
    assert [(one["kind"], one["slurm_id"]) for one in found["orphans"]] == [("lost", 13)]


@pytest.mark.parametrize("script", ["#!/bin/sh\necho no >&2\nexit 1\n", "#!/bin/sh\necho 1 2\n"])
def test_an_accounting_that_does_not_answer_says_nothing_of_what_is_lost(
    place: Place, capsys: pytest.CaptureFixture[str], script: str
) -> None:
    place.stands()
    (place.slurm.path / "sacct").write_text(script)
    code, found = place.asked(capsys)
    assert code == 0
    assert "nothing is said of them" in found["notes"][0]
    assert run(["--config", str(place.path), "doctor", "--orphans"]) == 0
    assert "note" in capsys.readouterr().out


def test_without_accounting_nothing_is_lost(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.stands()
    write(place.path, slurm={"accounting": "off"})
    code, found = place.asked(capsys)
    assert code == 0
    assert "no accounting" in found["notes"][0]


def test_a_workspace_of_another_is_not_looked_into(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.work / ".owner").write_text("zzzzzz\n")
    code, found = place.asked(capsys)
    assert code == 2
    assert "another installation" in found["error"]


def test_without_a_store_all_would_look_like_an_orphan(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.store.close()
    place.state.unlink()
    place.queue((place.named("beams"), 12))
    code, found = place.asked(capsys, "--cancel")
    assert code == 2
    assert "init --adopt" in found["fix"]
    assert place.slurm.calls("scancel") == []


def test_cancel_alone_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--config", str(place.path), "doctor", "--cancel"]) == 2
    assert "--orphans" in capsys.readouterr().err


def test_a_case_that_is_taken_up_meanwhile_is_left_alone(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.other()
    place.queue(*whole(place))
    from mqi_hpc.controllers import orphans

    read: Callable[..., Any] = orphans._Examination._read
    reads: list[int] = []

    def read_then(self: Any) -> Any:
        reads.append(1)
        if len(reads) == 2:
            place.stands()
        return read(self)

    monkeypatch.setattr(orphans._Examination, "_read", read_then)
    code, found = place.asked(capsys, "--cancel")
    assert code == 1
    assert len(found["orphans"]) == 3
    assert "accounts for them by now" in found["notes"][0]
    assert place.slurm.calls("scancel") == []
