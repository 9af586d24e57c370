"""A state that is exported and imported is the same state, in any backend; nothing less is taken in."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.models import (
    CaseStatus,
    Job,
    JobStatus,
    SeenFolder,
    Submission,
    SubmitState,
    Task,
    TaskType,
)
from mqi_hpc.infrastructure.state import load_or_create_instance, open_store, write_instance
from mqi_hpc.services.archive_service import ImportSummary, export_state, exported_instance, import_state
from tests.support.bench import Bench, make_case
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock

BACKENDS = ["mqi.sqlite", "mqi.json", "memory"]
PYZ = bytes(range(256))
Maker = Callable[[str], Any]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    with ExitStack() as stack:
        count = 0

        def maker(backend: str) -> Any:
            nonlocal count
            count += 1
            if backend == "memory":
                return MemoryStore()
            store = open_store(
                tmp_path / str(count) / backend, instance="i1", secret=b"secret", clock=Clock()
            )
            stack.callback(store.close)
            return store

        yield maker


def fill(store: Any) -> Any:
    case = make_case(key="a" * 12, status=CaseStatus.PARTIAL).evolve(metadata={"Grüße": [1, 0.1, None]})
    refused = make_case(key="b" * 12, status=CaseStatus.REJECTED).evolve(beams=(), rejected=("no plan",))
    with store.transaction() as unit:
        for one in (case, refused, make_case(key="c" * 12)):
            unit.cases.put(one)
            unit.event("registered", one.case_id, {"text": "caf\udce9 \0", "n": [1e16, 0.1]})
        for number in (1, 2):
            job = Job(
                job_id=f"{case.case_id}-j{number:02d}",
                case_id=case.case_id,
                status=JobStatus.RUNNING,
                created_at=case.created_at,
                name=f"j{number:02d}",
                submit_state=SubmitState.STANDING,
                submissions=(
                    Submission(stage="beams", name="n", indices=(0, 3), slurm_id=7, cluster_time=1.5),
                ),
            )
            unit.jobs.put(job)
            for kind, index in ((TaskType.UPLOAD, 0), (TaskType.BEAM_CALC, 0), (TaskType.BEAM_CALC, 1)):
                unit.jobs.put_task(
                    Task(task_id=f"{job.job_id}/{kind}-{index}", job_id=job.job_id, type=kind, index=index)
                )
            unit.jobs.put_files(job.job_id, {"stages.pyz": PYZ, "chain.json": b"%d" % number})
            unit.resources.hold(job.job_id, number)
        unit.folders.put(SeenFolder(folder="/cases/a", fingerprint="1", again_at=5.5))
        unit.event("started", None, {})
    return store


def whole(store: Any) -> dict[str, Any]:
    """All a store holds, read through its unit."""
    with store.transaction(write=False) as unit:
        jobs = [job for case in unit.cases.all() for job in unit.jobs.of_case(case.case_id)]
        return {
            "cases": unit.cases.all(),
            "jobs": jobs,
            "tasks": [unit.jobs.tasks(job.job_id) for job in jobs],
            "files": [unit.jobs.files(job.job_id) for job in jobs],
            "holdings": unit.resources.holdings(),
            "folders": unit.folders.all(),
            "events": unit.all_events(),
            "head": unit.audit_head(),
        }


def sent(document: dict[str, Any]) -> dict[str, Any]:
    """What comes out of a file it was written to."""
    return dict(json.loads(json.dumps(document)))


def resealed(document: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in document.items() if name != "checksum"}
    checksum = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {**rest, "checksum": checksum}


@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("source", BACKENDS)
def test_it_comes_whole_from_any_backend_to_any(make: Maker, source: str, target: str) -> None:
    kept = fill(make(source))
    document = sent(export_state(kept))
    made = make(target)
    said = import_state(made, document)
    head = whole(kept)["head"]
    assert said == ImportSummary(
        instance="i1", cases=3, jobs=2, tasks=6, files=4, folders=1, events=4, head=head
    )
    assert whole(made) == whole(kept)
    assert made.verify() is None
    assert export_state(made) == document
    with made.transaction() as unit:
        unit.event("imported", None, {})
    assert made.verify() is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_state_is_one_too(make: Maker, backend: str) -> None:
    made = make(backend)
    assert import_state(made, sent(export_state(make(backend)))).cases == 0
    assert import_state(made, sent(export_state(make(backend)))).events == 0


def test_a_case_that_ran_comes_whole(make: Maker) -> None:
    bench = Bench()
    with bench.store.transaction() as unit:
        unit.cases.put(make_case())
    bench.orchestrator.process_case(make_case().case_id)
    made = make("mqi.json")
    import_state(made, sent(export_state(bench.store)))
    assert whole(made) == whole(bench.store)


def test_a_content_of_many_jobs_is_in_it_once(make: Maker) -> None:
    document = export_state(fill(make("memory")))
    encoded = base64.b64encode(PYZ).decode()
    assert json.dumps(document).count(encoded) == 1
    assert len(document["contents"]) == 3


def test_the_identity_comes_first(make: Maker, tmp_path: Path) -> None:
    state = tmp_path / "there" / "mqi.sqlite"
    own = load_or_create_instance(tmp_path / "here" / "mqi.sqlite")
    kept = open_store(tmp_path / "here" / "mqi.sqlite", instance=own.id, secret=own.secret, clock=Clock())
    document = sent(export_state(kept))
    kept.close()
    identity, secret = exported_instance(document)
    assert (identity, secret) == (own.id, own.secret)
    assert write_instance(state, identity, secret) == own
    made = open_store(state, instance=identity, secret=secret, clock=Clock())
    assert import_state(made, document).instance == own.id
    made.close()
    for other in (MemoryStore("i2", own.secret), MemoryStore(own.id, b"other")):
        with pytest.raises(StateError, match=f"the export is of instance {own.id}, the store of another"):
            import_state(other, document)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "something",
    [
        lambda unit: unit.cases.put(make_case()),
        lambda unit: unit.event("started", None, {}),
        lambda unit: unit.folders.put(SeenFolder(folder="/a", fingerprint="1")),
        lambda unit: unit.resources.hold("x", 1),
    ],
)
def test_a_store_that_is_not_empty_is_left_as_it_is(make: Maker, backend: str, something: Any) -> None:
    made = make(backend)
    with made.transaction() as unit:
        something(unit)
    before = whole(made)
    with pytest.raises(StateError, match=r"not empty: nothing is imported\. Name a new file"):
        import_state(made, sent(export_state(fill(make("memory")))))
    assert whole(made) == before


def test_a_broken_chain_is_not_exported(make: Maker) -> None:
    kept = fill(make("mqi.sqlite"))
    kept._db.executescript("DROP TRIGGER events_remain; DELETE FROM events WHERE number=2;")
    with pytest.raises(
        StateError, match=r"chain of events is broken: event 2 is missing\. Nothing is exported"
    ):
        export_state(kept)


def _set(*places: Any) -> Callable[[dict[str, Any]], Any]:
    *path, name, value = places

    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for place in path:
            inner = inner[place]
        inner[name] = value(inner[name]) if callable(value) else value

    return change


def _twice(name: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document[name].append({**document[name][0], **changes})


ONE = hashlib.sha256(b"1").hexdigest()
WRONG: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("other format", _set("format", "x"), "no export of mqi-hpc"),
    ("no format", lambda d: d.pop("format"), "no export of mqi-hpc"),
    ("newer", _set("version", 2), r"version 2, this program knows 1.*or a newer one"),
    ("no version", lambda d: d.pop("version"), "version None"),
    ("no cases", lambda d: d.pop("cases"), "cases: Field required"),
    ("unknown part", lambda d: d.update(more=1), "more: "),
    ("no secret", lambda d: d.pop("secret"), "secret: Field required"),
    ("half a secret", _set("secret", "abc"), "secret: "),
    ("text for a number", _set("cases", 0, "beam_count", "2"), r"cases\.0\.beam_count: Input should be"),
    ("no status", _set("jobs", 1, "status", "fine"), r"jobs\.1\.status: "),
    ("no digest", _set("files", "a" * 12 + "-j01", "stages.pyz", "../x"), r"files\.a{12}-j01\.stages\.pyz: "),
    ("case twice", _twice("cases", label="other"), "case a{12} is there 2 times"),
    ("label twice", _set("cases", 0, "label", "P-" + "b" * 12), "two cases have the same label"),
    ("job twice", _twice("jobs"), "job a{12}-j01 is there 2 times"),
    ("task twice", _twice("tasks"), "task a{12}-j01/upload-0 is there 2 times"),
    ("folder twice", _twice("folders"), "a folder is there twice"),
    ("case gone", lambda d: d["cases"].pop(0), "case a{12} of job a{12}-j01 is missing"),
    ("job gone", lambda d: d["jobs"].pop(1), "job a{12}-j02 of a task is missing"),
    ("file of no job", _set("files", lambda f: {**f, "x": {}}), "job x of a file is missing"),
    ("holding of no job", _set("holdings", {"x": 1}), "job x of a holding is missing"),
    ("content gone", lambda d: d["contents"].pop(ONE), "content of chain.json of job a{12}-j01 is missing"),
    ("content changed", _set("contents", ONE, "Mg=="), f"content {ONE} is damaged"),
    ("no base64", _set("contents", ONE, "M?=="), f"content {ONE} is no base64"),
    ("event gone", lambda d: d["events"].pop(1), "its chain of events is broken: event 2 is missing"),
    ("event changed", _set("events", 1, "kind", "x"), "broken: event 2 has been changed"),
    ("events cut off", lambda d: d["events"].pop(), "broken: events at the end have been cut off"),
    ("head changed", _set("head", "0" * 64), "broken: events at the end have been cut off"),
    ("event's form", _set("events", 3, "body", "{ }"), "broken: event 4 has been changed"),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("change", "said"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_is_not_whole_is_not_taken_in(
    make: Maker, backend: str, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    document = sent(export_state(fill(make("memory"))))
    change(document)
    made = make(backend)
    with pytest.raises(StateError, match=said) as told:
        import_state(made, resealed(document))
    assert told.value.where == "the export"
    assert told.value.fix
    assert whole(made) == whole(MemoryStore())
    import_state(made, sent(export_state(fill(make("memory")))))


@pytest.mark.parametrize(
    "change", [_set("cases", 0, "label", "P-x"), lambda d: d["folders"].clear(), _set("checksum", "")]
)
def test_what_was_changed_by_hand_is_not_taken_in(
    make: Maker, change: Callable[[dict[str, Any]], Any]
) -> None:
    document = sent(export_state(fill(make("memory"))))
    change(document)
    with pytest.raises(StateError, match="its checksum differs"):
        import_state(make("memory"), document)
    with pytest.raises(StateError, match="its checksum differs"):
        exported_instance(document)


@pytest.mark.parametrize("data", [[], "text", None, {}])
def test_what_is_no_document_at_all_is_said(make: Maker, data: Any) -> None:
    with pytest.raises(StateError, match=r"no export of mqi-hpc\. Name a file that"):
        import_state(make("memory"), data)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_import_that_fails_half_way_leaves_nothing(
    make: Maker, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = sent(export_state(fill(make("memory"))))
    # Two tasks for one beam: the store's own check, after much has been put.
    document["tasks"][5]["index"] = 0
    made = make(backend)
    with pytest.raises(StateError, match="UNIQUE"):
        import_state(made, resealed(document))
    assert whole(made) == whole(MemoryStore())
