"""A job's folder as the workstation uploads it, made by hand, and the stage programs run in it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mqi_hpc.infrastructure.slurm.archive import build_stages
from mqi_hpc.records import layout
from mqi_hpc.records.chain import (
    Calibration,
    Chain,
    ChainBeam,
    ChainSubmission,
    Grid,
    Interpreted,
    Settings,
    encode_chain,
)
from mqi_hpc.records.layout import STAGES, beam_folder, safe_name, submission_name
from mqi_hpc.records.manifest import format_manifest, subset_digest
from mqi_hpc.records.result import Record, decode_record
from mqi_hpc.records.status import StatusLine, decode_lines
from mqi_hpc.stages.__main__ import main
from mqi_hpc.stages.signals import ASKING

KEY, INSTANCE = "abcdefgh0123", "i1"
RAW_ID = {"interpret": 101, "beams": 210, "convert": 301}
ARRAY_ID = {"interpret": 101, "beams": 202, "convert": 301}
GRID = Grid(size=(4, 3, 5), spacing=(2.0, 3.0, 1.0), position=(-4.0, -4.5, -5.0))
CALIBRATION = Calibration(
    machine="G2",
    x_offset=24580,
    y_offset=32772,
    x_gain=0.00726,
    y_gain=0.0071411,
    row_period_ms=0.06,
    dose1_factors={"2": 1.0, "3": 2.9787234},
)
RECEIPT_TIME = 1_700_000_000

ENGINE = """\
import os, pathlib, signal, struct, subprocess, sys, time
values = {}
for line in pathlib.Path(sys.argv[-1]).read_text().splitlines():
    key, _, value = line.partition(" ")
    values.setdefault(key.lower(), value.strip())
number = int(values["beamnumbers"])
log = pathlib.Path(values["parentdir"]) / values["logfilepath"]
field = sorted(os.listdir(log))[number - 1]
assert sorted(os.listdir(log / field)), field
print("stand-in engine version 1.2.3", flush=True)
size = [int(values["phantomdim" + axis]) for axis in "xyz"]
voxels = size[0] * size[1] * size[2]
dose = [0.5] * voxels
dose[3] = 2.0
name = field + "_1_Dose.raw"
out = pathlib.Path(values["outputdir"])
def write(name, dose):
    (out / name).write_bytes(struct.pack("<%dd" % len(dose), *dose))
BEHAVIOUR
write(name, dose)
print("Time taken by MC engine: 1 milli-seconds")
"""


@dataclasses.dataclass
class BeamSpec:
    """A beam of the made-up case: raw log rows by layer."""

    number: int
    name: str
    energies: tuple[float, ...] = (160.0, 120.5)
    rows: int = 20
    flags: int = 0xC000
    dose1_range: str = "3"


def ptn(spec: BeamSpec, layer: int) -> bytes:
    """Return a layer's log: x and y run, dose 1 is 10 in each row, the beam is on as `flags` says."""
    raw = np.zeros((spec.rows, 8), dtype=">u2")
    raw[:, 0] = 24580 + np.arange(spec.rows) * 100
    raw[:, 1] = 32772 - np.arange(spec.rows) * 100
    raw[:, 4] = 10
    raw[:, 6] = layer
    raw[:, 7] = spec.flags
    return raw.tobytes()


def plan_range(spec: BeamSpec, layers: Sequence[int]) -> str:
    """Return PlanRange.txt for some layers."""
    head = (
        "RESULT_ID,LAYER_NO,LAYER_ENERGY,PATIENT_ID,FLD_NO,DOSE1_RANGE,DOSE2_RANGE,"
        "PLAN_DOSE1_RANGE,PLAN_DOSE2_RANGE,SCAN_OUT_FL_NM,PLAN_SCAN_OUT_FL_NM"
    )
    rows = [
        f"1,{n},{spec.energies[n - 1]},P1,1,{spec.dose1_range},2,2,2,02_0_P1_001_{n:03d}.ptn,x.mgn"
        for n in layers
    ]
    return "\n".join([head, *rows]) + "\n"


def plan_info(spec: BeamSpec, first: int, last: int, patient: str = "P1") -> str:
    """Return PlanInfo.txt of a delivery of the layers from `first` to `last`."""
    return (
        f"DICOM_PATIENT_ID,{patient}\nDICOM_BEAM_NUMBER,{spec.number}\nTCSC_IRRAD_DATETIME,2025010112000000\n"
        f"TCSC_PATIENT_ID,1\nTCSC_PLAN_NUMBER,1\nTCSC_FIELD_NUMBER,1\nSTART_LAYER_NUMBER,{first}\n"
        f"STOP_LAYER_NUMBER,{last}\n"
    )


def write_plan(path: Path, specs: Sequence[BeamSpec]) -> str:
    """Write a small RT Ion Plan; return its SOPInstanceUID."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.8"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["stage-job"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plan = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    plan.SOPClassUID = meta.MediaStorageSOPClassUID
    plan.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    plan.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    plan.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    plan.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    plan.Modality = "RTPLAN"
    plan.PatientID, plan.PatientName = "P1", "Phantom^Water"
    plan.PatientBirthDate, plan.PatientSex = "", ""
    plan.StudyDate, plan.StudyTime = "20250101", "120000"
    plan.StudyID, plan.AccessionNumber, plan.ReferringPhysicianName = "1", "", ""
    plan.Manufacturer = "made up"
    plan.RTPlanLabel, plan.RTPlanGeometry = "QA", "PATIENT"
    group = Dataset()
    group.FractionGroupNumber, group.NumberOfFractionsPlanned = 1, 1
    group.ReferencedBeamSequence = []
    plan.IonBeamSequence = []
    for spec in specs:
        reference = Dataset()
        reference.ReferencedBeamNumber = spec.number
        group.ReferencedBeamSequence.append(reference)
        beam = Dataset()
        beam.BeamNumber, beam.BeamName = spec.number, spec.name
        plan.IonBeamSequence.append(beam)
    plan.FractionGroupSequence = [group]
    plan.save_as(path, enforce_file_format=True)
    return str(plan.SOPInstanceUID)


class StageJob:
    """A workspace with one case and its job j01, ready to run; `chain` may be replaced and written anew."""

    def __init__(self, root: Path, specs: Sequence[BeamSpec], *, dialect: str = "rows") -> None:
        self.specs = list(specs)
        self.case = root / "ws" / KEY
        self.input = self.case / "input"
        self.folder = self.case / "j01"
        self.folder.mkdir(parents=True)
        self.engine = root / "engine.py"
        self.behave("")
        for spec in specs:
            (self.input / beam_folder(spec.number)).mkdir(parents=True)
            layers = range(1, len(spec.energies) + 1)
            self.put_input(spec, "PlanInfo.txt", plan_info(spec, 1, len(spec.energies)).encode())
            self.put_input(spec, "PlanRange.txt", plan_range(spec, layers).encode())
            for n in layers:
                self.put_input(spec, f"{n:03d}.ptn", ptn(spec, n))
        self.plan_uid = write_plan(self.input / layout.PLAN, specs)
        (self.folder / layout.STAGES_ARCHIVE).write_bytes(build_stages())
        self.dialect = dialect
        self.chain = self.make_chain()
        self.seal()
        for stage in STAGES:
            self.put_receipt(stage)

    def behave(self, behaviour: str) -> None:
        """Make the stand-in engine do `behaviour` (Python) just before it writes its dose."""
        self.engine.write_text(ENGINE.replace("BEHAVIOUR", behaviour))

    def put_input(self, spec: BeamSpec, name: str, content: bytes) -> None:
        """Write one input file of a beam; `seal` afterwards."""
        (self.input / beam_folder(spec.number) / name).write_bytes(content)

    def make_chain(self, job: str = "j01", interpreted: Interpreted | None = None, *computed: int) -> Chain:
        """Return a job's chain, digests still empty.

        Without `interpreted` it has all stages, for all beams; with it, those that compute `computed`.
        """
        stages = STAGES if interpreted is None else STAGES[1:] if computed else STAGES[2:]
        beams = tuple(
            ChainBeam(
                index=n,
                number=spec.number,
                name=spec.name,
                log_folder=safe_name(spec.name),
                energies=spec.energies,
                input_digest="0" * 64,
                seed=1000 + spec.number,
            )
            for n, spec in enumerate(self.specs)
        )
        return Chain(
            site="s",
            instance=INSTANCE,
            key=KEY,
            job=job,
            plan_uid=self.plan_uid,
            beams=beams,
            submissions=tuple(
                ChainSubmission(
                    stage=stage,
                    name=submission_name(INSTANCE, KEY, job, stage),
                    script_digest="0" * 64,
                    indices=(computed or tuple(range(len(beams)))) if stage == "beams" else (0,),
                )
                for stage in stages
            ),
            interpreted=interpreted or Interpreted(job=job),
            stages_digest="0" * 64,
            audit_head="head",
            settings=Settings(
                calibration=CALIBRATION,
                grid=GRID,
                log_dialect=self.dialect,
                engine=(sys.executable, "-S", str(self.engine)),
                engine_name="stand-in",
                require_gpu=True,
                dose_type="PHYSICAL",
            ),
        )

    def seal(self) -> None:
        """Write manifest, chain.json with the digests of what is there, and the engine's inputs."""
        digests = {
            str(path.relative_to(self.input)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.input.rglob("*")
            if path.is_file() and path.name != layout.MANIFEST
        }
        (self.input / layout.MANIFEST).write_text(format_manifest(digests))
        beams = tuple(
            dataclasses.replace(
                beam,
                input_digest=subset_digest(digests, (layout.PLAN, beam_folder(beam.number) + "/")),
            )
            for beam in self.chain.beams
        )
        self.write_chain(dataclasses.replace(self.chain, beams=beams))

    def write_chain(self, chain: Chain) -> None:
        """Write chain.json and the engine's inputs."""
        self.chain = chain
        (self.folder / layout.CHAIN).write_text(encode_chain(chain))
        for beam in chain.beams:
            (self.folder / layout.engine_input(beam.number)).write_text(
                engine_input(beam, chain.settings.grid)
            )

    def next_job(self, chain: Chain) -> None:
        """Go on in another job's folder: `chain` names it; receipts are written for it."""
        self.folder = self.case / chain.job
        self.folder.mkdir()
        (self.folder / layout.STAGES_ARCHIVE).write_bytes(build_stages())
        self.write_chain(chain)
        for stage in chain.stages:
            self.put_receipt(stage)

    def resubmit(self, job: str, *computed: int, interpreted: str = "j01", **sources: str | None) -> None:
        """Go on as `job`, which computes the beams `computed` (indices) from `interpreted`'s interpret.

        `sources` names the job of each other beam's dose, as b0="j01"; j01 where nothing is said.
        """
        content = (self.case / interpreted / layout.output_folder("interpret") / layout.RECORD).read_bytes()
        named = Interpreted(interpreted, hashlib.sha256(content).hexdigest())
        beams = tuple(
            dataclasses.replace(
                beam,
                source_job=None if beam.index in computed else sources.get(f"b{beam.index}", "j01"),
            )
            for beam in self.chain.beams
        )
        self.next_job(dataclasses.replace(self.make_chain(job, named, *computed), beams=beams))

    def put_receipt(self, stage: str, name: str | None = None, slurm_id: int | None = None) -> None:
        """Write a stage's receipt, in place of the one that is there."""
        name = name or self.chain.submission(stage).name
        path = self.folder / layout.receipt(stage)
        path.write_text(f"{name} {slurm_id or ARRAY_ID[stage]} {RECEIPT_TIME}\n")

    def environ(self, stage: str, index: int = 0, **changes: str | None) -> dict[str, str]:
        """Return the environment that Slurm gives the task; None takes a variable away."""
        name = submission_name(INSTANCE, KEY, self.chain.job, stage)
        environ: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "SLURM_JOB_NAME": name,
            "SLURM_JOB_ID": str(RAW_ID[stage] + index),
            "SLURMD_NODENAME": "g1",
            "CUDA_VISIBLE_DEVICES": "0",
        }
        if stage == "beams":
            environ["SLURM_ARRAY_JOB_ID"] = str(ARRAY_ID[stage])
            environ["SLURM_ARRAY_TASK_ID"] = str(index)
        return {key: value for key, value in {**environ, **changes}.items() if value is not None}

    def command(self, stage: str) -> list[str]:
        """Return the command line that a stage's script runs."""
        archive = str(self.folder / layout.STAGES_ARCHIVE)
        return [sys.executable, "-B", archive, stage, "--job-dir", str(self.folder)]

    def run(
        self, stage: str, index: int = 0, *, python: str | None = None, **changes: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a stage to its end as Slurm would."""
        command = self.command(stage)
        return subprocess.run(
            [python or command[0], *command[1:]],
            env=self.environ(stage, index, **changes),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def start(self, stage: str, index: int = 0, **changes: str | None) -> subprocess.Popen[str]:
        """Start a stage."""
        return subprocess.Popen(
            self.command(stage),
            env=self.environ(stage, index, **changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def record(self, stage: str, number: int = 0) -> Record:
        """Return a stage's record."""
        return decode_record(self.record_path(stage, number).read_text())

    def record_path(self, stage: str, number: int = 0) -> Path:
        """Return where a stage's record is or would be."""
        return self.folder / layout.output_folder(stage, number) / layout.RECORD

    def status(self, stage: str, index: int = 0) -> list[StatusLine]:
        """Return a task's status lines, none where there is no file."""
        path = self.folder / layout.status_file(stage, index)
        return decode_lines(path.read_text()) if path.exists() else []

    def snapshot(self) -> Mapping[str, bytes]:
        """Return every file of the case by path, to see that nothing was touched."""
        return {
            str(path.relative_to(self.case)): path.read_bytes()
            for path in self.case.rglob("*")
            if path.is_file()
        }


def engine_input(beam: ChainBeam, grid: Grid) -> str:
    """Return a beam's engine input as rendered on the workstation."""
    lines = [
        "GPUID 0",
        f"RandomSeed {beam.seed}",
        "ParentDir @PARENT@",
        "DicomDir plan",
        "logFilePath log",
        f"BeamNumbers {beam.number}",
    ]
    for n, axis in enumerate("XYZ"):
        lines += [
            f"PhantomDim{axis} {grid.size[n]}",
            f"PhantomUnit{axis} {grid.spacing[n]}",
            f"PhantomPosition{axis} {grid.position[n]}",
        ]
    return "\n".join([*lines, "Scorer Dose", "OutputDir @OUTPUT@", "OutputFormat raw"]) + "\n"


class Here:
    """Runs stages within this process, so that what they do can be measured and interfered with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, job: StageJob, stage: str, index: int = 0, **changes: str | None) -> tuple[int, str]:
        """Return a stage's exit code and what it said on stderr."""
        self._capsys.readouterr()
        with self._monkeypatch.context() as patch:
            for name in [n for n in os.environ if n.startswith(("SLURM", "CUDA"))]:
                patch.delenv(name)
            for name, value in job.environ(stage, index, **changes).items():
                patch.setenv(name, value)
            code = main([stage, "--job-dir", str(job.folder)])
        return code, self._capsys.readouterr().err


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """Give umask and signal handlers back, which a stage changes for its process."""
    handlers = {number: signal.getsignal(number) for number in ASKING}
    mask = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def await_gone(pid: int) -> None:
    """Return once a process that was killed is no more, or a zombie; the test's own limit bounds it."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":
            return
        time.sleep(0.005)
