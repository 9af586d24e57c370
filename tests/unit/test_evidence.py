"""A poll's sections: each valid by itself, and silent where it is not whole."""

from __future__ import annotations

import pytest

from mqi_hpc.core.observation import FIELD, MARK, Section
from mqi_hpc.core.readings import Accounting
from mqi_hpc.domain.evidence import Evidence, read_evidence
from mqi_hpc.records.status import StatusLine, encode_line

QUEUED = FIELD.join(("16", "0", "RUNNING", "None", "1800000000", "g1", "mqi-i-k-j01-beams\n"))
ENDED = FIELD.join(
    ("16_0", "mqi-i-k-j01-beams", "COMPLETED", "0:0", "1800000000", "1800000001", "1800000002", "g1", "\n")
)


def poll(accounting: str = "auto", asked: bool = True, **sections: tuple[str, int]) -> Evidence:
    texts = {"squeue": (QUEUED, 0), "sacct": (ENDED, 0)}
    texts.update({name.replace("__", ":"): value for name, value in sections.items()})
    output = "".join(
        f"{MARK}n BEGIN {name}\n{text}\n{MARK}n END {name} {code}\n" for name, (text, code) in texts.items()
    )
    return read_evidence(output, "n", asked=asked, accounting=accounting)


def test_a_good_poll() -> None:
    evidence = poll()
    assert evidence.queue is not None
    assert [row.word for row in evidence.queue] == ["RUNNING"]
    assert [row.word for row in evidence.accounted] == ["COMPLETED"]
    assert (evidence.accounting, evidence.notes) == (Accounting.GOOD, ())


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (("slurm_load_jobs error: Unable to contact", 1), "squeue: exit code 1: slurm_load_jobs error"),
        ((QUEUED.replace("RUNNING" + FIELD, ""), 0), "squeue: "),
    ],
)
def test_a_queue_that_failed_or_does_not_parse_says_nothing(section: tuple[str, int], said: str) -> None:
    evidence = poll(squeue=section)
    assert evidence.queue is None
    assert any(note.startswith(said) for note in evidence.notes)


def test_a_missing_section_says_nothing() -> None:
    evidence = read_evidence("", "n", asked=True, accounting="auto")
    assert evidence.queue is None
    assert evidence.accounting is Accounting.DOWN
    assert len(evidence.notes) == 2


def test_accounting_that_is_down_is_not_accounting_that_is_off() -> None:
    down = poll(sacct=("sacct: error: Problem talking to the database", 1))
    off = poll(sacct=("Slurm accounting storage is disabled", 1))
    assert (down.accounting, off.accounting) == (Accounting.DOWN, Accounting.OFF)
    assert poll("on", sacct=("Slurm accounting storage is disabled", 1)).accounting is Accounting.DOWN
    assert poll("off").accounting is Accounting.OFF
    assert poll("off", asked=False).asked_accounting
    assert not poll(asked=False).asked_accounting


def test_files_of_a_job() -> None:
    line = StatusLine("beams", 0, "exited", 1.0, 5, 0, "g1", "", 0)
    evidence = poll(
        receipts__j=("interpret name 5 6\n", 0),
        status__j=(encode_line(line), 0),
        record__t=("{}", 0),
        listing__t=("3 a b.raw\n12 c\n", 0),
    )
    assert evidence.receipts("j") == {"interpret": "name 5 6"}
    assert evidence.status("j") == {("beams", 0): line}
    record = evidence.record("t")
    assert record is not None
    assert (record.text, record.exit_code) == ("{}", 0)
    assert evidence.listing("t") == {"a b.raw": 3, "c": 12}


@pytest.mark.parametrize(
    "text", ["3 a b.raw\nnonsense\n12 c\n", "12 c", "12 c\n\n", "1hello\n2 c\n", "12 \n"]
)
def test_a_listing_with_a_line_of_another_form_is_none(text: str) -> None:
    assert poll(listing__t=(text, 0)).listing("t") is None


def test_what_is_not_there_is_an_answer_and_what_cannot_be_read_is_none() -> None:
    absent = poll(status__j=("", 44), record__t=("", 44))
    assert absent.status("j") == {}
    assert absent.record("t") is not None
    broken = poll(
        receipts__j=("interpret", 0),
        status__j=("{}\n", 0),
        record__t=("cat: I/O error", 1),
        listing__t=("", 1),
    )
    assert broken.receipts("j") is None
    assert broken.status("j") is None
    assert broken.record("t") is None
    assert broken.listing("t") is None
    nothing = poll(receipts__j=("", 45), status__j=("", 45), record__t=("", 45))
    assert nothing.receipts("j") is nothing.status("j") is nothing.record("t") is nothing.listing("t") is None


@pytest.mark.parametrize(
    ("said", "code", "free"),
    [
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/a 100 60 40 60% /work", 0, 40960),
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\nnas:/a b 100 60 40 60% /work", 0, 40960),
        ("df: /work: No such file or directory", 1, None),
        ("rubbish", 0, None),
        ("a b c d e f", 0, None),
    ],
)
def test_the_space_of_the_workspace(said: str, code: int, free: int | None) -> None:
    assert poll(space=(said, code)).free_bytes() == free


def test_no_word_of_space_is_no_space_known() -> None:
    assert poll().free_bytes() is None


@pytest.mark.parametrize(
    ("said", "code", "time"),
    [("1800000000\n", 0, 1_800_000_000), ("1800000000\n", 1, None), ("today\n", 0, None), ("", 0, None)],
)
def test_the_clusters_time(said: str, code: int, time: int | None) -> None:
    assert poll(date=(said, code)).cluster_time() == time
    assert poll().cluster_time() is None


def test_claims_are_told_with_the_receipts() -> None:
    def claims(section: Section) -> object:
        evidence = Evidence(
            queue=(),
            asked_accounting=False,
            accounting=Accounting.OFF,
            accounted=(),
            sections={"receipts:k-j01": section},
            notes=(),
        )
        return evidence.claims("k-j01")

    assert claims(Section("claimed interpret-0 beams-12 beams-7.tmp x-1\n", 0)) == {
        ("interpret", 0),
        ("beams", 12),
    }
    assert claims(Section("", 0)) == frozenset()
    assert claims(Section("", 46)) is None
    assert claims(Section("beams\n", 0)) is None


def test_the_mark_of_a_job_that_was_called_off_is_told_with_the_receipts() -> None:
    def withdrawn(text: str, code: int = 0) -> bool:
        return poll(**{"receipts:k-j01": (text, code)}).withdrawn("k-j01")

    assert withdrawn("interpret mqi-x 5 1800000000\nwithdrawn -\n")
    assert not withdrawn("interpret mqi-x 5 1800000000\n")
    assert not withdrawn("withdrawn -\n", 46)
