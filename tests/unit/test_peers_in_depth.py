"""R1-R39 beyond the first test of each (test_peers.py): real scripts, restarts, every witness, rubbish."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core import failpoints
from mqi_hpc.core.causes import Cause
from mqi_hpc.core.effects import Cancel, Download, Failure, JobQuery, Observe, Submit, Upload
from mqi_hpc.core.errors import ResourceError
from mqi_hpc.core.failpoints import Failpoint
from mqi_hpc.core.models import InputFile, Job, SubmitState, TaskStatus, TaskType
from mqi_hpc.core.observation import (
    MARK,
    parse_squeue,
)
from mqi_hpc.core.orphans import find_orphans, left, targets
from mqi_hpc.core.readings import Accounting, Limits, Reading, Timer
from mqi_hpc.core.requests import Verb
from mqi_hpc.core.retry_causes import Asked, RetryTable, Rule
from mqi_hpc.core.sbatch_errors import ErrorKind, classify
from mqi_hpc.core.submission import parse_submit
from mqi_hpc.core.verdicts import judge
from mqi_hpc.domain import watcher
from mqi_hpc.domain.evidence import read_evidence
from mqi_hpc.domain.polls import SWEEP_SECONDS
from mqi_hpc.domain.reconciler import Reconciler, Reconciliation
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.doctor import look_at_cluster
from mqi_hpc.infrastructure.executors.control import Control
from mqi_hpc.infrastructure.executors.local import LocalExecutor
from mqi_hpc.infrastructure.executors.upload import Uploader
from mqi_hpc.infrastructure.intake import write_sample_case
from mqi_hpc.main import run
from mqi_hpc.records.chain import decode_chain
from mqi_hpc.stages.errors import describe
from tests.support.bench import KEY, Bench
from tests.support.floor import Floor
from tests.support.simulation.beds import simulated_bed
from tests.support.simulation.jobs import Site as ClusterSite
from tests.support.simulation.observe import squeue
from tests.unit.test_doctor import FAKES, FakeSlurm
from tests.unit.test_protocol_scripts import Site
from tests.unit.test_service import write

ONCE = ["beams 0", "beams 1", "beams 2", "convert None", "interpret None"]
RETRIES = RetryTable(
    most=3,
    rules={
        Cause.NODE_FAIL: Rule(most=3, pauses=(60.0, 300.0, 1200.0), leave_out=3600.0),
        Cause.GPU_CHECK: Rule(most=3, pauses=(60.0, 300.0, 1200.0), leave_out=3600.0),
        Cause.PREEMPTED: Rule(most=20, pauses=(60.0, 300.0, 1200.0), counted=False),
        Cause.OUT_OF_MEMORY: Rule(most=3, pauses=(60.0,), factor=1.5, maximum=8192),
    },
    asked={stage: Asked(4096, 3600) for stage in ("interpret", "beams", "convert")},
)


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with simulated_bed(tmp_path, ClusterSite(version="24.11", min_job_age=1e9)) as bed:
        yield Floor(bed, retries=RETRIES)


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[Floor]:
    """A slurmctld that forgets at once, and accounting that hears of it only five minutes later."""
    with simulated_bed(tmp_path, ClusterSite(min_job_age=1.0, accounting_lag=300.0)) as bed:
        yield Floor(bed)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.begin()
    made.until_sent()
    return made


def pass_time(floor: Floor, seconds: float) -> None:
    end = floor.bed.clock.monotonic() + seconds
    while floor.bed.clock.monotonic() < end:
        floor.turns(1)


def took_effect(floor: Floor) -> list[str]:
    """Tasks of the case that ended well in Slurm, by stage and index."""
    return sorted(
        f"{job.request.name.rsplit('-', 1)[-1]} {index}"
        for job in floor.sim.slurm.jobs.values()
        for index, element in job.elements.items()
        if element.word == "COMPLETED" and f"-{floor.case.case_id}-" in job.request.name
    )


def phases(floor: Floor) -> list[str]:
    """Every phase that a beam has come to, in order."""
    return [
        event["data"]["phase"]
        for event in floor.events()
        if event["kind"] == "task" and "/beam_calc" in event["data"]["task"]
    ]


def finish(bench: Bench) -> None:
    bench.interpret_done()
    bench.beam_done(0)
    bench.beam_done(1)
    bench.convert_done(0, 1)
    bench.exits(("interpret", 0, 0), ("beams", 0, 0), ("beams", 1, 0), ("convert", 0, 0))


def beam(bench: Bench, index: int = 0) -> tuple[TaskStatus, str]:
    task = bench.task(TaskType.BEAM_CALC, index)
    return task.status, task.phase


# Submission


@pytest.mark.parametrize("words", ["Socket timed out on send/recv operation", "Zero Bytes were transmitted"])
def test_r01_an_ambiguous_sbatch_is_not_a_failure(site: Site, words: str) -> None:
    """sbatch made the job, then said that it failed: not refused, and one chain in the end."""
    site.slurm.fails("sbatch", 1, f"sbatch: error: Batch job submission failed: {words}\n", when="after")
    report = site.submit()
    assert report.failed is not None
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.UNKNOWN
    assert site.submit("n2").code == 0
    # What was accepted unseen is held for ever under no receipt: it never runs beside the chain.
    ghost = site.jobs[16]
    assert (ghost["reason"], ghost.get("released")) == ("JobHeldUser", None)
    assert sorted(site.receipts().values()) == [17, 18, 19]


def test_r01_one_chain_however_often_the_daemon_is_restarted_in_doubt(floor: Floor) -> None:
    floor.sim.link.lose_replies = [Submit, Submit]
    floor.sim.link.cut_submit = "receipt interpret"
    floor.take()
    floor.until(lambda: floor.jobs()[-1].submit_state is SubmitState.AMBIGUOUS)
    for _ in range(8):
        pass_time(floor, 60.0)
        floor.sim.close()
        floor.restart()
        floor.home.orchestrator.process_case(floor.case.case_id)
        assert not any(task.status.terminal for task in floor.tasks() if task.type is TaskType.BEAM_CALC)
    floor.until("completed")
    pass_time(floor, 1800.0)
    assert took_effect(floor) == ONCE
    assert not [job for job in floor.sim.slurm.jobs.values() if job.live]


class Killed(BaseException):
    """The program has ended here."""


@pytest.mark.parametrize(
    "point",
    [
        Failpoint.PLAN_KEPT,
        Failpoint.UPLOAD_DONE,
        Failpoint.SUBMIT,
        Failpoint.SUBMIT_KEPT,
        Failpoint.SUBMIT_ANSWERED,
        Failpoint.STANDING_KEPT,
    ],
)
def test_r02_a_death_between_sbatch_and_commit_submits_nothing_twice(floor: Floor, point: Failpoint) -> None:
    def die(reached: Failpoint) -> None:
        if reached is point:
            failpoints.install(None)
            raise Killed

    failpoints.install(die)
    try:
        with pytest.raises(Killed):
            floor.take()
            floor.until("completed")
    finally:
        failpoints.install(None)
    floor.sim.close()
    floor.restart()
    floor.home.orchestrator.process_case(floor.case.case_id)
    floor.until("completed")
    assert took_effect(floor) == ONCE
    assert floor.sim.slurm.accepted == 3


def test_r03_the_id_is_read_strictly_out_of_any_noise(site: Site) -> None:
    """A banner's "Stampede3", a federation's `16;cluster`, a login's own numbers: none is taken for an id."""
    site.slurm.set(noise="Welcome to Stampede3\n12\nSubmitted batch job 9\n")
    assert site.submit().code == 0
    assert sorted(site.receipts().values()) == [16, 17, 18]
    own = f"{MARK}n1 "
    name = site.names["interpret"]
    ours, others = f"{own}RECEIPT interpret {name} 7 1\n", f"{MARK}n0 RECEIPT beams {name} 8 1\n"
    noisy = f"3\n{ours}{others}RECEIPT convert {name} 9 1\n"
    assert {s: r.id for s, r in parse_submit(noisy, "n1").receipts.items()} == {"interpret": 7}
    assert parse_submit(f"{own}RECEIPT interpret {name} 7x 1\n", "n1").receipts == {}
    # No line that is an id alone: nothing is guessed, and it may have been accepted.
    (site.job / "receipt.convert").unlink()
    site.slurm.path.joinpath("sbatch").write_text("#!/bin/sh\necho 'Submitted batch job 55 on cluster 3'\n")
    for job in site.slurm.jobs:
        site.slurm.change(job["id"], state="PENDING", reason="JobHeldUser")
    report = site.submit("n2")
    assert report.failed is not None
    assert (report.failed.stage, report.failed.exit_code) == ("convert", 0)
    assert classify(report.failed.lines, 0).kind is ErrorKind.UNKNOWN


HOSTILE = {
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_JOB_ID": "4",
    "SBATCH_EXPORT": "ALL",
    "SBATCH_REQUEUE": "1",
    "SQUEUE_FORMAT": "%i",
    "SQUEUE_SORT": "-i",
    "SACCT_FORMAT": "jobid",
}


def test_r05_what_the_submitters_environment_holds_reaches_no_job(site: Site) -> None:
    assert site.submit(**HOSTILE).code == 0
    site.observe(sacct=(16,), **HOSTILE)
    for program in ("sbatch", "squeue", "sacct"):
        for arguments, environment in site.slurm.calls(program):
            assert not set(environment) & set(HOSTILE)
            assert program != "sbatch" or {"--export=NONE", "--no-requeue"} <= set(arguments)


def test_r05_nor_does_it_reach_what_runs_on_the_node(site: Site, tmp_path: Path) -> None:
    """As the job's own script sees it, whatever the account's login there exports for another's sake."""
    python = site.slurm.path / "python3"
    python.write_text(f"#!/bin/sh\nenv >{tmp_path}/seen\n")
    python.chmod(0o700)
    mine = {"SLURM_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "0", "CUDA_VISIBLE_DEVICES": "0"}
    done = site.slurm.run(site.job / "beams.sbatch", **{**HOSTILE, **mine})
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert mine.items() <= seen.items()
    assert not {"SLURM_CPU_BIND", "SBATCH_EXPORT", "SBATCH_REQUEUE"} & set(seen)
    assert seen["SLURM_EXPORT_ENV"] == "ALL"


@pytest.fixture
def shell() -> Iterator[LocalExecutor]:
    executor = LocalExecutor()
    yield executor
    executor.close()


class Workspace:
    """Uploads of a case of one file, by production's own scripts, run here."""

    def __init__(self, home: Path, shell: LocalExecutor) -> None:
        self.root, self.source, self.shell = home / "ws", home / "case", shell
        self.source.mkdir()
        (self.source / "plan.dcm").write_bytes(b"x" * 100)

    def upload(self, job: str, *, least: float = 0) -> dict[str, int]:
        plan = InputFile(
            remote="plan.dcm", local="plan.dcm", bytes=100, sha256=hashlib.sha256(b"x" * 100).hexdigest()
        )
        case = f"{self.root}/{KEY}"
        effect = Upload(
            case_id=KEY,
            job_id=f"{KEY}-{job}",
            source=str(self.source),
            input_folder=f"{case}/input",
            inputs=(plan,),
            job_folder=f"{case}/{job}",
            files={"chain.json": job.encode()},
        )
        workspace = str(self.root)
        uploader = Uploader(self.shell, workspace=workspace, instance="i1", min_free_bytes=least, timeout=60)
        return uploader.upload(effect)

    def there(self) -> list[str]:
        return sorted(path.name for path in (self.root / KEY).iterdir())


@pytest.fixture
def workspace(tmp_path: Path, shell: LocalExecutor) -> Workspace:
    return Workspace(tmp_path, shell)


def test_r06_space_is_asked_for_before_every_job_and_it_is_said_what_to_do(workspace: Workspace) -> None:
    """Before the first, and before a resubmit or a retry, whose input lies there already."""
    with pytest.raises(ResourceError, match="are needed"):
        workspace.upload("j01", least=1e18)
    assert workspace.there() == []
    assert workspace.upload("j01")["sent_files"] == 2
    with pytest.raises(ResourceError, match="Make room there"):
        workspace.upload("j02", least=1e18)
    assert workspace.there() == ["input", "j01"]


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("Over block quota on {device}", True),
        ("File limit reached on {device}", True),
        ("Block limit reached on {device}2", False),
        ("In block grace period on {device}", False),
        ("Over block quota on server:/elsewhere", False),
    ],
)
def test_r06_over_its_quota_nothing_is_sent(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, refused: bool
) -> None:
    """The jobs of who is over quota hang, or lose what they write, and there is no error of Slurm's."""
    df = subprocess.run(["df", "-Pk", tmp_path], capture_output=True, text=True, check=True).stdout
    said = words.format(device=df.splitlines()[-1].split()[0])
    (tmp_path / "bin").mkdir()
    quota = tmp_path / "bin" / "quota"
    quota.write_text(f"#!/bin/sh\necho 'Disk quotas for user mqi:'\necho '\t{said}'\nexit 1\n")
    quota.chmod(0o700)
    monkeypatch.setenv("PATH", f"{quota.parent}:{os.environ['PATH']}")
    if refused:
        with pytest.raises(ResourceError, match="ask for a larger quota") as caught:
            workspace.upload("j01")
        assert said in str(caught.value)
        assert workspace.there() == []
    else:
        assert workspace.upload("j01")["sent_files"] == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_r06_a_stage_on_a_full_disk_or_over_quota_says_what_to_do(number: int) -> None:
    code, said = describe(OSError(number, "No room", "/ws/k/j01/dose"))
    assert code == 74
    assert "free space or quota on the cluster, then resubmit" in said


def test_r06_a_full_cluster_asks_a_person_and_loses_nothing(bench: Bench, floor: Floor) -> None:
    """Also before a retry: nothing of it is submitted while there is no room for what it writes."""
    made = Bench()
    made.begin()
    for _ in range(3):
        made.world.fail(Upload, Failure.SPACE, "1 GB are free on the cluster, 20 GB are needed")
    made.turn(3)
    assert made.task(TaskType.UPLOAD).phase == "no space"
    assert "20 GB are needed" in str(made.report.attention)
    assert not made.world.started(Submit)
    made.until_sent()
    floor.take()
    floor.until(lambda: floor.beams() == ["running"] * 3)
    floor.sim.files.free_bytes = 0
    floor.sim.slurm.end("PREEMPTED")
    report = floor.until(lambda: floor.report().attention is not None)
    assert "space" in str(report.attention)
    pass_time(floor, 3600.0)
    assert len(floor.port.of(Submit)) == 1
    floor.sim.files.free_bytes = 10**15
    floor.until("completed")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(fake.folder))
    return fake


def rehearsed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], **sections: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """What `submit --dry-run` says of a sample case of two beams."""
    if not (tmp_path / "cases").exists():
        (tmp_path / "cases").mkdir()
        write_sample_case(tmp_path / "cases" / "P001", beams=2, layers=2)
    config = write(tmp_path / "config.yaml", slurm={"partition": "gpu"}, **sections)
    words = ["--config", str(config), "submit", str(tmp_path / "cases" / "P001"), "--dry-run"]
    code = run([*words, "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert run(words) == code
    assert "Nothing was submitted" in capsys.readouterr().out
    return code, answer


def test_r07_slurm_is_asked_before_queue_time_is_spent(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage as it would be submitted: with its own options and its own script, and nothing is kept."""
    slurm.replace(
        "sbatch", FAKES["sbatch"].replace("*--test-only*) ", '*--test-only*) cat >>"$FAKE/tried"; ')
    )
    code, found = rehearsed(tmp_path, capsys)
    (case,) = found["cases"]
    assert (code, found["rejected"], case["label"]) == (0, [], "P001-f01")
    assert [(one["stage"], one["tasks"], one["cure"]) for one in case["stages"]] == [
        ("interpret", 1, ""),
        ("beams", 2, ""),
        ("convert", 1, ""),
    ]
    assert case["stages"][1]["found"] == "sbatch: Job 5 to start at now"
    tried = slurm.calls("sbatch")[:3]
    assert all(line.startswith("--test-only") for line in slurm.calls("sbatch"))
    assert "--array=0-1%2" in tried[1]
    assert f"--job-name={case['stages'][1]['name']}" in tried[1]
    assert f"stages.pyz beams --job-dir {case['job_folder']}" in (slurm.folder / "tried").read_text()
    assert not (tmp_path / "work").exists()
    assert run(["--config", str(tmp_path / "config.yaml"), "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cases": []}


def test_r07_what_slurm_refuses_is_said_in_its_own_words(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "allocation failure: Invalid generic resource (gres) specification"
    slurm.replace("sbatch", f"case $* in *--gres*) echo '{words}' >&2; exit 1 ;; esac")
    code, found = rehearsed(tmp_path, capsys)
    (case,) = found["cases"]
    assert code == 1
    assert [bool(one["cure"]) for one in case["stages"]] == [False, True, False]
    assert words in case["stages"][1]["found"]
    (tmp_path / "empty").mkdir()
    config = str(tmp_path / "config.yaml")
    assert run(["--config", config, "submit", str(tmp_path / "empty"), "--dry-run"]) == 1
    assert "rejected" in capsys.readouterr().err
    assert run(["--config", config, "submit", str(tmp_path), "--dry-run", "--wait"]) == 2


def test_r07_doctor_asks_it_too(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    slurm.replace("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    (tmp_path / "cases").mkdir()
    config = ConfigLoader().load(write(tmp_path / "config.yaml", slurm={"partition": "gpu"}))
    found = {finding.check: finding for finding in look_at_cluster(shell, config, None)}
    assert "invalid partition specified" in found["sbatch (beams)"].found


# Observation


def test_r08_absence_is_not_completion(forgetful: Floor) -> None:
    """Neither queue nor accounting knows the beams for minutes: no end, no second submission, then done."""
    forgetful.take()
    forgetful.until("completed")
    assert "settling" in phases(forgetful)
    assert not {"lost", "failed"} & set(phases(forgetful))
    assert forgetful.sim.slurm.accepted == 3


@pytest.mark.parametrize("accounting", list(Accounting))
def test_r08_nothing_anywhere_is_never_success(accounting: Accounting) -> None:
    absent = Reading(queue_good=True, accounting=accounting)
    timer, ended = Timer(), []
    for _ in range(400):
        verdict = judge(absent, timer, 30.0, Limits())
        timer = verdict.timer
        ended.append((timer.waited, verdict.status))
        if verdict.final:
            break
    assert all(status is TaskStatus.RUNNING for waited, status in ended if waited < Limits().lag)
    assert ended[-1][1] is (TaskStatus.RUNNING if accounting is Accounting.DOWN else TaskStatus.LOST)


@pytest.mark.parametrize("section", ["squeue", "sacct", "record", "status", "listing"])
@pytest.mark.parametrize("broken", ["error", "cut short"])
def test_r09_an_error_is_not_an_empty_answer(bench: Bench, section: str, broken: str) -> None:
    """The beam has ended well. Whichever witness fails, it is not judged, for hours; then it is done."""
    finish(bench)
    for row in bench.world.rows:
        row.queued = False
    ref = {"record": f"record:{KEY}-j01/beam_calc-0", "listing": f"listing:{KEY}-j01/beam_calc-0"}
    name = ref.get(section, f"status:{KEY}-j01" if section == "status" else section)
    kept = bench.world.sections.get(name)
    if broken == "error":
        bench.world.sections[name] = ("", 1)
    else:
        bench.world.dead_sections = {name}
    # Without accounting, two witnesses that agree are enough after a while: then let the record be missing.
    if section == "sacct":
        bench.exits(("interpret", 0, 0), ("beams", 1, 0), ("convert", 0, 0))
    bench.turn(1000)
    assert not bench.task(TaskType.BEAM_CALC).status.terminal
    assert bench.report.status == "processing"
    bench.world.dead_sections = set()
    bench.world.sections.pop(name, None)
    if kept is not None:
        bench.world.sections[name] = kept
    bench.exits(("interpret", 0, 0), ("beams", 0, 0), ("beams", 1, 0), ("convert", 0, 0))
    bench.until("completed")


def test_r10_an_accounting_that_is_down_for_hours_fails_nothing(tmp_path: Path) -> None:
    with simulated_bed(tmp_path, ClusterSite(min_job_age=1.0)) as bed:
        floor = Floor(bed)
        bed.accounting(up=False)
        floor.bed.fault(floor.case.beams[1].number, "exit 7")
        floor.take()
        floor.until(lambda: floor.beams()[0] == "done")
        pass_time(floor, 6 * 3600.0)
        # Record and exit record agree of two, which is noted; of the third, only accounting can tell.
        assert floor.beams() == ["done", "waiting", "done"]
        assert "without accounting" in next(t.noted for t in floor.tasks() if t.phase == "done" and t.noted)
        assert floor.report().attention is not None
        bed.accounting(up=True)
        report = floor.until("partial")
        assert [one.verdict for one in report.beams] == ["done", "failed", "done"]


def test_r12_a_job_of_ours_under_a_recycled_id_keeps_its_own_end(floor: Floor) -> None:
    """The controller forgets a whole chain before anybody saw it run, and gives its ids to another case."""
    (other,) = floor.more(1)
    floor.take()
    floor.until(lambda: floor.report().submission == "standing")
    lost = list(floor.sim.slurm.jobs)
    for number in lost:
        del floor.sim.slurm.jobs[number]
        floor.sim.slurm.accounting.forget(number)
    floor.sim.slurm._last = min(lost) - 1
    floor.take(other)
    floor.until(lambda: floor.report(other.case_id).status == "completed")
    assert set(lost) <= set(floor.sim.slurm.jobs)
    assert took_effect(floor) == []
    assert not any(task.status is TaskStatus.COMPLETED for task in floor.tasks() if task.type == "beam_calc")


def test_r13_what_the_queue_shows_again_outweighs_an_older_end_in_accounting(bench: Bench) -> None:
    """Asked because of a sibling, accounting tells of the preemption for as long as the job lives again."""
    again, sibling = (r for r in bench.world.rows if r.name.endswith("beams"))
    bench.world.rows.append(replace(again, word="PREEMPTED", queued=False))
    again.word, again.reason, sibling.queued = "PENDING", "BeginTime", False
    bench.turn(400)
    assert any(look.sacct_ids for look in bench.world.started(Observe) if isinstance(look, Observe))
    assert beam(bench) == (TaskStatus.RUNNING, "queued")


def test_r13_preempted_for_good_is_waited_for_no_longer_than_its_absence_lasts(floor: Floor) -> None:
    """PreemptMode=CANCEL: it never comes back. Bounded absence ends it, and it is retried, uncounted."""
    floor.take()
    floor.until(lambda: floor.beams() == ["running"] * 3)
    began = floor.bed.clock.monotonic()
    floor.sim.slurm.end("PREEMPTED")
    floor.until(lambda: all(phase.startswith("failed") for phase in floor.beams()))
    assert floor.bed.clock.monotonic() - began < 300
    assert all(task.retry and not task.retry.counted for task in floor.tasks() if task.type == "beam_calc")
    floor.until("completed")
    assert len(floor.jobs()) == 2


def test_r17_the_numbers_of_a_running_row_are_not_taken(bench: Bench) -> None:
    """sacct shows ExitCode 0:0 of what runs: it is in no queue for a while, and its record is there early."""
    bench.interpret_done()
    bench.beam_done(0)
    bench.exits(("interpret", 0, 0))
    for row in bench.world.rows:
        row.queued = row.task is None
        if row.task is not None:
            row.word, row.exit_code = "RUNNING", "0:0"
    bench.turn(12)
    task = bench.task(TaskType.BEAM_CALC)
    assert (task.status, task.slurm_exit) == (TaskStatus.RUNNING, "")
    for row in bench.world.rows:
        row.queued = True
    bench.turn(3)
    assert beam(bench) == (TaskStatus.RUNNING, "running")


def test_r18_epoch_seconds_are_asked_for_whatever_the_login_sets(site: Site) -> None:
    site.observe(sacct=(16,), TZ="Asia/Seoul", SLURM_TIME_FORMAT="relative")
    for program in ("squeue", "sacct"):
        ((_, environment),) = site.slurm.calls(program)
        assert environment["SLURM_TIME_FORMAT"] == "%s"
    script = (site.job / "observe.sh").read_text()
    assert "TZ=UTC" in script


@pytest.mark.parametrize("queued", [True, False])
def test_r19_an_unknown_state_is_a_value_and_its_line_is_kept(bench: Bench, queued: bool) -> None:
    finish(bench)
    row = next(r for r in bench.world.rows if r.name.endswith("beams") and r.task == 0)
    row.word, row.queued = "COMPLETININVALID", queued
    bench.turn(300)
    status, phase = beam(bench)
    assert status is (TaskStatus.RUNNING if queued else TaskStatus.SUSPECT)
    assert phase == ("unknown" if queued else "suspect")
    assert bench.report.attention is not None
    told: list[Any] = [event["evidence"] for event in bench.events("task") if "evidence" in event]
    lines = [line for said in told for line in (said["queue"] or []) + (said["accounting"] or [])]
    assert any("|COMPLETININVALID|" in line for line in lines)


class Remembering:
    """This machine's shell, which notes the words of each command and how many bytes it was fed."""

    target = "this machine"

    def __init__(self, shell: LocalExecutor) -> None:
        self._shell = shell
        self.words: list[str] = []
        self.fed = 0

    def run(self, argv: list[str], *, stdin: Any = (), **more: Any) -> Any:
        chunks = list(stdin)
        self.words += argv
        self.fed += sum(map(len, chunks))
        return self._shell.run(argv, stdin=chunks, **more)


def test_r20_a_look_at_hundreds_of_jobs_fits_every_command_line(
    site: Site, shell: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script goes over stdin; no program that it starts is given more words than Linux takes."""
    seen = site.slurm.home / "seen"
    timeout = site.slurm.path / "timeout"
    # Each job is looked at in a process of its own: that it can be started is what is asked here.
    timeout.write_text(
        f'#!/bin/sh\ncase "$4$5" in bash-c) echo $# >>{seen} ;; *) exec /usr/bin/timeout "$@" ;; esac\n'
    )
    timeout.chmod(0o700)
    for name, value in site.slurm.environment().items():
        monkeypatch.setenv(name, value)
    queries = tuple(
        JobQuery(
            ref=f"{n:012d}-j01",
            folder=f"{site.job.parent}/{'f' * 60}{n}",
            records=tuple((f"{n:012d}-j01/beam_calc-{b}", f"dose/beam_{b}") for b in range(20)),
        )
        for n in range(400)
    )
    ids = tuple(range(10_000_000, 10_001_200))
    remembering = Remembering(shell)
    control = Control(remembering, site.renderer, submit_timeout=60, command_timeout=60)  # type: ignore[arg-type]
    done = control.observe(Observe(nonce="n", jobs=queries, sacct_ids=ids))
    assert (done.error, done.exit_code) == (None, 0)
    assert remembering.words == ["bash", "-s"]
    assert remembering.fed > 128 * 1024
    ((arguments, _),) = site.slurm.calls("sacct")
    assert max(map(len, arguments)) < 128 * 1024
    assert len(site.slurm.calls("squeue")) == 1
    assert seen.read_text().split() == [str(9 + 2 * 20)] * 400


# Files


def test_r31_a_record_that_is_seen_late_is_settling_and_no_failure(bench: Bench) -> None:
    finish(bench)
    ref = f"{KEY}-j01/beam_calc-0"
    late = {name: bench.world.sections.pop(f"{name}:{ref}") for name in ("record", "listing")}
    bench.turn(6)
    assert beam(bench) == (TaskStatus.RUNNING, "settling")
    # Then half of it, as a file system shows it while it is written.
    bench.world.sections[f"record:{ref}"] = (late["record"][0][:40], 0)
    bench.world.sections[f"listing:{ref}"] = late["listing"]
    bench.turn(2)
    assert beam(bench) == (TaskStatus.RUNNING, "settling")
    bench.world.sections |= {f"{name}:{ref}": section for name, section in late.items()}
    bench.until("completed")


def test_r32_to_fetch_again_touches_no_slurm(floor: Floor) -> None:
    floor.take()
    report = floor.until("completed")
    gone = Path(report.results[0])
    content = gone.read_bytes()
    gone.unlink()
    slurm, accepted = list(floor.sim.slurm.jobs), floor.sim.slurm.accepted
    begun = len(floor.port.started)
    floor.sim.slurm.stop()
    floor.order(Verb.FETCH)
    floor.until(gone.exists)
    assert gone.read_bytes() == content
    kinds = {type(effect) for _, effect in floor.port.started[begun:]}
    assert kinds == {Download}
    assert (list(floor.sim.slurm.jobs), floor.sim.slurm.accepted) == (slurm, accepted)


# Chain, retry, cancel


def test_r33_dependants_that_can_never_run_are_cancelled_and_chained_anew(floor: Floor) -> None:
    floor.sim.script.stages["interpret"] = "exit 1"
    floor.take()
    floor.until("failed")
    floor.until(lambda: not [job for job in floor.sim.slurm.jobs.values() if job.live])
    (cancel,) = (effect for effect in floor.port.of(Cancel) if isinstance(effect, Cancel))
    # Convert first: with the array gone, its `afterany` would let it run.
    assert [name.rsplit("-", 1)[-1] for name, _ in cancel.targets] == ["convert", "beams"]
    floor.sim.script.stages.clear()
    floor.order(Verb.RESUBMIT)
    floor.until("completed")
    jobs = {job.request.name: job for job in floor.sim.slurm.jobs.values()}
    new = {name.rsplit("-", 1)[-1]: job.id for name, job in jobs.items() if "-j02-" in name}
    waits = {name.rsplit("-", 1)[-1]: job.request.waits for name, job in jobs.items() if "-j02-" in name}
    assert waits["beams"] == (("afterok", new["interpret"]),)
    assert waits["convert"] == (("afterany", new["beams"]),)


def chain_of(floor: Floor, job: str) -> Any:
    with floor.bed.store.transaction(write=False) as unit:
        return decode_chain(unit.jobs.files(f"{floor.case.case_id}-{job}")["chain.json"].decode())


def test_r34_a_beam_goes_again_beside_its_running_siblings_as_the_same_beam(floor: Floor) -> None:
    """The same index and the same seed, in a folder of its own; nobody waits for it, or is disturbed."""
    number = floor.case.beams[1].number
    floor.bed.fault(number, "exit 7")
    floor.bed.fault(floor.case.beams[0].number, "hang")
    floor.take()
    floor.until(lambda: floor.beams() == ["running", "failed", "done"])
    floor.bed.fault(number, "none")
    floor.order(Verb.RESUBMIT, beams=(number,))
    floor.until(lambda: floor.beams()[1] == "done")
    assert floor.beams()[0] == "running"
    assert floor.in_slurm()["j02-beams"] == ["1"]
    first, second = chain_of(floor, "j01"), chain_of(floor, "j02")
    same = [(one.index, one.number, one.seed, one.input_digest) for one in first.beams]
    assert [(one.index, one.number, one.seed, one.input_digest) for one in second.beams] == same
    assert f"{floor.case.case_id}/j02" in next(
        job.request.folder for job in floor.sim.slurm.jobs.values() if "-j02-beams" in job.request.name
    )


def test_r36_a_bad_node_is_left_out_for_a_while_and_not_for_ever(floor: Floor) -> None:
    floor.sim.script.bad_nodes = {"g1"}
    floor.take()
    floor.until("completed")
    assert [job.left_out for job in floor.jobs()] == [(), ("g1",)]
    floor.sim.script.bad_nodes = set()
    pass_time(floor, 3600.0)
    (other,) = floor.more(1)
    floor.take(other)
    floor.until(lambda: floor.report(other.case_id).status == "completed")
    with floor.bed.store.transaction(write=False) as unit:
        assert [job.left_out for job in unit.jobs.of_case(other.case_id)] == [()]


def test_r37_what_the_store_does_not_know_is_an_orphan_and_gone_is_what_the_queue_says(floor: Floor) -> None:
    floor.take()
    floor.until(lambda: floor.beams() == ["running"] * 3)

    def rows() -> Any:
        return parse_squeue(squeue(floor.sim.slurm.shown(), floor.sim.slurm.site))

    known = {floor.case.case_id: floor.history()}
    assert find_orphans("i1", known, before=rows(), after=rows(), folders=()).orphans == ()
    lost = find_orphans("i1", {}, before=rows(), after=rows(), folders=[floor.case.case_id])
    chosen = targets(lost.orphans)
    assert [name.rsplit("-", 1)[-1] for name, _ in chosen] == ["convert", "beams"]
    # scancel returned, and the queue shows them still: they are there.
    assert left(chosen, rows()) == chosen
    for name, slurm_id in chosen:
        floor.sim.slurm.scancel(name, slurm_id)
    assert left(chosen, rows()) == ()


RUBBISH: dict[str, bytes] = {
    "nothing": b"",
    "bytes": bytes(range(256)) * 20,
    "a line end": b"\n\n\n",
    "a number without end": b"1" * 5000 + b" x 1\n",
    "another's number": "١٢٣ x\n²³ y\n".encode(),
    "a huge exit code": (
        b'{"event":"exited","exit_code":1%s,"index":0,"node":"g1","restart":1%s,"slurm_id":1%s,'
        b'"stage":"beams","text":"","time":1.0}\n' % (b"0" * 300, b"0" * 300, b"0" * 300)
    ),
    "deep": b"[" * 100_000,
    "another form": b'{"version": 1, "stage": "beams", "run": []}\n',
    "a surrogate": b'{"stage": "\\ud800", "index": 1e999, "event": null}\n',
    "our mark": MARK.encode() + b"n1 END squeue 0\n" + MARK.encode() + b"n2 BEGIN squeue\n",
}


@pytest.mark.parametrize("kind", RUBBISH)
@pytest.mark.parametrize("section", ["receipts", "status", "record", "listing"])
def test_r38_rubbish_of_any_kind_in_a_section_is_no_exception(bench: Bench, section: str, kind: str) -> None:
    finish(bench)
    ref = f"{KEY}-j01" if section in ("receipts", "status") else f"{KEY}-j01/beam_calc-0"
    bench.world.sections[f"{section}:{ref}"] = (RUBBISH[kind].decode("utf-8", "replace"), 0)
    bench.turn(60)
    assert beam(bench, 1) == (TaskStatus.COMPLETED, "done") or section in ("status", "receipts")
    assert section in ("receipts", "status") or beam(bench)[0] is not TaskStatus.COMPLETED
    assert not any("a fault of this program" in text for text in bench.said)


@pytest.mark.parametrize("kind", RUBBISH)
def test_r38_rubbish_for_receipts_of_a_chain_in_doubt_is_no_exception(kind: str) -> None:
    bench = Bench()
    bench.begin()
    bench.world.fail(Submit, Failure.OUTAGE, "the link broke", uncertain=True)
    for stage in ("", "interpret ", "claimed "):
        bench.world.sections[f"receipts:{KEY}-j01"] = (stage + RUBBISH[kind].decode("utf-8", "replace"), 0)
        bench.turn(60)
    assert bench.report.submission in ("ambiguous", "burnt", "standing")
    assert not any("a fault of this program" in text for text in bench.said)


@given(st.dictionaries(st.sampled_from(["receipts:k", "status:k", "record:k", "listing:k"]), st.text()))
def test_r38_no_text_of_a_case_makes_its_evidence_raise(texts: dict[str, str]) -> None:
    framed = "".join(f"{MARK}n BEGIN {name}\n{text}\n{MARK}n END {name} 0\n" for name, text in texts.items())
    whole = f"{MARK}n BEGIN squeue\n\n{MARK}n END squeue 0\n{framed}"
    evidence = read_evidence(whole, "n", asked=False, accounting="auto")
    evidence.receipts("k"), evidence.claims("k"), evidence.status("k"), evidence.listing("k")
    assert evidence.queue == ()
    assert all(section.text == texts[name] for name, section in evidence.sections.items() if name in texts)


@pytest.mark.parametrize("kind", RUBBISH)
def test_r38_a_case_whose_files_are_rubbish_holds_up_no_other(floor: Floor, kind: str) -> None:
    (other,) = floor.more(1)
    floor.take()
    floor.take(other)
    floor.until(lambda: floor.beams() == ["running"] * 3)
    for name in floor.sim.files.names(f"{floor.bed.case_folder}/j01"):
        if name.startswith(("receipt.", "claim.")):
            floor.bed.overwrite(f"{floor.bed.case_folder}/j01/{name}", RUBBISH[kind])
    for path in ("status/interpret-0.jsonl", "status/beams-0.jsonl", "interpreted/result.json"):
        floor.bed.overwrite(f"{floor.bed.case_folder}/j01/{path}", RUBBISH[kind])
    floor.until(lambda: floor.report(other.case_id).status == "completed")
    floor.turns(100)
    assert floor.report().status != "completed"
    assert not any("a fault of this program" in text for text in floor.said)


def test_r38_an_error_over_one_case_is_told_and_the_others_are_led_on(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other,) = floor.more(1)
    floor.take()
    floor.take(other)
    floor.until(lambda: floor.beams() == ["running"] * 3)
    whole = Reconciler.reconcile

    def reconcile(self: Reconciler, job: Job, *rest: Any) -> Reconciliation:
        if job.case_id == floor.case.case_id:
            raise ZeroDivisionError("by chance")
        return whole(self, job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Reconciler, "reconcile", reconcile)
        floor.until(lambda: floor.report(other.case_id).status == "completed")
        floor.turns(50)
        assert "ZeroDivisionError: by chance" in str(floor.report().attention)
        assert sum("ZeroDivisionError" in text for text in floor.said) == 1
        assert floor.report().status == "processing"
    report = floor.until("completed")
    assert report.attention is None


def test_r38_an_error_over_what_is_over_stops_nothing_either(
    forgetful: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case that was judged without accounting is looked back at, when accounting answers again."""

    def look_back(*_: object) -> None:
        raise ZeroDivisionError("by chance")

    forgetful.bed.accounting(up=False)
    forgetful.take()
    forgetful.until("completed")
    with monkeypatch.context() as patch:
        patch.setattr(watcher, "look_back", look_back)
        pass_time(forgetful, 2 * SWEEP_SECONDS)
    assert "ZeroDivisionError: by chance" in str(forgetful.report().attention)
    assert forgetful.report().status == "completed"
    forgetful.bed.accounting(up=True)
    pass_time(forgetful, 2 * SWEEP_SECONDS)
    assert forgetful.report().attention is None


def test_r39_retries_are_apart_and_ever_further(floor: Floor) -> None:
    floor.take()
    for number in range(4):
        floor.until(lambda n=number: len(floor.jobs()) == n + 1 and "running" in floor.beams())  # type: ignore[misc]
        floor.sim.slurm.end("PREEMPTED")
        floor.until(lambda: any(task.retry for task in floor.tasks()))
    times = [job.created_at.timestamp() for job in floor.jobs()]
    floor.until("completed")
    times = [job.created_at.timestamp() for job in floor.jobs()]
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert all(wait >= least for wait, least in zip(waits, (60, 300, 1200, 1200), strict=True))
