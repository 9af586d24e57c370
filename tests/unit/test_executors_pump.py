"""Bytes in and out of a command at once, on streams that do just what a test says."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mqi_hpc.core.errors import ConnectionError, IntegrityError
from mqi_hpc.infrastructure.executors import local, pump
from mqi_hpc.infrastructure.executors.local import LocalExecutor
from mqi_hpc.infrastructure.executors.pump import Pump, Streams
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown, Result, Sink


class FakeStreams(Streams):
    """Reads come from `out` (None: nothing yet), then the end; exit codes from `codes`, the last for ever."""

    def __init__(self, out: Sequence[bytes | None] = (), codes: Sequence[int | None] = (0,)) -> None:
        self.out = list(out)
        self.codes = list(codes)
        self.fed = bytearray()
        self.takes: int | OSError = 1 << 20
        self.input_ended = False
        self.killed = False
        self.is_gone = False
        self.tick = threading.Event()

    def read(self, stderr: bool) -> bytes | None:
        if stderr:
            return b""
        self.tick.wait(0.001)
        return self.out.pop(0) if self.out else b""

    def write(self, data: memoryview) -> int:
        if isinstance(self.takes, OSError):
            raise self.takes
        self.fed += data[: self.takes]
        return min(self.takes, len(data))

    def end_input(self) -> None:
        self.input_ended = True

    def exit_code(self, wait: float) -> int | None:
        self.tick.wait(min(wait, 0.001))
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    @property
    def gone(self) -> bool:
        return self.is_gone

    def kill(self) -> None:
        self.killed = True


def run(
    streams: Streams,
    stdin: Any = (),
    *,
    timeout: float = 60,
    sink: Sink | None = None,
    stall: float | None = None,
) -> Result:
    return Pump(streams, timeout=timeout, cap=100, sink=sink, stall=stall, where="login").run(stdin)


def test_output_is_gathered_and_input_is_fed_however_little_is_taken() -> None:
    streams = FakeStreams([b"a", None, b"b"], codes=[None, None, 3])
    streams.takes = 7
    result = run(streams, [b"x" * 20, b"", b"y"])
    assert (result.stdout, result.exit_code) == (b"ab", 3)
    assert (bytes(streams.fed), streams.input_ended, streams.killed) == (b"x" * 20 + b"y", True, False)


def test_an_exit_code_that_will_never_come_is_an_unknown_outcome() -> None:
    streams = FakeStreams([b"part"], codes=[None])
    streams.is_gone = True
    with pytest.raises(OutcomeUnknown, match="connection was lost") as caught:
        run(streams)
    assert caught.value.partial == b"part"
    assert streams.killed


@pytest.mark.parametrize("out", [[b"part"], [b"part"] + [None] * 100_000])
def test_past_its_deadline_a_command_is_given_up(
    out: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "GRACE", 0.05)
    streams = FakeStreams(out, codes=[None])
    with pytest.raises(OutcomeUnknown, match="no end of the command") as caught:
        run(streams, timeout=0)
    assert caught.value.partial == b"part"
    assert streams.killed


def test_an_answer_is_not_held_back_by_an_open_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "LINGER", 0.05)
    result = run(FakeStreams([b"all"] + [None] * 100_000, codes=[7]))
    assert (result.stdout, result.exit_code) == (b"all", 7)


def failing() -> Iterator[bytes]:
    yield b"some"
    raise IntegrityError("changed")


@pytest.mark.parametrize(
    ("out", "codes"),
    [
        ([None] * 100_000, [None]),  # while output is awaited
        ([], [None]),  # while only the end is awaited
        ([], [0]),  # when it has ended already
    ],
)
def test_input_that_fails_is_always_told(out: list[bytes | None], codes: list[int | None]) -> None:
    streams = FakeStreams(out, codes)
    with pytest.raises(IntegrityError):
        run(streams, failing())
    assert not streams.input_ended


def test_a_command_that_reads_no_more_explains_itself_by_its_exit_code() -> None:
    streams = FakeStreams([b"no space"], codes=[1])
    streams.takes = BrokenPipeError()
    assert run(streams, [b"x" * 100]).exit_code == 1
    assert not streams.input_ended


def test_feeding_ends_with_the_command() -> None:
    streams = FakeStreams(codes=[2])
    streams.takes = 0
    assert run(streams, [b"x"]).exit_code == 2


def test_a_sink_gets_all_output_and_the_result_none() -> None:
    seen: list[bytes] = []
    result = run(FakeStreams([b"x" * 500, b"y"]), sink=seen.append)
    assert (b"".join(seen), result.stdout) == (b"x" * 500 + b"y", b"")


@pytest.mark.parametrize("sink", [None, lambda _: None])
def test_standing_still_is_given_up_only_while_bytes_are_due(sink: Sink | None) -> None:
    streams = FakeStreams([None] * 200, codes=[None] * 100 + [0])
    if sink is None:
        # Nothing is due any more: the command works in silence, for as long as it likes.
        assert run(streams, [b"x"], stall=0.02).exit_code == 0
    else:
        with pytest.raises(OutcomeUnknown, match="stood still"):
            run(streams, sink=sink, stall=0.02)


# This machine


def test_a_program_that_is_not_there_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConnectionError, match="timeout cannot be started"):
        LocalExecutor().run(["true"], timeout=5)


def test_close_ends_what_runs_and_starts_nothing_more() -> None:
    shell = LocalExecutor()
    began = threading.Event()
    ended = threading.Event()

    def work() -> None:
        with pytest.raises(OutcomeUnknown):
            shell.run(["bash", "-c", "echo on; exec sleep 300"], timeout=300, sink=lambda _: began.set())
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(30)
    shell.close()
    thread.join(30)
    assert ended.is_set()
    with pytest.raises(ConnectionError, match="stopping"):
        shell.run(["true"], timeout=5)


def test_an_exit_code_that_is_not_there_yet_is_none() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(["cat"], **pipes) as process:  # type: ignore[call-overload]
        streams = local._ProcessStreams(process)
        assert streams.exit_code(0) is None
        assert streams.exit_code(0.01) is None
        assert not streams.gone
        streams.end_input()
        assert streams.exit_code(30) == 0
        streams.close()


def test_what_ignores_a_polite_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "KILL_AFTER", 0.1)
    script = "trap '' TERM; echo on; while :; do sleep 0.05; done"

    def sink(data: bytes) -> None:
        raise IntegrityError("wrong")

    with pytest.raises(IntegrityError):
        LocalExecutor().run(["bash", "-c", script], timeout=300, sink=sink)
