"""One case through the loop: what is sent, what is concluded, and what a person is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mqi_hpc.core.effects import (
    Cancel,
    Completion,
    Download,
    Effect,
    Failure,
    JobQuery,
    Observe,
    Submit,
    Upload,
)
from mqi_hpc.core.errors import ProcessingError, StateError
from mqi_hpc.core.models import SubmitState, TaskStatus, TaskType
from tests.support.bench import KEY, Bench
from tests.support.world import Row


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.begin()
    return made


def finish(bench: Bench) -> None:
    bench.interpret_done()
    bench.beam_done(0)
    bench.beam_done(1)
    bench.convert_done(0, 1)
    bench.exits(("interpret", 0, 0), ("beams", 0, 0), ("beams", 1, 0), ("convert", 0, 0))


def test_from_folder_to_dose(bench: Bench) -> None:
    bench.until_sent()
    finish(bench)
    report = bench.until("completed")

    assert [type(effect) for effect in bench.world.log if not isinstance(effect, Observe)] == [
        Upload,
        Submit,
        Download,
    ]
    assert [beam.verdict for beam in report.beams] == ["done", "done"]
    assert [beam.dose.range80_mm for beam in report.beams if beam.dose] == [76.5, 76.5]
    assert report.results == (f"/results/P-{KEY}/j01/RD.0.dcm", f"/results/P-{KEY}/j01/RD.1.dcm")
    assert report.attention is None
    assert "beam 2: done" in bench.said


def test_the_intent_is_committed_before_anything_is_sent(bench: Bench) -> None:
    seen: list[str] = []

    def look(effect: Effect) -> Completion:
        seen.append(str(bench.report.submission))
        return Completion(effect=effect, error="stop here", failure=Failure.OUTAGE)

    bench.world.answers[Submit] = [look]
    bench.turn(3)
    assert seen == ["submitting"]


def test_one_failed_beam_makes_the_case_partial_and_names_the_cause(bench: Bench) -> None:
    bench.until_sent()
    finish(bench)
    del bench.world.sections[f"record:{KEY}-j01/beam_calc-1"]
    bench.world.end("beams", "FAILED", task=1, exit_code="7:0")
    bench.exits(("interpret", 0, 0), ("beams", 0, 0), ("beams", 1, 7), ("convert", 0, 0))
    bench.convert_done(0)

    report = bench.until("partial")
    good, bad = report.beams
    assert good.dose is not None
    assert bad.dose is None
    assert bad.status == "failed"
    assert "exited 7" in bad.detail
    (download,) = bench.world.started(Download)
    assert isinstance(download, Download)
    assert [file.local for file in download.results] == ["RD.0.dcm"]
    assert f"logs/beams-{bench.slurm_id('beams')}_1.log" in download.logs
    assert not any(log.endswith("_0.log") for log in download.logs)


def test_a_failed_interpret_cancels_convert_before_the_array(bench: Bench) -> None:
    bench.until_sent()
    bench.world.end("interpret", "FAILED", exit_code="1:0")
    bench.exits(("interpret", 0, 1))
    for row in bench.world.rows:
        if row.name.endswith("beams"):
            row.reason = "DependencyNeverSatisfied"
    report = bench.until("failed")

    (cancel,) = bench.world.started(Cancel)
    assert isinstance(cancel, Cancel)
    assert [name.rsplit("-", 1)[-1] for name, _ in cancel.targets] == ["convert", "beams"]
    assert {beam.verdict for beam in report.beams} == {"failed (interpret)"}
    assert report.results == ()


def test_an_outage_pauses_and_never_fails_the_case(bench: Bench) -> None:
    for kind in (Upload, Upload, Submit, Observe, Observe):
        bench.world.fail(kind, Failure.OUTAGE, "no route to host")
    bench.until_sent()
    assert len(bench.world.started(Upload)) == 3
    assert len(bench.world.started(Submit)) == 2
    bench.turn(3)
    finish(bench)
    assert bench.until("completed")
    assert bench.orchestrator.outage.failures == 0


def test_an_outage_while_watching_is_told_once_and_so_is_its_end(bench: Bench) -> None:
    bench.until_sent()
    for _ in range(5):
        bench.world.fail(Observe, Failure.OUTAGE, "no route to host")
    before = bench.clock.time
    finish(bench)
    bench.until("completed")
    assert [text for text in bench.said if "cluster" in text] == [
        "the cluster does not answer, and is asked again: no route to host",
        "the cluster answers again",
    ]
    assert bench.clock.time - before >= 1 + 2 + 4 + 8 + 16


def test_a_refused_key_stops_all_attempts(bench: Bench) -> None:
    bench.world.fail(Upload, Failure.ACCESS, "our key was refused")
    bench.turn(30)
    assert bench.orchestrator.outage.refused
    assert len(bench.world.started(Upload)) == 1
    assert bench.report.status == "processing"


def test_a_lost_reply_is_held_for_attention_and_not_retried_at_once(bench: Bench) -> None:
    bench.world.fail(Submit, Failure.OUTAGE, "the link broke", uncertain=True)
    bench.turn(20)
    report = bench.report
    assert report.submission == "ambiguous"
    assert "the link broke" in (report.attention or "")
    assert len(bench.world.started(Submit)) == 1


def test_a_chain_of_unknown_fate_is_adopted_by_its_receipts(bench: Bench) -> None:
    def submitted_but_silent(effect: Effect) -> Completion:
        assert isinstance(effect, Submit)
        receipts = bench.world._submit(effect)
        lines = [line.split(" ", 2) for line in receipts.split("\n") if " RECEIPT " in line]
        text = "\n".join(rest for _, _, rest in lines)
        bench.world.sections[f"receipts:{effect.job_id}"] = (f"{text}\n", 0)
        return Completion(effect=effect, error="timed out", failure=Failure.OUTAGE, uncertain=True)

    bench.world.answers[Submit] = [submitted_but_silent]
    bench.until_sent()
    assert len(bench.world.started(Submit)) == 1
    finish(bench)
    bench.until("completed")


def test_a_held_head_is_not_a_standing_chain(bench: Bench) -> None:
    def killed_before_release(effect: Effect) -> Completion:
        assert isinstance(effect, Submit)
        receipts = bench.world._submit(effect)
        bench.world.rows[0].reason = "JobHeldUser"
        lines = [line.split(" ", 2) for line in receipts.split("\n") if " RECEIPT " in line]
        text = "\n".join(rest for _, _, rest in lines)
        bench.world.sections[f"receipts:{effect.job_id}"] = (f"{text}\n", 0)
        return Completion(effect=effect, error="timed out", failure=Failure.OUTAGE, uncertain=True)

    bench.world.answers[Submit] = [killed_before_release]
    bench.turn(20)
    assert bench.report.submission == "ambiguous"
    bench.world.rows[0].reason = "Priority"
    bench.until_sent()


def test_a_foreign_receipt_is_never_adopted(bench: Bench) -> None:
    bench.world.fail(Submit, Failure.OUTAGE, "the link broke", uncertain=True)
    bench.world.sections[f"receipts:{KEY}-j01"] = ("interpret mqi-other-name 5 1800000000\n", 0)
    bench.turn(20)
    assert "mqi-other-name" in (bench.report.attention or "")
    assert bench.report.submission == "ambiguous"


@pytest.mark.parametrize("receipt", ["interpret", "interpret no-id 3", "interpret name x y"])
def test_a_damaged_receipt_holds_the_case_and_harms_nothing_else(bench: Bench, receipt: str) -> None:
    bench.world.fail(Submit, Failure.OUTAGE, "the link broke", uncertain=True)
    bench.world.sections[f"receipts:{KEY}-j01"] = (f"{receipt}\n", 0)
    bench.turn(20)
    assert bench.report.submission == "ambiguous"
    bench.world.dead_sections = {f"receipts:{KEY}-j01"}
    bench.turn(20)
    assert bench.report.submission == "ambiguous"


def test_one_cancel_at_a_time(bench: Bench) -> None:
    bench.until_sent()
    bench.world.silent = {Cancel}
    bench.world.rows.append(Row(999, None, bench.world.names["interpret"], "PENDING", "JobHeldUser"))
    bench.turn(10)
    assert len(bench.world.started(Cancel)) == 1


def test_a_job_that_has_gone_from_the_store_stops_the_loop(bench: Bench) -> None:
    bench.world.answers[Upload] = [lambda effect: Completion(effect=replace(effect, job_id="gone"))]
    with pytest.raises(StateError, match="'gone' has gone"):
        bench.turn(2)


def test_a_look_at_a_job_that_has_gone_from_the_store_stops_the_loop_too(bench: Bench) -> None:
    look = Observe(nonce="n", jobs=(JobQuery(ref="gone", folder="/w", records=()),), sacct_ids=())
    with pytest.raises(StateError, match="'gone' has gone"):
        bench.watcher.apply(look, Completion(effect=look), 1.0)
    with pytest.raises(StateError, match="'gone' has gone"):
        bench.desk.fault("gone", "whatever it was")


def test_a_start_after_a_death_while_submitting_holds_the_case(bench: Bench) -> None:
    bench.world.answers[Submit] = [lambda effect: Completion(effect=effect, error="x", uncertain=True)]
    with bench.store.transaction() as unit:
        job = unit.jobs.of_case(KEY)[-1]
        unit.jobs.put(job.evolve(submit_state=SubmitState.SUBMITTING))
    bench.wire()
    bench.orchestrator.process_case(KEY)
    bench.turn(5)
    assert bench.report.submission == "ambiguous"
    assert bench.world.started(Submit) == []


def test_slurms_permanent_refusal_fails_the_case_in_slurms_words(bench: Bench) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination"
    bench.world.say(Submit, ["BEGIN", f"SBATCH interpret {words}", "FAILED interpret 1", "DONE 75"], 75)
    report = bench.until("failed")
    assert "Invalid account" in (report.refusal or "")
    assert bench.world.started(Cancel) == []


def test_a_refused_array_takes_its_held_head_back(bench: Bench) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification"
    name = bench.world.names["interpret"]
    lines = ["BEGIN", f"RECEIPT interpret {name} 77 1800000000", f"SBATCH beams {words}"]
    bench.world.say(Submit, [*lines, "FAILED beams 1", "DONE 75"], 75)
    bench.until("failed")
    bench.turn()
    cancel, *others = bench.world.started(Cancel)
    assert isinstance(cancel, Cancel)
    assert (cancel.targets, cancel.mark) == (((name, 77),), "")
    # Nothing of it is to begin any more, whichever host thaws.
    assert {(other.targets, bool(other.mark)) for other in others if isinstance(other, Cancel)} == {
        ((), True)
    }


def test_a_loop_that_has_enough_still_lets_a_cancel_out(bench: Bench) -> None:
    """With `--wait` the case is failed, and the program at its end, before the held head is taken back."""
    name = bench.world.names["interpret"]
    words = "sbatch: error: Batch job submission failed: Invalid qos specification"
    lines = ["BEGIN", f"RECEIPT interpret {name} 77 1800000000", f"SBATCH beams {words}"]
    bench.world.say(Submit, [*lines, "FAILED beams 1", "DONE 75"], 75)
    bench.world.fail(Cancel, Failure.OUTAGE, "no route to host")
    bench.orchestrator.run_until(lambda: bench.report.status == "failed")
    assert "not cancelled: no route to host; to do it by hand: scancel 77" in bench.said


def test_a_foreign_receipt_in_submits_answer_holds_the_case(bench: Bench) -> None:
    lines = ["BEGIN", "RECEIPT interpret mqi-somebody-else 77 1800000000"]
    bench.world.say(Submit, [*lines, "FAILED beams 1", "DONE 75"], 75)
    bench.turn(10)
    assert bench.report.submission == "ambiguous"
    assert "mqi-somebody-else" in (bench.report.attention or "")


def test_a_submit_limit_is_waited_out(bench: Bench) -> None:
    limit = "sbatch: error: QOSMaxSubmitJobPerUserLimit"
    more = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    lines = [
        "BEGIN",
        f"SBATCH interpret {limit}",
        f"SBATCH interpret {more}",
        "FAILED interpret 1",
        "DONE 75",
    ]
    bench.world.say(Submit, lines, 75)
    bench.turn(2)
    assert bench.task(TaskType.INTERPRET).phase == "deferred"
    bench.until_sent()
    assert len(bench.world.started(Submit)) == 2


def test_a_partition_that_stays_closed_is_told_to_a_person(bench: Bench) -> None:
    closed = "Required partition not available (inactive or drain)"
    said = f"SBATCH beams sbatch: error: Batch job submission failed: {closed}"
    for _ in range(2):
        bench.world.say(Submit, ["BEGIN", said, "FAILED beams 1", "DONE 75"], 75)
    bench.turn(2)
    assert bench.task(TaskType.INTERPRET).phase == "deferred"
    assert bench.report.attention is None
    bench.world.clock.time += 3600
    bench.turn(2)
    assert bench.task(TaskType.INTERPRET).phase == "not taken"
    assert closed in str(bench.report.attention)
    bench.until_sent()
    assert bench.report.attention is None


def test_a_timed_out_sbatch_is_held(bench: Bench) -> None:
    words = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    bench.world.say(Submit, ["BEGIN", f"SBATCH interpret {words}", "FAILED interpret 1", "DONE 75"], 75)
    bench.turn(30)
    assert bench.report.submission == "ambiguous"
    assert "Socket timed out" in (bench.report.attention or "")
    assert len(bench.world.started(Submit)) == 1


def test_a_slurm_that_does_not_answer_the_script_is_asked_again(bench: Bench) -> None:
    bench.world.say(Submit, ["BEGIN", "NOTE squeue: Unable to contact slurm controller", "DONE 76"], 76)
    bench.until_sent()
    assert any("Unable to contact slurm controller" in text for text in bench.said)
    assert len(bench.world.started(Submit)) == 2


def test_a_head_that_is_not_as_its_receipt_says_is_looked_into(bench: Bench) -> None:
    bench.world.say(Submit, ["BEGIN", "HEAD not seen", "DONE 77"], 77)
    bench.turn(10)
    assert bench.report.submission == "ambiguous"
    assert "the chain's head is not as its receipt says (not seen)" in (bench.report.attention or "")


def test_silence_of_submit_sh_is_held(bench: Bench) -> None:
    bench.world.answers[Submit] = [lambda effect: Completion(effect=effect, output="", exit_code=127)]
    bench.turn(10)
    assert "127" in (bench.report.attention or "")


def test_a_changed_file_fails_this_case_and_sends_nothing(bench: Bench) -> None:
    bench.world.fail(Upload, Failure.CASE, "RP.dcm has changed since it was registered")
    report = bench.until("failed")
    assert "RP.dcm has changed" in (report.refusal or "")
    assert bench.world.started(Submit) == []
    assert all(beam.status == "failed" for beam in report.beams)


def test_too_little_space_waits(bench: Bench) -> None:
    bench.world.fail(Upload, Failure.SPACE, "3 GB are free")
    bench.turn(2)
    assert bench.task(TaskType.UPLOAD).phase == "no space"
    assert "3 GB" in (bench.report.attention or "")
    bench.until_sent()


def test_a_folder_that_cannot_be_used_waits_for_whoever_mends_it(bench: Bench) -> None:
    bench.world.fail(Upload, Failure.FOLDER, "Read-only file system")
    bench.turn(2)
    assert bench.task(TaskType.UPLOAD).phase == "no folder"
    told = bench.report.attention or ""
    assert "Read-only file system" in told
    assert "slurmdbd" not in told
    bench.until_sent()


def test_results_that_do_not_come_home_leave_the_case_unfinished_but_not_failed(bench: Bench) -> None:
    bench.until_sent()
    finish(bench)
    bench.world.fail(Download, Failure.OUTAGE, "the link broke")
    bench.world.fail(Download, Failure.CASE, "RD.0.dcm: its SHA-256 is not the record's")
    report = bench.until("partial")
    assert [task.detail for task in report.tasks if task.task == "download"] == [
        "RD.0.dcm: its SHA-256 is not the record's"
    ]


def test_a_section_that_was_cut_short_says_nothing(bench: Bench) -> None:
    bench.until_sent()
    finish(bench)
    bench.world.dead_sections = {"squeue"}
    bench.turn(30)
    assert bench.report.status == "processing"
    bench.world.dead_sections = {f"record:{KEY}-j01/beam_calc-0"}
    bench.turn(60)
    assert bench.task(TaskType.BEAM_CALC, 0).status is TaskStatus.RUNNING
    assert bench.task(TaskType.BEAM_CALC, 1).status is TaskStatus.COMPLETED
    bench.world.dead_sections = set()
    bench.until("completed")


def test_a_ghost_under_our_name_is_cancelled_by_name_and_id(bench: Bench) -> None:
    bench.until_sent()
    name = bench.world.names["interpret"]
    bench.world.rows.append(Row(999, None, name, "PENDING", "JobHeldUser"))
    bench.turn(4)
    cancels = bench.world.started(Cancel)
    assert [c.targets for c in cancels if isinstance(c, Cancel)] == [((name, 999),)]
    finish(bench)
    bench.until("completed")


def test_a_job_waits_for_slots_of_our_budget() -> None:
    bench = Bench(gpu_count=2)
    with bench.store.transaction() as unit:
        unit.resources.hold("another-j01", 1)
    bench.begin()
    bench.turn(10)
    assert bench.report.submission == "uploaded"
    with bench.store.transaction() as unit:
        unit.resources.hold("another-j01", 0)
    bench.until_sent()
    with bench.store.transaction() as unit:
        assert unit.resources.holdings() == {f"{KEY}-j01": 2}
    finish(bench)
    bench.until("completed")
    bench.turn()
    with bench.store.transaction() as unit:
        assert unit.resources.holdings() == {}


def test_a_restart_anywhere_goes_on_where_the_job_is(bench: Bench) -> None:
    bench.turn(1)
    bench.wire()
    bench.orchestrator.process_case(KEY)
    bench.until_sent()
    bench.wire()
    bench.orchestrator.process_case(KEY)
    finish(bench)
    bench.until("completed")
    assert len(bench.world.started(Submit)) == 1
    with bench.store.transaction() as unit:
        assert len(unit.jobs.of_case(KEY)) == 1


def test_every_change_has_an_event(bench: Bench) -> None:
    bench.until_sent()
    finish(bench)
    bench.until("completed")
    assert [event["to"] for event in bench.events("submission")] == ["uploaded", "submitting", "standing"]
    assert [event["to"] for event in bench.events("case")] == ["queued", "processing", "completed"]
    assert {event["task"] for event in bench.events("task")} >= {f"{KEY}-j01/beam_calc-1"}


def test_without_accounting_records_and_exit_records_decide() -> None:
    bench = Bench(accounting="off")
    bench.begin()
    bench.until_sent()
    finish(bench)
    for row in bench.world.rows:
        row.queued = False
    bench.until("completed")
    assert all(not effect.sacct_ids for effect in bench.world.log if isinstance(effect, Observe))


def test_accounting_is_asked_only_when_the_queue_no_longer_shows_a_task(bench: Bench) -> None:
    bench.until_sent()
    bench.turn(3)
    assert all(not effect.sacct_ids for effect in bench.world.log if isinstance(effect, Observe))
    for row in bench.world.rows:
        row.queued = False
    finish(bench)
    bench.until("completed")
    assert any(effect.sacct_ids for effect in bench.world.log if isinstance(effect, Observe))


def test_one_poll_for_all_jobs_one_exec_to_submit(bench: Bench) -> None:
    bench.until_sent()
    assert len(bench.world.started(Submit)) == 1
    before = len(bench.world.started(Observe))
    bench.world.on_poll = lambda: None
    bench.turn(1)
    assert len(bench.world.started(Observe)) - before <= 1


def test_an_unknown_case_is_named() -> None:
    bench = Bench()
    with pytest.raises(ProcessingError, match="nosuchcase"):
        bench.orchestrator.process_case("nosuchcase")


def test_stop_ends_the_loop_after_its_turn(bench: Bench) -> None:
    bench.world.on_poll = bench.orchestrator.stop
    bench.orchestrator.start()
    assert bench.report.submission == "standing"
