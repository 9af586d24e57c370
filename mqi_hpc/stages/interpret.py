"""Stage interpret: logs and plan become what the engine reads, a ParentDir for each beam."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from mqi_hpc.records.chain import Chain, ChainBeam
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import PLAN, beam_folder
from mqi_hpc.records.result import FileEntry, InterpretRecord
from mqi_hpc.stages.delivered import Delivered, read_delivered
from mqi_hpc.stages.digests import beam_input, check_file
from mqi_hpc.stages.errors import StageError
from mqi_hpc.stages.parent_dir import LOG, PLAN_FOLDER, field_folders, layer_paths
from mqi_hpc.stages.plan import check_plan, read_plan
from mqi_hpc.stages.publish import make_folder, write_new
from mqi_hpc.stages.spots import beam_on, calibrate, decode, format_samples
from mqi_hpc.stages.task import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def run(task: Task) -> None:
    """Interpret every beam of the chain and publish the record."""
    chain = task.admission.chain
    source = task.admission.folder.input
    files: List[FileEntry] = []
    notes: List[str] = []
    beams: Dict[str, str] = {}
    for beam in chain.beams:
        try:
            parent, made = _interpret(task, source, beam, notes)
        except (FormatError, StageError) as error:
            raise StageError(f"beam {beam.number}: {error}") from error
        beams[str(beam.number)] = task.relative(parent)
        files += made
        task.progress(f"beam {beam.number}: {len(beam.energies)} layers interpreted")
    task.publish(
        InterpretRecord(
            run=task.run(),
            input_digests={str(beam.number): beam.input_digest for beam in chain.beams},
            beams=beams,
            files=tuple(files),
            notes=tuple(notes),
        )
    )


def _interpret(task: Task, source: Path, beam: ChainBeam, notes: List[str]) -> Tuple[Path, List[FileEntry]]:
    chain = task.admission.chain
    digests = beam_input(source, beam)
    for path in sorted(digests):
        check_file(source, path, digests[path], "input/MANIFEST.sha256")
    delivered = read_delivered(source, digests, beam)
    plan = source / PLAN
    check_plan(read_plan(plan), chain.plan_uid, beam, delivered.patient_id)
    parent = task.output / beam_folder(beam.number)
    for name in (PLAN_FOLDER, *(f"{LOG}/{field}" for field in field_folders(beam))):
        make_folder(parent / name)
    write_new(parent / PLAN_FOLDER / PLAN, plan.read_bytes())
    for path, content in zip(layer_paths(beam), _layers(chain, source, beam, delivered, notes)):
        write_new(parent / path, content)
    made = [task.entry(parent / p) for p in (f"{PLAN_FOLDER}/{PLAN}", *layer_paths(beam))]
    if made[0].sha256 != digests[PLAN]:
        raise StageError(
            f"the copy of {PLAN} differs from its original: the file system is not to be trusted"
        )
    return parent, made


def _layers(
    chain: Chain, source: Path, beam: ChainBeam, delivered: Delivered, notes: List[str]
) -> List[bytes]:
    """Return the text of each layer of a beam, in order."""
    logs = [decode((source / layer.log).read_bytes(), layer.log) for layer in delivered.layers]
    flagged = [beam_on(raw) for raw in logs]
    if not any(on.any() for on in flagged):
        notes.append(f"beam {beam.number}: no sample says that the beam was on, so all of them are used")
        flagged = [_all(on) for on in flagged]
    texts = []
    total = 0.0
    for layer, raw, keep in zip(delivered.layers, logs, flagged):
        if not keep.any():
            raise FormatError(f"{layer.log}: no sample of layer {layer.number} says that the beam was on")
        try:
            samples = calibrate(raw, keep, chain.settings.calibration, layer.dose1_range)
        except FormatError as error:
            raise FormatError(f"layer {layer.number}: {error}") from error
        total += float(samples[:, 3].sum())
        texts.append(format_samples(samples, chain.settings.log_dialect))
    if total <= 0:
        raise FormatError("its logs hold no dose at all: every count is 0")
    return texts


def _all(on: NDArray[np.bool_]) -> Any:
    import numpy as np

    return np.ones_like(on)
