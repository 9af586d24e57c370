"""What of a case's folder is believed: the pure rules, on a folder that fits and on each way not to fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqi_hpc.core.adoption import CaseRemains, JobRemains, adoption
from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.models import SubmitState, job_name
from mqi_hpc.records.layout import MANIFEST
from mqi_hpc.records.manifest import format_manifest
from tests.support.bench import KEY, PlainRenderer, make_case

CASE = make_case()
INPUT = hashlib.sha256(format_manifest({f.remote: f.sha256 for f in CASE.files}).encode()).hexdigest()
STAGES = ("interpret", "beams", "convert")
RECEIPTS = {stage: f"mqi-i1-{KEY}-j01-{stage} {10 + n} 1800000000" for n, stage in enumerate(STAGES)}


def job(
    number: int = 1, change: Callable[[dict[str, Any]], object] = lambda _: None, **fields: Any
) -> JobRemains:
    """A job's folder, whole and begun; `change` is made to its chain.json, and its MANIFEST fits that."""
    name = job_name(number)
    request = RenderRequest(
        case=CASE,
        job=name,
        job_folder=f"/w/{KEY}/{name}",
        submissions=plan_submissions("i1", KEY, number, CASE.beams),
        beams=CASE.beams,
        audit_head="a" * 64,
    )
    chain = json.loads(PlainRenderer().job_files(request)["chain.json"])
    change(chain)
    text = json.dumps(chain).encode()
    receipts = {stage: line.replace("j01", name) for stage, line in RECEIPTS.items()}
    whole = JobRemains(
        name=name,
        files={"chain.json": text, MANIFEST: listing({"chain.json": text})},
        receipts=receipts,
        claims=("claim.interpret-0",),
    )
    return replace(whole, **fields)


def listing(files: dict[str, bytes]) -> bytes:
    return format_manifest({name: hashlib.sha256(text).hexdigest() for name, text in files.items()}).encode()


def states(*jobs: JobRemains, first: str = "j01") -> list[tuple[str, SubmitState]]:
    found = adoption(CASE, first, CaseRemains(input_digest=INPUT, jobs=jobs))
    assert [one.newest for one in found] == [False] * (len(found) - 1) + [True]
    return [(one.name, one.state) for one in found]


def test_a_job_that_began_stands() -> None:
    (found,) = adoption(CASE, "j01", CaseRemains(input_digest=INPUT, jobs=(job(),)))
    assert found.state is SubmitState.STANDING
    assert {stage: receipt.id for stage, receipt in found.receipts.items()} == {
        "interpret": 10,
        "beams": 11,
        "convert": 12,
    }


@pytest.mark.parametrize(
    "left",
    [
        {"receipts": {}},
        {"receipts": {**RECEIPTS, "convert": ""}},
        {"receipts": {**RECEIPTS, "convert": "half a rec"}},
        {"receipts": {**RECEIPTS, "convert": RECEIPTS["convert"].replace("j01", "j02")}},
        {"receipts": {**RECEIPTS, "another": RECEIPTS["convert"], "convert": ""}},
    ],
)
def test_the_newest_that_is_not_whole_is_in_doubt_and_an_older_one_given_up(left: dict[str, Any]) -> None:
    assert states(job(**left)) == [("j01", SubmitState.AMBIGUOUS)]
    assert states(job(**left), job(2)) == [("j01", SubmitState.REFUSED), ("j02", SubmitState.STANDING)]


@pytest.mark.parametrize("claims", [(), ("claim.beams-0", "claim.interpret-1")])
def test_the_newest_that_is_whole_and_has_not_begun_is_in_doubt_and_an_older_one_stands(
    claims: tuple[str, ...],
) -> None:
    assert states(job(claims=claims)) == [("j01", SubmitState.AMBIGUOUS)]
    standing = [("j01", SubmitState.STANDING), ("j02", SubmitState.STANDING)]
    assert states(job(claims=claims), job(2)) == standing


def test_one_that_was_called_off_and_did_not_begin_is_given_up() -> None:
    assert states(job(claims=(), withdrawn=True)) == [("j01", SubmitState.REFUSED)]
    assert states(job(receipts={}, withdrawn=True)) == [("j01", SubmitState.REFUSED)]
    # What has begun is judged by what it left.
    assert states(job(withdrawn=True)) == [("j01", SubmitState.STANDING)]


def test_all_from_the_first_unknown_one_on_are_adopted_in_order() -> None:
    found = states(job(3), job(1, fault="of no matter"), job(2), first="j02")
    assert [name for name, _ in found] == ["j02", "j03"]


def test_jobs_are_counted_as_numbers() -> None:
    found = states(*(job(number) for number in (10, 9, 100, *range(11, 100))), first="j09")
    assert [name for name, _ in found][:3] == ["j09", "j10", "j11"]


@pytest.mark.parametrize("numbers", [[2], [1, 3], []])
def test_none_may_be_missing_in_between(numbers: list[int]) -> None:
    with pytest.raises(ProcessingError, match="is missing"):
        states(*map(job, numbers))


@pytest.mark.parametrize(
    ("digest", "words"), [(None, "is not there"), ("b" * 64, "is another than the case's")]
)
def test_the_input_must_be_the_cases(digest: str | None, words: str) -> None:
    with pytest.raises(ProcessingError, match=words):
        adoption(CASE, "j01", CaseRemains(input_digest=digest, jobs=(job(),)))


def beam(field: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda chain: chain["beams"][0].update({field: value})


def fewer(chain: dict[str, Any]) -> None:
    del chain["beams"][1]
    chain["submissions"][1]["indices"] = [0]


def of_another(chain: dict[str, Any]) -> None:
    chain["instance"] = "i2"
    for one in chain["submissions"]:
        one["name"] = one["name"].replace("-i1-", "-i2-")


def of_another_job(chain: dict[str, Any]) -> None:
    chain["job"] = chain["interpreted"]["job"] = "j02"
    for one in chain["submissions"]:
        one["name"] = one["name"].replace("-j01-", "-j02-")


def of_a_later_one(chain: dict[str, Any]) -> None:
    chain["interpreted"] = {"job": "j02", "record_digest": "a" * 64}
    chain["submissions"] = chain["submissions"][1:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda chain: chain.update(plan_uid="9"), "plan '9', here '1.2.3'"),
        (beam("number", 77), "beams"),
        (beam("input_digest", "b" * 64), "beams"),
        (fewer, "beams"),
        (of_another, "instance 'i2', here 'i1'"),
        (of_another_job, "job 'j02', here 'j01'"),
        (of_a_later_one, "it takes from j02, which is later"),
        (lambda chain: chain.update(version=9), "version 9"),
        (lambda chain: chain.pop("beams"), "beams"),
    ],
)
def test_a_chain_of_something_else_is_refused(change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(ProcessingError) as told:
        states(job(1, change))
    assert words in told.value.what
    assert "Nothing was sent" in told.value.fix


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "MANIFEST.sha256 is not there"),
        ({MANIFEST: listing({"submit.sh": b""})}, "chain.json is not there"),
        ({MANIFEST: listing({"chain.json": b"a"}), "chain.json": b"b"}, "chain.json is not what"),
        ({MANIFEST: listing({"chain.json": b"a"}), "more": b"b"}, "more is not what"),
        ({MANIFEST: b"\xff"}, "decode"),
        ({MANIFEST: b"no manifest"}, "manifest"),
        ({MANIFEST: listing({"chain.json": b"{}"}), "chain.json": b"{}"}, "version"),
        ({MANIFEST: listing({"chain.json": b"\xff"}), "chain.json": b"\xff"}, "decode"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(files: dict[str, bytes], words: str) -> None:
    with pytest.raises(ProcessingError) as told:
        states(job(files=files))
    assert words in told.value.what


def test_a_fault_found_there_is_told() -> None:
    with pytest.raises(ProcessingError, match="they are not whole"):
        states(job(fault="they are not whole"))


def test_one_that_cannot_be_believed_refuses_the_case() -> None:
    with pytest.raises(ProcessingError, match="j02 of this case"):
        states(job(), job(2, fault="damaged"))
