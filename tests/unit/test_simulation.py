"""The simulated cluster beyond what the contract can ask of a real one: versions, faults, determinism."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.effects import Completion, Failure, JobQuery, Observe, Scan, Submit, Upload
from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.core.intake import ScanReport
from mqi_hpc.core.models import Case
from mqi_hpc.core.observation import parse_sacct, parse_squeue, split_sections
from mqi_hpc.core.submission import parse_submit
from tests.support.bench import PlainRenderer, make_case
from tests.support.memory_store import MemoryStore
from tests.support.simulation import Script, SimulatedCluster, Site, VirtualClock
from tests.support.simulation.elsewhere import ClusterElsewhere
from tests.support.simulation.filesystem import FileSystem
from tests.support.simulation.installation import Installation
from tests.support.simulation.jobs import Element, Program, Request, SlurmError, SlurmJob, Terminated
from tests.support.simulation.observe import squeue
from tests.support.simulation.slurm import Slurm
from tests.support.simulation.submit import sbatch_options

VERSIONS = ("22.05", "24.11", "26.05")
STEPS = (
    "sbatch interpret", "receipt interpret", "sbatch beams", "receipt beams", "sbatch convert",
    "receipt convert", "release",
)  # fmt: skip


# Time


def test_what_is_planned_is_done_in_order_of_time_then_of_planning() -> None:
    clock = VirtualClock()
    done: list[tuple[str, float]] = []

    def note(name: str) -> None:
        done.append((name, clock.monotonic()))

    for name, seconds in (("b", 2.0), ("a", 1.0), ("c", 2.0)):
        clock.later(seconds, partial(note, name))
    clock.later(1.5, partial(note, "never")).cancel()
    clock.advance(1.0)
    assert done == [("a", 1.0)]
    assert clock.next_due() == 1.0
    clock.advance(5.0)
    assert done == [("a", 1.0), ("b", 2.0), ("c", 2.0)]
    assert clock.monotonic() == 6.0
    assert clock.next_due() is None


def test_what_an_action_plans_for_the_same_moment_is_done_too() -> None:
    clock = VirtualClock()
    done: list[float] = []
    clock.later(1.0, lambda: clock.later(0.0, lambda: done.append(clock.monotonic())))
    clock.advance(1.0)
    assert done == [1.0]


# Files


def test_the_first_writer_wins_for_ever() -> None:
    files = FileSystem()
    assert files.publish("/w/a", b"first")
    assert not files.publish("/w/a", b"second")
    assert files.read("/w/a") == b"first"
    files.append("/w/lines", "one\n")
    files.append("/w/lines", "two\n")
    assert files.read("/w/lines") == b"one\ntwo\n"
    files.rename("/w/a", "/x/y/b")
    assert [path for path, _ in files.walk("/")] == ["w/lines", "x/y/b"]
    with pytest.raises(FileExistsError):
        files.rename("/w/lines", "/x/y/b")
    with pytest.raises(NotADirectoryError):
        files.write("/w/lines/below", b"")
    files.remove("/x")
    files.remove("/x")
    assert not files.exists("/x/y")
    assert (files.names("/w"), files.is_folder("/w"), files.stat("/w")) == (["lines"], True, None)


def test_a_file_system_that_is_away_answers_nothing() -> None:
    files = FileSystem()
    files.write("/w/a", b"x")
    files.away = True
    for access in (lambda: files.exists("/w"), lambda: files.write("/w/a", b"")):
        with pytest.raises(ConnectionError, match="does not answer"):
            access()


# Slurm


def sleeper(seconds: float, code: int = 0) -> Callable[[SlurmJob, Element], Program]:
    def launch(job: SlurmJob, element: Element) -> Generator[float, None, int]:
        try:
            yield seconds
        except Terminated:
            return 143
        return code

    return launch


def slurm(version: str = "22.05", seconds: float = 10.0, code: int = 0, **site: Any) -> Slurm:
    return Slurm(VirtualClock(), Site(version=version, **site), sleeper(seconds, code))


def clock_of(cluster: Slurm) -> VirtualClock:
    return cluster._clock


def rows(cluster: Slurm) -> dict[tuple[int, int | None], str]:
    return {(row.job, row.task): row.word for row in parse_squeue(squeue(cluster.shown(), cluster.site))}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_dependency_on_a_forgotten_job(version: str) -> None:
    # Facts: reference 1.2 of the Slurm notes: up to 22.05 the dependency is lifted, then afterok is refused.
    cluster = slurm(version)
    if version == "22.05":
        job = cluster.sbatch(Request(name="mqi-a", waits=(("afterok", 99),)))
        clock_of(cluster).advance(2.0)
        assert rows(cluster) == {(job, None): "RUNNING"}
    else:
        with pytest.raises(SlurmError, match="Job dependency problem"):
            cluster.sbatch(Request(name="mqi-a", waits=(("afterok", 99),)))
    any_ = cluster.sbatch(Request(name="mqi-b", waits=(("afterany", 99),)))
    clock_of(cluster).advance(2.0)
    assert rows(cluster)[any_, None] == "RUNNING"


@pytest.mark.parametrize(("version", "shown"), [("22.05", "9:0"), ("24.11", "9:0"), ("26.05", "137:0")])
def test_an_exit_code_of_a_signals_form(version: str, shown: str) -> None:
    cluster = slurm(version, code=137)
    job = cluster.sbatch(Request(name="mqi-a"))
    clock_of(cluster).advance(60.0)
    (row,) = parse_sacct(cluster.accounting.sacct([job]))
    assert (row.word, row.exit_code) == ("FAILED", shown)


@pytest.mark.parametrize(("version", "code"), [("22.05", "0:0"), ("24.11", "1:0"), ("26.05", "1:0")])
def test_a_node_that_goes_down_takes_what_runs_and_gives_its_gpus_back(version: str, code: str) -> None:
    cluster = slurm(version, seconds=1000.0)
    job = cluster.sbatch(Request(name="mqi-a", gpus=1, indices=tuple(range(6))))
    clock_of(cluster).advance(2.0)
    assert [element.node for element in cluster.jobs[job].elements.values()] == ["g1"] * 4 + ["g2"] * 2
    cluster.node_down("g1")
    clock_of(cluster).advance(10.0)
    told = {row.task: (row.word, row.exit_code) for row in parse_sacct(cluster.accounting.sacct([job]))}
    assert [told[index] for index in range(4)] == [("NODE_FAIL", code)] * 4
    assert {told[index][0] for index in (4, 5)} == {"RUNNING"}
    assert (cluster.nodes["g1"].gpus, cluster.nodes["g2"].gpus) == (4, 2)
    other = cluster.sbatch(Request(name="mqi-b", gpus=4))
    clock_of(cluster).advance(2.0)
    assert cluster.jobs[other].reason == "Resources"
    cluster.node_up("g1")
    clock_of(cluster).advance(2.0)
    assert rows(cluster)[other, None] == "RUNNING"


def test_the_last_element_to_start_bears_the_arrays_own_raw_id() -> None:
    cluster = slurm()
    job = cluster.sbatch(Request(name="mqi-a", indices=(0, 1, 2), throttle=2))
    clock_of(cluster).advance(2.0)
    assert cluster.jobs[job].reason == "JobArrayTaskLimit"
    clock_of(cluster).advance(11.0)
    assert [element.raw for element in cluster.jobs[job].elements.values()] == [job + 1, job + 2, job]


def test_nothing_is_kept_of_what_ended_long_ago_but_its_row() -> None:
    cluster = slurm(min_job_age=60.0)
    ids = [cluster.sbatch(Request(name="mqi-a", indices=(0, 1))) for _ in range(5)]
    clock_of(cluster).advance(2000.0)
    assert (cluster.jobs, clock_of(cluster).next_due()) == ({}, None)
    assert len(parse_sacct(cluster.accounting.sacct(ids))) == 10
    cluster.accounting.forget(ids[0])
    assert len(parse_sacct(cluster.accounting.sacct(ids))) == 8


def test_a_dependency_is_looked_at_before_what_it_names_is_forgotten() -> None:
    cluster = slurm(min_job_age=1.0, seconds=5.0)
    head = cluster.sbatch(Request(name="mqi-a"))
    held = cluster.sbatch(Request(name="mqi-b", waits=(("afterok", head),), hold=True))
    clock_of(cluster).advance(60.0)
    assert head not in cluster.jobs
    cluster.release(held)
    clock_of(cluster).advance(2.0)
    assert rows(cluster)[held, None] == "RUNNING"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(name="a", partition="none"), "Invalid partition"),
        (Request(name="a", account="none"), "Invalid account"),
        (Request(name="a", indices=(1001,)), "Invalid job array"),
    ],
)
def test_what_slurm_never_takes(request_: Request, words: str) -> None:
    with pytest.raises(SlurmError, match=words):
        slurm().sbatch(request_)


def test_a_full_queue_is_for_later() -> None:
    cluster = slurm(most_jobs=1)
    cluster.sbatch(Request(name="a"))
    with pytest.raises(SlurmError, match="temporarily unavailable"):
        cluster.sbatch(Request(name="a"))


def test_what_cannot_be_released() -> None:
    cluster = slurm(seconds=1.0)
    job = cluster.sbatch(Request(name="a"))
    clock_of(cluster).advance(10.0)
    with pytest.raises(SlurmError, match="already finished"):
        cluster.release(job)
    with pytest.raises(SlurmError, match="Invalid job id"):
        cluster.release(99)


def test_without_accounting_sacct_says_so() -> None:
    cluster = slurm(accounting=False)
    job = cluster.sbatch(Request(name="a"))
    with pytest.raises(SlurmError, match="accounting storage is disabled"):
        cluster.accounting.sacct([job])


def test_a_silent_node_s_program_works_on() -> None:
    worked: list[float] = []

    def launch(job: SlurmJob, element: Element) -> Generator[float, None, int]:
        for _ in range(5):
            yield 10.0
            worked.append(clock_of(cluster).monotonic())
        return 0

    cluster = Slurm(VirtualClock(), Site(), launch)
    job = cluster.sbatch(Request(name="mqi-a", gpus=1))
    clock_of(cluster).advance(15.0)
    cluster.node_down("g1", silently=True)
    assert rows(cluster) == {(job, None): "NODE_FAIL"}
    clock_of(cluster).advance(100.0)
    assert len(worked) == 5
    assert rows(cluster) == {(job, None): "NODE_FAIL"}


def test_options_are_read_from_a_rendered_script() -> None:
    beams = b"submit beams \\\n  --gres=gpu:a100:1 \\\n  '--comment=a b' \\\n  --array=0-2%2\n"
    script = b"submit interpret \\\n  --hold\n" + beams
    assert sbatch_options(script, "beams") == {
        "--gres": "gpu:a100:1",
        "--comment": "a b",
        "--array": "0-2%2",
    }
    assert sbatch_options(script, "convert") == {}
    assert sbatch_options(None, "beams") == {}


def test_a_controller_that_is_killed_comes_back_as_it_was() -> None:
    cluster = slurm(seconds=30.0)
    clock = clock_of(cluster)
    old = cluster.sbatch(Request(name="mqi-old", partition="cpu"))
    clock.advance(20.0)
    head = cluster.sbatch(Request(name="mqi-head", partition="cpu", hold=True))
    clock.advance(10.0)
    cluster.release(head)
    clock.advance(3.0)
    lost = cluster.sbatch(Request(name="mqi-lost", waits=(("afterok", head),)))
    assert rows(cluster) == {(old, None): "COMPLETED", (head, None): "RUNNING", (lost, None): "PENDING"}
    cluster.crash(5.0)
    with pytest.raises(SlurmError, match="Unable to contact"):
        cluster.shown()
    cluster.start()
    assert rows(cluster) == {(old, None): "RUNNING", (head, None): "PENDING"}
    assert cluster.jobs[head].held
    again = cluster.sbatch(Request(name="mqi-other"))
    assert again == lost
    clock.advance(100.0)
    assert rows(cluster) == {(old, None): "NODE_FAIL", (head, None): "PENDING", (again, None): "COMPLETED"}
    cluster.release(head)
    clock.advance(40.0)
    assert rows(cluster)[head, None] == "COMPLETED"
    assert {name: (node.cpus, node.gpus) for name, node in cluster.nodes.items()} == {
        "g1": (16, 4),
        "g2": (16, 4),
        "c1": (16, 0),
    }


# A whole installation


class World:
    """An installation on a simulated cluster, and a case."""

    def __init__(self, version: str = "22.05", seed: int = 0, beams: int = 3) -> None:
        self.clock = VirtualClock()
        self.sim = SimulatedCluster(self.clock, version)
        self.store = MemoryStore()
        self.case: Case = make_case(beams)
        self.said: list[str] = []
        self.seed = seed
        self.restart()

    def restart(self) -> None:
        """What was in flight is lost; the store and the cluster are not."""
        self.sim.close()
        self.installation = Installation(
            self.store,
            self.sim,
            self.clock,
            PlainRenderer(),
            seed=self.seed,
            tell=lambda _, text: self.said.append(f"{self.clock.monotonic():.3f} {text}"),
        )
        self.installation.take(self.case)

    @property
    def status(self) -> str:
        return self.installation.report(self.case.case_id).status

    def until(self, status: str) -> None:
        self.installation.run_until(lambda: self.status == status, 5_000)

    def claims(self) -> list[str]:
        names = self.sim.files.names(f"/work/{self.case.case_id}/j01")
        return [name for name in names if name.startswith("claim.")]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_case_comes_to_its_end(version: str) -> None:
    world = World(version)
    world.until("completed")
    assert world.claims() == [
        "claim.beams-0",
        "claim.beams-1",
        "claim.beams-2",
        "claim.convert-0",
        "claim.interpret-0",
    ]
    assert world.sim.slurm.accepted == 3


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("exit 9", "failed"),
        ("no output", "failed (no output)"),
        ("cut", "failed (invalid output)"),
        ("rubbish", "failed (invalid output)"),
        ("other-beam", "failed (invalid output)"),
    ],
)
def test_a_beam_s_fault_is_judged_for_what_it_is(fault: str, verdict: str) -> None:
    world = World()
    world.sim.script.beams[3] = fault
    world.until("partial")
    report = world.installation.report(world.case.case_id)
    assert [beam.verdict for beam in report.beams] == ["done", verdict, "done"]


def test_a_stage_whose_folder_has_gone_makes_no_other() -> None:
    world = World()
    world.sim.script.stages["interpret"] = "none"
    world.installation.run_until(lambda: bool(world.claims()))
    world.sim.files.remove(f"/work/{world.case.case_id}")
    world.clock.advance(1000.0)
    assert not world.sim.files.exists(f"/work/{world.case.case_id}")


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        world = World(seed=7)
        world.sim.script.beams[3] = "exit 5"
        world.sim.link.lose_replies.append(Upload)
        world.until("partial")
        runs.append((world.said, dict(world.sim.files.walk("/work"))))
    assert runs[0] == runs[1]


@given(st.lists(st.sampled_from(STEPS), max_size=4))
def test_a_submission_cut_anywhere_and_run_again_submits_each_stage_s_receipt_once(cuts: list[str]) -> None:
    clock = VirtualClock()
    sim = SimulatedCluster(clock)
    world = World()
    with world.store.transaction() as unit:
        job = unit.jobs.of_case(world.case.case_id)[0]
        files = unit.jobs.files(job.job_id)
    folder = f"/work/{world.case.case_id}/j01"
    upload = Upload(
        case_id=world.case.case_id,
        job_id=job.job_id,
        source="/cases",
        input_folder=f"/work/{world.case.case_id}/input",
        inputs=world.case.files,
        job_folder=folder,
        files=files,
    )
    answer(sim, upload)
    seen: dict[str, int] = {}
    for number, cut in enumerate([*cuts, None]):
        sim.link.cut_submit = cut
        submit = Submit(case_id=world.case.case_id, job_id=job.job_id, job_folder=folder, nonce=f"n{number}")
        completion = answer(sim, submit)
        report = parse_submit(completion.output, f"n{number}")
        ids = {stage: receipt.id for stage, receipt in report.receipts.items()}
        assert ids.items() >= {stage: seen[stage] for stage in seen if stage in ids}.items()
        seen.update(ids)
    assert report.code == 0
    sim.advance(1000.0)
    names = sim.files.names(folder)
    assert sum(name.startswith("claim.") for name in names) == 5
    assert len(list(sim.files.walk(f"{folder}/results"))) == 4


def answer(sim: SimulatedCluster, effect: Any) -> Completion:
    sim.start(effect)
    (completion,) = sim.completions(600.0)
    return completion


@pytest.fixture
def sim() -> Iterator[SimulatedCluster]:
    yield SimulatedCluster(VirtualClock())


LOOK = Observe(nonce="n", jobs=(), sacct_ids=())


def test_an_effect_takes_its_time(sim: SimulatedCluster) -> None:
    sim.start(LOOK)
    assert sim.completions(0.2) == []
    assert sim.clock.monotonic() == pytest.approx(0.2)
    assert [completion.effect for completion in sim.completions(10.0)] == [LOOK]
    assert sim.clock.monotonic() == pytest.approx(sim.link.seconds[Observe])
    assert sim.completions(3.0) == []
    assert sim.clock.monotonic() == pytest.approx(sim.link.seconds[Observe] + 3.0)


def test_a_way_that_is_down_or_refuses_us(sim: SimulatedCluster) -> None:
    sim.link.down = True
    assert answer(sim, LOOK).failure is Failure.OUTAGE
    sim.link.refused = True
    assert answer(sim, LOOK).failure is Failure.ACCESS


def test_the_workstation_s_own_folders_do_not_need_the_way() -> None:
    report = ScanReport(gone=("/cases/P001",))
    sim = SimulatedCluster(VirtualClock(), scan=lambda _: report)
    sim.link.down = True
    assert answer(sim, Scan(known=())).payload is report
    assert answer(SimulatedCluster(VirtualClock()), Scan(known=())).payload == ScanReport()


def test_a_stalled_effect_comes_back_when_it_is_let(sim: SimulatedCluster) -> None:
    sim.link.stall.append(Observe)
    sim.start(LOOK)
    assert sim.completions(100.0) == []
    sim.release()
    assert len(sim.completions(1.0)) == 1


def test_what_dies_with_the_program_never_acts() -> None:
    world = World()
    world.sim.die()
    world.clock.advance(100.0)
    assert not world.sim.files.exists("/work")
    world.restart()
    world.installation.orchestrator.turn()
    world.sim.close()
    world.clock.advance(100.0)
    assert world.sim.files.exists("/work")


def test_a_closed_session_hears_nothing_of_what_it_started(sim: SimulatedCluster) -> None:
    sim.start(LOOK)
    sim.close()
    assert sim.completions(10.0) == []
    assert len(sim.completions(0.0)) == 0


def test_a_file_system_that_is_away_costs_only_what_needs_it() -> None:
    world = World()
    world.installation.run_until(lambda: world.sim.slurm.accepted == 3)
    world.sim.files.away = True
    query = JobQuery(ref="job", folder="/work/abc", records=())
    sections = split_sections(answer(world.sim, replace(LOOK, jobs=(query,))).output, "n")
    assert set(sections) == {"date", "squeue"}
    submit = Submit(case_id="c", job_id="j", job_folder="/work/abc", nonce="n")
    lost = answer(world.sim, submit)
    assert (lost.failure, lost.uncertain) == (Failure.OUTAGE, True)
    world.installation.run_until(lambda: world.clock.monotonic() > 400.0)
    assert world.status == "processing"
    world.sim.files.away = False
    world.until("completed")


def test_a_lost_reply_of_a_submission_is_found_again() -> None:
    world = World()
    world.sim.link.lose_replies.append(Submit)
    world.until("completed")
    assert world.sim.slurm.accepted == 3


@given(st.lists(st.floats(0.0, 200.0), max_size=5))
def test_a_restart_at_any_time_runs_nothing_twice(waits: list[float]) -> None:
    world = World(beams=2)
    for wait in waits:
        end = world.clock.monotonic() + wait
        while world.clock.monotonic() < end and world.status != "completed":
            world.installation.orchestrator.turn()
        world.restart()
    world.until("completed")
    assert world.sim.slurm.accepted == 3
    assert len(world.claims()) == 4


def test_a_cluster_in_another_process_is_the_same() -> None:
    cluster = ClusterElsewhere(Site(), Script())
    try:
        installation = Installation(MemoryStore(), cluster, cluster, PlainRenderer())
        case = make_case(2)
        installation.take(case)
        installation.run_until(lambda: installation.report(case.case_id).status == "completed", 5_000)
        assert 140.0 < cluster.monotonic() < 600.0
    finally:
        cluster.close()


def test_hang_is_for_ever() -> None:
    world = World()
    world.sim.script.beams[2] = "hang"
    world.installation.run_until(lambda: world.clock.monotonic() > 10_000.0)
    assert world.status == "processing"
    assert not math.isinf(world.clock.monotonic())
