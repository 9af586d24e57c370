"""The policy of retries, pure: causes, counts, pauses, what is asked for, and what a person is told."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.causes import WORDS, Cause, Retry
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.left_out import is_node, left_out
from mqi_hpc.core.models import Job, JobStatus, SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.outcome import case_status, job_status
from mqi_hpc.core.resubmit import History
from mqi_hpc.core.retry_causes import NOT_BEGUN, Asked, Decision, RetryTable, Rule, cause_of, decide, retried
from mqi_hpc.core.retry_plan import GATHER, due, may_begin, next_due, outlook, pending, plan_retry, wait_of
from mqi_hpc.core.slurm_sizes import megabytes, memory_text, seconds, time_text
from mqi_hpc.infrastructure.repositories.codec import decode, encode
from tests.support.bench import make_case

NOW = 1_800_000_000.0
ASKED = {stage: Asked(4096, 3600) for stage in ("interpret", "beams", "convert")}


def job(number: int = 1, **changes: Any) -> Job:
    name = f"j{number:02d}"
    values: dict[str, Any] = {
        "job_id": f"case-{name}", "case_id": "case", "status": JobStatus.RUNNING, "name": name,
        "created_at": datetime.fromtimestamp(NOW, UTC), "submit_state": SubmitState.STANDING,
        "submissions": (),
    }  # fmt: skip
    return Job(**{**values, **changes})


def task(kind: TaskType = TaskType.BEAM_CALC, number: int = 1, index: int = 0, **changes: Any) -> Task:
    job_id = f"case-j{number:02d}"
    values = {"status": TaskStatus.FAILED, "phase": "failed", "node": "g1", **changes}
    return Task(task_id=f"{job_id}/{kind}-{index}", job_id=job_id, type=kind, index=index, **values)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"slurm": "NODE_FAIL"}, Cause.NODE_FAIL),
        ({"slurm": "BOOT_FAIL"}, Cause.BOOT_FAIL),
        ({"slurm": "PREEMPTED"}, Cause.PREEMPTED),
        ({"slurm": "OUT_OF_MEMORY", "exit_code": 137}, Cause.OUT_OF_MEMORY),
        ({"slurm": "TIMEOUT", "exit_code": 143}, Cause.TIMEOUT),
        ({"slurm": "DEADLINE"}, Cause.DEADLINE),
        ({"slurm": "CANCELLED"}, Cause.CANCELLED),
        ({"slurm": "COMPLETED", "phase": "failed (no output)"}, Cause.NO_OUTPUT),
        ({"slurm": "FAILED", "exit_code": 77}, Cause.GPU_CHECK),
        ({"slurm": "FAILED", "slurm_exit": "77:0"}, Cause.GPU_CHECK),
        ({"slurm": "FAILED", "slurm_exit": "77:0", "exit_code": 7}, Cause.PROGRAM),
        ({"slurm": "FAILED", "slurm_exit": "0:77"}, Cause.PROGRAM),
        ({"slurm": "RUNNING", "exit_code": 77}, Cause.GPU_CHECK),
        ({"slurm": "FAILED", "exit_code": 74}, Cause.INPUT_OUTPUT),
        ({"slurm": "FAILED", "exit_code": 78}, Cause.FENCE),
        ({"slurm": "FAILED", "exit_code": 79}, Cause.FENCE),
        ({"slurm": "FAILED", "exit_code": 7}, Cause.PROGRAM),
        ({"slurm": "FAILED"}, Cause.PROGRAM),
        ({"slurm": "NODE_FAIL", "status": TaskStatus.SUSPECT}, Cause.SUSPECT),
        ({"status": TaskStatus.LOST}, Cause.LOST),
        ({"slurm": "NODE_FAIL", "status": TaskStatus.CANCELLED}, Cause.CANCELLED),
        ({"slurm": "CANCELLED", "phase": "failed (interpret)"}, Cause.INTERPRET),
        ({"phase": NOT_BEGUN}, Cause.REFUSED),
        ({"status": TaskStatus.COMPLETED}, None),
        ({"status": TaskStatus.RUNNING, "slurm": "NODE_FAIL"}, None),
    ],
)
def test_the_cause_of_an_end(changes: dict[str, Any], cause: Cause | None) -> None:
    assert cause_of(task(**changes), job()) is cause


@pytest.mark.parametrize(
    ("left", "words", "cause"),
    [
        (("g1",), "Slurm refuses beams: Requested node configuration is not available", Cause.NO_NODE),
        (("g1",), "Slurm refuses beams: Invalid node name specified", Cause.NO_NODE),
        (("g1",), "Slurm refuses beams: Invalid partition name specified", Cause.REFUSED),
        ((), "Slurm refuses beams: Requested node configuration is not available", Cause.REFUSED),
    ],
)
def test_a_refusal_for_want_of_a_node(left: tuple[str, ...], words: str, cause: Cause) -> None:
    refused = job(submit_state=SubmitState.REFUSED, refusal=words, left_out=left, cancelled=("beams",))
    assert cause_of(task(phase=NOT_BEGUN), refused) is cause
    history = History(jobs=(refused,), tasks={refused.job_id: [task(phase=NOT_BEGUN)]})
    decision = decide(history, refused, task(phase=NOT_BEGUN), RetryTable(), NOW)
    assert decision is not None
    assert (decision.retry is not None) is (cause is Cause.NO_NODE)


def test_a_burnt_job_is_the_cause_of_what_slurm_has_no_word_for() -> None:
    burnt = job(submit_state=SubmitState.BURNT)
    assert cause_of(task(phase=NOT_BEGUN), burnt) is Cause.BURNT
    assert cause_of(task(slurm="FAILED", exit_code=7), burnt) is Cause.PROGRAM


def test_every_cause_has_words() -> None:
    assert set(WORDS) == set(Cause)


# The policy, over whole lives of a beam

_RULES = st.builds(
    Rule,
    most=st.integers(0, 5),
    pauses=st.lists(st.floats(0, 1000), min_size=1, max_size=4).map(tuple),
    counted=st.booleans(),
    leave_out=st.sampled_from([0.0, 60.0]),
    factor=st.floats(1.0, 3.0),
    maximum=st.one_of(st.none(), st.integers(1000, 20_000)),
)
_KINDS = {
    Cause.NODE_FAIL: "NODE_FAIL",
    Cause.PREEMPTED: "PREEMPTED",
    Cause.OUT_OF_MEMORY: "OUT_OF_MEMORY",
    Cause.TIMEOUT: "TIMEOUT",
    Cause.DEADLINE: "DEADLINE",
}
_TABLES = st.builds(
    RetryTable,
    most=st.integers(0, 5),
    rules=st.dictionaries(st.sampled_from([c for c in _KINDS if c is not Cause.DEADLINE]), _RULES),
    asked=st.just(ASKED),
)


def life(table: RetryTable, causes: Any) -> list[Decision]:
    """A beam's ends, each in the job that the one before led to, until a person is asked."""
    jobs: list[Job] = []
    tasks: dict[str, list[Task]] = {}
    found = []
    for number, cause in enumerate(causes, start=1):
        new, ended = job(number, automatic=number > 1), task(number=number, slurm=_KINDS[cause])
        history = History(jobs=(*jobs, new), tasks={**tasks, new.job_id: [ended]})
        decision = decide(history, new, ended, table, NOW)
        assert decision is not None
        found.append(decision)
        if decision.retry is None:
            break
        jobs.append(new)
        tasks[new.job_id] = [ended.evolve(retry=decision.retry)]
    return found


@given(table=_TABLES, causes=st.lists(st.sampled_from(list(_KINDS)), min_size=40, max_size=40))
def test_every_life_of_a_beam_keeps_to_the_table(table: RetryTable, causes: list[Cause]) -> None:
    ends = life(table, causes)
    retries = [end.retry for end in ends if end.retry is not None]
    assert len(retries) == len(ends) - 1
    assert ends[-1].why_not
    for cause in _KINDS:
        rule = table.rules.get(cause, Rule(most=0))
        same = [retry for retry in retries if retry.cause is cause]
        assert len(same) <= rule.most
        assert [retry.attempt for retry in same] == list(range(1, len(same) + 1))
        assert all(retry.attempt <= retry.most <= rule.most for retry in same)
        assert [retry.pause for retry in same] == [
            rule.pauses[min(n, len(rule.pauses) - 1)] for n in range(len(same))
        ]
        assert all(retry.at == NOW + retry.pause for retry in same)
    assert sum(retry.counted for retry in retries) <= table.most
    # No retry without more of what ran out, and never more than the bound, nor less than before.
    before = ASKED["beams"]
    for count, retry in enumerate(retries, start=1):
        asked = table.asks("beams", [one.cause for one in retries[:count]])
        assert asked.memory >= before.memory
        assert asked.time >= before.time
        if retry.cause in (Cause.OUT_OF_MEMORY, Cause.TIMEOUT):
            assert asked != before
        for rule, size, first in (
            (table.rules.get(Cause.OUT_OF_MEMORY), asked.memory, 4096),
            (table.rules.get(Cause.TIMEOUT), asked.time, 3600),
        ):
            assert rule is None or rule.maximum is None or size <= max(rule.maximum, first)
        before = asked


def test_the_order_of_causes_makes_no_difference_to_the_end_of_patience() -> None:
    table = RetryTable(
        most=3,
        rules={Cause.NODE_FAIL: Rule(most=2), Cause.PREEMPTED: Rule(most=2, counted=False)},
        asked=ASKED,
    )
    for causes in set(itertools.permutations([Cause.NODE_FAIL] * 2 + [Cause.PREEMPTED] * 2)):
        ends = life(table, [*causes, Cause.NODE_FAIL])
        assert len(ends) == 5
        assert "it was retried 2 times for that already" in ends[-1].why_not


def test_once_is_said_as_once() -> None:
    (_, last) = life(
        RetryTable(most=1, rules={Cause.NODE_FAIL: Rule(most=1)}, asked=ASKED), [Cause.NODE_FAIL] * 2
    )
    assert last.why_not == "node failed, and it was retried once for that already"
    table = RetryTable(most=1, rules={Cause.NODE_FAIL: Rule(most=3)}, asked=ASKED)
    assert life(table, [Cause.NODE_FAIL] * 2)[-1].why_not == "node failed, and it was retried once already"


def test_all_there_is_cannot_grow() -> None:
    table = RetryTable(
        most=3,
        rules={Cause.OUT_OF_MEMORY: Rule(most=3, factor=2.0, maximum=10**9)},
        asked={"beams": Asked(0, 3600)},
    )
    (end,) = life(table, [Cause.OUT_OF_MEMORY])
    assert end.why_not == "out of memory, and it had the most that processing.retries.out_of_memory allows"


def test_what_was_called_off_and_what_is_no_stage_is_not_retried() -> None:
    table = RetryTable(most=3, rules={Cause.NODE_FAIL: Rule(most=3)}, asked=ASKED)
    called_off, beam = job(cancelled=("beams",)), task(slurm="NODE_FAIL")
    history = History(jobs=(called_off,), tasks={called_off.job_id: [beam]})
    assert decide(history, called_off, beam, table, NOW) == Decision(
        cause=Cause.NODE_FAIL, why_not="it was called off"
    )
    for other in (
        task(TaskType.DOWNLOAD),
        task(status=TaskStatus.COMPLETED),
        task(phase="failed (interpret)"),
    ):
        assert decide(history, called_off, other, table, NOW) is None


@pytest.mark.parametrize(
    ("state", "why_not"), [(SubmitState.REFUSED, "refused"), (SubmitState.WITHDRAWN, "it was called off")]
)
def test_what_slurm_refused_nobody_has_called_off(state: SubmitState, why_not: str) -> None:
    # Where a chain is given up, what may be there of it is cancelled: by us.
    table = RetryTable(most=3, asked=ASKED)
    given_up, beam = job(cancelled=("beams",), submit_state=state), task(phase="not begun")
    history = History(jobs=(given_up,), tasks={given_up.job_id: [beam]})
    assert decide(history, given_up, beam, table, NOW) == Decision(cause=Cause.REFUSED, why_not=why_not)


@pytest.mark.parametrize(
    ("node", "kind", "seconds_"),
    [
        ("g1", TaskType.BEAM_CALC, 60.0),
        ("", TaskType.BEAM_CALC, 0.0),
        ("g[1-2]", TaskType.BEAM_CALC, 0.0),
        ("g1", TaskType.INTERPRET, 0.0),
    ],
)
def test_a_node_is_left_out_where_a_beam_failed_on_one(node: str, kind: TaskType, seconds_: float) -> None:
    table = RetryTable(most=3, rules={Cause.NODE_FAIL: Rule(most=3, leave_out=60.0)}, asked=ASKED)
    ended = task(kind, slurm="NODE_FAIL", node=node)
    decision = decide(History(jobs=(job(),), tasks={"case-j01": [ended]}), job(), ended, table, NOW)
    assert decision is not None
    assert decision.retry is not None
    assert decision.leave_out == seconds_
    assert decision.retry.without == (node if seconds_ else "")


def test_the_count_goes_back_to_the_last_job_a_person_asked_for() -> None:
    promise = Retry(cause=Cause.NODE_FAIL, at=NOW, pause=60.0, attempt=1, most=3)
    jobs = (
        job(1),
        job(2, automatic=True),
        job(3),
        job(4, automatic=True),
        job(5, automatic=True),
    )
    tasks = {
        # The fourth computes another beam, and the fifth is a retry of interpret: this one only fell with it.
        "case-j01": [task(number=1, retry=promise)],
        "case-j02": [task(number=2, retry=promise)],
        "case-j03": [task(number=3, retry=promise)],
        "case-j04": [task(number=4, index=1)],
        "case-j05": [task(number=5)],
    }
    history = History(jobs=jobs, tasks=tasks)
    assert len(retried(history, jobs[4], tasks["case-j05"][0])) == 1
    assert retried(history, jobs[2], tasks["case-j03"][0]) == []
    assert len(retried(history, jobs[1], tasks["case-j02"][0])) == 1
    with_interpret = History(
        jobs=jobs, tasks={**tasks, "case-j03": [task(number=3, phase="failed (interpret)")]}
    )
    assert retried(with_interpret, jobs[4], tasks["case-j05"][0]) == []


# Time


@given(times=st.dictionaries(st.text(max_size=3), st.floats(0, 1000), min_size=1), now=st.floats(0, 2000))
def test_what_goes_together_is_never_early_and_waits_at_most_a_minute(
    times: dict[str, float], now: float
) -> None:
    names, first = due(times, now), min(times.values())
    at = next_due(times)
    assert at is not None
    assert bool(names) is (now >= at)
    assert first <= at <= first + GATHER
    assert all(times[name] <= now for name in names)
    if names:
        assert {name for name, when in times.items() if when <= first + GATHER} == set(names)


def test_nothing_to_come_is_never_due() -> None:
    assert due({}, NOW) == ()
    assert next_due({}) is None


@given(now=st.floats(-1e6, 1e6), pause=st.floats(0, 1e5))
def test_no_clock_makes_a_retry_wait_longer_than_its_pause(now: float, pause: float) -> None:
    wait = wait_of(Retry(cause=Cause.NODE_FAIL, at=0.0, pause=pause, attempt=1, most=1), now)
    assert 0.0 <= wait <= pause
    assert now < 0.0 or wait == 0.0


# What is to come


PROMISE = Retry(cause=Cause.NODE_FAIL, at=NOW, pause=60.0, attempt=1, most=3, without="g1")
DONE = {"status": TaskStatus.COMPLETED, "phase": "done", "record": "{}"}


def history(*tasks: Task, **changes: Any) -> History:
    return History(jobs=(job(**changes),), tasks={"case-j01": tasks})


def test_a_retry_of_an_earlier_stage_takes_later_ones_with_it() -> None:
    interpret, beam, convert = (
        task(kind, retry=PROMISE) for kind in (TaskType.INTERPRET, TaskType.BEAM_CALC, TaskType.CONVERT)
    )
    assert pending([interpret, beam, convert]) == [interpret]
    assert pending([beam, convert]) == [beam]
    assert pending([convert]) == [convert]
    assert pending([task()]) == []


@pytest.mark.parametrize("state", SubmitState)
def test_a_next_job_is_planned_when_the_one_before_is_sent_or_never_will_be(state: SubmitState) -> None:
    open_still = {SubmitState.PLANNED, SubmitState.UPLOADED, SubmitState.SUBMITTING, SubmitState.AMBIGUOUS}
    assert may_begin(history(task(retry=PROMISE), submit_state=state)) is (state not in open_still)


@pytest.mark.parametrize("kind", [TaskType.INTERPRET, TaskType.CONVERT])
def test_a_stage_that_all_others_hang_on_waits_for_their_end(kind: TaskType) -> None:
    live = task(index=1, status=TaskStatus.RUNNING)
    assert not may_begin(history(task(kind, retry=PROMISE), live))
    assert may_begin(history(task(kind, retry=PROMISE), live.evolve(status=TaskStatus.FAILED)))
    assert may_begin(history(task(retry=PROMISE), live))


def test_only_what_is_still_to_be_retried_is_planned() -> None:
    case, table = make_case(2), RetryTable(asked=ASKED)
    interpret = task(TaskType.INTERPRET, **DONE)
    convert = task(TaskType.CONVERT, slurm="FAILED")
    promised = history(interpret, task(retry=PROMISE), task(index=1, **DONE), convert)
    found = plan_retry(case, promised, {"case-j01/beam_calc-0"}, table)
    assert found is not None
    assert (found.plan.stages, found.plan.indices) == (("beams", "convert"), (0,))
    assert found.plan.sources == {1: "j01"}
    assert found.plan.asks == {}
    assert plan_retry(case, promised, {"case-j01/beam_calc-1", "gone"}, table) is None
    assert plan_retry(case, history(interpret, task(), convert), {"case-j01/beam_calc-0"}, table) is None


def test_a_pruned_case_is_not_retried() -> None:
    case = make_case(2).evolve(metadata={"pruned": {"remote": "2027-01-01T00:00:00+00:00"}})
    promised = history(task(TaskType.INTERPRET, **DONE), task(retry=PROMISE))
    with pytest.raises(ProcessingError, match="pruned"):
        plan_retry(case, promised, {"case-j01/beam_calc-0"}, RetryTable(asked=ASKED))


def test_a_case_with_a_promise_is_processing_and_its_job_is_not() -> None:
    tasks = [task(retry=PROMISE), task(index=1, **DONE)]
    assert case_status(tasks) == "processing"
    assert job_status(tasks) == "partial"


def test_what_a_person_is_told() -> None:
    case = make_case(3)
    also = Retry(cause=Cause.NODE_FAIL, at=NOW, pause=60.0, attempt=1, most=3, without="g2")
    lines = outlook(
        case,
        history(
            task(retry=PROMISE),
            task(index=1, retry=also),
            task(index=2, slurm="FAILED", exit_code=7, not_retried="engine or stage program failed"),
            task(TaskType.CONVERT, slurm="FAILED", not_retried="engine or stage program failed"),
        ),
    )
    assert [line.text for line in lines] == [
        "beams 2, 3: retry 1 of 3 at 2027-01-15 08:00:00 UTC, because node failed, without nodes g1, g2",
        "beam 4: not retried by itself: engine or stage program failed; `mqi-hpc resubmit`",
    ]
    assert (lines[0].at, lines[0].attempt, lines[0].most) == ("2027-01-15T08:00:00+00:00", 1, 3)
    assert (lines[1].at, lines[1].cause) == (None, "program")


def test_a_suspect_has_two_ways_on() -> None:
    suspect = task(status=TaskStatus.SUSPECT, not_retried="witnesses disagree")
    (line,) = outlook(make_case(1), history(suspect))
    assert line.text.endswith("witnesses disagree; `mqi-hpc accept --reason` or `mqi-hpc resubmit`")


# Nodes, sizes, and what was kept before


def test_of_too_many_nodes_the_oldest_go() -> None:
    tasks = [task(number=n, node=f"g{n}", ended_at=NOW + n, left_out_until=NOW + 100) for n in (1, 2, 3)]
    again = task(number=4, node="g1", ended_at=NOW + 9, left_out_until=NOW + 50, detail="GPU gone")
    assert [one.node for one in left_out(tasks, 2, NOW + 10)] == ["g2", "g3"]
    found = left_out([*tasks, again], 2, NOW + 10)
    assert [(one.node, one.until, one.why) for one in found] == [
        ("g1", NOW + 100, "GPU gone"),
        ("g3", NOW + 100, "failed"),
    ]
    assert left_out(tasks, 0, NOW + 10) == ()
    assert [one.node for one in left_out(tasks, 2, NOW + 1)] == ["g1"]


@pytest.mark.parametrize(
    ("name", "good"), [("g1", True), ("gpu-01.cluster", True), ("", False), ("g[1-2]", False), ("a,b", False),
                       ("-x", False), ("g1\n", False), ("(null)", False)],
)  # fmt: skip
def test_what_is_a_node(name: str, good: bool) -> None:
    assert is_node(name) is good


@given(size=st.integers(1, 10**7))
def test_memory_comes_back(size: int) -> None:
    assert megabytes(memory_text(size)) == size


@given(total=st.integers(1, 10**7))
def test_time_comes_back(total: int) -> None:
    assert seconds(time_text(total)) == total


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4096), ("1T", 1048576), ("500M", 500), ("500", 500), ("1500K", 2), ("0", 0)]
)
def test_memory_as_slurm_reads_it(text: str, size: int) -> None:
    assert megabytes(text) == size


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("01:00:00", 3600),
        ("2-00", 172800),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
    ],
)
def test_time_as_slurm_reads_it(text: str, total: int) -> None:
    assert seconds(text) == total


def test_a_promise_is_kept_as_it_is_and_what_was_kept_before_has_none() -> None:
    promised = task(retry=PROMISE, ended_at=NOW, left_out_until=NOW + 60)
    assert decode(Task, encode(promised)) == promised
    old = encode(task()).replace(',"ended_at":null,"retry":null,"not_retried":"","left_out_until":null', "")
    assert "retry" not in old
    assert decode(Task, old) == task()
    older = encode(job()).replace(',"automatic":false,"left_out":[]', "")
    assert "automatic" not in older
    assert decode(Job, older) == job()
