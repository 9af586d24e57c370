"""The systemd unit says what the program does: its exit codes, its signals, its patience."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "config" / "mqi-hpc.service"


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    parser.read_string(UNIT.read_text())
    return parser


def test_it_is_told_when_the_daemon_is_ready_and_alive(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert int(service["WatchdogSec"]) >= 60
    assert service["ExecStart"].split()[0].endswith("/mqi-hpc") and service["ExecStart"].endswith(" run")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_what_does_not_mend_itself_is_not_tried_again(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    # design 7: 2 usage or configuration. 5, another holds the lock, ends with that command.
    assert service["RestartPreventExitStatus"].split() == ["2"]
    # An outage of days at boot needs no person.
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_it_ends_in_its_own_time(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    # SIGTERM ends the daemon within 10 s; what it started is ended with it.
    assert int(service["TimeoutStopSec"]) == 20
    assert service["KillMode"] == "mixed"


def test_it_may_do_no_more_than_it_must(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["UMask"] == "0077"
    assert service["StateDirectoryMode"] == "0700"
    assert service["ProtectSystem"] == "strict"
    assert (service["NoNewPrivileges"], service["PrivateTmp"]) == ("yes", "yes")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_understands_it(tmp_path: Path) -> None:
    # The program itself need not be installed here.
    text = UNIT.read_text().replace("/opt/mqi-hpc/bin/mqi-hpc", "/bin/true")
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False, timeout=120
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert ours == []
