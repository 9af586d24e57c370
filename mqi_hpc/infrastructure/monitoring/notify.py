"""Tells systemd how the daemon is: sd_notify's messages over its datagram socket (man sd_notify)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping

import structlog

_USEC = 1_000_000


class Notifier:
    """Nothing happens where NOTIFY_SOCKET is unset. Never raises, never waits."""

    def __init__(
        self,
        environ: MutableMapping[str, str] | None = None,
        *,
        pid: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._monotonic = monotonic
        self._interval = _watchdog_seconds(environ, os.getpid() if pid is None else pid)
        # Ours alone: what we start must not speak for us.
        address = environ.pop("NOTIFY_SOCKET", "")
        environ.pop("WATCHDOG_USEC", None)
        environ.pop("WATCHDOG_PID", None)
        # A leading @ stands for the NUL of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._beaten: float | None = None
        self._complained = ""
        self._log = structlog.get_logger("mqi_hpc.notify")

    @property
    def watchdog_seconds(self) -> float | None:
        """How often `beat` must be called at least: half of what systemd allows; None: no watchdog."""
        return self._interval

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, has ended."""
        self._send("READY=1", status)

    def status(self, text: str) -> None:
        """Say in one line what is going on; it shows in `systemctl status`."""
        self._send("", text)

    def reloading(self) -> None:
        """Settings are being read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", "")

    def stopping(self, status: str = "") -> None:
        """The end has begun."""
        self._send("STOPPING=1", status)

    def beat(self) -> None:
        """Say that the loop turns; call it in every turn, it speaks when half of the time has passed."""
        if self._interval is None:
            return
        now = self._monotonic()
        if self._beaten is None or now - self._beaten >= self._interval:
            self._beaten = now
            self._send("WATCHDOG=1", "")

    def _send(self, state: str, status: str) -> None:
        if not self._address:
            return
        # One line: a line break would begin another assignment.
        line = f"STATUS={' '.join(status.split())}" if status else ""
        message = "\n".join(part for part in (state, line) if part)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.setblocking(False)
                speaker.sendto(message.encode("utf-8", "replace"), self._address)
            self._complained = ""
        except (OSError, ValueError) as error:
            if str(error) != self._complained:
                self._complained = str(error)
                self._log.warning("systemd does not hear us", why=str(error))


def _watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    allowed = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", "")
    if not allowed.isdecimal() or int(allowed) == 0 or (meant and meant != str(pid)):
        return None
    return int(allowed) / _USEC / 2
