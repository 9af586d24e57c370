"""Convert: what has a valid record becomes an RT Dose, what has none is listed with why; nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from mqi_hpc import stages
from mqi_hpc.records.result import BeamRecord, ConvertRecord, Expected, encode_record, faults
from mqi_hpc.stages.jobs import JobFolder
from tests.support.stage_job import ARRAY_ID, GRID, BeamSpec, Here, StageJob, process_kept


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    with process_kept():
        yield Here(monkeypatch, capsys)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a writer in the place of rtdose that keeps what it is given; return the list it keeps it in."""
    calls: list[dict[str, Any]] = []
    fake = types.ModuleType("mqi_hpc.stages.rtdose")

    def write_rtdose(path: str, **given: Any) -> str:
        Path(path).write_bytes(given["dose"].tobytes())
        calls.append(given)
        return "2.25." + str(int(hashlib.sha256(given["uid_root_text"].encode()).hexdigest()[:20], 16))

    fake.write_rtdose = write_rtdose
    fake.range80 = lambda dose, grid: float(dose.shape[0])
    monkeypatch.setitem(sys.modules, "mqi_hpc.stages.rtdose", fake)
    monkeypatch.setattr(stages, "rtdose", fake, raising=False)
    return calls


@pytest.fixture
def job(tmp_path: Path, here: Here) -> StageJob:
    """Two beams, both computed."""
    made = StageJob(tmp_path, [BeamSpec(2, "1G180:TX"), BeamSpec(3, "B")])
    assert here(made, "interpret") == (0, "")
    for index in (0, 1):
        assert here(made, "beams", index) == (0, "")
    return made


def converted(job: StageJob) -> ConvertRecord:
    record = job.record("convert")
    assert isinstance(record, ConvertRecord)
    return record


def test_every_computed_beam_is_converted_from_what_its_record_says(
    job: StageJob, here: Here, writer: list[dict[str, Any]]
) -> None:
    assert here(job, "convert") == (0, "")
    record = converted(job)
    assert record.missing == {}
    assert [file.path for file in record.files] == [
        "301-0/RD.beam_2_1G180_TX.dcm",
        "301-0/RD.beam_3_B.dcm",
    ]
    for dose, file, number in zip(record.doses, record.files, (2, 3), strict=True):
        beam = job.record("beams", number)
        assert isinstance(beam, BeamRecord)
        content = (job.folder / "results" / file.path).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (dose.index, dose.number, dose.file) == (number - 2, number, file.path)
        assert (dose.source_job, dose.source_sha256) == ("j01", beam.files[0].sha256)
        assert (dose.maximum, dose.range80_mm) == (2.0, 5.0)
    first = writer[0]
    plan = first.pop("plan")
    assert plan.SOPInstanceUID == job.plan_uid
    values = first.pop("dose")
    assert values.dtype == np.float64 and values.shape == (5, 3, 4) and values[0, 0, 3] == 2.0
    assert first.pop("uid_root_text").endswith(f"/j01/2/{record.doses[0].source_sha256}")
    assert first == {
        "grid": GRID,
        "beam_number": 2,
        "dose_type": "PHYSICAL",
        "engine": "stand-in",
        "engine_version": "stand-in engine version 1.2.3",
        "seed": 1002,
        "log_digest": job.chain.beams[0].input_digest,
        "series_number": 1,
    }
    assert [line.event for line in job.status("convert")] == ["started", "progress", "progress", "exited"]


def test_a_beam_that_failed_is_listed_and_the_other_converted(
    tmp_path: Path, here: Here, writer: list[dict[str, Any]]
) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A"), BeamSpec(3, "B"), BeamSpec(4, "C")])
    here(job, "interpret")
    here(job, "beams", 0)
    job.behave("sys.exit(3)")
    here(job, "beams", 1)
    assert here(job, "convert") == (0, "")
    record = converted(job)
    assert [dose.number for dose in record.doses] == [2]
    assert record.missing == {"1": "j01: beam 3 has left no record", "2": "j01: beam 4 has not begun"}


def test_where_nothing_can_be_converted_it_says_so_and_leaves_no_record(
    tmp_path: Path, here: Here, writer: list[dict[str, Any]]
) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A")])
    here(job, "interpret")
    code, text = here(job, "convert")
    assert (code, text) == (1, "mqi-hpc convert: nothing to convert: j01: beam 2 has not begun\n")
    assert not job.record_path("convert").exists()


def raw(job: StageJob) -> Path:
    return next((job.folder / "dose/beam_2").rglob("*_Dose.raw"))


def flip(job: StageJob) -> None:
    content = bytearray(raw(job).read_bytes())
    content[3] ^= 1
    raw(job).write_bytes(bytes(content))


def poison(job: StageJob) -> None:
    content = raw(job).read_bytes()
    raw(job).write_bytes(b"\xff" * 8 + content[8:])


def rewrite(job: StageJob, **changes: Any) -> None:
    record = job.record("beams", 2)
    assert isinstance(record, BeamRecord)
    job.record_path("beams", 2).write_text(encode_record(dataclasses.replace(record, **changes)))


def no_dose_listed(job: StageJob) -> None:
    record = job.record("beams", 2)
    entry = dataclasses.replace(record.files[0], path="210-0/beam_2.in")
    size = (job.folder / "dose/beam_2/210-0/beam_2.in").stat().st_size
    rewrite(job, files=(dataclasses.replace(entry, bytes=size),))


def failed_run(job: StageJob) -> None:
    rewrite(job, run=dataclasses.replace(job.record("beams", 2).run, exit_code=1))


def cut(job: StageJob) -> None:
    raw(job).write_bytes(raw(job).read_bytes()[:-8])


def other_array(job: StageJob) -> None:
    job.put_receipt("beams", slurm_id=999)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flip, "was changed after it was computed"),
        (poison, "NaN or infinite"),
        (cut, "472 bytes"),
        (lambda job: raw(job).unlink(), "is missing"),
        (no_dose_listed, "lists 0 doses"),
        (failed_run, "exit code is 1"),
        (lambda job: rewrite(job, seed=7), "seed is 7"),
        (lambda job: rewrite(job, number=3), "beam number is 3"),
        (lambda job: rewrite(job, input_digest="0" * 64), "input digest"),
    ],
)
def test_a_dose_that_cannot_be_believed_is_not_converted(
    job: StageJob, here: Here, writer: list[dict[str, Any]], spoil: Callable[[StageJob], None], said: str
) -> None:
    spoil(job)
    assert here(job, "convert") == (0, "")
    record = converted(job)
    assert [dose.number for dose in record.doses] == [3]
    assert said in record.missing["0"]


def test_doses_of_another_array_are_not_ours(job: StageJob, here: Here, writer: list[dict[str, Any]]) -> None:
    other_array(job)
    code, text = here(job, "convert")
    assert (code, "Slurm id is 202, not 999" in text) == (1, True)


def test_a_dose_that_goes_while_it_is_read_is_listed(
    job: StageJob, here: Here, writer: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    standing = JobFolder.standing

    def then_gone(self: JobFolder, chain: Any, stage: str, index: int) -> Any:
        found = standing(self, chain, stage, index)
        if (stage, index) == ("beams", 0):
            raw(job).unlink()
        return found

    monkeypatch.setattr(JobFolder, "standing", then_gone)
    assert here(job, "convert") == (0, "")
    assert "No such file" in converted(job).missing["0"]


def test_a_dose_that_cannot_be_written_fails_the_stage_and_names_the_beam(
    job: StageJob, here: Here, writer: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, **given: Any) -> str:
        raise ValueError("the plan has no FrameOfReferenceUID")

    monkeypatch.setattr(sys.modules["mqi_hpc.stages.rtdose"], "write_rtdose", refuse)
    code, text = here(job, "convert")
    assert (code, "beam 2: its RT Dose cannot be written: the plan has no Frame" in text) == (1, True)
    assert not job.record_path("convert").exists()


def test_a_plan_that_changed_is_not_used(job: StageJob, here: Here, writer: list[dict[str, Any]]) -> None:
    plan = job.input / "plan.dcm"
    plan.write_bytes(plan.read_bytes() + b"\0\0")
    code, text = here(job, "convert")
    assert (code, "plan.dcm is not the file" in text) == (1, True)


# --- a later job


def test_a_later_job_converts_its_own_doses_and_those_of_the_job_chain_json_names(
    job: StageJob, here: Here, writer: list[dict[str, Any]]
) -> None:
    assert here(job, "convert") == (0, "")
    first = converted(job)
    job.resubmit("j02", 1)
    assert here(job, "beams", 1) == (0, "")
    assert here(job, "convert") == (0, "")
    again = converted(job)
    assert [(dose.number, dose.source_job) for dose in again.doses] == [(2, "j01"), (3, "j02")]
    # The same dose is the same object, whoever converts it; another computation is another object.
    assert again.doses[0].sop_instance_uid == first.doses[0].sop_instance_uid
    assert again.doses[1].sop_instance_uid != first.doses[1].sop_instance_uid


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        ("j07", {}, "j07: it has no chain.json"),
        ("j01", {"number": 9}, "j01: it has no beam 9"),
    ],
)
def test_a_source_that_is_not_there_is_listed(
    job: StageJob, here: Here, writer: list[dict[str, Any]], source: str, changes: dict[str, Any], said: str
) -> None:
    job.resubmit("j02", 1, b0=source)
    assert here(job, "beams", 1) == (0, "")
    beams = (dataclasses.replace(job.chain.beams[0], **changes), job.chain.beams[1])
    chain = dataclasses.replace(job.chain, beams=beams)
    if changes:
        # The fence would refuse such a chain; what convert itself makes of it is asked here.
        from mqi_hpc.stages.convert import _find

        task = types.SimpleNamespace(
            admission=types.SimpleNamespace(folder=JobFolder(job.folder), chain=chain)
        )
        with pytest.raises(Exception, match=said):
            _find(task, beams[0])
        return
    assert here(job, "convert") == (0, "")
    assert converted(job).missing == {"0": said}


def test_a_source_dose_of_another_input_is_not_taken(job: StageJob) -> None:
    from mqi_hpc.stages.convert import _load
    from mqi_hpc.stages.jobs import NotStanding

    standing = JobFolder(job.folder).standing(job.chain, "beams", 0)
    with pytest.raises(NotStanding, match="of another input"):
        _load(standing, dataclasses.replace(job.chain.beams[0], input_digest="1" * 64))


def test_convert_alone_takes_every_dose_from_where_it_is(
    tmp_path: Path, here: Here, writer: list[dict[str, Any]]
) -> None:
    job = StageJob(tmp_path, [BeamSpec(n, f"B{n}") for n in (2, 3, 4, 5)])
    assert here(job, "interpret") == (0, "")
    assert here(job, "beams", 0) == (0, "")
    job.behave("sys.exit(3)")
    assert here(job, "beams", 1)[0] == 3
    # j02 computes beam 3 again; beam 4 goes on in j01: its claim is taken, and there is no record yet.
    (job.folder / "claim.beams-2").write_text("202 212 0 g1 1 5.000000\n")
    job.behave("")
    job.resubmit("j02", 1, b3=None)
    assert here(job, "beams", 1) == (0, "")
    assert here(job, "convert") == (0, "")
    record = converted(job)
    assert [(dose.number, dose.source_job) for dose in record.doses] == [(2, "j01"), (3, "j02")]
    never = "beam 5 is not computed in this job, and no older one has its dose"
    assert record.missing == {"2": "j01: beam 4 has left no record", "3": f"j02: {never}"}
    assert faults(record, expected(job), sizes(job)) == []
    first = dict(enumerate(record.doses))
    # j03 converts what there is now.
    job.folder, now = job.case / "j01", job.folder
    job.chain = JobFolder(job.folder).chain() or job.chain
    (job.folder / "claim.beams-2").unlink()
    assert here(job, "beams", 2) == (0, "")
    job.folder = now
    job.resubmit("j03", b1="j02", b3=None)
    before = job.snapshot()
    assert here(job, "convert") == (0, "")
    record = converted(job)
    assert [(dose.number, dose.source_job) for dose in record.doses] == [(2, "j01"), (3, "j02"), (4, "j01")]
    assert list(record.missing) == ["3"]
    assert faults(record, expected(job), sizes(job)) == []
    for n, dose in first.items():
        assert record.doses[n].sop_instance_uid == dose.sop_instance_uid
    # What other jobs have made is read and left as it is.
    after = job.snapshot()
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[0] for path in set(after) - set(before)} == {"j03"}


def expected(job: StageJob) -> Expected:
    return Expected(chain=job.chain, stage="convert", index=0, array_id=ARRAY_ID["convert"], restart=0)


def sizes(job: StageJob) -> dict[str, int]:
    folder = job.folder / "results"
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flip, "j01: the dose of beam 2 was changed after it was computed"),
        (cut, "472 bytes"),
        (other_array, "j01: the record of beam 2 is not valid: Slurm id is 202, not 999"),
        (lambda job: rewrite(job, seed=7), "seed is 7"),
        (lambda job: (job.folder / "chain.json").write_text("{}"), "interpret did not finish"),
        (lambda job: (job.folder / "receipt.beams").unlink(), "j01: no receipt of beams"),
    ],
)
def test_a_dose_of_an_older_job_is_judged_by_that_jobs_own_chain_receipt_and_hash(
    job: StageJob, here: Here, writer: list[dict[str, Any]], spoil: Callable[[StageJob], object], said: str
) -> None:
    spoil(job)
    job.resubmit("j02")
    code, text = here(job, "convert")
    if code == 0:
        record = converted(job)
        assert ([dose.number for dose in record.doses], said in record.missing["0"]) == ([3], True)
    else:
        assert said in text


def test_a_job_that_did_not_compute_a_beam_does_not_have_its_dose(
    job: StageJob, here: Here, writer: list[dict[str, Any]]
) -> None:
    job.resubmit("j02", 1)
    assert here(job, "beams", 1) == (0, "")
    job.resubmit("j03", b0="j02", b1="j02")
    assert here(job, "convert") == (0, "")
    assert converted(job).missing == {"0": "j02: beam 2 is not computed in this job"}
    job.resubmit("j04", b0="j03", b1="j02")
    assert here(job, "convert") == (0, "")
    assert converted(job).missing == {"0": "j03: it has no stage beams, only convert"}


# --- with the real writer


def test_the_whole_chain_from_the_archive_ends_in_rt_doses(tmp_path: Path) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "1G180:TX"), BeamSpec(3, "B")])
    for stage, index in (("interpret", 0), ("beams", 0), ("beams", 1), ("convert", 0)):
        done = job.run(stage, index)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for dose in converted(job).doses:
        file = dcmread(job.folder / "results" / dose.file)
        assert (file.Modality, file.SOPInstanceUID) == ("RTDOSE", dose.sop_instance_uid)
        assert (file.Rows, file.Columns, file.NumberOfFrames) == (3, 4, 5)
        values = file.pixel_array * float(file.DoseGridScaling)
        assert values[0, 0, 3] == pytest.approx(2.0, rel=1e-6)
        assert np.delete(values.ravel(), 3) == pytest.approx(0.5, rel=1e-6)
