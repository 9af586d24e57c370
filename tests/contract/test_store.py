"""What every store promises; the in-memory twin that other tests use is held to it too."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mqi_hpc.core.causes import Cause, Retry
from mqi_hpc.core.errors import StateError
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.core.models import (
    CaseStatus,
    Job,
    JobStatus,
    SeenFolder,
    Submission,
    SubmitState,
    Task,
    TaskStatus,
    TaskType,
)
from mqi_hpc.core.monitoring import StoreCounts
from mqi_hpc.infrastructure.state import StateManager, json_state_manager, open_store
from mqi_hpc.infrastructure.state.json_document import DocumentWriter, load_document
from mqi_hpc.infrastructure.state.schema import SCHEMA_VERSION
from mqi_hpc.services.archive_service import export_state
from tests.chaos.store import QuickStore
from tests.support.bench import make_case
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock

WHEN = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)
FILES = ["mqi.sqlite", "mqi.json"]


def opened(path: Path, clock: IClock | None = None) -> StateManager:
    return open_store(path, instance="i1", secret=b"secret", clock=clock or Clock())


IN_MEMORY = {"memory": MemoryStore, "quick": QuickStore}


@pytest.fixture(params=[*FILES, *IN_MEMORY])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = IN_MEMORY.get(request.param)
    with closing(made() if made is not None else opened(tmp_path / request.param)) as store:
        yield store


@pytest.fixture(params=FILES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def reseal(path: Path, there: str, instead: str) -> None:
    """Change a JSON state file as one would who knows how its checksum is made."""
    text = path.read_text(encoding="utf-8")
    assert text.count(there) == 1
    content, seal, _ = text.replace(there, instead).rpartition('"checksum": "')
    path.write_text(f'{content}{seal}{hashlib.sha256(content.encode()).hexdigest()}"}}\n', encoding="utf-8")


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


def test_counts_are_those_of_what_is_there(store: Any) -> None:
    with store.transaction() as unit:
        nothing = StoreCounts(cases={}, jobs={}, tasks={}, attention=0)
        assert unit.counts() == nothing
        for number, status in enumerate([CaseStatus.PARTIAL, CaseStatus.PARTIAL, CaseStatus.NEW]):
            case_id = f"abcdefghijk{number}"
            attention = '"attention": look' if number == 1 else None
            unit.cases.put(
                make_case().evolve(
                    case_id=case_id,
                    label=f"P{number}",
                    status=status,
                    attention=attention,
                    metadata={"attention": "x"},
                )
            )
            job = a_job(case_id=case_id)
            unit.jobs.put(job)
            for kind in (TaskType.UPLOAD, TaskType.DOWNLOAD):
                unit.jobs.put_task(Task(task_id=f"{job.job_id}-{kind}", job_id=job.job_id, type=kind))
    with store.transaction(write=False) as unit:
        assert unit.counts() == StoreCounts(
            cases={"partial": 2, "new": 1},
            jobs={"pending": 3},
            tasks={("upload", "pending"): 3, ("download", "pending"): 3},
            attention=1,
        )


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


def test_the_tasks_of_one_job_are_forgotten_and_others_take_their_place(store: Any) -> None:
    mine, other = a_job(1), a_job(2)
    with store.transaction() as unit:
        unit.cases.put(make_case())
        for job in (mine, other):
            unit.jobs.put(job)
            unit.jobs.put_task(Task(task_id=f"{job.name}-a", job_id=job.job_id, type=TaskType.INTERPRET))
    with store.transaction() as unit:
        unit.jobs.drop_tasks(mine.job_id)
        unit.jobs.put_task(Task(task_id="b", job_id=mine.job_id, type=TaskType.INTERPRET))
    with store.transaction() as unit:
        assert [task.task_id for task in unit.jobs.tasks(mine.job_id)] == ["b"]
        assert [task.task_id for task in unit.jobs.tasks(other.job_id)] == ["j02-a"]
        unit.jobs.drop_tasks("a job that is not there")


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
def test_any_text_and_number_comes_back(path: Path, name: str, folder: str, energies: list[float]) -> None:
    case = make_case(1)
    beam = case.beams[0].evolve(name=name, energies=tuple(energies))
    case = case.evolve(folder=folder, beams=(beam,), metadata={name: folder})
    with closing(opened(path)) as store, store.transaction() as unit:
        unit.cases.put(case)
        assert unit.cases.get(case.case_id) == case
    with closing(opened(path)) as store, store.transaction(write=False) as unit:
        assert unit.cases.get(case.case_id) == case


# What breaks it, or would: of every store


def test_a_failure_of_the_block_itself_stays_what_it_is(store: Any) -> None:
    with pytest.raises(FileNotFoundError), store.transaction() as unit:
        unit.cases.put(make_case())
        raise FileNotFoundError("template.j2")
    with store.transaction() as unit:
        assert unit.cases.all() == []


def test_folders_are_remembered_as_they_were_last(store: Any) -> None:
    first = SeenFolder(folder="/cases/b", fingerprint="1", again_at=1_800_000_000.25)
    other = SeenFolder(folder="/cases/a", fingerprint="2")
    with store.transaction() as unit:
        unit.folders.put(first)
        unit.folders.put(other)
    with store.transaction() as unit:
        assert unit.folders.all() == [other, first]
        unit.folders.put(SeenFolder(folder="/cases/b", fingerprint="3"))
        unit.folders.remove("/cases/a")
        unit.folders.remove("/cases/never")
    with store.transaction(write=False) as unit:
        assert unit.folders.all() == [SeenFolder(folder="/cases/b", fingerprint="3")]


def test_tasks_because_of_which_a_node_is_left_out_are_found_until_then(store: Any) -> None:
    retry = Retry(cause=Cause.NODE_FAIL, at=1_800_000_060.5, pause=60.0, attempt=1, most=3, without="g1")
    plain = Task(task_id="a", job_id=a_job().job_id, type=TaskType.INTERPRET)
    until = Task(
        task_id="b",
        job_id=a_job().job_id,
        type=TaskType.BEAM_CALC,
        status=TaskStatus.FAILED,
        node="g1",
        ended_at=1_800_000_000.5,
        retry=retry,
        left_out_until=1_800_003_600.5,
    )
    with store.transaction() as unit:
        unit.cases.put(make_case())
        unit.jobs.put(a_job())
        unit.jobs.put_task(plain)
        unit.jobs.put_task(until)
        assert unit.jobs.left_out(1_800_003_600.0) == [until]
    with store.transaction(write=False) as unit:
        assert unit.jobs.left_out(0.0) == [until]
        assert unit.jobs.left_out(1_800_003_600.5) == []


def test_a_case_is_removed_only_before_it_has_a_job(store: Any) -> None:
    with store.transaction() as unit:
        unit.cases.put(make_case(key="aaaaaaaaaaaa"))
        unit.cases.put(make_case(key="bbbbbbbbbbbb"))
        unit.jobs.put(a_job(1, "bbbbbbbbbbbb"))
        unit.event("registered", "aaaaaaaaaaaa", {})
    with store.transaction() as unit:
        unit.cases.remove("aaaaaaaaaaaa")
        with pytest.raises(StateError, match="case bbbbbbbbbbbb has jobs"):
            unit.cases.remove("bbbbbbbbbbbb")
        with pytest.raises(StateError, match="no case aaaaaaaaaaaa"):
            unit.cases.remove("aaaaaaaaaaaa")
    with store.transaction() as unit:
        assert [case.case_id[0] for case in unit.cases.all()] == ["b"]
        assert len(unit.events("aaaaaaaaaaaa")) == 1
        unit.cases.put(make_case(key="cccccccccccc").evolve(label="P-aaaaaaaaaaaa"))


def _put_in_order(unit: Any) -> None:
    unit.cases.put(make_case())
    unit.jobs.put(a_job())
    unit.jobs.put_task(Task(task_id="one", job_id=a_job().job_id, type=TaskType.BEAM_CALC, index=1))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda unit: unit.cases.put(make_case(key="b" * 12).evolve(label=make_case().label)), "label"),
        (lambda unit: unit.jobs.put(a_job(case_id="unknown")), "FOREIGN KEY"),
        (lambda unit: unit.jobs.put(a_job().evolve(job_id="another")), "UNIQUE"),
        (lambda unit: unit.jobs.put_task(Task(task_id="t", job_id="x", type=TaskType.UPLOAD)), "FOREIGN KEY"),
        (lambda unit: unit.jobs.put_files("x", {"a": b""}), "FOREIGN KEY"),
        (
            lambda unit: unit.jobs.put_task(
                Task(task_id="another", job_id=a_job().job_id, type=TaskType.BEAM_CALC, index=1)
            ),
            "UNIQUE",
        ),
    ],
    ids=["label", "case of job", "job twice", "job of task", "job of files", "beam twice"],
)
def test_what_does_not_fit_together_is_refused(store: Any, wrong: Any, said: str) -> None:
    with store.transaction() as unit:
        _put_in_order(unit)
    with pytest.raises(StateError, match=said), store.transaction() as unit:
        wrong(unit)
    with store.transaction(write=False) as unit:
        assert unit.cases.all() == [make_case()]
        assert unit.jobs.of_case(make_case().case_id) == [a_job()]
        assert [task.task_id for task in unit.jobs.tasks(a_job().job_id)] == ["one"]


def test_nothing_is_kept_or_read_through_a_transaction_that_has_ended(store: Any) -> None:
    with store.transaction() as unit:
        pass
    for late in (
        lambda: unit.cases.put(make_case()),
        lambda: unit.cases.get("x"),
        lambda: unit.jobs.put_files("j", {}),
        unit.folders.all,
        lambda: unit.event("x", None, {}),
        unit.audit_head,
    ):
        with pytest.raises(StateError, match="transaction has ended"):
            late()
        with store.transaction(), pytest.raises(StateError, match="transaction has ended"):
            late()
    with store.transaction() as unit:
        assert unit.cases.all() == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda unit: unit.cases.put(make_case()),
        lambda unit: unit.folders.put(SeenFolder(folder="/a", fingerprint="1")),
        lambda unit: unit.resources.hold("x", 1),
        lambda unit: unit.event("x", None, {}),
    ],
)
def test_a_transaction_that_only_reads_changes_nothing(store: Any, wrong: Any) -> None:
    with pytest.raises(StateError, match="readonly"), store.transaction(write=False) as unit:
        wrong(unit)
    with store.transaction() as unit:
        assert (unit.cases.all(), unit.folders.all(), unit.resources.holdings()) == ([], [], {})
        assert unit.all_events() == []
        wrong(unit)


class _Fixed(Clock):
    def __init__(self, now: float) -> None:
        super().__init__()
        self._now = now

    def now(self) -> float:
        return self._now


@pytest.mark.parametrize("now", [1_800_000_000, 1_800_000_000.123456, 0])
@pytest.mark.parametrize("name", [*FILES, "memory"])
def test_a_chain_is_whole_whatever_number_the_clock_gives(tmp_path: Path, name: str, now: float) -> None:
    data = {"text": "caf\udce9 \u2028 \0", "n": [1e16, -0.0, 2**70], "": None}
    kept = MemoryStore(clock=_Fixed(now)) if name == "memory" else opened(tmp_path / name, _Fixed(now))
    with kept.transaction() as unit:
        unit.event("task", "k", data)
        unit.event("task", None, {})
    again = kept if name == "memory" else opened(tmp_path / name)
    with closing(kept), closing(again):
        assert again.verify() is None
        with again.transaction() as unit:
            (event,) = unit.events("k")
            assert event == {"number": 1, "time": now, "kind": "task", "case_id": "k", "data": data}
            assert [event.number for event in unit.all_events()] == [1, 2]
            assert unit.all_events()[-1].digest == unit.audit_head()


def test_a_chain_is_restored_as_it_was_and_goes_on(store: Any) -> None:
    source = MemoryStore(clock=_Fixed(5.5))
    with source.transaction() as unit:
        for number in range(3):
            unit.event("task", "k", {"number": number})
        events, head = unit.all_events(), unit.audit_head()
    with store.transaction() as unit:
        unit.restore(())
        unit.restore(events)
        assert (unit.all_events(), unit.audit_head()) == (events, head)
        unit.event("task", "k", {"number": 3})
    assert store.verify() is None
    with store.transaction() as unit:
        assert [event["data"]["number"] for event in unit.events("k")] == [0, 1, 2, 3]
        with pytest.raises(StateError, match="events of its own"):
            unit.restore(events)


def test_a_broken_chain_is_not_restored(store: Any) -> None:
    source = MemoryStore()
    with source.transaction() as unit:
        for number in range(3):
            unit.event("task", "k", {"number": number})
        events = unit.all_events()
    with store.transaction() as unit:
        with pytest.raises(StateError, match="event 2 is missing"):
            unit.restore([events[0], events[2]])
        with pytest.raises(StateError, match="event 1 is missing"):
            unit.restore(events[1:])
        assert unit.all_events() == []


_KEYS = ["a" * 12, "b" * 12]
_STEPS = st.one_of(
    st.tuples(st.just("case"), st.sampled_from(_KEYS), st.sampled_from(CaseStatus)),
    st.tuples(st.just("remove"), st.sampled_from(_KEYS), st.none()),
    st.tuples(st.just("job"), st.sampled_from(_KEYS), st.integers(1, 11)),
    st.tuples(st.just("task"), st.sampled_from(_KEYS), st.sampled_from(TaskType)),
    st.tuples(
        st.just("files"), st.sampled_from(_KEYS), st.dictionaries(TEXT, st.binary(max_size=9), max_size=2)
    ),
    st.tuples(st.just("hold"), st.sampled_from(_KEYS), st.integers(0, 3)),
    st.tuples(st.just("seen"), TEXT, st.one_of(st.none(), st.floats(0, 1e10))),
    st.tuples(st.just("unseen"), TEXT, st.none()),
    st.tuples(st.just("event"), TEXT, TEXT),
    st.tuples(st.just("fail"), st.none(), st.none()),
)


def _take(unit: Any, step: tuple[str, Any, Any]) -> None:
    what, key, value = step
    job = a_job(1, key or "")
    actions = {
        "case": lambda: unit.cases.put(make_case(key=key, status=value)),
        "remove": lambda: unit.cases.remove(key),
        "job": lambda: unit.jobs.put(a_job(value, key)),
        "task": lambda: unit.jobs.put_task(Task(task_id=f"{key}{value}", job_id=job.job_id, type=value)),
        "files": lambda: unit.jobs.put_files(job.job_id, value),
        "hold": lambda: unit.resources.hold(job.job_id, value),
        "seen": lambda: unit.folders.put(SeenFolder(folder=key, fingerprint="f", again_at=value)),
        "unseen": lambda: unit.folders.remove(key),
        "event": lambda: unit.event("task", key, {value: [value, 0.1]}),
        "fail": lambda: {}["fail"],
    }
    actions[what]()


@given(transactions=st.lists(st.lists(_STEPS, min_size=1, max_size=5), max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_all_stores_hold_the_same_after_the_same(tmp_path: Path, transactions: list[Any]) -> None:
    folder = Path(mkdtemp(dir=tmp_path))
    stores = [MemoryStore(), QuickStore(), *(opened(folder / name) for name in FILES)]
    for steps in transactions:
        said = set()
        for store in stores:
            try:
                with store.transaction() as unit:
                    for step in steps:
                        _take(unit, step)
                said.add("stands")
            except (StateError, KeyError) as error:
                said.add(type(error).__name__)
        assert len(said) == 1
        first, *others = [export_state(store) for store in stores]
        assert others == [first] * 3
    for number, name in enumerate(FILES, start=2):
        stores[number].close()
        with closing(opened(folder / name)) as again:
            assert export_state(again) == export_state(stores[0])


# Of a file


def _modes(folder: Path) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for path in folder.rglob("*"):
        found.setdefault(path.stat().st_mode & 0o777, set()).add("folder" if path.is_dir() else "file")
    return found


def test_it_survives_closing_and_is_private(path: Path) -> None:
    path = path.parent / "new" / path.name
    before = os.umask(0)
    try:
        store = opened(path)
        with store.transaction() as unit:
            unit.cases.put(make_case())
            unit.jobs.put(a_job())
            unit.jobs.put_files(a_job().job_id, {"a": b"1", "b": b"2"})
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert _modes(path.parent) in ({0o600: {"file"}}, {0o600: {"file"}, 0o700: {"folder"}})
        store.close()
    finally:
        os.umask(before)
    with closing(opened(path)) as again, again.transaction() as unit:
        assert unit.cases.all() == [make_case()]
        assert unit.jobs.files(a_job().job_id) == {"a": b"1", "b": b"2"}


def test_a_store_others_could_read_is_made_private(path: Path) -> None:
    opened(path).close()
    path.chmod(0o644)
    opened(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


_WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from tests.contract.test_store import opened, make_case
    store = opened(Path(sys.argv[1]))
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


def _count(store: StateManager) -> tuple[int, int]:
    with store.transaction(write=False) as unit:
        case = unit.cases.get("abcdefghijkl")
        return (case.metadata["count"] if case else 0), len(unit.events("abcdefghijkl"))


def test_a_kill_at_any_moment_leaves_a_state_and_its_event(path: Path) -> None:
    before = 0
    for round_ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            store = opened(path)
            while _count(store)[0] < before + 3 + round_:
                pass
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        counted, events = _count(store)
        assert counted == events > before
        assert store.verify() is None
        before = counted
        store.close()


def test_two_processes_lose_no_update(path: Path) -> None:
    opened(path).close()
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), "40"]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    with closing(opened(path)) as store:
        counted, events = _count(store)
        assert counted == events >= 40
        assert store.verify() is None


def test_another_instance_and_a_newer_version_are_refused(path: Path) -> None:
    opened(path).close()
    with pytest.raises(StateError, match="belongs to instance i1, not i2"):
        open_store(path, instance="i2", secret=b"", clock=Clock())
    if path.suffix == ".json":
        reseal(path, f'"version": {SCHEMA_VERSION}', '"version": 99')
    else:
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version=99")
    with pytest.raises(StateError, match=r"version 99, .*newer mqi-hpc"):
        opened(path)


def test_what_is_no_store_is_said_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to look at" * 50)
    with pytest.raises(StateError, match=rf"{path.name}: the (store cannot be used|state file is damaged)"):
        opened(path)
    assert path.read_bytes().startswith(b"not a database")
    assert path.stat().st_size == 50 * 49


_FILLER = textwrap.dedent(
    """
    import os, resource, signal, sys
    from pathlib import Path
    from tests.contract.test_store import StateError, a_job, make_case, opened
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = Path(sys.argv[1])
    store = opened(path)
    with store.transaction() as unit:
        unit.cases.put(make_case())
    largest = max(file.stat().st_size for file in path.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 5000, resource.RLIM_INFINITY))
    try:
        with store.transaction() as unit:
            unit.jobs.put(a_job())
            if sys.argv[2] == "files":
                unit.jobs.put_files(a_job().job_id, {"big": os.urandom(1_000_000)})
            unit.event("big", None, {"text": "x" * 1_000_000})
    except StateError as error:
        print(error)
    with store.transaction(write=False) as unit:
        assert unit.cases.all() == [make_case()]
        assert unit.jobs.of_case("abcdefghijkl") == unit.all_events() == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with store.transaction() as unit:
        unit.event("small", "k", {})
    """
)


@pytest.mark.parametrize("what", ["files", "rows"])
def test_a_full_disk_is_said_and_the_last_good_state_stays(path: Path, what: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", _FILLER, str(path), what], capture_output=True, text=True, check=True
    ).stdout
    assert "the store cannot be used" in said
    assert "nothing that was committed is lost" in said
    with closing(opened(path)) as store, store.transaction() as unit:
        assert unit.cases.all() == [make_case()]
        assert unit.jobs.of_case("abcdefghijkl") == []
        assert len(unit.events("k")) == len(unit.all_events()) == 1


def test_a_disk_full_at_the_first_start_is_said_and_the_next_start_is_whole(path: Path) -> None:
    code = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from tests.contract.test_store import StateError, opened
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = (0, 100, 200) if sys.argv[1].endswith("json") else (0, 100, 20_000, 40_000, 60_000)
        for limit in limits:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                opened(Path(sys.argv[1]))
            except StateError as error:
                print(error)
        """
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(said) == (3 if path.suffix == ".json" else 5)
    assert all("the store cannot be used: " in line for line in said)
    with closing(opened(path)) as store:
        assert store.verify() is None


def _change_case(store: StateManager, there: str, instead: str) -> StateManager:
    """Change the text of a stored case behind the store's back."""
    if store.path.suffix == ".json":
        store.close()
        reseal(store.path, there, instead)
        return opened(store.path)
    changed = store._db.execute("UPDATE cases SET body = replace(body, ?, ?)", [there, instead])
    assert changed.rowcount == 1
    return store


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ('"beam_count":3', '"beam_count":"3"'),
        ('"beam_count":3,', ""),
        ('"status":"new"', '"status":"fine"'),
        ('"number":2', '"number":2.0'),
    ],
)
def test_a_stored_value_of_another_kind_is_refused(path: Path, there: str, instead: str) -> None:
    store = opened(path)
    with store.transaction() as unit:
        unit.cases.put(make_case(3))
    with closing(_change_case(store, there, instead)) as store:
        with pytest.raises(StateError, match="a stored Case cannot be read"), store.transaction() as unit:
            unit.cases.all()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), (1, 2), {1: "a"}, "caf\udce9"])
def test_what_would_not_come_back_as_it_is_is_refused(path: Path, value: Any) -> None:
    with closing(opened(path)) as store:
        with pytest.raises(StateError, match="a Case cannot be kept"), store.transaction() as unit:
            unit.cases.put(make_case().evolve(metadata={"x": value}))


@pytest.mark.parametrize(("folder", "again_at"), [("/cases/caf\udce9", None), ("/cases/a", float("inf"))])
def test_a_folder_that_would_not_come_back_as_it_is_is_refused(
    path: Path, folder: str, again_at: float | None
) -> None:
    seen = SeenFolder(folder=folder, fingerprint="1", again_at=again_at)
    with closing(opened(path)) as store:
        with pytest.raises(StateError, match="a SeenFolder cannot be kept"), store.transaction() as unit:
            unit.folders.put(seen)


@pytest.mark.parametrize(
    "asked",
    [
        lambda unit: unit.cases.get("caf\udce9"),
        lambda unit: unit.folders.remove("/cases/caf\udce9"),
        lambda unit: unit.jobs.put_files("caf\udce9", {"a": b""}),
        lambda unit: unit.event("k", "caf\udce9", {}),
    ],
)
def test_what_is_no_unicode_is_said(path: Path, asked: Any) -> None:
    with closing(opened(path)) as store:
        with pytest.raises(StateError, match="no Unicode"), store.transaction() as unit:
            asked(unit)


def _tamper(path: Path, sql: str) -> None:
    """Change events behind the store's back, and cover the tracks as far as a file's own checks go."""
    if path.suffix != ".json":
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.executescript(sql)
            db.executescript(f"DROP TRIGGER events_stay; DROP TRIGGER events_remain; {sql};")
        return
    with closing(load_document(path.read_bytes())) as db:
        db.executescript(f"DROP TRIGGER events_stay; DROP TRIGGER events_remain; {sql};")
        path.write_bytes(DocumentWriter(db).document())


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        ("UPDATE events SET data='{}' WHERE number=2", "event 2 has been changed"),
        ("""UPDATE events SET data='{"number": 1}' WHERE number=2""", "event 2 has been changed"),
        ("DELETE FROM events WHERE number=2", "event 2 is missing"),
        ("DELETE FROM events WHERE number=3", "cut off"),
        ("DELETE FROM events", "cut off"),
        ("UPDATE events SET at=at+1 WHERE number=1", "event 1 has been changed"),
        ("UPDATE events SET case_id='j' WHERE number=1", "event 1 has been changed"),
        ("UPDATE events SET number=iif(number=1, -2, -1) WHERE number<3;"
         " UPDATE events SET number=-number WHERE number<0",
         "event 1 has been changed"),
    ],
)  # fmt: skip
def test_a_tampered_chain_of_events_is_found(path: Path, tamper: str, said: str) -> None:
    with closing(opened(path)) as store:
        with store.transaction() as unit:
            for number in range(3):
                unit.event("task", "k", {"number": number})
        assert store.verify() is None
    _tamper(path, tamper)
    with closing(opened(path)) as store:
        assert said in str(store.verify())
        with store.transaction() as unit:
            unit.event("task", "k", {})
        # What is appended does not cover it.
        assert store.verify() is not None


def test_a_block_that_swallows_what_undid_it_fails_all_the_same(path: Path) -> None:
    with closing(opened(path)) as store:
        with pytest.raises(StateError, match="transaction has ended"), store.transaction() as unit:
            unit.cases.put(make_case())
            store._db.execute("ROLLBACK")  # as SQLite does by itself, of a full disk say
        with store.transaction() as unit:
            assert unit.cases.all() == []


def test_a_reader_waits_for_no_writer_and_sees_one_state(path: Path) -> None:
    writer = opened(path)
    with writer.transaction() as unit:
        unit.cases.put(make_case(key="aaaaaaaaaaaa"))
    with writer.transaction() as unit:
        unit.cases.put(make_case(key="bbbbbbbbbbbb"))
        reader = opened(path)  # opened while another writes
        with reader.transaction(write=False) as seen:
            assert [case.case_id[0] for case in seen.cases.all()] == ["a"]
            assert seen.audit_head() == ""
    with reader.transaction(write=False) as seen:
        assert [case.case_id[0] for case in seen.cases.all()] == ["a", "b"]
        with writer.transaction() as unit:
            unit.cases.put(make_case(key="cccccccccccc"))
        assert len(seen.cases.all()) == 2
    with reader.transaction() as unit:
        unit.cases.put(make_case(key="dddddddddddd"))
    with writer.transaction() as unit:
        assert len(unit.cases.all()) == 4
    writer.close()
    reader.close()


def test_a_writer_that_stands_still_is_told_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = "from tests.contract.test_store import *\nstore = opened(Path(sys.argv[1]))\n" \
        "with store.transaction(): print('holds', flush=True); sys.stdin.read()"  # fmt: skip
    monkeypatch.setattr(json_state_manager, "_PATIENCE", 0.0)
    with closing(opened(path)) as store:
        store._db.execute("PRAGMA busy_timeout=0")
        with subprocess.Popen(
            [sys.executable, "-c", holder, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout and other.stdout.readline() == "holds\n"
            with pytest.raises(StateError, match=r"locked.*see whether it still moves"), store.transaction():
                pass
            with store.transaction(write=False) as unit:
                assert unit.cases.all() == []
            other.communicate()
        with store.transaction() as unit:
            unit.cases.put(make_case())


@pytest.mark.parametrize("left", [0, 0.5, 0.99])
def test_a_store_that_was_cut_off_is_never_begun_anew(path: Path, left: float) -> None:
    with closing(opened(path)) as store, store.transaction() as unit:
        unit.cases.put(make_case(30))
    size = int(path.stat().st_size * left)
    os.truncate(path, size)
    with pytest.raises(StateError, match="backup"), closing(opened(path)) as cut, cut.transaction() as unit:
        unit.cases.all()
    assert path.stat().st_size == size


def test_a_store_that_is_gone_is_not_begun_anew(path: Path) -> None:
    store = opened(path)
    with store.transaction() as unit:
        unit.cases.put(make_case())
    path.unlink()
    with pytest.raises(StateError, match=r"the store is gone, but .* still there"):
        opened(path)
    assert not path.exists()
    store.close()


_STARTER = """
import sys
from pathlib import Path
from tests.contract.test_store import opened
print("ready", flush=True)
for line in sys.stdin:
    store = opened(Path(line.strip()))
    with store.transaction() as unit:
        unit.event("started", "k", {})
    store.close()
    print("done", flush=True)
"""


def test_many_first_starters_agree_on_one_store(path: Path) -> None:
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", _STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert [starter.stdout.readline() for starter in starters if starter.stdout] == ["ready\n"] * 4
    paths = [path.parent / str(round_) / path.name for round_ in range(60)]
    for one in paths:
        for starter in starters:
            assert starter.stdin
            starter.stdin.write(f"{one}\n")
            starter.stdin.flush()
    for starter in starters:
        said, _ = starter.communicate()
        assert (said.count("done"), starter.returncode) == (60, 0)
    beside = (
        {"mqi.json", "mqi.json.previous", "mqi.json.writer"} if path.suffix == ".json" else {"mqi.sqlite"}
    )
    for one in paths:
        with closing(opened(one)) as store:
            with store.transaction(write=False) as unit:
                assert len(unit.events("k")) == 4
            assert store.verify() is None
        assert {file.name for file in one.parent.iterdir()} == beside


def test_damage_is_said_wherever_it_is(path: Path) -> None:
    with closing(opened(path)) as store, store.transaction() as unit:
        unit.cases.put(make_case())
    content = path.read_bytes()
    # SQLite notices by itself what makes a page no page; the JSON file's checksum, every byte.
    places = [0, 4096] if path.suffix == ".sqlite" else [*range(0, len(content), 97), len(content) - 1]
    for at in places:
        length = 4096 if path.suffix == ".sqlite" else 1
        damaged = content[:at] + b"\xa5" * length + content[at + length :]
        path.write_bytes(damaged)
        with pytest.raises(StateError, match=r"Keep .* backup"), closing(opened(path)) as broken:
            with broken.transaction() as unit:
                unit.cases.all()
        assert path.read_bytes() == damaged


# Of the file in SQLite


def test_sqlites_own_full_disk_undoes_the_transaction(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "mqi.sqlite")) as store:
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


def test_the_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "patients.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE patients (name)")
    db.commit()
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(StateError, match="database of another program"):
        opened(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644
    for version in (1, SCHEMA_VERSION):
        db.execute(f"PRAGMA user_version={version}")
        db.commit()
        with pytest.raises(StateError, match="does not say whose it is"):
            opened(path)
    db.execute("CREATE TABLE meta (name, value)")
    db.commit()
    with pytest.raises(StateError, match="does not say whose it is"):
        opened(path)
    db.close()
