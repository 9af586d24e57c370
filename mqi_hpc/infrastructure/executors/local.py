"""Runs commands on this machine, where it is itself a node that submits (transport: local)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterable, Sequence

from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.infrastructure.executors.pump import TICK, Pump, Streams
from mqi_hpc.infrastructure.executors.shell import (
    CHUNK,
    KILL_AFTER,
    OUTPUT_CAP,
    Result,
    Sink,
    bounded,
)


class LocalExecutor:
    """Shell on this machine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    @property
    def target(self) -> str:
        """This machine, in words."""
        return "this machine"

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        timeout: float,
        control: bool = False,  # noqa: ARG002 - nothing queues here
        cap: int = OUTPUT_CAP,
        sink: Sink | None = None,
        stall: float | None = None,
    ) -> Result:
        """Run `argv` in a session of its own; see Shell.run."""
        words = bounded(argv, timeout)
        with self._lock:
            if self._closed:
                raise ConnectionError("the program is stopping", where=self.target)
            try:
                process = subprocess.Popen(
                    [word.encode("utf-8", "surrogateescape") for word in words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    cwd="/",
                )
            except OSError as error:
                raise ConnectionError(f"{words[0]} cannot be started: {error}", where=self.target) from error
            self._running.add(process)
        streams = _ProcessStreams(process)
        try:
            return Pump(streams, timeout=timeout, cap=cap, sink=sink, stall=stall, where=self.target).run(
                stdin
            )
        finally:
            streams.close()
            with self._lock:
                self._running.discard(process)

    def close(self) -> None:
        """End every command that runs."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _ready(descriptor: int, event: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(TICK * 1000))


class _ProcessStreams(Streams):
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout and process.stderr  # noqa: S101 - all three are pipes
        self._process = process
        self._in = process.stdin
        self._out = process.stdout
        self._err = process.stderr
        os.set_blocking(self._in.fileno(), False)

    def read(self, stderr: bool) -> bytes | None:
        stream = self._err if stderr else self._out
        return os.read(stream.fileno(), CHUNK) if _ready(stream.fileno(), select.POLLIN) else None

    def write(self, data: memoryview) -> int:
        # A pipe that is ready takes at least a few bytes, and here not more than it can without waiting.
        return os.write(self._in.fileno(), data) if _ready(self._in.fileno(), select.POLLOUT) else 0

    def end_input(self) -> None:
        with contextlib.suppress(OSError):
            self._in.close()

    def exit_code(self, wait: float) -> int | None:
        try:
            code = self._process.wait(wait) if wait else self._process.poll()
        except subprocess.TimeoutExpired:
            return None
        # Killed by a signal, it told nothing of how it ended.
        return code if code is None or code >= 0 else None

    @property
    def gone(self) -> bool:
        code = self._process.poll()
        return code is not None and code < 0

    def kill(self) -> None:
        _signal(self._process, signal.SIGTERM)
        try:
            self._process.wait(KILL_AFTER)
        except subprocess.TimeoutExpired:
            _signal(self._process, signal.SIGKILL)

    def close(self) -> None:
        for stream in (self._in, self._out, self._err):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.poll()
