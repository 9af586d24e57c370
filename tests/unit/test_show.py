"""What a person sees of work that goes on, and of a refusal."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from mqi_hpc.cli import show
from mqi_hpc.core.models import TaskType
from tests.support.bench import Bench
from tests.support.world import Submit


class Deaf(io.StringIO):
    """A terminal or pipe that has gone away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, text)


@pytest.mark.parametrize("stream", [None, Deaf()])
def test_work_does_not_end_because_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    show.progress("P001-f01", "submitting")


def test_progress_is_one_line_and_sets_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    show.progress("P[bold]1", "said \x1b[31mred\nand more")
    assert capsys.readouterr().err == "P[bold]1: said \\x1b[31mred\\x0aand more\n"


def test_a_refusal_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench()
    bench.begin()
    words = "sbatch: error: Batch job submission failed: Invalid qos specification"
    bench.world.say(Submit, ["BEGIN", f"SBATCH interpret {words}", "FAILED interpret 1", "DONE 75"], 75)
    report = bench.until("failed")
    capsys.readouterr()
    show.case(report)
    out = capsys.readouterr().out
    assert out.count("Invalid qos specification") == 1
    assert "None" not in out


def test_the_cause_of_a_failed_beam_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench()
    bench.begin()
    bench.until_sent()
    bench.world.end("beams", "OUT_OF_MEMORY", task=1)
    bench.turn(6)
    assert bench.task(TaskType.BEAM_CALC, 1).status.terminal
    show.case(replace(bench.report, refusal=None))
    assert f"beam 3 (Slurm {bench.slurm_id('beams')}_1): failed (out of memory)" in capsys.readouterr().out


def test_a_rejected_folder_is_shown_with_all_that_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    report = replace(Bench().report, status="rejected", rejected=("the .ptn of layer 2 is missing", "[b]x"))
    show.case(report)
    show.cases([report])
    out = capsys.readouterr().out
    assert "[b]x" in out
    assert out.count("the .ptn of layer 2 is missing") == 2
    assert "machine" not in out
