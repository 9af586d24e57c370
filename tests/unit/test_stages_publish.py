"""Writing so that it lasts: whole lines, one winner, nothing left beside."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mqi_hpc.stages import publish as module
from mqi_hpc.stages.publish import append_line, make_folder, publish, read_whole, write_new


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_private_and_made_with_their_parents(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700


def test_a_file_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a")


def test_a_folder_that_another_task_makes_first_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path.mkdir

    def beaten(self: Path, mode: int = 0o777) -> None:
        made(self, mode)
        made(self, mode)

    monkeypatch.setattr(Path, "mkdir", beaten)
    make_folder(tmp_path / "dose")
    assert (tmp_path / "dose").is_dir()


@pytest.mark.parametrize(("code", "raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_sync_folders_is_told_from_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raised: bool
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError) if raised else contextlib.nullcontext():
        make_folder(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_a_new_file_is_private_and_never_overwrites(tmp_path: Path) -> None:
    write_new(tmp_path / "f", b"one")
    assert mode(tmp_path / "f") == 0o600
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_bytes() == b"one"


def test_published_content_stands_whole_and_private_and_nothing_else(tmp_path: Path) -> None:
    assert publish(b"mine\n", tmp_path / "claim")
    assert names(tmp_path) == ["claim"]
    assert (tmp_path / "claim").read_bytes() == b"mine\n"
    assert mode(tmp_path / "claim") == 0o600
    assert (tmp_path / "claim").stat().st_nlink == 1


def test_the_first_writer_wins_for_ever(tmp_path: Path) -> None:
    assert publish(b"first\n", tmp_path / "claim")
    assert not publish(b"second\n", tmp_path / "claim")
    assert (tmp_path / "claim").read_bytes() == b"first\n"
    assert names(tmp_path) == ["claim"]


def test_of_many_writers_at_once_exactly_one_wins(tmp_path: Path) -> None:
    for name in range(20):
        target = tmp_path / str(name)
        contents = [f"{n}\n".encode() for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda content, target=target: publish(content, target), contents))
        assert won.count(True) == 1
        assert target.read_bytes() == contents[won.index(True)]


def test_a_link_whose_answer_got_lost_is_ours_if_our_words_are_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    assert publish(b"mine\n", tmp_path / "claim")


def test_a_link_that_cannot_be_tried_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(target))

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(PermissionError):
        publish(b"mine\n", tmp_path / "claim")
    assert names(tmp_path) == []


def test_a_dangling_link_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "claim").symlink_to("nowhere")
    assert not publish(b"mine\n", tmp_path / "claim")
    assert names(tmp_path) == ["claim"]


def test_what_reads_back_otherwise_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_whole", lambda path: b"")
    with pytest.raises(OSError, match="read back"):
        publish(b"mine\n", tmp_path / "claim")
    assert names(tmp_path) == []


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    append_line(tmp_path / "s", b"one\n")
    append_line(tmp_path / "s", b"two\n")
    assert (tmp_path / "s").read_bytes() == b"one\ntwo\n"
    assert mode(tmp_path / "s") == 0o600


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Limit how large this process's files may grow, as a disk that fills up does.

    For a moment only: the test runner's own output may be such a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_does_not_fit_leaves_none_of_itself(tmp_path: Path) -> None:
    append_line(tmp_path / "s", b"one\n")
    # Half of the line fits.
    with limited(6), pytest.raises(OSError, match="No space left on device"):
        append_line(tmp_path / "s", b"second\n")
    # Nothing of it fits.
    with limited(4), pytest.raises(OSError, match="File too large"):
        append_line(tmp_path / "s", b"third\n")
    assert (tmp_path / "s").read_bytes() == b"one\n"


def test_content_that_does_not_fit_is_not_published(tmp_path: Path) -> None:
    with limited(4), pytest.raises(OSError, match="File too large"):
        publish(b"too much\n", tmp_path / "claim")
    assert names(tmp_path) == []


def test_reading_tells_absent_from_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert read_whole(tmp_path / "empty") == b""
    assert read_whole(tmp_path / "absent") is None
