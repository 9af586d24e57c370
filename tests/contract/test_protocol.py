"""submit.sh and the poll script on a real Slurm: what the fake of the unit tests promises holds there."""

from __future__ import annotations

import base64
import io
import itertools
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.effects import JobQuery, Observe
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.observation import (
    Section,
    belongs,
    parse_receipts,
    parse_sacct,
    parse_squeue,
    split_sections,
)
from mqi_hpc.core.sbatch_errors import ErrorKind, classify
from mqi_hpc.core.submission import SubmitReport, parse_submit
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from tests.support.bench import make_case
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster

STAGES = ["interpret", "beams", "convert"]
# In the place of python: the fence's first question, and a line that tells that the stage was started.
STAGE = """#!/bin/bash
read -r _ id _ <"$5/receipt.$3"
[ "$id" = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" ] || exit 78
echo "$3 ${SLURM_ARRAY_TASK_ID:-0}" >>"$5/effects"
"""
REFUSE = 'case "$*" in *interpret.sbatch) exec {real} "$@" ;; esac\necho "sbatch: error: no" >&2\nexit 1\n'
ANSWER_LOST = (
    '{real} "$@" >/dev/null\necho "sbatch: error: Socket timed out on send/recv operation" >&2\nexit 1\n'
)
KILL = '{real} "$@"\ncase "$*" in *{stage}.sbatch) kill -KILL -- -$(ps -o pgid= $$ | tr -d " ") ;; esac\n'
FREEZE = '{real} "$@"\ntouch {home}/frozen\nuntil [ -e {home}/thaw ]; do sleep 0.1; done\n'

_keys = itertools.count()


class Chain:
    """A job folder on the cluster with everything rendered for it."""

    def __init__(self, cluster: Cluster, home: Path, **settings: object) -> None:
        self.cluster = cluster
        self.remote = f"/home/mqi/{home.name}"
        changes = {"paths": {"remote_workspace": self.remote}, "stages": {"python": f"{self.remote}/stage"}}
        path = cluster.write_config(home, **changes, **settings)
        self.renderer = Renderer(ConfigLoader().load(path), b"no archive")
        case = make_case(3).evolve(case_id=f"protocol{next(_keys):04d}")
        self.folder = f"{self.remote}/{case.case_id}/j01"
        submissions = plan_submissions(case.instance, case.case_id, 1, case.beams)
        self.names = {s.stage: s.name for s in submissions}
        files = self.renderer.job_files(
            RenderRequest(
                case=case,
                job="j01",
                job_folder=self.folder,
                submissions=submissions,
                beams=case.beams,
                audit_head="",
            )
        )
        self.send({f"{case.case_id}/j01/{name}": content for name, content in files.items()})
        self.send({"stage": STAGE.encode()})
        cluster.ssh(f"mkdir {self.folder}/logs", check=True)

    def send(self, files: dict[str, bytes]) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o700
                tar.addfile(member, io.BytesIO(content))
        text = base64.b64encode(archive.getvalue()).decode()
        self.cluster.ssh(f"mkdir -p {self.remote} && base64 -d | tar -x -C {self.remote}", text, check=True)

    def sbatch(self, text: str, **values: str) -> str:
        """Put another sbatch on PATH; returns the setting that has it found first."""
        script = "#!/bin/bash\n" + text.format(real="/usr/bin/sbatch", home=self.remote, **values)
        self.send({"bin/sbatch": script.encode()})
        return f"PATH={self.remote}/bin:$PATH"

    def command(self, nonce: str, settings: str = "") -> str:
        return f"{settings} setsid --wait bash {self.folder}/submit.sh {nonce}"

    def submit(self, nonce: str, settings: str = "") -> SubmitReport:
        done = self.cluster.ssh(self.command(nonce, settings))
        report = parse_submit(done.stdout, nonce)
        assert report.code in (None, done.returncode), done.stderr
        return report

    def observe(self, nonce: str, *ids: int) -> dict[str, Section]:
        query = JobQuery(ref="job", folder=self.folder, records=(("job/interpret", "interpreted"),))
        script = self.renderer.observe_script(Observe(nonce=nonce, jobs=(query,), sacct_ids=ids))
        return split_sections(self.cluster.ssh("bash -s", script).stdout, nonce)

    def receipts(self) -> dict[str, int]:
        lines = parse_receipts(self.observe("receipts")["receipts:job"].text)
        assert {stage: line.split()[0] for stage, line in lines.items()} == {s: self.names[s] for s in lines}
        return {stage: int(line.split()[1]) for stage, line in lines.items()}

    def queued(self) -> dict[int, str]:
        """Unfinished jobs of our names: id and stage."""
        rows = parse_squeue(self.observe("queue")["squeue"].text)
        stages = {name: stage for stage, name in self.names.items()}
        return {row.job: stages[row.name] for row in rows if row.name in stages and not row.terminal}

    def submitted(self) -> int:
        """How many jobs of our names Slurm has ever accepted."""
        rows = parse_squeue(self.observe("queue")["squeue"].text)
        return len({row.job for row in rows if row.name in self.names.values()})

    def effects(self) -> list[str]:
        return self.cluster.ssh(f"cat {self.folder}/effects 2>/dev/null").stdout.splitlines()

    def ran_once(self) -> None:
        """Wait for the end of the chain: every task was started once, in order."""
        wait_until(lambda: "convert 0" in self.effects(), 60, "the chain's end")
        effects = self.effects()
        assert effects[0] == "interpret 0"
        assert effects[-1] == "convert 0"
        assert sorted(effects[1:-1]) == ["beams 0", "beams 1", "beams 2"]


@pytest.fixture
def chain(cluster: Cluster, tmp_path: Path) -> Iterator[Chain]:
    made = Chain(cluster, tmp_path)
    yield made
    cluster.reset()
    cluster.ssh(f"rm -rf {made.remote}")


def test_three_sbatch_make_a_chain_that_runs_in_order(chain: Chain) -> None:
    report = chain.submit("n1")
    assert (report.code, report.failed, report.head, report.notes) == (0, None, None, ())
    ids = {stage: receipt.id for stage, receipt in report.receipts.items()}
    assert ids == chain.receipts()
    assert list(ids) == STAGES
    chain.ran_once()
    assert chain.submitted() == 3

    def accounted() -> bool:
        rows = parse_sacct(chain.observe("n2", *ids.values())["sacct"].text)
        return len(rows) == 5 and {row.word for row in rows} == {"COMPLETED"}

    wait_until(accounted, 60, "all rows in accounting")
    for section, parse in (("squeue", parse_squeue), ("sacct", parse_sacct)):
        rows = parse(chain.observe("n3", *ids.values())[section].text)
        for stage, tasks in (("interpret", (None,)), ("beams", (0, 1, 2)), ("convert", (None,))):
            for task in tasks:
                time, name = report.receipts[stage].time, chain.names[stage]
                fitting = [
                    row
                    for row in rows
                    if belongs(row, name=name, job=ids[stage], task=task, cluster_time=time)
                ]
                assert len(fitting) == 1, (section, stage, task, rows)

    again = chain.submit("n4")
    assert (again.code, again.receipts) == (0, report.receipts)
    assert chain.submitted() == 3


def test_what_waits_waits_for_the_ids_of_the_receipts(chain: Chain) -> None:
    chain.cluster.root("scontrol update partitionname=cpu state=down")
    try:
        assert chain.submit("n1").code == 0
        ids = chain.receipts()
        wanted = {"beams": f"afterok:{ids['interpret']}", "convert": f"afterany:{ids['beams']}"}
        for stage, dependency in wanted.items():
            shown = chain.cluster.ssh(f"squeue -h -o %E -j {ids[stage]}").stdout
            assert dependency in shown
        head = chain.cluster.ssh(f"scontrol show job {ids['interpret']}").stdout
        assert "JobHeld" not in head
        assert "Requeue=0" in head
    finally:
        chain.cluster.root("scontrol update partitionname=cpu state=up")
    chain.ran_once()


def test_a_hostile_environment_changes_nothing(chain: Chain) -> None:
    settings = (
        "SBATCH_PARTITION=nowhere SBATCH_ARRAY_INX=0-9 SBATCH_HOLD=1 SQUEUE_FORMAT=%i SQUEUE_STATES=all"
    )
    assert chain.submit("n1", f"{settings} SQUEUE_SORT=x SLURM_TIME_FORMAT=relative TMPDIR=/gone").code == 0
    chain.ran_once()


def test_a_refusal_is_told_in_slurms_words(cluster: Cluster, tmp_path: Path) -> None:
    refused = Chain(cluster, tmp_path, slurm={"account": "nobody"})
    report = refused.submit("n1")
    assert report.code == 75
    assert report.failed is not None
    error = classify(report.failed.lines, report.failed.exit_code)
    assert error.kind is ErrorKind.PERMANENT
    assert "Invalid account" in error.text
    assert refused.queued() == {}


def test_a_cancelled_head_burns_the_job(chain: Chain) -> None:
    assert chain.submit("n1", chain.sbatch(REFUSE)).code == 75
    (head,) = chain.receipts().values()
    chain.cluster.ssh(f"scancel {head}", check=True)
    report = chain.submit("n2")
    assert (report.code, report.head) == (77, "not seen")
    assert chain.submitted() == 1
    assert chain.effects() == []


def test_dependants_that_were_cancelled_keep_the_head_from_running(chain: Chain) -> None:
    settings = chain.sbatch('exec {real} "$@"\n')
    chain.send({"bin/scontrol": b"#!/bin/bash\nexit 1\n"})
    assert chain.submit("n1", settings).code == 76
    ids = chain.receipts()
    chain.cluster.ssh(f"scancel {ids['convert']}", check=True)
    report = chain.submit("n2")
    assert report.code == 77
    assert "gone" in str(report.head)
    assert chain.queued()[ids["interpret"]] == "interpret"


@pytest.mark.parametrize("stage", STAGES)
def test_killed_after_any_sbatch_a_rerun_runs_everything_once(chain: Chain, stage: str) -> None:
    assert chain.submit("n1", chain.sbatch(KILL, stage=stage)).code is None
    assert stage not in chain.receipts()
    assert chain.submit("n2").code == 0
    # The killed run's job is held for ever (a head), or runs when the receipts' jobs do, up to the fence.
    assert chain.submitted() == len(STAGES) + 1
    chain.ran_once()
    left = {job: name for job, name in chain.queued().items() if job not in chain.receipts().values()}
    assert set(left.values()) <= {"interpret"}


def test_a_lost_answer_is_no_certainty(chain: Chain) -> None:
    report = chain.submit("n1", chain.sbatch(ANSWER_LOST))
    assert report.code == 75
    assert report.failed is not None
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.UNKNOWN
    assert list(chain.queued().values()) == ["interpret"]


def test_a_frozen_run_takes_its_own_back_when_it_thaws(chain: Chain) -> None:
    settings = chain.sbatch(FREEZE)
    quoted = shlex.quote(chain.command("frozen", settings))
    chain.cluster.ssh(f"nohup bash -c {quoted} >{chain.remote}/said 2>&1 </dev/null & ")
    wait_until(lambda: chain.cluster.ssh(f"ls {chain.remote}/frozen").returncode == 0, 30, "a frozen run")
    assert chain.submit("n2").code == 0
    (ghost,) = [job for job in chain.queued() if job not in chain.receipts().values()]
    chain.cluster.ssh(f"touch {chain.remote}/thaw", check=True)

    def said() -> SubmitReport:
        return parse_submit(chain.cluster.ssh(f"cat {chain.remote}/said").stdout, "frozen")

    wait_until(lambda: said().code is not None, 60, "the end of the thawed run")
    assert said().code == 0
    assert ghost not in chain.queued()
    chain.ran_once()


def test_two_at_once_run_everything_once(chain: Chain) -> None:
    both = " & ".join(f"{chain.command(f'n{n}')} >{chain.remote}/said{n} 2>&1" for n in (1, 2))
    chain.cluster.ssh(f"{both} & wait", check=True)
    for n in (1, 2):
        report = parse_submit(chain.cluster.ssh(f"cat {chain.remote}/said{n}").stdout, f"n{n}")
        assert report.code == 0
    chain.ran_once()
    assert set(chain.queued()) <= set(chain.receipts().values())


def test_a_controller_that_is_down_is_waited_for(chain: Chain) -> None:
    chain.cluster.ctl("restart", "slurmctld")
    chain.cluster.ctl("kill", "slurmctld")
    report = chain.submit("n1")
    assert report.code == 75
    assert report.failed is not None
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.TRANSIENT
    sections = chain.observe("n2")
    assert sections["squeue"].exit_code != 0
    assert "Unable to contact slurm controller" in sections["squeue"].text
    assert sections["receipts:job"].exit_code == 0
    chain.cluster.ctl("start", "slurmctld")
    assert chain.submit("n3").code == 0
    chain.ran_once()


def test_accounting_that_is_down_costs_its_section_alone(chain: Chain) -> None:
    ids = {stage: receipt.id for stage, receipt in chain.submit("n1").receipts.items()}
    chain.cluster.ctl("kill", "slurmdbd")
    sections = chain.observe("n2", *ids.values())
    assert sections["sacct"].exit_code != 0
    assert sections["squeue"].exit_code == 0
    assert {row.job for row in parse_squeue(sections["squeue"].text)} >= set(ids.values())
