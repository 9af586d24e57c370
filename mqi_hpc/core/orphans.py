"""What Slurm and the workspace hold of this instance that its store does not account for, and the reverse.

Two looks at the queue, and the store read between them: what stands in the first was sent before the store
was read, and what has ended since is not in the second. A case that is being submitted is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mqi_hpc.core.models import STAGE_OF, STAGES, Job, SubmitState, Task
from mqi_hpc.core.observation import PREFIX, Row
from mqi_hpc.core.resubmit import History, current_tasks
from mqi_hpc.records.layout import is_job, is_key

_IN_SUBMISSION = frozenset(
    {SubmitState.PLANNED, SubmitState.UPLOADED, SubmitState.SUBMITTING, SubmitState.AMBIGUOUS}
)
"""States in which Slurm may have, or may just be getting, what the store does not name yet."""
_ENDING = "COMPLETING"
_NAME = re.compile(r"([a-z0-9]{12})-(j[0-9]+)-(interpret|beams|convert)\Z")


class OrphanKind(StrEnum):
    """JOB: in Slurm, not in the store. FOLDER: on the cluster, not in the store. LOST: in the store alone."""

    JOB = "job"
    FOLDER = "folder"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """One thing that is not accounted for: what it is, and what to do about it.

    `name` is a Slurm job name, or a case key; `slurm_id` None for a folder. `cancellable`: it may be ended.
    """

    kind: OrphanKind
    name: str
    slurm_id: int | None
    what: str
    cure: str
    cancellable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All that was found, and the cases (by key, each with its reason) that were not judged."""

    orphans: tuple[Orphan, ...]
    not_judged: Mapping[str, str]


def own_rows(rows: Iterable[Row], instance: str) -> tuple[Row, ...]:
    """Return the unfinished rows that bear this instance's names."""
    return tuple(row for row in rows if row.name.startswith(f"{PREFIX}{instance}-") and not row.terminal)


def expected(cases: Mapping[str, History]) -> dict[tuple[str, int], str]:
    """Return what the store holds to be in Slurm, by (name, id): the key of its case."""
    return {
        (submission.name, submission.slurm_id): key
        for key, history in cases.items()
        for job in history.jobs
        if job.submit_state is SubmitState.STANDING
        for submission in job.submissions
        if submission.slurm_id is not None and _live(history.tasks[job.job_id], submission.stage)
    }


def find_orphans(
    instance: str,
    cases: Mapping[str, History],
    *,
    before: Iterable[Row],
    after: Iterable[Row],
    folders: Iterable[str],
) -> Verdict:
    """Return what Slurm and the workspace hold and the store does not account for.

    `cases` are all of the store, by key, read after `before` and ahead of `after`, two looks at the queue;
    `folders` are the names in the workspace, listed before the store was read.
    """
    still = {(row.name, row.job) for row in own_rows(after, instance)}
    seen = {(row.name, row.job) for row in own_rows(before, instance)} & still
    not_judged = {}
    orphans = []
    for name, slurm_id in sorted(seen, key=_order):
        match = _NAME.match(name[len(f"{PREFIX}{instance}-") :])
        history = cases.get(match[1]) if match else None
        found = _judged(match, name, slurm_id, history)
        if found is None:
            continue
        if match and history is not None and (why := _in_submission(history) or _to_come(history, match[2])):
            not_judged[match[1]] = why
        else:
            orphans.append(found)
    orphans += [_folder(name) for name in sorted(folders) if is_key(name) and name not in cases]
    return Verdict(orphans=tuple(orphans), not_judged=not_judged)


def find_lost(
    wanted: Mapping[tuple[str, int], str], *, queue: Iterable[Row], accounted: Iterable[Row]
) -> tuple[Orphan, ...]:
    """Return what of `wanted` (see `expected`) neither queue nor accounting knows, asked after the store."""
    known = {(row.name, row.job) for row in (*queue, *accounted)}
    return tuple(
        Orphan(
            kind=OrphanKind.LOST,
            name=name,
            slurm_id=slurm_id,
            what="the store holds it unfinished; neither squeue nor sacct knows it",
            cure="The daemon judges it by its records, or lost, after a while; then `mqi-hpc resubmit`",
        )
        for name, slurm_id in sorted(wanted, key=_order)
        if (name, slurm_id) not in known
    )


def targets(orphans: Iterable[Orphan]) -> tuple[tuple[str, int], ...]:
    """Return what to cancel, (name, id), a convert before the array it waits for."""
    return tuple(
        (orphan.name, orphan.slurm_id)
        for orphan in orphans
        if orphan.cancellable and orphan.slurm_id is not None
    )


def left(wanted: Iterable[tuple[str, int]], rows: Iterable[Row]) -> tuple[tuple[str, int], ...]:
    """Return what of `wanted` a look at the queue shows unfinished; what is about to end counts as ended."""
    live = {(row.name, row.job) for row in rows if not row.terminal and row.word != _ENDING}
    return tuple(one for one in wanted if one in live)


def _in_submission(history: History) -> str:
    """Return why nothing that a case has in Slurm can be judged, "" where it can."""
    for job in history.jobs:
        if job.submit_state in _IN_SUBMISSION:
            return f"{job.name} is {job.submit_state}: what Slurm has of it may not be in the store yet"
    return ""


def _to_come(history: History, name: str) -> str:
    """Return why a job that the store does not know may be taken over yet, "" where none comes by itself."""
    if not is_job(name) or not history.jobs or any(job.name == name for job in history.jobs):
        return ""
    if history.slurm_ended and not any(task.retry is not None for task in current_tasks(history)):
        return ""
    return f"{name} is not in the store, and the case is not over: a store that is an older one takes it over"


def _judged(match: re.Match[str] | None, name: str, slurm_id: int, history: History | None) -> Orphan | None:
    if match is None or not is_job(match[2]):
        return _job(name, slurm_id, "its name is none that this program gives", _BY_HAND, cancellable=False)
    if history is None:
        return _job(name, slurm_id, f"the store knows no case {match[1]}", _ADOPT)
    job = next((job for job in history.jobs if job.name == match[2]), None)
    if job is None:
        return _job(name, slurm_id, f"the store knows no {match[2]} of case {match[1]}", _OLDER)
    why = _over(job, history.tasks[job.job_id], match[3], slurm_id)
    return _job(name, slurm_id, why, _CANCEL) if why else None


def _over(job: Job, tasks: Sequence[Task], stage: str, slurm_id: int) -> str:
    """Return why a row of a known job is an orphan, "" where it is none."""
    if job.submit_state is not SubmitState.STANDING:
        return f"{job.name} was {job.submit_state}: nothing of it should be in Slurm"
    submission = job.submission(stage)
    if submission is None:
        return f"{job.name} has no {stage}"
    if submission.slurm_id != slurm_id:
        return f"the {stage} of {job.name} has the id {submission.slurm_id}: this one gets through no fence"
    if not _live(tasks, stage):
        return f"the {stage} of {job.name} is over"
    return ""


def _live(tasks: Sequence[Task], stage: str) -> bool:
    return any(STAGE_OF.get(task.type) == stage and not task.status.terminal for task in tasks)


def _job(name: str, slurm_id: int, what: str, cure: str, *, cancellable: bool = True) -> Orphan:
    return Orphan(
        kind=OrphanKind.JOB, name=name, slurm_id=slurm_id, what=what, cure=cure, cancellable=cancellable
    )


def _folder(key: str) -> Orphan:
    return Orphan(
        kind=OrphanKind.FOLDER,
        name=key,
        slurm_id=None,
        what="a case's folder in the workspace, and the store knows no such case",
        cure="If the store was lost: submit the case again, and it is taken over; else remove the folder",
    )


def _order(one: tuple[str, int]) -> tuple[str, int, int]:
    """Cases and jobs by name, the last stage of each first."""
    stem, _, stage = one[0].rpartition("-")
    return stem, -STAGES.index(stage) if stage in STAGES else 1, one[1]


_CANCEL = "`mqi-hpc doctor --orphans --cancel` ends it"
_ADOPT = f"If the store was lost: submit the case again, and it is taken over. Else {_CANCEL}"
_OLDER = f"If the store is an older one: `mqi-hpc resubmit` takes it over. Else {_CANCEL}"
_BY_HAND = "Look at it by hand (scontrol show job): it is left alone"
