"""A case on the workbench: store, services, orchestrator and a scripted cluster, wired for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.models import Beam, Case, CaseStatus, InputFile, Task, TaskType
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.core.readings import Limits
from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.core.retry_causes import RetryTable
from mqi_hpc.domain.desk import Desk
from mqi_hpc.domain.orders import Orders
from mqi_hpc.domain.polls import Polls
from mqi_hpc.domain.reconciler import Reconciler
from mqi_hpc.domain.retries import Retries
from mqi_hpc.domain.task_scheduler import TaskScheduler
from mqi_hpc.domain.watcher import Watcher
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.records.chain import (
    Calibration,
    Chain,
    ChainBeam,
    ChainSubmission,
    Grid,
    Interpreted,
    Settings,
    encode_chain,
)
from mqi_hpc.records.result import (
    BeamRecord,
    ConvertedDose,
    ConvertRecord,
    FileEntry,
    Gpu,
    InterpretRecord,
    Record,
    Run,
    encode_record,
)
from mqi_hpc.records.status import StatusLine, encode_line
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.report_service import CaseReport, ReportService
from mqi_hpc.services.resource_service import ResourceService
from mqi_hpc.services.transfer_service import TransferService
from tests.support.memory_store import MemoryStore
from tests.support.world import NOW, Clock, Ids, World

KEY = "abcdefghijkl"
DIGEST = "a" * 64
GRID = Grid(size=(2, 3, 4), spacing=(2.0, 3.0, 1.0), position=(0.0, 0.0, 0.0))


class NoReader:
    """Intake has tests of its own: here cases are put into the store as they are."""

    def read(self, folder: str, **_: object) -> object:
        raise AssertionError(f"nobody should read {folder}")


class PlainRenderer:
    """A job of one chain.json; rendering has tests of its own."""

    def job_files(self, request: RenderRequest) -> dict[str, bytes]:
        chain = Chain(
            site=request.case.site,
            instance=request.case.instance,
            key=request.case.case_id,
            job=request.job,
            plan_uid=request.case.plan_uid,
            beams=tuple(
                ChainBeam(b.index, b.number, b.name, "log", b.energies, b.input_digest, b.seed)
                for b in request.beams
            ),
            submissions=tuple(
                ChainSubmission(s.stage, s.name, DIGEST, s.indices) for s in request.submissions
            ),
            interpreted=Interpreted(request.job),
            stages_digest=DIGEST,
            audit_head=request.audit_head,
            settings=Settings(
                calibration=Calibration("G2", 0.0, 0.0, 1.0, 1.0, 0.06, {"2": 1.0}),
                grid=GRID,
                log_dialect="rows",
                engine=("tps_env",),
                engine_name="moqui",
                require_gpu=True,
                dose_type="PHYSICAL",
            ),
        )
        return {"chain.json": encode_chain(chain).encode()}

    def observe_script(self, effect: object) -> str:
        raise AssertionError(f"the scripted cluster runs no script, not for {effect}")


def make_case(beams: int = 2, key: str = KEY, status: CaseStatus = CaseStatus.NEW) -> Case:
    """A case of `beams` beams numbered 2, 3, ... ."""
    when = datetime.fromtimestamp(NOW, UTC)
    return Case(
        case_id=key,
        status=status,
        beam_count=beams,
        created_at=when,
        updated_at=when,
        site="site",
        instance="i1",
        identity=f"identity of {key}",
        label=f"P-{key}",
        folder=f"/cases/{key}",
        plan_uid="1.2.3",
        machine="G2",
        beams=tuple(
            Beam(
                index=n,
                number=n + 2,
                name=f"G{n}",
                energies=(100.0, 90.0),
                input_digest=DIGEST,
                seed=1000 + n,
            )
            for n in range(beams)
        ),
        files=(InputFile(remote="plan.dcm", local="RP.dcm", bytes=3, sha256=DIGEST),),
    )


@dataclass
class Bench:
    """`said` is what a person was told; `world` is the cluster."""

    beams: int = 2
    accounting: str = "auto"
    gpu_count: int | None = None
    max_concurrent_jobs: int | None = None
    clock: Clock = field(default_factory=Clock)
    store: MemoryStore = field(default_factory=MemoryStore)
    said: list[str] = field(default_factory=list)
    retries: RetryTable = field(default_factory=RetryTable)

    def __post_init__(self) -> None:
        self.world = World(self.clock, beams=self.beams)
        self.case = make_case(self.beams)
        with self.store.transaction() as unit:
            if unit.cases.get(KEY) is None:
                unit.cases.put(self.case)
        self.wire()

    def wire(self) -> None:
        """Make everything anew on the same store: what a restart does."""
        store, clock = self.store, self.clock
        self.resources = ResourceService(
            store, gpu_count=self.gpu_count, min_disk_space_gb=0, free_bytes=lambda: 1
        )
        self.cases = CaseService(store, NoReader(), clock, site="site", seed_base=1000)  # type: ignore[arg-type]
        self.jobs = JobService(store, PlainRenderer(), self.resources, clock, workspace="/work")
        self.reports = ReportService(store)
        self.scheduler = TaskScheduler(store, clock, max_concurrent_jobs=self.max_concurrent_jobs)
        self.desk = desk = Desk(
            store,
            self.cases,
            self.jobs,
            lambda _, text: self.said.append(text),
            self.scheduler.changed,
            clock=clock,
            retries=self.retries,
        )
        reconciler = Reconciler(Limits(settle=20.0, lag=60.0, debounce=10.0))
        self.watcher = Watcher(
            store, desk, self.jobs, reconciler, accounting=self.accounting, submit_seconds=30.0
        )
        ids = Ids()
        self.polls = Polls(
            watcher=self.watcher,
            desk=desk,
            effects=self.world,
            clock=clock,
            ids=ids,
            rhythm=PollRhythm(least=1.0, most=5.0),
        )
        self.orders = Orders(desk, self.cases, self.jobs)
        self.orchestrator = WorkflowOrchestrator(
            store=store,
            jobs=self.jobs,
            transfers=TransferService(store, self.jobs, self.world),
            scheduler=self.scheduler,
            polls=self.polls,
            desk=desk,
            effects=self.world,
            clock=clock,
            ids=ids,
            slots_wait=1.0,
            retry=RetryPolicy(),
            retries=Retries(desk, self.jobs, self.retries),
        )

    # Driving

    def begin(self) -> None:
        """Take the case in hand."""
        self.orchestrator.process_case(KEY)
        with self.store.transaction() as unit:
            self.world.names = {s.stage: s.name for s in unit.jobs.of_case(KEY)[-1].submissions}

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.orchestrator.turn()

    def until(self, status: str, turns: int = 400) -> CaseReport:
        """Turn until the case has `status`; fails when it does not come to it."""
        for _ in range(turns):
            if self.report.status == status:
                return self.report
            self.orchestrator.turn()
        raise AssertionError(f"still {self.report.status}: {self.report}; said {self.said}")

    def until_sent(self) -> None:
        """Turn until the chain stands."""
        for _ in range(50):
            if self.report.submission == "standing":
                return
            self.orchestrator.turn()
        raise AssertionError(f"does not stand: {self.report}")

    @property
    def report(self) -> CaseReport:
        return self.reports.case(KEY)

    def task(self, kind: TaskType, index: int = 0) -> Task:
        with self.store.transaction() as unit:
            job = unit.jobs.of_case(KEY)[-1]
            return next(t for t in unit.jobs.tasks(job.job_id) if (t.type, t.index) == (kind, index))

    def events(self, kind: str) -> list[Mapping[str, object]]:
        with self.store.transaction() as unit:
            return [event["data"] for event in unit.events(KEY) if event["kind"] == kind]

    # What the stages leave

    def slurm_id(self, stage: str) -> int:
        return next(row.job for row in self.world.rows if row.name == self.world.names[stage])

    def _run(self, stage: str, index: int, exit_code: int) -> Run:
        array = self.slurm_id(stage)
        return Run(KEY, "j01", array, array + 1000 + index, 0, "g1", NOW, NOW + 5, exit_code)

    def leave(self, record: Record, stage: str, index: int = 0) -> None:
        """The stage's record and its files are there."""
        kind = {"interpret": "interpret", "beams": "beam_calc", "convert": "convert"}[stage]
        ref = f"{KEY}-j01/{kind}" + (f"-{index}" if stage == "beams" else "")
        self.world.sections[f"record:{ref}"] = (encode_record(record), 0)
        listing = "".join(f"{file.bytes} {file.path}\n" for file in record.files)
        self.world.sections[f"listing:{ref}"] = (listing, 0)

    def exits(self, *exits: tuple[str, int, int]) -> None:
        """Status lines: (stage, index, exit code)."""
        lines = "".join(
            encode_line(StatusLine(stage, index, "exited", NOW, 1, 0, "g1", "", code))
            for stage, index, code in exits
        )
        self.world.sections[f"status:{KEY}-j01"] = (lines, 0)

    def interpret_done(self) -> None:
        numbers = [str(b.number) for b in self.case.beams]
        record = InterpretRecord(
            run=self._run("interpret", 0, 0),
            input_digests=dict.fromkeys(numbers, DIGEST),
            beams={n: f"1-0/beam_{n}" for n in numbers},
            files=(FileEntry("1-0/a.csv", 5, DIGEST),),
        )
        self.leave(record, "interpret")
        self.world.end("interpret", "COMPLETED")

    def beam_record(self, index: int) -> BeamRecord:
        beam = self.case.beams[index]
        return BeamRecord(
            run=self._run("beams", index, 0),
            index=index,
            number=beam.number,
            input_digest=DIGEST,
            interpreted_digest=DIGEST,
            seed=beam.seed,
            engine="moqui",
            engine_version="1",
            gpu=Gpu("0"),
            grid=GRID,
            minimum=0.0,
            maximum=1.0,
            total=2.0,
            telemetry="none",
            files=(FileEntry(f"1-0/G{index}_0_Dose.raw", 192, DIGEST),),
        )

    def beam_done(self, index: int) -> None:
        self.leave(self.beam_record(index), "beams", index)
        self.world.end("beams", "COMPLETED", task=index)

    def convert_done(self, *indices: int) -> None:
        doses = tuple(
            ConvertedDose(
                n, self.case.beams[n].number, f"1-0/RD.{n}.dcm", "j01", DIGEST, f"1.2.{n}", 1.0, 76.5
            )
            for n in indices
        )
        record = ConvertRecord(
            run=self._run("convert", 0, 0),
            doses=doses,
            missing={str(n): "failed" for n in range(self.beams) if n not in indices},
            files=tuple(FileEntry(dose.file, 100, DIGEST) for dose in doses),
        )
        self.leave(record, "convert")
        self.world.end("convert", "COMPLETED")


__all__ = ["GRID", "KEY", "Bench", "make_case"]
