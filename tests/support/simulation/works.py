"""What each stage makes: output files, and the record that lists them."""

from __future__ import annotations

from collections.abc import Callable

from mqi_hpc.records import layout
from mqi_hpc.records.chain import ChainBeam
from mqi_hpc.records.manifest import parse_manifest
from mqi_hpc.records.result import (
    BeamRecord,
    ConvertedDose,
    ConvertRecord,
    FileEntry,
    Gpu,
    InterpretRecord,
)
from tests.support.simulation.task import JobFolder, Refused, Task


def _interpret(task: Task) -> None:
    _check_input(task)
    made = {
        beam.number: task.leave(f"beam_{beam.number}/plan/plan.dcm", _content(task, "plan", beam))
        for beam in task.chain.beams
    }
    task.publish(
        InterpretRecord(
            run=task.run(),
            input_digests={str(beam.number): beam.input_digest for beam in task.chain.beams},
            beams={str(n): entry.path.removesuffix("/plan/plan.dcm") for n, entry in made.items()},
            files=tuple(made.values()),
        )
    )


def _check_input(task: Task) -> None:
    """Refuse input that is not what its manifest says."""
    folder = f"{task.job.path.rpartition('/')[0]}/input"
    manifest = (task.job.files.read(f"{folder}/{layout.MANIFEST}") or b"").decode()
    for path, sha256 in parse_manifest(manifest).items():
        stored = task.job.files.stat(f"{folder}/{path}")
        if stored is None or stored.sha256 != sha256:
            raise Refused(1, f"{path} is not what input/MANIFEST.sha256 says")


def _beam(task: Task) -> None:
    beam, interpreted = task.beam, task.interpreted
    assert beam is not None
    assert interpreted is not None
    entry = task.leave(f"{layout.safe_name(beam.name)}_0_Dose.raw", _content(task, "dose", beam))
    task.publish(
        BeamRecord(
            run=task.run(),
            index=beam.index,
            number=beam.number + (task.fault == "other-beam"),
            input_digest=beam.input_digest,
            interpreted_digest=interpreted[0],
            seed=beam.seed,
            engine=task.chain.settings.engine_name,
            engine_version="simulated, NOT FOR CLINICAL USE",
            gpu=Gpu("0", "GPU-simulated", "simulated"),
            grid=task.chain.settings.grid,
            minimum=0.0,
            maximum=1.0,
            total=100.0,
            telemetry="none",
            files=(entry,),
        )
    )


def _convert(task: Task) -> None:
    doses: list[ConvertedDose] = []
    files: list[FileEntry] = []
    missing: dict[str, str] = {}
    for beam in task.chain.beams:
        source = task.chain.dose_job(beam)
        if source is None:
            missing[str(beam.index)] = f"{task.chain.job}: beam {beam.number} has no dose anywhere"
            continue
        other = task.job if source == task.chain.job else task.job.sibling(source)
        index = _index(other, beam.number)
        found = None if index is None else other.standing(other.chain, "beams", index)
        if found is None or not isinstance(found[1], BeamRecord):
            missing[str(beam.index)] = f"{source}: beam {beam.number} has left no valid record"
            continue
        name = f"RD.beam_{beam.number}_{layout.safe_name(beam.name)[:64]}.dcm"
        entry = task.leave(name, _content(task, "RT Dose", beam))
        uid = f"2.25.{int(entry.sha256[:24], 16)}"
        sha256 = found[1].files[0].sha256
        doses.append(ConvertedDose(beam.index, beam.number, entry.path, source, sha256, uid, 1.0, 76.5))
        files.append(entry)
    if not doses:
        raise Refused(1, f"nothing to convert: {'; '.join(missing.values())}")
    task.publish(ConvertRecord(run=task.run(), doses=tuple(doses), missing=missing, files=tuple(files)))


def _index(job: JobFolder, number: int) -> int | None:
    """Return the array index that a job has for a beam number, None where job or beam is not there."""
    if not job.files.exists(f"{job.path}/{layout.CHAIN}"):
        return None
    return next((beam.index for beam in job.chain.beams if beam.number == number), None)


def _content(task: Task, what: str, beam: ChainBeam) -> bytes:
    return f"simulated {what} of {task.chain.key}, beam {beam.number}, seed {beam.seed}\n".encode()


WORKS: dict[str, Callable[[Task], None]] = {
    "interpret": _interpret,
    "beams": _beam,
    "convert": _convert,
}
"""What is done when a stage's time is over."""
