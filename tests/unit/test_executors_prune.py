"""Removal of delivered results: only what is still what was delivered, and never outside its folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.effects import Prune
from mqi_hpc.core.errors import ConfigurationError, ConnectionError
from mqi_hpc.core.pruning import DeliveredFile, LocalFate
from mqi_hpc.infrastructure.executors import prune
from mqi_hpc.infrastructure.executors.prune import LocalResults, Pruner
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown, Result

KEY = "abc123def456"
DOSE = "P-f01/j01/beam_0.dcm"


def delivered(root: Path, relative: str = DOSE, data: bytes = b"dose") -> DeliveredFile:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return DeliveredFile(str(path), len(data), hashlib.sha256(data).hexdigest())


def fates(found: Sequence[LocalFate]) -> list[str]:
    return [fate.fate for fate in found]


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_what_was_delivered_goes_with_its_folders(tmp_path: Path) -> None:
    files = [
        delivered(tmp_path),
        delivered(tmp_path, "P-f01/j01/logs/beams.log", b"tail"),
        delivered(tmp_path, "P-f01/j02/beam ü $(x).dcm", b""),
    ]
    other = delivered(tmp_path, "Q-f01/j01/beam_0.dcm")
    results = LocalResults(tmp_path)
    before = listing(tmp_path)
    assert fates(results.look(files)) == ["removed"] * 3
    assert listing(tmp_path) == before
    assert fates(results.remove(files)) == ["removed"] * 3
    assert listing(tmp_path) == ["Q-f01", "Q-f01/j01", "Q-f01/j01/beam_0.dcm"]
    assert Path(other.path).read_bytes() == b"dose"
    assert fates(results.remove(files)) == ["gone"] * 3
    assert fates(results.remove([])) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"dosE", "SHA-256"), (b"", "has 0 bytes, 4 were delivered"), (b"dose and a note", "has 15 bytes")],
)
def test_what_a_person_changed_is_left(tmp_path: Path, data: bytes, words: str) -> None:
    file = delivered(tmp_path)
    Path(file.path).write_bytes(data)
    for found in (LocalResults(tmp_path).look([file]), LocalResults(tmp_path).remove([file])):
        assert found[0].fate == "left"
        assert words in found[0].why
    assert Path(file.path).read_bytes() == data


def test_what_a_person_put_beside_it_is_left(tmp_path: Path) -> None:
    file = delivered(tmp_path)
    note = tmp_path / "P-f01/report.txt"
    note.write_text("mine")
    assert fates(LocalResults(tmp_path).remove([file])) == ["removed"]
    assert listing(tmp_path) == ["P-f01", "P-f01/report.txt"]


def test_a_file_of_no_known_digest_is_left(tmp_path: Path) -> None:
    file = delivered(tmp_path)
    (fate,) = LocalResults(tmp_path).remove([DeliveredFile(file.path)])
    assert (fate.fate, Path(file.path).exists()) == ("left", True)


@pytest.mark.parametrize(
    "path",
    [
        "{up}/outside.dcm",
        "{root}/../outside.dcm",
        "{root}/P/../../outside.dcm",
        "{root}//P/outside.dcm",
        "{root}/beam_0.dcm",
        "{root}/P-f01/beam_0.dcm",
        "{root}-other/P-f01/j01/beam_0.dcm",
        "P-f01/j01/beam_0.dcm",
        "{root}",
        "",
    ],
)
def test_nothing_outside_a_jobs_folder_is_touched(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "results"
    monkeypatch.chdir(root.parent)
    for place in ("results/beam_0.dcm", "results/P-f01/beam_0.dcm", "outside.dcm", "P-f01/j01/beam_0.dcm"):
        file = delivered(tmp_path, place)
    before = listing(tmp_path)
    asked = DeliveredFile(path.format(up=tmp_path, root=root), file.bytes, file.sha256)
    (fate,) = LocalResults(root).remove([asked])
    assert (fate.fate, fate.why) == ("left", "outside paths.local_results")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("linked", ["P-f01", "P-f01/j01", DOSE])
def test_no_link_is_followed(tmp_path: Path, linked: str) -> None:
    root = tmp_path / "results"
    file = delivered(root)
    (root / linked).rename(tmp_path / "elsewhere")
    (root / linked).symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path)
    (fate,) = LocalResults(root).remove([file])
    assert fate.fate in {"left", "failed"}
    assert listing(tmp_path) == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_left(tmp_path: Path, make: Any) -> None:
    file = delivered(tmp_path)
    Path(file.path).unlink()
    make(file.path)
    (fate,) = LocalResults(tmp_path).remove([file])
    assert (fate.fate, fate.why) == ("left", "no regular file any more")
    assert os.path.lexists(file.path)


def test_a_results_folder_that_is_a_link_by_the_sites_wish_is_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    root = tmp_path / "results"
    root.symlink_to(tmp_path / "disk")
    assert fates(LocalResults(root).remove([delivered(root)])) == ["removed"]
    assert listing(tmp_path / "disk") == []


def test_a_results_folder_that_is_not_there_says_nothing_of_its_files(tmp_path: Path) -> None:
    file = DeliveredFile(str(tmp_path / "away" / DOSE), 4, "a" * 64)
    with pytest.raises(ConfigurationError, match=r"away: results cannot be looked at.*paths\.local_results"):
        LocalResults(tmp_path / "away").look([file])


def test_one_file_that_cannot_be_removed_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [delivered(tmp_path), delivered(tmp_path, "P-f01/j01/beam_1.dcm")]
    unlink = os.unlink

    def refusing(name: str, **options: Any) -> None:
        if name == "beam_0.dcm":
            raise PermissionError(13, "Permission denied")
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", refusing)
    found = LocalResults(tmp_path).remove(files)
    assert [(fate.fate, fate.why) for fate in found] == [("failed", "Permission denied"), ("removed", "")]
    assert listing(tmp_path) == ["P-f01", "P-f01/j01", "P-f01/j01/beam_0.dcm"]


def test_a_file_that_is_replaced_while_it_is_looked_at_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = delivered(tmp_path)

    class Replacing:
        """A digest in whose time a person saves the file anew."""

        def __init__(self) -> None:
            self._real = sha256()

        def update(self, block: bytes) -> None:
            self._real.update(block)
            fresh = tmp_path / "fresh"
            fresh.write_bytes(b"mine")
            fresh.replace(file.path)

        def hexdigest(self) -> str:
            return self._real.hexdigest()

    sha256 = hashlib.sha256
    monkeypatch.setattr(prune.hashlib, "sha256", Replacing)
    (fate,) = LocalResults(tmp_path).remove([file])
    assert (fate.fate, fate.why) == ("left", "changed while it was looked at")
    assert Path(file.path).read_bytes() == b"mine"


def test_folders_that_refuse_to_go_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [delivered(tmp_path), DeliveredFile(str(tmp_path / "Q-f01/j01/beam_0.dcm"), 4, "a" * 64)]

    def refusing(name: str, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rmdir", refusing)
    assert fates(LocalResults(tmp_path).remove(files)) == ["removed", "gone"]
    assert listing(tmp_path) == ["P-f01", "P-f01/j01"]


@given(st.text(st.characters(codec="utf-8")))
def test_no_path_makes_it_stumble(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    root = tmp_path_factory.getbasetemp() / "some"
    root.mkdir(exist_ok=True)
    for asked in (path, f"{root}/{path}", f"{root}/P/j01/{path}"):
        assert fates(LocalResults(root).remove([DeliveredFile(asked, 1, "a" * 64)]))[0] != "removed"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    file = delivered(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        LocalResults(tmp_path).look([file, DeliveredFile(str(tmp_path / "x/y/z"), 1, "a")])
    LocalResults(tmp_path).remove([file, DeliveredFile(str(tmp_path / "x/y/z"), 1, "a")])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# The removal on the cluster, where its answer is cut; the script itself has a contract of its own


class Answering:
    """A shell that says `words` after the script's nonce and ends with `exit_code`."""

    target = "mqi@login:22"

    def __init__(self, *words: str, exit_code: int = 0, error: Exception | None = None) -> None:
        self.words, self.exit_code, self.error = words, exit_code, error

    def run(self, argv: Sequence[str], *, sink: Any, stdin: Iterable[bytes] = (), **_: Any) -> Result:
        for line in self.words:
            sink(f"\n\x1e{argv[4]} {line}\n".encode())
        if self.error is not None:
            raise self.error
        return Result(stdout=b"", stderr=b"", exit_code=self.exit_code)

    def close(self) -> None: ...


def pruned_by(shell: Answering) -> str:
    pruner = Pruner(shell, workspace="/w", instance="i1")
    return pruner.prune(Prune(case_id=KEY, folder=f"/w/{KEY}")).output


def test_a_script_that_broke_off_before_the_move_touched_nothing() -> None:
    with pytest.raises(ConnectionError) as caught:
        pruned_by(Answering("SIZE 4", exit_code=1))
    assert not isinstance(caught.value, OutcomeUnknown)


@pytest.mark.parametrize(
    "shell",
    [
        Answering("SIZE 4", "MOVING", exit_code=1),
        Answering("SIZE 4", "MOVING", "MOVED", exit_code=129),
        Answering("SIZE 4", "MOVING", "MOVED"),
        Answering("SIZE 4"),
        Answering(),
        Answering(exit_code=124),
        Answering("MOVING", error=ConnectionError("the link was cut")),
        Answering(error=OutcomeUnknown("the link was cut")),
    ],
)
def test_a_script_that_broke_off_later_is_open(shell: Answering) -> None:
    with pytest.raises(OutcomeUnknown):
        pruned_by(shell)


def test_a_command_that_was_not_run_touched_nothing() -> None:
    with pytest.raises(ConnectionError) as caught:
        pruned_by(Answering(error=ConnectionError("no route")))
    assert not isinstance(caught.value, OutcomeUnknown)


@pytest.mark.parametrize("size", ["", "x", "-1", "²"])
def test_a_size_that_is_none_is_not_told(size: str) -> None:
    assert '"bytes": null' in pruned_by(Answering(f"SIZE {size}", "MOVING", "MOVED", "DONE", "END"))
