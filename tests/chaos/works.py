"""What each stage makes, so that its bytes tell what they were made of; hashes are checked where used."""

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
from tests.chaos import truth
from tests.support.simulation.task import JobFolder, Refused, Task

Made = dict[int, bytes]
"""What a task made, by DICOM beam number."""


def interpret(task: Task) -> Made:
    """Read the input of every beam, as it lies there, and publish what it becomes."""
    folder = f"{task.job.path.rpartition('/')[0]}/input"
    manifest = parse_manifest((task.job.files.read(f"{folder}/{layout.MANIFEST}") or b"").decode())
    seen = {}
    for path, sha256 in manifest.items():
        stored = task.job.files.stat(f"{folder}/{path}")
        if stored is None or stored.sha256 != sha256:
            raise Refused(1, f"{path} is not what input/MANIFEST.sha256 says")
        seen[path] = stored.sha256
    made: Made = {}
    entries: dict[int, FileEntry] = {}
    for beam in task.chain.beams:
        prefixes = ("plan.dcm", f"beam_{beam.number}/")
        made[beam.number] = truth.interpreted(
            task.chain.key, beam.number, {path: seen[path] for path in seen if path.startswith(prefixes)}
        )
        entries[beam.number] = task.leave(f"beam_{beam.number}/plan/plan.dcm", made[beam.number])
    task.publish(
        InterpretRecord(
            run=task.run(),
            input_digests={str(beam.number): beam.input_digest for beam in task.chain.beams},
            beams={str(n): entry.path.removesuffix("/plan/plan.dcm") for n, entry in entries.items()},
            files=tuple(entries.values()),
        )
    )
    return made


def beams(task: Task) -> Made:
    """Compute a beam from what interpret made of it."""
    beam, found = task.beam, task.interpreted
    assert beam is not None
    assert found is not None
    record = found[1]
    source = task.job if record.run.job == task.chain.job else task.job.sibling(record.run.job)
    raw = truth.dose(beam.number, beam.seed, _listed(source, "interpreted", record.files, beam))
    entry = task.leave(f"{layout.safe_name(beam.name)}_0_Dose.raw", raw)
    task.publish(
        BeamRecord(
            run=task.run(),
            index=beam.index,
            number=beam.number + (task.fault == "other-beam"),
            input_digest=beam.input_digest,
            interpreted_digest=found[0],
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
    return {beam.number: raw}


def _listed(job: JobFolder, folder: str, files: tuple[FileEntry, ...], beam: ChainBeam) -> bytes:
    """Return interpret's output for a beam; its hash is looked at before it is used."""
    part = f"/beam_{beam.number}/"
    (entry,) = (file for file in files if part in f"/{file.path}")
    stored = job.files.stat(f"{job.path}/{folder}/{entry.path}")
    if stored is None or stored.content is None or stored.sha256 != entry.sha256:
        raise Refused(1, f"{entry.path} is not what interpret's record says")
    return stored.content


def convert(task: Task) -> Made:
    """Convert every beam with a valid record whose dose is what that record says."""
    made: Made = {}
    doses: list[ConvertedDose] = []
    files: list[FileEntry] = []
    missing: dict[str, str] = {}
    for beam in task.chain.beams:
        source = task.chain.dose_job(beam)
        found = None if source is None else _dose(task, source, beam)
        if source is None or found is None:
            missing[str(beam.index)] = (
                f"{source or task.chain.job}: beam {beam.number} has left no valid record"
            )
            continue
        raw, sha256 = found
        content = truth.rt_dose(task.chain.key, beam.number, raw)
        entry = task.leave(f"RD.beam_{beam.number}_{layout.safe_name(beam.name)[:64]}.dcm", content)
        uid = f"2.25.{int(entry.sha256[:24], 16)}"
        doses.append(ConvertedDose(beam.index, beam.number, entry.path, source, sha256, uid, 1.0, 76.5))
        files.append(entry)
        made[beam.number] = content
    if not doses:
        raise Refused(1, f"nothing to convert: {'; '.join(missing.values())}")
    task.publish(ConvertRecord(run=task.run(), doses=tuple(doses), missing=missing, files=tuple(files)))
    return made


def checked(content: bytes, entry: FileEntry) -> bool:
    """Whether bytes that were read are those that a record lists."""
    return truth.sha256(content) == entry.sha256


def _dose(task: Task, source: str, beam: ChainBeam) -> tuple[bytes, str] | None:
    """Return a beam's raw dose and its SHA-256; None where its record, or its bytes, do not stand."""
    job = task.job if source == task.chain.job else task.job.sibling(source)
    if not job.files.exists(f"{job.path}/{layout.CHAIN}"):
        return None
    index = next((one.index for one in job.chain.beams if one.number == beam.number), None)
    found = None if index is None else job.standing(job.chain, "beams", index)
    if found is None or not isinstance(found[1], BeamRecord):
        return None
    entry = found[1].files[0]
    stored = job.files.stat(f"{job.path}/{layout.output_folder('beams', beam.number)}/{entry.path}")
    if stored is None or stored.content is None or not checked(stored.content, entry):
        return None
    return stored.content, entry.sha256


WORKS: dict[str, Callable[[Task], Made]] = {"interpret": interpret, "beams": beams, "convert": convert}
