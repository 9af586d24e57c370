"""What may be over in a minute is told apart from what stays until a person acts; ignored names count not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.errors import RejectedCase
from mqi_hpc.core.intake import Fault, IntakeResult
from mqi_hpc.infrastructure.config import default_machines
from mqi_hpc.infrastructure.intake import CaseReader
from mqi_hpc.infrastructure.intake import folder as folder_module
from mqi_hpc.infrastructure.intake.folder import (
    IGNORED,
    PassingFault,
    PassingRejection,
    Unreadable,
    ignored,
    read_file,
    walk,
)
from tests.support.cases import GAP, START, CaseFolder, make_case, read

Fail = Callable[[str, int], None]


@pytest.fixture
def case(tmp_path: Path) -> CaseFolder:
    return make_case(tmp_path / "P", beams=2, layers=2)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Make opening and listing of a name fail with an error number."""

    def begin(name: str, number: int) -> None:
        for function in ("open", "scandir"):
            real = getattr(os, function)

            def failing(path: Any, *rest: Any, real: Any = real) -> Any:
                if Path(path).name == name:
                    raise OSError(number, os.strerror(number))
                return real(path, *rest)

            monkeypatch.setattr(folder_module.os, function, failing)

    return begin


def faults(found: IntakeResult) -> list[Fault]:
    return [fault for one in found.rejected for fault in one.faults]


@pytest.mark.parametrize(
    ("number", "passing"),
    [
        (errno.EIO, True),
        (errno.ESTALE, True),
        (errno.ETIMEDOUT, True),
        (errno.ENOENT, True),
        (errno.EMFILE, True),
        (errno.EACCES, False),
        (errno.EPERM, False),
    ],
)
def test_a_file_system_that_does_not_answer_is_no_fault_of_the_case(
    case: CaseFolder, fail: Fail, number: int, passing: bool
) -> None:
    log = next(case.deliveries[2].glob("*.ptn"))
    # A plan without the usual name, too: else it would be missing, and the case refused for that.
    plan = case.plan.rename(case.study / "plan")
    for name in (log.name, "PlanInfo.txt", case.deliveries[2].name):
        fail(name, number)
        assert {type(fault) for fault in faults(read(case.folder)) if "cannot be read" in fault.message} == {
            PassingFault if passing else Fault
        }
    fail(plan.name, number)
    found = faults(read(case.folder))
    assert any(isinstance(fault, PassingFault) for fault in found) is passing


def test_a_file_that_grows_is_no_fault_of_the_case(case: CaseFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    log = next(case.deliveries[2].glob("*.ptn"))
    real = os.fstat

    def growing(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        with log.open("ab") as file:
            file.write(bytes(16))
        return status

    monkeypatch.setattr(folder_module.os, "fstat", growing)
    with pytest.raises(Unreadable) as caught:
        read_file(case.folder, case.relative(log), most=10**9)
    assert isinstance(caught.value.fault, PassingFault)
    assert "changes while it is read" in str(caught.value.fault)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, PassingRejection), (errno.EACCES, RejectedCase)])
def test_a_folder_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[RejectedCase]
) -> None:
    def is_dir(_: Path) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "is_dir", is_dir)
    with pytest.raises(RejectedCase, match="cannot be read") as caught:
        walk(str(tmp_path))
    assert type(caught.value) is kind


def test_names_that_a_site_ignores_are_not_read(case: CaseFolder) -> None:
    (case.study / "x.ptn.part").touch()
    (case.study / "old").mkdir()
    (case.study / "old" / "x.ptn").touch()
    reader = CaseReader(default_machines(), fraction_gap_seconds=GAP, ignore=["*.part", "old"])
    now = (START + timedelta(minutes=30)).timestamp()
    assert len(reader.read(str(case.folder), chosen=None, now=now).fractions) == 1
    assert read(case.folder).rejected


def test_patterns_are_of_whole_names() -> None:
    assert ignored("a.extracting", IGNORED)
    assert ignored(".hidden", IGNORED)
    assert not ignored("a.extracting.txt", IGNORED)
    assert not ignored("anything", ())
    assert not ignored("A.PART", ["*.part"])
    assert ignored("a\nb.part", ["*.part"])


def test_what_waits_says_until_when(case: CaseFolder) -> None:
    for path in case.deliveries[3].iterdir():
        path.unlink()
    case.deliveries[3].rmdir()
    (waiting,) = read(case.folder).waiting
    assert waiting.until == START + timedelta(days=1, minutes=1)
    assert waiting.deliveries == (case.relative(case.deliveries[2]),)
    assert not read(case.folder, now=waiting.until).rejected
    (rejected,) = read(case.folder, now=waiting.until + timedelta(seconds=1)).rejected
    assert rejected.deliveries == waiting.deliveries
