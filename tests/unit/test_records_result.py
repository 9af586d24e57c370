"""result.json: comes back as it was written, and is believed only where everything in it is its own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mqi_hpc.records.chain import Grid, Interpreted
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.result import (
    BeamRecord,
    ConvertedDose,
    ConvertRecord,
    Expected,
    FileEntry,
    Gpu,
    InterpretRecord,
    Record,
    Run,
    decode_record,
    encode_record,
    faults,
    stage_of,
)
from tests.unit.test_records_chain import CHAIN, CONVERTED, KEY, RESUBMITTED, A, B, holder, places

RUN = Run(
    key=KEY,
    job="j01",
    array_id=102,
    slurm_id=103,
    restart=0,
    node="gpu1",
    start=10.0,
    end=20.5,
    exit_code=0,
)
FILES = (FileEntry("103-0/dose.raw", 192, A), FileEntry("103-0/log.txt", 0, B))
SIZES = {"103-0/dose.raw": 192, "103-0/log.txt": 0, "103-0/other": 5}
INTERPRET = InterpretRecord(
    run=RUN,
    input_digests={"2": A, "3": A, "4": A},
    beams={"2": "103-0/b2", "3": "103-0/b3", "4": "103-0/b4"},
    files=FILES,
    notes=("no beam-on flags",),
)
BEAM = BeamRecord(
    run=RUN,
    index=1,
    number=3,
    input_digest=A,
    interpreted_digest=B,
    seed=1,
    engine="moqui",
    engine_version="1.0",
    gpu=Gpu("0", "GPU-1", "NVIDIA"),
    grid=CHAIN.settings.grid,
    minimum=0.0,
    maximum=2.5,
    total=99.0,
    telemetry="",
    files=FILES,
)
DOSES = tuple(
    ConvertedDose(n, n + 2, FILES[0].path, "j01", A, f"1.2.{n}", 2.5, 157.0 if n else None) for n in (0, 2)
)
CONVERT = ConvertRecord(run=RUN, doses=DOSES, missing={"1": "it failed"}, files=FILES)
RECORDS: dict[str, Record] = {"interpret": INTERPRET, "beams": BEAM, "convert": CONVERT}
EXPECTED = {
    stage: Expected(chain=CHAIN, stage=stage, index=1 if stage == "beams" else 0, array_id=102, restart=0)
    for stage in RECORDS
}


@pytest.mark.parametrize("stage", RECORDS)
def test_records_come_back_as_they_were_written_and_are_valid(stage: str) -> None:
    record = RECORDS[stage]
    text = encode_record(record)
    assert decode_record(text) == record
    assert encode_record(decode_record(text)) == text
    assert text.isascii()
    assert stage_of(record) == stage
    assert faults(record, EXPECTED[stage], SIZES) == []


@pytest.mark.parametrize("stage", RECORDS)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": "zzzzzzzzzzzz"}, "case key is 'zzzzzzzzzzzz'"),
        ({"job": "j02"}, "job is 'j02', not 'j01'"),
        ({"array_id": 104}, "Slurm id is 104, not 102"),
        ({"restart": 1}, "restart is 1, not 0"),
        ({"exit_code": 1}, "exit code is 1, not 0"),
    ],
)
def test_a_record_by_another_run_is_not_valid(stage: str, changes: dict[str, Any], said: str) -> None:
    record = replace(RECORDS[stage], run=replace(RUN, **changes))
    (fault,) = faults(record, EXPECTED[stage], SIZES)
    assert fault.startswith(said)


BAD: list[tuple[str, Record, str]] = [
    ("beams", replace(BEAM, index=0), "index is 0, not 1"),
    ("beams", replace(BEAM, number=2), "beam number is 2, not 3"),
    ("beams", replace(BEAM, input_digest=B), "input digest is"),
    ("beams", replace(BEAM, seed=7), "seed is 7, not 1"),
    ("beams", replace(BEAM, grid=Grid((2, 3, 5), (2.0, 3.0, 1.0), (-10.0, 0.0, 5.5))), "grid is"),
    ("beams", replace(BEAM, files=()), "it lists no file"),
    ("interpret", replace(INTERPRET, input_digests={"2": A, "3": B, "4": A}), "input digests is"),
    ("interpret", replace(INTERPRET, input_digests={"2": A, "3": A}), "input digests is"),
    ("interpret", replace(INTERPRET, beams={"2": "a"}), "beams is ['2'], not ['2', '3', '4']"),
    ("interpret", replace(INTERPRET, files=()), "it lists no file"),
    (
        "convert",
        replace(CONVERT, doses=(), missing={"0": "", "1": "", "2": ""}, files=()),
        "it lists no file",
    ),
    ("convert", replace(CONVERT, missing={}), "beams is ['0', '2'], not ['0', '1', '2']"),
    ("convert", replace(CONVERT, missing={"1": "", "2": ""}), "beams is ['0', '1', '2', '2']"),
    ("convert", replace(CONVERT, missing={"3": ""}), "beams is ['0', '2', '3']"),
    (
        "convert",
        replace(CONVERT, doses=(replace(DOSES[0], number=3), DOSES[1])),
        "RT Dose is (0, 3, 'j01'), not (0, 2, 'j01')",
    ),
    ("convert", replace(CONVERT, doses=(replace(DOSES[0], source_job="j02"), DOSES[1])), "RT Dose is"),
    ("convert", replace(CONVERT, doses=(replace(DOSES[0], index=9), DOSES[1])), "RT Dose is (9, 2, 'j01')"),
]


@pytest.mark.parametrize(("stage", "record", "said"), BAD)
def test_a_record_of_other_beams_is_not_valid(stage: str, record: Record, said: str) -> None:
    found = faults(record, EXPECTED[stage], SIZES)
    assert any(fault.startswith(said) for fault in found), found


@pytest.mark.parametrize("stage", RECORDS)
@pytest.mark.parametrize("other", RECORDS)
def test_a_record_of_another_stage_is_not_valid(stage: str, other: str) -> None:
    found = faults(RECORDS[other], EXPECTED[stage], SIZES)
    assert (found == []) is (stage == other)
    assert stage == other or found == [f"stage is {other!r}, not {stage!r}"]


@pytest.mark.parametrize("stage", RECORDS)
def test_files_must_be_there_with_their_bytes(stage: str) -> None:
    missing = faults(RECORDS[stage], EXPECTED[stage], {"103-0/log.txt": 0})
    assert missing == ["103-0/dose.raw is missing, the record says 192 bytes"]
    half = faults(RECORDS[stage], EXPECTED[stage], {**SIZES, "103-0/dose.raw": 96})
    assert half == ["103-0/dose.raw is 96 bytes, the record says 192 bytes"]


def test_all_faults_are_told_at_once() -> None:
    record = replace(BEAM, run=replace(RUN, job="j02", exit_code=3), number=9, files=())
    assert len(faults(record, EXPECTED["beams"], {})) == 4


def test_a_resubmitted_beam_must_have_used_the_interpret_record_that_its_chain_names() -> None:
    chain = replace(RESUBMITTED, interpreted=Interpreted("j01", A))
    expected = replace(EXPECTED["beams"], chain=chain)
    record = replace(BEAM, run=replace(RUN, job="j02"), interpreted_digest=A)
    assert faults(record, expected, SIZES) == []
    (fault,) = faults(replace(record, interpreted_digest=B), expected, SIZES)
    assert fault.startswith("interpret's record is")


def test_a_dose_of_an_older_job_is_taken_from_the_job_that_the_chain_names() -> None:
    expected = replace(EXPECTED["convert"], chain=RESUBMITTED)
    doses = tuple(
        ConvertedDose(n, n + 2, FILES[0].path, "j02" if n else "j01", A, "1.2", 1.0, None) for n in range(3)
    )
    record = ConvertRecord(run=replace(RUN, job="j02"), doses=doses, missing={}, files=FILES)
    assert faults(record, expected, SIZES) == []
    newer = (replace(doses[0], source_job="j02"), *doses[1:])
    assert faults(replace(record, doses=newer), expected, SIZES) != []


def test_convert_has_no_dose_of_a_beam_that_none_is_to_be_expected_of() -> None:
    run = replace(RUN, job="j03")
    doses = tuple(
        replace(DOSES[0], index=n, number=n + 2, source_job=job)
        for n, job in enumerate(("j01", "j02", "j03"))
    )
    expected = replace(EXPECTED["convert"], chain=CONVERTED)
    record = replace(CONVERT, run=run, doses=doses[:2], missing={"2": "nobody has it"})
    assert faults(record, expected, SIZES) == []
    (fault,) = faults(replace(record, doses=doses, missing={}), expected, SIZES)
    assert fault == "RT Dose is (2, 4, 'j03'), not (2, 4, None)"


def test_convert_may_list_its_doses_and_no_other_file() -> None:
    alone = replace(CONVERT, files=FILES[:1])
    assert decode_record(encode_record(alone)) == alone


def test_an_index_that_the_chain_does_not_have_is_an_error_of_the_caller() -> None:
    with pytest.raises(FormatError, match="no beam of index 9"):
        faults(BEAM, replace(EXPECTED["beams"], index=9), SIZES)


ALL_PLACES = [(stage, p) for stage, r in RECORDS.items() for p in places(json.loads(encode_record(r)))]
FREE_MAPS = ("input_digests", "beams", "missing")


@pytest.mark.parametrize(("stage", "path"), ALL_PLACES, ids=str)
def test_at_every_place_another_kind_of_value_is_refused(stage: str, path: tuple[Any, ...]) -> None:
    tree = json.loads(encode_record(RECORDS[stage]))
    for wrong in ({"x": [None]}, None):
        if wrong is None and path[-1] == "range80_mm":
            continue
        holder(tree, path)[path[-1]] = wrong
        with pytest.raises(FormatError):
            decode_record(json.dumps(tree))


@pytest.mark.parametrize(
    ("stage", "path"),
    [(s, p) for s, p in ALL_PLACES if isinstance(p[-1], str) and not (len(p) > 1 and p[-2] in FREE_MAPS)],
    ids=str,
)
def test_every_key_must_be_there_and_no_other(stage: str, path: tuple[Any, ...]) -> None:
    tree = json.loads(encode_record(RECORDS[stage]))
    value = holder(tree, path).pop(path[-1])
    with pytest.raises(FormatError, match=f"{path[-1]} is missing"):
        decode_record(json.dumps(tree))
    holder(tree, path).update({path[-1]: value, "intruder": 1})
    with pytest.raises(FormatError, match="unknown keys intruder"):
        decode_record(json.dumps(tree))


@pytest.mark.parametrize(
    ("stage", "path", "value", "said"),
    [
        ("beams", ("version",), 2, "version 2, this program reads 1"),
        ("beams", ("stage",), "upload", "unknown stage 'upload'"),
        ("beams", ("stage",), "convert", "missing"),
        ("beams", ("number",), 0, "from 1"),
        ("beams", ("run", "array_id"), 0, "from 1"),
        ("beams", ("run", "slurm_id"), 0, "from 1"),
        ("beams", ("maximum",), float("nan"), "not JSON"),
        ("beams", ("files", 0, "path"), "../../x", "relative path"),
        ("beams", ("files", 0, "path"), "/etc/passwd", "relative path"),
        ("beams", ("files", 1, "path"), "103-0/dose.raw", "listed twice"),
        ("beams", ("files", 0, "sha256"), "x", "SHA-256"),
        ("beams", ("grid", "size"), [1, 2], "three-dimensional"),
        ("interpret", ("beams", "2"), "../x", "relative path"),
        ("convert", ("doses", 0, "number"), 0, "from 1"),
        ("convert", ("doses", 0, "file"), "elsewhere.dcm", "not among the files"),
        ("convert", ("doses", 0, "file"), "/x", "relative path"),
    ],
)
def test_what_no_stage_writes_is_refused(stage: str, path: tuple[Any, ...], value: Any, said: str) -> None:
    tree = json.loads(encode_record(RECORDS[stage]))
    holder(tree, path)[path[-1]] = value
    with pytest.raises(FormatError, match=said):
        decode_record(json.dumps(tree))


@pytest.mark.parametrize("stage", RECORDS)
def test_a_record_cut_at_any_place_is_refused(stage: str) -> None:
    text = encode_record(RECORDS[stage]).rstrip()
    for length in range(len(text)):
        with pytest.raises(FormatError):
            decode_record(text[:length])
