"""One array element: the engine is told what chain.json says, watched, ended, and not believed."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.records import layout
from mqi_hpc.records.chain import Grid
from mqi_hpc.records.result import BeamRecord, Gpu
from mqi_hpc.stages import engine
from mqi_hpc.stages.beam import _batches, _Progress
from mqi_hpc.stages.dose import find_dose, read_dose
from mqi_hpc.stages.engine_input import check, parse, render
from mqi_hpc.stages.errors import Interrupted, StageError
from mqi_hpc.stages.gpu import Telemetry
from mqi_hpc.stages.signals import Signals
from tests.support.stage_job import GRID, BeamSpec, Here, StageJob, await_gone, process_kept

RAW = "210-0/1G180_TX_1_Dose.raw"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    with process_kept():
        yield Here(monkeypatch, capsys)


@pytest.fixture
def job(tmp_path: Path, here: Here) -> StageJob:
    made = StageJob(tmp_path, [BeamSpec(2, "1G180:TX"), BeamSpec(3, "B")])
    assert here(made, "interpret") == (0, "")
    return made


def failed(job: StageJob, here: Here, code: int, said: str, index: int = 0, **env: str | None) -> str:
    """Assert that a beam fails in one line, without a record, and says so in its last status line."""
    found, text = here(job, "beams", index, **env)
    number = job.chain.beams[index].number
    assert said in text
    assert found == code
    assert text.startswith(f"mqi-hpc beams: beam {number} (index {index}): ") and text.count("\n") == 1
    assert not job.record_path("beams", number).exists()
    last = job.status("beams", index)[-1]
    assert (last.event, last.exit_code, last.text in text) == ("exited", code, True)
    return text


# --- the whole


def test_a_beam_that_went_well_is_recorded_with_all_it_was(job: StageJob, here: Here) -> None:
    assert here(job, "beams") == (0, "")
    record = job.record("beams", 2)
    assert isinstance(record, BeamRecord)
    interpreted = job.record_path("interpret").read_bytes()
    beam = job.chain.beams[0]
    content = struct.pack("<60d", *[0.5, 0.5, 0.5, 2.0, *[0.5] * 56])
    assert (job.folder / "dose/beam_2" / RAW).read_bytes() == content
    assert dataclasses.replace(record, run=None) == BeamRecord(
        run=None,
        index=0,
        number=2,
        input_digest=beam.input_digest,
        interpreted_digest=hashlib.sha256(interpreted).hexdigest(),
        seed=1002,
        engine="stand-in",
        engine_version="stand-in engine version 1.2.3",
        gpu=record.gpu,
        grid=GRID,
        minimum=0.5,
        maximum=2.0,
        total=31.5,
        telemetry=record.telemetry,
        files=(type(record.files[0])(path=RAW, bytes=480, sha256=hashlib.sha256(content).hexdigest()),),
    )
    assert record.gpu.visible == "0"
    assert (record.run.array_id, record.run.slurm_id, record.run.restart) == (202, 210, 0)
    assert record.run.start <= record.run.end
    assert [line.event for line in job.status("beams")] == ["started", "progress", "exited"]
    log = job.folder / "logs/beam_2.engine.log"
    assert log.read_text().endswith("Time taken by MC engine: 1 milli-seconds\n")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_each_element_computes_its_own_beam(job: StageJob, here: Here) -> None:
    for index in (1, 0):
        assert here(job, "beams", index) == (0, "")
    numbers = [job.record("beams", n).number for n in (2, 3)]
    assert numbers == [2, 3]


def test_a_repeat_changes_nothing_and_exits_0(job: StageJob, here: Here) -> None:
    here(job, "beams")
    before = job.snapshot()
    code, text = here(job, "beams")
    assert (code, "nothing left to do" in text) == (0, True)
    assert job.snapshot() == before


def test_a_second_start_after_a_failure_does_not_run(job: StageJob, here: Here) -> None:
    job.behave("sys.exit(3)")
    here(job, "beams")
    before = job.snapshot()
    assert here(job, "beams")[0] == 79
    assert job.snapshot() == before


# --- the engine misbehaves


@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [
        ("print('CUDA error: (finalize) out of memory'); sys.exit(255)", 255,
         "exited with 255; its last line: 'CUDA error: (finalize) out of memory'; see logs/beam_2"),
        ("sys.exit(1)", 1, "exited with 1"),
        ("sys.exit(78)", 70, "exited with 78"),
        ("sys.exit(79)", 70, "exited with 79"),
        ("os.abort()", 134, "SIGABRT"),
        ("os.kill(os.getpid(), 9)", 137, "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 5)", 128 + 39, "signal 39"),
        ("print('Cannot write :/x.raw')", 1, "could not write its dose"),
        ("print('Cannot open file!')", 1, "could not write its dose"),
        ("print('Error occurred at writing time!')", 1, "could not write its dose"),
        ("sys.exit(0)", 1, "wrote no *_Dose.raw, but beam_2.in"),
        ("write('B_1_Dose.raw', dose); sys.exit(0)", 1, "B_1_Dose.raw, which is not the dose of beam"),
        ("write('1G180_TX_Dose.raw', dose); sys.exit(0)", 1, "which is not the dose of beam"),
        ("write('1G180_TX_1_Dose.raw.raw', dose); sys.exit(0)", 1, "wrote no *_Dose.raw"),
        ("write('x1G180_TX_1_Dose.raw', dose); sys.exit(0)", 1, "which is not the dose of beam"),
        ("write('B_1_Dose.raw', dose)", 1, "wrote 2 doses: 1G180_TX_1_Dose.raw, B_1_Dose.raw"),
        ("(out / name).mkdir(); sys.exit(0)", 1, "no regular file"),
        ("(out / name).symlink_to(out / 'd'); sys.exit(0)", 1, "no regular file"),
        ("dose = dose[:30]", 1, "has 240 bytes, a grid of 4 x 3 x 5 voxels has 480"),
        ("dose = dose + [1.0]", 1, "488 bytes"),
        ("dose[7] = float('nan')", 1, "1 voxels that are NaN or infinite"),
        ("dose[7] = dose[8] = float('inf')", 1, "2 voxels that are NaN or infinite"),
        ("dose[7] = -1e-12", 1, "negative dose, -1e-12 Gy"),
        ("dose = [0.0] * voxels", 1, "holds no dose"),
        ("dose = [1e308] * voxels", 1, "beyond any number"),
    ],
)  # fmt: skip
def test_a_misbehaving_engine_is_a_failure_that_names_what_was_found(
    job: StageJob, here: Here, behaviour: str, code: int, said: str
) -> None:
    job.behave(behaviour)
    failed(job, here, code, said)


def test_the_engines_own_name_for_a_beam_is_taken_too(job: StageJob, here: Here) -> None:
    job.behave("name = '1G180:TX_12_Dose.raw'")
    assert here(job, "beams") == (0, "")
    assert job.record("beams", 2).files[0].path == "210-0/1G180:TX_12_Dose.raw"


def test_a_line_in_an_engines_log_of_a_former_run_does_not_count(job: StageJob, here: Here) -> None:
    log = job.folder / layout.engine_log(2)
    log.write_text("Cannot open file!\nversion 0.0.1\n")
    assert here(job, "beams") == (0, "")
    assert job.record("beams", 2).engine_version == "stand-in engine version 1.2.3"
    assert log.read_text().startswith("Cannot open file!\n")


def test_a_silent_engine_is_said_to_be_silent(job: StageJob, here: Here) -> None:
    job.engine.write_text("import sys; sys.exit(9)")
    failed(job, here, 9, "exited with 9; it said nothing")


def test_a_version_is_looked_for_in_the_first_lines_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x\n" * 300 + b"version 9\n" + b"\xff" * 100)
    assert engine.read_log(log, 0) == ""
    log.write_bytes(b"\xff v1.0.8 2024-08-27\x1b[0m\nversion 2\n")
    assert engine.read_log(log, 0) == "\ufffd v1.0.8 2024-08-27?[0m"


@pytest.mark.parametrize("stdbuf", [True, False])
def test_an_engine_that_is_not_there_is_named(
    job: StageJob, here: Here, monkeypatch: pytest.MonkeyPatch, stdbuf: bool
) -> None:
    if not stdbuf:
        monkeypatch.setattr("shutil.which", lambda name: None)
    settings = dataclasses.replace(job.chain.settings, engine=("/no/tps_env",))
    job.write_chain(dataclasses.replace(job.chain, settings=settings))
    failed(job, here, 127, "/no/tps_env")


def test_an_engine_that_is_no_program_is_named(
    job: StageJob, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    settings = dataclasses.replace(job.chain.settings, engine=(str(job.engine),))
    job.write_chain(dataclasses.replace(job.chain, settings=settings))
    failed(job, here, 126, "Permission denied")


def test_what_an_engine_leaves_running_is_ended(job: StageJob, here: Here, tmp_path: Path) -> None:
    left = tmp_path / "left.pid"
    job.behave(
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(left)!r}).write_text(str(child.pid))"
    )
    assert here(job, "beams") == (0, "")
    await_gone(int(left.read_text()))


@pytest.mark.parametrize("stubborn", [False, True])
def test_whatever_ends_the_watch_ends_the_engine_first(tmp_path: Path, stubborn: bool) -> None:
    pid = tmp_path / "pid"
    trap = "trap '' TERM; " if stubborn else ""
    command = ["sh", "-c", f"{trap}echo $$ > {pid}.tmp; mv {pid}.tmp {pid}; while :; do sleep 1; done"]
    signals = Signals()

    def tick() -> None:
        if pid.exists():
            raise Interrupted(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "TICK", 0.02)
        patch.setattr(engine, "GRACE", 0.2)
        with pytest.raises(Interrupted):
            engine.run_engine(command, tmp_path, tmp_path / "log", tick, signals)
    await_gone(int(pid.read_text()))


# --- what the engine is told


def test_the_engine_is_told_this_beams_folders(job: StageJob, here: Here) -> None:
    assert here(job, "beams") == (0, "")
    text = (job.folder / "dose/beam_2/210-0/beam_2.in").read_text()
    assert f"ParentDir {job.folder}/interpreted/101-0/beam_2\n" in text
    assert f"OutputDir {job.folder}/dose/beam_2/210-0\n" in text
    assert "@" not in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("BeamNumbers 2", "BeamNumbers 3", "says BeamNumbers 3, chain.json 2"),
        ("BeamNumbers 2", "BeamNumbers 2,3", "BeamNumbers 2,3"),
        ("BeamNumbers 2", "", "BeamNumbers None"),
        ("BeamNumbers 2", "beamnumbers 3\nBeamNumbers 2", "BeamNumbers 3"),
        ("BeamNumbers 2", " BeamNumbers 3\nBeamNumbers 2", "outer blanks"),
        ("BeamNumbers 2", "BeamNumbers\t 3\nBeamNumbers 2", "control character"),
        ("RandomSeed 1002", "RandomSeed 1", "RandomSeed 1"),
        ("PhantomDimX 4", "PhantomDimX 5", "PhantomDimX 5"),
        ("PhantomUnitY 3.0", "PhantomUnitY 2.0", "PhantomUnitY"),
        ("PhantomPositionZ -5.0", "PhantomPositionZ 0", "PhantomPositionZ"),
        ("ParentDir @PARENT@", "ParentDir /elsewhere @PARENT@", "ParentDir"),
        ("ParentDir @PARENT@", "ParentDir /elsewhere", "no @PARENT@"),
        ("OutputDir @OUTPUT@", "OutputDir /tmp", "no @OUTPUT@"),
        ("Scorer Dose", "Scorer # none", "'Scorer' without a value"),
        ("Scorer Dose", "   ", "blanks alone"),
        ("Scorer Dose", "Scorer Dose\r", "CR LF"),
    ],
)
def test_an_input_that_is_not_this_beams_never_reaches_the_engine(
    job: StageJob, here: Here, old: str, new: str, said: str
) -> None:
    path = job.folder / "beam_2.in"
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    failed(job, here, 1, said)
    assert not (job.folder / layout.engine_log(2)).exists()


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_an_input_that_is_not_there_or_no_text_is_named(
    job: StageJob, here: Here, content: bytes | None
) -> None:
    path = job.folder / "beam_2.in"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    failed(job, here, 1, "beam_2.in is missing or no text")


@pytest.mark.parametrize("path", ["/a#b", "/a\nb", "/a ", " /a", "", "/a\tb"])
def test_a_folder_the_grammar_cannot_carry_is_refused(path: str) -> None:
    with pytest.raises(StageError, match="cannot be told"):
        render("ParentDir @PARENT@\nOutputDir @OUTPUT@\n", path, "/out")


def test_a_template_may_leave_out_what_another_engine_does_not_know(job: StageJob) -> None:
    beam = job.chain.beams[0]
    values = parse("BeamNumbers 2\nParentDir /a b\nOutputDir /c\n# comment\n\nLonely\n")
    check(values, beam, GRID, "/a b", "/c")


@given(st.text(alphabet="abc@PARENTOU /.-_()'\"$", min_size=1, max_size=20).filter(lambda t: t.strip() == t))
def test_a_folder_that_is_taken_is_read_back_as_it_is(path: str) -> None:
    values = parse(render("ParentDir @PARENT@\nOutputDir @OUTPUT@\n", path, "/out"))
    assert values == {"parentdir": path, "outputdir": "/out"}


# --- what it builds on


def spoil_log(job: StageJob) -> None:
    path = job.folder / "interpreted/101-0/beam_2/log/1G180_TX/01_160.00MeV.csv"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1", b"2", 1))


def stranger(job: StageJob) -> None:
    (job.folder / "interpreted/101-0/beam_2/log/1G180_TX/03_1.00MeV.csv").write_text("")


def other_manifest(job: StageJob) -> None:
    path = job.input / "MANIFEST.sha256"
    digits = str.maketrans("abcdef", "bcdefa")
    lines = [line.split("  ") for line in path.read_text().splitlines()]
    path.write_text("".join(f"{digest.translate(digits)}  {name}\n" for digest, name in lines))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_log, "is not the file interpret's record lists"),
        (stranger, "not as interpret makes it: 03_1.00MeV.csv"),
        (other_manifest, "not what chain.json was made for"),
    ],
)
def test_what_a_beam_builds_on_is_checked_first(
    job: StageJob, here: Here, spoil: Callable[[StageJob], None], said: str
) -> None:
    spoil(job)
    failed(job, here, 1, said)
    assert not (job.folder / layout.engine_log(2)).exists()


def test_another_beams_spoilt_log_is_none_of_ours(job: StageJob, here: Here) -> None:
    spoil_log(job)
    assert here(job, "beams", 1) == (0, "")


def test_a_record_that_lists_too_little_is_refused(job: StageJob, here: Here) -> None:
    from mqi_hpc.records.result import encode_record

    record = job.record("interpret")
    job.record_path("interpret").write_text(
        encode_record(dataclasses.replace(record, files=record.files[:1]))
    )
    failed(job, here, 1, "lists 1 files of beam 2")


# --- the dose, by itself


def test_doses_of_every_place_are_summed_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x_Dose.raw"
    grid = Grid(size=(2, 3, 4), spacing=(1, 1, 1), position=(0, 0, 0))
    path.write_bytes(struct.pack("<24d", *range(24)))
    dose = read_dose(path, grid)
    assert dose.values.shape == (4, 3, 2)
    assert dose.values[3, 2, 1] == 23 and dose.values[0, 1, 0] == 2 and dose.values[1, 0, 0] == 6
    assert (dose.minimum, dose.maximum, dose.total) == (0.0, 23.0, 276.0)
    assert dose.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    path = tmp_path / "x_Dose.raw"
    path.write_bytes(bytes(480))
    monkeypatch.setattr(np, "fromfile", lambda path, dtype: np.zeros(3, dtype))
    with pytest.raises(StageError, match="was changed while it was read"):
        read_dose(path, GRID)


@given(
    st.text(alphabet="AB_1:. +", min_size=1, max_size=6), st.text(alphabet="AB_1:. +", min_size=1, max_size=6)
)
def test_only_the_beams_own_name_is_its_dose(
    tmp_path_factory: pytest.TempPathFactory, own: str, other: str
) -> None:
    folder = tmp_path_factory.mktemp("dose")
    (folder / f"{other}_1_Dose.raw").write_text("")
    beam = StageJobBeam(own)
    if other in (own, layout.safe_name(own)):
        assert find_dose(folder, beam).name == f"{other}_1_Dose.raw"
    else:
        with pytest.raises(StageError, match="not the dose of beam"):
            find_dose(folder, beam)


@dataclasses.dataclass
class StageJobBeam:
    """As much of a beam as its name."""

    name: str


# --- the GPU


@pytest.mark.parametrize("visible", [None, "", "NoDevFiles"])
def test_without_a_gpu_nothing_is_computed(job: StageJob, here: Here, visible: str | None) -> None:
    failed(job, here, layout.EXIT_NO_GPU, "gave this task no GPU", CUDA_VISIBLE_DEVICES=visible)


def test_a_site_may_do_without(job: StageJob, here: Here) -> None:
    settings = dataclasses.replace(job.chain.settings, require_gpu=False)
    job.write_chain(dataclasses.replace(job.chain, settings=settings))
    assert here(job, "beams", CUDA_VISIBLE_DEVICES=None) == (0, "")
    record = job.record("beams", 2)
    assert isinstance(record, BeamRecord)
    assert (record.gpu, record.telemetry) == (Gpu(visible=""), "none: no GPU")


# --- how far it is


def test_a_long_run_says_how_far_it_is_in_a_few_lines(
    job: StageJob, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TICK", 0.02)
    job.behave(
        "print('with 0 batches (1 of 0 batches)', flush=True)\n"
        "for n in range(1, 5):\n"
        "    print('Generating particles for (%d of 4 batches) in CPU ..' % n, flush=True)\n"
        "    status = pathlib.Path(sys.argv[-1]).parents[3] / 'status/beams-0.jsonl'\n"
        "    while 'batch %d of 4' % n not in status.read_text(): time.sleep(0.01)\n"
    )
    assert here(job, "beams") == (0, "")
    texts = [line.text for line in job.status("beams") if line.event == "progress"]
    assert texts == ["the engine runs", *[f"the engine runs: batch {n} of 4" for n in range(1, 5)]]


def test_a_look_that_finds_no_more_says_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said: list[str] = []
    progress = _Progress(SimpleNamespace(progress=said.append), log, Telemetry(Gpu(visible="")))
    for done in (1, 1, 9, 10, 10, 39):
        log.write_text(f"({done} of 40 batches)\n")
        progress.tick()
    assert said == ["the engine runs: batch 10 of 40", "the engine runs: batch 39 of 40"]


def test_progress_never_claims_more_than_all() -> None:
    assert _batches("(9 of 4 batches)") == (4, 4)
    assert _batches("(1 of 0 batches)") == (0, 1)
    assert _batches("nothing") == (0, 1)
