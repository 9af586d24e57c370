"""A store of an older release becomes today's, whole or not at all, and stays beside it as it was."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.models import CaseStatus, SeenFolder, SubmitState, TaskStatus
from mqi_hpc.infrastructure.state import SqliteStateManager, schema
from tests.support.world import Clock

GOLDEN = Path(__file__).parent / "golden" / "state_v1.sql"


def opened(path: Path, instance: str = "i1") -> SqliteStateManager:
    return SqliteStateManager(path, instance=instance, secret=b"secret", clock=Clock())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as the first release wrote it."""
    path = tmp_path / "mqi.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(GOLDEN.read_text(encoding="utf-8"))
    path.chmod(0o600)
    return path


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        return int(found)


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def test_all_that_was_there_is_there_and_the_chain_is_whole(old: Path) -> None:
    before = dump(old)
    with closing(opened(old)) as store:
        assert store.verify() is None
        with store.transaction() as unit:
            a, b, c = unit.cases.all()
            assert (a.status, b.status, c.status) == (
                CaseStatus.COMPLETED,
                CaseStatus.PROCESSING,
                CaseStatus.NEW,
            )
            assert a.metadata == {"note": "Grüße, O'Brien"}
            assert a.rejected == ()
            assert [job.name for job in unit.jobs.of_case(b.case_id)] == ["j01", "j02"]
            assert unit.jobs.of_case(a.case_id)[0].submit_state is SubmitState.STANDING
            upload, beam = unit.jobs.tasks("bbbbbbbbbbbb-j02")
            assert (upload.status, beam.status) == (TaskStatus.PENDING, TaskStatus.COMPLETED)
            assert unit.jobs.files("aaaaaaaaaaaa-j01")["stages.pyz"] == bytes([80, 75, 3, 4, 0, 255])
            assert unit.resources.holdings() == {"bbbbbbbbbbbb-j02": 2}
            assert [event["kind"] for event in unit.events(b.case_id)] == ["registered", "job", "job"]
            assert unit.folders.all() == []
            unit.folders.put(SeenFolder(folder="/cases/x", fingerprint="1"))
            unit.event("migrated", None, {})
        assert store.verify() is None
    assert version(old) == schema.SCHEMA_VERSION
    backup = schema.backup_file(old, 1)
    assert (version(backup), dump(backup)) == (1, before)
    assert backup.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in old.parent.iterdir()} == {old.name, backup.name}


def test_its_tables_are_those_of_a_new_store(old: Path) -> None:
    opened(old).close()
    opened(old.with_name("new.sqlite")).close()

    def tables(path: Path) -> set[tuple[str, ...]]:
        with closing(sqlite3.connect(path)) as db:
            return set(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))

    assert tables(old) == tables(old.with_name("new.sqlite"))


def test_the_copy_holds_what_is_only_in_the_journal(old: Path) -> None:
    with closing(sqlite3.connect(old)) as killed:
        killed.execute("PRAGMA wal_autocheckpoint=0")
        killed.execute("UPDATE holdings SET slots=7")
        killed.commit()
        assert old.with_name(f"{old.name}-wal").stat().st_size
        with closing(opened(old)) as store, store.transaction() as unit:
            assert unit.resources.holdings() == {"bbbbbbbbbbbb-j02": 7}
    assert any("'bbbbbbbbbbbb-j02',7" in line for line in dump(schema.backup_file(old, 1)))


def test_it_is_done_once_and_the_copy_is_the_newest_one(old: Path) -> None:
    backup = schema.backup_file(old, 1)
    backup.write_text("of an attempt that was killed")
    opened(old).close()
    copied = backup.read_bytes()
    assert version(backup) == 1
    with closing(opened(old)) as store, store.transaction() as unit:
        unit.event("later", None, {})
    opened(old).close()
    assert backup.read_bytes() == copied


def test_a_store_of_another_instance_is_left_as_it_is(old: Path) -> None:
    with pytest.raises(StateError, match="belongs to instance i1, not i2"):
        opened(old, "i2")
    assert version(old) == 1
    assert not schema.backup_file(old, 1).exists()


def test_many_that_open_it_at_once_all_succeed(old: Path) -> None:
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.unit.test_state_migration import opened
        print("ready", flush=True)
        sys.stdin.read(1)
        store = opened(Path(sys.argv[1]))
        with store.transaction() as unit:
            unit.event("opened", "k", {})
        """
    )
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    assert [opener.stdout.readline() for opener in openers if opener.stdout] == [b"ready\n"] * 4
    for opener in openers:
        assert opener.stdin
        opener.stdin.write(b"x")
        opener.stdin.flush()
    assert [opener.communicate() and opener.returncode for opener in openers] == [0] * 4
    with closing(opened(old)) as store, store.transaction(write=False) as unit:
        assert len(unit.events("k")) == 4
        assert unit.folders.all() == []
    assert version(schema.backup_file(old, 1)) == 1


_KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from mqi_hpc.infrastructure.state import publish, schema
    from tests.unit.test_state_migration import opened

    def end(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def steps():
        yield from schema.STEPS_BEFORE
        yield "INSERT INTO folders VALUES ('/half', '', NULL)"
        end()

    where = sys.argv[2]
    if where == "step":
        schema.STEPS_BEFORE = schema.STEPS[2]
        schema.STEPS = {2: steps()}
    elif where == "copied":
        publish.sync = end
    elif where == "begun":
        schema._copy = end
    opened(Path(sys.argv[1]))
    """
)


@pytest.mark.parametrize("where", ["begun", "copied", "step"])
def test_a_kill_in_the_middle_leaves_the_old_one_whole(old: Path, where: str) -> None:
    before = dump(old)
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(old), where], check=False)
    assert killed.returncode < 0
    assert (version(old), dump(old)) == (1, before)
    with closing(opened(old)) as store:
        assert store.verify() is None
        with store.transaction() as unit:
            assert len(unit.cases.all()) == 3
            assert unit.folders.all() == []
    backup = schema.backup_file(old, 1)
    assert dump(backup) == before
    assert {path.name for path in old.parent.iterdir()} == {old.name, backup.name}


def test_a_step_that_fails_leaves_the_old_one_whole(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dump(old)
    monkeypatch.setattr(schema, "STEPS", {2: (*schema.STEPS[2], "CREATE TABLE cases (x)")})
    with pytest.raises(StateError, match="table cases already exists"):
        opened(old)
    assert (version(old), dump(old)) == (1, before)


def test_no_room_for_the_copy_is_said_and_leaves_the_old_one_whole(old: Path) -> None:
    before = dump(old)
    code = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from tests.unit.test_state_migration import opened
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        opened(Path(sys.argv[1]))
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(old)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "StateError" in ended.stderr
    assert "nothing that was committed is lost" in ended.stderr
    assert (version(old), dump(old)) == (1, before)
    assert {path.name for path in old.parent.iterdir()} == {old.name}
    assert old.stat().st_mode & 0o777 == 0o600
