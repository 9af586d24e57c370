"""systemd hears us over a real datagram socket; without one, and against a broken one, nothing happens."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from mqi_hpc.infrastructure.monitoring.notify import Notifier


class Ears:
    """systemd's end."""

    def __init__(self, address: str, told: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.told = told

    def heard(self) -> list[str]:
        words = []
        while True:
            try:
                words.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return words


@pytest.fixture(params=["path", "abstract"])
def ears(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ears]:
    name = f"mqi-{uuid4().hex}"
    if request.param == "path":
        address = told = str(tmp_path / "notify")
    else:
        address, told = f"\0{name}", f"@{name}"
    ears = Ears(address, told)
    yield ears
    ears.socket.close()


def test_what_is_said(ears: Ears) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": ears.told})
    notifier.ready("0 cases")
    notifier.status("2 cases,\n1 running\nMAINPID=1")
    notifier.stopping()
    assert ears.heard() == ["READY=1\nSTATUS=0 cases", "STATUS=2 cases, 1 running MAINPID=1", "STOPPING=1"]


def test_a_reload_bears_its_time(ears: Ears) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": ears.told})
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    notifier.ready()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    reload, ready = ears.heard()
    first, second = reload.split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= after
    assert ready == "READY=1"


def test_the_watchdog_is_fed_at_half_its_time(ears: Ears) -> None:
    now = 100.0
    notifier = Notifier({"NOTIFY_SOCKET": ears.told, "WATCHDOG_USEC": "60000000"}, monotonic=lambda: now)
    assert notifier.watchdog_seconds == 30.0
    notifier.beat()
    now = 129.9
    notifier.beat()
    assert ears.heard() == ["WATCHDOG=1"]
    now = 130.0
    notifier.beat()
    notifier.beat()
    assert ears.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "77"},
    ],
)
def test_no_watchdog_of_ours(ears: Ears, environ: dict[str, str]) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": ears.told, **environ}, pid=42)
    notifier.beat()
    assert notifier.watchdog_seconds is None
    assert ears.heard() == []


def test_the_watchdog_of_our_process() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "42"}, pid=42)
    assert notifier.watchdog_seconds == 1.0


def test_what_we_start_does_not_speak_for_us(monkeypatch: pytest.MonkeyPatch, ears: Ears) -> None:
    import os

    for name, value in (("NOTIFY_SOCKET", ears.told), ("WATCHDOG_USEC", "5"), ("WATCHDOG_PID", "1")):
        monkeypatch.setenv(name, value)
    Notifier().ready()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    assert ears.heard() == ["READY=1"]


def test_without_a_socket_nothing_happens() -> None:
    with capture_logs() as logs:
        notifier = Notifier({})
        notifier.ready("text")
        notifier.beat()
        notifier.stopping()
    assert logs == []


@pytest.mark.parametrize("address", ["/nowhere/at/all", "relative", "vsock:2:1234", "/" + "x" * 300, "a\0b"])
def test_a_socket_that_does_not_hear_is_told_once(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    with capture_logs() as logs:
        notifier.ready()
        notifier.status("still here")
    assert [log["event"] for log in logs] == ["systemd does not hear us"]


def test_a_full_socket_stops_nobody(ears: Ears) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": ears.told})
    with capture_logs() as logs:
        for number in range(5000):
            notifier.status(f"{number} " + "x" * 100)
    assert len(logs) == 1
    assert ears.heard()[0].startswith("STATUS=0 x")
    notifier.status("heard again")
    assert ears.heard() == ["STATUS=heard again"]


def test_text_that_is_no_utf8_is_said_all_the_same(ears: Ears) -> None:
    Notifier({"NOTIFY_SOCKET": ears.told}).status("a\udcff")
    assert ears.heard() == ["STATUS=a?"]
