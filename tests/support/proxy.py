"""A TCP proxy in front of sshd that can hold single connections up: a frozen sshd process, a dead switch."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class _Pipe:
    """One connection: two threads that copy; while `frozen`, what was read is kept back.

    `passed` is asked with the direction (0 is to the server) and the bytes so far, before they are sent.
    """

    def __init__(
        self, near: socket.socket, far: socket.socket, passed: Callable[[_Pipe, int, int], None]
    ) -> None:
        self._ends = near, far
        self._passed = passed
        self._open = threading.Event()
        self._open.set()
        for direction, (source, target) in enumerate(((near, far), (far, near))):
            threading.Thread(target=self._copy, args=(source, target, direction), daemon=True).start()

    @property
    def frozen(self) -> bool:
        return not self._open.is_set()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.thaw()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _copy(self, source: socket.socket, target: socket.socket, direction: int) -> None:
        count = 0
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                count += len(block)
                self._passed(self, direction, count)
                self._open.wait()
                target.sendall(block)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens on `port` of this machine and forwards to `target`; `opened` counts connections.

    While `refusing`, a new one is closed at once.
    `freeze_after`: bytes to and from the server after which a connection freezes (0: never), which sets
    `struck`.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.pipes: list[_Pipe] = []
        self.opened = 0
        self.refusing = False
        self.freeze_after = (0, 0)
        self.struck = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        for pipe in self.pipes:
            pipe.close()

    def cut(self) -> None:
        """Break every connection off."""
        for pipe in self.pipes:
            pipe.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self.opened += 1
                if self.refusing:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self.pipes.append(_Pipe(near, far, self._count))

    def _count(self, pipe: _Pipe, direction: int, count: int) -> None:
        if 0 < self.freeze_after[direction] < count:
            pipe.freeze()
            self.struck.set()
