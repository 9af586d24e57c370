"""What is to be moved, as effects: the case and its job to the cluster, results and log tails home."""

from __future__ import annotations

from collections.abc import Sequence

from mqi_hpc.core.effects import Download, ResultFile, Upload
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import IEffects, IStore
from mqi_hpc.core.models import STAGE_OF, Case, Job, Task, TaskStatus, TaskType
from mqi_hpc.core.resubmit import History, current_tasks
from mqi_hpc.records.result import ConvertRecord, decode_record
from mqi_hpc.services.history import read_history
from mqi_hpc.services.job_service import JobService


class TransferService:
    """Plans transfers (ITransferService) and starts them through the effects port."""

    def __init__(self, store: IStore, jobs: JobService, effects: IEffects) -> None:
        self._store = store
        self._jobs = jobs
        self._effects = effects

    def upload_case(self, case_id: str) -> None:
        """Start the upload of a case's newest job."""
        case, history = self._history(case_id)
        job = history.jobs[-1]
        with self._store.transaction(write=False) as unit:
            files = unit.jobs.files(job.job_id)
        self._effects.start(
            Upload(
                case_id=case_id,
                job_id=job.job_id,
                source=case.folder,
                input_folder=self._jobs.input_folder(case_id),
                inputs=case.files,
                job_folder=self._jobs.folder(case_id, job.name),
                files=files,
            )
        )

    def download_results(self, case_id: str) -> None:
        """Start bringing home what convert wrote of done beams, and the tails of failed tasks' logs."""
        case, history = self._history(case_id)
        job = history.jobs[-1]
        tasks = history.tasks[job.job_id]
        self._effects.start(
            Download(
                case_id=case_id,
                job_id=job.job_id,
                job_folder=self._jobs.folder(case_id, job.name),
                folder=f"{case.label}/{job.name}",
                results=deliverable(current_tasks(history)),
                logs=tuple(log for task in tasks if _went_wrong(task) for log in logs_of(job, case, task)),
            )
        )

    def fetch_logs(self, case_id: str, beam: int | None) -> Download:
        """Start bringing home the log tails of a case's newest job (of one beam, by BeamNumber)."""
        case, history = self._history(case_id)
        job = history.jobs[-1]
        tasks = history.tasks[job.job_id]
        wanted = [
            task
            for task in tasks
            if beam is None or (task.type is TaskType.BEAM_CALC and case.beams[task.index].number == beam)
        ]
        effect = Download(
            case_id=case_id,
            job_id=job.job_id,
            job_folder=self._jobs.folder(case_id, job.name),
            folder=f"{case.label}/{job.name}",
            results=(),
            logs=tuple(log for task in wanted for log in logs_of(job, case, task)),
        )
        self._effects.start(effect)
        return effect

    def _history(self, case_id: str) -> tuple[Case, History]:
        """Return a case and its jobs, one at least."""
        with self._store.transaction(write=False) as unit:
            case, history = unit.cases.get(case_id), read_history(unit, case_id)
        if case is None or not history.jobs:
            raise ProcessingError(f"case {case_id!r} has no job; `mqi-hpc submit` makes one")
        return case, history


def deliverable(tasks: Sequence[Task]) -> tuple[ResultFile, ...]:
    """Return the RT Dose files that may be delivered: of done beams, as convert's record lists them.

    `tasks` are those that count for the case (`resubmit.current_tasks`).
    """
    convert = next(task for task in tasks if task.type is TaskType.CONVERT)
    if convert.status is not TaskStatus.COMPLETED or convert.record is None:
        return ()
    record = decode_record(convert.record)
    if not isinstance(record, ConvertRecord):
        raise ProcessingError(f"task {convert.task_id}: its record is not one of convert")
    done = {t.index for t in tasks if t.type is TaskType.BEAM_CALC and t.status is TaskStatus.COMPLETED}
    wanted = {dose.file for dose in record.doses if dose.index in done}
    return tuple(
        ResultFile(
            remote=f"results/{file.path}",
            local=file.path.rsplit("/", 1)[-1],
            bytes=file.bytes,
            sha256=file.sha256,
        )
        for file in record.files
        if file.path in wanted
    )


def logs_of(job: Job, case: Case, task: Task) -> tuple[str, ...]:
    """Return the logs of a task, below the job's folder; none where it was never in Slurm."""
    stage = STAGE_OF.get(task.type)
    submission = None if stage is None else job.submission(stage)
    if submission is None or (slurm_id := submission.slurm_id) is None:
        return ()
    if stage == "beams":
        number = case.beams[task.index].number
        return (f"logs/beams-{slurm_id}_{task.index}.log", f"logs/beam_{number}.engine.log")
    return (f"logs/{stage}-{slurm_id}.log",)


def _went_wrong(task: Task) -> bool:
    return task.status.terminal and task.status is not TaskStatus.COMPLETED
