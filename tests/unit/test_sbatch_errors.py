"""sbatch's own texts, as versions 21.08 to 26.05 print them (slurm_errno.c)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.sbatch_errors import ErrorKind, SbatchError, classify
from tests.corpus.sample import HOME, VERSIONS

FAILED = "sbatch: error: Batch job submission failed: "
POLICY = FAILED + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"

CASES = [
    (ErrorKind.UNKNOWN, [FAILED + "Socket timed out on send/recv operation"]),
    (ErrorKind.UNKNOWN, [FAILED + "Unable to contact slurm controller (receive failure)"]),
    (ErrorKind.UNKNOWN, [FAILED + "Unable to contact slurm controller (send failure)"]),
    (ErrorKind.UNKNOWN, [FAILED + "Zero Bytes were transmitted or received"]),
    (ErrorKind.UNKNOWN, [FAILED + "Unexpected message received"]),
    (ErrorKind.UNKNOWN, []),
    (ErrorKind.UNKNOWN, [FAILED + "Something a later Slurm says"]),
    (ErrorKind.TRANSIENT, [FAILED + "Unable to contact slurm controller (connect failure)"]),
    (ErrorKind.TRANSIENT, [FAILED + "Resource temporarily unavailable"]),
    (ErrorKind.TRANSIENT, [FAILED + "Slurm backup controller in standby mode"]),
    (ErrorKind.TRANSIENT, ["sbatch: error: If munged is up, restart with --num-threads=10",
                           FAILED + "Failed to connect to authentication agent"]),
    (ErrorKind.TRANSIENT, [FAILED + "I/O error writing script/environment to file"]),
    (ErrorKind.BACKPRESSURE, ["sbatch: error: QOSMaxSubmitJobPerUserLimit", POLICY]),
    (ErrorKind.BACKPRESSURE, ["sbatch: error: AssocMaxSubmitJobLimit", POLICY]),
    (ErrorKind.PERMANENT, ["sbatch: error: QOSMaxWallDurationPerJobLimit", POLICY]),
    (ErrorKind.PERMANENT, ["sbatch: error: QOSMaxGRESPerJob", POLICY]),
    (ErrorKind.PERMANENT, [FAILED + "Invalid account or account/partition combination specified"]),
    (ErrorKind.PERMANENT, [FAILED + "Invalid partition name specified"]),
    (ErrorKind.PERMANENT, [FAILED + "Invalid generic resource (gres) specification"]),
    (ErrorKind.PERMANENT, [FAILED + "Requested node configuration is not available"]),
    (ErrorKind.PERMANENT, [FAILED + "Job dependency problem"]),
    (ErrorKind.PERMANENT, ["sbatch: unrecognized option '--frobnicate'"]),
    (ErrorKind.PERMANENT, ["timeout: failed to run command 'sbatch': No such file or directory"]),
    (ErrorKind.PERMANENT, ["sbatch: error: Unable to open file interpret.sbatch"]),
    (ErrorKind.UNKNOWN, [FAILED + "Invalid qos specification",
                         "error: it gave the id 7 and failed: it may have been accepted"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "lines"), CASES)
def test_classes(kind: ErrorKind, lines: list[str]) -> None:
    assert classify(lines, 1).kind is kind


def test_slurms_own_words_are_kept_without_the_decoration() -> None:
    lines = ["sbatch: Submitting to the night queue", "sbatch: error: QOSMaxSubmitJobPerUserLimit", POLICY]
    found = classify(lines, 1)
    assert found.text.startswith("QOSMaxSubmitJobPerUserLimit; Batch job submission failed: Job violates")
    assert classify([], 3) == SbatchError(ErrorKind.UNKNOWN, "exit code 3")


@pytest.mark.parametrize("code", [124, 137])
def test_a_client_that_was_cut_short_is_unknown_whatever_it_said(code: int) -> None:
    found = classify([FAILED + "Invalid qos specification"], code)
    assert found.kind is ErrorKind.UNKNOWN
    assert "no answer in time" in found.text


def test_doubt_outweighs_certainty() -> None:
    lines = [FAILED + "Invalid qos specification", FAILED + "Socket timed out on send/recv operation"]
    assert classify(lines, 1).kind is ErrorKind.UNKNOWN


# Real texts


def real() -> list[tuple[str, dict[str, Any]]]:
    """What sbatch said on real clusters, the class it must have, and whether a job came of it."""
    return [
        (version, said)
        for version in VERSIONS
        if (file := HOME / version / "sbatch_errors.json").exists()
        for said in json.loads(file.read_text("utf-8"))
    ]


@pytest.mark.parametrize(
    ("version", "said"), [pytest.param(v, said, id=f"{v}-{said['what']}") for v, said in real()]
)
def test_what_a_real_cluster_said_has_its_class(version: str, said: dict[str, Any]) -> None:
    found = classify(said["lines"], said["exit_code"])
    assert found.kind == said["kind"], said["lines"]
    # A job came of it only where we must go and look.
    assert not said["created"] or found.kind is ErrorKind.UNKNOWN


def test_both_versions_gave_texts_of_each_class() -> None:
    for version in ("22.05", "24.11"):
        assert {said["kind"] for at, said in real() if at == version} == set(ErrorKind)


KNOWN = [said for _, said in real() if said["kind"] != ErrorKind.UNKNOWN]
DOUBTS = [lines for kind, lines in CASES if kind is ErrorKind.UNKNOWN and lines and "later" not in lines[0]]
words = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=60)


@given(st.lists(words, max_size=4), st.sampled_from(["", "sbatch: error: ", FAILED, "sbatch: fatal: "]))
def test_what_nobody_knows_is_unknown(lines: list[str], start: str) -> None:
    # Letters of no alphabet that Slurm writes in: no phrase of ours can come about.
    assert classify([start + line.translate(GREEK) for line in lines], 1).kind is ErrorKind.UNKNOWN


GREEK = {ord(letter): 0x3B1 + n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz")} | {
    ord(letter): 0x3B1 + n for n, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
}


@given(st.sampled_from(KNOWN), st.sampled_from(DOUBTS), st.booleans())
def test_a_doubt_beside_a_text_that_is_known_stays_a_doubt(
    known: dict[str, Any], doubt: list[str], first: bool
) -> None:
    lines = [*doubt, *known["lines"]] if first else [*known["lines"], *doubt]
    assert classify(lines, known["exit_code"]).kind is ErrorKind.UNKNOWN


@given(st.sampled_from(KNOWN), words)
def test_what_slurmctld_answers_is_known_from_its_first_word_on(known: dict[str, Any], word: str) -> None:
    """A later version that says more in front of it says something else."""
    lines = [line.replace(FAILED, f"{FAILED}Not so: {word} ") for line in known["lines"]]
    if lines != known["lines"]:
        assert classify(lines, 1).kind is ErrorKind.UNKNOWN


def test_two_answers_that_do_not_agree_are_none() -> None:
    lines = [FAILED + "Invalid qos specification", FAILED + "Resource temporarily unavailable"]
    assert classify(lines, 1).kind is ErrorKind.UNKNOWN
    assert classify([FAILED + "Invalid qos specification"] * 2, 1).kind is ErrorKind.PERMANENT


@pytest.mark.parametrize(
    "text",
    ["The answer took too long", "We have permission denied to nobody", "The batch script was accepted",
     "Invalid option of the day", "Somebody else's job violates accounting/QOS policy",
     "unable to resolve it all", "Unspecified error"],
)  # fmt: skip
def test_a_phrase_in_the_middle_of_another_text_decides_nothing(text: str) -> None:
    assert classify([f"sbatch: error: So: {text}"], 1).kind is ErrorKind.UNKNOWN
    assert classify([f"{FAILED}{text}"], 1).kind is ErrorKind.UNKNOWN
