"""The real submit.sh and poll script, run by bash against a small fake Slurm on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.effects import JobQuery, Observe
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.observation import Section, parse_receipts, parse_squeue, split_sections
from mqi_hpc.core.sbatch_errors import ErrorKind, classify
from mqi_hpc.core.submission import SubmitReport, parse_submit
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.layout import WITHDRAWN, submission_name
from mqi_hpc.records.status import StatusLine, decode_lines, encode_line
from tests.support.bench import make_case
from tests.support.cluster import wait_until
from tests.support.fake_slurm import FakeSlurm

STAGES = ["interpret", "beams", "convert"]
# What a job does itself; the rest is taken from j01, whose array still runs.
KINDS = {"whole": STAGES, "from beams on": STAGES[1:], "convert alone": STAGES[2:]}
OLD = 12
"""The id of j01's array."""
each_kind = pytest.mark.parametrize("site", KINDS, indirect=True)


def each(calls: dict[str, int]) -> pytest.MarkDecorator:
    """A test for each kind of job, and each call that its script makes of some program."""
    pairs = [(kind, call) for kind, count in calls.items() for call in range(1, count + 1)]
    return pytest.mark.parametrize(("site", "call"), pairs, indirect=["site"])


each_sbatch = each({kind: len(stages) for kind, stages in KINDS.items()})
each_squeue = each({"whole": 5, "from beams on": 5, "convert alone": 3})
each_stage = pytest.mark.parametrize(
    ("site", "stage"), [(kind, s) for kind, stages in KINDS.items() for s in stages], indirect=["site"]
)
with_dependants = pytest.mark.parametrize("site", ["whole", "from beams on"], indirect=True)


class Site:
    """A job folder with its rendered submit.sh, and a Slurm."""

    def __init__(self, home: Path, kind: str = "whole", waits_for: tuple[str, ...] = ("j01",)) -> None:
        self.slurm = FakeSlurm(home / "slurm")
        config = f"paths: {{local_logdata: /d, remote_workspace: {home}/work}}\nssh: {{host: h}}\n"
        self.renderer = Renderer(ConfigLoader().parse(config, home / "config.yaml"), b"zip")
        case, self.stages = make_case(3), KINDS[kind]
        self.head, self.whole = self.stages[0], kind == "whole"
        number = 1 if self.whole else 2
        self.job = home / "work" / "k" / f"j0{number}"
        self.job.mkdir(parents=True)
        beams = case.beams if self.whole else case.beams[1:2] if "beams" in self.stages else ()
        submissions = plan_submissions(case.instance, case.case_id, number, beams, self.stages)
        self.names = {s.stage: s.name for s in submissions}
        others = [beam.index for beam in case.beams if beam not in beams]
        self.request = RenderRequest(
            case=case,
            job=self.job.name,
            job_folder=str(self.job),
            submissions=submissions,
            beams=beams,
            audit_head="",
            sources=dict.fromkeys(others, "j01"),
            interpreted=None if self.whole else ("j01", "a" * 64),
            waits_for=() if self.whole else waits_for,
        )
        for name, content in self.renderer.job_files(self.request).items():
            (self.job / name).write_bytes(content)
        self.old_name = submission_name(case.instance, case.case_id, "j01", "beams")
        self.waited: list[int] = []
        if not self.whole:
            self.receive("j01", f"{self.old_name} {OLD} 1700000000\n")
            self.waited = [OLD]
        self.fresh()

    def receive(self, job: str, text: str) -> Path:
        """Write the receipt of an older job's array."""
        path = self.job.parent / job / "receipt.beams"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def fresh(self) -> None:
        """A queue in which nothing is but the older array."""
        old = {"id": OLD, "name": self.old_name, "state": "RUNNING", "reason": "None"}
        self.slurm.set(jobs=[] if self.whole else [old])

    def submit(self, nonce: str = "n1", **environment: str) -> SubmitReport:
        done = self.slurm.run(self.job / "submit.sh", nonce, **environment)
        report = parse_submit(done.stdout, nonce)
        assert report.code in (None, done.returncode), done.stderr
        return report

    @property
    def jobs(self) -> dict[int, dict[str, Any]]:
        """Every job of this one's names that Slurm took."""
        return {job["id"]: job for job in self.slurm.jobs if job["id"] > 15}

    def receipts(self) -> dict[str, int]:
        return {s: int((self.job / f"receipt.{s}").read_text().split()[1]) for s in STAGES if self.has(s)}

    def has(self, stage: str) -> bool:
        return (self.job / f"receipt.{stage}").exists()

    def dependency(self, stage: str) -> str | None:
        """What a stage's submission has to wait for, by the receipts."""
        if stage == "convert":
            ids = [self.receipts()["beams"]] if "beams" in self.stages else []
            return ":".join(["afterany", *map(str, [*ids, *self.waited])]) if ids or self.waited else None
        return f"afterok:{self.receipts()['interpret']}" if stage == "beams" and self.whole else None

    def observe(
        self, nonce: str = "n1", sacct: tuple[int, ...] = (), **environment: str
    ) -> dict[str, Section]:
        query = JobQuery(ref="k-j01", folder=str(self.job), records=(("k-j01/beam_calc-0", "dose/beam_2"),))
        effect = Observe(nonce=nonce, jobs=(query,), sacct_ids=sacct)
        script = self.job / "observe.sh"
        script.write_text(self.renderer.observe_script(effect))
        done = self.slurm.run(script, **environment)
        return split_sections(done.stdout, nonce)


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """A site of the kind that the test's parameter names, else a whole chain."""
    return Site(tmp_path, getattr(request, "param", "whole"))


def wired(site: Site) -> None:
    """Every stage has a receipt of its own and waits for what it has to; the head alone was released."""
    receipts, jobs = site.receipts(), site.jobs
    assert list(receipts) == site.stages
    assert len(set(receipts.values())) == len(site.stages)
    for stage, number in receipts.items():
        assert jobs[number]["dependency"] == site.dependency(stage)
    # Two runs at once may both release it, which Slurm takes for one.
    assert [number for number, job in jobs.items() if job.get("released")] == [receipts[site.head]]


def stands(site: Site) -> None:
    """Exactly one chain is live, as the receipts say, and its head is released."""
    assert sorted(site.slurm.live()) == sorted((number, stage) for stage, number in site.receipts().items())
    wired(site)


def test_three_calls_make_the_chain_and_release_its_head(site: Site) -> None:
    report = site.submit()
    assert (report.code, report.failed, report.head, report.notes) == (0, None, None, ())
    assert {stage: receipt.id for stage, receipt in report.receipts.items()} == site.receipts()
    stands(site)
    calls = [args for args, _ in site.slurm.calls("sbatch")]
    assert [args[-1] for args in calls] == ["interpret.sbatch", "beams.sbatch", "convert.sbatch"]
    assert ["--hold" in args for args in calls] == [True, False, False]
    assert "--array=0-2" in calls[1]
    assert "--gres=gpu:1" in calls[1]
    assert all({"--no-requeue", "--export=NONE", "--parsable"} <= set(args) for args in calls)
    assert list(site.job.glob("receipt-*")) == []
    assert (site.job / "receipt.beams").stat().st_mode & 0o777 == 0o600


def test_a_job_that_takes_interprets_output_from_another_is_an_array_and_convert(tmp_path: Path) -> None:
    site = Site(tmp_path, "from beams on")
    report = site.submit()
    assert (report.code, report.failed, report.head, report.notes) == (0, None, None, ())
    assert {stage: receipt.id for stage, receipt in report.receipts.items()} == {"beams": 16, "convert": 17}
    stands(site)
    beams, convert = (args for args, _ in site.slurm.calls("sbatch"))
    assert ("--hold" in beams, "--hold" in convert) == (True, False)
    assert "--array=1" in beams
    assert not any(option.startswith("--dependency") for option in beams)
    assert convert[-2:] == ["--dependency=afterany:16:12", "convert.sbatch"]


def test_a_job_that_converts_alone_is_one_job(tmp_path: Path) -> None:
    site = Site(tmp_path, "convert alone")
    report = site.submit()
    assert (report.code, report.failed, report.head, report.notes) == (0, None, None, ())
    assert {stage: receipt.id for stage, receipt in report.receipts.items()} == {"convert": 16}
    stands(site)
    ((convert, _),) = site.slurm.calls("sbatch")
    assert "--hold" in convert
    assert convert[-2:] == ["--dependency=afterany:12", "convert.sbatch"]


@each_kind
def test_a_second_run_changes_nothing(site: Site) -> None:
    first = site.submit()
    again = site.submit("n2")
    assert again.code == 0
    assert again.receipts == first.receipts
    assert len(site.slurm.calls("sbatch")) == len(site.stages)
    stands(site)
    site.slurm.change(site.receipts()[site.head], state="COMPLETED")
    assert site.submit("n3").code == 0
    assert len(site.slurm.calls("sbatch")) == len(site.stages)


def test_noise_of_the_login_is_not_taken_for_an_id(site: Site) -> None:
    site.slurm.set(noise="sbatch: lua: Submitting job 7 to the night queue\n")
    report = site.submit()
    assert report.code == 0
    assert sorted(site.receipts().values()) == [16, 17, 18]
    stands(site)


@each_sbatch
def test_a_refused_sbatch_is_reported_with_slurms_words_and_the_rest_waits(site: Site, call: int) -> None:
    site.slurm.fails(
        "sbatch", call, "sbatch: error: Batch job submission failed: Invalid qos specification\n"
    )
    report = site.submit()
    assert report.code == 75
    assert report.failed is not None
    assert report.failed.stage == site.stages[call - 1]
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.PERMANENT
    assert list(site.receipts()) == site.stages[: call - 1]
    # What has been placed is said: it is to be taken back.
    assert {stage: receipt.id for stage, receipt in report.receipts.items()} == site.receipts()
    assert all("released" not in job for job in site.slurm.jobs)
    assert site.submit("n2").code == 0
    stands(site)


@pytest.mark.parametrize("when", ["before", "after", "told"])
@each_sbatch
def test_killed_at_any_sbatch_a_rerun_ends_with_one_chain_that_can_run(
    site: Site, call: int, when: str
) -> None:
    site.slurm.kills("sbatch", call, when)
    assert site.submit().code is None
    assert site.submit("n2").code == 0
    # What the killed run left is held, or waits on a job that is not it: the fence and a sweep see to it.
    wired(site)


@each_kind
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_the_release_a_rerun_releases(site: Site, when: str) -> None:
    site.slurm.kills("scontrol", 1, when)
    site.submit()
    assert site.submit("n2").code == 0
    stands(site)


@each_squeue
def test_killed_at_any_squeue_a_rerun_completes_the_chain(site: Site, call: int) -> None:
    site.slurm.kills("squeue", call, "before")
    assert site.submit().code is None
    assert site.submit("n2").code == 0
    assert len(site.slurm.calls("sbatch")) == len(site.stages)
    stands(site)


@each_squeue
def test_a_squeue_without_answer_burns_nothing(site: Site, call: int) -> None:
    site.slurm.fails("squeue", call, "slurm_load_jobs error: Unable to contact slurm controller\n")
    report = site.submit()
    assert (report.code, report.failed, report.head) == (76, None, None)
    assert "Unable to contact slurm controller" in report.notes[0]
    assert site.submit("n2").code == 0
    assert len(site.slurm.calls("sbatch")) == len(site.stages)
    stands(site)


@each_kind
def test_a_release_that_failed_is_made_up_for(site: Site) -> None:
    site.slurm.fails("scontrol", 1, "Unable to contact slurm controller\n")
    report = site.submit()
    assert report.code == 76
    assert "release: Unable to contact slurm controller" in report.notes[0]
    assert set(report.receipts) == set(site.stages)
    assert site.submit("n2").code == 0
    stands(site)


@each_sbatch
def test_an_id_that_came_with_a_failure_leaves_it_open_whether_it_was_accepted(site: Site, call: int) -> None:
    refusal = "sbatch: error: Batch job submission failed: Invalid qos specification\n"
    site.slurm.fails("sbatch", call, refusal, when="told")
    report = site.submit()
    assert report.code == 75
    assert report.failed is not None
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.UNKNOWN
    assert f"it gave the id {15 + call}" in report.failed.lines[-1]


@each_kind
def test_two_at_once_make_one_chain(site: Site) -> None:
    for round_ in range(5):
        runs = [site.slurm.start(site.job / "submit.sh", f"n{round_}{k}") for k in (1, 2)]
        outputs = [run.communicate(timeout=60) for run in runs]
        assert {run.returncode for run in runs} == {0}, outputs
        stands(site)
        for stage in site.stages:
            (site.job / f"receipt.{stage}").unlink()
        site.fresh()


@each_kind
def test_a_frozen_run_that_thaws_after_another_has_finished_takes_its_own_back(site: Site) -> None:
    site.slurm.hangs("sbatch", 1, "after")
    frozen = site.slurm.start(site.job / "submit.sh", "frozen")
    wait_until(lambda: site.slurm.hanging, 20, "a frozen sbatch")
    assert site.submit("n2").code == 0
    ghost = site.jobs[16]
    assert (ghost["id"], ghost["reason"], ghost["state"]) == (16, "JobHeldUser", "PENDING")
    site.slurm.thaw()
    out, _ = frozen.communicate(timeout=60)
    assert parse_submit(out, "frozen").code == 0
    stands(site)


@each_kind
def test_a_job_that_was_called_off_is_not_submitted(site: Site) -> None:
    (site.job / WITHDRAWN).touch()
    report = site.submit()
    assert (report.code, report.notes) == (78, ("the job was called off",))
    assert report.receipts == {}
    assert site.jobs == {} or not site.slurm.live()


@each_sbatch
def test_a_run_that_thaws_after_its_job_was_called_off_takes_all_back(site: Site, call: int) -> None:
    site.slurm.hangs("sbatch", call, "after")
    frozen = site.slurm.start(site.job / "submit.sh", "frozen")
    wait_until(lambda: site.slurm.hanging, 20, "a frozen sbatch")
    (site.job / WITHDRAWN).touch()
    site.slurm.thaw()
    out, _ = frozen.communicate(timeout=60)
    assert parse_submit(out, "frozen").code == 78
    assert site.slurm.live() == []
    assert all("released" not in job for job in site.slurm.jobs)


@each_kind
def test_a_run_that_thaws_at_the_release_of_a_job_called_off(site: Site) -> None:
    site.slurm.fails("scontrol", 1, "cannot contact the controller\n")
    assert site.submit().code == 76
    (site.job / WITHDRAWN).touch()
    assert site.submit("n2").code == 78
    assert site.slurm.live() == []
    assert all("released" not in job for job in site.slurm.jobs)


def thawed_after(site: Site, *, receipt: str = "", new_owner: str = "") -> str:
    """State of job 16, whose submitter froze before its receipt, after another run and the thaw."""
    site.slurm.hangs("sbatch", 1, "after")
    frozen = site.slurm.start(site.job / "submit.sh", "frozen")
    wait_until(lambda: site.slurm.hanging, 20, "a frozen sbatch")
    if receipt:
        (site.job / f"receipt.{site.head}").write_text(receipt)
    if new_owner:
        site.slurm.change(16, name=new_owner)
    site.submit("n2")
    site.slurm.thaw()
    frozen.communicate(timeout=60)
    return str(site.jobs[16]["state"])


@each_kind
def test_a_winner_that_was_given_the_same_id_is_not_cancelled(site: Site) -> None:
    # The controller died, lost 16 and gave it to another run of this script, which wrote it down.
    assert thawed_after(site, receipt=f"{site.names[site.head]} 16 1700000000\n") == "PENDING"
    stands(site)


@each_kind
def test_another_case_that_was_given_our_lost_id_is_left_alone(site: Site) -> None:
    assert thawed_after(site, new_owner="mqi-i1-zzzzzzzzzzzz-j01-interpret") == "PENDING"


@pytest.mark.parametrize("receipt", ["", "mqi-i1-other 16 1\n", "{name} x 1\n", "{name} 16\n", "{name}\n"])
@each_stage
def test_a_receipt_that_is_damaged_or_foreign_stops_everything(site: Site, stage: str, receipt: str) -> None:
    (site.job / f"receipt.{stage}").write_text(receipt.format(name=site.names[stage]))
    report = site.submit()
    assert report.code == 74
    assert f"receipt.{stage} is damaged or not of this job" in report.notes[-1]
    assert [name for _, name in site.slurm.live()] == site.stages[: site.stages.index(stage)]
    assert all("released" not in job for job in site.slurm.jobs)


@pytest.mark.parametrize("folder", ["gone", ""])
def test_where_no_file_can_be_made_nothing_is_submitted(site: Site, folder: str) -> None:
    # A broken TMPDIR is no such case: everything lies in the job's folder.
    assert site.submit(TMPDIR="/no/such/folder").code == 0
    site.slurm.set(jobs=[])
    shutil.rmtree(site.job)
    if not folder:
        site.job.symlink_to("/proc/self/fdinfo")
    script = site.job.parent / "submit.sh"
    script.write_bytes(site.renderer.job_files(site.request)["submit.sh"])
    done = site.slurm.run(script, "n9")
    assert parse_submit(done.stdout, "n9").code == done.returncode == 74
    assert site.slurm.jobs == []


@each_kind
def test_a_receipt_on_a_full_disk_takes_the_job_back(site: Site) -> None:
    # `sync` is where a full file system, or a quota, may tell of it only.
    program = site.slurm.path / "sync"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    report = site.submit()
    assert report.code == 74
    assert site.receipts() == {}
    assert site.slurm.live() == []
    assert list(site.job.glob("receipt*")) == []


@with_dependants
def test_nothing_is_built_on_a_head_that_is_not_held(site: Site) -> None:
    site.slurm.fails(
        "sbatch", 2, "sbatch: error: Batch job submission failed: Resource temporarily unavailable\n"
    )
    site.submit()
    site.slurm.change(16, state="CANCELLED")
    report = site.submit("n2")
    assert report.code == 77
    assert report.head == "not seen"
    assert len(site.slurm.calls("sbatch")) == 2


@with_dependants
def test_another_job_under_the_receipts_id_is_not_our_head(site: Site) -> None:
    site.slurm.fails(
        "sbatch", 2, "sbatch: error: Batch job submission failed: Resource temporarily unavailable\n"
    )
    site.submit()
    site.slurm.change(16, name="somebody-else")
    assert site.submit("n2").code == 77


@each_kind
def test_a_claimed_head_is_never_released(site: Site) -> None:
    site.slurm.fails("scontrol", 1, "cannot contact the controller\n")
    assert site.submit().code == 76
    (site.job / f"claim.{site.head}-{1 if site.head == 'beams' else 0}").touch()
    report = site.submit("n2")
    assert report.code == 77
    assert "has begun its work" in str(report.head)
    assert all("released" not in job for job in site.slurm.jobs)


@with_dependants
def test_a_head_whose_dependants_are_gone_is_not_released(site: Site) -> None:
    site.slurm.fails("scontrol", 1, "cannot contact the controller\n")
    assert site.submit().code == 76
    site.slurm.change(17, state="CANCELLED")
    report = site.submit("n2")
    assert report.code == 77
    said = "beams or convert are gone" if site.whole else "convert is gone"
    assert report.head == f"is held, but {said}"
    assert all("released" not in job for job in site.slurm.jobs)


@each_stage
def test_a_receipt_that_cannot_be_published_takes_the_job_back(site: Site, stage: str) -> None:
    # A folder in the way: a plain `ln` would succeed inside it.
    (site.job / f"receipt.{stage}").mkdir()
    report = site.submit()
    assert report.code == 74
    assert [name for _, name in site.slurm.live()] == site.stages[: site.stages.index(stage)]
    assert all("released" not in job for job in site.slurm.jobs)


def unreleased(site: Site, tasks: list[tuple[str, str]]) -> SubmitReport:
    """What a rerun says where the head's release failed and squeue shows these tasks of the head."""
    site.slurm.fails("scontrol", 1, "cannot contact the controller\n")
    assert site.submit().code == 76
    site.slurm.change(16, tasks=tasks)
    return site.submit("n2")


def test_an_array_that_is_held_task_by_task_is_released(tmp_path: Path) -> None:
    site = Site(tmp_path, "from beams on")
    assert unreleased(site, [("PENDING", "JobHeldUser"), ("PENDING", "JobHeldAdmin")]).code == 0
    stands(site)


@pytest.mark.parametrize("other", [("RUNNING", "None"), ("PENDING", "Resources"), ("RUNNING", "JobHeldUser")])
@pytest.mark.parametrize("first", [True, False])
def test_a_task_that_somebody_holds_in_a_released_array_stays_held(
    tmp_path: Path, other: tuple[str, str], first: bool
) -> None:
    site = Site(tmp_path, "from beams on")
    held = ("PENDING", "JobHeldUser")
    assert unreleased(site, [other, held] if first else [held, other]).code == 0
    assert all("released" not in job for job in site.slurm.jobs)


# What convert waits for


@pytest.fixture(params=["from beams on", "convert alone"])
def resubmitted(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, request.param)


@pytest.mark.parametrize("text", [None, ""])
def test_an_array_without_a_receipt_is_not_waited_for(resubmitted: Site, text: str | None) -> None:
    path = resubmitted.receive("j01", text or "")
    if text is None:
        path.unlink()
        path.parent.rmdir()
    resubmitted.waited = []
    assert resubmitted.submit().code == 0
    stands(resubmitted)
    # Nobody is asked about it, and nothing is made there.
    assert not any(resubmitted.old_name in str(args) for args, _ in resubmitted.slurm.calls("squeue"))
    assert path.parent.exists() is (text is not None)


@pytest.mark.parametrize(
    "changes", [{"state": "COMPLETED"}, {"id": 13}, {"name": "mqi-i1-another"}, {"id": 121}, {"id": 1}]
)
def test_an_array_that_slurm_does_not_show_is_not_waited_for(
    resubmitted: Site, changes: dict[str, Any]
) -> None:
    resubmitted.slurm.change(OLD, **changes)
    resubmitted.waited = []
    assert resubmitted.submit().code == 0
    assert resubmitted.jobs[resubmitted.receipts()["convert"]]["dependency"] == resubmitted.dependency(
        "convert"
    )


@pytest.mark.parametrize("text", ["{name} x 1\n", "{name} 12\n", "mqi-i1-other 12 1\n", "\n"])
def test_a_receipt_of_an_older_array_that_is_damaged_stops_convert(resubmitted: Site, text: str) -> None:
    resubmitted.receive("j01", text.format(name=resubmitted.old_name))
    report = resubmitted.submit()
    assert report.code == 74
    assert "receipt.beams of j01 is damaged or not its own" in report.notes[-1]
    assert "convert" not in resubmitted.receipts()
    assert all("released" not in job for job in resubmitted.slurm.jobs)


@pytest.mark.parametrize("what", ["loop", "file"])
def test_where_the_older_receipt_cannot_be_looked_for_nothing_is_submitted(
    resubmitted: Site, what: str
) -> None:
    path = resubmitted.receive("j01", "")
    path.unlink()
    if what == "loop":
        path.parent.rmdir()
        path.parent.symlink_to("j01")
    else:
        path.parent.rmdir()
        path.parent.touch()
    report = resubmitted.submit()
    assert (report.code, report.failed) == (76, None)
    assert "receipt.beams" in report.notes[-1]
    assert "convert" not in resubmitted.receipts()


def test_what_stands_is_not_looked_at_again(resubmitted: Site) -> None:
    assert resubmitted.submit().code == 0
    resubmitted.receive("j01", "rubbish\n")
    resubmitted.slurm.change(OLD, state="COMPLETED")
    assert resubmitted.submit("n2").code == 0
    stands(resubmitted)


@pytest.mark.parametrize("kind", ["from beams on", "convert alone"])
def test_several_older_arrays_are_looked_for_at_once(tmp_path: Path, kind: str) -> None:
    site = Site(tmp_path, kind, waits_for=("j01", "j03", "j04", "j05"))
    names = {job: site.old_name.replace("-j01-", f"-{job}-") for job in ("j03", "j04", "j05")}
    for number, job in ((120, "j03"), (3, "j05")):
        site.receive(job, f"{names[job]} {number} 1700000000\n")
        more = {"id": number, "name": names[job], "state": "PENDING", "reason": "Dependency"}
        site.slurm.set(jobs=[*site.slurm.jobs, more])
    before = len(site.slurm.jobs)
    site.waited = [OLD, 120, 3]
    assert site.submit().code == 0
    assert len(site.slurm.jobs) == before + len(site.stages)
    (convert,) = [job for job in site.slurm.jobs if job["name"] == site.names["convert"]]
    assert convert["dependency"] == site.dependency("convert")
    asked = [args for args, _ in site.slurm.calls("squeue") if any(names["j03"] in a for a in args)]
    assert len(asked) == 1


def test_a_job_that_waits_for_nothing_has_no_dependency(tmp_path: Path) -> None:
    site = Site(tmp_path, "convert alone", waits_for=())
    site.waited = []
    assert site.submit().code == 0
    stands(site)
    assert not any("--dependency" in option for option in site.slurm.calls("sbatch")[0][0])


def test_a_hostile_environment_does_not_reach_slurm(site: Site) -> None:
    hostile = {
        "SBATCH_PARTITION": "wrong",
        "SBATCH_REQUEUE": "1",
        "SQUEUE_FORMAT": "%i",
        "SQUEUE_STATES": "RUNNING",
        "SLURM_JOB_ID": "4",
        "SLURM_CONF": "/etc/slurm/slurm.conf",
    }
    assert site.submit(**hostile).code == 0
    for program in ("sbatch", "squeue"):
        for _, environment in site.slurm.calls(program):
            assert set(environment) == {"SLURM_CONF", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN"}
    stands(site)


def test_without_its_folder_it_says_so(site: Site) -> None:
    text = (site.job / "submit.sh").read_text().replace(str(site.job), str(site.job / "gone"))
    script = site.job / "other.sh"
    script.write_text(text)
    assert site.slurm.run(script, "n1").returncode == 74
    assert site.slurm.run(script).returncode != 0


# The poll


def test_a_poll_before_anything_is_there(site: Site) -> None:
    sections = site.observe()
    assert list(sections) == [
        "date", "squeue", "receipts:k-j01", "status:k-j01", "record:k-j01/beam_calc-0", "space",
    ]  # fmt: skip
    codes = {name: section.exit_code for name, section in sections.items()}
    assert (codes["squeue"], codes["receipts:k-j01"]) == (0, 0)
    assert (codes["status:k-j01"], codes["record:k-j01/beam_calc-0"]) == (44, 44)
    assert sections["squeue"].text == ""


def test_a_poll_of_a_chain_that_stands(site: Site) -> None:
    site.submit()
    lines = [StatusLine("beams", n, "started", 1.0, 5, 0, "g1", "a } in it") for n in (0, 1)]
    (site.job / "status").mkdir()
    torn = encode_line(lines[1])[:30]
    (site.job / "status" / "beams-0.jsonl").write_text(encode_line(lines[0]) + torn)
    (site.job / "status" / "beams-1.jsonl").write_text(encode_line(lines[1]))
    (site.job / "dose" / "beam_2" / "5-0").mkdir(parents=True)
    (site.job / "dose" / "beam_2" / "result.json").write_text('{"a":1}\n')
    (site.job / "dose" / "beam_2" / "5-0" / "x y.raw").write_bytes(b"123")
    sections = site.observe()
    rows = parse_squeue(sections["squeue"].text)
    assert {row.name for row in rows} == set(site.names.values())
    receipts = parse_receipts(sections["receipts:k-j01"].text)
    assert receipts["beams"].split()[1] == "17"
    assert decode_lines(sections["status:k-j01"].text) == lines
    assert json.loads(sections["record:k-j01/beam_calc-0"].text) == {"a": 1}
    assert "3 5-0/x y.raw" in sections["listing:k-j01/beam_calc-0"].text.splitlines()


def test_warnings_do_not_stand_among_rows_but_errors_are_told(site: Site) -> None:
    site.submit()
    site.slurm.set(noise="squeue: warning: plugin is old\n")
    assert len(parse_squeue(site.observe()["squeue"].text)) == 3
    calls = len(site.slurm.calls("squeue"))
    site.slurm.fails("squeue", calls + 1, "slurm_load_jobs error: Unable to contact slurm controller\n")
    section = site.observe("n2")["squeue"]
    assert section.exit_code == 1
    assert "Unable to contact" in section.text


def test_accounting_is_asked_only_with_ids_and_fails_alone(site: Site) -> None:
    site.submit()
    assert "sacct" not in site.observe()
    assert site.slurm.calls("sacct") == []
    site.slurm.fails("sacct", 1, "sacct: error: Problem talking to the database\n")
    sections = site.observe("n2", sacct=(16, 17))
    assert sections["sacct"].exit_code == 1
    assert sections["squeue"].exit_code == 0
    (arguments, _) = site.slurm.calls("sacct")[0]
    assert arguments[arguments.index("-j") + 1] == "16,17"


def test_a_section_beyond_the_cap_says_nothing_and_harms_no_other(site: Site) -> None:
    (site.job / "status").mkdir()
    (site.job / "status" / "beams-0.jsonl").write_text("{" + "x" * (5 * 1024 * 1024) + "}\n")
    sections = site.observe()
    assert "status:k-j01" not in sections
    assert sections["record:k-j01/beam_calc-0"].exit_code == 44
    assert "space" in sections


def test_a_command_that_reads_its_stdin_does_not_eat_the_script(site: Site) -> None:
    # bash -s reads the script from there.
    greedy = site.slurm.path / "squeue"
    greedy.write_text("#!/bin/sh\ncat\n")
    query = JobQuery(ref="k-j01", folder=str(site.job), records=(("k-j01/b", "dose/beam_2"),))
    text = site.renderer.observe_script(Observe(nonce="n", jobs=(query,), sacct_ids=(16,)))
    done = subprocess.run(
        ["bash", "-s"], input=text, capture_output=True, text=True, env=site.slurm.environment(), check=True
    )
    sections = split_sections(done.stdout, "n")
    assert list(sections) == [
        "date", "squeue", "sacct", "receipts:k-j01", "status:k-j01", "record:k-j01/b", "space",
    ]  # fmt: skip
    assert sections["squeue"].text == ""


def test_an_error_is_not_an_absence(site: Site) -> None:
    (site.job / "dose").mkdir()
    (site.job / "dose" / "beam_2").touch()
    (site.job / "status").touch()
    (site.job / "receipt.interpret").symlink_to("receipt.interpret")
    sections = site.observe()
    assert sections["record:k-j01/beam_calc-0"].exit_code == 46
    assert "Not a directory" in sections["record:k-j01/beam_calc-0"].text
    assert sections["status:k-j01"].exit_code == 46
    assert sections["space"].exit_code == 0


@each_kind
def test_an_empty_receipt_and_the_claims_are_told(site: Site) -> None:
    (site.job / "receipt.convert").touch()
    for task in ("interpret-0", "beams-7", "beams-11"):
        (site.job / f"claim.{task}").touch()
    section = site.observe()["receipts:k-j01"]
    assert section.exit_code == 0
    found = parse_receipts(section.text)
    assert set(found) == {"convert", "claimed"}
    assert found["convert"] == "-"
    assert set(found["claimed"].split()) == {"interpret-0", "beams-7", "beams-11"}


def test_the_mark_of_a_job_that_was_called_off_is_told(site: Site) -> None:
    (site.job / WITHDRAWN).touch()
    assert dict(parse_receipts(site.observe()["receipts:k-j01"].text)) == {"withdrawn": "-"}


def test_a_file_that_hangs_costs_its_own_job_alone(site: Site) -> None:
    other = site.job.parent / "j02"
    (site.job / "dose" / "beam_2").mkdir(parents=True)
    (other / "dose" / "beam_2").mkdir(parents=True)
    os.mkfifo(site.job / "dose" / "beam_2" / "result.json")
    (other / "dose" / "beam_2" / "result.json").write_text("{}\n")
    queries = tuple(
        JobQuery(ref=folder.name, folder=str(folder), records=((f"{folder.name}/b", "dose/beam_2"),))
        for folder in (site.job, other)
    )
    text = site.renderer.observe_script(Observe(nonce="n", jobs=queries, sacct_ids=()))
    script = site.job / "observe.sh"
    script.write_text(text.replace("timeout -k 2 20", "timeout -k 1 1"))
    sections = split_sections(site.slurm.run(script).stdout, "n")
    assert list(sections) == [
        "date", "squeue", "receipts:j01", "status:j01", "receipts:j02", "status:j02", "record:j02/b",
        "listing:j02/b", "space",
    ]  # fmt: skip
    assert sections["record:j02/b"].text == "{}\n"


def test_where_three_jobs_hang_it_is_the_file_system(site: Site) -> None:
    (site.job / "dose" / "beam_2").mkdir(parents=True)
    os.mkfifo(site.job / "dose" / "beam_2" / "result.json")
    queries = tuple(
        JobQuery(ref=f"q{n}", folder=str(site.job), records=((f"q{n}/b", "dose/beam_2"),)) for n in range(9)
    )
    text = site.renderer.observe_script(Observe(nonce="n", jobs=queries, sacct_ids=()))
    script = site.job / "observe.sh"
    script.write_text(text.replace("timeout -k 2 20", "timeout -k 1 1"))
    sections = split_sections(site.slurm.run(script).stdout, "n")
    assert [name for name in sections if name.startswith("receipts")] == [
        "receipts:q0", "receipts:q1", "receipts:q2",
    ]  # fmt: skip
    assert "space" in sections


def test_a_job_folder_that_is_not_there_is_no_answer(site: Site) -> None:
    query = JobQuery(ref="gone", folder="/no/such/folder", records=(("gone/x", "dose/beam_2"),))
    script = site.job / "observe.sh"
    script.write_text(site.renderer.observe_script(Observe(nonce="n", jobs=(query,), sacct_ids=())))
    sections = split_sections(site.slurm.run(script).stdout, "n")
    assert {sections[f"{what}:gone"].exit_code for what in ("receipts", "status")} == {45}
    assert sections["record:gone/x"].exit_code == 45
