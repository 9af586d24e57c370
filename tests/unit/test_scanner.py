"""The scan of real folders: what is read, what waits, what is gone, and what says nothing."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watchdog.events import FileOpenedEvent

from mqi_hpc.core.effects import Scan
from mqi_hpc.core.errors import RejectedCase
from mqi_hpc.core.intake import FolderRead, IntakeResult, Rejected, ScanReport, Waiting
from mqi_hpc.core.models import CaseStatus, SeenFolder
from mqi_hpc.core.readiness import SETTLE_SECONDS
from mqi_hpc.infrastructure.config import default_machines
from mqi_hpc.infrastructure.intake import CaseReader, FolderScanner
from mqi_hpc.infrastructure.intake import looks as looks_module
from mqi_hpc.infrastructure.intake.folder import PassingFault, PassingRejection
from mqi_hpc.infrastructure.intake.stirring import Stirring, file_system
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.intake_service import IntakeService
from tests.support.cases import GAP, START, deliver, edit_info, make_case
from tests.support.cluster import wait_until
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock

QUIET = 300.0


class Reader:
    """Says what it was told to say, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Any = IntakeResult()

    def read(self, folder: str, *, chosen: Sequence[str] | None, now: float) -> IntakeResult:
        self.asked.append(Path(folder).name)
        answer = self.answer(folder) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Deaf(Stirring):
    """Watches nothing: most tests are not about that."""

    def watch(self) -> None:
        self.how = "deaf"


class Here:
    """A scan root, its scanner, and the memory that a store would keep."""

    def __init__(self, root: Path, reader: Any = None, **options: Any) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.reader = reader or Reader()
        self.clock = Clock()
        self.known: dict[str, SeenFolder] = {}
        settings = {"ready": "either", "quiet_seconds": QUIET, "stirring": Deaf(root)} | options
        self.scanner = FolderScanner(root, self.reader, self.clock, **settings)

    def scan(self, after: float = 0.0) -> ScanReport:
        """Scan twice, as the daemon does where something stirs: a marker vouches at the second look."""
        first, second = self.once(after), self.once(SETTLE_SECONDS)
        return replace(second, read=first.read + second.read, gone=first.gone + second.gone)

    def once(self, after: float = 0.0) -> ScanReport:
        self.clock.time += after
        effect = Scan(known=tuple(self.known.values()))
        completion = self.scanner.scan(effect)
        assert completion.effect is effect
        assert completion.error is None
        report = completion.payload
        assert isinstance(report, ScanReport)
        self.known |= {read.seen.folder: read.seen for read in report.read}
        for folder in report.gone:
            del self.known[folder]
        return report

    def put(self, name: str, content: str = "x") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def ready(self, *names: str) -> None:
        for name in names:
            self.put(f"{name}/study/a")
            self.put(f"{name}/_CASE_READY", "")


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path / "root")


def names(report: ScanReport) -> list[str]:
    return [Path(read.seen.folder).name for read in report.read]


def waits(report: ScanReport) -> dict[str, str]:
    return {Path(folder).name: why for folder, why in report.waiting}


def test_marked_folders_are_read_once(here: Here) -> None:
    here.ready("P1", "P2")
    here.put("P3/a")
    here.put("a file")
    assert "looked at once more" in waits(here.once())["P1"]
    assert not here.scanner.stirred()
    here.clock.time += SETTLE_SECONDS
    assert here.scanner.stirred()
    report = here.once()
    assert not here.scanner.stirred()
    assert sorted(names(report)) == ["P1", "P2"]
    assert list(waits(report)) == ["P3"]
    assert report.read[0].seen.folder == str(here.root / "P1")
    for _ in range(3):
        assert here.scan(60).read == ()
    assert sorted(here.reader.asked) == ["P1", "P2"]


def test_a_quiet_folder_is_read_however_old_its_files_say_they_are(here: Here) -> None:
    file = here.put("P1/s/d/a")
    os.utime(file, (1, 1))
    assert "_CASE_READY" in waits(here.once())["P1"]
    assert names(here.once(QUIET - 1)) == []
    other = here.put("P1/s/d/b")
    os.utime(other, (1, 1))
    assert names(here.once(QUIET)) == []
    assert names(here.once(QUIET)) == ["P1"]


def test_deliveries_two_levels_down_days_later_need_a_newer_marker_or_the_quiet(here: Here) -> None:
    here.ready("P1")
    here.scan()
    late = here.put("P1/study/20260303/a")
    future = (here.root / "P1/_CASE_READY").stat().st_mtime + 100
    os.utime(late, (future, future))
    assert "newer than _CASE_READY" in waits(here.scan(60))["P1"]
    marker = here.root / "P1/_CASE_READY"
    os.utime(marker, (future, future))
    assert names(here.scan(60)) == ["P1"]


def test_names_that_are_ignored_count_for_nothing(tmp_path: Path) -> None:
    here = Here(tmp_path / "root", ignore=["*.part", "skip*"])
    here.ready("P1", "skipped", "P2.extracting", ".hidden")
    assert names(here.scan()) == ["P1"]
    here.put("P1/study/b.part")
    here.put("P1/study/c.zip.tmp")
    here.put("P1/skip/d")
    assert here.scan(60) == ScanReport()


def test_rooms(tmp_path: Path) -> None:
    here = Here(tmp_path / "root", room_level=True)
    here.ready("G1/P1", "G2/P1", "G2/P2")
    here.put("G1/stray")
    assert sorted(read.seen.folder for read in here.scan().read) == [
        str(here.root / name) for name in ("G1/P1", "G2/P1", "G2/P2")
    ]
    shutil.rmtree(here.root / "G2/P2")
    assert here.scan().gone == (str(here.root / "G2/P2"),)
    # A room whose share is away is an empty folder: its cases are not gone.
    shutil.move(here.root / "G1", tmp_path / "away")
    (here.root / "G1").mkdir()
    report = here.scan()
    assert report.gone == ()
    assert "is its share mounted" in waits(report)["G1"]
    (here.root / "G1").rmdir()
    assert here.scan().gone == ()
    shutil.rmtree(here.root / "G2")
    assert "is its share mounted" in here.scan().error


def test_a_room_that_cannot_be_listed_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here(tmp_path / "root", room_level=True)
    here.ready("G1/P1", "G2/P2")
    here.scan()
    here.ready("G2/P3")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("G1"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(looks_module.os, "scandir", scandir)
    report = here.scan()
    assert names(report) == ["P3"]
    assert report.gone == ()
    assert "Input/output error" in waits(report)["G1"]


def test_what_is_gone_is_told_and_forgotten(here: Here) -> None:
    here.ready("P1", "P2")
    here.scan()
    shutil.rmtree(here.root / "P1")
    assert here.scan().gone == (str(here.root / "P1"),)
    assert here.scan() == ScanReport()
    assert set(here.scanner._memory) == {str(here.root / "P2")}


def test_a_root_that_is_away_says_nothing(here: Here) -> None:
    here.ready("P1")
    here.scan()
    here.root.rename(here.root.with_name("away"))
    report = here.scan()
    assert "No such file or directory" in report.error
    assert report == ScanReport(error=report.error)
    # The folder on which a share is mounted stays, and is empty.
    here.root.mkdir()
    report = here.scan()
    assert "is its share mounted" in report.error
    assert report == ScanReport(error=report.error)
    here.root.rmdir()
    here.root.with_name("away").rename(here.root)
    assert here.scan() == ScanReport()


def test_an_empty_root_without_a_past_is_fine(here: Here) -> None:
    here.known["/elsewhere/P1"] = SeenFolder(folder="/elsewhere/P1", fingerprint="x")
    assert here.scan() == ScanReport()


def test_links_are_not_followed_and_said_once(here: Here, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/_CASE_READY").touch()
    (here.root / "link").symlink_to(tmp_path / "target")
    (read,) = here.scan().read
    assert read.result is None
    assert "is a symbolic link" in read.refused
    assert here.reader.asked == []
    assert here.scan() == ScanReport()
    (here.root / "link").unlink()
    here.ready("link")
    assert names(here.scan()) == ["link"]


def test_a_folder_that_changes_while_it_is_read_waits(here: Here) -> None:
    here.ready("P1")

    def growing(folder: str) -> IntakeResult:
        here.put(f"P1/study/{len(here.reader.asked)}")
        (here.root / "P1/_CASE_READY").touch()
        return IntakeResult(rejected=(Rejected("half of it"),))

    here.reader.answer = growing
    for _ in range(2):
        here.once()
        assert waits(here.once(SETTLE_SECONDS)) == {"P1": "it changes while it is read"}
    assert len(here.reader.asked) == 2
    here.reader.answer = lambda folder: shutil.rmtree(folder) or RejectedCase("gone")
    assert list(waits(here.scan())) == ["P1"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            IntakeResult(
                rejected=(Rejected("a"), Rejected("b", (PassingFault("a", "changes while it is read"),)))
            ),
            "a: changes while it is read",
        ),
        (PassingRejection("rejected: cannot be read: EIO"), "rejected: cannot be read: EIO"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output error"),
    ],
)
def test_what_may_be_over_in_a_minute_refuses_nothing(here: Here, answer: Any, why: str) -> None:
    here.ready("P1")
    here.reader.answer = answer
    assert waits(here.scan()) == {"P1": why}
    here.reader.answer = IntakeResult()
    assert names(here.scan()) == ["P1"]


def test_what_cannot_be_looked_at_now_waits(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.put("P1/a")
    here.scan()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if "P1" in str(path):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(looks_module.os, "scandir", scandir)
        assert waits(here.scan(QUIET)) == {"P1": "it cannot be looked at: Stale file handle"}
    # Nobody saw it stay as it was: the quiet begins anew.
    assert names(here.once(QUIET)) == []
    assert names(here.once(QUIET)) == ["P1"]
    here.put("P1/b")
    here.once()
    here.reader.answer = lambda _: monkeypatch.setattr(looks_module.os, "scandir", scandir) or IntakeResult()
    assert waits(here.scan(QUIET)) == {"P1": "it cannot be looked at: Stale file handle"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RejectedCase("rejected: too much"), "rejected: too much"),
        (OSError(errno.EACCES, "Permission denied"), "cannot be read: Permission denied"),
        (ZeroDivisionError("x"), "ZeroDivisionError (a fault of this program)"),
        (RecursionError("x"), "RecursionError (a fault of this program)"),
    ],
)
def test_one_folder_harms_no_other(here: Here, error: BaseException, said: str) -> None:
    here.ready("P1", "P2", "P3")
    here.reader.answer = lambda folder: error if folder.endswith("P2") else IntakeResult()
    found = {Path(read.seen.folder).name: read for read in here.scan().read}
    assert said in found["P2"].refused
    assert "rejected" in found["P2"].refused
    assert found["P2"].result is None
    assert found["P1"].result == found["P3"].result == IntakeResult()
    assert here.scan() == ScanReport()


def test_names_that_are_no_text(here: Here) -> None:
    folder = os.fsencode(here.root) + b"/P\xff"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder), "_CASE_READY").touch()
    here.put("P2/a")
    Path(os.fsdecode(os.fsencode(here.root) + b"/P2/\xfe")).touch()
    (here.root / "P2/_CASE_READY").touch()
    found = {Path(read.seen.folder).name: read for read in here.scan().read}
    assert "not UTF-8" in found[r"P\xff"].refused
    assert found["P2"].refused == ""
    assert here.scan() == ScanReport()
    assert all(seen.folder.isprintable() for seen in here.known.values())


def test_an_unfinished_fraction_is_read_again_when_it_is_too_old(here: Here) -> None:
    here.ready("P1")
    now = datetime.fromtimestamp(here.clock.now())  # noqa: DTZ006 - the machine's local time
    soon, later = now + timedelta(hours=2), now + timedelta(hours=3)
    here.reader.answer = IntakeResult(waiting=(Waiting("a"), Waiting("b", later), Waiting("c", soon)))
    (read,) = here.scan().read
    assert read.seen.again_at == soon.timestamp() + 1
    assert here.once(soon.timestamp() - here.clock.now()).read == ()
    # Whatever the clocks say, not at once again.
    (read,) = here.once(1).read
    assert read.seen.again_at == here.clock.now() + 60
    here.reader.answer = IntakeResult(waiting=(Waiting("a"),))
    assert here.once(60).read[0].seen.again_at is None


def test_a_scan_that_has_read_for_long_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    here = Here(tmp_path / "root", busy_seconds=10)
    for position, name in enumerate(("P3", "P1", "P2")):
        here.ready(name)
        for path in (here.root / name).rglob("*"):
            os.utime(path, (position, position))

    def slow(_: str) -> IntakeResult:
        here.clock.time += 6
        return IntakeResult()

    here.reader.answer = slow
    assert names(here.once()) == []
    report = here.once(QUIET)
    assert names(report) == ["P3", "P1"]
    assert waits(report) == {"P2": "others are read first"}
    here.clock.time += 35
    assert not here.scanner.stirred()
    here.clock.time += 1
    assert here.scanner.stirred()
    assert names(here.once()) == ["P2"]
    assert not here.scanner.stirred()


def test_a_scanner_that_is_closed_ends_at_the_next_folder(here: Here) -> None:
    here.ready("P1", "P2")
    here.reader.answer = lambda _: here.scanner.close() or IntakeResult()
    assert len(here.scan().read) == 1
    here.known.clear()
    assert here.scan() == ScanReport()


def test_permission_counts_as_a_change(here: Here) -> None:
    here.ready("P1")
    here.scan()
    (here.root / "P1/study/a").chmod(0o400)
    assert "as in a copy under way" in waits(here.scan())["P1"]
    (here.root / "P1/_CASE_READY").touch()
    assert names(here.scan()) == ["P1"]


def test_a_folder_that_may_not_be_gone_into_is_seen_as_such(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.ready("P1")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("study"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(looks_module.os, "scandir", scandir)
        assert names(here.scan()) == ["P1"]
        assert here.scan() == ScanReport()
    assert names(here.scan()) == ["P1"]


def test_folders_too_deep_and_too_many_files_are_the_readers_to_refuse(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.ready("P1")
    (here.root / "P1/1/2/3/4/5/6").mkdir(parents=True)
    here.ready("P2")
    monkeypatch.setattr(looks_module, "MOST_FILES", 1)
    assert sorted(waits(here.scan())) == sorted({"P1", "P2"} - set(here.reader.asked))


# On real case folders, with the real reader and the services behind


class Whole(Here):
    """Scans, and keeps what was found as the daemon does."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, CaseReader(default_machines(), fraction_gap_seconds=GAP), **options)
        self.clock.time = START.timestamp() + 600 - self.clock.now()
        self.store = MemoryStore()
        cases = CaseService(self.store, self.reader, self.clock, site="s", seed_base=1)
        self.intake = IntakeService(self.store, cases, self.clock, site="s")

    def step(self, after: float = 60.0) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for wait in (after, SETTLE_SECONDS):
            self.clock.time += wait
            completion = self.scanner.scan(Scan(known=self.intake.known()))
            assert isinstance(completion.payload, ScanReport)
            found += self.intake.apply(completion.payload).new
        return found

    @property
    def cases(self) -> dict[str, CaseStatus]:
        with self.store.transaction(write=False) as unit:
            return {case.label: case.status for case in unit.cases.all()}


def test_fractions_on_further_days_become_cases_of_their_own(tmp_path: Path) -> None:
    here = Whole(tmp_path / "root")
    case = make_case(here.root / "P1", beams=2)
    assert len(here.step()) == 1
    second = START + timedelta(days=1)
    here.clock.time += 86_400
    deliver(case, 3, second)
    (case.folder / "_CASE_READY").touch()
    assert here.step() == ()
    deliver(case, 2, second + timedelta(minutes=5))
    (case.folder / "_CASE_READY").touch()
    assert len(here.step()) == 1
    assert here.cases == {"P1-f01": CaseStatus.NEW, "P1-f02": CaseStatus.NEW}


def test_an_unfinished_fraction_is_refused_a_day_later_and_taken_when_it_is_whole(tmp_path: Path) -> None:
    here = Whole(tmp_path / "root")
    case = make_case(here.root / "P1", beams=2)
    shutil.move(case.deliveries[3], tmp_path / "late")
    here.step()
    assert here.cases == {}
    here.step(86_400 - 1000)
    assert here.cases == {}
    here.step(1000)
    assert here.cases == {"P1": CaseStatus.REJECTED}
    with here.store.transaction(write=False) as unit:
        (row,) = unit.cases.all()
    assert any("beam 3 has no whole delivery" in line for line in row.rejected)
    shutil.move(tmp_path / "late", case.deliveries[3])
    (case.folder / "_CASE_READY").touch()
    assert len(here.step()) == 1
    assert here.cases == {"P1-f01": CaseStatus.NEW}


def test_what_was_refused_is_looked_at_again_when_it_changes(tmp_path: Path) -> None:
    here = Whole(tmp_path / "root")
    case = make_case(here.root / "P1", beams=1)
    edit_info(case.deliveries[2], DICOM_PATIENT_ID="nobody")
    (case.folder / "_CASE_READY").touch()
    here.step()
    assert here.cases == {"P1": CaseStatus.REJECTED}
    edit_info(case.deliveries[2], DICOM_PATIENT_ID=None)
    (case.folder / "_CASE_READY").touch()
    here.step()
    assert here.cases == {"P1": CaseStatus.REJECTED}
    shutil.rmtree(case.folder)
    make_case(here.root / "P1", beams=1)
    here.step()
    assert here.cases == {"P1-f01": CaseStatus.NEW}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case that was written an hour ago, the marker last."""
    case = make_case(tmp_path_factory.mktemp("original") / "P1", beams=2, layers=2)
    for path in case.folder.rglob("*"):
        age = 3600 if path.name == "_CASE_READY" else 3700
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    return case.folder


@settings(max_examples=40)
@given(st.data())
def test_a_folder_half_copied_is_never_a_wrong_case_nor_refused(
    tmp_path_factory: pytest.TempPathFactory, original: Path, data: st.DataObject
) -> None:
    """Copied in any order and any pieces, with a scan at any moment that is less than the quiet away."""
    here = Whole(
        tmp_path_factory.mktemp("scan") / "root",
        ready=data.draw(st.sampled_from(["quiet", "either", "marker"])),
    )
    keep = data.draw(st.booleans(), label="keeps times")
    paths = [path for path in sorted(original.rglob("*")) if path.is_file() and path.name != "_CASE_READY"]
    paths = data.draw(st.permutations(paths))
    marker = original / "_CASE_READY"
    if here.scanner._ready != "quiet":
        # A copy that keeps times may bring the marker at any time; a new one comes last.
        place = data.draw(st.integers(0, len(paths))) if keep else len(paths)
        paths.insert(place, marker)
    scans = data.draw(st.lists(st.booleans(), min_size=2 * len(paths), max_size=2 * len(paths)))
    for number, path in enumerate(paths):
        target = here.root / "P1" / path.relative_to(original)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        # A marker is made in one piece; another file may be seen at any length.
        half = data.draw(st.integers(0, len(content) - 1)) if content else 0
        last = number == len(paths) - 1
        target.write_bytes(content[:half])
        if scans[2 * number] and content:
            here.step(10)
            assert here.cases == {}
        target.write_bytes(content)
        if keep:
            shutil.copystat(path, target)
        if scans[2 * number + 1] and not last:
            here.step(10)
            assert here.cases == {}
    for _ in range(3):
        here.step(QUIET)
    assert here.cases == {"P1-f01": CaseStatus.NEW}
    whole = CaseService(MemoryStore(), here.reader, here.clock, site="s", seed_base=1)
    (right,) = whole.register(str(original)).cases
    with here.store.transaction(write=False) as unit:
        (case,) = unit.cases.all()
    assert case.identity == right.identity


# Hearing of changes


@pytest.fixture
def stirring(tmp_path: Path) -> Iterator[Stirring]:
    root = tmp_path / "watched"
    root.mkdir()
    one = Stirring(root)
    yield one
    one.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_changes_are_heard_and_our_own_looks_are_not(stirring: Stirring) -> None:
    root = stirring._root
    (root / "P1").mkdir()
    (root / "P1/old").write_text("x")
    stirring.watch()
    assert stirring.how == "inotify, and polling"
    assert not stirring.stirred()
    (root / "P1/old").read_text()
    list(os.scandir(root / "P1"))
    (root / "P1/new").mkdir()
    wait_until(stirring.stirred, what="the new folder is heard of")
    # Events come in order: what is still heard now comes after all that was done above.
    stirring.clear()
    (root / "P1/new/file").write_text("x")
    wait_until(stirring.stirred, what="the new file is heard of")


def test_reading_stirs_nothing(stirring: Stirring, monkeypatch: pytest.MonkeyPatch) -> None:
    root = stirring._root
    (root / "file").write_text("x")
    stirring.watch()
    heard: list[str] = []
    real = stirring.on_any_event

    def listen(event: Any) -> None:
        heard.append(event.event_type)
        real(event)

    monkeypatch.setattr(stirring, "on_any_event", listen)
    (root / "file").read_text()
    list(os.scandir(root))
    (root / "last").touch()
    wait_until(stirring.stirred, what="the last file is heard of")
    assert not {"opened", "closed_no_write"} & set(heard)
    stirring.clear()
    real(FileOpenedEvent(str(root / "file")))
    assert not stirring.stirred()


def test_a_folder_mounted_again_is_watched_anew(stirring: Stirring) -> None:
    root = stirring._root
    stirring.watch()
    root.rmdir()
    stirring.watch()
    root.mkdir()
    # It may have the number of the old one.
    wait_until(lambda: stirring.watch() or not stirring._lost(), what="the loss is noticed")
    stirring.watch()
    stirring.clear()
    (root / "new").touch()
    wait_until(stirring.stirred, what="the new folder is watched")
    stirring.close()
    stirring.watch()
    assert stirring._observer is None


def test_what_is_closed_while_it_begins_ends(stirring: Stirring, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = stirring._begin
    monkeypatch.setattr(stirring, "_begin", lambda: stirring.close() or begin())
    threads = threading.active_count()
    stirring.watch()
    assert stirring._observer is None
    assert threading.active_count() <= threads


def test_without_inotify_it_polls_and_says_why(stirring: Stirring, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr("watchdog.observers.inotify.InotifyEmitter.on_thread_start", full)
    stirring.watch()
    threads = threading.active_count()
    for _ in range(20):
        stirring._watched = None
        stirring.watch()
        assert stirring.how == "polling: inotify cannot watch the folder: inotify watch limit reached"
    assert threading.active_count() == threads
    assert not stirring.stirred()
    stirring.stir()
    assert stirring.stirred()
    # No inotify instance left at all.
    monkeypatch.setattr("watchdog.observers.inotify.InotifyFD._create_inotify_fd", full)
    stirring._watched = None
    stirring.watch()
    assert stirring.how == "polling: inotify cannot watch the folder: inotify watch limit reached"


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("srv:/x {root} nfs4 rw 0 0\n", "nfs4"),
        ("/dev/a / ext4 rw 0 0\n//srv/x {parent} cifs rw 0 0\n", "cifs"),
        ("//srv/x {parent} cifs rw 0 0\n/dev/a / ext4 rw 0 0\nx {root}-not nfs rw 0 0\n", "cifs"),
        ("x {root} ext4 rw 0 0\ny {root} fuse.sshfs rw 0 0\nshort\n", "fuse.sshfs"),
        ("x /elsewhere nfs rw 0 0\n", ""),
    ],
)
def test_file_systems_of_other_machines_are_polled(tmp_path: Path, mounts: str, kind: str) -> None:
    root = tmp_path / "with blank"
    root.mkdir()
    table = tmp_path / "mounts"
    text = {"root": str(root).replace(" ", "\\040"), "parent": str(tmp_path)}
    table.write_text(mounts.format(**text))
    assert file_system(root, table) == kind
    if kind:
        stirring = Stirring(root, table)
        stirring.watch()
        assert stirring.how == f"polling: inotify does not hear what other machines write on {kind}"
        stirring.close()
    assert file_system(root, tmp_path / "none") == ""


def test_nothing_leaks_over_many_scans(tmp_path: Path) -> None:
    root = tmp_path / "root"
    here = Here(root, stirring=Stirring(root))
    here.ready("P1", "P2")
    here.put("P3/a")
    here.scan()
    assert here.scanner.how == "inotify, and polling"
    threads, open_files = threading.active_count(), descriptors()
    for number in range(2000):
        if number % 100 == 0:
            here.put("P3/a", str(number))
        here.scan(1)
    assert threading.active_count() == threads
    assert descriptors() == open_files
    assert len(here.scanner._memory) == 3
    here.scanner.close()
    assert threading.active_count() < threads


def test_a_report_names_what_was_read() -> None:
    seen = SeenFolder(folder="/x", fingerprint="f")
    assert FolderRead(seen=seen, result=None).refused == ""
