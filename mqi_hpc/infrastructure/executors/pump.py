"""Moves bytes in and out of a running command at the same time, and tells when nothing moves any more."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable

from mqi_hpc.infrastructure.executors.shell import CHUNK, GRACE, LINGER, OutcomeUnknown, Result, Sink

TICK = 0.2


class Streams(ABC):
    """A running command as three byte streams; a call that waits returns None or 0 after about TICK."""

    @abstractmethod
    def read(self, stderr: bool) -> bytes | None:
        """Return bytes, b"" at the end, None where none came within TICK."""

    @abstractmethod
    def write(self, data: memoryview) -> int:
        """Return how many bytes were taken; raises OSError where the command reads no more."""

    @abstractmethod
    def end_input(self) -> None:
        """Tell the command that no more input comes."""

    @abstractmethod
    def exit_code(self, wait: float) -> int | None:
        """Return the exit code, None where it is not known within `wait` seconds."""

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether no exit code will come any more."""

    @abstractmethod
    def kill(self) -> None:
        """End the command as far as this side can; every waiting call returns soon."""


class Pump:
    """One command's traffic: three threads, of which the caller's own reads stdout."""

    def __init__(
        self,
        streams: Streams,
        *,
        timeout: float,
        cap: int,
        sink: Sink | None,
        stall: float | None,
        where: str,
    ) -> None:
        self._streams = streams
        self._deadline = time.monotonic() + timeout + GRACE
        self._timeout = timeout
        self._cap = cap
        self._sink = sink
        self._stall = stall
        self._where = where
        self._moved = time.monotonic()
        self._out = bytearray()
        self._err = bytearray()
        self._truncated = False
        self._feeding = threading.Event()
        self._feed_error: BaseException | None = None
        self._over = threading.Event()

    def run(self, stdin: Iterable[bytes]) -> Result:
        """Carry the command to its end; raises OutcomeUnknown, or what `stdin` or the sink raised."""
        self._feeding.set()
        threads = [
            threading.Thread(target=self._feed, args=(stdin,), name="stdin", daemon=True),
            threading.Thread(target=self._drain_stderr, name="stderr", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._read()
            code = self._end()
        except BaseException:
            self._streams.kill()
            raise
        finally:
            self._over.set()
            for thread in threads:
                thread.join(LINGER)
        if self._feed_error is not None:
            raise self._feed_error
        if code is None:
            self._streams.kill()
            raise self._unknown("the connection was lost, or the command killed, before it told how it ended")
        return Result(
            stdout=bytes(self._out), stderr=bytes(self._err), exit_code=code, truncated=self._truncated
        )

    def _read(self) -> None:
        ended: float | None = None
        while True:
            data = self._streams.read(stderr=False)
            now = time.monotonic()
            if data:
                self._moved = now
                self._keep(data)
            elif data is not None:
                return
            elif ended is None:
                ended = now if self._streams.exit_code(0) is not None else None
            elif now - max(ended, self._moved) > LINGER:
                return
            if self._feed_error is not None:
                raise self._feed_error
            if now > self._deadline:
                raise self._unknown(f"no end of the command within {self._timeout:.0f} s")
            waiting = self._feeding.is_set() or self._sink is not None
            if self._stall is not None and waiting and now - self._moved > self._stall:
                raise self._unknown(f"the transfer stood still for {self._stall:.0f} s")

    def _end(self) -> int | None:
        """Return the exit code once stdout has ended; None where the command gave none."""
        while True:
            code = self._streams.exit_code(TICK)
            if code is not None or self._streams.gone:
                return code
            if self._feed_error is not None:
                raise self._feed_error
            if time.monotonic() > self._deadline:
                raise self._unknown(f"no end of the command within {self._timeout:.0f} s")

    def _keep(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink(data)
            return
        room = self._cap - len(self._out)
        self._out += data[:room]
        self._truncated = self._truncated or len(data) > room

    def _drain_stderr(self) -> None:
        while not self._over.is_set():
            data = self._streams.read(stderr=True)
            if data is None:
                continue
            if not data:
                return
            self._moved = time.monotonic()
            self._err += data[: self._cap - len(self._err)]

    def _feed(self, stdin: Iterable[bytes]) -> None:
        try:
            for block in stdin:
                for start in range(0, len(block), CHUNK):
                    if not self._write(memoryview(block)[start : start + CHUNK]):
                        return
            self._streams.end_input()
        except BaseException as error:  # noqa: BLE001 - raised again by the reading thread
            self._feed_error = error
        finally:
            self._feeding.clear()

    def _write(self, view: memoryview) -> bool:
        """Write all of `view`; False where the command reads no more, which its exit code explains."""
        while view:
            if self._over.is_set():
                return False
            try:
                taken = self._streams.write(view)
            except OSError:
                return False
            if taken:
                self._moved = time.monotonic()
                view = view[taken:]
        return True

    def _unknown(self, what: str) -> OutcomeUnknown:
        return OutcomeUnknown(what, where=self._where, partial=bytes(self._out))
