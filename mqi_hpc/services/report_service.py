"""What a person or a program is told of a case: plain values, read from the store alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mqi_hpc.core.attention import way_on
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import IStore, IUnit
from mqi_hpc.core.models import STAGE_OF, Case, Job, Task, TaskStatus, TaskType
from mqi_hpc.core.next_task import task_of
from mqi_hpc.core.resubmit import History, current_tasks
from mqi_hpc.core.retry_plan import Next, outlook
from mqi_hpc.core.story import Told, story
from mqi_hpc.records.result import BeamRecord, ConvertedDose, ConvertRecord, decode_record
from mqi_hpc.services.history import read_history


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
    way_on: str
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
    way_on: str
    logs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """A case with its newest job, None where it has none yet. Times are ISO 8601, UTC.

    `rejected` says why a folder was refused; then there is nothing else to tell of it. `next` is what will
    happen by itself to what has failed, or why nothing will.
    """

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
    rejected: tuple[str, ...]
    tasks: tuple[TaskReport, ...]
    beams: tuple[BeamReport, ...]
    results: tuple[str, ...]
    next: tuple[Next, ...]


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

    def story(self, case_id: str, beam: int | None) -> tuple[Told, ...]:
        """Return a case's events in words; `beam` (DICOM number): without those of other beams.

        Raises ProcessingError where there is no such case or beam.
        """
        with self._store.transaction(write=False) as unit:
            case, events = unit.cases.get(case_id), unit.events(case_id)
        if case is None:
            raise ProcessingError(f"no case {case_id!r} in the store")
        if beam is not None and beam not in [b.number for b in case.beams]:
            numbers = ", ".join(str(b.number) for b in case.beams) or "none"
            raise ProcessingError(f"case {case.label} has no beam {beam}; its beams: {numbers}")
        return story(case, events, beam)


def _read(unit: IUnit, case: Case) -> CaseReport:
    return report(case, read_history(unit, case.case_id))


def report(case: Case, history: History) -> CaseReport:
    """Return what is told of a case: of each beam, what the newest job that computes it made of it."""
    tasks = current_tasks(history)
    jobs = {job.job_id: job for job in history.jobs}
    newest = history.jobs[-1] if history.jobs else None
    files, doses = _brought_home(history)
    logs = _logs(history)
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
        job=None if newest is None else newest.name,
        submission=None if newest is None else str(newest.submit_state),
        refusal=None if newest is None else newest.refusal,
        rejected=case.rejected,
        tasks=tuple(
            _task(jobs[task.job_id], task, logs[task.job_id])
            for task in tasks
            if task.type is not TaskType.BEAM_CALC
        ),
        beams=tuple(
            _beam(case, jobs[task.job_id], task, doses, logs[task.job_id])
            for task in tasks
            if task.type is TaskType.BEAM_CALC
        ),
        results=files,
        next=outlook(case, history),
    )


def _delivered(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return what the download brought: `files`, absolute paths; `logs`, absolute path by remote path."""
    text = task_of(tasks, TaskType.DOWNLOAD).parameters.get("delivered")
    return {"files": [], "logs": {}, **(json.loads(text) if text else {})}


def _brought_home(history: History) -> tuple[tuple[str, ...], dict[int, DoseReport]]:
    """Return the files and doses of the newest job whose results came home.

    The dose of a beam that a later job computes anew is none of them: it was doubted, and is not that job's.
    """
    for at, job in reversed(list(enumerate(history.jobs))):
        tasks = history.tasks[job.job_id]
        if files := _delivered(tasks)["files"]:
            later = [task for newer in history.jobs[at + 1 :] for task in history.tasks[newer.job_id]]
            anew = {task.index for task in later if task.type is TaskType.BEAM_CALC}
            doses = _doses(tasks, files)
            old = {dose.file for index, dose in doses.items() if index in anew}
            kept = {index: dose for index, dose in doses.items() if index not in anew}
            return tuple(path for path in files if path not in old), kept
    return (), {}


def _logs(history: History) -> dict[str, dict[str, str]]:
    return {job.job_id: _delivered(history.tasks[job.job_id])["logs"] for job in history.jobs}


def _doses(tasks: Sequence[Task], files: list[str]) -> dict[int, DoseReport]:
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
    submission = job.submission("beams")
    slurm_id = None if submission is None else submission.slurm_id
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
        way_on=way_on(task),
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
    submission = job.submission(stage) if stage else None
    slurm_id = None if submission is None else submission.slurm_id
    return TaskReport(
        task=str(task.type),
        slurm_id=None if slurm_id is None else str(slurm_id),
        node=task.node,
        status=str(task.status),
        verdict=task.phase or str(task.status),
        detail=task.detail,
        way_on=way_on(task),
        logs=tuple(local for remote, local in logs.items() if stage and f"/{stage}-" in f"/{remote}"),
    )
