"""What retention allows to go: never anything live, doubtful, not home, or younger than allowed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import Case, CaseStatus, Job, JobStatus, SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.outcome import case_status, job_status
from mqi_hpc.core.pruning import (
    DeliveredFile,
    PruneAnswer,
    marked,
    pruned,
    require_remote,
)
from mqi_hpc.core.retention import (
    CasePlan,
    JobHistory,
    PrunePlan,
    RetentionRules,
    Side,
    delivered_files,
    plan_case,
)
from mqi_hpc.records.result import ConvertedDose, ConvertRecord, FileEntry, Run, encode_record
from tests.support.bench import DIGEST, KEY, make_case

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
RULES = RetentionRules(remote_completed_days=14, remote_failed_days=60, local_results_days=30)
C, F = TaskStatus.COMPLETED, TaskStatus.FAILED


def convert_record(job: str, indices: Sequence[int]) -> str:
    files = tuple(FileEntry(f"c/beam_{i}.dcm", 1000 + i, DIGEST) for i in indices)
    doses = tuple(
        ConvertedDose(
            index=i,
            number=i + 1,
            file=f"c/beam_{i}.dcm",
            source_job=job,
            source_sha256=DIGEST,
            sop_instance_uid="1.2",
            maximum=1.0,
            range80_mm=None,
        )
        for i in indices
    )
    run = Run(key=KEY, job=job, array_id=9, slurm_id=9, restart=0, node="g1", start=1.0, end=2.0, exit_code=0)
    return encode_record(ConvertRecord(run=run, doses=doses, missing={}, files=files))


def job_with(
    *,
    name: str = "j01",
    days: float | None = 100,
    beams: Sequence[TaskStatus] = (C, C),
    upload: TaskStatus = C,
    interpret: TaskStatus = C,
    convert: TaskStatus = C,
    download: TaskStatus = C,
    state: SubmitState = SubmitState.STANDING,
    home: Sequence[int] | None = None,
    logs: dict[str, str] | None = None,
    digests: dict[str, tuple[int, str]] | None = None,
) -> JobHistory:
    """A job that ended `days` ago; the doses of `home` (default: of done beams) were delivered."""
    job_id = f"{KEY}-{name}"
    done = [i for i, status in enumerate(beams) if status is C]
    home = done if home is None else home
    told = {"files": [f"/results/P-f01/{name}/beam_{i}.dcm" for i in home], "logs": logs or {}}
    if digests:
        told["digests"] = digests

    def task(kind: TaskType, status: TaskStatus, index: int = 0, **more: object) -> Task:
        fields = {"task_id": f"{job_id}/{kind}-{index}", "job_id": job_id, "type": kind, "index": index}
        return Task(**fields, status=status, **more)  # type: ignore[arg-type]

    tasks = (
        task(TaskType.UPLOAD, upload),
        task(TaskType.INTERPRET, interpret),
        *(task(TaskType.BEAM_CALC, status, i) for i, status in enumerate(beams)),
        task(TaskType.CONVERT, convert, record=convert_record(name, done) if convert is C else None),
        task(
            TaskType.DOWNLOAD, download, parameters={"delivered": json.dumps(told)} if download is C else {}
        ),
    )
    ended = None if days is None else NOW - timedelta(days=days)
    job = Job(
        job_id=job_id,
        case_id=KEY,
        status=job_status(tasks),
        created_at=NOW - timedelta(days=1000),
        completed_at=ended,
        name=name,
        submit_state=state,
        submissions=(),
    )
    return JobHistory(job, tasks)


def case_of(*history: JobHistory, **changes: object) -> Case:
    status = case_status(history[-1].tasks) if history else CaseStatus.NEW
    return make_case(beams=2).evolve(**{"status": status, **changes})


def plan(
    *history: JobHistory, rules: RetentionRules = RULES, named: bool = False, **changes: object
) -> CasePlan:
    return plan_case(case_of(*history, **changes), history, rules, now=NOW, named=named)


def test_a_completed_case_goes_on_both_sides_when_it_is_old_enough() -> None:
    made = plan(job_with(days=31))
    assert (made.status, made.ended_at) == (CaseStatus.COMPLETED, NOW - timedelta(days=31))
    assert (made.remote.allowed, made.local.allowed) == (True, True)
    assert made.remote.why == "ended 31.0 days ago, retention.remote_completed_days is 14"
    sent = sum(file.bytes for file in make_case(beams=2).files) + 2001
    assert (made.remote.bytes, made.local.bytes) == (sent, 2001)
    assert made.local.files[0] == DeliveredFile("/results/P-f01/j01/beam_0.dcm", 1000, DIGEST)
    assert [case.case_id for case, _ in PrunePlan((made,)).of(Side.LOCAL)] == [KEY]
    young = plan(job_with(days=15))
    assert (young.remote.allowed, young.local.allowed) == (True, False)
    assert list(PrunePlan((young,)).of(Side.LOCAL)) == []
    assert list(PrunePlan((young,)).of(Side.REMOTE)) == [(young, young.remote)]


@pytest.mark.parametrize(
    ("history", "status"),
    [
        (job_with(days=59, beams=(C, F)), CaseStatus.PARTIAL),
        (job_with(days=59, beams=(F, F), convert=F), CaseStatus.FAILED),
        (job_with(days=59, beams=(TaskStatus.CANCELLED,) * 2, convert=F), CaseStatus.CANCELLED),
    ],
)
def test_other_cases_stay_longer_on_the_cluster(history: JobHistory, status: CaseStatus) -> None:
    made = plan(history)
    assert (made.status, made.remote.allowed) == (status, False)
    assert "remote_failed_days is 60" in made.remote.why
    older = replace(history, job=history.job.evolve(completed_at=NOW - timedelta(days=60)))
    assert plan(older).remote.allowed


def test_zero_days_keep_for_ever_and_enormous_ones_as_well() -> None:
    for days in (0, 1e300):
        rules = RetentionRules(remote_completed_days=days, remote_failed_days=days, local_results_days=days)
        made = plan(job_with(days=900), rules=rules, named=True)
        assert (made.remote.allowed, made.local.allowed) == (False, False)
    assert "for ever" in plan(job_with(), rules=replace(RULES, local_results_days=0)).local.why


def test_an_age_is_counted_from_the_job_that_ended_last() -> None:
    history = (job_with(days=3, beams=(C, F)), job_with(name="j02", days=100))
    assert plan(*history).ended_at == NOW - timedelta(days=3)
    assert not plan(*history).remote.allowed


@pytest.mark.parametrize(
    ("case_changes", "job_changes", "words"),
    [
        ({"status": CaseStatus.PROCESSING}, {}, "it is processing"),
        ({"status": CaseStatus.NEW}, {}, "it is new"),
        ({"status": CaseStatus.QUEUED}, {}, "it is queued"),
        ({}, {"submit_state": SubmitState.SUBMITTING}, "is open (submitting)"),
        ({}, {"submit_state": SubmitState.AMBIGUOUS}, "is open (ambiguous)"),
        ({}, {"status": JobStatus.RUNNING}, "j01 has not ended"),
        ({}, {"status": JobStatus.PENDING}, "j01 has not ended"),
        ({}, {"completed_at": None}, "j01 has not ended"),
    ],
)
def test_what_is_live_or_open_stays_even_when_named(
    case_changes: dict[str, object], job_changes: dict[str, object], words: str
) -> None:
    entry = job_with()
    entry = replace(entry, job=entry.job.evolve(**job_changes))
    made = plan(entry, named=True, **case_changes)
    assert words in made.remote.why
    assert words in made.local.why
    assert (made.remote.allowed, made.local.allowed) == (False, False)


def test_a_live_task_of_an_older_job_keeps_the_case() -> None:
    live = job_with(beams=(C, TaskStatus.RUNNING))
    live = replace(live, job=live.job.evolve(status=JobStatus.PARTIAL))
    made = plan(live, job_with(name="j02"), named=True)
    assert made.remote.why == "j01 has tasks that have not ended"


def test_a_need_for_attention_keeps_a_case_until_it_is_named() -> None:
    suspect = job_with(beams=(C, TaskStatus.SUSPECT))
    assert "beam_calc 1 is suspect" in plan(suspect).remote.why
    assert plan(suspect, named=True).remote.allowed
    lost = job_with(beams=(C, TaskStatus.LOST))
    assert "beam_calc 1 is lost" in plan(lost).local.why
    flagged = plan(job_with(), attention="a delivery turned up later")
    assert "asks for attention (a delivery turned up later)" in flagged.remote.why
    assert not flagged.local.allowed


def test_a_doubt_that_a_later_job_settled_is_none() -> None:
    suspect = job_with(beams=(C, TaskStatus.SUSPECT))
    assert plan(suspect, job_with(name="j02")).remote.allowed


@pytest.mark.parametrize(
    "entry",
    [
        job_with(beams=(F, C), download=F),
        job_with(beams=(F, C), convert=F),
        job_with(beams=(F, C), home=[]),
    ],
)
def test_a_done_beam_that_is_not_home_keeps_the_remote_side_even_when_named(entry: JobHistory) -> None:
    made = plan(entry, named=True)
    assert not made.remote.allowed
    assert "not home: beam 3" in made.remote.why


def test_a_beam_that_a_later_job_brought_home_is_home() -> None:
    first = job_with(beams=(C, F), download=F)
    second = job_with(name="j02", beams=(C, C))
    assert plan(first, second).remote.allowed


def test_a_beam_that_was_computed_anew_is_home_only_when_the_new_dose_is() -> None:
    first, second = job_with(), job_with(name="j02", beams=(C, F), download=F)
    assert "not home: beam 2 " in plan(first, second, named=True).remote.why


def test_a_case_without_a_job_has_nothing_to_go() -> None:
    made = plan(status=CaseStatus.REJECTED)
    assert (made.remote.allowed, made.local.allowed) == (False, False)
    assert (made.remote.why, made.local.why) == ("nothing of it was ever sent", "nothing of it was delivered")
    assert made.ended_at is None


def test_a_case_that_was_never_delivered_has_nothing_to_go_here() -> None:
    refused = job_with(beams=(F, F), convert=F, download=F, upload=F)
    assert plan(refused).local.why == "nothing of it was delivered"
    assert plan(refused).remote.allowed


def test_a_prune_that_was_begun_is_brought_to_its_end_whatever_the_settings_are_now() -> None:
    rules = RetentionRules(remote_completed_days=0, remote_failed_days=0, local_results_days=0)
    entry = job_with(days=1)
    begun = marked(case_of(entry), remote_begun="2026-11-01T00:00:00", local_begun="2026-11-02T00:00:00")
    made = plan_case(begun, [entry], rules, now=NOW, named=False)
    assert (made.remote.why, made.remote.allowed) == ("begun on 2026-11-01, to be brought to its end", True)
    assert (made.local.why, made.local.allowed) == ("begun on 2026-11-02, to be brought to its end", True)
    over = marked(begun, remote="2026-11-03T00:00:00", local="2026-11-04T00:00:00")
    made = plan_case(over, [entry], RULES, now=NOW, named=True)
    assert (made.remote.why, made.local.why) == ("pruned on 2026-11-03", "pruned on 2026-11-04")
    assert (made.remote.allowed, made.local.allowed) == (False, False)


def test_logs_go_by_the_digests_that_the_download_told() -> None:
    logs = {"logs/a.log": "/results/P-f01/j01/logs/a.log", "logs/b.log": "/results/P-f01/j01/logs/b.log"}
    entry = job_with(logs=logs, digests={"/results/P-f01/j01/logs/a.log": (7, DIGEST)})
    *_, known, unknown = delivered_files(entry.tasks)
    assert known == DeliveredFile("/results/P-f01/j01/logs/a.log", 7, DIGEST)
    assert unknown == DeliveredFile("/results/P-f01/j01/logs/b.log")


def test_a_delivered_file_that_no_record_describes_has_no_digest() -> None:
    tasks = job_with().tasks
    bare = [task.evolve(record=None) for task in tasks]
    assert [file.sha256 for file in delivered_files(bare)] == [None, None]


statuses = st.sampled_from(list(TaskStatus))
histories = st.lists(
    st.builds(
        job_with,
        days=st.none() | st.floats(-10, 100),
        beams=st.tuples(statuses, statuses),
        upload=statuses,
        interpret=statuses,
        convert=statuses,
        download=statuses,
        state=st.sampled_from(list(SubmitState)),
        home=st.none() | st.lists(st.sampled_from([0, 1]), unique=True),
    ),
    max_size=3,
)


@given(
    histories,
    st.sampled_from(list(CaseStatus)),
    st.none() | st.just("look"),
    st.tuples(*[st.sampled_from([0.0, 0.5, 14.0, 60.0])] * 3),
    st.booleans(),
)
def test_nothing_goes_that_is_live_doubtful_not_home_or_young(
    entries: list[JobHistory],
    status: CaseStatus,
    attention: str | None,
    days: tuple[float, float, float],
    named: bool,
) -> None:
    rules = RetentionRules(
        remote_completed_days=days[0], remote_failed_days=days[1], local_results_days=days[2]
    )
    made = plan(*entries, rules=rules, named=named, status=status, attention=attention)
    assert made.remote.why
    assert made.local.why
    if not (made.remote.allowed or made.local.allowed):
        return
    assert entries
    assert status not in {CaseStatus.NEW, CaseStatus.QUEUED, CaseStatus.PROCESSING}
    tasks = [task for entry in entries for task in entry.tasks]
    assert all(task.status.terminal for task in tasks)
    assert all(e.job.submit_state not in {SubmitState.SUBMITTING, SubmitState.AMBIGUOUS} for e in entries)
    ended = [entry.job.completed_at for entry in entries]
    assert None not in ended
    least = days[2] if made.local.allowed else days[0 if status is CaseStatus.COMPLETED else 1]
    assert least > 0
    assert max(at for at in ended if at) <= NOW - timedelta(days=least)
    if not named:
        assert attention is None
        assert not {t.status for t in entries[-1].tasks} & {TaskStatus.SUSPECT, TaskStatus.LOST}
    if made.remote.allowed:
        done = {t.index for t in tasks if t.type is TaskType.BEAM_CALC and t.status is C}
        delivered = {file.path[-5] for e in entries for file in delivered_files(e.tasks) if file.sha256}
        assert {str(index) for index in done} <= delivered


def test_marks_come_and_go_and_leave_the_rest() -> None:
    case = make_case().evolve(metadata={"other": 1})
    begun = marked(case, remote_begun="2026-11-24T12:00:00+00:00")
    assert pruned(begun).remote_begun == "2026-11-24T12:00:00+00:00"
    assert begun.metadata["other"] == 1
    assert marked(begun, remote_begun=None) == case
    assert pruned(case) == pruned(make_case())


def test_what_was_pruned_can_be_neither_resubmitted_nor_fetched() -> None:
    case = make_case()
    require_remote(case, "resubmit")
    require_remote(marked(case, local="2026-11-24T12:00:00+00:00"), "resubmit")
    with pytest.raises(ProcessingError, match=r"fetch is not possible: .* pruned on 2026-11-24"):
        require_remote(marked(case, remote="2026-11-24T12:00:00+00:00"), "fetch")
    with pytest.raises(ProcessingError, match=r"resubmit .* begun on 2026-11-24.*`mqi-hpc prune"):
        require_remote(marked(case, remote_begun="2026-11-24T12:00:00+00:00"), "resubmit")


@given(st.text(), st.none() | st.integers(0), st.sampled_from(["removed", "gone", "kept", "left"]))
def test_answers_come_back(why: str, size: int | None, outcome: str) -> None:
    answer = PruneAnswer(outcome=outcome, why=why, bytes=size)  # type: ignore[arg-type]
    assert PruneAnswer.decode(answer.encode()) == answer
