"""The real submit.sh and poll script, run by bash against a small fake Slurm on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.effects import JobQuery, Observe
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.observation import parse_receipts, parse_squeue, split_sections
from mqi_hpc.core.sbatch_errors import ErrorKind, classify
from mqi_hpc.core.submission import SubmitReport, parse_submit
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.status import StatusLine, decode_lines, encode_line
from tests.support.bench import make_case
from tests.support.cluster import wait_until
from tests.support.fake_slurm import FakeSlurm

STAGES = ["interpret", "beams", "convert"]


class Site:
    """A job folder with its rendered submit.sh, and a Slurm."""

    def __init__(self, home: Path) -> None:
        self.slurm = FakeSlurm(home / "slurm")
        config = f"paths: {{local_logdata: /d, remote_workspace: {home}/work}}\nssh: {{host: h}}\n"
        self.renderer = Renderer(ConfigLoader().parse(config, home / "config.yaml"), b"zip")
        self.job = home / "work" / "k" / "j01"
        self.job.mkdir(parents=True)
        case = make_case(3)
        submissions = plan_submissions(case.instance, case.case_id, 1, case.beams)
        self.names = {s.stage: s.name for s in submissions}
        self.request = RenderRequest(
            case=case,
            job="j01",
            job_folder=str(self.job),
            submissions=submissions,
            beams=case.beams,
            audit_head="",
        )
        for name, content in self.renderer.job_files(self.request).items():
            (self.job / name).write_bytes(content)

    def submit(self, nonce: str = "n1", **environment: str) -> SubmitReport:
        done = self.slurm.run(self.job / "submit.sh", nonce, **environment)
        report = parse_submit(done.stdout, nonce)
        assert report.code in (None, done.returncode), done.stderr
        return report

    def receipts(self) -> dict[str, int]:
        return {s: int((self.job / f"receipt.{s}").read_text().split()[1]) for s in STAGES if self.has(s)}

    def has(self, stage: str) -> bool:
        return (self.job / f"receipt.{stage}").exists()

    def observe(self, nonce: str = "n1", sacct: tuple[int, ...] = (), **environment: str) -> dict:
        query = JobQuery(ref="k-j01", folder=str(self.job), records=(("k-j01/beam_calc-0", "dose/beam_2"),))
        effect = Observe(nonce=nonce, jobs=(query,), sacct_ids=sacct)
        script = self.job / "observe.sh"
        script.write_text(self.renderer.observe_script(effect))
        done = self.slurm.run(script, **environment)
        return split_sections(done.stdout, nonce)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def stands(site: Site) -> None:
    """Exactly one chain is live, as the receipts say, and its head is released."""
    receipts = site.receipts()
    assert sorted(site.slurm.live()) == sorted((number, stage) for stage, number in receipts.items())
    jobs = {job["id"]: job for job in site.slurm.jobs}
    # Two runs at once may both release it, which Slurm takes for one.
    assert jobs[receipts["interpret"]]["released"] >= 1
    assert jobs[receipts["beams"]]["dependency"] == f"afterok:{receipts['interpret']}"
    assert jobs[receipts["convert"]]["dependency"] == f"afterany:{receipts['beams']}"


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


def test_a_second_run_changes_nothing(site: Site) -> None:
    first = site.submit()
    again = site.submit("n2")
    assert again.code == 0
    assert again.receipts == first.receipts
    assert len(site.slurm.calls("sbatch")) == 3
    stands(site)
    site.slurm.change(site.receipts()["interpret"], state="COMPLETED")
    assert site.submit("n3").code == 0
    assert len(site.slurm.calls("sbatch")) == 3


def test_noise_of_the_login_is_not_taken_for_an_id(site: Site) -> None:
    site.slurm.set(noise="sbatch: lua: Submitting job 7 to the night queue\n")
    report = site.submit()
    assert report.code == 0
    assert sorted(site.receipts().values()) == [16, 17, 18]
    stands(site)


@pytest.mark.parametrize(("call", "stage"), [(1, "interpret"), (2, "beams"), (3, "convert")])
def test_a_refused_sbatch_is_reported_with_slurms_words_and_the_rest_waits(
    site: Site, call: int, stage: str
) -> None:
    site.slurm.fails(
        "sbatch", call, "sbatch: error: Batch job submission failed: Invalid qos specification\n"
    )
    report = site.submit()
    assert report.code == 75
    assert report.failed is not None
    assert report.failed.stage == stage
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.PERMANENT
    assert list(site.receipts()) == STAGES[: call - 1]
    # What has been placed is said: it is to be taken back.
    assert {stage: receipt.id for stage, receipt in report.receipts.items()} == site.receipts()
    assert all("released" not in job for job in site.slurm.jobs)
    assert site.submit("n2").code == 0
    stands(site)


@pytest.mark.parametrize("when", ["before", "after", "told"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_at_any_sbatch_a_rerun_ends_with_one_chain_that_can_run(
    site: Site, call: int, when: str
) -> None:
    site.slurm.kills("sbatch", call, when)
    assert site.submit().code is None
    site.submit("n2")
    receipts = site.receipts()
    assert list(receipts) == STAGES
    assert len(set(receipts.values())) == 3
    # What the killed run left is held, or waits on a job that is not it: the fence and a sweep see to it.
    jobs = {job["id"]: job for job in site.slurm.jobs}
    assert jobs[receipts["beams"]]["dependency"] == f"afterok:{receipts['interpret']}"
    assert jobs[receipts["convert"]]["dependency"] == f"afterany:{receipts['beams']}"
    released = [job["id"] for job in site.slurm.jobs if job.get("released")]
    assert released == [receipts["interpret"]]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_the_release_a_rerun_releases(site: Site, when: str) -> None:
    site.slurm.kills("scontrol", 1, when)
    site.submit()
    assert site.submit("n2").code == 0
    stands(site)


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_killed_at_any_squeue_a_rerun_completes_the_chain(site: Site, call: int) -> None:
    site.slurm.kills("squeue", call, "before")
    assert site.submit().code is None
    assert site.submit("n2").code == 0
    assert len(site.slurm.calls("sbatch")) == 3
    stands(site)


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_a_squeue_without_answer_burns_nothing(site: Site, call: int) -> None:
    site.slurm.fails("squeue", call, "slurm_load_jobs error: Unable to contact slurm controller\n")
    report = site.submit()
    assert (report.code, report.failed, report.head) == (76, None, None)
    assert "Unable to contact slurm controller" in report.notes[0]
    assert site.submit("n2").code == 0
    assert len(site.slurm.calls("sbatch")) == 3
    stands(site)


def test_a_release_that_failed_is_made_up_for(site: Site) -> None:
    site.slurm.fails("scontrol", 1, "Unable to contact slurm controller\n")
    report = site.submit()
    assert report.code == 76
    assert "release: Unable to contact slurm controller" in report.notes[0]
    assert set(report.receipts) == set(STAGES)
    assert site.submit("n2").code == 0
    stands(site)


def test_an_id_that_came_with_a_failure_leaves_it_open_whether_it_was_accepted(site: Site) -> None:
    refusal = "sbatch: error: Batch job submission failed: Invalid qos specification\n"
    site.slurm.fails("sbatch", 2, refusal, when="told")
    report = site.submit()
    assert report.code == 75
    assert report.failed is not None
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.UNKNOWN
    assert "it gave the id 17" in report.failed.lines[-1]


def test_two_at_once_make_one_chain(site: Site) -> None:
    for round_ in range(5):
        runs = [site.slurm.start(site.job / "submit.sh", f"n{round_}{k}") for k in (1, 2)]
        outputs = [run.communicate(timeout=60) for run in runs]
        assert {run.returncode for run in runs} == {0}, outputs
        stands(site)
        for stage in STAGES:
            (site.job / f"receipt.{stage}").unlink()
        site.slurm.set(jobs=[])


def test_a_frozen_run_that_thaws_after_another_has_finished_takes_its_own_back(site: Site) -> None:
    site.slurm.hangs("sbatch", 1, "after")
    frozen = site.slurm.start(site.job / "submit.sh", "frozen")
    wait_until(lambda: site.slurm.hanging, 20, "a frozen sbatch")
    assert site.submit("n2").code == 0
    ghost = site.slurm.jobs[0]
    assert (ghost["id"], ghost["reason"], ghost["state"]) == (16, "JobHeldUser", "PENDING")
    site.slurm.thaw()
    out, _ = frozen.communicate(timeout=60)
    assert parse_submit(out, "frozen").code == 0
    stands(site)


def thawed_after(site: Site, *, receipt: str = "", new_owner: str = "") -> str:
    """State of job 16, whose submitter froze before its receipt, after another run and the thaw."""
    site.slurm.hangs("sbatch", 1, "after")
    frozen = site.slurm.start(site.job / "submit.sh", "frozen")
    wait_until(lambda: site.slurm.hanging, 20, "a frozen sbatch")
    if receipt:
        (site.job / "receipt.interpret").write_text(receipt)
    if new_owner:
        site.slurm.change(16, name=new_owner)
    site.submit("n2")
    site.slurm.thaw()
    frozen.communicate(timeout=60)
    return str(site.slurm.jobs[0]["state"])


def test_a_winner_that_was_given_the_same_id_is_not_cancelled(site: Site) -> None:
    # The controller died, lost 16 and gave it to another run of this script, which wrote it down.
    assert thawed_after(site, receipt=f"{site.names['interpret']} 16 1700000000\n") == "PENDING"
    stands(site)


def test_another_case_that_was_given_our_lost_id_is_left_alone(site: Site) -> None:
    assert thawed_after(site, new_owner="mqi-i1-zzzzzzzzzzzz-j01-interpret") == "PENDING"


@pytest.mark.parametrize("receipt", ["", "mqi-i1-other 16 1\n", "{name} x 1\n", "{name} 16\n", "{name}\n"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_receipt_that_is_damaged_or_foreign_stops_everything(site: Site, stage: str, receipt: str) -> None:
    (site.job / f"receipt.{stage}").write_text(receipt.format(name=site.names[stage]))
    report = site.submit()
    assert report.code == 74
    assert f"receipt.{stage} is damaged or not of this job" in report.notes[-1]
    assert [name for _, name in site.slurm.live()] == STAGES[: STAGES.index(stage)]
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


def test_another_job_under_the_receipts_id_is_not_our_head(site: Site) -> None:
    site.slurm.fails(
        "sbatch", 2, "sbatch: error: Batch job submission failed: Resource temporarily unavailable\n"
    )
    site.submit()
    site.slurm.change(16, name="somebody-else")
    assert site.submit("n2").code == 77


def test_a_claimed_head_is_never_released(site: Site) -> None:
    site.slurm.fails("scontrol", 1, "cannot contact the controller\n")
    assert site.submit().code == 76
    (site.job / "claim.interpret-0").touch()
    report = site.submit("n2")
    assert report.code == 77
    assert "has begun its work" in str(report.head)
    assert all("released" not in job for job in site.slurm.jobs)


def test_a_head_whose_dependants_are_gone_is_not_released(site: Site) -> None:
    site.slurm.fails("scontrol", 1, "cannot contact the controller\n")
    assert site.submit().code == 76
    site.slurm.change(17, state="CANCELLED")
    report = site.submit("n2")
    assert report.code == 77
    assert "beams or convert are gone" in str(report.head)
    assert all("released" not in job for job in site.slurm.jobs)


def test_a_receipt_that_cannot_be_published_takes_the_job_back(site: Site) -> None:
    # A folder in the way: a plain `ln` would succeed inside it.
    (site.job / "receipt.beams").mkdir()
    report = site.submit()
    assert report.code == 74
    assert [stage for _, stage in site.slurm.live()] == ["interpret"]
    assert all("released" not in job for job in site.slurm.jobs)


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


def test_an_empty_receipt_is_none_and_a_claim_is_told(site: Site) -> None:
    (site.job / "receipt.beams").touch()
    (site.job / "claim.interpret-0").touch()
    section = site.observe()["receipts:k-j01"]
    assert (section.exit_code, section.text) == (0, "claimed interpret\n")


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
