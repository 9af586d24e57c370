"""Stage beams, one element of the array: the engine computes one beam's dose, and the dose is checked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Tuple

from mqi_hpc.records import layout
from mqi_hpc.records.chain import ChainBeam
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.result import BeamRecord, FileEntry, InterpretRecord
from mqi_hpc.stages import engine_input
from mqi_hpc.stages.digests import beam_input, check_file
from mqi_hpc.stages.dose import find_dose, read_dose
from mqi_hpc.stages.engine import last_line, read_log, run_engine
from mqi_hpc.stages.errors import StageError
from mqi_hpc.stages.gpu import Telemetry, find_gpu
from mqi_hpc.stages.jobs import Standing
from mqi_hpc.stages.parent_dir import check_parent
from mqi_hpc.stages.publish import sync_file, write_new
from mqi_hpc.stages.task import Task

_BATCHES = re.compile(r"\((\d{1,9}) of (\d{1,9}) batches\)")


def run(task: Task) -> None:
    """Compute the dose of this array element's beam and publish its record."""
    admission = task.admission
    beam, interpreted, chain = admission.beam, admission.interpreted, admission.chain
    assert beam is not None and interpreted is not None  # noqa: S101 - the fence's word for an array
    gpu = find_gpu(os.environ, chain.settings.require_gpu)
    beam_input(admission.folder.input, beam)
    parent = _parent(interpreted, beam)
    written = _engine_input(task, beam, parent)
    log = admission.folder.at(layout.engine_log(beam.number))
    telemetry = Telemetry(gpu)
    progress = _Progress(task, log, telemetry)
    task.progress("the engine runs")
    command = [*chain.settings.engine, str(written)]
    with telemetry:
        begin = run_engine(command, admission.folder.path, log, progress.tick, task.signals)
    version = read_log(log, begin)
    path = find_dose(task.output, beam)
    grid = chain.settings.grid
    dose = read_dose(path, grid)
    sync_file(path)
    task.publish(
        BeamRecord(
            run=task.run(),
            index=beam.index,
            number=beam.number,
            input_digest=beam.input_digest,
            interpreted_digest=interpreted.digest,
            seed=beam.seed,
            engine=chain.settings.engine_name,
            engine_version=version,
            gpu=gpu,
            grid=grid,
            minimum=dose.minimum,
            maximum=dose.maximum,
            total=dose.total,
            telemetry=telemetry.summary(),
            files=(FileEntry(path=task.relative(path), bytes=dose.bytes, sha256=dose.sha256),),
        )
    )


def _parent(interpreted: Standing, beam: ChainBeam) -> Path:
    """Return the beam's ParentDir, which holds what interpret's record lists and nothing else."""
    record = interpreted.record
    assert isinstance(record, InterpretRecord)  # noqa: S101 - the fence found it
    name = record.beams[str(beam.number)]
    try:
        check_parent(interpreted.folder / name, beam)
    except FormatError as error:
        raise StageError(f"{error}; resubmit the case") from error
    listed = [entry for entry in record.files if entry.path.startswith(name + "/")]
    if len(listed) != len(beam.energies) + 1:
        raise StageError(f"interpret's record lists {len(listed)} files of beam {beam.number}")
    for entry in listed:
        check_file(interpreted.folder, entry.path, entry.sha256, "interpret's record")
    return interpreted.folder / name


def _engine_input(task: Task, beam: ChainBeam, parent: Path) -> Path:
    """Write the engine's input file and return its path."""
    name = layout.engine_input(beam.number)
    try:
        with task.admission.folder.at(name).open(encoding="utf-8", newline="") as file:
            text = file.read()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise StageError(f"{name} is missing or no text: {error}") from error
    folders = str(parent), str(task.output)
    text = engine_input.render(text, *folders)
    grid = task.admission.chain.settings.grid
    engine_input.check(engine_input.parse(text), beam, grid, *folders)
    path = task.output / name
    write_new(path, text.encode())
    return path


class _Progress:
    """Looks at a running engine: its GPU, and how far its last line says it is."""

    def __init__(self, task: Task, log: Path, telemetry: Telemetry) -> None:
        self._task, self._log, self._telemetry = task, log, telemetry
        self._quarter = 0

    def tick(self) -> None:
        self._telemetry.look()
        done, batches = _batches(last_line(self._log, 0))
        quarter = 4 * done // batches
        # A few lines a task: the workstation reads all of them in every poll.
        seen = self._telemetry.line()
        if quarter > self._quarter or seen:
            self._quarter = max(quarter, self._quarter)
            how_far = f": batch {done} of {batches}" if done else ""
            self._task.progress(f"the engine runs{how_far}{'; ' if seen else ''}{seen}")


def _batches(line: str) -> Tuple[int, int]:
    match = _BATCHES.search(line)
    if match is None or int(match[2]) == 0:
        return 0, 1
    return min(int(match[1]), int(match[2])), int(match[2])
