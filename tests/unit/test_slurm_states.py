"""Slurm's words: every one known has one meaning, every other one is a value and never success."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.slurm_states import CAUSES, INFRASTRUCTURE, LIVE, TERMINAL, phase, read_word


@pytest.mark.parametrize(
    ("text", "word", "uid"),
    [
        ("COMPLETED", "COMPLETED", None),
        ("CANCELLED by 1000", "CANCELLED", 1000),
        ("CANCELLED by 0", "CANCELLED", 0),
        ("CANCELLED+", "CANCELLED", None),
        (" OUT_OF_MEMORY ", "OUT_OF_MEMORY", None),
        ("OUT_OF_ME+", "OUT_OF_ME", None),
        ("CANCELLED by root", "CANCELLED by root", None),
        ("CANCELLED by ٣", "CANCELLED by ٣", None),
        ("CANCELLED by " + "9" * 5000, "CANCELLED by " + "9" * 5000, None),
        ("COMPLETED\nFAILED", "COMPLETED\nFAILED", None),
        ("completed", "completed", None),
        ("", "", None),
    ],
)
def test_words_as_squeue_and_sacct_print_them(text: str, word: str, uid: int | None) -> None:
    assert read_word(text) == (word, uid)


@given(st.text("COMPLETDFAIN_+ by019x\n") | st.sampled_from(sorted(TERMINAL)))
def test_no_text_but_slurms_own_becomes_a_terminal_word(text: str) -> None:
    word, _ = read_word(text)
    if word in TERMINAL:
        assert text.strip().startswith(word)


def test_live_and_terminal_words_are_apart_and_every_end_has_a_cause() -> None:
    assert not TERMINAL & set(LIVE)
    assert TERMINAL > INFRASTRUCTURE
    assert set(CAUSES) == TERMINAL - {"COMPLETED"}
    assert "REVOKED" not in TERMINAL | set(LIVE)


@pytest.mark.parametrize(
    ("word", "reason", "wanted"),
    [
        ("PENDING", "", "queued"),
        ("PENDING", "Resources", "queued"),
        ("PENDING", "DependencyNeverSatisfied", "queued"),
        ("PENDING", "JobHeldUser", "held"),
        ("PENDING", "JobHeldAdmin", "held"),
        ("PENDING", "JobHoldMaxRequeue", "held"),
        ("PENDING", "launch failed requeued held", "held"),
        ("PENDING", "PartitionTimeLimit", "blocked"),
        ("PENDING", "BadConstraints", "blocked"),
        ("PENDING", "InvalidAccount", "blocked"),
        ("PENDING", "QOSMaxWallDurationPerJobLimit", "blocked"),
        ("PENDING", "AssocMaxWallDurationPerJobLimit", "blocked"),
        ("PENDING", "QOSGrpCPUMinutesLimit", "blocked"),
        ("PENDING", "AssocGrpGRESMinutes", "blocked"),
        ("PENDING", "QOSMaxGRESPerJob", "blocked"),
        ("PENDING", "AssocGrpWallLimit", "blocked"),
        ("PENDING", "QOSMinGRES", "blocked"),
        ("PENDING", "QOSMaxGRESPerUser", "queued"),
        ("PENDING", "AssocGrpCPURunMinutesLimit", "queued"),
        ("PENDING", "QOSGrpGRESRunMinutes", "queued"),
        ("PENDING", "AssocGrpGRES", "queued"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:g1", "queued"),
        ("RUNNING", "PartitionTimeLimit", "running"),
        ("RUNNING", "JobHeldUser", "running"),
        ("REQUEUE_HOLD", "", "held"),
        ("REVOKED", "", "unknown"),
        ("moonstruck", "", "unknown"),
    ],
)
def test_phases(word: str, reason: str, wanted: str) -> None:
    assert phase(word, reason) == wanted
