"""Status lines: strict, and silent about what is still being written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import STAGES
from mqi_hpc.records.status import StatusLine, decode_line, decode_lines, encode_line, newest

LINE = StatusLine(
    stage="beams", index=1, event="exited", time=1.5, slurm_id=7, restart=0, node="gpu1", text="", exit_code=3
)
lines = st.builds(
    StatusLine,
    stage=st.sampled_from(STAGES),
    index=st.integers(0, 999),
    event=st.sampled_from(["started", "progress"]),
    time=st.floats(0, 1e10),
    slurm_id=st.integers(0, 2**40),
    restart=st.integers(0, 9),
    node=st.text("gpu1-.é", max_size=5),
    text=st.text('ab é\n\r\x1e\x1f\x00"\\}{\u2028', max_size=10),
) | st.builds(
    StatusLine,
    stage=st.sampled_from(STAGES),
    index=st.integers(0, 999),
    event=st.just("exited"),
    time=st.floats(0, 1e10),
    slurm_id=st.integers(0, 2**40),
    restart=st.integers(0, 9),
    node=st.just("gpu1"),
    exit_code=st.integers(0, 255),
)


@given(st.lists(lines, max_size=5))
def test_lines_come_back_and_hold_no_mark_of_the_poll(written: list[StatusLine]) -> None:
    text = "".join(map(encode_line, written))
    assert decode_lines(text) == written
    assert "\x1e" not in text


@given(st.lists(lines, max_size=4), st.data())
def test_lines_cut_at_any_place_give_the_whole_ones(written: list[StatusLine], data: st.DataObject) -> None:
    text = "".join(map(encode_line, written))
    cut = text[: data.draw(st.integers(0, len(text)))]
    assert decode_lines(cut) == written[: cut.count("\n")]


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "upload"},
        {"event": "stopped"},
        {"event": "started"},
        {"exit_code": None},
        {"exit_code": -1},
        {"exit_code": True},
        {"index": -1},
        {"index": "1"},
        {"time": "now"},
        {"slurm_id": 1.5},
        {"restart": -1},
        {"node": None},
        {"text": 1},
        {"more": 1},
    ],
)
def test_every_field_must_have_its_form(changes: dict[str, object]) -> None:
    text = json.dumps({**json.loads(encode_line(LINE)), **changes})
    with pytest.raises(FormatError, match="status line"):
        decode_line(text)


@pytest.mark.parametrize("field", json.loads(encode_line(LINE)))
def test_every_field_must_be_there(field: str) -> None:
    value = json.loads(encode_line(LINE))
    del value[field]
    with pytest.raises(FormatError, match=f"{field} is missing"):
        decode_line(json.dumps(value))


def test_a_whole_line_that_is_none_refuses_them_all() -> None:
    with pytest.raises(FormatError, match="status line is not JSON"):
        decode_lines(encode_line(LINE) + "rubbish\n")
    assert decode_lines(encode_line(LINE) + "rubbi") == [LINE]
    # Made by words of another program that ran into ours: what they have taken away cannot be told.
    with pytest.raises(FormatError, match="status line is not JSON"):
        decode_lines("\n\n")


def test_the_last_line_of_a_task_counts() -> None:
    started = StatusLine(
        stage="beams", index=1, event="started", time=2.0, slurm_id=8, restart=1, node="gpu2"
    )
    other = StatusLine(stage="convert", index=0, event="started", time=0.5, slurm_id=9, restart=0, node="n")
    assert newest([LINE, other, started]) == {("beams", 1): started, ("convert", 0): other}
    assert newest([]) == {}
