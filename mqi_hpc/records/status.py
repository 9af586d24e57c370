"""Status lines: what a running task says of itself, JSON lines with one writer, a few a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from mqi_hpc.records.form import FormatError, dumps, loads
from mqi_hpc.records.layout import STAGES

EVENTS = ("started", "progress", "exited")


@dataclass(frozen=True)
class StatusLine:
    """One line. `time` is epoch seconds; `exit_code` stands in "exited" alone; `text` is for people."""

    stage: str
    index: int
    event: str
    time: float
    slurm_id: int
    restart: int
    node: str
    text: str = ""
    exit_code: Optional[int] = None


def encode_line(line: StatusLine) -> str:
    """Return the line with its end."""
    return dumps(line.__dict__) + "\n"


def decode_line(text: str) -> StatusLine:
    """Return a status line; raises FormatError where it is none."""
    form = loads(text, "status line")
    line = StatusLine(
        stage=form.text("stage"),
        index=form.integer("index"),
        event=form.text("event"),
        time=form.number("time"),
        slurm_id=form.integer("slurm_id"),
        restart=form.integer("restart"),
        node=form.text("node"),
        text=form.text("text"),
        exit_code=form.optional("exit_code", form.integer),
    )
    form.end()
    if line.stage not in STAGES or line.event not in EVENTS:
        raise FormatError(f"status line of stage {line.stage!r} and event {line.event!r}")
    if (line.event == "exited") is (line.exit_code is None):
        raise FormatError(f"status line {line.event!r} with exit code {line.exit_code}")
    return line


def decode_lines(text: str) -> List[StatusLine]:
    """Return the lines of `text`. A last line without an end is still being written: it says nothing yet."""
    whole, _, _ = text.rpartition("\n")
    return [decode_line(line) for line in whole.split("\n")] if whole else []


def newest(lines: List[StatusLine]) -> Dict[Tuple[str, int], StatusLine]:
    """Return the last line of each (stage, index)."""
    return {(line.stage, line.index): line for line in lines}
