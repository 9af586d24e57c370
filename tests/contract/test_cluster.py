"""One contract for clusters: what services and domain read of one holds on simulated and real Slurm alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from mqi_hpc.core.adoption import CaseRemains, adoption
from mqi_hpc.core.effects import Cancel, Failure, Observe, ResultFile, Submit, Survey
from mqi_hpc.core.models import STAGES, SubmitState, TaskStatus
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.core.pruning import PruneAnswer
from mqi_hpc.core.readings import Accounting
from mqi_hpc.core.resubmit import plan_resubmit
from mqi_hpc.core.sbatch_errors import ErrorKind, classify
from mqi_hpc.domain.evidence import read_evidence
from mqi_hpc.records.layout import MANIFEST
from mqi_hpc.records.manifest import format_manifest
from mqi_hpc.records.result import ConvertRecord, decode_record
from mqi_hpc.services.history import read_history
from tests.support.cluster import Cluster, cluster_image
from tests.support.simulation.bed import Bed, Sent
from tests.support.simulation.beds import real_bed, simulated_bed
from tests.support.simulation.installation import Installation
from tests.support.simulation.jobs import Site

DONE = {"interpret": "done", "beam 0": "done", "beam 1": "done", "beam 2": "done", "convert": "done"}
BEAMS = ("beam 0", "beam 1", "beam 2")
BEGUN = {("beams", 0), ("beams", 1), ("beams", 2)}

MakeBed = Callable[..., Bed]


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose queue forgets soon."""
    with Cluster(cluster_image(), tmp_path_factory.mktemp("forgetful"), {"MQI_MIN_JOB_AGE": "10"}) as started:
        yield started


@pytest.fixture(params=["22.05", "24.11", "26.05", pytest.param("real", marks=pytest.mark.cluster)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeBed]:
    """Makes a bed with settings of its own; `forgetful`: Slurm forgets what ended after 10 s."""
    with ExitStack() as stack:

        def make(*, forgetful: bool = False, **changes: object) -> Bed:
            found: AbstractContextManager[Bed]
            if request.param == "real":
                cluster = request.getfixturevalue("forgetful" if forgetful else "cluster")
                found = real_bed(tmp_path, cluster, **changes)
            else:
                site = Site(version=request.param, min_job_age=10.0 if forgetful else 300.0)
                found = simulated_bed(tmp_path, site, **changes)
            return stack.enter_context(found)

        yield make


@pytest.fixture
def bed(make: MakeBed) -> Bed:
    return make()


def record_of(sent: Sent, name: str) -> object:
    text = sent.task(name).record
    assert text is not None
    return decode_record(text)


def last_lines(bed: Bed, sent: Sent) -> dict[tuple[str, int], int | None]:
    """Return the exit code in the last status line of each task that has left one."""
    lines = bed.observe(sent).status(sent.job.job_id) or {}
    return {task: line.exit_code for task, line in lines.items()}


# A chain that goes well


def test_a_chain_is_uploaded_submitted_and_runs_in_order_to_its_end(bed: Bed) -> None:
    sent = bed.plan()
    sizes = json.loads(bed.upload(sent).output)
    assert sizes["sent_files"] == sizes["files"] > 3
    again = json.loads(bed.upload(sent).output)
    assert (again["sent_files"], again["files"]) == (0, sizes["files"])

    report = bed.submit(sent)
    assert (report.code, report.failed, report.head, list(report.receipts)) == (0, None, None, list(STAGES))
    bed.to_the_end(sent)
    assert sent.states() == DONE
    assert {task.slurm for task in sent.tasks if task.slurm} == {"COMPLETED"}
    assert {task.exit_code for task in sent.tasks if task.slurm} == {0}
    assert sent.task("beam 1").node in ("g1", "g2")
    record = record_of(sent, "convert")
    assert isinstance(record, ConvertRecord)
    assert [dose.index for dose in record.doses] == [0, 1, 2]
    begun = {name: decode_record(sent.task(name).record or "").run for name in DONE}
    assert begun["interpret"].end <= min(begun[f"beam {n}"].start for n in range(3))
    assert begun["convert"].start >= max(begun[f"beam {n}"].end for n in range(3))


def test_a_second_submit_changes_nothing(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    first = bed.submit(sent)
    again = bed.submit(sent)
    assert (again.code, again.receipts) == (0, first.receipts)
    bed.to_the_end(sent)
    late = bed.submit(sent)
    assert (late.code, late.receipts) == (0, first.receipts)
    names = {submission.name for submission in sent.job.submissions}
    queue = bed.observe(sent).queue
    assert queue is not None
    assert {row.job for row in queue if row.name in names} == {r.id for r in first.receipts.values()}
    assert sent.last is not None
    assert sent.last.ghosts == ()


def test_what_slurm_forgets_accounting_remembers(make: MakeBed) -> None:
    bed = make(forgetful=True)
    sent = bed.send()
    names = {submission.name for submission in sent.job.submissions}
    receipts = {s.stage: s.slurm_id for s in sent.job.submissions}

    def forgotten() -> bool:
        evidence = bed.observe(sent)
        assert evidence.queue is not None
        ended = [row for row in evidence.accounted if row.terminal]
        return len(ended) == 5 and not [row for row in evidence.queue if row.name in names]

    bed.until(forgotten, "an empty queue")
    bed.to_the_end(sent)
    assert sent.states() == DONE
    # Released, run, forgotten: a late rerun of submit.sh still does nothing.
    report = bed.submit(sent)
    assert (report.code, {stage: r.id for stage, r in report.receipts.items()}) == (0, receipts)


# A chain that is held


def test_a_chain_that_was_not_released_is_seen_held_and_can_go_on(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    report = bed.submit_unreleased(sent)
    assert (report.code, list(report.receipts)) == (76, list(STAGES))
    bed.seen(sent, {"interpret": "held", **dict.fromkeys(BEAMS, "queued"), "convert": "queued"})
    assert sent.task("interpret").detail == "JobHeldUser"
    evidence = bed.observe(sent)
    assert "claimed" not in (evidence.receipts(sent.job.job_id) or {})
    assert evidence.status(sent.job.job_id) == {}
    assert bed.submit(sent).code == 0
    bed.to_the_end(sent)
    assert sent.states() == DONE
    assert "claimed" in (bed.observe(sent).receipts(sent.job.job_id) or {})


def test_a_cancelled_head_leaves_its_dependants_waiting_for_ever(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    bed.submit_unreleased(sent)
    assert bed.cancel(sent, "interpret").exit_code == 0
    # Nobody takes the dependants away: they wait for ever.
    bed.until(lambda: bed.look(sent) and sent.last and sent.last.dead_stages == ("convert", "beams"), "dead")
    assert sent.task("interpret").status is TaskStatus.CANCELLED
    assert {sent.task(beam).detail for beam in BEAMS} == {"DependencyNeverSatisfied"}
    report = bed.submit(sent)
    assert (report.code, report.failed) == (0, None)
    assert bed.cancel(sent, "convert", "beams").exit_code == 0
    bed.to_the_end(sent)
    assert {task.status for task in sent.tasks if task.slurm} == {TaskStatus.CANCELLED}


def test_dependants_that_were_cancelled_keep_the_head_from_running(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    bed.submit_unreleased(sent)
    bed.cancel(sent, "convert")
    report = bed.submit(sent)
    assert report.code == 77
    assert "gone" in str(report.head)
    bed.seen(sent, {"interpret": "held", "convert": "cancelled"})


# A submission that is cut short


@pytest.mark.parametrize("step", ["receipt interpret", "sbatch beams", "receipt beams", "receipt convert"])
def test_a_submission_that_was_cut_is_run_again_and_everything_runs_once(bed: Bed, step: str) -> None:
    sent = bed.plan()
    bed.upload(sent)
    report = bed.submit_cut(sent, step)
    word, stage = step.split()
    assert (report.code, list(report.receipts)) == (None, list(STAGES[: STAGES.index(stage)]))
    assert bed.submit(sent).code == 0
    bed.to_the_end(sent)
    assert sent.states() == DONE

    name = next(s.name for s in sent.job.submissions if s.stage == stage)
    ours = {s.slurm_id for s in sent.job.submissions}
    queue = bed.observe(sent).queue or ()
    ghosts = {row.job for row in queue if row.name == name} - ours
    assert len(ghosts) == (word == "receipt")
    if step == "receipt interpret":
        # Held, and so for ever: it is swept.
        assert sent.last is not None
        assert sent.last.ghosts == ((name, *ghosts),)
        sweep = Cancel(case_id=bed.case.case_id, job_id=sent.job.job_id, targets=sent.last.ghosts)
        assert bed.run(sweep).exit_code == 0
    elif ghosts:
        # It runs when the receipts' jobs do, up to the fence.
        def stopped() -> bool:
            rows = [row for row in bed.observe(sent).queue or () if row.job in ghosts]
            return {row.word for row in rows} == {"FAILED"}

        bed.until(stopped, "ghosts at the fence")


def test_a_chain_is_not_built_on_a_head_that_was_cancelled(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    assert list(bed.submit_cut(sent, "sbatch beams").receipts) == ["interpret"]
    bed.cancel(sent, "interpret")
    report = bed.submit(sent)
    assert (report.code, report.failed, list(report.receipts)) == (77, None, ["interpret"])
    assert report.head == "not seen"


# What goes wrong on the nodes


def test_a_failing_beam_fails_alone(bed: Bed) -> None:
    bed.fault(bed.case.beams[1].number, "exit 7")
    sent = bed.send()
    bed.to_the_end(sent)
    assert sent.states() == {**DONE, "beam 1": "failed"}
    failed = sent.task("beam 1")
    assert (failed.slurm, failed.exit_code, failed.record) == ("FAILED", 7, None)
    # The queue may have told it first, which knows no exit codes.
    assert failed.slurm_exit in ("", "7:0")
    record = record_of(sent, "convert")
    assert isinstance(record, ConvertRecord)
    assert [dose.index for dose in record.doses] == [0, 2]
    assert list(record.missing) == ["1"]


def test_a_failing_interpret_leaves_the_others_waiting_for_ever(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    first = bed.case.beams[0].number
    bed.overwrite(f"{bed.case_folder}/input/beam_{first}/PlanInfo.txt", b"spoilt\n")
    bed.submit(sent)
    bed.until(lambda: bed.look(sent) and sent.last and sent.last.dead_stages == ("convert", "beams"), "dead")
    failed = sent.task("interpret")
    assert (failed.status, failed.slurm, failed.exit_code) == (TaskStatus.FAILED, "FAILED", 1)
    assert {sent.task(name).phase for name in (*BEAMS, "convert")} == {"queued"}
    bed.cancel(sent, "convert", "beams")
    bed.to_the_end(sent)
    assert {sent.task(name).phase for name in (*BEAMS, "convert")} == {"failed (interpret)"}


def test_where_every_beam_fails_convert_does_too(bed: Bed) -> None:
    for beam in bed.case.beams:
        bed.fault(beam.number, "exit 3")
    sent = bed.send()
    bed.to_the_end(sent)
    assert sent.states() == {"interpret": "done", **dict.fromkeys(BEAMS, "failed"), "convert": "failed"}
    assert sent.task("convert").exit_code == 1


def test_a_node_that_is_set_down_fails_its_beams_and_convert_still_runs(bed: Bed) -> None:
    for beam in bed.case.beams:
        bed.fault(beam.number, "hang")
    sent = bed.send()
    bed.seen(sent, dict.fromkeys(BEAMS, "running"))
    bed.until(lambda: set(last_lines(bed, sent)) >= BEGUN, "begun beams")
    for node in sorted({sent.task(beam).node for beam in BEAMS}):
        bed.node_down(node)
    bed.to_the_end(sent)
    assert {sent.task(beam).phase for beam in BEAMS} == {"failed (infrastructure)"}
    assert {sent.task(beam).slurm for beam in BEAMS} == {"NODE_FAIL"}
    assert sent.task("convert").phase == "failed"
    # slurmd is alive and ends the programs, which say so, sooner or later than Slurm does.
    bed.until(lambda: {last_lines(bed, sent)[task] for task in BEGUN} == {143}, "last words")


def test_a_record_whose_file_is_gone_is_not_valid(bed: Bed) -> None:
    sent = bed.send()

    def over() -> bool:
        rows = bed.observe(sent).queue or ()
        return any(row.word == "COMPLETED" for row in rows if row.name == sent.job.submissions[-1].name)

    bed.until(over, "convert's end")
    number = bed.case.beams[0].number
    listed = bed.observe(sent).listing(f"{sent.job.job_id}/beam_calc-0")
    (dose,) = [path for path in listed or {} if path.endswith("_Dose.raw")]
    bed.remove(f"{sent.folder}/dose/beam_{number}/{dose}")
    bed.to_the_end(sent)
    assert sent.states() == {**DONE, "beam 0": "failed (invalid output)"}
    assert dose in sent.task("beam 0").detail


# Cancelling


def test_a_cancel_of_another_name_or_an_unknown_id_takes_nothing(bed: Bed) -> None:
    bed.partition("cpu", up=False)
    sent = bed.send()
    head = sent.job.submissions[0]
    wrong = Cancel(
        case_id=bed.case.case_id, job_id=sent.job.job_id, targets=((f"{head.name}x", head.slurm_id or 0),)
    )
    assert bed.run(wrong).exit_code == 0
    unknown = replace(wrong, targets=((head.name, 987654),))
    completion = bed.run(unknown)
    assert (completion.error, completion.exit_code) == (None, 1)
    assert "Invalid job id" in completion.output
    bed.look(sent)
    assert sent.task("interpret").phase in ("queued", "blocked")
    bed.partition("cpu", up=True)
    bed.to_the_end(sent)
    assert sent.states() == DONE
    over = bed.cancel(sent, "interpret")
    assert (over.error, over.exit_code) == (None, 1)


def test_a_chain_that_has_not_begun_is_cancelled_whole(bed: Bed) -> None:
    bed.partition("cpu", up=False)
    sent = bed.send()
    bed.seen(sent, {"interpret": "blocked", **dict.fromkeys(BEAMS, "queued"), "convert": "queued"})
    assert bed.cancel(sent, "convert", "beams", "interpret").exit_code == 0
    bed.to_the_end(sent)
    assert set(sent.states().values()) == {"cancelled"}
    bed.partition("cpu", up=True)
    names = {submission.name for submission in sent.job.submissions}
    assert {row.word for row in bed.observe(sent).queue or () if row.name in names} == {"CANCELLED"}


def test_a_job_that_was_called_off_is_not_submitted_and_what_waits_of_it_begins_nothing(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    assert list(bed.submit_cut(sent, "sbatch convert").receipts) == ["interpret", "beams"]
    assert not bed.observe(sent).withdrawn(sent.job.job_id)
    mark = Cancel(case_id=bed.case.case_id, job_id=sent.job.job_id, targets=(), mark=sent.folder)
    for _ in range(2):
        assert bed.run(mark).output == "mark withdrawn: exit 0"
    assert bed.observe(sent).withdrawn(sent.job.job_id)
    report = bed.submit(sent)
    assert (report.code, report.notes) == (78, ("the job was called off",))
    bed.until(lambda: not [row for row in bed.observe(sent).queue or () if not row.ending], "an empty queue")


def test_what_begins_after_its_job_was_called_off_is_turned_away(bed: Bed) -> None:
    bed.partition("cpu", up=False)
    sent = bed.send()
    mark = Cancel(case_id=bed.case.case_id, job_id=sent.job.job_id, targets=(), mark=sent.folder)
    assert bed.run(mark).exit_code == 0
    bed.partition("cpu", up=True)
    sent.job = sent.job.evolve(cancelled=sent.job.stages)
    bed.seen(sent, {"interpret": "cancelled"})
    assert bed.observe(sent).claims(sent.job.job_id) == frozenset()


def test_a_folder_that_is_gone_takes_no_mark_and_keeps_no_cancel(bed: Bed) -> None:
    sent = bed.send()
    targets = tuple((s.name, s.slurm_id or 0) for s in reversed(sent.job.submissions))
    gone = f"{sent.folder}-gone"
    done = bed.run(Cancel(case_id=bed.case.case_id, job_id=sent.job.job_id, targets=targets, mark=gone))
    assert (done.error, done.exit_code) == (None, 0)
    assert done.output.startswith("mark withdrawn: exit 1: ")
    assert "No such file or directory" in done.output
    bed.until(lambda: not [row for row in bed.observe(sent).queue or () if not row.ending], "an empty queue")


def test_an_array_at_work_is_cancelled_what_runs_and_what_waits(make: MakeBed) -> None:
    bed = make(resources={"gpu_count": 1})
    for beam in bed.case.beams[1:]:
        bed.fault(beam.number, "hang")
    sent = bed.send()
    bed.seen(sent, {"beam 0": "done", "beam 1": "running", "beam 2": "queued"})
    assert sent.task("beam 2").detail == "JobArrayTaskLimit"
    # What is cancelled before its program hears signals has no last words.
    bed.until(lambda: ("beams", 1) in last_lines(bed, sent), "a begun beam")
    # convert first: with the array gone it would run.
    assert bed.cancel(sent, "convert", "beams").exit_code == 0
    bed.to_the_end(sent)
    assert sent.states() == {**DONE, "beam 1": "cancelled", "beam 2": "cancelled", "convert": "cancelled"}

    # Slurm counts it as ended before its program has.
    bed.until(lambda: last_lines(bed, sent)["beams", 1] == 143, "the last words of what was cancelled")
    assert ("beams", 2) not in last_lines(bed, sent)
    record = bed.observe(sent).record(f"{sent.job.job_id}/beam_calc-1")
    assert record is not None
    assert record.exit_code == 44


def test_where_the_array_alone_is_cancelled_convert_runs(bed: Bed) -> None:
    bed.fault(bed.case.beams[2].number, "hang")
    sent = bed.send()
    bed.seen(sent, {"beam 0": "done", "beam 1": "done", "beam 2": "running"})
    bed.cancel(sent, "beams")
    bed.to_the_end(sent)
    assert sent.states() == {**DONE, "beam 2": "cancelled"}


# Slurm's daemons, and what does not answer


def test_accounting_that_is_down_costs_its_section_alone(bed: Bed) -> None:
    bed.accounting(up=False)
    sent = bed.send()
    evidence = bed.look(sent)
    assert (evidence.accounting, evidence.accounted) == (Accounting.DOWN, ())
    assert evidence.queue is not None
    bed.to_the_end(sent)
    assert sent.states() == DONE
    bed.accounting(up=True)

    def told() -> bool:
        rows = bed.observe(sent).accounted
        return len(rows) == 5 and {row.word for row in rows} == {"COMPLETED"}

    bed.until(told, "accounting's rows")


def test_accounting_does_not_know_an_id_and_says_so_with_no_rows(bed: Bed) -> None:
    effect = Observe(nonce=bed.nonce(), jobs=(), sacct_ids=(987654,))
    evidence = read_evidence(bed.run(effect).output, effect.nonce, asked=True, accounting="auto")
    assert (evidence.accounting, evidence.accounted, evidence.notes) == (Accounting.GOOD, (), ())


def test_rows_of_accounting_tell_states_times_nodes_and_gpus(bed: Bed) -> None:
    bed.fault(bed.case.beams[0].number, "exit 137")
    sent = bed.send()
    bed.to_the_end(sent)

    def whole() -> bool:
        return len([row for row in bed.observe(sent).accounted if row.terminal]) == 5

    bed.until(whole, "accounting's rows")
    rows = {(row.name, row.task): row for row in bed.observe(sent).accounted}
    names = {s.stage: s.name for s in sent.job.submissions}
    array = next(s.slurm_id for s in sent.job.submissions if s.stage == "beams")
    for index in range(3):
        row = rows[names["beams"], index]
        assert row.job == array
        assert "gres/gpu=1" in row.tres.split(",")
        assert row.submit is not None and row.start is not None and row.end is not None
        assert row.submit <= row.start <= row.end
    assert rows[names["beams"], 0].word == "FAILED"
    assert rows[names["beams"], 0].exit_code in ("9:0", "137:0")
    assert sent.task("beam 0").exit_code == 137
    assert rows[names["convert"], None].node == "c1"


def test_a_controller_that_is_down_is_no_verdict_and_no_submission(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    bed.controller(up=False)
    report = bed.submit(sent)
    assert (report.code, report.receipts) == (75, {})
    assert report.failed is not None
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.TRANSIENT
    evidence = bed.look(sent)
    assert evidence.queue is None
    assert any("Unable to contact slurm controller" in note for note in evidence.notes)
    assert evidence.receipts(sent.job.job_id) == {}
    cancel = Cancel(case_id=bed.case.case_id, job_id=sent.job.job_id, targets=(("mqi-x", 1),))
    assert bed.run(cancel).exit_code == 1
    bed.controller(up=True)
    assert bed.submit(sent).code == 0
    bed.to_the_end(sent)
    assert sent.states() == DONE


def test_what_ends_while_the_controller_is_down_is_told_when_it_is_back(bed: Bed) -> None:
    sent = bed.send()
    bed.seen(sent, {"interpret": "done"})
    bed.controller(up=False)
    assert bed.look(sent).queue is None
    bed.controller(up=True)
    bed.to_the_end(sent)
    assert sent.states() == DONE


def test_a_refusal_is_told_in_slurms_words(make: MakeBed) -> None:
    bed = make(slurm={"account": "nobody"})
    sent = bed.plan()
    bed.upload(sent)
    report = bed.submit(sent)
    assert (report.code, report.receipts) == (75, {})
    assert report.failed is not None
    error = classify(report.failed.lines, report.failed.exit_code)
    assert error.kind is ErrorKind.PERMANENT
    assert "Invalid account" in error.text


def test_a_job_folder_that_is_not_there_says_nothing(bed: Bed) -> None:
    sent = bed.plan()
    evidence = bed.look(sent)
    ref = sent.job.job_id
    assert evidence.queue is not None
    assert (evidence.receipts(ref), evidence.status(ref), evidence.record(f"{ref}/interpret")) == (
        None,
        None,
        None,
    )
    bed.upload(sent)
    evidence = bed.look(sent)
    assert (evidence.receipts(ref), evidence.status(ref)) == ({}, {})
    record = evidence.record(f"{ref}/interpret")
    assert record is not None
    assert record.exit_code == 44
    submit = Submit(case_id=bed.case.case_id, job_id=ref, job_folder=f"{bed.case_folder}/j09", nonce="n")
    assert bed.run(submit).exit_code != 0


# The way there and back


def test_an_outage_is_told_as_one(bed: Bed) -> None:
    sent = bed.plan()
    bed.upload(sent)
    bed.link(up=False)
    submit = Submit(
        case_id=bed.case.case_id, job_id=sent.job.job_id, job_folder=sent.folder, nonce=bed.nonce()
    )
    for effect in (bed.uploading(sent), submit, Observe(nonce="n", jobs=(), sacct_ids=())):
        completion = bed.run(effect)
        assert (completion.failure, completion.uncertain) == (Failure.OUTAGE, False)
    bed.link(up=True)
    bed.until(lambda: bed.upload(sent).error is None, "the way back")
    assert bed.submit(sent).code == 0
    bed.to_the_end(sent)


def test_input_that_was_changed_is_not_sent(bed: Bed) -> None:
    sent = bed.plan()
    changed = Path(bed.case.folder) / bed.case.files[-1].local
    changed.write_bytes(changed.read_bytes() + b"x")
    completion = bed.upload(sent)
    assert completion.failure is Failure.CASE
    assert completion.error is not None
    assert "has changed since" in completion.error
    assert not bed.exists(f"{bed.case_folder}/input")


def test_another_job_in_the_place_of_ours_is_left_alone(bed: Bed) -> None:
    sent = bed.plan()
    effect = bed.uploading(sent)
    other = replace(effect, files={**effect.files, "chain.json": b"{}\n"})
    assert bed.run(other).error is None
    completion = bed.run(effect)
    assert completion.failure is Failure.TAKEN
    assert "j01" in str(completion.error)


def test_a_job_is_not_sent_where_a_later_one_is_there(bed: Bed) -> None:
    sent = bed.plan()
    effect = bed.uploading(sent)
    later = replace(effect, job_folder=f"{bed.case_folder}/j02")
    assert bed.run(later).error is None
    completion = bed.run(effect)
    assert completion.failure is Failure.TAKEN
    assert "j02" in str(completion.error)
    assert not bed.exists(sent.folder)


def surveyed(bed: Bed) -> CaseRemains:
    effect = Survey(case_id=bed.case.case_id, job_id=f"{bed.case.case_id}-j01", folder=bed.case_folder)
    completion = bed.run(effect)
    assert completion.error is None
    assert isinstance(completion.payload, CaseRemains)
    return completion.payload


def test_a_survey_tells_what_a_case_left(bed: Bed) -> None:
    sent = bed.plan()
    assert bed.upload(sent).error is None
    (before,) = surveyed(bed).jobs
    assert (before.name, before.fault, before.receipts, before.claims) == ("j01", "", {}, ())
    bed.submit(sent)
    bed.to_the_end(sent)
    found = surveyed(bed)
    manifest = format_manifest({file.remote: file.sha256 for file in bed.case.files})
    assert found.input_digest == hashlib.sha256(manifest.encode()).hexdigest()
    (job,) = found.jobs
    sources = bed.uploading(sent).files
    assert set(job.files) == {name for name in sources if not name.endswith((".in", ".pyz"))} | {MANIFEST}
    assert all(job.files[name] == sources[name] for name in job.files if name != MANIFEST)
    ids = {stage: int(text.split()[1]) for stage, text in job.receipts.items()}
    assert ids == {s.stage: s.slurm_id for s in sent.job.submissions}
    beams = [f"claim.beams-{beam.index}" for beam in bed.case.beams]
    assert sorted(job.claims) == sorted([*beams, "claim.interpret-0", "claim.convert-0"])
    assert [one.newest for one in adoption(bed.case, "j01", found)] == [True]


def test_a_survey_tells_what_is_not_as_it_was_sent(bed: Bed) -> None:
    sent = bed.send()
    bed.overwrite(f"{sent.folder}/submit.sh", b"#!/bin/bash\n")
    (job,) = surveyed(bed).jobs
    assert "submit.sh" in job.fault
    bed.remove(f"{sent.folder}/MANIFEST.sha256")
    bed.remove(f"{bed.case_folder}/input/MANIFEST.sha256")
    found = surveyed(bed)
    assert found.input_digest is None
    assert "MANIFEST" in found.jobs[0].fault


def test_results_and_logs_come_home_and_nothing_else_does(bed: Bed) -> None:
    number = bed.case.beams[0].number
    bed.fault(number, "exit 7")
    sent = bed.send()
    bed.to_the_end(sent)
    ids = {s.stage: s.slurm_id for s in sent.job.submissions}
    log = f"logs/beams-{ids['beams']}_0.log"
    effect = bed.downloading(sent, logs=(log, "logs/absent.log"))
    assert len(effect.results) == 2
    home = json.loads(bed.run(effect).output)
    assert [Path(path).name for path in home["files"]] == [result.local for result in effect.results]
    assert [Path(path).stat().st_size for path in home["files"]] == [r.bytes for r in effect.results]
    assert list(home["logs"]) == [log]
    tail = Path(home["logs"][log]).read_bytes()
    assert b"beams" in tail
    assert home["digests"] == {home["logs"][log]: [len(tail), hashlib.sha256(tail).hexdigest()]}

    wrong = replace(effect.results[0], sha256="0" * 64, local="wrong.dcm")
    completion = bed.run(replace(effect, results=(wrong,), logs=()))
    assert completion.failure is Failure.CASE
    assert not (Path(home["files"][0]).parent / "wrong.dcm").exists()
    absent = replace(effect.results[0], remote="results/absent.dcm", local="absent.dcm")
    assert bed.run(replace(effect, results=(absent,), logs=())).failure is Failure.CASE


def test_a_case_is_pruned_when_nothing_of_it_is_in_slurm(bed: Bed) -> None:
    bed.partition("cpu", up=False)
    sent = bed.send()
    kept = bed.run(bed.pruning())
    assert (PruneAnswer.decode(kept.output).outcome, kept.exit_code) == ("kept", 1)
    assert bed.exists(sent.folder)
    bed.cancel(sent, "convert", "beams", "interpret")
    bed.to_the_end(sent)
    bed.partition("cpu", up=True)
    removed = bed.run(bed.pruning())
    assert (PruneAnswer.decode(removed.output).outcome, removed.exit_code) == ("removed", 0)
    assert not bed.exists(bed.case_folder)
    assert PruneAnswer.decode(bed.run(bed.pruning()).output).outcome == "gone"
    logs = bed.downloading(sent, logs=("logs/a.log",))
    assert json.loads(bed.run(logs).output) == {"files": [], "logs": {}, "digests": {}}
    wanted = ResultFile(remote="results/a.dcm", local="a.dcm", bytes=1, sha256="0" * 64)
    assert bed.run(replace(logs, results=(wanted,))).failure is Failure.CASE


# Jobs that are not the first


def resubmitted(bed: Bed, *sents: Sent, convert_only: bool = False) -> Sent:
    """Plan, upload and submit the job that makes good what went wrong in earlier ones."""
    with bed.store.transaction() as unit:
        for sent in sents:
            unit.jobs.put(sent.job.evolve(submit_state=SubmitState.STANDING))
            for task in sent.tasks:
                unit.jobs.put_task(task)
        history = read_history(unit, bed.case.case_id)
        plan = plan_resubmit(bed.case, history, convert_only=convert_only)
        job = bed.jobs.plan(unit, bed.case, plan)
    again = bed.sent(job)
    assert bed.upload(again).error is None
    report = bed.submit(again)
    assert (report.code, tuple(report.receipts)) == (0, plan.stages)
    return again


def test_a_failed_beam_is_computed_again_and_convert_takes_the_others_from_before(bed: Bed) -> None:
    number = bed.case.beams[1].number
    bed.fault(number, "exit 7")
    first = bed.send()
    bed.to_the_end(first)
    bed.fault(number, "none")
    second = resubmitted(bed, first)
    assert second.chain.stages == ("beams", "convert")
    bed.to_the_end(second)
    assert second.states() == {"beam 1": "done", "convert": "done"}
    record = record_of(second, "convert")
    assert isinstance(record, ConvertRecord)
    assert [dose.source_job for dose in record.doses] == ["j01", "j02", "j01"]
    assert record.missing == {}

    third = resubmitted(bed, first, second, convert_only=True)
    assert third.chain.stages == ("convert",)
    bed.to_the_end(third)
    assert third.states() == {"convert": "done"}
    record = record_of(third, "convert")
    assert isinstance(record, ConvertRecord)
    assert [dose.source_job for dose in record.doses] == ["j01", "j02", "j01"]


def test_a_held_array_at_the_head_is_one_job_that_can_be_released(bed: Bed) -> None:
    bed.fault(bed.case.beams[0].number, "exit 7")
    first = bed.send()
    bed.to_the_end(first)
    bed.partition("gpu", up=False)
    second = resubmitted(bed, first)
    bed.seen(second, {"beam 0": "blocked", "convert": "queued"})
    bed.partition("gpu", up=True)
    bed.to_the_end(second)
    assert second.states() == {"beam 0": "failed", "convert": "done"}


def test_convert_waits_for_an_older_array_that_still_runs(bed: Bed) -> None:
    numbers = [beam.number for beam in bed.case.beams]
    bed.fault(numbers[1], "exit 7")
    bed.fault(numbers[2], "hang")
    first = bed.send()
    bed.seen(first, {"beam 0": "done", "beam 1": "failed", "beam 2": "running"})
    bed.cancel(first, "convert")
    bed.seen(first, {"convert": "cancelled"})
    bed.fault(numbers[1], "none")
    second = resubmitted(bed, first)
    bed.seen(second, {"beam 1": "done", "convert": "queued"})
    assert second.task("convert").detail == "Dependency"
    bed.cancel(first, "beams")
    bed.to_the_end(second)
    record = record_of(second, "convert")
    assert isinstance(record, ConvertRecord)
    assert [(dose.index, dose.source_job) for dose in record.doses] == [(0, "j01"), (1, "j02")]
    assert list(record.missing) == ["2"]


# The whole


def test_a_case_is_led_from_folder_to_dose(bed: Bed) -> None:
    said: list[str] = []
    installation = Installation(
        bed.store,
        bed.effects,
        bed.clock,
        bed.renderer,
        workspace=bed.workspace,
        gpu_count=bed.config.resources.gpu_count,
        rhythm=PollRhythm(least=1.0, most=5.0),
        tell=lambda _, text: said.append(text),
    )
    installation.take(bed.case)

    def over() -> bool:
        installation.orchestrator.turn()
        return bed.case.case_id not in installation.scheduler.cases

    bed.until(over, "the case's end")
    report = installation.report(bed.case.case_id)
    assert report.status == "completed", said
    assert [beam.verdict for beam in report.beams] == ["done"] * 3
    assert len(report.results) == 3
    assert all(Path(path).is_file() for path in report.results)


def test_a_case_with_a_failed_interpret_is_led_to_its_end(bed: Bed) -> None:
    installation = Installation(
        bed.store,
        bed.effects,
        bed.clock,
        bed.renderer,
        workspace=bed.workspace,
        gpu_count=bed.config.resources.gpu_count,
        rhythm=PollRhythm(least=1.0, most=5.0),
    )
    bed.partition("cpu", up=False)
    installation.take(bed.case)

    def sent() -> bool:
        installation.orchestrator.turn()
        return installation.report(bed.case.case_id).submission == "standing"

    bed.until(sent, "a chain that stands")
    first = bed.case.beams[0].number
    bed.overwrite(f"{bed.case_folder}/input/beam_{first}/PlanInfo.txt", b"spoilt\n")
    bed.partition("cpu", up=True)

    def over() -> bool:
        installation.orchestrator.turn()
        return bed.case.case_id not in installation.scheduler.cases

    bed.until(over, "the case's end")
    report = installation.report(bed.case.case_id)
    assert report.status == "failed"
    assert [beam.verdict for beam in report.beams] == ["failed (interpret)"] * 3
