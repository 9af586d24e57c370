"""Names on the cluster: fixed for ever, for both ends read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.records import layout


@pytest.mark.parametrize("text", ["abcdefghij12", "000000000000"])
def test_keys(text: str) -> None:
    assert layout.is_key(text)


@pytest.mark.parametrize(
    "text", ["", "abcdefghij1", "abcdefghij123", "ABCDEFGHIJ12", "abcdefghij1\n", "abcdefghij1٣"]
)
def test_what_is_no_key(text: str) -> None:
    assert not layout.is_key(text)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("j01", True),
        ("j10", True),
        ("j123", True),
        ("j00", False),
        ("j1", False),
        ("j001", False),
        ("k01", False),
        ("j01\n", False),
        ("j0١", False),
        ("", False),
        ("../j01", False),
    ],
)
def test_jobs(text: str, is_one: bool) -> None:
    assert layout.is_job(text) is is_one


def test_names_of_files_and_folders() -> None:
    assert layout.submission_name("i1", "abcdefghij12", "j01", "beams") == "mqi-i1-abcdefghij12-j01-beams"
    assert [layout.output_folder(s, 7) for s in layout.STAGES] == ["interpreted", "dose/beam_7", "results"]
    assert layout.beam_folder(7) == "beam_7"
    assert layout.script("beams") == "beams.sbatch"
    assert layout.engine_input(7) == "beam_7.in"
    assert layout.receipt("beams") == "receipt.beams"
    assert layout.claim("beams", 3) == "claim.beams-3"
    assert layout.status_file("beams", 3) == "status/beams-3.jsonl"
    assert layout.engine_log(7) == "logs/beam_7.engine.log"


@given(st.text("aZ09_-. /\\\n$('é😀"))
def test_a_safe_name_is_one_harmless_word(name: str) -> None:
    safe = layout.safe_name(name)
    assert len(safe) == len(name)
    assert set(safe) <= set("aZ09_-")
    assert layout.safe_name(safe) == safe
