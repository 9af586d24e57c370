"""The survey's script on this machine: what it tells of a case's folder, and of each way it may be spoilt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.core.adoption import CaseRemains, JobRemains
from mqi_hpc.core.effects import Survey
from mqi_hpc.core.errors import ConfigurationError, ConnectionError, ProcessingError
from mqi_hpc.infrastructure.executors import LocalExecutor
from mqi_hpc.infrastructure.executors.script import Answer
from mqi_hpc.infrastructure.executors.survey import Surveyor
from mqi_hpc.infrastructure.executors.upload import WorkspaceRefused
from mqi_hpc.records.layout import MANIFEST
from mqi_hpc.records.manifest import format_manifest

KEY = "abcdefghijkl"
FILES = {
    "chain.json": b'{"a": 1}\n',
    "submit.sh": b"#!/bin/bash\n",
    "beam_2.in": b"x",
    "stages.pyz": b"\0\xff",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A case's folder with an input and j01, in a workspace of ours."""
    (tmp_path / ".owner").write_text("i1\n")
    case = tmp_path / KEY
    (case / "input").mkdir(parents=True)
    (case / "input" / MANIFEST).write_bytes(b"m")
    job(case, "j01")
    return case


@pytest.fixture
def surveyor(tmp_path: Path) -> Iterator[Surveyor]:
    shell = LocalExecutor()
    yield Surveyor(shell, workspace=str(tmp_path), instance="i1", timeout=60)
    shell.close()


def job(case: Path, name: str) -> Path:
    place = case / name
    (place / "status").mkdir(parents=True)
    for file, text in FILES.items():
        (place / file).write_bytes(text)
    digests = {file: hashlib.sha256(text).hexdigest() for file, text in FILES.items()}
    (place / MANIFEST).write_text(format_manifest(digests))
    return place


def found(surveyor: Surveyor, folder: Path) -> CaseRemains:
    completion = surveyor.survey(Survey(case_id=KEY, job_id=f"{KEY}-j01", folder=str(folder)))
    assert completion.error is None
    assert isinstance(completion.payload, CaseRemains)
    return completion.payload


def only(surveyor: Surveyor, folder: Path) -> JobRemains:
    (one,) = found(surveyor, folder).jobs
    return one


def test_a_job_with_its_receipts_and_claims(surveyor: Surveyor, folder: Path) -> None:
    (folder / "j01" / "receipt.interpret").write_text("name 5 1800000000\n")
    (folder / "j01" / "receipt.beams").write_text("")
    (folder / "j01" / "receipt-beams.Ab12Cd34").write_text("half made")
    (folder / "j01" / "claim.interpret-0").write_text("x")
    (folder / "j01" / "a name\nof two lines").write_text("x")
    remains = found(surveyor, folder)
    assert remains.input_digest == hashlib.sha256(b"m").hexdigest()
    (one,) = remains.jobs
    assert (one.name, one.fault) == ("j01", "")
    assert {name: one.files[name] for name in one.files if name != MANIFEST} == {
        "chain.json": FILES["chain.json"],
        "submit.sh": FILES["submit.sh"],
    }
    assert one.files[MANIFEST] == (folder / "j01" / MANIFEST).read_bytes()
    assert one.receipts == {"interpret": "name 5 1800000000", "beams": ""}
    assert one.claims == ("claim.interpret-0",)
    assert one.withdrawn is False


def test_the_mark_of_a_job_that_was_called_off(surveyor: Surveyor, folder: Path) -> None:
    (folder / "j01" / "withdrawn").touch()
    assert only(surveyor, folder).withdrawn is True


def test_what_an_upload_under_way_has_there_is_no_job(surveyor: Surveyor, folder: Path) -> None:
    for name in ("j02.part-0123", "trash-0123-1", "j1", "notes"):
        (folder / name).mkdir()
    assert only(surveyor, folder).name == "j01"


def test_all_jobs_are_told(surveyor: Surveyor, folder: Path) -> None:
    job(folder, "j02")
    job(folder, "j10")
    assert sorted(one.name for one in found(surveyor, folder).jobs) == ["j01", "j02", "j10"]


def test_an_input_that_is_not_there(surveyor: Surveyor, folder: Path) -> None:
    (folder / "input" / MANIFEST).unlink()
    assert found(surveyor, folder).input_digest is None
    (folder / "input").rmdir()
    assert found(surveyor, folder).input_digest is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda place: (place / MANIFEST).unlink(), "no MANIFEST"),
        (lambda place: (place / "beam_2.in").write_bytes(b"y"), "beam_2.in"),
        (lambda place: (place / "stages.pyz").unlink(), "stages.pyz"),
        (lambda place: (place / MANIFEST).write_text(""), "MANIFEST"),
    ],
)
def test_a_job_that_is_not_as_it_was_sent(
    surveyor: Surveyor, folder: Path, spoil: object, words: str
) -> None:
    assert callable(spoil)
    spoil(folder / "j01")
    one = only(surveyor, folder)
    assert words in one.fault
    assert one.files == {}


def test_files_that_cannot_be_read_are_not_taken_for_wrong_ones(
    surveyor: Surveyor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "sha256sum").write_text(
        "#!/bin/sh\n[ $# -gt 0 ] || exec /usr/bin/sha256sum\n"
        "echo 'sha256sum: chain.json: Input/output error' >&2\n"
        "echo 'chain.json: FAILED open or read'\nexit 1\n"
    )
    (bin_ / "sha256sum").chmod(0o700)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    with pytest.raises(ConnectionError, match="Input/output error"):
        found(surveyor, folder)


@pytest.mark.parametrize("name", ["j01", "input"])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_none(
    surveyor: Surveyor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "ls").write_text(
        f"#!/bin/sh\ncase $* in *'{name}/') echo 'ls: Stale file handle' >&2; exit 2 ;; esac\n"
        'exec /bin/ls "$@"\n'
    )
    (bin_ / "ls").chmod(0o700)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    with pytest.raises(ConnectionError, match="Stale file handle"):
        found(surveyor, folder)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_job_that_is_no_folder(surveyor: Surveyor, folder: Path, kind: str) -> None:
    (folder / "j01").rename(folder / "elsewhere")
    if kind == "link":
        (folder / "j01").symlink_to("elsewhere")
    else:
        (folder / "j01").write_text("x")
    assert only(surveyor, folder).fault == "it is no folder"


def test_a_workspace_of_another(surveyor: Surveyor, folder: Path) -> None:
    (folder.parent / ".owner").write_text("i2\n")
    with pytest.raises(WorkspaceRefused, match="i2"):
        found(surveyor, folder)


def test_a_workspace_or_a_case_that_is_gone(surveyor: Surveyor, folder: Path) -> None:
    folder.rename(folder.parent / "away")
    with pytest.raises(ConnectionError, match="case's folder"):
        found(surveyor, folder)
    (folder.parent / ".owner").unlink()
    with pytest.raises((ConnectionError, ConfigurationError)):
        found(surveyor, folder)


@pytest.mark.parametrize("path", ["/elsewhere/abcdefghijkl", "{}/ABC", "{}/abcdefghijkl/j01"])
def test_no_folder_but_a_cases_is_read(surveyor: Surveyor, tmp_path: Path, path: str) -> None:
    with pytest.raises(ProcessingError, match="is no case's folder"):
        surveyor.survey(Survey(case_id=KEY, job_id=f"{KEY}-j01", folder=path.format(tmp_path)))


def test_a_file_that_came_in_pieces_is_no_file(surveyor: Surveyor) -> None:
    answers = [Answer("JOB", ("j01",)), Answer("FILE", ("j01", "chain.json", "abc"))]
    with pytest.raises(ConnectionError, match="pieces"):
        surveyor._remains(answers)


def test_warnings_of_the_loader_are_no_part_of_what_is_there(
    surveyor: Surveyor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = found(surveyor, folder)
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    assert found(surveyor, folder) == before
