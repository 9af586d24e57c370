"""result.json: what a stage says it has done, written last; and whether that can be believed.

A record is *valid* if stage, index, number, digests, job, Slurm ids and last restart are its own, its exit
code is 0 and the files it lists exist with their bytes. Hashes are checked on use and on download.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Callable, Dict, List, Mapping, Optional, Tuple, Union

from mqi_hpc.records.chain import Chain, Grid, read_grid
from mqi_hpc.records.form import Form, FormatError, dumps, loads

VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """A file: path below the folder that holds the record, bytes, SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Run:
    """Who wrote a record. `array_id` is the submission's Slurm id, `slurm_id` the task's own raw id.

    `start` and `end` are epoch seconds on the node; `exit_code` is the stage program's own.
    """

    key: str
    job: str
    array_id: int
    slurm_id: int
    restart: int
    node: str
    start: float
    end: float
    exit_code: int


@dataclass(frozen=True)
class InterpretRecord:
    """What interpret made: `beams` maps BeamNumber (as text) to its ParentDir, below the record's folder.

    `notes` are for people: rows used without beam-on flags and the like.
    """

    run: Run
    input_digests: Dict[str, str]
    beams: Dict[str, str]
    files: Tuple[FileEntry, ...]
    notes: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Gpu:
    """The GPU a beam had: as Slurm gave it (CUDA_VISIBLE_DEVICES), and as the driver names it."""

    visible: str
    uuid: str = ""
    name: str = ""


@dataclass(frozen=True)
class BeamRecord:
    """What the engine computed for one beam: dose in Gy on `grid`, float64 little-endian, x fastest."""

    run: Run
    index: int
    number: int
    input_digest: str
    interpreted_digest: str
    seed: int
    engine: str
    engine_version: str
    gpu: Gpu
    grid: Grid
    minimum: float
    maximum: float
    total: float
    telemetry: str
    files: Tuple[FileEntry, ...]


@dataclass(frozen=True)
class ConvertedDose:
    """One RT Dose: which beam, which file, of which job's dose with which SHA-256; its maximum (Gy).

    `range80_mm` is the depth (mm) of the laterally integrated dose's distal 80 % below the entrance face.
    """

    index: int
    number: int
    file: str
    source_job: str
    source_sha256: str
    sop_instance_uid: str
    maximum: float
    range80_mm: Optional[float]


@dataclass(frozen=True)
class ConvertRecord:
    """What convert wrote, and why the beams in `missing` (index as text) have no RT Dose."""

    run: Run
    doses: Tuple[ConvertedDose, ...]
    missing: Dict[str, str]
    files: Tuple[FileEntry, ...]


Record = Union[InterpretRecord, BeamRecord, ConvertRecord]
_STAGES = {"interpret": InterpretRecord, "beams": BeamRecord, "convert": ConvertRecord}


@dataclass(frozen=True)
class Expected:
    """Whose record it must be: stage and index, the receipt's Slurm id, the last restart seen."""

    chain: Chain
    stage: str
    index: int
    array_id: int
    restart: int


def stage_of(record: Record) -> str:
    """Return the stage that writes records of this kind."""
    return next(stage for stage, kind in _STAGES.items() if isinstance(record, kind))


def encode_record(record: Record) -> str:
    """Return the text of result.json."""
    return dumps({"version": VERSION, "stage": stage_of(record), **asdict(record)}) + "\n"


def decode_record(text: str) -> Record:
    """Return the record in `text`; raises FormatError where it is none of this version."""
    form = loads(text, "result.json")
    if (version := form.integer("version")) != VERSION:
        raise FormatError(f"result.json is of version {version}, this program reads {VERSION}")
    stage = form.text("stage")
    readers: Dict[str, Callable[[Form], Record]] = {
        "interpret": _interpret,
        "beams": _beams,
        "convert": _convert,
    }
    if stage not in readers:
        raise FormatError(f"result.json of an unknown stage {stage!r}")
    record = readers[stage](form)
    form.end()
    return record


def faults(record: Record, expected: Expected, sizes: Mapping[str, int]) -> List[str]:
    """Return why a record is not valid, empty where it is; `sizes` are the bytes of the files by path.

    Raises FormatError where the chain has no beam of the expected index.
    """
    chain, run = expected.chain, record.run
    pairs: List[Tuple[str, object, object]] = [
        ("stage", stage_of(record), expected.stage),
        ("case key", run.key, chain.key),
        ("job", run.job, chain.job),
        ("Slurm id", run.array_id, expected.array_id),
        ("restart", run.restart, expected.restart),
        ("exit code", run.exit_code, 0),
    ]
    if stage_of(record) == expected.stage:
        pairs += _of_stage(record, chain, expected.index)
    found = [f"{what} is {is_!r}, not {should!r}" for what, is_, should in pairs if is_ != should]
    if not record.files:
        found.append("it lists no file")
    for file in record.files:
        size = sizes.get(file.path)
        if size != file.bytes:
            there = "missing" if size is None else f"{size} bytes"
            found.append(f"{file.path} is {there}, the record says {file.bytes} bytes")
    return found


def _of_stage(record: Record, chain: Chain, index: int) -> List[Tuple[str, object, object]]:
    """Return what a record of each stage must say of the beams: (what, what it says, what it should say)."""
    if isinstance(record, InterpretRecord):
        wanted = {str(beam.number): beam.input_digest for beam in chain.beams}
        return [
            ("input digests", record.input_digests, wanted),
            ("beams", sorted(record.beams), sorted(wanted)),
        ]
    if isinstance(record, BeamRecord):
        beam = chain.beam(index)
        # The digest of this job's own interpret record is not known before it runs.
        interpreted = chain.interpreted.record_digest or record.interpreted_digest
        return [
            ("index", record.index, beam.index),
            ("beam number", record.number, beam.number),
            ("input digest", record.input_digest, beam.input_digest),
            ("interpret's record", record.interpreted_digest, interpreted),
            ("seed", record.seed, beam.seed),
            ("grid", record.grid, chain.settings.grid),
        ]
    numbers = {beam.index: (beam.number, chain.dose_job(beam)) for beam in chain.beams}
    pairs: List[Tuple[str, object, object]] = [
        ("RT Dose", (dose.index, dose.number, dose.source_job), (dose.index, *numbers.get(dose.index, ())))
        for dose in record.doses
    ]
    named = [str(dose.index) for dose in record.doses] + list(record.missing)
    return [*pairs, ("beams", sorted(named), sorted(str(beam.index) for beam in chain.beams))]


def _run(form: Form) -> Run:
    run = Run(
        key=form.text("key"),
        job=form.text("job"),
        array_id=form.integer("array_id", 1),
        slurm_id=form.integer("slurm_id", 1),
        restart=form.integer("restart"),
        node=form.text("node"),
        start=form.number("start"),
        end=form.number("end"),
        exit_code=form.integer("exit_code"),
    )
    form.end()
    return run


def _files(form: Form) -> Tuple[FileEntry, ...]:
    entries = []
    for item in form.forms("files"):
        entries.append(
            FileEntry(path=item.path("path"), bytes=item.integer("bytes"), sha256=item.digest("sha256"))
        )
        item.end()
    if len({entry.path for entry in entries}) != len(entries):
        raise FormatError(f"{form.what}: a file is listed twice")
    return tuple(entries)


def _interpret(form: Form) -> InterpretRecord:
    digests, beams = form.form("input_digests"), form.form("beams")
    return InterpretRecord(
        run=_run(form.form("run")),
        input_digests={name: digests.digest(name) for name in digests.names()},
        beams={name: beams.path(name) for name in beams.names()},
        files=_files(form),
        notes=tuple(form.texts("notes")),
    )


def _beams(form: Form) -> BeamRecord:
    gpu = form.form("gpu")
    return BeamRecord(
        run=_run(form.form("run")),
        index=form.integer("index"),
        number=form.integer("number", 1),
        input_digest=form.digest("input_digest"),
        interpreted_digest=form.digest("interpreted_digest"),
        seed=form.integer("seed"),
        engine=form.text("engine"),
        engine_version=form.text("engine_version"),
        gpu=_gpu(gpu),
        grid=read_grid(form.form("grid")),
        minimum=form.number("minimum"),
        maximum=form.number("maximum"),
        total=form.number("total"),
        telemetry=form.text("telemetry"),
        files=_files(form),
    )


def _gpu(form: Form) -> Gpu:
    gpu = Gpu(visible=form.text("visible"), uuid=form.text("uuid"), name=form.text("name"))
    form.end()
    return gpu


def _convert(form: Form) -> ConvertRecord:
    doses = []
    for item in form.forms("doses"):
        doses.append(
            ConvertedDose(
                index=item.integer("index"),
                number=item.integer("number", 1),
                file=item.path("file"),
                source_job=item.text("source_job"),
                source_sha256=item.digest("source_sha256"),
                sop_instance_uid=item.text("sop_instance_uid"),
                maximum=item.number("maximum"),
                range80_mm=item.optional("range80_mm", item.number),
            )
        )
        item.end()
    missing = form.form("missing")
    record = ConvertRecord(
        run=_run(form.form("run")),
        doses=tuple(doses),
        missing={name: missing.text(name) for name in missing.names()},
        files=_files(form),
    )
    listed = {file.path for file in record.files}
    if not {dose.file for dose in record.doses} <= listed:
        raise FormatError(f"{form.what}: an RT Dose is not among the files")
    return record
