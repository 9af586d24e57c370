"""Stage convert: every beam with a valid record becomes a DICOM RT Dose; the others are listed, with why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List

from mqi_hpc.records.chain import ChainBeam
from mqi_hpc.records.layout import PLAN, safe_name
from mqi_hpc.records.result import BeamRecord, ConvertedDose, ConvertRecord, FileEntry
from mqi_hpc.stages.digests import beam_input, check_file
from mqi_hpc.stages.dose import SUFFIX, Dose, read_dose
from mqi_hpc.stages.errors import StageError, one_line
from mqi_hpc.stages.fence import standing_of
from mqi_hpc.stages.jobs import NotStanding, Standing
from mqi_hpc.stages.plan import read_plan
from mqi_hpc.stages.task import Task

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NAME_CHARACTERS = 64


def run(task: Task) -> None:
    """Convert what there is and publish the record; raises StageError where there is nothing."""
    chain, source = task.admission.chain, task.admission.folder.input
    missing: Dict[str, str] = {}
    doses: List[ConvertedDose] = []
    files: List[FileEntry] = []
    for beam in chain.beams:
        try:
            standing = _find(task, beam)
            record, dose = _load(standing, beam)
        except NotStanding as error:
            missing[str(beam.index)] = one_line(str(error))
            continue
        digests = beam_input(source, beam)
        check_file(source, PLAN, digests[PLAN], "input/MANIFEST.sha256")
        done = _convert(task, beam, record, dose, read_plan(source / PLAN))
        doses.append(done)
        files.append(task.entry(task.folder / done.file))
        del dose
        task.progress(f"beam {beam.number} converted")
    if not doses:
        raise StageError(f"nothing to convert: {'; '.join(missing.values())}")
    task.publish(ConvertRecord(run=task.run(), doses=tuple(doses), missing=missing, files=tuple(files)))


def _find(task: Task, beam: ChainBeam) -> Standing:
    """Return the beam's valid record, in this job or in the one chain.json names; raises NotStanding."""
    folder, chain = task.admission.folder, task.admission.chain
    job = chain.dose_job(beam)
    if job is None:
        raise NotStanding(
            f"{chain.job}: beam {beam.number} is not computed in this job, and no older one has its dose"
        )
    if job == chain.job:
        return folder.standing(chain, "beams", beam.index)
    return standing_of(folder, job, "beams", beam.number)


def _load(standing: Standing, beam: ChainBeam) -> tuple[BeamRecord, Dose]:
    """Return the dose a record vouches for, read and hashed; raises NotStanding where it is not that."""
    record = standing.record
    assert isinstance(record, BeamRecord)  # noqa: S101 - its stage was checked; told to the type checker
    if (record.number, record.input_digest) != (beam.number, beam.input_digest):
        raise NotStanding(f"{record.run.job}: its dose of beam {record.number} is of another input")
    raw = [entry for entry in record.files if entry.path.endswith(SUFFIX)]
    if len(raw) != 1:
        raise NotStanding(f"{record.run.job}: the record of beam {beam.number} lists {len(raw)} doses")
    try:
        dose = read_dose(standing.folder / raw[0].path, record.grid)
    except (StageError, FileNotFoundError) as error:
        raise NotStanding(f"{record.run.job}: the dose of beam {beam.number}: {error}") from error
    if dose.sha256 != raw[0].sha256:
        raise NotStanding(
            f"{record.run.job}: the dose of beam {beam.number} was changed after it was computed"
        )
    return record, dose


def _convert(task: Task, beam: ChainBeam, record: BeamRecord, dose: Dose, plan: Dataset) -> ConvertedDose:
    from mqi_hpc.stages import rtdose

    chain = task.admission.chain
    path = task.output / f"RD.beam_{beam.number}_{safe_name(beam.name)[:_NAME_CHARACTERS]}.dcm"
    try:
        uid = rtdose.write_rtdose(
            str(path),
            dose=dose.values,
            grid=record.grid,
            plan=plan,
            beam_number=beam.number,
            dose_type=chain.settings.dose_type,
            engine=record.engine,
            engine_version=record.engine_version,
            seed=record.seed,
            log_digest=beam.input_digest,
            series_number=beam.index + 1,
            uid_root_text=f"{chain.instance}/{chain.key}/{record.run.job}/{beam.number}/{dose.sha256}",
        )
    except ValueError as error:
        raise StageError(f"beam {beam.number}: its RT Dose cannot be written: {error}") from error
    return ConvertedDose(
        index=beam.index,
        number=beam.number,
        file=task.relative(path),
        source_job=record.run.job,
        source_sha256=dose.sha256,
        sop_instance_uid=uid,
        maximum=dose.maximum,
        range80_mm=rtdose.range80(dose.values, record.grid),
    )
