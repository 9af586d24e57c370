"""The daemon as a process: one lock from start to end, new settings on SIGHUP, the end on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.controllers.application import Application
from mqi_hpc.controllers.client import Client
from mqi_hpc.controllers.container import Container
from mqi_hpc.controllers.daemon import End
from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from mqi_hpc.controllers.service import Service
from mqi_hpc.core.errors import ConfigurationError, LockHeld, StateError
from mqi_hpc.core.requests import Verb
from mqi_hpc.infrastructure.monitoring.notify import Notifier
from tests.support.cli import mqi
from tests.support.cluster import wait_until
from tests.support.daemon import DaemonProcess


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A configuration of a machine that is itself a node that submits."""
    (tmp_path / "cases").mkdir()
    return write(tmp_path / "config.yaml")


def write(path: Path, **sections: dict[str, Any]) -> Path:
    """Write a configuration, sections merged over a plain one (JSON is YAML)."""
    home = path.parent
    plain: dict[str, Any] = {
        "app": {
            "site": "here",
            "state_file": str(home / "state" / "mqi.sqlite"),
            "log_file": str(home / "log"),
        },
        "paths": {
            "local_logdata": str(home / "cases"),
            "remote_workspace": str(home / "work"),
            "local_results": str(home / "results"),
        },
        "transport": "local",
        "resources": {"gpu_count": 4, "min_disk_space_gb": 0.001},
        "processing": {"scan_interval_seconds": 1},
    }
    for name, values in sections.items():
        plain[name] = {**plain.get(name, {}), **values}
    path.write_text(json.dumps(plain))
    return path


class Scripted(Service):
    """Before each run of a daemon the next step is made; after the last, it is asked to end."""

    def __init__(self, path: Path, *steps: Callable[[], None], watched: bool = True) -> None:
        self.said: list[tuple[str, str]] = []
        super().__init__(path, lambda label, text: self.said.append((label, text)), watched=watched)
        self.steps = list(steps)
        self.containers: list[Container] = []

    def _run(self, container: Container) -> End:
        self.containers.append(container)
        if self.steps:
            self.steps.pop(0)()
            os.kill(os.getpid(), signal.SIGHUP)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        return super()._run(container)

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.said]


def test_a_reload_takes_what_can_change(site: Path) -> None:
    def change() -> None:
        write(site, resources={"gpu_count": 7}, processing={"poll_max_seconds": 77})

    service = Scripted(site, change)
    service.run()
    before, after = service.containers
    assert (before.config.resources.gpu_count, after.config.resources.gpu_count) == (4, 7)
    assert (before.daemon._gpu_slots, after.daemon._gpu_slots) == (4, 7)
    assert after.config.processing.poll_max_seconds == 77
    assert service.texts == ["the settings were read again"]
    assert before.parts is not after.parts
    assert before.notifier is after.notifier


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda site: site.write_text("app: ["), "config.yaml"),
        (lambda site: site.unlink(), "config.yaml"),
        (lambda site: write(site, resources={"gpu_count": "many"}), "gpu_count"),
        (lambda site: write(site, app={"log_file": str(site / "log")}), "log cannot be written"),
        (
            lambda site: write(site, app={"state_file": str(site.parent / "b.sqlite")}),
            "app.state_file cannot",
        ),
        (lambda site: write(site, app={"site": "there"}), "app.site cannot change"),
        (lambda site: write(site, paths={"remote_workspace": "/elsewhere"}), "paths.remote_workspace cannot"),
    ],
)
def test_settings_that_cannot_be_used_are_told_and_the_old_ones_kept(
    site: Path, spoil: Callable[[Path], object], said: str
) -> None:
    service = Scripted(site, lambda: spoil(site) and None)
    service.run()
    before, after = service.containers
    assert after.config == before.config
    (text,) = service.texts
    assert text.startswith("the settings are kept as they were: ")
    assert said in text


def test_settings_that_fail_when_the_daemon_is_built_are_told_and_the_old_ones_kept(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a template that cannot be rendered: found only when its part is built."""
    closed: list[int] = []
    real = Container.daemon.func  # type: ignore[attr-defined]

    def build(container: Container) -> object:
        gpus = container.config.resources.gpu_count
        if gpus == 9:
            monkeypatch.setattr(container.parts, "close", lambda: closed.append(gpus))
            raise ConfigurationError("the template is broken", fix="Mend it")
        return real(container)

    monkeypatch.setattr(Container.daemon, "func", build)
    service = Scripted(site, lambda: write(site, resources={"gpu_count": 9}) and None)
    service.run()
    assert [container.config.resources.gpu_count for container in service.containers] == [4, 4]
    assert service.texts == ["the settings are kept as they were: the template is broken. Mend it"]
    assert closed == [9]


def test_the_lock_is_held_from_start_to_end(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    state = site.parent / "state" / "mqi.sqlite"
    for name in ("acquire_lock", "release_lock"):
        real = getattr(LifecycleManager, name)

        def noted(self: LifecycleManager, *args: float, real: Any = real, name: str = name) -> object:
            calls.append(name)
            return real(self, *args)

        monkeypatch.setattr(LifecycleManager, name, noted)
    Scripted(site, lambda: None, lambda: None).run()
    assert calls == ["acquire_lock", "release_lock"]
    other = LifecycleManager(state)
    assert other.acquire_lock()
    other.release_lock()


def test_a_second_one_is_refused(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqi_hpc.controllers.service._PATIENCE", 0.0)
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(LockHeld, match=f"process {os.getpid()}") as caught:
            Service(site, lambda *_: None).run()
        refused.append(str(caught.value))

    Scripted(site, second).run()
    assert len(refused) == 1


def test_asked_to_end_while_it_reloads_it_ends(site: Path) -> None:
    service = Scripted(site, lambda: os.kill(os.getpid(), signal.SIGTERM))
    service.run()
    assert len(service.containers) == 1
    assert _health(site) == "stopped"


def test_asked_to_end_between_two_daemons_it_ends(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Service._reloaded

    def reloaded(service: Service, before: Container) -> Container:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(service, before)

    monkeypatch.setattr(Service, "_reloaded", reloaded)
    service = Scripted(site, lambda: None, lambda: None)
    service.run()
    assert len(service.containers) == 2
    assert _health(site) == "stopped"


def test_asked_twice_it_ends_at_once_and_gives_the_lock_back(site: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    service = Scripted(site, twice)
    with pytest.raises(SystemExit) as caught:
        service.run()
    assert caught.value.code == 128 + signal.SIGTERM
    lifecycle = LifecycleManager(site.parent / "state" / "mqi.sqlite")
    assert lifecycle.acquire_lock()
    lifecycle.release_lock()


def test_fifty_reloads_leave_nothing_behind(site: Path) -> None:
    counts: list[tuple[int, int]] = []

    def count() -> None:
        counts.append((len(list(Path("/proc/self/fd").iterdir())), threading.active_count()))

    Scripted(site, *[count] * 50).run()
    assert len(counts) == 50
    # The first has opened what stays, such as the log.
    assert counts[-1][0] <= counts[1][0]
    assert counts[-1][1] <= counts[1][1]


@pytest.mark.parametrize(
    ("watched", "names", "label"), [(False, False, "id"), (True, False, "label"), (False, True, "label")]
)
def test_what_is_kept_in_a_log_names_no_folder(site: Path, watched: bool, names: bool, label: str) -> None:
    write(site, privacy={"names": names})
    sample = site.parent / "cases" / "Smith"
    made = mqi(site, "sample-case", str(sample), "--beams", "1", "--layers", "2")
    assert made.returncode == 0, made.stderr
    told: list[str] = []

    def hear() -> None:
        container = service.containers[-1]
        (case,) = container.cases.register(str(sample), None).cases
        told.extend((case.case_id, case.label))
        container._heard(case.case_id, f"registered, 1 beam: {str(sample)!r}")
        container._heard(None, f"{str(sample)!r} waits: half copied")
        container._heard("nobody", "uploading")

    service = Scripted(site, hear, watched=watched)
    service.run()
    said = service.said[:3]
    assert [who for who, _ in said] == [told[label == "label"], "mqi-hpc", "nobody"]
    assert ("Smith" in str(said)) is (label == "label")


def test_who_asks_has_a_name_or_a_number(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container.open(site, None)
    monkeypatch.setenv("LOGNAME", "physicist")
    assert container.request(Verb.CANCEL, "c").who == "physicist"

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert container.request(Verb.CANCEL, "c").who == f"uid {os.getuid()}"


def test_beside_a_holder_a_command_acts_through_it_until_it_has_ended(site: Path) -> None:
    holder = LifecycleManager(site.parent / "state" / "mqi.sqlite")
    holder.acquire_lock()
    container = Container.open(site, None)
    with container.acting() as actor:
        assert isinstance(actor, Client)
        assert not container._nobody_leads()
        assert container._take_over() is None
        holder.release_lock()
        assert container._nobody_leads()
        assert isinstance(container._take_over(), Application)
        with pytest.raises(LockHeld):
            holder.acquire_lock()
    assert holder.acquire_lock()
    holder.release_lock()
    with Container.open(site, None).acting() as actor:
        assert isinstance(actor, Application)


# As a process


def _health(site: Path) -> str:
    path = site.parent / "state" / "health.json"
    return str(json.loads(path.read_text())["status"]) if path.exists() else ""


def test_as_a_process(site: Path) -> None:
    with DaemonProcess(site) as daemon:
        wait_until(lambda: _health(site), 300, "a health file")
        second = mqi(site, "run")
        assert (second.returncode, "Traceback" in second.stderr) == (5, False)
        assert str(daemon.process.pid) in second.stderr
        write(site, resources={"gpu_count": 2})
        daemon.reload()
        wait_until(lambda: "read again" in daemon.said, 300, "the reload")
        code, _ = daemon.stop()
    assert code == 0, daemon.said
    assert _health(site) == "stopped"
    assert "Traceback" not in daemon.said


def test_what_a_user_did_wrong_ends_with_a_code_and_no_traceback(site: Path) -> None:
    site.write_text("app: [")
    done = mqi(site, "run")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    (site.parent / "file").touch()
    write(site, app={"state_file": str(site.parent / "file" / "mqi.sqlite")})
    done = mqi(site, "run")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "mqi-hpc: " in done.stderr


def test_a_store_that_is_damaged_ends_it(site: Path) -> None:
    state = site.parent / "state" / "mqi.sqlite"
    state.parent.mkdir(mode=0o700)
    state.write_text("no database at all, but long enough to be looked at " * 100)
    with pytest.raises(StateError):
        Scripted(site).run()
    assert state.read_text().startswith("no database")
    assert LifecycleManager(state).acquire_lock()


def test_systemd_is_told_on_one_notifier(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Notifier, "ready", lambda _, status="": heard.append("ready"))
    monkeypatch.setattr(Notifier, "reloading", lambda _: heard.append("reloading"))
    monkeypatch.setattr(Notifier, "stopping", lambda _, status="": heard.append("stopping"))
    Scripted(site, lambda: None).run()
    assert heard == ["ready", "reloading", "ready", "stopping"]
