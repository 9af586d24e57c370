"""One instance at a time, by a lock that goes with its process; identity that survives the store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from mqi_hpc.core.errors import LockHeld, StateError
from mqi_hpc.infrastructure.state import load_or_create_instance
from mqi_hpc.infrastructure.state.instance import instance_file

_HOLDER = textwrap.dedent(
    """
    import signal, sys, time
    from pathlib import Path
    from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
    # A test run in the background, or under nohup, hands ignored signals on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    lifecycle = LifecycleManager(Path(sys.argv[1]))
    lifecycle.acquire_lock()
    asked = []
    lifecycle.register_shutdown_handler(lambda: asked.append(1))
    print("held", flush=True)
    while not asked or len(sys.argv) > 2:
        time.sleep(0.01)
    lifecycle.release_lock()
    """
)


def holder(state: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(state), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_instance_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    state = tmp_path / "new" / "mqi.sqlite"
    with holder(state) as process:
        with pytest.raises(LockHeld, match=f"process {process.pid}") as caught:
            LifecycleManager(state).acquire_lock()
        assert "kill -TERM" in str(caught.value)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    ours = LifecycleManager(state)
    assert ours.acquire_lock()
    ours.release_lock()
    ours.release_lock()


def test_a_kill_frees_the_lock_whatever_it_left(tmp_path: Path) -> None:
    state = tmp_path / "mqi.sqlite"
    with holder(state) as process:
        process.kill()
        process.wait()
    assert (tmp_path / "mqi.sqlite.lock.holder").exists()
    ours = LifecycleManager(state)
    assert ours.acquire_lock()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    ours.release_lock()


def test_a_holder_that_says_nothing_of_itself_still_holds(tmp_path: Path) -> None:
    state = tmp_path / "mqi.sqlite"
    with holder(state) as process:
        (tmp_path / "mqi.sqlite.lock.holder").write_text("rubbish")
        with pytest.raises(LockHeld, match="works on this store"):
            LifecycleManager(state).acquire_lock()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0


def test_asked_twice_it_ends_at_once(tmp_path: Path) -> None:
    with holder(tmp_path / "mqi.sqlite", "deaf") as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
        # A third signal may strike while Python already ends; a shell shows both as 143.
        assert process.wait() in (128 + signal.SIGTERM, -signal.SIGTERM)


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    lifecycle = LifecycleManager(tmp_path / "mqi.sqlite")
    lifecycle.acquire_lock()
    called = []
    lifecycle.register_shutdown_handler(lambda: called.append(1))
    lifecycle.register_shutdown_handler(lambda: called.append(2))
    os.kill(os.getpid(), signal.SIGTERM)
    assert called == [1, 2]
    lifecycle.release_lock()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_terminal_that_goes_away_asks_to_end(tmp_path: Path) -> None:
    with holder(tmp_path / "mqi.sqlite") as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait() == 0


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        lifecycle = LifecycleManager(tmp_path / "mqi.sqlite")
        lifecycle.acquire_lock()
        called: list[int] = []
        lifecycle.register_shutdown_handler(lambda: called.append(1))
        os.kill(os.getpid(), signal.SIGHUP)
        lifecycle.release_lock()
        assert called == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reload_is_no_end(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGHUP)
    lifecycle = LifecycleManager(tmp_path / "mqi.sqlite")
    lifecycle.acquire_lock()
    called: list[str] = []
    lifecycle.register_shutdown_handler(lambda: called.append("end"))
    lifecycle.register_reload_handler(lambda: called.append("reload"))
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    assert called == ["reload", "reload", "end", "reload"]
    lifecycle.release_lock()
    assert signal.getsignal(signal.SIGHUP) is before


def test_the_order_of_registering_does_not_matter(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    lifecycle = LifecycleManager(tmp_path / "mqi.sqlite")
    lifecycle.acquire_lock()
    called: list[str] = []
    lifecycle.register_reload_handler(lambda: called.append("reload"))
    lifecycle.register_shutdown_handler(lambda: called.append("end"))
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert called == ["reload", "end"]
    lifecycle.release_lock()
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_process_id_that_is_used_again_means_nothing(tmp_path: Path) -> None:
    """The holder file of one that was killed names a process that lives, and is another program."""
    state = tmp_path / "mqi.sqlite"
    with holder(state) as process:
        process.kill()
        process.wait()
    left = tmp_path / "mqi.sqlite.lock.holder"
    left.write_text(json.dumps({"pid": os.getppid(), "command": "mqi-hpc"}))
    ours = LifecycleManager(state)
    assert ours.acquire_lock()
    assert json.loads(left.read_text())["pid"] == os.getpid()
    ours.release_lock()
    assert not left.exists()


def test_a_lock_that_is_given_back_meanwhile_is_taken(tmp_path: Path) -> None:
    state = tmp_path / "mqi.sqlite"
    with holder(state) as process:
        process.send_signal(signal.SIGTERM)
        ours = LifecycleManager(state)
        assert ours.acquire_lock(patience=600)
    ours.release_lock()


# The instance


def test_an_identity_is_made_once_and_private(tmp_path: Path) -> None:
    state = tmp_path / "new" / "mqi.sqlite"
    first = load_or_create_instance(state)
    assert load_or_create_instance(state) == first
    assert (len(first.id), len(first.secret)) == (6, 32)
    assert first.secret.hex() not in repr(first)
    assert instance_file(state).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.parent.iterdir()] == ["mqi.sqlite.instance"]
    assert load_or_create_instance(tmp_path / "other.sqlite").id != first.id


def test_two_first_starters_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from mqi_hpc.infrastructure.state import load_or_create_instance as f;"
        "print(f(Path(sys.argv[1])).id)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({run.communicate()[0] for run in runs}) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"id": "abcdef"}', '{"id": "ABC", "secret": "00"}', '{"id": 3, "secret": "zz"}']
)
def test_a_damaged_identity_is_never_made_anew(tmp_path: Path, text: str) -> None:
    path = instance_file(tmp_path / "mqi.sqlite")
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(StateError, match=r"damaged.*backup"):
        load_or_create_instance(tmp_path / "mqi.sqlite")
    assert path.read_text() == text


def test_an_identity_others_may_read_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "mqi.sqlite"
    load_or_create_instance(state)
    instance_file(state).chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        load_or_create_instance(state)
    assert json.loads(instance_file(state).read_text())


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="the instance file cannot be used"):
        load_or_create_instance(tmp_path / "file" / "mqi.sqlite")
