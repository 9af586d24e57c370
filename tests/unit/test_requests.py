"""Requests between processes: whole or not at all, answered once, whatever dies or lies in the folder."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mqi_hpc.core.errors import LockHeld, StateError
from mqi_hpc.core.requests import Reply, Request, Verb
from mqi_hpc.infrastructure.state import requests as module
from mqi_hpc.infrastructure.state.requests import RequestFolder, new_request_id, requests_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return requests_folder(tmp_path / "mqi.sqlite")


@pytest.fixture
def here(folder: Path) -> RequestFolder:
    return RequestFolder(folder)


def request(name: str = "1", **changes: object) -> Request:
    return Request(**{"request_id": name, "verb": Verb.LEAD, "case_id": "c", "who": "me", **changes})  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Replies cannot be written while the list says so."""
    full: list[bool] = [True]
    real = module.first_to_publish

    def publish(path: Path) -> object:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path)

    monkeypatch.setattr(module, "first_to_publish", publish)
    yield full


TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=40)
REQUESTS = st.builds(
    Request,
    request_id=st.from_regex(r"[0-9a-f-]{1,40}", fullmatch=True),
    verb=st.sampled_from(Verb),
    case_id=TEXT,
    who=TEXT,
    beams=st.none() | st.lists(st.integers(0, 9999), max_size=5).map(tuple),
    convert_only=st.booleans(),
    reason=TEXT,
    priority=st.none() | st.integers(-(2**31), 2**31),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=REQUESTS)
def test_a_request_and_its_reply_arrive_as_they_were(here: RequestFolder, asked: Request) -> None:
    here.leave(asked)
    assert here.take() == [asked]
    reply = Reply(request_id=asked.request_id, said=asked.reason, refused=True, fix=asked.who, stays=True)
    here.answer(reply)
    assert here.await_reply(asked.request_id, 0) == reply
    assert here.take() == []


def test_nothing_is_left_and_nobody_else_may_read(here: RequestFolder, folder: Path) -> None:
    assert here.take() == []
    here.leave(request())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    here.take()
    here.answer(Reply(request_id="1", said="done"))
    here.await_reply("1", 0)
    assert names(folder) == []


def test_the_oldest_comes_first(here: RequestFolder) -> None:
    asked = [request(new_request_id()) for _ in range(5)]
    for each in reversed(asked):
        here.leave(each)
    assert here.take() == asked


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"request_id": "1", "verb": "destroy", "case_id": "c", "who": "me"}',
        b'{"request_id": "1", "verb": "lead", "case_id": 7, "who": "me"}',
        b'{"request_id": "1", "verb": "lead", "case_id": "c", "who": "me", "beams": ["2"]}',
        b'{"request_id": "1", "verb": "lead", "case_id": "c", "who": "me", "convert_only": "yes"}',
        b'{"request_id": "../../1", "verb": "lead", "case_id": "c", "who": "me"}',
        b'{"request_id": "2", "verb": "lead", "case_id": "c", "who": "me"}',
        b'{"verb": "lead", "case_id": "c", "who": "me"}',
        b" " * (1024 * 1024 + 1),
    ],
)
def test_rubbish_is_set_aside_and_logged_once(here: RequestFolder, folder: Path, text: bytes) -> None:
    here.leave(request("3"))
    (folder / "1.request").write_bytes(text)
    with capture_logs() as logs:
        assert [each.request_id for each in here.take()] == ["3"]
        here.take()
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "set aside" in logs[0]["event"]
    assert names(folder) == ["1.unreadable", "3.taken"]


def test_what_is_no_file_is_set_aside(here: RequestFolder, folder: Path) -> None:
    folder.mkdir()
    (folder / "1.request").mkdir()
    os.mkfifo(folder / "2.request")
    (folder / "3.request").symlink_to(folder / "nowhere")
    assert here.take() == []
    assert names(folder) == ["1.unreadable", "2.unreadable", "3.unreadable"]


def test_what_is_half_written_is_never_seen(here: RequestFolder, folder: Path) -> None:
    """A writer that is killed leaves a file that is no request."""
    code = (
        "import os, sys; from pathlib import Path;"
        "from mqi_hpc.infrastructure.state import requests as r; from mqi_hpc.core.requests import *;"
        "r._REQUEST.dump_json = None;"
        "from mqi_hpc.infrastructure.state import publish;"
        "publish.sync = lambda path: os._exit(9);"
        "\nwith publish.first_to_publish(Path(sys.argv[1])) as fresh: fresh.write_bytes(b'{')"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(folder / "1.request")], check=False)
    assert killed.returncode == 9
    assert len(names(folder)) == 1
    with capture_logs() as logs:
        assert here.take() == []
    assert logs == []


def test_one_that_was_taken_by_somebody_who_died_is_asked_again(here: RequestFolder, folder: Path) -> None:
    here.leave(request())
    assert here.take() == [request()]
    # Killed here, perhaps after carrying it out.
    assert RequestFolder(folder).take() == [request()]


def test_of_two_that_serve_one_takes_it_and_the_first_reply_stands(
    here: RequestFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.leave(request())
    other = RequestFolder(folder)
    real = Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        real(self, target)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", overtaken)
        assert here.take() == []
    assert other.take() == [request()]
    other.answer(Reply(request_id="1", said="first"))
    here.answer(Reply(request_id="1", said="second"))
    found = here.await_reply("1", 0)
    assert found is not None
    assert found.said == "first"


def test_one_that_is_withdrawn_is_never_carried_out(here: RequestFolder, folder: Path) -> None:
    here.leave(request())
    assert here.await_reply("1", 0) is None
    assert here.take() == []
    assert names(folder) == []


def test_one_that_was_taken_cannot_be_withdrawn(here: RequestFolder, folder: Path) -> None:
    here.leave(request())
    assert here.take() == [request()]
    with pytest.raises(LockHeld, match=r"took the request.*may be carried out"):
        here.await_reply("1", 0)
    assert names(folder) == ["1.taken"]


def test_a_reply_in_the_last_moment_is_heard(
    here: RequestFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.leave(request())
    real = Path.unlink

    def answered(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".request":
            server = RequestFolder(folder)
            server.take()
            server.answer(Reply(request_id="1", said="done"))
        real(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", answered)
    assert here.await_reply("1", 0) == Reply(request_id="1", said="done")


def test_it_waits_for_a_reply(here: RequestFolder, folder: Path) -> None:
    here.leave(request())

    def serve() -> None:
        server = RequestFolder(folder)
        while not (asked := server.take()):
            pass
        server.answer(Reply(request_id=asked[0].request_id, said="done"))

    thread = threading.Thread(target=serve)
    thread.start()
    found = here.await_reply("1", 600)
    thread.join()
    assert found == Reply(request_id="1", said="done")


def test_a_reply_that_cannot_be_written_is_kept_and_written_later(
    here: RequestFolder, folder: Path, monkeypatch: pytest.MonkeyPatch, full_disk: list[bool]
) -> None:
    full_disk[0] = False
    here.leave(request())
    assert here.take() == [request()]
    full_disk[0] = True
    with capture_logs() as logs:
        here.answer(Reply(request_id="1", said="done"))
        # Not handed out again: what was carried out is not carried out at every turn.
        assert here.take() == []
        assert here.take() == []
    assert [entry["why"] for entry in logs] == ["No space left on device"]
    full_disk[0] = False
    assert here.take() == []
    assert here.await_reply("1", 0) == Reply(request_id="1", said="done")
    assert names(folder) == []


def test_a_full_disk_is_said_to_who_asks(here: RequestFolder, full_disk: list[bool]) -> None:
    with pytest.raises(StateError, match=r"cannot be left: No space left.*writable"):
        here.leave(request())


@pytest.mark.parametrize("text", ["rubbish", "{}"])
def test_a_request_that_cannot_be_taken_is_not_carried_out(
    here: RequestFolder, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """As in a folder that became read-only (root may write there, so the calls fail instead)."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    here.leave(request("2"))
    (folder / "1.taken").write_text(text)
    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with capture_logs() as logs:
        assert here.take() == []
        assert here.take() == []
    said = [entry["event"] for entry in logs if "why" in entry and entry["why"] == "Permission denied"]
    assert sorted(said) == ["a request cannot be set aside", "a request cannot be taken"]
    assert names(folder) == ["1.taken", "2.request"]


def test_a_folder_that_is_none_is_logged_once(here: RequestFolder, folder: Path) -> None:
    folder.touch()
    with capture_logs() as logs:
        assert here.take() == []
        assert here.take() == []
    assert [entry["why"] for entry in logs] == ["Not a directory"]
    with pytest.raises(StateError, match="cannot be left"):
        here.leave(request())
    with pytest.raises(StateError, match="the reply cannot be read: Not a directory"):
        here.await_reply("1", 0)


@pytest.mark.parametrize("text", ["", "[]", '{"request_id": 1, "said": "x"}'])
def test_a_damaged_reply_is_said(here: RequestFolder, folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "1.reply").write_text(text)
    with pytest.raises(StateError, match="reply is damaged"):
        here.await_reply("1", 0)


def test_replies_nobody_fetched_are_swept_in_the_end(
    here: RequestFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    for name, age in (("old", 25 * 3600), ("young", 60)):
        (folder / f"{name}.reply").write_text("{}")
        os.utime(folder / f"{name}.reply", (time.time() - age,) * 2)
    (folder / "fetched.reply").symlink_to(folder / "gone")
    here.answer(Reply(request_id="1", said="done"))
    assert names(folder) == ["1.reply", "fetched.reply", "young.reply"]
