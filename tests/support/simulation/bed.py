"""What the contract of a cluster is tested on: one sample case, and a cluster, simulated or real."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mqi_hpc.core.effects import (
    Cancel,
    Completion,
    Download,
    Effect,
    JobQuery,
    Observe,
    Prune,
    Submit,
    Upload,
)
from mqi_hpc.core.interfaces import IClock, IEffects
from mqi_hpc.core.models import STAGE_OF, Case, Job, Task, TaskType
from mqi_hpc.core.readings import Limits
from mqi_hpc.core.submission import SubmitReport, parse_submit
from mqi_hpc.domain.evidence import Evidence, read_evidence
from mqi_hpc.domain.reconciler import Reconciler, Reconciliation
from mqi_hpc.infrastructure.config.models import AppConfig
from mqi_hpc.infrastructure.intake import CaseReader, write_sample_case
from mqi_hpc.infrastructure.slurm.archive import build_stages
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.chain import Chain, decode_chain
from mqi_hpc.records.layout import CHAIN, output_folder
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.resource_service import ResourceService
from mqi_hpc.services.transfer_service import deliverable
from tests.support.memory_store import MemoryStore

T = TypeVar("T")

_keys = itertools.count(1)


@dataclass
class Sent:
    """A job of the case, as far as it has been brought. `tasks` are brought in line by each look."""

    job: Job
    chain: Chain
    tasks: list[Task]
    folder: str
    last: Reconciliation | None = None

    def states(self) -> dict[str, str]:
        """Return each Slurm task's phase by name: `interpret`, `beam 0`, `convert`."""
        return {_name(task): task.phase for task in self.tasks if task.type in STAGE_OF}

    def task(self, name: str) -> Task:
        """Return a task by that name."""
        return next(task for task in self.tasks if _name(task) == name)

    @property
    def ended(self) -> bool:
        """Whether every task that Slurm runs has been judged for good."""
        return all(task.status.terminal for task in self.tasks if task.type in STAGE_OF)


def _name(task: Task) -> str:
    return f"beam {task.index}" if task.type is TaskType.BEAM_CALC else str(task.type)


@dataclass
class Bed(ABC):
    """A case of three beams on a cluster. What differs between the simulated and the real is abstract."""

    home: Path
    config: AppConfig
    effects: IEffects
    clock: IClock
    store: MemoryStore = field(default_factory=MemoryStore)

    def __post_init__(self) -> None:
        self.renderer = Renderer(self.config, build_stages())
        self.case = self._case()
        resources = ResourceService(
            self.store,
            gpu_count=self.config.resources.gpu_count,
            min_disk_space_gb=0,
            free_bytes=lambda: 10**12,
        )
        self.jobs = JobService(self.store, self.renderer, resources, self.clock, workspace=self.workspace)
        self._nonces = itertools.count(1)
        self._seen: float | None = None

    @property
    def workspace(self) -> str:
        """The workspace on the cluster."""
        return self.config.paths.remote_workspace

    @property
    def case_folder(self) -> str:
        """The case's folder on the cluster."""
        return f"{self.workspace}/{self.case.case_id}"

    def nonce(self) -> str:
        """Return a word never used before in this test."""
        return f"n{next(self._nonces)}"

    # What an installation does

    def plan(self) -> Sent:
        """Plan and render the case's first job."""
        job = self.jobs.create_job(self.case.case_id)
        return self.sent(job)

    def sent(self, job: Job) -> Sent:
        """Return a planned job, ready to be sent."""
        with self.store.transaction(write=False) as unit:
            chain = decode_chain(unit.jobs.files(job.job_id)[CHAIN].decode())
            tasks = unit.jobs.tasks(job.job_id)
        return Sent(job, chain, list(tasks), self.jobs.folder(self.case.case_id, job.name))

    def uploading(self, sent: Sent) -> Upload:
        """Return the upload of a job."""
        with self.store.transaction(write=False) as unit:
            files = unit.jobs.files(sent.job.job_id)
        return Upload(
            case_id=self.case.case_id,
            job_id=sent.job.job_id,
            source=self.case.folder,
            input_folder=self.jobs.input_folder(self.case.case_id),
            inputs=self.case.files,
            job_folder=sent.folder,
            files=files,
        )

    def run(self, effect: Effect) -> Completion:
        """Start an effect and return its completion."""
        self.effects.start(effect)
        return self.until(lambda: self.effects.completions(0.5), "a completion")[0]

    def upload(self, sent: Sent) -> Completion:
        """Bring a job to the cluster."""
        return self.run(self.uploading(sent))

    def submit(self, sent: Sent) -> SubmitReport:
        """Run a job's submit.sh and take its receipts into the job."""
        nonce = self.nonce()
        effect = Submit(
            case_id=self.case.case_id, job_id=sent.job.job_id, job_folder=sent.folder, nonce=nonce
        )
        report = parse_submit(self.run(effect).output, nonce)
        self.adopt(sent, report)
        return report

    def adopt(self, sent: Sent, report: SubmitReport) -> None:
        """Take receipts into a job."""
        sent.job = sent.job.evolve(
            submissions=tuple(
                s.evolve(slurm_id=found.id, cluster_time=found.time)
                if (found := report.receipts.get(s.stage))
                else s
                for s in sent.job.submissions
            )
        )

    def send(self) -> Sent:
        """Plan, upload and submit the case's first job."""
        sent = self.plan()
        assert self.upload(sent).error is None
        assert self.submit(sent).code == 0
        return sent

    def observe(self, sent: Sent, *, asked: bool = True) -> Evidence:
        """Look at a job once."""
        numbers = {beam.index: beam.number for beam in self.case.beams}
        ids = tuple(s.slurm_id for s in sent.job.submissions if s.slurm_id is not None)
        effect = Observe(
            nonce=self.nonce(),
            jobs=(
                JobQuery(
                    ref=sent.job.job_id,
                    folder=sent.folder,
                    records=tuple(
                        (task.task_id, output_folder(STAGE_OF[task.type], numbers[task.index]))
                        for task in sent.tasks
                        if task.type in STAGE_OF
                    ),
                ),
            ),
            sacct_ids=ids if asked else (),
        )
        completion = self.run(effect)
        assert completion.error is None
        return read_evidence(completion.output, effect.nonce, asked=asked, accounting="auto")

    def look(self, sent: Sent, *, asked: bool = True) -> Evidence:
        """Look at a job, and judge its tasks by what was seen."""
        evidence = self.observe(sent, asked=asked)
        now = self.clock.monotonic()
        elapsed, self._seen = 0.0 if self._seen is None else now - self._seen, now
        limits = Limits(settle=10.0, lag=60.0, debounce=3.0)
        sent.last = Reconciler(limits).reconcile(sent.job, sent.chain, sent.tasks, evidence, elapsed)
        after = {judged.after.task_id: judged.after for judged in sent.last.judged}
        sent.tasks = [after.get(task.task_id, task) for task in sent.tasks]
        return evidence

    def cancel(self, sent: Sent, *stages: str) -> Completion:
        """Cancel stages of a job in this order, by name and id, as the program would."""
        placed = {s.stage: (s.name, s.slurm_id) for s in sent.job.submissions}
        sent.job = sent.job.evolve(cancelled=(*sent.job.cancelled, *stages))
        targets = tuple((name, number or 0) for name, number in (placed[stage] for stage in stages))
        return self.run(Cancel(case_id=self.case.case_id, job_id=sent.job.job_id, targets=targets))

    def downloading(self, sent: Sent, logs: tuple[str, ...] = ()) -> Download:
        """Return the download of what convert made of done beams."""
        return Download(
            case_id=self.case.case_id,
            job_id=sent.job.job_id,
            job_folder=sent.folder,
            folder=f"{self.case.label}/{sent.job.name}",
            results=deliverable(sent.tasks),
            logs=logs,
        )

    def pruning(self) -> Prune:
        """Return the removal of the case's folder."""
        return Prune(case_id=self.case.case_id, folder=self.case_folder)

    def to_the_end(self, sent: Sent) -> None:
        """Look until every task has been judged."""

        def over() -> bool:
            self.look(sent)
            return sent.ended

        self.until(over, "the job's end")

    def seen(self, sent: Sent, wanted: Mapping[str, str]) -> None:
        """Look until these tasks have these phases."""

        def so() -> bool:
            self.look(sent)
            return wanted.items() <= sent.states().items()

        self.until(so, f"{dict(wanted)}")

    # What differs

    @abstractmethod
    def submit_unreleased(self, sent: Sent) -> SubmitReport:
        """Run a job's submit.sh while Slurm releases nothing."""

    @abstractmethod
    def submit_cut(self, sent: Sent, step: str) -> SubmitReport:
        """Run a job's submit.sh, and kill it before a step: `sbatch STAGE` or `receipt STAGE`."""

    @abstractmethod
    def until(self, probe: Callable[[], T], what: str) -> T:
        """Return what `probe` returns once it is something true."""

    @abstractmethod
    def fault(self, beam: int, kind: str) -> None:
        """Make the engine misbehave for a DICOM beam number: `exit CODE`, `other-beam`, `hang`."""

    @abstractmethod
    def accounting(self, *, up: bool) -> None:
        """Start or stop slurmdbd."""

    @abstractmethod
    def controller(self, *, up: bool) -> None:
        """Start or stop slurmctld."""

    @abstractmethod
    def partition(self, name: str, *, up: bool) -> None:
        """Start or stop scheduling in a partition."""

    @abstractmethod
    def node_down(self, name: str) -> None:
        """Set a node down, with what runs on it."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a path is there on the cluster."""

    @abstractmethod
    def overwrite(self, path: str, content: bytes) -> None:
        """Change a file on the cluster."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file on the cluster."""

    @abstractmethod
    def link(self, *, up: bool) -> None:
        """Let the way to the cluster work, or not."""

    # Making

    def _case(self) -> Case:
        folder = write_sample_case(self.home / "cases" / "P001", beams=3, layers=2)
        reader = CaseReader(self.config.machines, fraction_gap_seconds=3600)
        service = CaseService(self.store, reader, self.clock, site="site", seed_base=1000)
        (case,) = service.preview(str(folder))
        # The real cluster remembers the jobs of earlier tests: names must not come again.
        case = case.evolve(case_id=f"contract{next(_keys):04d}")
        with self.store.transaction() as unit:
            unit.cases.put(case)
        return case
