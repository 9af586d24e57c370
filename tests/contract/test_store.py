"""What every store promises; the in-memory twin that other tests use is held to it too."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.models import Case, CaseStatus, Job, JobStatus, Submission, SubmitState, Task, TaskType
from mqi_hpc.infrastructure.state import SqliteStateManager
from mqi_hpc.infrastructure.state.schema import SCHEMA_VERSION
from tests.support.bench import make_case
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock

WHEN = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)
Opener = Callable[[], Any]


def sqlite(path: Path) -> SqliteStateManager:
    return SqliteStateManager(path, instance="i1", secret=b"secret", clock=Clock())


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return sqlite(tmp_path / "mqi.sqlite") if request.param == "sqlite" else MemoryStore()


def a_job(number: int = 1, case_id: str = "abcdefghijkl") -> Job:
    return Job(
        job_id=f"{case_id}-j{number:02d}",
        case_id=case_id,
        status=JobStatus.PENDING,
        created_at=WHEN,
        name=f"j{number:02d}",
        submit_state=SubmitState.PLANNED,
        submissions=(Submission(stage="beams", name="n", indices=(0, 3), slurm_id=7, cluster_time=1.5),),
        cancelled=("convert",),
    )


def test_what_is_put_is_found_as_it_was(store: Any) -> None:
    case, job = make_case(), a_job()
    task = Task(
        task_id="t", job_id=job.job_id, type=TaskType.CONVERT, parameters={"a": [1, None]}, waited=0.5
    )
    files = {"chain.json": b"{}\n", "stages.pyz": bytes(range(256))}
    with store.transaction() as unit:
        unit.cases.put(case)
        unit.jobs.put(job)
        unit.jobs.put_task(task)
        unit.jobs.put_files(job.job_id, files)
        unit.resources.hold(job.job_id, 3)
    with store.transaction() as unit:
        assert unit.cases.get(case.case_id) == case
        assert unit.jobs.get(job.job_id) == job
        assert unit.jobs.tasks(job.job_id) == [task]
        assert unit.jobs.files(job.job_id) == files
        assert unit.resources.holdings() == {job.job_id: 3}
        assert unit.cases.get("nobody") is None
        assert unit.jobs.get("nothing") is None


def test_a_transaction_that_fails_leaves_nothing(store: Any) -> None:
    with pytest.raises(KeyError), store.transaction() as unit:
        unit.cases.put(make_case())
        unit.event("registered", "abcdefghijkl", {})
        raise KeyError
    with store.transaction() as unit:
        assert unit.cases.all() == []
        assert unit.events("abcdefghijkl") == []


def test_orders(store: Any) -> None:
    with store.transaction() as unit:
        for key in ("cccccccccccc", "aaaaaaaaaaaa", "bbbbbbbbbbbb"):
            unit.cases.put(make_case(key=key))
        for number in (2, 10, 1):
            unit.jobs.put(a_job(number, "aaaaaaaaaaaa"))
        job = a_job(1, "aaaaaaaaaaaa").job_id
        for kind, index in ((TaskType.CONVERT, 0), (TaskType.BEAM_CALC, 1), (TaskType.UPLOAD, 0)):
            unit.jobs.put_task(Task(task_id=f"{kind}{index}", job_id=job, type=kind, index=index))
    with store.transaction() as unit:
        assert [c.case_id[0] for c in unit.cases.all()] == ["a", "b", "c"]
        assert [j.name for j in unit.jobs.of_case("aaaaaaaaaaaa")] == ["j01", "j02", "j10"]
        kinds = [task.type for task in unit.jobs.tasks(job)]
        assert kinds == [TaskType.UPLOAD, TaskType.BEAM_CALC, TaskType.CONVERT]


def test_a_later_value_replaces_an_earlier_one(store: Any) -> None:
    case = make_case()
    with store.transaction() as unit:
        unit.cases.put(case)
        unit.jobs.put(a_job())
        unit.jobs.put_files(a_job().job_id, {"a": b"1", "b": b"2"})
        unit.resources.hold("x", 2)
    with store.transaction() as unit:
        unit.cases.put(case.evolve(status=CaseStatus.PARTIAL, attention="look"))
        unit.jobs.put_files(a_job().job_id, {"a": b"3"})
        unit.resources.hold("x", 0)
    with store.transaction() as unit:
        assert unit.cases.get(case.case_id).attention == "look"
        assert unit.jobs.files(a_job().job_id) == {"a": b"3"}
        assert unit.resources.holdings() == {}


def test_events_are_kept_in_order_and_move_the_head(store: Any) -> None:
    with store.transaction() as unit:
        heads = [unit.audit_head()]
        for number in range(3):
            unit.event("task", "k", {"number": number})
            heads.append(unit.audit_head())
        unit.event("other", None, {})
    with store.transaction() as unit:
        assert [event["data"]["number"] for event in unit.events("k")] == [0, 1, 2]
    assert len(set(heads)) == 4


def test_a_transaction_within_another_is_refused(store: Any) -> None:
    with store.transaction(), pytest.raises((StateError, RuntimeError)), store.transaction():
        pass
    with store.transaction() as unit:
        assert unit.cases.all() == []


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(name=TEXT, folder=TEXT, energies=st.lists(st.floats(1, 300), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_text_and_number_comes_back(
    tmp_path: Path, name: str, folder: str, energies: list[float]
) -> None:
    case = make_case(1)
    beam = case.beams[0].evolve(name=name, energies=tuple(energies))
    case = case.evolve(folder=folder, beams=(beam,), metadata={name: folder})
    store = sqlite(tmp_path / "any.sqlite")
    with store.transaction() as unit:
        unit.cases.put(case)
        assert unit.cases.get(case.case_id) == case
    store.close()


# Of the file


def test_it_survives_closing_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mqi.sqlite"
    store = sqlite(path)
    with store.transaction() as unit:
        unit.cases.put(make_case())
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in path.parent.iterdir()} == {0o600}
    store.close()
    again = sqlite(path)
    with again.transaction() as unit:
        assert unit.cases.all() == [make_case()]
    again.close()


_WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from tests.contract.test_store import sqlite, make_case
    store = sqlite(Path(sys.argv[1]))
    print("ready", flush=True)
    while True:
        with store.transaction() as unit:
            found = unit.cases.get("abcdefghijkl") or make_case()
            count = int(found.metadata.get("count", 0)) + 1
            unit.cases.put(found.evolve(metadata={"count": count}))
            unit.event("counted", "abcdefghijkl", {"count": count})
        if sys.argv[2:] and count >= int(sys.argv[2]):
            break
    """
)


def _count(store: SqliteStateManager) -> tuple[int, int]:
    with store.transaction(write=False) as unit:
        case = unit.cases.get("abcdefghijkl")
        return (case.metadata["count"] if case else 0), len(unit.events("abcdefghijkl"))


def test_a_kill_at_any_moment_leaves_a_state_and_its_event(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    before = 0
    for round_ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            store = sqlite(path)
            while _count(store)[0] < before + 3 + round_:
                pass
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        counted, events = _count(store)
        assert counted == events > before
        assert store.verify() is None
        before = counted
        store.close()


def test_two_processes_lose_no_update(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    sqlite(path).close()
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), "40"]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    store = sqlite(path)
    counted, events = _count(store)
    assert counted == events >= 40
    assert store.verify() is None
    store.close()


def test_another_instance_and_a_newer_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    sqlite(path).close()
    with pytest.raises(StateError, match="belongs to instance i1, not i2"):
        SqliteStateManager(path, instance="i2", secret=b"", clock=Clock())
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StateError, match="version 99"):
        sqlite(path)


def test_what_is_no_store_is_said_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    path.write_bytes(b"not a database at all, but long enough to look at" * 50)
    with pytest.raises(StateError, match=r"mqi\.sqlite: the store cannot be used"):
        sqlite(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_full_disk_is_said_and_the_last_good_state_stays(tmp_path: Path) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with store.transaction() as unit:
        unit.cases.put(make_case())
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StateError, match="full"), store.transaction() as unit:
        unit.jobs.put(a_job())
        unit.jobs.put_files(a_job().job_id, {"big": os.urandom(1_000_000)})
    with store.transaction() as unit:
        assert unit.cases.all() == [make_case()]
        assert unit.jobs.of_case("abcdefghijkl") == []
    store.close()


def test_a_stored_value_of_another_form_is_refused(tmp_path: Path) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with store.transaction() as unit:
        unit.cases.put(make_case())
    store._db.execute("UPDATE cases SET body = '{}'")
    with pytest.raises(StateError, match="a stored Case cannot be read"), store.transaction() as unit:
        unit.cases.all()
    store.close()


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        ("UPDATE events SET data='{}' WHERE number=2", "event 2 has been changed"),
        ("DELETE FROM events WHERE number=2", "event 2 is missing"),
        ("DELETE FROM events WHERE number=3", "cut off"),
        ("UPDATE events SET at=at+1 WHERE number=1", "event 1 has been changed"),
    ],
)
def test_a_tampered_chain_of_events_is_found(tmp_path: Path, tamper: str, said: str) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with store.transaction() as unit:
        for number in range(3):
            unit.event("task", "k", {"number": number})
    assert store.verify() is None
    with pytest.raises(sqlite3.IntegrityError, match="never"):
        store._db.execute(tamper)
    store._db.execute("DROP TRIGGER events_stay")
    store._db.execute("DROP TRIGGER events_remain")
    store._db.execute(tamper)
    assert said in str(store.verify())
    store.close()


# What breaks it, or would


def test_a_failure_of_the_block_itself_stays_what_it_is(store: Any) -> None:
    with pytest.raises(FileNotFoundError), store.transaction() as unit:
        unit.cases.put(make_case())
        raise FileNotFoundError("template.j2")
    with store.transaction() as unit:
        assert unit.cases.all() == []


def test_nothing_is_kept_or_read_through_a_transaction_that_has_ended(tmp_path: Path) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with store.transaction() as unit:
        pass
    for late in (
        lambda: unit.cases.put(make_case()),
        lambda: unit.jobs.put_files("j", {"a": b""}),
        lambda: unit.event("x", None, {}),
        unit.audit_head,
    ):
        with pytest.raises(StateError, match="transaction has ended"):
            late()
        with store.transaction(), pytest.raises(StateError, match="transaction has ended"):
            late()
    with store.transaction() as unit:
        assert unit.cases.all() == []
    store.close()


def test_a_block_that_swallows_what_undid_it_fails_all_the_same(tmp_path: Path) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with pytest.raises(StateError, match="transaction has ended"), store.transaction() as unit:
        unit.cases.put(make_case())
        store._db.execute("ROLLBACK")  # as SQLite does by itself, of a full disk say
    with store.transaction() as unit:
        assert unit.cases.all() == []
    store.close()


def test_a_reader_waits_for_no_writer_and_sees_one_state(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    writer = sqlite(path)
    with writer.transaction() as unit:
        unit.cases.put(make_case(key="aaaaaaaaaaaa"))
    with writer.transaction() as unit:
        unit.cases.put(make_case(key="bbbbbbbbbbbb"))
        reader = sqlite(path)  # opened while another writes
        with reader.transaction(write=False) as seen:
            assert [case.case_id[0] for case in seen.cases.all()] == ["a"]
            assert seen.audit_head() == ""
    with reader.transaction(write=False) as seen:
        assert [case.case_id[0] for case in seen.cases.all()] == ["a", "b"]
        with writer.transaction() as unit:
            unit.cases.put(make_case(key="cccccccccccc"))
        assert len(seen.cases.all()) == 2
    with pytest.raises(StateError, match="readonly"), reader.transaction(write=False) as seen:
        seen.cases.put(make_case(key="dddddddddddd"))
    with reader.transaction() as unit:
        unit.cases.put(make_case(key="dddddddddddd"))
    with writer.transaction() as unit:
        assert len(unit.cases.all()) == 4
    writer.close()
    reader.close()


def test_a_writer_that_stands_still_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    one, other = sqlite(path), sqlite(path)
    other._db.execute("PRAGMA busy_timeout=0")
    with one.transaction():
        with pytest.raises(StateError, match=r"locked.*see whether it still moves"), other.transaction():
            pass
    with other.transaction() as unit:
        unit.cases.put(make_case())
    one.close()
    other.close()


def test_the_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "patients.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE patients (name)")
    db.commit()
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(StateError, match="database of another program"):
        sqlite(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    db.execute("CREATE TABLE meta (name, value)")
    db.commit()
    with pytest.raises(StateError, match="does not say whose it is"):
        sqlite(path)
    db.close()


@pytest.mark.parametrize("left", [0, 5000])
def test_a_store_that_was_cut_off_is_never_begun_anew(tmp_path: Path, left: int) -> None:
    path = tmp_path / "mqi.sqlite"
    store = sqlite(path)
    with store.transaction() as unit:
        unit.cases.put(make_case())
    store.close()
    os.truncate(path, left)
    with pytest.raises(StateError, match="backup"):
        cut = sqlite(path)
        with cut.transaction() as unit:
            unit.cases.all()
    assert path.stat().st_size == left


def test_a_journal_without_its_store_is_not_taken_for_a_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    store = sqlite(path)
    with store.transaction() as unit:
        unit.cases.put(make_case())
    path.unlink()
    with pytest.raises(StateError, match="its journal is still there"):
        sqlite(path)
    assert not path.exists()


_STARTER = """
import sys
from pathlib import Path
from tests.contract.test_store import sqlite
print("ready", flush=True)
for folder in sys.stdin:
    store = sqlite(Path(folder.strip()) / "mqi.sqlite")
    with store.transaction() as unit:
        unit.event("started", "k", {})
    store.close()
    print("done", flush=True)
"""


def test_many_first_starters_agree_on_one_store(tmp_path: Path) -> None:
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", _STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert [starter.stdout.readline() for starter in starters if starter.stdout] == ["ready\n"] * 4
    for round_ in range(60):
        for starter in starters:
            assert starter.stdin
            starter.stdin.write(f"{tmp_path / str(round_)}\n")
            starter.stdin.flush()
    for starter in starters:
        said, _ = starter.communicate()
        assert (said.count("done"), starter.returncode) == (60, 0)
    for round_ in range(60):
        store = sqlite(tmp_path / str(round_) / "mqi.sqlite")
        with store.transaction(write=False) as unit:
            assert len(unit.events("k")) == 4
        assert store.verify() is None
        store.close()
        assert [path.name for path in (tmp_path / str(round_)).iterdir()] == ["mqi.sqlite"]


def test_a_store_others_could_read_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    sqlite(path).close()
    path.chmod(0o644)
    sqlite(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_page_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mqi.sqlite"
    store = sqlite(path)
    with store.transaction() as unit:
        unit.cases.put(make_case())
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    with pytest.raises(StateError, match="bring the store back from a backup"):
        broken = sqlite(path)
        with broken.transaction() as unit:
            unit.cases.all()


def test_a_disk_full_at_the_first_start_is_said_and_the_next_start_is_whole(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from tests.contract.test_store import StateError, sqlite
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (0, 100, 20_000, 40_000, 60_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                sqlite(Path(sys.argv[1]))
            except StateError as error:
                print(error)
        """
    )
    path = tmp_path / "mqi.sqlite"
    said = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(said) == 5
    assert all("the store cannot be used: disk I/O error" in line for line in said)
    store = sqlite(path)
    assert store.verify() is None
    store.close()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), (1, 2), {1: "a"}, "caf\udce9"])
def test_what_would_not_come_back_as_it_is_is_refused(tmp_path: Path, value: Any) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with pytest.raises(StateError, match="a Case cannot be kept"), store.transaction() as unit:
        unit.cases.put(make_case().evolve(metadata={"x": value}))
    store.close()


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ('"beam_count":3', '"beam_count":"3"'),
        ('"status":"new"', '"status":"fine"'),
        ('"index":0', '"index":0.0'),
    ],
)
def test_a_stored_value_of_another_kind_is_refused(tmp_path: Path, there: str, instead: str) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with store.transaction() as unit:
        unit.cases.put(make_case(3))
    changed = store._db.execute("UPDATE cases SET body = replace(body, ?, ?)", [there, instead])
    assert changed.rowcount == 1
    with pytest.raises(StateError, match="a stored Case cannot be read"), store.transaction() as unit:
        unit.cases.all()
    store.close()


def test_two_tasks_for_one_beam_are_refused(tmp_path: Path) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with pytest.raises(StateError, match="UNIQUE"), store.transaction() as unit:
        unit.cases.put(make_case())
        unit.jobs.put(a_job())
        for name in ("one", "another"):
            unit.jobs.put_task(Task(task_id=name, job_id=a_job().job_id, type=TaskType.BEAM_CALC, index=1))
    store.close()


@pytest.mark.parametrize("now", [1_800_000_000, 1_800_000_000.123456, 0])
def test_a_chain_is_whole_whatever_number_the_clock_gives(tmp_path: Path, now: float) -> None:
    class Fixed(Clock):
        def now(self) -> float:
            return now

    store = SqliteStateManager(tmp_path / "mqi.sqlite", instance="i1", secret=b"", clock=Fixed())
    with store.transaction() as unit:
        unit.event("task", "k", {"text": "caf\udce9 \u2028 \0"})
    assert store.verify() is None
    with store.transaction() as unit:
        assert unit.events("k")[0]["data"] == {"text": "caf\udce9 \u2028 \0"}
    store.close()


def test_events_that_changed_places_are_found(tmp_path: Path) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    with store.transaction() as unit:
        for number in range(3):
            unit.event("task", "k", {"number": number})
    store._db.execute("DROP TRIGGER events_stay")
    for old, new in ((1, 9), (2, 1), (9, 2)):
        store._db.execute("UPDATE events SET number=? WHERE number=?", [new, old])
    assert "event 1 has been changed" in str(store.verify())
    store.close()


def test_labels_are_given_once(tmp_path: Path) -> None:
    store = sqlite(tmp_path / "mqi.sqlite")
    first: Case = make_case(key="aaaaaaaaaaaa")
    with pytest.raises(StateError, match="label"), store.transaction() as unit:
        unit.cases.put(first)
        unit.cases.put(make_case(key="bbbbbbbbbbbb").evolve(label=first.label))
    store.close()
