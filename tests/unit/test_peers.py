"""What users of other submitters suffer, R1-R20 and R31-R39 of the survey of peers, a test for each.

Each is named after its number. R37 stands with doctor --orphans. The last test sees that none is missing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.attention import WAYS
from mqi_hpc.core.causes import Cause
from mqi_hpc.core.diagnosis import CheckStatus, Said
from mqi_hpc.core.effects import Cancel, Download, Failure, JobQuery, Observe, Submit, Upload
from mqi_hpc.core.models import TaskStatus, TaskType
from mqi_hpc.core.observation import FIELD, NotParsed, belongs, expand_array, parse_sacct, parse_squeue
from mqi_hpc.core.readings import Limits, Reading, Timer, Witness
from mqi_hpc.core.requests import Verb
from mqi_hpc.core.retry_causes import Asked, RetryTable, Rule
from mqi_hpc.core.slurm_checks import judge_test
from mqi_hpc.core.verdicts import judge
from mqi_hpc.records.status import StatusLine, encode_line
from tests.support.bench import KEY, Bench
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site as ClusterSite
from tests.support.world import NOW, Row
from tests.unit.test_protocol_scripts import Site, stands, wired

TESTS = Path(__file__).parents[1]
NAME = "mqi-i1-k-j01-beams"
STATUS = f"status:{KEY}-j01"
TABLE = RetryTable(
    most=3,
    rules={
        Cause.NODE_FAIL: Rule(most=3, pauses=(60.0, 300.0), leave_out=3600.0),
        Cause.OUT_OF_MEMORY: Rule(most=2, pauses=(60.0,), factor=1.5, maximum=8192),
    },
    asked={stage: Asked(4096, 3600) for stage in ("interpret", "beams", "convert")},
)


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, ClusterSite(version="24.11", min_job_age=1e9)) as bed:
        yield Floor(bed, retries=TABLE)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.begin()
    made.until_sent()
    return made


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def beam(bench: Bench, index: int = 0) -> tuple[TaskStatus, str]:
    task = bench.task(TaskType.BEAM_CALC, index)
    return task.status, task.phase


def row_of(bench: Bench, index: int = 0) -> Row:
    return next(r for r in bench.world.rows if r.name.endswith("beams") and r.task == index)


def began(code: int | None = None, index: int = 0) -> tuple[str, int]:
    event = "started" if code is None else "exited"
    return encode_line(StatusLine("beams", index, event, NOW, 5, 0, "g1", "", code)), 0


def squeue(**changes: str) -> str:
    row = {
        "job": "7",
        "task": "0",
        "state": "RUNNING",
        "reason": "None",
        "submit": "1800000000",
        "node": "g1",
    }
    return FIELD.join([*(row | changes).values(), NAME]) + "\n"


def sacct(**changes: str) -> str:
    row = {"job": "7_0", "name": NAME, "state": "COMPLETED", "exit": "0:0", "submit": "1800000000"}
    row |= {"start": "1800000001", "end": "1800000009", "node": "g1", "tres": ""}
    return FIELD.join((row | changes).values()) + "\n"


# Submission


def test_r01_an_ambiguous_sbatch_is_neither_a_failure_nor_a_reason_to_send_again(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: floor.report().submission == "uploaded")
    floor.sim.link.lose_replies = [Submit]
    for _ in range(5):
        floor.turns(3)
        floor.sim.close()
        floor.restart()
        floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until("completed")
    assert {name: len(tasks) for name, tasks in floor.in_slurm().items()} == {
        "j01-interpret": 1,
        "j01-beams": 3,
        "j01-convert": 1,
    }


def test_r02_a_death_between_sbatch_and_its_receipt_leaves_one_chain(site: Site) -> None:
    site.slurm.kills("sbatch", 2, "after")
    assert site.submit().code is None
    assert not site.has("beams")
    assert site.submit("n2").code == 0
    wired(site)


def test_r03_the_id_is_read_from_stdout_alone_whatever_a_login_says(site: Site) -> None:
    # It prints `Welcome 2 the cluster` and `16;mqi`, and more numbers on stderr.
    site.slurm.set(noise="sbatch: lua: job 3 of 4 goes to Stampede3\n")
    report = site.submit()
    assert [receipt.id for receipt in report.receipts.values()] == [16, 17, 18]
    stands(site)


@pytest.mark.parametrize("limit", ["AssocMaxSubmitJobLimit", "QOSMaxSubmitJobPerUserLimit"])
def test_r04_a_submit_limit_is_waited_for_and_fails_nothing(floor: Floor, limit: str) -> None:
    floor.sim.slurm.submit_limit = limit
    floor.take()
    floor.until(lambda: floor.phase(TaskType.INTERPRET) == "deferred")
    floor.turns(50)
    assert floor.report().status == "queued" or floor.report().status == "processing"
    floor.sim.slurm.submit_limit = ""
    floor.until("completed")
    assert len(floor.jobs()) == 1


def test_r05_what_the_login_environment_holds_for_slurm_reaches_no_command(site: Site) -> None:
    site.submit(SLURM_CPU_BIND="quiet", SBATCH_PARTITION="debug", SQUEUE_FORMAT="%i", SACCT_FORMAT="jobid")
    site.observe(sacct=(16,), SQUEUE_STATES="R", SLURM_CLUSTERS="other")
    for program in ("sbatch", "squeue", "scontrol", "sacct"):
        calls = site.slurm.calls(program)
        assert calls
        assert {name for _, ours in calls for name in ours} <= {"SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN"}
    assert all("--export=NONE" in args for args, _ in site.slurm.calls("sbatch"))


def test_r06_a_full_disk_stops_an_upload_before_anything_is_submitted_and_says_what_to_do() -> None:
    bench = Bench()
    for _ in range(3):
        bench.world.fail(Upload, Failure.SPACE, "2.0 GiB are free, 5.0 are to be")
    bench.begin()
    bench.turn(3)
    assert bench.world.started(Submit) == []
    assert str(bench.report.attention).endswith(f"({WAYS['no space']})")
    assert "2.0 GiB are free" in str(bench.report.attention)
    bench.until_sent()
    assert bench.report.attention is None


def test_r06_so_it_does_before_a_resubmit(floor: Floor) -> None:
    floor.bed.fault(floor.case.beams[1].number, "exit 7")
    floor.take()
    floor.until("partial")
    sent = len(floor.port.of(Submit))
    floor.order(Verb.RESUBMIT)
    floor.until(lambda: len(floor.port.of(Submit)) > sent)
    kinds = [type(effect) for _, effect in floor.port.started if isinstance(effect, Upload | Submit)]
    # The upload looks at the free space; each job has one before it is submitted.
    assert kinds == [Upload, Submit] * 2


def test_r07_doctor_has_slurm_test_each_stage_before_a_case_waits_for_it() -> None:
    said = Said(1, "", "allocation failure: Requested time limit is invalid (missing or exceeds some limit)")
    found = judge_test("beams", said)
    assert found.status is CheckStatus.FAILURE
    assert "time limit is invalid" in found.found


# Observation


def test_r08_absence_is_not_completion(bench: Bench) -> None:
    bench.interpret_done()
    for row in bench.world.rows:
        row.queued = False
    bench.world.rows = [row for row in bench.world.rows if row.name.endswith("interpret")]
    began_at = bench.clock.monotonic()
    while bench.clock.monotonic() - began_at < 50:
        bench.turn()
        assert beam(bench)[0] is TaskStatus.RUNNING
    while bench.clock.monotonic() - began_at < 300:
        bench.turn()
    assert beam(bench)[0] is TaskStatus.LOST
    assert bench.report.status != "completed"


@pytest.mark.parametrize("section", ["squeue", "sacct"])
def test_r09_an_error_is_not_an_empty_answer(bench: Bench, section: str) -> None:
    row_of(bench).queued = False
    bench.world.dead_sections = {section}
    began_at = bench.clock.monotonic()
    while bench.clock.monotonic() - began_at < 7200:
        bench.turn(10)
    assert beam(bench)[0] is TaskStatus.RUNNING


def test_r10_an_accounting_that_is_away_for_a_weekend_fails_nobody(bench: Bench) -> None:
    bench.interpret_done()
    bench.world.dead_sections = {"sacct"}
    row_of(bench, 1).queued = False
    began_at = bench.clock.monotonic()
    while bench.clock.monotonic() - began_at < 60 * 3600:
        bench.turn(50)
    assert beam(bench, 1) == (TaskStatus.RUNNING, "waiting")
    assert str(bench.report.attention).endswith(f"({WAYS['waiting']})")
    bench.world.dead_sections = set()
    bench.world.end("beams", "FAILED", task=1, exit_code="1:0")
    bench.turn(20)
    assert beam(bench, 1) == (TaskStatus.FAILED, "failed")


def test_r11_one_look_is_one_squeue_and_at_most_one_sacct_however_many_jobs(site: Site) -> None:
    query = [JobQuery(ref=f"k{n}-j01", folder=str(site.job), records=()) for n in range(30)]
    effect = Observe(nonce="n1", jobs=tuple(query), sacct_ids=tuple(range(100, 190)))
    (site.job / "look.sh").write_text(site.renderer.observe_script(effect))
    site.slurm.run(site.job / "look.sh")
    counts = {p: len(site.slurm.calls(p)) for p in ("squeue", "sacct", "scontrol", "sbatch", "scancel")}
    assert counts == {"squeue": 1, "sacct": 1, "scontrol": 0, "sbatch": 0, "scancel": 0}


def test_r11_all_cases_share_a_look_and_looks_keep_their_distance(floor: Floor) -> None:
    cases = floor.more(6)
    for case in cases:
        floor.take(case)
    floor.until(lambda: all(floor.report(case.case_id).status == "completed" for case in cases))
    times = [at for at, effect in floor.port.started if isinstance(effect, Observe)]
    spent = times[-1] - times[0]
    assert max(len(effect.jobs) for effect in floor.port.of(Observe)) == 6  # type: ignore[attr-defined]
    # Every 5 s at the most, besides one at once after each of the six submissions.
    assert len(times) <= spent / 5 + 2 + 2 * len(cases)


def test_r12_an_id_that_is_used_again_is_another_job() -> None:
    (old,) = parse_sacct(sacct(submit="1700000000"))
    assert not belongs(old, name=NAME, job=7, task=0, cluster_time=1_800_000_000)
    (other,) = parse_sacct(sacct(name="mqi-i1-other-j01-beams"))
    assert not belongs(other, name=NAME, job=7, task=0, cluster_time=1_800_000_000)
    (ours,) = parse_sacct(sacct())
    assert belongs(ours, name=NAME, job=7, task=0, cluster_time=1_800_000_000)


def test_r13_preempted_and_back_in_the_queue_is_not_the_end(bench: Bench) -> None:
    bench.interpret_done()
    row_of(bench).word = "RUNNING"
    bench.turn(3)
    bench.world.end("beams", "PREEMPTED", task=0)
    for _ in range(10):
        if beam(bench)[1] == "settling":
            break
        bench.turn()
    assert beam(bench) == (TaskStatus.RUNNING, "settling")
    row = row_of(bench)
    row.word, row.queued = "PENDING", True
    bench.turn(30)
    assert beam(bench) == (TaskStatus.RUNNING, "queued")


def test_r13_preempted_for_good_is_not_waited_for_for_ever(bench: Bench) -> None:
    bench.interpret_done()
    bench.world.end("beams", "PREEMPTED", task=0)
    bench.turn(40)
    assert beam(bench) == (TaskStatus.FAILED, "failed (infrastructure)")


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=6)
)
def test_r14_array_expressions_name_their_tasks(parts: list[tuple[int, int, int]]) -> None:
    wanted = [index for low, more, step in parts for index in range(low, low + more + 1, step)]
    text = ",".join(f"{low}-{low + more}:{step}" if more else str(low) for low, more, step in parts)
    assert list(expand_array(f"{text}%2")) == wanted
    rows = parse_squeue(squeue(task=f"[{text}%2]", state="PENDING"))
    assert [row.task for row in rows] == wanted


@pytest.mark.parametrize("text", ["1-5,...", "1,3,...", "0-2..."])
def test_r14_one_that_slurm_cut_short_is_refused_and_nothing_is_guessed(text: str) -> None:
    with pytest.raises(NotParsed, match="array expression"):
        parse_squeue(squeue(task=f"[{text}]", state="PENDING"))
    with pytest.raises(NotParsed, match="array expression"):
        parse_sacct(sacct(job=f"7_[{text}]"))


def test_r15_a_look_that_shows_fewer_tasks_than_there_are_ends_nothing(bench: Bench) -> None:
    bench.interpret_done()
    bench.beam_done(0)
    bench.exits(("interpret", 0, 0), ("beams", 0, 0))
    bench.world.rows = [r for r in bench.world.rows if not (r.name.endswith("beams") and r.task == 1)]
    bench.turn(8)
    assert beam(bench, 0)[0] is TaskStatus.COMPLETED
    assert beam(bench, 1) == (TaskStatus.RUNNING, "settling")
    assert bench.report.status == "processing"


@pytest.mark.parametrize("word", ["COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL"])
@pytest.mark.parametrize("record", list(Witness))
@pytest.mark.parametrize("code", [0, 137])
def test_r16_state_exit_code_and_record_must_agree(word: str, record: Witness, code: int) -> None:
    reading = Reading(queue_good=True, word=word, record=record, exit_code=code)
    timer, verdict = Timer(), judge(reading, Timer(), 0.0, Limits())
    for _ in range(30):
        verdict = judge(reading, timer, 60.0, Limits())
        timer = verdict.timer
    good = (word, record, code) == ("COMPLETED", Witness.VALID, 0)
    assert (verdict.status is TaskStatus.COMPLETED) is good


def test_r17_numbers_of_a_job_that_runs_are_not_taken(bench: Bench) -> None:
    row = row_of(bench)
    row.word, row.queued, row.exit_code = "RUNNING", False, "0:0"
    bench.world.sections[STATUS] = began()
    bench.turn(6)
    task = bench.task(TaskType.BEAM_CALC)
    assert (task.status, task.slurm_exit, task.exit_code) == (TaskStatus.RUNNING, "", None)


def test_r18_times_are_epoch_seconds_or_nothing() -> None:
    (row,) = parse_sacct(sacct(start="None", end="Unknown"))
    assert (row.submit, row.start, row.end) == (1_800_000_000.0, None, None)
    (row,) = parse_sacct(sacct(start="Partition_Limit", end="2026-01-01T00:00:00"))
    assert (row.start, row.end) == (None, None)
    # Whether a row is of our job hangs on its submit time: one without an offset is no answer.
    for text in ("2026-01-01T00:00:00", "Partition_Limit", "-1"):
        with pytest.raises(NotParsed, match="SLURM_TIME_FORMAT"):
            parse_sacct(sacct(submit=text))


def test_r19_a_word_nobody_knows_is_shown_waited_for_and_kept_as_it_came(bench: Bench) -> None:
    row_of(bench).word = "COMPLETININVALID"
    bench.turn(200)
    assert beam(bench) == (TaskStatus.RUNNING, "unknown")
    assert str(bench.report.attention).endswith(f"({WAYS['unknown']})")
    lines = [
        line
        for data in bench.events("task")
        if data["phase"] == "unknown"
        for line in data["evidence"]["queue"]  # type: ignore[index]
    ]
    assert lines
    assert all("|COMPLETININVALID|" in line for line in lines)


def test_r20_a_thousand_jobs_fit_in_a_look_because_it_goes_in_on_stdin(site: Site) -> None:
    jobs = tuple(JobQuery(ref=f"case{n:08d}-j01", folder="/", records=()) for n in range(1000))
    effect = Observe(nonce="n1", jobs=jobs, sacct_ids=tuple(range(1_000_000, 1_003_000)))
    script = site.renderer.observe_script(effect)
    assert len(script) > 50_000
    done = subprocess.run(
        ["bash", "-s"],
        input=script,
        capture_output=True,
        text=True,
        env=site.slurm.environment(),
        check=False,
        timeout=300,
    )
    assert done.stderr == ""
    assert done.stdout.count("BEGIN squeue\n") == done.stdout.count("END squeue 0\n") == 1
    # By user: no list of ids makes its command line long.
    ((args, _),) = site.slurm.calls("squeue")
    assert "-u" in args
    assert len(" ".join(args)) < 200


# Files


def test_r31_a_record_that_the_file_system_shows_late_is_waited_for(bench: Bench) -> None:
    bench.interpret_done()
    bench.world.end("beams", "COMPLETED", task=0)
    bench.world.sections[STATUS] = began(0)
    bench.turn(6)
    assert beam(bench) == (TaskStatus.RUNNING, "settling")
    bench.beam_done(0)
    bench.turn(6)
    assert beam(bench) == (TaskStatus.COMPLETED, "done")


def test_r32_results_are_fetched_again_without_slurm(floor: Floor) -> None:
    floor.take()
    floor.until("completed")
    before = floor.in_slurm()
    downloads, submits = len(floor.port.of(Download)), len(floor.port.of(Submit))
    floor.order(Verb.FETCH)
    floor.until(lambda: len(floor.port.of(Download)) > downloads)
    floor.until("completed")
    assert (floor.in_slurm(), len(floor.port.of(Submit))) == (before, submits)


# Chain, retry, cancel


def test_r33_what_waits_for_a_failed_stage_is_cancelled_dependants_first_and_chained_anew(
    floor: Floor,
) -> None:
    floor.sim.script.stages["interpret"] = "exit 3"
    floor.take()
    floor.until("failed")
    targets = [name for effect in floor.port.of(Cancel) for name, _ in effect.targets]  # type: ignore[attr-defined]
    assert [name.rsplit("-", 1)[-1] for name in targets][:2] == ["convert", "beams"]
    assert not [job for job in floor.sim.slurm.jobs.values() if job.live]
    floor.sim.script.stages["interpret"] = "none"
    floor.order(Verb.RESUBMIT)
    floor.until("completed")


def test_r34_a_resubmit_beside_running_siblings_keeps_index_and_seed(floor: Floor) -> None:
    floor.bed.fault(floor.case.beams[1].number, "exit 7")
    floor.bed.fault(floor.case.beams[2].number, "hang")
    floor.take()
    floor.until(lambda: floor.beams() == ["done", "failed", "running"])
    floor.bed.fault(floor.case.beams[1].number, "none")
    seeds = [one.seed for one in floor.case.beams]
    floor.order(Verb.RESUBMIT)
    floor.until(lambda: floor.beams()[1] == "done")
    assert floor.beams()[2] == "running"
    assert floor.in_slurm()["j02-beams"] == ["1"]
    with floor.bed.store.transaction(write=False) as unit:
        case = unit.cases.get(floor.case.case_id)
    assert case is not None
    assert [one.seed for one in case.beams] == seeds


@given(st.integers(0, 12))
def test_r35_more_memory_grows_from_what_was_asked_for_and_has_an_end(times: int) -> None:
    asked = [TABLE.asks("beams", [Cause.OUT_OF_MEMORY] * n).memory for n in range(times + 1)]
    assert asked == sorted(asked)
    assert asked[0] == 4096
    assert asked[-1] <= 8192
    assert TABLE.asks("beams", [Cause.OUT_OF_MEMORY] * times).time == 3600


def test_r36_a_bad_node_is_left_out_for_a_while_and_not_for_ever(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: "running" in floor.beams())
    node = next(task.node for task in floor.tasks() if task.phase == "running")
    floor.bed.node_down(node)
    floor.until(lambda: any(task.retry for task in floor.tasks()))
    now = floor.bed.clock.now()
    with floor.bed.store.transaction(write=False) as unit:
        assert {task.node for task in unit.jobs.left_out(now)} == {node}
        assert list(unit.jobs.left_out(now + 3601)) == []


def test_r38_one_case_that_cannot_be_read_holds_up_no_other(floor: Floor) -> None:
    (other,) = floor.more(1)
    floor.bed.fault(floor.case.beams[0].number, "hang")
    floor.take()
    floor.until(lambda: floor.beams()[0] == "running")
    folder = f"{floor.bed.case_folder}/j01"
    names = floor.sim.files.names(f"{folder}/status")
    assert names
    for name in names:
        floor.bed.overwrite(f"{folder}/status/{name}", b"\x00 no line of ours}\n")
    floor.take(other)
    floor.until(lambda: floor.report(other.case_id).beams[1].status == "completed")
    assert floor.report().status == "processing"


def test_r39_all_retries_are_not_spent_in_a_minute(floor: Floor) -> None:
    floor.take()
    pauses = []
    for number in range(2):
        floor.until(lambda: "running" in floor.beams())
        floor.sim.slurm.end("NODE_FAIL")
        floor.until(lambda: any(task.retry for task in floor.tasks()))
        pauses.append({task.retry.pause for task in floor.tasks() if task.retry})
        assert {task.retry.attempt for task in floor.tasks() if task.retry} == {number + 1}
    assert pauses == [{60.0}, {300.0}]


def test_each_has_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    found = {int(number) for number in re.findall(r"^def test_r(\d\d)_", text, re.MULTILINE)}
    assert {*range(1, 21), *range(31, 40)} <= found
