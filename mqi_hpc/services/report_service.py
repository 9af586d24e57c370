"""What a person or a program is told of a case: plain values, read from the store alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import IStore, IUnit
from mqi_hpc.core.models import STAGE_OF, Case, Job, Task, TaskStatus, TaskType
from mqi_hpc.core.next_task import task_of
from mqi_hpc.records.result import BeamRecord, ConvertedDose, ConvertRecord, decode_record


@dataclass(frozen=True, slots=True, kw_only=True)
class DoseReport:
    """An RT Dose that came home: absolute path, maximum (Gy), distal 80 % depth (mm), SOPInstanceUID."""

    file: str
    maximum_gy: float
    range80_mm: float | None
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamReport:
    """A beam: where it runs or ran, the verdict and its cause, and its dose. `slurm_id` as sacct shows it."""

    number: int
    name: str
    index: int
    slurm_id: str | None
    node: str
    gpu: str
    status: str
    verdict: str
    detail: str
    exit_code: int | None
    noted: str
    dose: DoseReport | None
    logs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """A task of the job that is no beam."""

    task: str
    slurm_id: str | None
    node: str
    status: str
    verdict: str
    detail: str
    logs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """A case with its newest job, None where it has none yet. Times are ISO 8601, UTC."""

    case_id: str
    label: str
    status: str
    attention: str | None
    folder: str
    plan_uid: str
    machine: str
    site: str
    instance: str
    created_at: str
    updated_at: str
    job: str | None
    submission: str | None
    refusal: str | None
    tasks: tuple[TaskReport, ...]
    beams: tuple[BeamReport, ...]
    results: tuple[str, ...]


class ReportService:
    """Reads cases for people and programs."""

    def __init__(self, store: IStore) -> None:
        self._store = store

    def cases(self) -> list[CaseReport]:
        """Return all cases, oldest first."""
        with self._store.transaction(write=False) as unit:
            return [_read(unit, case) for case in unit.cases.all()]

    def case(self, case_id: str) -> CaseReport:
        """Return one case by its id; raises ProcessingError where the store has none of it."""
        with self._store.transaction(write=False) as unit:
            case = unit.cases.get(case_id)
            if case is None:
                raise ProcessingError(f"no case {case_id!r} in the store")
            return _read(unit, case)

    def events(self, case_id: str) -> list[dict[str, Any]]:
        """Return a case's events, oldest first."""
        with self._store.transaction(write=False) as unit:
            return unit.events(case_id)


def _read(unit: IUnit, case: Case) -> CaseReport:
    jobs = unit.jobs.of_case(case.case_id)
    return report(case, jobs[-1], unit.jobs.tasks(jobs[-1].job_id)) if jobs else report(case, None, [])


def report(case: Case, job: Job | None, tasks: list[Task]) -> CaseReport:
    """Return what is told of a case whose newest job is `job` with `tasks`."""
    delivered = _delivered(tasks)
    doses = _doses(tasks, delivered["files"])
    return CaseReport(
        case_id=case.case_id,
        label=case.label,
        status=str(case.status),
        attention=case.attention,
        folder=case.folder,
        plan_uid=case.plan_uid,
        machine=case.machine,
        site=case.site,
        instance=case.instance,
        created_at=case.created_at.isoformat(),
        updated_at=case.updated_at.isoformat(),
        job=None if job is None else job.name,
        submission=None if job is None else str(job.submit_state),
        refusal=None if job is None else job.refusal,
        tasks=tuple(
            _task(job, task, delivered["logs"])
            for task in tasks
            if job is not None and task.type is not TaskType.BEAM_CALC
        ),
        beams=tuple(
            _beam(case, job, task, doses, delivered["logs"])
            for task in tasks
            if job is not None and task.type is TaskType.BEAM_CALC
        ),
        results=tuple(delivered["files"]),
    )


def _delivered(tasks: list[Task]) -> dict[str, Any]:
    """Return what the download brought: `files`, absolute paths; `logs`, absolute path by remote path."""
    text = task_of(tasks, TaskType.DOWNLOAD).parameters.get("delivered") if tasks else None
    return {"files": [], "logs": {}, **(json.loads(text) if text else {})}


def _doses(tasks: list[Task], files: list[str]) -> dict[int, DoseReport]:
    if not tasks:
        return {}
    text = task_of(tasks, TaskType.CONVERT).record
    record = decode_record(text) if text else None
    if not isinstance(record, ConvertRecord):
        return {}
    home = {path.rsplit("/", 1)[-1]: path for path in files}
    return {
        dose.index: _dose(dose, home[name])
        for dose in record.doses
        if (name := dose.file.rsplit("/", 1)[-1]) in home
    }


def _dose(dose: ConvertedDose, path: str) -> DoseReport:
    return DoseReport(
        file=path,
        maximum_gy=dose.maximum,
        range80_mm=dose.range80_mm,
        sop_instance_uid=dose.sop_instance_uid,
    )


def _beam(case: Case, job: Job, task: Task, doses: dict[int, DoseReport], logs: dict[str, str]) -> BeamReport:
    beam = case.beams[task.index]
    record = decode_record(task.record) if task.record else None
    gpu = record.gpu if isinstance(record, BeamRecord) else None
    slurm_id = job.submission("beams").slurm_id
    return BeamReport(
        number=beam.number,
        name=beam.name,
        index=beam.index,
        slurm_id=None if slurm_id is None else f"{slurm_id}_{task.index}",
        node=task.node or (record.run.node if record is not None else ""),
        gpu=" ".join(part for part in (gpu.visible, gpu.name) if part) if gpu is not None else "",
        status=str(task.status),
        verdict=task.phase or str(task.status),
        detail=task.detail,
        exit_code=task.exit_code,
        noted=task.noted,
        dose=doses.get(task.index) if task.status is TaskStatus.COMPLETED else None,
        logs=tuple(
            local
            for remote, local in logs.items()
            if remote.endswith((f"_{task.index}.log", f"/beam_{beam.number}.engine.log"))
        ),
    )


def _task(job: Job, task: Task, logs: dict[str, str]) -> TaskReport:
    stage = STAGE_OF.get(task.type)
    slurm_id = job.submission(stage).slurm_id if stage else None
    return TaskReport(
        task=str(task.type),
        slurm_id=None if slurm_id is None else str(slurm_id),
        node=task.node,
        status=str(task.status),
        verdict=task.phase or str(task.status),
        detail=task.detail,
        logs=tuple(local for remote, local in logs.items() if stage and f"/{stage}-" in f"/{remote}"),
    )
