"""sbatch's own texts, as versions 21.08 to 26.05 print them (slurm_errno.c)."""

from __future__ import annotations

import pytest

from mqi_hpc.core.sbatch_errors import ErrorKind, SbatchError, classify

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
