"""Runs commands on the cluster over SSH, each on a channel of its own."""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Iterable, Sequence

import paramiko

from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.infrastructure.connection import SSHConnectionPool
from mqi_hpc.infrastructure.executors.pump import TICK, Pump, Streams
from mqi_hpc.infrastructure.executors.shell import (
    CHUNK,
    GRACE,
    OUTPUT_CAP,
    OutcomeUnknown,
    Result,
    Sink,
    bounded,
)

_PACKET = 32 * 1024  # what one SSH message carries


class RemoteExecutor:
    """Shell over SSH. The login shell sees one line of quoted words and nothing else."""

    def __init__(self, pool: SSHConnectionPool) -> None:
        self._pool = pool

    @property
    def target(self) -> str:
        """User, host and port."""
        return self._pool.target

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        timeout: float,
        control: bool = False,
        cap: int = OUTPUT_CAP,
        sink: Sink | None = None,
        stall: float | None = None,
    ) -> Result:
        """Run `argv` on the cluster; see Shell.run."""
        line = shlex.join(bounded(argv, timeout)).encode("utf-8", "surrogateescape")
        with self._pool.channel(control=control, wait=timeout) as lease:
            pump = Pump(
                _ChannelStreams(lease.channel),
                timeout=timeout,
                cap=cap,
                sink=sink,
                stall=stall,
                where=self.target,
            )
            try:
                self._start(lease.channel, line)
                return pump.run(stdin)
            except OutcomeUnknown:
                # The far side's own limit did not end it: this connection may be half dead.
                lease.retire()
                raise

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    def _start(self, channel: paramiko.Channel, line: bytes) -> None:
        # paramiko waits for the server's answer without limit: a closed channel wakes it.
        watchdog = threading.Timer(GRACE, channel.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            channel.exec_command(line)
        except Exception as error:  # paramiko raises here whatever ended its own thread
            said = str(error) or type(error).__name__
            if said == "Channel is not open":
                raise ConnectionError(
                    "the connection was lost before the command", where=self.target
                ) from error
            raise OutcomeUnknown(
                f"the server did not confirm that the command was started: {said}", where=self.target
            ) from error
        finally:
            watchdog.cancel()
        channel.settimeout(TICK)


class _ChannelStreams(Streams):
    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def read(self, stderr: bool) -> bytes | None:
        try:
            return self._channel.recv_stderr(CHUNK) if stderr else self._channel.recv(CHUNK)
        except TimeoutError:
            return None

    def write(self, data: memoryview) -> int:
        try:
            return self._channel.send(bytes(data[:_PACKET]))
        except TimeoutError:
            return 0
        except (paramiko.SSHException, EOFError) as error:
            raise OSError(str(error)) from error

    def end_input(self) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()

    def exit_code(self, wait: float) -> int | None:
        self._channel.status_event.wait(wait)
        # A command that a signal ended has none, nor has one whose connection was lost; one whose
        # output was cut off after it told its exit code counts as lost too.
        known = self._channel.exit_status >= 0 and not self._cut_off
        return self._channel.exit_status if known else None

    @property
    def gone(self) -> bool:
        ended = self._channel.status_event.is_set()
        return ended and (self._channel.exit_status < 0 or self._cut_off)

    @property
    def _cut_off(self) -> bool:
        return not self._channel.eof_received and not self._channel.get_transport().is_active()

    def kill(self) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.close()
