"""What is known of a command whose connection fails, on a channel that does just what a test says."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.infrastructure.executors import RemoteExecutor, remote
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown


class Channel:
    """A channel whose command has ended: `out` is read first, then the end."""

    def __init__(
        self, out: list[bytes], *, exit_status: int = 0, eof: bool = True, active: bool = True
    ) -> None:
        self.out = out
        self.exit_status = exit_status
        self.eof_received = eof
        self.status_event = threading.Event()
        self.status_event.set()
        self.commands: list[bytes] = []
        self.start_error: Exception | None = None
        self.send_error: Exception | None = None
        self.closed = threading.Event()
        self._transport = SimpleNamespace(is_active=lambda: active)

    def exec_command(self, line: bytes) -> None:
        self.commands.append(line)
        if self.start_error is not None:
            raise self.start_error

    def get_transport(self) -> Any:
        return self._transport

    def settimeout(self, seconds: float) -> None: ...

    def recv(self, size: int) -> bytes:
        return self.out.pop(0) if self.out else b""

    def recv_stderr(self, size: int) -> bytes:
        return b""

    def send(self, data: bytes) -> int:
        if self.send_error is not None:
            raise self.send_error
        return len(data)

    def shutdown_write(self) -> None:
        raise EOFError

    def close(self) -> None:
        self.closed.set()


class Pool:
    """Lends one channel."""

    target = "mqi@login:22"

    def __init__(self, channel: Channel) -> None:
        self.lent = channel
        self.retired = 0
        self.asked: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def channel(self, **options: Any) -> Iterator[Any]:
        self.asked.append(options)

        def retire() -> None:
            self.retired += 1

        yield SimpleNamespace(channel=self.lent, retire=retire)


def shell(pool: Pool) -> RemoteExecutor:
    return RemoteExecutor(pool)  # type: ignore[arg-type]


def test_the_login_shell_sees_one_line_of_quoted_words() -> None:
    pool = Pool(Channel([b"out"]))
    result = shell(pool).run(["bash", "-c", "it's $(x)", "\udcff"], timeout=7.6, control=True)
    assert (result.stdout, result.exit_code) == (b"out", 0)
    assert pool.lent.commands == [b"""timeout -k 10 8 bash -c 'it'"'"'s $(x)' '\xff'"""]
    assert pool.asked == [{"control": True, "wait": 7.6}]
    assert pool.retired == 0


@pytest.mark.parametrize(
    "channel",
    [
        Channel([b"part"], exit_status=-1),
        Channel([b"part"], exit_status=0, eof=False, active=False),  # told its end, then was cut off
    ],
)
def test_a_command_whose_end_is_not_known_whole_is_an_unknown_outcome(channel: Channel) -> None:
    pool = Pool(channel)
    with pytest.raises(OutcomeUnknown) as caught:
        shell(pool).run(["true"], timeout=5)
    assert caught.value.partial == b"part"
    assert pool.retired == 1
    assert channel.closed.is_set()


def test_an_ended_command_counts_though_its_connection_ends_with_it() -> None:
    assert shell(Pool(Channel([b"x"], exit_status=3, active=False))).run(["x"], timeout=5).exit_code == 3


@pytest.mark.parametrize(
    "error", [EOFError(), paramiko.SSHException("Channel closed."), OSError("reset"), RuntimeError("any")]
)
def test_a_start_that_is_not_confirmed_is_an_unknown_outcome(error: Exception) -> None:
    pool = Pool(Channel([]))
    pool.lent.start_error = error
    with pytest.raises(OutcomeUnknown, match=r"did not confirm that the command was started: ."):
        shell(pool).run(["true"], timeout=5)
    assert pool.retired == 1


def test_a_channel_that_closed_before_the_command_makes_nothing_uncertain() -> None:
    pool = Pool(Channel([]))
    pool.lent.start_error = paramiko.SSHException("Channel is not open")
    with pytest.raises(ConnectionError, match="lost before the command") as caught:
        shell(pool).run(["true"], timeout=5)
    assert not isinstance(caught.value, OutcomeUnknown)


def test_a_start_that_is_never_answered_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "GRACE", 0.05)
    channel = Channel([])

    def waits(line: bytes) -> None:
        # As paramiko does: only the end of the channel wakes it.
        assert channel.closed.wait(30)
        raise paramiko.SSHException("Channel closed.")

    channel.exec_command = waits  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        shell(Pool(channel)).run(["true"], timeout=5)


def test_waiting_is_no_end() -> None:
    pool = Pool(Channel([b"out"]))
    waits = [TimeoutError(), TimeoutError()]
    sent: list[bytes] = []
    recv = pool.lent.recv

    def slowly(size: int) -> bytes:
        if waits or not sent:
            raise waits.pop() if waits else TimeoutError
        return recv(size)

    def send(data: bytes) -> int:
        if waits:
            raise TimeoutError
        sent.append(data)
        return len(data)

    pool.lent.recv, pool.lent.send = slowly, send  # type: ignore[method-assign]
    assert shell(pool).run(["cat"], stdin=[b"in"], timeout=60).stdout == b"out"
    assert sent == [b"in"]


def test_close_closes_the_pool() -> None:
    pool = Pool(Channel([]))
    pool.close = lambda: setattr(pool, "target", "closed")  # type: ignore[attr-defined]
    shell(pool).close()
    assert pool.target == "closed"


@pytest.mark.parametrize("error", [paramiko.SSHException("gone"), EOFError(), OSError("closed")])
def test_input_that_nobody_takes_is_no_error(error: Exception) -> None:
    pool = Pool(Channel([b"no space"], exit_status=1))
    pool.lent.send_error = error
    assert shell(pool).run(["tar"], stdin=[b"x"], timeout=5).exit_code == 1
