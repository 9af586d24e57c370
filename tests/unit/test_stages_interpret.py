"""Interpret: from the machine's logs to what the engine reads, exactly; and every way it must refuse."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian

from mqi_hpc.records.chain import ChainBeam
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import safe_name
from mqi_hpc.records.result import InterpretRecord
from mqi_hpc.stages.errors import StageError
from mqi_hpc.stages.parent_dir import (
    MOST_PADDING,
    check_parent,
    field_folders,
    layer_name,
    layer_paths,
    padding,
)
from mqi_hpc.stages.plan import read_plan
from mqi_hpc.stages.spots import beam_on, calibrate, decode, format_samples
from tests.support.stage_job import (
    CALIBRATION,
    BeamSpec,
    Here,
    StageJob,
    plan_info,
    plan_range,
    process_kept,
    ptn,
    write_plan,
)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    with process_kept():
        yield Here(monkeypatch, capsys)


def beam_of(spec: BeamSpec) -> ChainBeam:
    return ChainBeam(
        index=0,
        number=spec.number,
        name=spec.name,
        log_folder=safe_name(spec.name),
        energies=spec.energies,
        input_digest="0" * 64,
        seed=1,
    )


def made(job: StageJob, number: int) -> Path:
    record = job.record("interpret")
    assert isinstance(record, InterpretRecord)
    return job.folder / "interpreted" / record.beams[str(number)]


# --- the numbers


def test_positions_counts_and_times_are_the_formula_row_by_row(tmp_path: Path, here: Here) -> None:
    spec = BeamSpec(2, "1G180:TX", rows=6)
    raw = np.frombuffer(ptn(spec, 1), dtype=">u2").reshape(-1, 8).copy()
    raw[:, 4] = [10, 0, 7, 3, 1, 65535]
    raw[2, 7] = 0x8000  # planned on, but not on
    job = StageJob(tmp_path, [spec])
    job.put_input(spec, "001.ptn", raw.tobytes())
    job.seal()
    assert here(job, "interpret") == (0, "")
    text = (made(job, 2) / "log/1G180_TX/01_160.00MeV.csv").read_bytes()
    expected = []
    for row, (x, y, _, _, dose1, _, _, _) in enumerate(raw.tolist()):
        if row == 2:
            continue
        count = round(dose1 * 2.9787234)
        expected.append(
            f"{row * 0.06:.6f},{(x - 24580) * 0.00726:.6f},{(y - 32772) * 0.0071411:.6f},{count}\r\n"
        )
    assert text.decode() == "".join(expected)
    assert text.split(b"\r\n")[1].endswith(b",0")  # a sample of count 0 stays
    record = job.record("interpret")
    assert isinstance(record, InterpretRecord) and record.notes == ()


def test_the_flat_dialect_is_one_line_of_the_same_numbers(tmp_path: Path, here: Here) -> None:
    texts = {}
    for dialect in ("rows", "flat"):
        job = StageJob(tmp_path / dialect, [BeamSpec(1, "A")], dialect=dialect)
        assert here(job, "interpret")[0] == 0
        texts[dialect] = (made(job, 1) / "log/A/01_160.00MeV.csv").read_text()
    assert "\n" not in texts["flat"]
    assert texts["flat"].split(",") == texts["rows"].replace("\n", ",").rstrip(",").split(",")


def test_where_no_sample_says_on_all_are_used_and_it_is_noted(tmp_path: Path, here: Here) -> None:
    job = StageJob(tmp_path, [BeamSpec(1, "A", flags=0x8001, rows=5), BeamSpec(2, "B", rows=5)])
    assert here(job, "interpret")[0] == 0
    assert len((made(job, 1) / "log/A/01_160.00MeV.csv").read_text().splitlines()) == 5
    record = job.record("interpret")
    assert isinstance(record, InterpretRecord)
    assert record.notes == ("beam 1: no sample says that the beam was on, so all of them are used",)


@given(
    st.lists(st.tuples(*[st.integers(0, 65535)] * 8), min_size=1, max_size=50),
    st.sampled_from(sorted(CALIBRATION.dose1_factors)),
)
def test_any_log_decodes_to_its_own_words(rows: list[tuple[int, ...]], digit: str) -> None:
    raw = decode(b"".join(word.to_bytes(2, "big") for row in rows for word in row), "x")
    assert raw.tolist() == [list(row) for row in rows]
    on = beam_on(raw)
    assert on.tolist() == [bool(row[7] >> 14 & 1) for row in rows]
    samples = calibrate(raw, on, CALIBRATION, digit)
    kept = [(n, row) for n, row in enumerate(rows) if row[7] >> 14 & 1]
    assert samples.shape == (len(kept), 4)
    for line, (n, row) in zip(format_samples(samples, "rows").decode().splitlines(), kept, strict=True):
        t, x, y, count = line.split(",")
        assert abs(float(t) - n * 0.06) < 1e-6
        assert abs(float(x) - (row[0] - 24580) * 0.00726) < 1e-6
        assert abs(float(y) - (row[1] - 32772) * 0.0071411) < 1e-6
        assert int(count) == round(row[4] * CALIBRATION.dose1_factors[digit])


@given(st.binary(max_size=200))
def test_a_log_of_half_rows_is_refused(content: bytes) -> None:
    if content and len(content) % 16 == 0:
        assert len(decode(content, "x")) == len(content) // 16
    else:
        with pytest.raises(FormatError, match="cut off"):
            decode(content, "x")


# --- the engine's folder


@given(st.integers(0, 300), st.text(alphabet="abzAZ019_-", min_size=1, max_size=8))
def test_padding_sorts_before_any_name_and_holds_no_letter_or_digit(count: int, name: str) -> None:
    names = padding(count)
    assert len(set(names)) == count
    assert sorted([*names, name], key=str.encode) == [*names, name]
    assert not any(c.isalnum() for word in names for c in word)
    assert len({len(word) for word in names}) <= 1


@pytest.mark.parametrize("number", [1, 2, 3, 7, 40])
def test_both_rules_of_the_engines_find_the_beams_folder(tmp_path: Path, here: Here, number: int) -> None:
    job = StageJob(tmp_path, [BeamSpec(number, "-x y:1")])
    assert here(job, "interpret")[0] == 0
    log = made(job, number) / "log"
    assert sorted((path.name for path in log.iterdir()), key=str.encode)[number - 1] == "-x_y_1"
    assert [path.name for path in log.iterdir() if any(path.iterdir())] == ["-x_y_1"]


def test_a_number_the_folder_cannot_serve_is_refused(tmp_path: Path, here: Here) -> None:
    job = StageJob(tmp_path, [BeamSpec(MOST_PADDING + 1, "A")])
    assert here(job, "interpret")[0] == 1


@pytest.mark.parametrize("name", ["a/b", "!x", "#"])
def test_a_log_folder_the_engine_cannot_find_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="no name the engine can find"):
        field_folders(dataclasses.replace(beam_of(BeamSpec(1, "A")), log_folder=name))


@given(st.integers(1, 1200))
def test_layer_names_sort_as_layers_do(layers: int) -> None:
    names = [layer_name(n, 70.0, layers) for n in range(1, layers + 1)]
    assert names == sorted(names)
    assert all(name.split("_")[1].split("M")[0] == "70.00" for name in names)


def test_the_parent_holds_plan_and_layers_private_and_listed_with_their_hashes(
    tmp_path: Path, here: Here
) -> None:
    job = StageJob(tmp_path, [BeamSpec(3, "1G180:TX", energies=(70.1, 69.333, 68.0))])
    assert here(job, "interpret") == (0, "")
    record = job.record("interpret")
    assert isinstance(record, InterpretRecord)
    assert record.beams == {"3": "101-0/beam_3"}
    assert record.input_digests == {"3": job.chain.beams[0].input_digest}
    assert [file.path for file in record.files] == [
        "101-0/beam_3/plan/plan.dcm",
        "101-0/beam_3/log/1G180_TX/01_70.10MeV.csv",
        "101-0/beam_3/log/1G180_TX/02_69.33MeV.csv",
        "101-0/beam_3/log/1G180_TX/03_68.00MeV.csv",
    ]
    for file in record.files:
        content = (job.folder / "interpreted" / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    assert dcmread(made(job, 3) / "plan/plan.dcm").SOPInstanceUID == job.plan_uid
    for path in (job.folder / "interpreted").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert (record.run.slurm_id, record.run.array_id, record.run.node) == (101, 101, "g1")
    lines = job.status("interpret")
    assert [line.event for line in lines] == ["started", "progress", "exited"]
    assert lines[-1].exit_code == 0


def test_a_parent_with_a_stranger_in_it_is_refused(tmp_path: Path, here: Here) -> None:
    spec = BeamSpec(2, "A")
    job = StageJob(tmp_path, [spec])
    assert here(job, "interpret")[0] == 0
    beam, parent = job.chain.beams[0], made(job, 2)
    check_parent(parent, beam)
    for stranger in ("x", "plan/x", "log/x", "log/A/03_1.00MeV.csv"):
        (parent / stranger).write_text("")
        with pytest.raises(FormatError, match="not as interpret makes it"):
            check_parent(parent, beam)
        (parent / stranger).unlink()
    (parent / layer_paths(beam)[0]).unlink()
    with pytest.raises(FormatError, match="01_160"):
        check_parent(parent, beam)


# --- pieces


def test_pieces_of_a_beam_are_joined_each_with_its_own_range(tmp_path: Path, here: Here) -> None:
    spec = BeamSpec(2, "A", energies=(100.0, 90.0, 80.0))
    job = StageJob(tmp_path, [spec])
    job.put_input(spec, "PlanInfo.txt", plan_info(spec, 1, 2).encode())
    job.put_input(spec, "PlanInfo-2.txt", plan_info(spec, 3, 3).encode())
    other = dataclasses.replace(spec, dose1_range="2")
    # The second piece's table lists every layer; those it did not deliver do not count.
    job.put_input(spec, "PlanRange-2.txt", plan_range(other, [1, 2, 3]).encode())
    job.seal()
    assert here(job, "interpret") == (0, "")
    counts = [
        (made(job, 2) / path).read_text().splitlines()[0].split(",")[3] for path in layer_paths(beam_of(spec))
    ]
    assert counts == ["30", "30", "10"]


def spoiled(name: str, content: Callable[[BeamSpec], bytes | None]) -> Callable[[StageJob, BeamSpec], None]:
    def spoil(job: StageJob, spec: BeamSpec) -> None:
        new = content(spec)
        if new is None:
            (job.input / "beam_2" / name).unlink()
        else:
            job.put_input(spec, name, new)

    return spoil


def info(old: str, new: str) -> Callable[[StageJob, BeamSpec], None]:
    return spoiled("PlanInfo.txt", lambda spec: plan_info(spec, 1, 2).replace(old, new).encode())


def ranges(old: str, new: str) -> Callable[[StageJob, BeamSpec], None]:
    return spoiled("PlanRange.txt", lambda spec: plan_range(spec, [1, 2]).replace(old, new).encode())


def beyond(job: StageJob, spec: BeamSpec) -> None:
    longer = dataclasses.replace(spec, energies=(*spec.energies, 100.0))
    job.put_input(spec, "PlanInfo.txt", plan_info(spec, 1, 3).encode())
    job.put_input(spec, "PlanRange.txt", plan_range(longer, [1, 2, 3]).encode())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoiled("PlanInfo.txt", lambda s: None), "no PlanInfo"),
        (spoiled("PlanRange.txt", lambda s: None), "PlanRange"),
        (spoiled("PlanInfo.txt", lambda s: b"\xff\xfe"), "PlanInfo.txt"),
        (spoiled("PlanInfo.txt", lambda s: b"rubbish"), "PlanInfo.txt"),
        (info("BEAM_NUMBER,2", "BEAM_NUMBER,3"), "3"),
        (info("BEAM_NUMBER,2", "BEAM_NUMBER,two"), "DICOM_BEAM_NUMBER"),
        (info("DICOM_BEAM_NUMBER,2\n", ""), "DICOM_BEAM_NUMBER"),
        (info("PATIENT_ID,P1", "PATIENT_ID,P2"), "different patients"),
        (info("STOP_LAYER_NUMBER,2", "STOP_LAYER_NUMBER,1"), "2 layers"),
        (info("START_LAYER_NUMBER,1", "START_LAYER_NUMBER,2"), "2 layers"),
        (spoiled("PlanRange.txt", lambda s: plan_range(s, [1]).encode()), "2 layers"),
        (beyond, "layer 3 is none of beam 2"),
        (spoiled("PlanRange.txt", lambda s: b'LAYER_NO\n"1"1,2\n'), "PlanRange.txt"),
        (ranges("1,2,120.5", "1,1,160.0"), "layer 1"),
        (ranges("1,2,120.5", "1,2,99.0"), "120.5"),
        (ranges("1,2,120.5", "1,2,x"), "LAYER_ENERGY"),
        (ranges(",3,2,2,2,", ",9,2,2,2,"), "DOSE1_RANGE '9'"),
        (ranges(",3,2,2,2,", ",,2,2,2,"), "DOSE1_RANGE"),
        (spoiled("002.ptn", lambda s: None), "2 layers"),
        (spoiled("003.ptn", lambda s: ptn(s, 3)), "2 layers"),
        (spoiled("002.ptn", lambda s: ptn(s, 2)[:-1]), "cut off"),
        (spoiled("002.ptn", lambda s: b""), "cut off"),
        (spoiled("002.ptn", lambda s: ptn(dataclasses.replace(s, flags=0), 2)), "layer 2"),
    ],
)  # fmt: skip
def test_a_delivery_that_is_not_the_beams_is_refused_in_one_line(
    tmp_path: Path, here: Here, spoil: Callable[[StageJob, BeamSpec], None], said: str
) -> None:
    spec = BeamSpec(2, "A")
    job = StageJob(tmp_path, [spec])
    spoil(job, spec)
    job.seal()
    code, text = here(job, "interpret")
    assert code == 1
    assert said in text
    assert text.startswith("mqi-hpc interpret: beam 2: ") and text.count("\n") == 1
    assert "P1" not in text and "P2" not in text
    assert not job.record_path("interpret").exists()
    last = job.status("interpret")[-1]
    assert (last.event, last.exit_code) == ("exited", 1)


def test_pieces_that_overlap_or_name_two_patients_are_refused(tmp_path: Path, here: Here) -> None:
    for name, patient, first in (("overlap", "P1", 1), ("patients", "P2", 2)):
        spec = BeamSpec(2, "A")
        job = StageJob(tmp_path / name, [spec])
        if name == "patients":
            job.put_input(spec, "PlanInfo.txt", plan_info(spec, 1, 1).encode())
        job.put_input(spec, "PlanInfo-2.txt", plan_info(spec, first, 2, patient).encode())
        job.put_input(spec, "PlanRange-2.txt", plan_range(spec, [1, 2]).encode())
        job.seal()
        code, text = here(job, "interpret")
        assert code == 1
        assert ("twice" if name == "overlap" else "different patients") in text


def test_a_beam_without_any_dose_is_refused(tmp_path: Path, here: Here) -> None:
    spec = BeamSpec(2, "A")
    job = StageJob(tmp_path, [spec])
    for n in (1, 2):
        raw = np.frombuffer(ptn(spec, n), dtype=">u2").reshape(-1, 8).copy()
        raw[:, 4] = 0
        job.put_input(spec, f"{n:03d}.ptn", raw.tobytes())
    job.seal()
    code, text = here(job, "interpret")
    assert (code, "no dose at all" in text) == (1, True)


# --- the input is what it was


def test_an_input_changed_after_upload_is_refused(tmp_path: Path, here: Here) -> None:
    spec = BeamSpec(2, "A")
    job = StageJob(tmp_path, [spec])
    content = bytearray(ptn(spec, 1))
    content[3] ^= 1
    job.put_input(spec, "001.ptn", bytes(content))
    code, text = here(job, "interpret")
    assert (code, "beam_2/001.ptn is not the file" in text) == (1, True)


def test_an_input_that_is_gone_is_refused(tmp_path: Path, here: Here) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A")])
    (job.input / "beam_2/001.ptn").unlink()
    code, text = here(job, "interpret")
    assert (code, "beam_2/001.ptn is missing" in text) == (1, True)


def test_another_manifest_is_refused(tmp_path: Path, here: Here) -> None:
    spec = BeamSpec(2, "A")
    job = StageJob(tmp_path, [spec])
    chain = job.chain
    job.put_input(spec, "001.ptn", ptn(dataclasses.replace(spec, rows=3), 1))
    job.seal()  # a manifest that fits the files, but not the chain
    job.write_chain(chain)
    code, text = here(job, "interpret")
    assert (code, "not what chain.json was made for" in text) == (1, True)


@pytest.mark.parametrize(("content", "said"), [(None, "upload is not whole"), ("rubbish\n", "manifest line")])
def test_no_manifest_is_refused(tmp_path: Path, here: Here, content: str | None, said: str) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A")])
    (job.input / "MANIFEST.sha256").unlink()
    if content is not None:
        (job.input / "MANIFEST.sha256").write_text(content)
    code, text = here(job, "interpret")
    assert (code, said in text) == (1, True)


# --- the plan


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"", b"no DICOM", "plan.dcm cannot be read as DICOM"),
        (
            b"\x0a\x30\xc0\x00IS\x02\x002 ",
            b"\x0a\x30\xc0\x00IS\x02\x00x ",
            "0 beams of number 2",
        ),
    ],
)
def test_a_plan_that_is_rubbish_is_refused_in_one_line(
    tmp_path: Path, old: bytes, new: bytes, said: str
) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A")])
    plan = job.input / "plan.dcm"
    plan.write_bytes(plan.read_bytes().replace(old, new) if old else new)
    job.seal()
    done = job.run("interpret")
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (1, True, 1)


def test_a_plan_without_a_preamble_is_read(tmp_path: Path) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A")])
    plan = dcmread(job.input / "plan.dcm")
    plan.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    plan.save_as(job.input / "plan.dcm")
    content = (job.input / "plan.dcm").read_bytes()
    start = content.index(b"\x08\x00\x16\x00")  # the first element that is not of the file's meta group
    (job.input / "plan.dcm").write_bytes(content[start:])
    job.seal()
    done = job.run("interpret")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_plan_that_makes_pydicom_raise_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.dcm").write_bytes(b"no DICOM")
    with pytest.raises(StageError, match="cannot be read as DICOM"):
        read_plan(tmp_path / "plan.dcm")


def test_a_plan_that_goes_while_it_is_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plan(tmp_path / "plan.dcm")


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([BeamSpec(2, "B")], "named 'B', not 'A'"),
        ([BeamSpec(3, "A")], "0 beams of number 2"),
        ([BeamSpec(2, "A"), BeamSpec(2, "A")], "2 beams of number 2"),
    ],
)
def test_a_plan_with_other_beams_is_refused(
    tmp_path: Path, here: Here, specs: list[BeamSpec], said: str
) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A")])
    write_plan(job.input / "plan.dcm", specs)
    job.seal()
    code, text = here(job, "interpret")
    assert (code, said in text) == (1, True)


def test_another_plan_is_refused(tmp_path: Path, here: Here) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A")])
    job.write_chain(dataclasses.replace(job.chain, plan_uid="1.2.3"))
    code, text = here(job, "interpret")
    assert (code, "not the plan that chain.json names" in text) == (1, True)


def test_a_copy_that_differs_is_refused(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mqi_hpc.stages.interpret.write_new", lambda path, content: path.write_bytes(content + b"\0")
    )
    job = StageJob(tmp_path, [BeamSpec(2, "A")])
    code, text = here(job, "interpret")
    assert (code, "not to be trusted" in text) == (1, True)
