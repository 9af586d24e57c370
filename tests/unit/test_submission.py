from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.effects import Completion, Submit
from mqi_hpc.core.models import STAGES
from mqi_hpc.core.observation import MARK, NotParsed
from mqi_hpc.core.submission import Failed, Receipt, parse_receipt, parse_submit
from mqi_hpc.core.submit_fate import Fate, Meaning, meaning


def said(*lines: str, nonce: str = "n1") -> str:
    return "".join(f"{MARK}{nonce} {line}\n" for line in lines)


WHOLE = (
    "BEGIN",
    "RECEIPT interpret mqi-i-k-j01-interpret 16 1800000000",
    "RECEIPT beams mqi-i-k-j01-beams 17 1800000001",
    "RECEIPT convert mqi-i-k-j01-convert 18 1800000002",
    "NOTE release: Job has already finished",
    "DONE 0",
)


def test_a_chain_that_stands() -> None:
    report = parse_submit(said(*WHOLE), "n1")
    assert report.receipts["beams"] == Receipt("mqi-i-k-j01-beams", 17, 1800000001.0)
    assert set(report.receipts) == set(STAGES)
    assert (report.code, report.failed, report.head) == (0, None, None)
    assert report.notes == ("release: Job has already finished",)


def test_noise_and_other_nonces_are_not_ours() -> None:
    noise = "Welcome to Stampede3\nSubmitted batch job 3\n"
    other = said("RECEIPT interpret mqi-x 99 1", "DONE 0", nonce="n2")
    report = parse_submit(noise + other + said("BEGIN", "DONE 75") + "bye 4\n", "n1")
    assert report.receipts == {}
    assert report.code == 75


def test_a_failed_sbatch_comes_with_its_words() -> None:
    lines = (
        "SBATCH beams sbatch: error: first",
        "SBATCH beams second",
        "SBATCH convert not its",
        "FAILED beams 1",
    )
    report = parse_submit(said(*lines), "n1")
    assert report.failed == Failed("beams", 1, ("sbatch: error: first", "second"))
    assert report.code is None


def test_a_head_that_is_not_as_it_should_be() -> None:
    assert parse_submit(said("HEAD 16|x|RUNNING|None", "DONE 77"), "n1").head == "16|x|RUNNING|None"


def test_carriage_returns_of_a_terminal_do_no_harm() -> None:
    assert parse_submit(said("DONE 0").replace("\n", "\r\n"), "n1").code == 0


@pytest.mark.parametrize(
    "line",
    [
        "RECEIPT interpret name 0 1",
        "RECEIPT interpret name x 1",
        "RECEIPT interpret",
        f"RECEIPT interpret name {'9' * 5000} 1",
    ],
)
def test_a_receipt_of_another_form_is_none(line: str) -> None:
    report = parse_submit(said(line), "n1")
    assert report.receipts == {}
    assert "receipt" in report.notes[0]


@pytest.mark.parametrize(
    "line",
    [
        "FAILED beams",
        "FAILED beams x",
        "DONE",
        "DONE x",
        f"DONE {'9' * 5000}",
        "ELSE x",
        "RECEIPT x mqi-y 1 2",
    ],
)
def test_lines_of_another_form_say_nothing(line: str) -> None:
    report = parse_submit(said(line), "n1")
    assert (report.failed, report.code, report.receipts) == (None, None, {})


DONE = Completion(effect=Submit(case_id="k", job_id="k-j01", job_folder="/w/k/j01", nonce="n1"))


@pytest.mark.parametrize("stages", [STAGES, STAGES[1:], STAGES[2:]])
def test_a_chain_stands_when_each_stage_of_its_job_has_a_receipt(stages: tuple[str, ...]) -> None:
    for count in range(len(STAGES) + 1):
        for receipts in itertools.combinations(STAGES, count):
            lines = [line for line in WHOLE[1:4] if line.split()[1] in receipts]
            found = meaning(parse_submit(said(*lines, "DONE 0"), "n1"), DONE, stages)
            assert (found.fate is Fate.STANDS) is (receipts == stages)
            assert found.fate in (Fate.STANDS, Fate.DOUBT)
    assert meaning(parse_submit(said(*WHOLE), "n1"), DONE) == Meaning(Fate.STANDS)


LOST = replace(DONE, error="the connection broke", uncertain=True)
NEVER = replace(DONE, error="no route to host")
REFUSED = ("SBATCH beams sbatch: error: Invalid qos specification", "FAILED beams 1", "DONE 75")
BUSY = ("SBATCH beams sbatch: error: Unable to contact slurm controller (connect failure)", "FAILED beams 1")
SILENT = ("SBATCH beams sbatch: error: Socket timed out on send/recv operation", "FAILED beams 1", "DONE 75")


@pytest.mark.parametrize(
    ("lines", "completion", "fate", "why"),
    [
        ((), NEVER, Fate.AGAIN, "no route to host"),
        (("NOTE squeue: no answer", "DONE 76"), DONE, Fate.AGAIN, "Slurm: squeue: no answer"),
        (("DONE 76",), DONE, Fate.AGAIN, "Slurm: no answer"),
        (REFUSED, DONE, Fate.REFUSED, "Slurm refuses beams: Invalid qos specification"),
        ((*BUSY, "DONE 75"), DONE, Fate.AGAIN, "Slurm: error: Unable to contact"),
        (BUSY, LOST, Fate.DOUBT, "the reply was lost: the connection broke"),
        (SILENT, DONE, Fate.DOUBT, "sbatch of beams: error: Socket timed out"),
        (("HEAD not seen", "DONE 77"), DONE, Fate.DOUBT, "head is not as its receipt says (not seen)"),
        (("NOTE the job was called off", "DONE 78"), DONE, Fate.REFUSED, "it was called off before"),
        ((), replace(DONE, exit_code=74, output="no\nspace"), Fate.DOUBT, "ended with 74: no space"),
        ((), replace(DONE, exit_code=1), Fate.DOUBT, "ended with 1: it said nothing"),
    ],
)
def test_only_what_is_known_not_to_have_happened_is_sent_again(
    lines: tuple[str, ...], completion: Completion, fate: Fate, why: str
) -> None:
    found = meaning(parse_submit(said(*lines), "n1"), completion, STAGES[1:])
    assert found.fate is fate
    assert why.replace("error: ", "") in found.why.replace("error: ", "")


@given(st.integers(0, len(said(*WHOLE))))
def test_no_cut_invents_a_receipt_or_an_end(cut: int) -> None:
    whole, part = parse_submit(said(*WHOLE), "n1"), parse_submit(said(*WHOLE)[:cut], "n1")
    for stage, receipt in part.receipts.items():
        assert whole.receipts[stage] == receipt
    assert part.code in (None, whole.code)


@given(st.integers(1, 10**9), st.integers(0, 10**10))
def test_receipts_read_back(number: int, time: int) -> None:
    assert parse_receipt(f"mqi-a {number} {time}\n") == Receipt("mqi-a", number, float(time))


@pytest.mark.parametrize("line", ["", "a", "a 1", "a -1 2", "a 1 2 3", "a 1 2.5"])
def test_what_is_no_receipt_is_refused(line: str) -> None:
    with pytest.raises(NotParsed, match="receipt"):
        parse_receipt(line)
