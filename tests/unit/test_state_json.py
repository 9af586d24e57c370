"""The JSON state file: what it holds, and that no crash, damage or hand ever makes it half a state."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.models import CaseStatus, Job, JobStatus, SeenFolder, SubmitState
from mqi_hpc.infrastructure.state import JsonStateManager, publish
from mqi_hpc.infrastructure.state.json_document import Damaged, load_document
from tests.support.bench import make_case
from tests.support.world import Clock

KEY = make_case().case_id
JOB = Job(
    job_id=f"{KEY}-j01",
    case_id=KEY,
    status=JobStatus.PENDING,
    created_at=make_case().created_at,
    name="j01",
    submit_state=SubmitState.PLANNED,
    submissions=(),
)
PYZ = b"PK" * 500


def opened(path: Path) -> JsonStateManager:
    return JsonStateManager(path, instance="i1", secret=b"secret", clock=Clock())


def fill(store: JsonStateManager, files: dict[str, bytes]) -> None:
    with store.transaction() as unit:
        unit.cases.put(make_case())
        unit.jobs.put(JOB)
        unit.jobs.put_files(JOB.job_id, files)
        unit.event("registered", KEY, {"n": 1})


def mark(store: JsonStateManager, status: CaseStatus) -> None:
    with store.transaction() as unit:
        unit.cases.put(make_case(status=status))
        unit.event("case", KEY, {"to": str(status)})


def status(store: JsonStateManager) -> CaseStatus:
    with store.transaction(write=False) as unit:
        case = unit.cases.get(KEY)
        assert case is not None
        return case.status


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mqi.json"


def reseal(path: Path, text: str) -> None:
    content, seal, _ = text.rpartition('"checksum": "')
    path.write_text(f'{content}{seal}{hashlib.sha256(content.encode()).hexdigest()}"}}\n', encoding="utf-8")


def test_it_is_json_that_other_programs_read(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {"stages.pyz": PYZ})
        with store.transaction() as unit:
            unit.cases.put(make_case(key="b" * 12).evolve(folder='/cases/[["a", {"b": 1}],\n"checksum": "x"'))
            unit.folders.put(SeenFolder(folder="/cases/Grüße\u2028", fingerprint="f", again_at=0.1))
            unit.resources.hold(JOB.job_id, 2)
            head = unit.audit_head()
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (data["format"], data["version"], data["instance"], data["head"]) == (
        "mqi-hpc state",
        2,
        "i1",
        head,
    )
    assert [(columns[0], body["case_id"]) for columns, body in data["cases"]] == [
        (KEY, KEY),
        ("b" * 12, "b" * 12),
    ]
    assert data["jobs"][0][1]["submit_state"] == "planned"
    assert data["files"] == [[JOB.job_id, "stages.pyz", hashlib.sha256(PYZ).hexdigest()]]
    assert (data["holdings"], data["tasks"]) == ([[JOB.job_id, 2]], [])
    assert data["folders"] == [["/cases/Grüße\u2028", "f", 0.1]]
    assert [(columns[2], body) for columns, body in data["events"]] == [("registered", {"n": 1})]
    content = path.read_bytes().rpartition(b'"checksum"')[0]
    assert data["checksum"] == hashlib.sha256(content).hexdigest()
    with closing(opened(path)) as again, again.transaction() as unit:
        assert [case.folder[:9] for case in unit.cases.all()] == ["/cases/ab", "/cases/[["]
        assert unit.folders.all() == [SeenFolder(folder="/cases/Grüße\u2028", fingerprint="f", again_at=0.1)]


def test_a_content_is_kept_once(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {"stages.pyz": PYZ, "again.pyz": PYZ, "other": b""})
        names = {hashlib.sha256(content).hexdigest() for content in (PYZ, b"")}
        assert {file.name for file in (path.parent / "mqi.json.files").iterdir()} == names
        with store.transaction() as unit:
            assert unit.jobs.files(JOB.job_id) == {"again.pyz": PYZ, "other": b"", "stages.pyz": PYZ}


def test_a_content_that_is_gone_or_damaged_is_said_and_heals_when_it_is_kept_again(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {"stages.pyz": PYZ})
        content = path.parent / "mqi.json.files" / hashlib.sha256(PYZ).hexdigest()
        content.write_bytes(PYZ[:-1] + b"x")
        with pytest.raises(StateError, match=r"is damaged.*backup"), store.transaction(write=False) as unit:
            unit.jobs.files(JOB.job_id)
        content.unlink()
        with pytest.raises(StateError, match=r"No such file.*backup"), store.transaction(write=False) as unit:
            unit.jobs.files(JOB.job_id)
        for damage in (b"", PYZ[:-1] + b"x"):
            content.write_bytes(damage)
            with store.transaction() as unit:
                unit.jobs.put_files(JOB.job_id, {"stages.pyz": PYZ})
                assert unit.jobs.files(JOB.job_id) == {"stages.pyz": PYZ}


def test_what_changes_nothing_writes_nothing(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {})
        before = path.stat()
        with store.transaction() as unit:
            unit.cases.all()
        assert path.stat() == before


def test_the_state_before_the_last_change_stays_beside_it(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {})
        before = path.read_bytes()
        mark(store, CaseStatus.QUEUED)
        assert path.with_name("mqi.json.previous").read_bytes() == before
        mark(store, CaseStatus.FAILED)
    path.unlink()
    path.with_name("mqi.json.previous").rename(path)
    with closing(opened(path)) as store:
        assert status(store) is CaseStatus.QUEUED
        assert store.verify() is None


# Crashes

_CRASHES = textwrap.dedent(
    """
    import os, signal, sys
    from contextlib import closing
    from pathlib import Path
    from tests.unit.test_state_json import *

    def kill_at(count):
        left = count
        def counted(call):
            def wrapper(*args, **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)
            return wrapper
        for name in ("fsync", "link", "replace", "rename", "unlink", "open"):
            setattr(os, name, counted(getattr(os, name)))

    folder = Path(sys.argv[1])
    for count in range(1, 100):
        path = folder / str(count) / "mqi.json"
        with closing(opened(path)) as store:
            fill(store, {"a": b"old"})
        child = os.fork()
        if child == 0:
            store = opened(path)
            kill_at(count)
            with store.transaction() as unit:
                unit.jobs.put_files(JOB.job_id, {"a": b"new"})
                unit.cases.put(make_case(status=CaseStatus.COMPLETED))
                unit.event("case", KEY, {})
            os._exit(0)
        _, ended = os.waitpid(child, 0)
        with closing(opened(path)) as store, store.transaction(write=False) as unit:
            files = unit.jobs.files(JOB.job_id)
            found = (unit.cases.get(KEY).status.value, files["a"].decode(), len(unit.all_events()))
            assert unit.verify() is None
        with closing(opened(path)) as store:
            mark(store, CaseStatus.PARTIAL)
            assert status(store) is CaseStatus.PARTIAL
        names = {one.name for one in path.parent.rglob("*")}
        assert not any(name.startswith(".") for name in names), names
        print(*found, flush=True)
        if ended == 0:
            break
    """
)


def test_a_kill_before_any_step_of_a_commit_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", _CRASHES, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    found = said.stdout.splitlines()
    old, new = "new old 1", "completed new 2"
    assert len(found) > 8
    assert found == [old] * found.count(old) + [new] * found.count(new)
    assert found.count(old) > 5
    assert found.count(new) > 1


def test_a_commit_that_fails_after_the_file_stands_is_seen_as_it_stands(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(path)) as store:
        fill(store, {})
        real = publish.sync

        def failing(synced: Path) -> None:
            if synced.is_dir():
                raise OSError(5, "Input/output error")
            real(synced)

        monkeypatch.setattr(publish, "sync", failing)
        with pytest.raises(StateError, match="Input/output error"):
            mark(store, CaseStatus.QUEUED)
        monkeypatch.undo()
        # The name was changed: whoever opens the file sees that, so this store does too.
        assert status(store) is CaseStatus.QUEUED
        mark(store, CaseStatus.FAILED)
        assert store.verify() is None


def test_only_leftovers_of_the_state_file_are_removed(path: Path) -> None:
    opened(path).close()
    stay = {".mqi.json.instance.0123456789abcdef", ".mqi.json.backup", ".mqi.json.0123456789abcdeg", ".other"}
    for name in (*stay, ".mqi.json.0123456789abcdef"):
        path.with_name(name).touch()
    with closing(opened(path)) as store:
        assert path.with_name(".mqi.json.0123456789abcdef").exists()
        fill(store, {})
    assert {one.name for one in path.parent.glob(".*")} == stay


# Damage and hands


def test_damage_while_it_is_open_is_never_written_over(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {})
        mark(store, CaseStatus.QUEUED)
        damaged = path.read_bytes()[:-20]
        path.write_bytes(damaged)
        for write in (True, False):
            with pytest.raises(StateError, match="the state file is damaged"):
                with store.transaction(write=write):
                    pass
        assert path.read_bytes() == damaged
        path.unlink()
        for write in (True, False):
            with pytest.raises(StateError, match=r"the store is gone.*mqi\.json\.previous"):
                with store.transaction(write=write):
                    pass
        assert not path.exists()
        shutil.copy(path.with_name("mqi.json.previous"), path)
        assert status(store) is CaseStatus.NEW
        mark(store, CaseStatus.FAILED)
        assert store.verify() is None


def test_the_way_back_is_named_where_there_is_one(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {})
    path.write_bytes(path.read_bytes().replace(b'"beam_count":2', b'"beam_count":3'))
    previous = path.with_name("mqi.json.previous")
    with pytest.raises(StateError, match="its checksum differs") as told:
        opened(path)
    assert f"{previous} is whole, but lacks the last change: stop every mqi-hpc" in told.value.fix
    previous.write_bytes(previous.read_bytes()[:-10])
    with pytest.raises(StateError, match="its checksum differs") as told:
        opened(path)
    assert str(previous) not in told.value.fix
    assert "backup" in told.value.fix
    previous.unlink()
    with pytest.raises(StateError, match=r"its checksum differs.*backup"):
        opened(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not begin"),
        ("SQLite format 3\0...", "it is a SQLite file"),
        ("[]", "does not begin"),
        ('{"format": "mqi-hpc export", "version": 1}', "does not begin"),
        ('{"format": "mqi-hpc state", "version": 2', "first line is broken"),
        ('{"format": "mqi-hpc state", "version": 2}\n', "first line is broken"),
        (
            '{"format": "mqi-hpc state", "version": "2", "instance": "i1", "head": "",\n',
            "first line is broken",
        ),
        (
            '{"format": "mqi-hpc state", "version": 2, "instance": "i1", "head": "",\n"cases": [\n',
            "end is missing",
        ),
    ],
)
def test_what_is_no_state_file_is_said(path: Path, text: str, said: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StateError, match=said):
        opened(path)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        ('"version": 2', '"version": 1', "version 1"),
        ('"jobs": [\n', '"tasks": [\n', "jobs should come next"),
        ('"holdings": [\n\n],\n', "", "holdings should come next"),
        ('"events": [\n', '"events": [\nnonsense,\n', "no state that this program has written"),
        ('"holdings": [\n', '"holdings": [\n["x", 1, 2]', "no state that this program has written"),
        ('"holdings": [\n', '"holdings": [\n["x", "many"]', "no state that this program has written"),
        ('"folders": [\n', '"folders": [\n{"a": 1}', "no state that this program has written"),
        (
            '"holdings": [\n',
            '"holdings": [\n["x", 99999999999999999999]',
            "no state that this program has written",
        ),
        pytest.param('"tasks": [\n', f'"tasks": [\n[{"[" * 99_999}', "no state that this program", id="deep"),
        ('"holdings": [\n', '"holdings": [\n5', "no state that this program has written"),
        ('"tasks": [\n', '"tasks": [\n[5, {}]', "no state that this program has written"),
        ('"tasks": [\n', '"tasks": [\n[["a", [], 0, 0, 0], {}]', "no state that this program has written"),
        ('"files": [\n', f'"files": [\n["{JOB.job_id}", "a", 5]', "no state that this program has written"),
        ('\n],\n"checksum"', '"checksum"', "no state that this program has written|more than"),
        (f'[["{JOB.job_id}", "{KEY}"', f'[["{JOB.job_id}", "nobody"', "FOREIGN KEY"),
        ('"checksum"', '"more": [\n],\n"checksum"', "more than it should hold"),
    ],
)
def test_a_document_that_is_whole_but_wrong_is_said(path: Path, there: str, instead: str, said: str) -> None:
    with closing(opened(path)) as store:
        fill(store, {})
    text = path.read_text(encoding="utf-8")
    assert text.count(there) == 1
    reseal(path, text.replace(there, instead))
    before = path.read_bytes()
    with pytest.raises(StateError, match=said):
        opened(path)
    assert path.read_bytes() == before


def test_a_document_cut_off_anywhere_is_damaged(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {"a": b"1"})
    text = path.read_bytes()
    load_document(text).close()
    for length in range(len(text)):
        with pytest.raises(Damaged):
            load_document(text[:length])


def test_a_document_without_its_last_tables_is_none(path: Path) -> None:
    opened(path).close()
    whole = path.read_text(encoding="utf-8")
    for table in ("cases", "events"):
        reseal(path, whole[: whole.index(f'"{table}"')] + '"checksum": "')
        with pytest.raises(StateError, match=f"{table} should come next"):
            opened(path)
        reseal(path, whole[: whole.index(f'"{table}"')] + f'"{table}": [\n"checksum": "')
        with pytest.raises(StateError, match=r"should come next|more than it should hold|no state"):
            opened(path)


def test_a_file_that_was_put_there_meanwhile_is_not_written_over(path: Path) -> None:
    with closing(opened(path)) as store:
        fill(store, {})
        mark(store, CaseStatus.QUEUED)
        with pytest.raises(StateError, match=r"another program has changed .* not kept"):
            with store.transaction() as unit:
                unit.cases.put(make_case(status=CaseStatus.COMPLETED))
                path.with_name("mqi.json.previous").replace(path)
        assert status(store) is CaseStatus.NEW
        mark(store, CaseStatus.FAILED)
        assert store.verify() is None


def test_a_link_to_it_stays_a_link(path: Path) -> None:
    real = path.parent / "disk" / "state.json"
    real.parent.mkdir()
    path.symlink_to(real)
    with closing(opened(path)) as store:
        fill(store, {"a": b"1"})
        mark(store, CaseStatus.QUEUED)
    assert path.is_symlink()
    assert {one.name for one in path.parent.iterdir()} == {"mqi.json", "disk"}
    with closing(opened(real)) as store:
        assert status(store) is CaseStatus.QUEUED


def test_a_newer_one_is_refused_whatever_it_looks_like(path: Path) -> None:
    path.write_text(
        '{"format": "mqi-hpc state", "version": 3, "instance": "i1", "head": "",\n"all": "else"}',
        encoding="utf-8",
    )
    with pytest.raises(StateError, match=r"version 3, this program knows 2.*newer mqi-hpc"):
        opened(path)


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"the store cannot be used: (File exists|Not a directory)"):
        opened(tmp_path / "file" / "mqi.json")


@pytest.mark.parametrize("left", ["mqi.json.previous", "mqi.json.files"])
def test_what_belongs_to_a_store_that_is_gone_is_not_a_new_ones(path: Path, left: str) -> None:
    path.with_name(left).mkdir()
    with pytest.raises(StateError, match=r"the store is gone.*to begin anew"):
        opened(path)
    assert not path.exists()


def test_no_file_stays_open_after_it_is_closed(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with closing(opened(path)) as store:
            mark(store, CaseStatus.QUEUED)
            with pytest.raises(KeyError), store.transaction():
                raise KeyError
    damaged = path.read_bytes()[:-1]
    path.write_bytes(damaged)
    for _ in range(3):
        with pytest.raises(StateError):
            opened(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
