"""What each witness says of a task, and what follows: rows, records, restarts."""

from __future__ import annotations

import pytest

from mqi_hpc.core.effects import Observe
from mqi_hpc.core.models import TaskStatus, TaskType
from mqi_hpc.records.status import StatusLine, encode_line
from tests.support.bench import KEY, Bench
from tests.support.world import NOW, Row

STATUS = f"status:{KEY}-j01"


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.begin()
    made.until_sent()
    return made


def beam(bench: Bench, index: int = 0) -> tuple[TaskStatus, str, str]:
    task = bench.task(TaskType.BEAM_CALC, index)
    return task.status, task.phase, task.detail


def running(bench: Bench, index: int = 0) -> Row:
    row = next(r for r in bench.world.rows if r.name.endswith("beams") and r.task == index)
    row.word, row.reason, row.node = "RUNNING", "None", "g1"
    return row


def line(event: str, text: str = "", *, restart: int = 0, code: int | None = None) -> str:
    return encode_line(StatusLine("beams", 0, event, NOW, 5, restart, "g2", text, code))


def test_a_running_task_says_what_it_does(bench: Bench) -> None:
    running(bench)
    bench.world.sections[STATUS] = (line("started") + line("progress", "12 of 40 batches"), 0)
    bench.turn(2)
    assert beam(bench) == (TaskStatus.RUNNING, "running", "12 of 40 batches")
    assert "beam 2: running on g1 (12 of 40 batches)" in bench.said


def test_a_bad_queue_section_leaves_the_task_as_it_was(bench: Bench) -> None:
    running(bench)
    bench.turn(2)
    before = bench.task(TaskType.BEAM_CALC)
    bench.world.dead_sections = {"squeue"}
    bench.turn(3)
    after = bench.task(TaskType.BEAM_CALC)
    assert (after.status, after.phase, after.node) == (before.status, before.phase, before.node)
    assert after.row.endswith("(interrupted)")


def test_a_record_of_another_life_is_not_valid(bench: Bench) -> None:
    bench.interpret_done()
    bench.beam_done(0)
    bench.world.sections[STATUS] = (line("exited", restart=1, code=0), 0)
    bench.turn(120)
    status, phase, detail = beam(bench)
    assert (status, phase) == (TaskStatus.FAILED, "failed (invalid output)")
    assert "restart" in detail


@pytest.mark.parametrize("text", ["{}", "not json", '{"version": 1, "stage": "beams"}'])
def test_a_record_that_does_not_parse_is_not_valid(bench: Bench, text: str) -> None:
    bench.beam_done(0)
    bench.world.sections[f"record:{KEY}-j01/beam_calc-0"] = (text, 0)
    bench.world.sections[STATUS] = (line("exited", code=0), 0)
    bench.turn(120)
    assert beam(bench)[:2] == (TaskStatus.FAILED, "failed (invalid output)")


def test_a_file_of_another_size_is_not_valid(bench: Bench) -> None:
    bench.beam_done(0)
    bench.world.sections[f"listing:{KEY}-j01/beam_calc-0"] = ("7 1-0/G0_0_Dose.raw\n", 0)
    bench.world.sections[STATUS] = (line("exited", code=0), 0)
    bench.turn(120)
    assert "the record says 192 bytes" in beam(bench)[2]


def test_a_listing_that_failed_is_no_answer(bench: Bench) -> None:
    bench.beam_done(0)
    bench.world.sections[f"listing:{KEY}-j01/beam_calc-0"] = ("find: I/O error", 1)
    bench.world.sections[STATUS] = (line("exited", code=0), 0)
    bench.turn(60)
    assert beam(bench)[:2] == (TaskStatus.RUNNING, "unreadable")
    assert "unreadable" in (bench.report.attention or "")


def test_completed_without_a_record_is_a_failure_after_a_while(bench: Bench) -> None:
    bench.world.end("beams", "COMPLETED", task=0)
    bench.world.sections[STATUS] = (line("exited", code=0), 0)
    bench.turn(4)
    assert beam(bench)[:2] == (TaskStatus.RUNNING, "settling")
    bench.turn(120)
    assert beam(bench)[:2] == (TaskStatus.FAILED, "failed (no output)")


def test_a_cancelled_task_names_who_cancelled(bench: Bench) -> None:
    bench.world.end("beams", "CANCELLED by 0", task=0)
    bench.turn(4)
    status, phase, detail = beam(bench)
    assert (status, phase) == (TaskStatus.FAILED, "failed (cancelled)")
    assert "uid 0" in detail


def test_an_array_cancelled_before_any_of_it_ran_may_stand_as_one_plain_row(bench: Bench) -> None:
    """Slurm 22.05, `scancel --name` of an array whose dependency failed: `14`, not `14_[0-1]`, for ever."""
    array = next(row for row in bench.world.rows if row.name.endswith("beams"))
    bench.world.end("interpret", "FAILED", exit_code="127:0")
    bench.world.rows = [row for row in bench.world.rows if row.job != array.job]
    bench.world.rows.append(Row(array.job, None, array.name, "CANCELLED by 1000", node=""))
    bench.turn(6)
    assert beam(bench)[:2] == (TaskStatus.FAILED, "failed (interpret)")


@pytest.mark.parametrize("word", ["COMPLETED", "PENDING", "FAILED"])
def test_a_plain_row_of_an_array_says_nothing_else(bench: Bench, word: str) -> None:
    array = next(row for row in bench.world.rows if row.name.endswith("beams"))
    bench.world.rows = [row for row in bench.world.rows if row.job != array.job]
    bench.world.rows.append(Row(array.job, None, array.name, word))
    bench.turn(6)
    assert beam(bench)[:2] == (TaskStatus.RUNNING, "settling")


def test_a_plain_row_of_an_array_says_nothing_of_a_task_that_has_begun(bench: Bench) -> None:
    array = next(row for row in bench.world.rows if row.name.endswith("beams"))
    bench.world.rows = [row for row in bench.world.rows if row.job != array.job]
    bench.world.rows.append(Row(array.job, None, array.name, "CANCELLED by 1000"))
    bench.world.sections[STATUS] = (line("started"), 0)
    bench.turn(6)
    assert beam(bench, 0)[:2] == (TaskStatus.RUNNING, "settling")
    assert beam(bench, 1)[:2] == (TaskStatus.FAILED, "failed (cancelled)")


def test_a_word_nobody_knows_is_never_success(bench: Bench) -> None:
    bench.beam_done(0)
    for row in bench.world.rows:
        if row.task == 0:
            row.word, row.queued = "REVOKED", False
    bench.world.sections[STATUS] = (line("exited", code=0), 0)
    bench.turn(200)
    assert beam(bench)[0] is TaskStatus.SUSPECT


def test_a_valid_record_and_a_failed_job_are_suspect(bench: Bench) -> None:
    bench.beam_done(0)
    bench.world.end("beams", "OUT_OF_MEMORY", task=0, exit_code="0:125")
    bench.world.sections[STATUS] = (line("exited", code=0), 0)
    bench.turn(4)
    assert beam(bench)[0] is TaskStatus.SUSPECT
    assert "suspect" in (bench.report.attention or "")


def test_a_row_that_is_not_ours_counts_for_nothing(bench: Bench) -> None:
    ours = running(bench)
    bench.world.rows.append(Row(ours.job, 0, "somebody-else", "FAILED"))
    bench.world.rows.append(Row(ours.job + 500, 0, "mqi-i1-otherotherot-j01-beams", "FAILED"))
    bench.turn(3)
    assert beam(bench)[:2] == (TaskStatus.RUNNING, "running")


def test_gone_from_the_queue_accounting_is_asked_before_anything_is_concluded(bench: Bench) -> None:
    for row in bench.world.rows:
        row.queued = False
    asked = len([e for e in bench.world.log if isinstance(e, Observe) and e.sacct_ids])
    bench.turn(1)
    assert beam(bench)[0] is TaskStatus.RUNNING
    bench.turn(4)
    assert len([e for e in bench.world.log if isinstance(e, Observe) and e.sacct_ids]) > asked


def test_a_done_task_stays_done_whatever_slurm_says_later(bench: Bench) -> None:
    bench.interpret_done()
    bench.beam_done(0)
    bench.world.sections[STATUS] = (line("exited", code=0), 0)
    bench.turn(4)
    assert beam(bench)[:2] == (TaskStatus.COMPLETED, "done")
    bench.world.end("beams", "NODE_FAIL", task=0)
    bench.turn(30)
    assert beam(bench)[:2] == (TaskStatus.COMPLETED, "done")
