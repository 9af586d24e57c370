"""Answers of the cluster to an upload that no healthy one gives."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.effects import Download, ResultFile, Upload
from mqi_hpc.core.errors import ConnectionError, IntegrityError, ProcessingError
from mqi_hpc.core.models import InputFile
from mqi_hpc.infrastructure.executors import TransferExecutor
from mqi_hpc.infrastructure.executors.shell import Result
from mqi_hpc.infrastructure.executors.upload import WorkspaceRefused

KEY = "abc123def456"
OWNER = f"OWNER {base64.b64encode(b'i1').decode()}"


class FakeShell:
    """Answers each command with the next of `scripts`, lines as a script would say them."""

    target = "mqi@login:22"

    def __init__(self, *scripts: list[str]) -> None:
        self.scripts = list(scripts)
        self.sent: list[bytes] = []

    def run(self, argv: Sequence[str], *, stdin: Iterable[bytes] = (), **_: Any) -> Result:
        self.sent.append(b"".join(stdin))
        lines = [f"\n\x1e{argv[4]} {line}\n" for line in [*self.scripts.pop(0), "END"]]
        return Result(stdout="".join(lines).encode(), stderr=b"", exit_code=0)

    def close(self) -> None: ...


def transfer(shell: FakeShell, home: Path) -> TransferExecutor:
    return TransferExecutor(
        shell, workspace="/ws", instance="i1", results=home / "results", min_free_bytes=0, timeout=1
    )


def effect(home: Path, **changes: Any) -> Upload:
    (home / "p").write_bytes(b"plan")
    plan = InputFile(remote="plan.dcm", local="p", bytes=4, sha256=hashlib.sha256(b"plan").hexdigest())
    values: dict[str, Any] = {
        "case_id": KEY,
        "job_id": f"{KEY}-j01",
        "source": str(home),
        "input_folder": f"/ws/{KEY}/input",
        "inputs": (plan,),
        "job_folder": f"/ws/{KEY}/j01",
        "files": {"chain.json": b"{}"},
    }
    return Upload(**{**values, **changes})


def test_an_upload_that_ends_early_is_an_outage(tmp_path: Path) -> None:
    look = [OWNER, "SPACE 1000", "STATE input absent", "STATE j01 absent"]
    with pytest.raises(ConnectionError, match=r"ended early, with \['input'\] in place"):
        transfer(FakeShell(look, ["DONE input"]), tmp_path).upload(effect(tmp_path))


@pytest.mark.parametrize("space", ["SPACE", "SPACE -", "SPACE 1.5"])
def test_a_disk_whose_space_is_not_told_is_an_outage(tmp_path: Path, space: str) -> None:
    look = [OWNER, space, "STATE input absent", "STATE j01 absent"]
    with pytest.raises(ConnectionError, match="df did not tell"):
        transfer(FakeShell(look), tmp_path).upload(effect(tmp_path))


@pytest.mark.parametrize("owner", ["OWNER", "OWNER ", "OWNER ?"])
def test_an_owner_that_cannot_be_read_is_not_us(tmp_path: Path, owner: str) -> None:
    with pytest.raises(WorkspaceRefused, match="unreadable"):
        transfer(FakeShell([owner]), tmp_path).upload(effect(tmp_path))


def test_a_state_we_do_not_know_is_refused(tmp_path: Path) -> None:
    look = [OWNER, "SPACE 1000", "STATE input new", "STATE j01 absent"]
    with pytest.raises(IntegrityError, match="its state is 'new'"):
        transfer(FakeShell(look), tmp_path).upload(effect(tmp_path))


def test_what_is_sent_is_only_what_is_missing(tmp_path: Path) -> None:
    look = [OWNER, "SPACE 1000", "STATE input same", "STATE j01 absent"]
    shell = FakeShell(look, ["DONE j01"])
    transfer(shell, tmp_path).upload(effect(tmp_path))
    assert b"chain.json" in shell.sent[1]
    assert b"plan.dcm" not in shell.sent[1]


@pytest.mark.parametrize("name", ["back\\slash", "lone \udcff surrogate"])
def test_a_name_no_manifest_can_hold_is_refused_in_words(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProcessingError, match="cannot be listed in a manifest"):
        transfer(FakeShell(), tmp_path).upload(effect(tmp_path, files={name: b""}))


def test_two_logs_of_one_name_are_refused(tmp_path: Path) -> None:
    download = Download(
        case_id=KEY, job_id="j", job_folder="/ws/k/j01", folder="f", results=(), logs=("logs/a", "more/a")
    )
    with pytest.raises(ProcessingError, match="two logs"):
        transfer(FakeShell(), tmp_path).download(download)


def test_logs_of_a_folder_that_is_gone_are_none(tmp_path: Path) -> None:
    download = Download(
        case_id=KEY, job_id="j", job_folder="/ws/k/j01", folder="f", results=(), logs=("logs/a",)
    )
    output = transfer(FakeShell(["GONE"]), tmp_path).download(download).output
    assert output == '{"files": [], "logs": {}, "digests": {}}'


def test_an_error_of_the_local_disk_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mqi_hpc.infrastructure.executors.download.Downloader._fetch", fails)
    wanted = ResultFile(remote="results/x", local="x", bytes=1, sha256="0" * 64)
    download = Download(
        case_id=KEY, job_id="j", job_folder="/ws/k/j01", folder="f", results=(wanted,), logs=()
    )
    with pytest.raises(OSError, match="No space"):
        transfer(FakeShell(), tmp_path).download(download)
