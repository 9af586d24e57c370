"""The effects port: every effect comes back as exactly one completion, whatever happens to it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import structlog.testing

from mqi_hpc.core.effects import Cancel, Completion, Download, Effect, Failure, Observe, Submit, Upload
from mqi_hpc.core.errors import (
    AuthenticationError,
    ChannelRefused,
    ConfigurationError,
    ConnectionError,
    HostKeyError,
    IntegrityError,
    LocalFolderError,
    ProcessingError,
    RejectedCase,
    ResourceError,
    TransportTimeout,
)
from mqi_hpc.infrastructure.executors.control import Control
from mqi_hpc.infrastructure.executors.effects import ThreadedEffects, classify
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown, Result
from mqi_hpc.infrastructure.executors.upload import FolderTaken, WorkspaceRefused

SUBMIT = Submit(case_id="k", job_id="k-j01", job_folder="/ws/k/j01", nonce="n")
OBSERVE = Observe(nonce="n", jobs=(), sacct_ids=())
CANCEL = Cancel(case_id="k", job_id="k-j01", targets=(("a", 5), ("it's", 6)))
UPLOAD = Upload(
    case_id="k",
    job_id="k-j01",
    source="/P001",
    input_folder="/ws/k/input",
    inputs=(),
    job_folder="/ws/k/j01",
    files={},
)
DOWNLOAD = Download(case_id="k", job_id="k-j01", job_folder="/ws/k/j01", folder="f", results=(), logs=())


class FakeShell:
    """Gives or raises `answer`, which may be a function of the command."""

    target = "mqi@login:22"

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[tuple[list[str], bytes, dict[str, Any]]] = []
        self.closed = threading.Event()

    def run(self, argv: Sequence[str], *, stdin: Iterable[bytes] = (), **options: Any) -> Result:
        self.calls.append((list(argv), b"".join(stdin), options))
        answer = self.answer(argv) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Result)
        return answer

    def close(self) -> None:
        self.closed.set()


class Renderer:
    def job_files(self, request: object) -> dict[str, bytes]:
        return {}

    def observe_script(self, effect: Observe) -> str:
        return f"poll {effect.nonce}"


class Transfer:
    """Stands for TransferExecutor."""

    def __init__(self, act: Callable[[Effect], Completion]) -> None:
        self.upload = self.download = self.survey = act


def said(stdout: bytes = b"", code: int = 0, stderr: bytes = b"") -> Result:
    return Result(stdout=stdout, stderr=stderr, exit_code=code)


def control(shell: FakeShell) -> Control:
    return Control(shell, Renderer(), submit_timeout=300, command_timeout=60)


def effects(shell: FakeShell, act: Callable[[Effect], Completion] | None = None) -> ThreadedEffects:
    transfer: Any = Transfer(act or (lambda effect: Completion(effect=effect)))
    return ThreadedEffects(shell, control(shell), transfer, transfer_threads=2, close_seconds=0.2)


def one(port: ThreadedEffects, effect: Effect) -> Completion:
    port.start(effect)
    (completion,) = port.completions(30)
    return completion


# Classes of errors


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ConnectionError("x"), Failure.OUTAGE),
        (TransportTimeout("x"), Failure.OUTAGE),
        (ChannelRefused("x"), Failure.OUTAGE),
        (OutcomeUnknown("x"), Failure.OUTAGE),
        (AuthenticationError("x"), Failure.ACCESS),
        (HostKeyError("x"), Failure.ACCESS),
        (ConfigurationError("x"), Failure.ACCESS),
        (WorkspaceRefused("x"), Failure.FOLDER),
        (LocalFolderError("x"), Failure.FOLDER),
        (FolderTaken("x"), Failure.TAKEN),
        (ResourceError("x"), Failure.SPACE),
        (OSError(errno.ENOSPC, "x"), Failure.SPACE),
        (OSError(errno.EDQUOT, "x"), Failure.SPACE),
        (OSError(errno.ESTALE, "x"), Failure.FOLDER),
        (OSError(errno.ENOENT, "x"), Failure.CASE),
        (ProcessingError("x"), Failure.CASE),
        (IntegrityError("x"), Failure.CASE),
        (RejectedCase("x"), Failure.CASE),
        (ValueError("x"), Failure.CASE),
    ],
)
def test_errors_are_classed_as_the_loop_acts(error: Exception, failure: Failure) -> None:
    assert classify(error) is failure


# Commands


def test_submit_is_one_command() -> None:
    shell = FakeShell(said(b"out\n", 77, b"some error\n"))
    done = control(shell).submit(SUBMIT)
    assert done == Completion(effect=SUBMIT, output="out\n\nsome error\n", exit_code=77)
    assert shell.calls == [(["bash", "/ws/k/j01/submit.sh", "n"], b"", {"timeout": 300, "control": True})]


@pytest.mark.parametrize("code", [124, 137])
def test_a_submission_that_was_cut_short_is_uncertain(code: int) -> None:
    done = control(FakeShell(said(b"begun\n", code))).submit(SUBMIT)
    assert (done.uncertain, done.failure, done.exit_code) == (True, Failure.OUTAGE, code)
    assert done.output == "begun\n"
    assert "did not end within 300 s" in str(done.error)


def test_observe_is_one_command_with_its_script_on_stdin() -> None:
    shell = FakeShell(said(b"sections\xff\n", stderr=b"banner\n"))
    assert control(shell).observe(OBSERVE) == Completion(effect=OBSERVE, output="sections\ufffd\n")
    ((argv, stdin, options),) = shell.calls
    assert (argv, stdin) == (["bash", "-s"], b"poll n")
    assert (options["control"], options["cap"]) == (True, 8 * 1024 * 1024)


def test_what_a_poll_said_before_it_hung_is_kept() -> None:
    done = control(FakeShell(OutcomeUnknown("hung", partial=b"date\n"))).observe(OBSERVE)
    assert done == Completion(effect=OBSERVE, output="date\n", exit_code=124)
    with pytest.raises(OutcomeUnknown):
        control(FakeShell(OutcomeUnknown("hung"))).observe(OBSERVE)


def answering(*lines: str) -> Callable[[Sequence[str]], Result]:
    """Answer a script as its nonce wants it."""

    def answer(argv: Sequence[str]) -> Result:
        nonce = argv[4]
        return said("".join(f"\n\x1e{nonce} {line}\n" for line in (*lines, "END")).encode())

    return answer


def test_cancel_reports_each_exit_code_in_order() -> None:
    shell = FakeShell(answering("SCANCEL 5 0 a ", "SCANCEL 6 1 it's bm8="))
    done = control(shell).cancel(CANCEL)
    assert done.output == "scancel --name=a 5: exit 0\nscancel --name='it'\"'\"'s' 6: exit 1: no"
    assert (done.exit_code, done.error) == (1, None)
    ((argv, _, options),) = shell.calls
    assert argv[5:] == ["60", "", "withdrawn", "a", "5", "it's", "6"]
    assert options["control"] is True


@pytest.mark.parametrize(("answer", "said"), [("MARK 0 ", "exit 0"), ("MARK 1 bm8=", "exit 1: no")])
def test_a_mark_is_made_with_a_cancel_or_alone_and_fails_neither(answer: str, said: str) -> None:
    shell = FakeShell(answering(answer))
    done = control(shell).cancel(replace(CANCEL, targets=(), mark="/w/k/j01"))
    assert (done.output, done.exit_code, done.error) == (f"mark withdrawn: {said}", 0, None)
    ((argv, _, _),) = shell.calls
    assert argv[5:] == ["60", "/w/k/j01", "withdrawn"]


def test_cancel_of_nothing_asks_nobody() -> None:
    shell = FakeShell()
    assert control(shell).cancel(replace(CANCEL, targets=())).error is None
    assert shell.calls == []


def test_a_cancel_that_is_not_reported_is_an_outage() -> None:
    with pytest.raises(ConnectionError, match="not every scancel"):
        control(FakeShell(answering("SCANCEL 5 0 a "))).cancel(CANCEL)


# Threads


def test_each_effect_comes_back_once() -> None:
    shell = FakeShell(
        lambda argv: answering("SCANCEL 5 0 a ", "SCANCEL 6 0 b ")(argv) if len(argv) > 5 else said()
    )
    port = effects(shell)
    sent = [UPLOAD, SUBMIT, OBSERVE, CANCEL, DOWNLOAD] * 20
    for effect in sent:
        port.start(effect)
    done: list[Completion] = []
    while len(done) < len(sent):
        found = port.completions(30)
        assert found
        done += found
    assert port.completions(0) == []
    assert {type(e): sent.count(e) for e in sent} == {
        type(e): [c.effect for c in done].count(e) for e in sent
    }
    assert all(c.error is None for c in done)
    port.close()


@pytest.mark.parametrize(
    ("error", "failure", "uncertain"),
    [
        (ConnectionError("down", where="login"), Failure.OUTAGE, False),
        (OutcomeUnknown("lost", where="login"), Failure.OUTAGE, True),
        (AuthenticationError("no"), Failure.ACCESS, False),
    ],
)
def test_an_error_becomes_a_completion(error: Exception, failure: Failure, uncertain: bool) -> None:
    port = effects(FakeShell(error))
    done = one(port, SUBMIT)
    assert done == Completion(effect=SUBMIT, error=str(error), failure=failure, uncertain=uncertain)
    port.close()


def test_a_fault_of_ours_harms_its_case_only_and_names_no_patient_in_the_log() -> None:
    folder = "/data/P001 Doe John"

    def fails(effect: Effect) -> Completion:
        raise KeyError(folder)

    with structlog.testing.capture_logs() as logs:
        port = effects(FakeShell(said()), fails)
        done = one(port, UPLOAD)
        assert one(port, SUBMIT).error is None
        port.close()
    assert done.failure is Failure.CASE
    assert done.error == "KeyError: '/data/P001 Doe John' (a fault of this program)"
    (fault,) = [log for log in logs if log["log_level"] == "error"]
    assert (fault["kind"], fault["case_id"], fault["job_id"]) == ("KeyError", "k", "k-j01")
    assert "in fails" in fault["traceback"]
    assert "Doe" not in str(logs)


def test_a_stalled_transfer_and_a_slow_submission_delay_no_poll() -> None:
    stuck = threading.Event()

    def waits(*_: object) -> Completion:
        assert stuck.wait(30)
        return Completion(effect=UPLOAD)

    def answer(argv: Sequence[str]) -> Result:
        if argv[1] != "-s":
            assert stuck.wait(30)
        return said(b"seen")

    port = effects(FakeShell(answer), waits)
    for effect in [UPLOAD] * 5 + [SUBMIT] * 5:
        port.start(effect)
    assert one(port, OBSERVE).output == "seen"
    stuck.set()
    done: list[Completion] = []
    while len(done) < 10:
        done += port.completions(30)
    port.close()


def test_close_cuts_what_is_stuck_and_answers_what_waits() -> None:
    shell = FakeShell()
    begun = threading.Semaphore(0)

    def waits(effect: Any) -> Any:
        begun.release()
        # As a real shell does: its end wakes whoever works on it.
        assert shell.closed.wait(30)
        return OutcomeUnknown("the connection was closed")

    def transfer(effect: Effect) -> Completion:
        raise waits(effect)

    shell.answer = waits
    port = effects(shell, transfer)
    for effect in [SUBMIT] * 4 + [UPLOAD] * 4:
        port.start(effect)
    for _ in range(4):
        assert begun.acquire(timeout=30)
    port.close()
    port.start(OBSERVE)
    done = port.completions(0)
    assert len(done) == 9
    assert {c.failure for c in done} == {Failure.OUTAGE}
    # Those that had begun may have had their effect; those that waited have not.
    assert sorted(c.uncertain for c in done) == [False] * 5 + [True] * 4
    assert "stopping" in str(done[-1].error)
