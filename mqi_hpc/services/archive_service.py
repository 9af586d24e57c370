"""The whole state as one JSON document, and a store made of it again: backup, another machine or backend."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.event_chain import ChainedEvent, chain_fault
from mqi_hpc.core.interfaces import IStore, IUnit
from mqi_hpc.core.models import Case, Job, SeenFolder, Task

FORMAT: Final = "mqi-hpc export"
VERSION: Final = 1

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Secret = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """`contents` are base64 by SHA-256; `files` say by job and path which content is theirs."""

    format: Literal["mqi-hpc export"] = FORMAT
    version: Literal[1] = VERSION
    instance: str
    secret: _Secret
    cases: list[Case]
    jobs: list[Job]
    tasks: list[Task]
    files: dict[str, dict[str, _Digest]]
    contents: dict[_Digest, str]
    holdings: dict[str, int]
    folders: list[SeenFolder]
    events: list[ChainedEvent]
    head: str
    checksum: str = ""


_DOCUMENT = TypeAdapter(_Document)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """How much a store was made of, and the head of its chain of events."""

    instance: str
    cases: int
    jobs: int
    tasks: int
    files: int
    folders: int
    events: int
    head: str


def export_state(store: IStore) -> dict[str, Any]:
    """Return all a store holds, of one moment, as a document for `json.dump`.

    It holds the instance's secret, without which cases would not be found again on the cluster: whoever
    writes it writes it mode 0600. Raises StateError where the store is not whole.
    """
    contents: dict[str, str] = {}
    with store.transaction(write=False) as unit:
        cases = unit.cases.all()
        jobs = [job for case in cases for job in unit.jobs.of_case(case.case_id)]
        tasks = [task for job in jobs for task in unit.jobs.tasks(job.job_id)]
        files = {job.job_id: _by_digest(unit.jobs.files(job.job_id), contents) for job in jobs}
        events, head = unit.all_events(), unit.audit_head()
        holdings, folders = unit.resources.holdings(), unit.folders.all()
    fault = chain_fault(events, head)
    if fault is not None:
        raise StateError(
            f"the store's chain of events is broken: {fault}",
            fix="Nothing is exported: no store could be made of it. Keep the store for whoever looks into it",
        )
    document = _Document(
        instance=store.instance,
        secret=store.secret.hex(),
        cases=cases,
        jobs=jobs,
        tasks=tasks,
        files={job_id: named for job_id, named in files.items() if named},
        contents=contents,
        holdings=holdings,
        folders=folders,
        events=events,
        head=head,
    )
    data: dict[str, Any] = _DOCUMENT.dump_python(document, mode="json")
    data["checksum"] = _checksum(data)
    return data


def exported_instance(data: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return id and secret of the instance an export is of; raises StateError as `import_state` does."""
    document = _parse(data)
    return document.instance, bytes.fromhex(document.secret)


def import_state(store: IStore, data: Mapping[str, Any]) -> ImportSummary:
    """Make an empty store hold what was exported, in one transaction.

    The store must be of the export's own instance and secret. Raises StateError, and keeps nothing, where
    the store is not empty or the document is not whole.
    """
    document = _parse(data)
    if (store.instance, store.secret.hex()) != (document.instance, document.secret):
        raise StateError(
            f"the export is of instance {document.instance}, the store of another",
            fix="Its identity comes first: begin with a state file that has no .instance file beside it",
        )
    contents = _decoded(document)
    with store.transaction() as unit:
        _require_empty(unit)
        _put(unit, document, contents)
    return ImportSummary(
        instance=document.instance,
        cases=len(document.cases),
        jobs=len(document.jobs),
        tasks=len(document.tasks),
        files=sum(len(named) for named in document.files.values()),
        folders=len(document.folders),
        events=len(document.events),
        head=document.head,
    )


def _by_digest(files: Mapping[str, bytes], contents: dict[str, str]) -> dict[str, str]:
    named = {}
    for path, content in files.items():
        named[path] = hashlib.sha256(content).hexdigest()
        if named[path] not in contents:
            contents[named[path]] = base64.b64encode(content).decode()
    return named


def _checksum(data: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in data.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _parse(data: Mapping[str, Any]) -> _Document:
    """Return a document that is whole in itself."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise _refused("this is no export of mqi-hpc", fix="Name a file that `mqi-hpc export` has written")
    version = data.get("version")
    if version != VERSION:
        raise _refused(
            f"the export is of version {version}, this program knows {VERSION}",
            fix="Import it with the mqi-hpc that wrote it, or a newer one",
        )
    try:
        document: _Document = _DOCUMENT.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _refused(f"{place}: {first['msg']}") from error
    if document.checksum != _checksum(data):
        raise _refused("it is not as it was written: its checksum differs")
    _check_relations(document)
    fault = chain_fault(document.events, document.head)
    if fault is not None:
        raise _refused(f"its chain of events is broken: {fault}")
    return document


def _check_relations(document: _Document) -> None:
    cases = _once("case", (case.case_id for case in document.cases))
    jobs = _once("job", (job.job_id for job in document.jobs))
    _once("task", (task.task_id for task in document.tasks))
    # Neither is named: a label or a folder may tell of a patient.
    if len({case.label for case in document.cases}) < len(document.cases):
        raise _refused("two cases have the same label")
    if len({seen.folder for seen in document.folders}) < len(document.folders):
        raise _refused("a folder is there twice")
    for job in document.jobs:
        if job.case_id not in cases:
            raise _refused(f"case {job.case_id} of job {job.job_id} is missing")
    for what, owners in (
        ("a task", {task.job_id for task in document.tasks}),
        ("a file", document.files.keys()),
        ("a holding", document.holdings.keys()),
    ):
        for job_id in sorted(owners - jobs):
            raise _refused(f"job {job_id} of {what} is missing")


def _once(what: str, ids: Iterable[str]) -> set[str]:
    counted = Counter(ids)
    for name, count in counted.items():
        if count > 1:
            raise _refused(f"{what} {name} is there {count} times")
    return set(counted)


def _decoded(document: _Document) -> dict[str, bytes]:
    contents = {}
    for digest, text in document.contents.items():
        try:
            contents[digest] = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise _refused(f"content {digest} is no base64") from error
        if hashlib.sha256(contents[digest]).hexdigest() != digest:
            raise _refused(f"content {digest} is damaged")
    for job_id, files in document.files.items():
        for path, digest in files.items():
            if digest not in contents:
                raise _refused(f"the content of {path} of job {job_id} is missing")
    return contents


def _require_empty(unit: IUnit) -> None:
    if unit.audit_head() or unit.cases.all() or unit.folders.all() or unit.resources.holdings():
        raise StateError(
            "the store is not empty: nothing is imported",
            fix="Name a new file in app.state_file, or move this one away with all that bears its name",
        )


def _put(unit: IUnit, document: _Document, contents: Mapping[str, bytes]) -> None:
    for case in document.cases:
        unit.cases.put(case)
    for job in document.jobs:
        unit.jobs.put(job)
    for task in document.tasks:
        unit.jobs.put_task(task)
    for job_id, files in document.files.items():
        unit.jobs.put_files(job_id, {path: contents[digest] for path, digest in files.items()})
    for job_id, count in document.holdings.items():
        unit.resources.hold(job_id, count)
    for seen in document.folders:
        unit.folders.put(seen)
    unit.restore(document.events)


def _refused(what: str, fix: str = "Nothing is imported; export again, or take another backup") -> StateError:
    return StateError(what, where="the export", fix=fix)
