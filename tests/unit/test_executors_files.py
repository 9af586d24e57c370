"""Local files on their way out and in: checked, confined, and never half there."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.effects import ResultFile
from mqi_hpc.core.errors import ConnectionError, IntegrityError, ProcessingError, ResourceError
from mqi_hpc.core.models import InputFile
from mqi_hpc.infrastructure.executors import download, files
from mqi_hpc.infrastructure.executors.files import (
    Arrival,
    check_own,
    check_relative,
    make_folders,
    read_registered,
    remove_parts,
    tar_end,
    tar_file,
    tar_folder,
)

NONCE = "feedbeef"


def registered(data: bytes, local: str = "a") -> InputFile:
    return InputFile(remote="r", local=local, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("path", ["", ".", "..", "a/../b", "/a", "a/", "a//b", "a/.", "a\0b"])
def test_paths_that_leave_their_folder_are_refused(path: str) -> None:
    with pytest.raises(ProcessingError, match="stays in its folder"):
        check_relative(path)


@pytest.mark.parametrize("path", ["a\nb", "a\tb", "\x7f", "\x1e"])
def test_our_own_names_hold_no_control_character(path: str) -> None:
    assert check_relative(path) == path
    with pytest.raises(ProcessingError, match="control character"):
        check_own(path)


@given(
    st.dictionaries(st.text("abc é束'$ -", min_size=1, max_size=200), st.binary(max_size=3000), max_size=5)
)
def test_what_is_packed_unpacks(contents: dict[str, bytes]) -> None:
    archive = b"".join(
        [
            tar_folder("top"),
            *(b for name, data in contents.items() for b in tar_file(f"top/{name}", len(data), iter([data]))),
            tar_end(),
        ]
    )
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {m.name[4:]: tar.extractfile(m).read() for m in tar.getmembers()[1:]}  # type: ignore[union-attr]
        assert {m.mode for m in tar.getmembers()[1:]} <= {0o600}
    assert found == contents


@pytest.mark.parametrize("local", ["a", "sub/a", "new\nline", "-x", "ü", os.fsdecode(b"\xff")])
def test_registered_bytes_are_read(tmp_path: Path, local: str) -> None:
    data = os.urandom(300_000)
    (tmp_path / local).parent.mkdir(exist_ok=True)
    (tmp_path / local).write_bytes(data)
    assert b"".join(read_registered(str(tmp_path), registered(data, local))) == data


def test_a_file_that_grows_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    data = b"x" * 300_000
    (tmp_path / "a").write_bytes(data)
    reading = read_registered(str(tmp_path), registered(data))
    next(reading)
    with (tmp_path / "a").open("ab") as more:
        more.write(b"more")
    with pytest.raises(IntegrityError, match="has changed"):
        list(reading)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_server_that_fails_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "x").touch()
    monkeypatch.setattr(files.os, "open", fails)
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        list(read_registered(str(tmp_path), registered(b"x")))
    assert caught.value.errno == number


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for local in ("a", "sub", "sub/a", "none/a"):
        with pytest.raises(IntegrityError):
            list(read_registered(str(tmp_path), registered(b"x", local)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_arrival_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    dropped = Arrival(tmp_path / "a")
    dropped.write(b"half")
    assert [p.name.endswith(".part") for p in tmp_path.iterdir()] == [True]
    dropped.drop()
    assert list(tmp_path.iterdir()) == []
    kept = Arrival(tmp_path / "a")
    kept.write(b"who")
    kept.write(memoryview(b"le"))
    assert (kept.bytes, kept.hexdigest()) == (5, hashlib.sha256(b"whole").hexdigest())
    kept.keep()
    kept.drop()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"whole"}


def test_leavings_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".x.part", "x.part", ".x", "x"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x", "x", "x.part"]


def test_folders_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    made = make_folders(tmp_path / "results", "a b/ü")
    assert made == make_folders(tmp_path / "results", "a b/ü") == tmp_path / "results/a b/ü"
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "results").rglob("*")} == {0o700}


# The stream of a download


def result(name: str, data: bytes) -> ResultFile:
    return ResultFile(
        remote=f"results/{name}", local=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )


def say(*words: object) -> bytes:
    return f"\n\x1e{NONCE} {' '.join(map(str, words))}\n".encode()


def receive(folder: Path, contents: dict[str, bytes], stream: bytes, cuts: list[int]) -> None:
    wanted = [(result(name, data), folder / name) for name, data in contents.items()]
    receiver = download._Receiver(NONCE, wanted, "login:/job")
    points = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    try:
        for start, end in itertools.pairwise(points):
            receiver.feed(stream[start:end])
        receiver.finish()
    finally:
        receiver.close()


@given(
    st.lists(st.binary(max_size=300) | st.just(say("FILE", 0, 5) + say("END")), max_size=4),
    st.binary(max_size=80),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_files_come_whole_however_the_stream_is_cut(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], noise: bytes, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    named = {f"{n}.dcm": data for n, data in enumerate(contents)}
    stream = b"".join(
        [
            noise.replace(NONCE.encode(), b""),
            *(say("FILE", n, len(d)) + d for n, d in enumerate(contents)),
            say("END"),
        ]
    )
    receive(folder, named, stream, cuts)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == named


@given(st.integers(0, 200), st.lists(st.integers(0, 300), max_size=5))
def test_a_stream_that_is_cut_off_delivers_only_whole_files(
    tmp_path_factory: pytest.TempPathFactory, length: int, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    contents = {"0.dcm": b"a" * 20, "1.dcm": b"b" * 30}
    stream = b"".join(say("FILE", n, len(d)) + d for n, d in enumerate(contents.values())) + say("END")
    cut = stream[: min(length, len(stream) - 1)]
    with pytest.raises(ConnectionError, match="broke off"):
        receive(folder, contents, cut, cuts)
    assert all(contents[p.name] == p.read_bytes() for p in folder.iterdir())


@pytest.mark.parametrize(
    ("stream", "kind", "words"),
    [
        (say("END"), ConnectionError, "fewer files"),
        (say("FILE", 1, 4), ConnectionError, "out of order"),
        (say("FILE"), ConnectionError, "out of order"),
        (say("FILE", 0, 4) + b"data" + say("FILE", 1, 4), ConnectionError, "out of order"),
        (say("FILE", 0, 5), IntegrityError, "has 5 bytes, its record says 4"),
        (say("FILE", 0, 4) + b"dat4", IntegrityError, "has SHA-256"),
        (say("ABSENT", 0), IntegrityError, "is not there"),
        (say("GONE"), IntegrityError, "folder of the job is not there"),
        (say("FAIL", "eA==", "Tm8gc3BhY2UgbGVmdCBvbiBkZXZpY2U="), ResourceError, "x failed on the cluster"),
    ],
)
def test_a_stream_that_is_not_as_asked_is_refused(
    tmp_path: Path, stream: bytes, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        receive(tmp_path, {"a.dcm": b"data"}, stream, [])
    assert {p.name for p in tmp_path.iterdir()} <= {"a.dcm"}


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    wanted = [(result("a.dcm", b"data"), tmp_path / "a.dcm")]
    receiver = download._Receiver(NONCE, wanted, "login:/job")
    receiver.feed(say("FILE", 0, 4) + b"da")
    (tmp_path / "a.dcm").write_bytes(b"data")
    before = (tmp_path / "a.dcm").stat().st_ino
    receiver.feed(b"ta")
    assert (tmp_path / "a.dcm").stat().st_ino == before

    receiver = download._Receiver(NONCE, wanted, "login:/job")
    receiver.feed(say("FILE", 0, 4) + b"da")
    (tmp_path / "a.dcm").write_bytes(b"mine")
    with pytest.raises(IntegrityError, match="not replaced"):
        receiver.feed(b"ta")
    receiver.close()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.dcm": b"mine"}


@pytest.mark.parametrize("kind", ["link", "dangling", "folder"])
def test_only_a_regular_file_counts_as_present(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a.dcm"
    if kind == "folder":
        target.mkdir()
    else:
        if kind == "link":
            (tmp_path / "real").write_bytes(b"data")
        target.symlink_to(tmp_path / "real")
    with pytest.raises(IntegrityError, match="another file has this result's name"):
        download._present(result("a.dcm", b"data"), target)


def test_a_log_that_comes_broken_is_an_outage() -> None:
    with pytest.raises(ConnectionError, match=r"logs/x\.log came broken"):
        download._decoded("no base64!", "logs/x.log")
