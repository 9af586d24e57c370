"""The fuzzer: a small run of every parser, and parsers with a fault in them, which it must find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqi_hpc.core import observation
from mqi_hpc.core.observation import NotParsed, Row
from mqi_hpc.core.submission import SubmitReport
from tests.fuzz import __main__ as command
from tests.fuzz import own_text, slurm_text
from tests.fuzz.engine import Tally, judge, make, run, table
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_no_parser_reads_other_facts(name: str) -> None:
    tally = run(TARGETS[name], seed=7, first=0, count=400)
    assert (tally.valid, tally.damaged, tally.same + tally.refused) == (200, 200, 400)
    assert tally.replays == []


@pytest.mark.parametrize("name", TARGETS)
def test_a_number_names_an_input(name: str) -> None:
    again = [make(TARGETS[name], 3, 11) for _ in range(2)]
    assert again[0] == again[1]
    assert make(TARGETS[name], 3, 10)[2] is False


def forgets_the_last(text: str) -> tuple[Row, ...]:
    """As squeue -r of 22.05 does."""
    return observation.parse_squeue(text)[:-1]


def takes_what_it_can(text: str) -> tuple[Row, ...]:
    rows: list[Row] = []
    for line in text.split("\n"):
        try:
            rows += observation.parse_squeue(f"{line}\n")
        except NotParsed:
            continue
    return tuple(rows)


def done_unless_said_otherwise(text: str) -> tuple[Row, ...]:
    rows = observation.parse_sacct(text)
    return tuple(replace(row, word="COMPLETED") if row.word == "REVOKED" else row for row in rows)


def takes_any_word(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.split("\n") if " " in line)


def breaks(text: str) -> Any:
    raise IndexError(text)


@pytest.mark.parametrize(
    ("name", "module", "parser", "fault"),
    [
        ("squeue", slurm_text, "parse_squeue", forgets_the_last),
        ("squeue", slurm_text, "parse_squeue", takes_what_it_can),
        ("sacct", slurm_text, "parse_sacct", done_unless_said_otherwise),
        ("sacct", slurm_text, "newest", lambda rows: rows[0]),
        ("array", slurm_text, "expand_array", lambda text: tuple(range(len(text)))),
        ("state", slurm_text, "read_word", lambda text: ("COMPLETED", None)),
        ("receipts", own_text, "parse_receipts", takes_any_word),
        ("submit", own_text, "parse_submit", lambda text, nonce: SubmitReport(code=0)),
        ("status", own_text, "decode_lines", lambda text: []),
        ("result", own_text, "decode_record", breaks),
    ],
)  # fmt: skip
def test_a_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, module: Any, parser: str, fault: Any
) -> None:
    monkeypatch.setattr(module, parser, fault)
    tally = run(TARGETS[name], seed=7, first=0, count=400)
    assert tally.wrong > 0
    facts, text, damaged = make(TARGETS[name], 7, tally.replays[0])
    assert judge(TARGETS[name], facts, text, damaged=damaged) == "wrong"


def test_valid_text_that_is_refused_is_wrong() -> None:
    assert judge(TARGETS["array"], (1,), "1-...", damaged=False) == "wrong"
    assert judge(TARGETS["array"], (1,), "1-...", damaged=True) == "refused"


def test_the_command_prints_a_table_and_fails_where_one_was_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz", "--inputs", "40", "--processes", "1", "--only", "array"])
    assert command.main() == 0
    assert "array               40        20        20" in capsys.readouterr().out

    def one_wrong(*given: object) -> dict[str, Tally]:
        return {"array": Tally(valid=1, wrong=1, replays=[4])}

    monkeypatch.setattr(command, "run_all", one_wrong)
    assert command.main() == 1
    assert "wrong: ./dev fuzz --seed 1 --replay array:4" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["fuzz", "--replay", "array:4"])
    assert command.main() == 0
    assert "valid text: " in capsys.readouterr().out
    assert "all" in table({})
