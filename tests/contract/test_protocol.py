"""submit.sh and the poll script on a real Slurm: what the fake of the unit tests promises holds there."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.effects import JobQuery, Observe
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.models import Beam, Case
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
from mqi_hpc.infrastructure.slurm.archive import build_stages
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.result import ConvertRecord, decode_record
from tests.support.bench import make_case
from tests.support.cluster import Cluster, wait_until
from tests.support.stage_job import ENGINE, BeamSpec, StageJob

pytestmark = pytest.mark.cluster

STAGES = ["interpret", "beams", "convert"]
# What a job does itself; the rest is taken from an older one.
KINDS = {"whole": STAGES, "from beams on": STAGES[1:], "convert alone": STAGES[2:]}
each_kind = pytest.mark.parametrize("chain", KINDS, indirect=True)
each_stage = pytest.mark.parametrize(
    ("chain", "stage"), [(kind, s) for kind, stages in KINDS.items() for s in stages], indirect=["chain"]
)
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


class Workspace:
    """A folder on the cluster for a test's jobs."""

    def __init__(self, cluster: Cluster, home: Path, archive: bytes, **settings: Any) -> None:
        self.cluster = cluster
        self.remote = f"/home/mqi/{home.name}"
        path = cluster.write_config(home, paths={"remote_workspace": self.remote}, **settings)
        self.renderer = Renderer(ConfigLoader().load(path), archive)

    def send(self, files: dict[str, bytes]) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o700
                tar.addfile(member, io.BytesIO(content))
        text = base64.b64encode(archive.getvalue()).decode()
        self.cluster.ssh(f"mkdir -p {self.remote} && base64 -d | tar -x -C {self.remote}", text, check=True)


class Chain:
    """A job folder on the cluster with everything rendered for it."""

    def __init__(
        self, work: Workspace, case: Case, number: int, *computed: int, stages: list[str], **more: Any
    ) -> None:
        self.work, self.cluster, self.remote = work, work.cluster, work.remote
        self.stages, self.computed, job = stages, computed, f"j{number:02d}"
        self.folder = f"{self.remote}/{case.case_id}/{job}"
        beams = tuple(case.beams[index] for index in computed)
        submissions = plan_submissions(case.instance, case.case_id, number, beams, stages)
        self.names = {s.stage: s.name for s in submissions}
        request = RenderRequest(
            case=case,
            job=job,
            job_folder=self.folder,
            submissions=submissions,
            beams=beams,
            audit_head="",
            **more,
        )
        files = work.renderer.job_files(request)
        work.send({f"{case.case_id}/{job}/{name}": content for name, content in files.items()})
        self.cluster.ssh(f"mkdir {self.folder}/logs", check=True)

    def sbatch(self, text: str, **values: str) -> str:
        """Put another sbatch on PATH; returns the setting that has it found first."""
        script = "#!/bin/bash\n" + text.format(real="/usr/bin/sbatch", home=self.remote, **values)
        self.work.send({"bin/sbatch": script.encode()})
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
        script = self.work.renderer.observe_script(Observe(nonce=nonce, jobs=(query,), sacct_ids=ids))
        return split_sections(self.cluster.ssh("bash -s", script).stdout, nonce)

    def receipts(self) -> dict[str, int]:
        lines = dict(parse_receipts(self.observe("receipts")["receipts:job"].text))
        assert {claim.split("-")[0] for claim in lines.pop("claimed", "").split()} <= set(self.stages)
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
        head = ["interpret 0"] if self.stages == STAGES else []
        assert effects[: len(head)] == head
        assert sorted(effects[len(head) : -1]) == [f"beams {index}" for index in self.computed]
        assert effects[-1] == "convert 0"


def make_chain(cluster: Cluster, home: Path, kind: str = "whole", **settings: Any) -> Chain:
    """Put a job on the cluster whose stages only tell that they were started."""
    work = Workspace(
        cluster, home, b"no archive", stages={"python": f"/home/mqi/{home.name}/stage"}, **settings
    )
    case = make_case(3).evolve(case_id=f"protocol{next(_keys):04d}")
    work.send({"stage": STAGE.encode()})
    if kind == "whole":
        return Chain(work, case, 1, 0, 1, 2, stages=STAGES)
    computed = [1] if kind == "from beams on" else []
    sources = {index: "j01" for index in range(3) if index not in computed}
    taken = {"sources": sources, "interpreted": ("j01", "a" * 64), "waits_for": ("j01",)}
    return Chain(work, case, 2, *computed, stages=KINDS[kind], **taken)


@pytest.fixture
def chain(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> Iterator[Chain]:
    made = make_chain(cluster, tmp_path, getattr(request, "param", "whole"))
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
    refused = make_chain(cluster, tmp_path, slurm={"account": "nobody"})
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
    chain.work.send({"bin/scontrol": b"#!/bin/bash\nexit 1\n"})
    assert chain.submit("n1", settings).code == 76
    ids = chain.receipts()
    chain.cluster.ssh(f"scancel {ids['convert']}", check=True)
    report = chain.submit("n2")
    assert report.code == 77
    assert "gone" in str(report.head)
    assert chain.queued()[ids["interpret"]] == "interpret"


@each_stage
def test_killed_after_any_sbatch_a_rerun_runs_everything_once(chain: Chain, stage: str) -> None:
    assert chain.submit("n1", chain.sbatch(KILL, stage=stage)).code is None
    assert stage not in chain.receipts()
    assert chain.submit("n2").code == 0
    # The killed run's job is held for ever (a head), or runs when the receipts' jobs do, up to the fence.
    assert chain.submitted() == len(chain.stages) + 1
    chain.ran_once()
    receipts = chain.receipts().values()

    def ended() -> bool:
        return {name for job, name in chain.queued().items() if job not in receipts} <= {chain.stages[0]}

    wait_until(ended, 60, "the end of the killed run's job, unless it is a held head")
    assert chain.effects().count("convert 0") == 1


def test_a_lost_answer_is_no_certainty(chain: Chain) -> None:
    report = chain.submit("n1", chain.sbatch(ANSWER_LOST))
    assert report.code == 75
    assert report.failed is not None
    assert classify(report.failed.lines, report.failed.exit_code).kind is ErrorKind.UNKNOWN
    assert list(chain.queued().values()) == ["interpret"]


@each_kind
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


@each_kind
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


# Later jobs of a case, with the real stages

# What the engine does with a beam: as the file of its number says.
TOLD = """
told = pathlib.Path("{remote}/told.%d" % number)
while told.exists() and told.read_text() == "wait":
    time.sleep(0.1)
if told.exists():
    sys.exit(7)
"""


class Resubmitted:
    """A case of the beams 2, 3 and 4 on the cluster, and its jobs."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        remote = f"/home/mqi/{home.name}"
        grid = {"size": [4, 3, 5], "spacing": [2, 3, 1], "position": [-4, -4, -5]}
        stages = {"engine": ["/usr/bin/python3", f"{remote}/engine.py"]}
        self.work = Workspace(cluster, home, build_stages(), moqui={"grid": grid}, stages=stages)
        local = StageJob(home / "local", [BeamSpec(n, f"B{n}") for n in (2, 3, 4)])
        self.case = make_case(3).evolve(
            case_id=f"protocol{next(_keys):04d}",
            plan_uid=local.plan_uid,
            beams=tuple(
                Beam(
                    index=beam.index,
                    number=beam.number,
                    name=beam.name,
                    energies=beam.energies,
                    input_digest=beam.input_digest,
                    seed=beam.seed,
                )
                for beam in local.chain.beams
            ),
        )
        inputs = [path for path in local.input.rglob("*") if path.is_file()]
        files = {f"input/{path.relative_to(local.input)}": path.read_bytes() for path in inputs}
        self.work.send({f"{self.case.case_id}/{name}": content for name, content in files.items()})
        engine = ENGINE.replace("BEHAVIOUR", TOLD.format(remote=remote))
        self.work.send({"engine.py": engine.encode()})

    def tell(self, number: int, word: str | None) -> None:
        """Have the engine fail or wait with a beam, None: neither."""
        name = f"{self.work.remote}/told.{number}"
        line = f"rm {name}" if word is None else f"printf %s {word} >{name}.new && mv {name}.new {name}"
        self.work.cluster.ssh(line, check=True)

    def first(self) -> Chain:
        """j01 for all beams, submitted."""
        return self.submitted(Chain(self.work, self.case, 1, 0, 1, 2, stages=STAGES))

    def later(self, number: int, *computed: int, waits_for: tuple[str, ...], **sources: str) -> Chain:
        """A job that takes interpret's output from j01, submitted; sources as b0="j01"."""
        content = self.work.cluster.ssh(
            f"cat {self.work.remote}/{self.case.case_id}/j01/interpreted/result.json", check=True
        ).stdout
        return self.submitted(
            Chain(
                self.work,
                self.case,
                number,
                *computed,
                stages=STAGES[1:] if computed else STAGES[2:],
                sources={int(name[1:]): job for name, job in sources.items()},
                interpreted=("j01", hashlib.sha256(content.encode()).hexdigest()),
                waits_for=waits_for,
            )
        )

    def submitted(self, job: Chain) -> Chain:
        report = job.submit("n1")
        assert (report.code, list(report.receipts), report.notes) == (0, job.stages, ())
        return job

    def converted(self, job: Chain) -> ConvertRecord:
        """What a job's convert made, once it has ended."""
        name = f"{job.folder}/results/result.json"
        text = wait_until(
            lambda: self.work.cluster.ssh(f"cat {name}").stdout, 120, f"{name}: {self.logs(job)}"
        )
        record = decode_record(text)
        assert isinstance(record, ConvertRecord)
        return record

    def logs(self, job: Chain) -> str:
        return self.work.cluster.ssh(f"tail -n 3 {job.folder}/logs/*").stdout

    def said(self, job: Chain, stage: str, index: int, event: str) -> None:
        """Wait until a task's status lines tell of an event."""
        name = f"{job.folder}/status/{stage}-{index}.jsonl"
        look = f"grep -q '\"{event}\"' {name}"
        wait_until(lambda: self.work.cluster.ssh(look).returncode == 0, 120, f"{event} in {name}")


@pytest.fixture
def resubmitted(cluster: Cluster, tmp_path: Path) -> Iterator[Resubmitted]:
    made = Resubmitted(cluster, tmp_path)
    yield made
    cluster.reset()
    cluster.ssh(f"rm -rf {made.work.remote}")


def sources(record: ConvertRecord) -> list[tuple[int, str]]:
    return [(dose.index, dose.source_job) for dose in record.doses]


def test_a_beam_that_failed_is_computed_by_a_later_job_and_converted_with_the_others(
    resubmitted: Resubmitted,
) -> None:
    resubmitted.tell(3, "fail")
    first = resubmitted.first()
    record = resubmitted.converted(first)
    assert (sources(record), list(record.missing)) == ([(0, "j01"), (2, "j01")], ["1"])
    resubmitted.tell(3, None)
    second = resubmitted.later(2, 1, waits_for=("j01",), b0="j01", b2="j01")
    record = resubmitted.converted(second)
    assert (sources(record), record.missing) == ([(0, "j01"), (1, "j02"), (2, "j01")], {})
    # The array is of exactly the index 1.
    array = second.receipts()["beams"]
    rows = parse_squeue(second.observe("tasks")["squeue"].text)
    assert {row.task for row in rows if row.name == second.names["beams"]} == {1}
    assert {row.job for row in rows if row.name == second.names["beams"]} == {array}
    claims = second.cluster.ssh(f"cd {second.folder} && ls claim.*").stdout.split()
    assert claims == ["claim.beams-1", "claim.convert-0"]
    # Convert alone makes the same objects of the same doses.
    third = resubmitted.later(3, waits_for=("j01", "j02"), b0="j01", b1="j02", b2="j01")
    again = resubmitted.converted(third)
    assert [dose.sop_instance_uid for dose in again.doses] == [d.sop_instance_uid for d in record.doses]
    assert (again.missing, third.submitted()) == ({}, 1)


def test_convert_waits_for_the_arrays_of_older_jobs_too(resubmitted: Resubmitted) -> None:
    resubmitted.tell(3, "fail")
    resubmitted.tell(4, "wait")
    first = resubmitted.first()
    resubmitted.said(first, "beams", 1, "exited")
    resubmitted.said(first, "beams", 2, "progress")
    resubmitted.tell(3, None)
    second = resubmitted.later(2, 1, waits_for=("j01",), b0="j01", b2="j01")
    third = resubmitted.later(3, waits_for=("j01",), b0="j01", b2="j01")
    resubmitted.said(second, "beams", 1, "exited")
    old = first.receipts()["beams"]
    for job in (second, third):
        convert = job.receipts()["convert"]
        line = f"squeue -h -j {convert} -o '%T %E'"

        def waits(line: str = line) -> bool:
            word, dependency = resubmitted.work.cluster.ssh(line, check=True).stdout.split()
            assert word == "PENDING"
            # Its own array's end is told to it a moment later.
            return dependency == f"afterany:{old}_*(unfulfilled)"

        wait_until(waits, 60, f"convert {convert} waits for the older array alone")
    resubmitted.tell(4, None)
    assert sources(resubmitted.converted(second)) == [(0, "j01"), (1, "j02"), (2, "j01")]
    record = resubmitted.converted(third)
    assert (sources(record), list(record.missing)) == ([(0, "j01"), (2, "j01")], ["1"])
