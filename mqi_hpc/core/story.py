"""A case's events in words: what was done, what was seen, and on what evidence it was judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mqi_hpc.core.models import STAGES, Case, TaskType

_Data = Mapping[str, Any]
_DIGEST = 16
"""Characters of a digest that a person is shown; the event holds it whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event in words: `number` in the chain, `at` UTC epoch s, `text`, and the `evidence` line by line.

    `data` is the event as it was written.
    """

    number: int
    at: float
    kind: str
    text: str
    evidence: tuple[str, ...]
    data: _Data


def story(case: Case, events: Sequence[Mapping[str, Any]], beam: int | None = None) -> tuple[Told, ...]:
    """Return a case's events in words, oldest first; with `beam` (DICOM number) without those of other beams.

    `events` are those of `IUnit.events`. An event of another kind or form than this program writes is told as
    it stands.
    """
    wanted = None if beam is None else next(b.index for b in case.beams if b.number == beam)
    return tuple(_tell(case, event) for event in events if wanted is None or _concerns(event["data"], wanted))


def _concerns(data: _Data, index: int) -> bool:
    kind, number = _task(str(data.get("task", "")))
    return kind is not TaskType.BEAM_CALC or number == index


def _tell(case: Case, event: Mapping[str, Any]) -> Told:
    data = event["data"]
    try:
        words = _WORDS[event["kind"]](case, data)
    except (KeyError, TypeError, AttributeError):
        # Written by another version of this program: told as it stands.
        words = f"{event['kind']}: {_plain(data)}"
    return Told(
        number=event["number"],
        at=event["time"],
        kind=event["kind"],
        text=words,
        evidence=_evidence(data.get("evidence")),
        data=data,
    )


def _evidence(said: _Data | None) -> tuple[str, ...]:
    if said is None:
        return ()
    record = said["record"]
    digest = f", sha256 {record['sha256'][:_DIGEST]}…" if record["sha256"] else ""
    why = f": {record['why']}" if record["why"] else ""
    looks = f"{said['polls']} look{'s' if said['polls'] != 1 else ''}"
    exit_record = "no exit record" if said["exit_record"] is None else f"exit record: {said['exit_record']}"
    return (
        f"row of the table: {said['row']} (for {said['waited']:g} s, {looks})",
        _witness("squeue", said["queue"], "gave no good answer"),
        _witness("sacct", said["accounting"], f"was {said['accounting_state']}"),
        f"record: {record['is']}{digest}{why}; {exit_record}",
    )


def _witness(name: str, lines: Sequence[str] | None, silent: str) -> str:
    if lines is None:
        return f"{name}: {silent}"
    return f"{name}: {' / '.join(lines) or 'knows nothing of it'}"


def _task(task_id: str) -> tuple[TaskType | None, int]:
    """Return kind and array index of a task by its id, `key-j01/beam_calc-2`."""
    name = task_id.rpartition("/")[2]
    kind, _, index = name.partition("-")
    return (TaskType(kind) if kind in set(TaskType) else None), int(index) if index.isdecimal() else 0


def _who(case: Case, task_id: str) -> str:
    kind, index = _task(task_id)
    job = task_id.rpartition("/")[0].rpartition("-")[2]
    if kind is TaskType.BEAM_CALC and index < len(case.beams):
        return f"{job} beam {case.beams[index].number} (array index {index})"
    return f"{job} {kind or task_id}"


def _of_task(case: Case, data: _Data) -> str:
    phase = data["phase"] or data["to"]
    aside = "" if phase == data["to"] else f", {data['to']}"
    detail = f": {data['detail']}" if data.get("detail") else ""
    return f"{_who(case, data['task'])}: {phase}{aside}{detail}"


def _of_submission(_: Case, data: _Data) -> str:
    ids = _ids({stage: number for stage, number in data["ids"].items() if number is not None})
    return f"{data['job']}: submission {data['to']}{_if(data['why'])}{f' ({ids})' if ids else ''}"


def _planned(_: Case, data: _Data) -> str:
    beams = f" of beams {', '.join(map(str, data['beams']))}" if data["beams"] else ""
    again = f"; by itself: {_plain(data['automatic'])}" if data.get("automatic") else ""
    return f"{data['job']} planned: {', '.join(data['stages'])}{beams}{again}"


def _sent(_: Case, data: _Data) -> str:
    if data["command"] == "upload":
        sent, folder = data["input"], data["folder"]
        return (
            f"{data['job']}: upload begun: {sent['files']} files, {sent['bytes']} bytes, manifest"
            f" {sent['manifest'][:_DIGEST]}…; {folder['files']} files of the job, manifest"
            f" {folder['manifest'][:_DIGEST]}…"
        )
    if data["command"] == "submit":
        digest = f", sha256 {data['script'][:_DIGEST]}…" if data["script"] else ""
        return f"{data['job']}: submit.sh started{digest}"
    return f"{data['job']}: download begun: {len(data['results'])} results, {data['logs']} logs"


def _answered(_: Case, data: _Data) -> str:
    what = f"{data['job']}: {data['command']}"
    if "error" in data:
        open_ = ", it may have had its effect" if data["uncertain"] else ""
        return f"{what} failed: {data['error']}{open_}"
    if data["command"] != "submit":
        return f"{what} done"
    ids = _ids({stage: one["id"] for stage, one in data["receipts"].items()})
    sbatch = data.get("sbatch")
    refused = f"; sbatch of {sbatch['stage']} said: {sbatch['said']}" if sbatch else ""
    head = f"; its head: {data['head']}" if data["head"] else ""
    notes = f"; {'; '.join(data['notes'])}" if data["notes"] else ""
    return f"{what}: it ended with {data['ended']}; receipts: {ids or 'none'}{refused}{head}{notes}"


def _of_case(_: Case, data: _Data) -> str:
    attention = f"; needs attention: {data['attention']}" if data["attention"] else ""
    return f"case {data['to']} (was {data['from']}){attention}"


def _targets(data: _Data) -> str:
    return ", ".join(f"{name} {slurm_id}" for name, slurm_id in data["targets"])


def _ids(by_stage: _Data) -> str:
    return ", ".join(f"{stage} {by_stage[stage]}" for stage in STAGES if stage in by_stage)


def _if(text: object) -> str:
    return f": {text}" if text else ""


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return str(value)


_WORDS: dict[str, Callable[[Case, _Data], str]] = {
    "registered": lambda _, data: f"registered as {data['label']}, beams {_plain(data['beams'])}",
    "case": _of_case,
    "job planned": _planned,
    "job": lambda _, data: f"{data['job']}: {data['to']}",
    "submission": _of_submission,
    "task": _of_task,
    "sent": _sent,
    "answered": _answered,
    "contradicted": lambda case, data: (
        f"{_who(case, data['task'])}: {data['verdict']} stands, but Slurm says {data['slurm']}:"
        f" {data['line']}"
    ),
    "confirmed": lambda case, data: f"{_who(case, data['task'])}: accounting agrees at last: {data['line']}",
    "cancelling": lambda _, data: f"scancel started: {_targets(data)}",
    "cancelled": lambda _, data: f"scancel of {_targets(data)} answered{_if(data['said'].strip())}",
    "order": lambda _, data: f"{data['who']} asked for {data['verb']}: {data['said']}",
    "pruning": lambda _, data: f"prune begun, {data['side']}: {data['where']}",
    "pruned": lambda _, data: f"pruned, {data['side']}: {_plain(data['where'])}",
    "prune failed": lambda _, data: f"prune failed, {data['side']}{_if(data.get('why'))}",
    "adopted": lambda _, data: f"{data['job']} found on the cluster and taken over, {data['state']}",
}
