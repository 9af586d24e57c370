"""When a person should look at a task, and the way on from each state that does not go on by itself."""

from __future__ import annotations

from mqi_hpc.core.models import Task, TaskStatus, TaskType
from mqi_hpc.core.readings import WITHOUT_ACCOUNTING

WAYS = {
    "held": "whoever holds it releases it (`scontrol release`), or `mqi-hpc cancel` it",
    "blocked": "mend what Slurm names, or `mqi-hpc cancel` it, mend the configuration and `resubmit`",
    "unknown": "it is looked at again; `mqi-hpc why` shows what Slurm said: is there a newer mqi-hpc?",
    "unreadable": (
        "it is read again with each look; is the job's folder on the cluster as it should be?"
        " `mqi-hpc cancel` gives it up"
    ),
    "waiting": "it goes on when slurmdbd answers again; `mqi-hpc cancel` gives it up",
    "no space": "make room, it goes on by itself",
    "no folder": "mend what is said, it goes on by itself; `mqi-hpc cancel` gives it up",
    "limited": "it goes on by itself when the limit allows; `mqi-hpc cancel` gives it up",
    "not taken": "it goes on by itself when Slurm takes it; `mqi-hpc cancel` gives it up",
    "suspect": "look at it (`mqi-hpc why`), then `mqi-hpc accept --reason` or `mqi-hpc resubmit`",
    "lost": "`mqi-hpc resubmit`",
    "contradicted": "look at it (`mqi-hpc why`), then `mqi-hpc accept --reason` or `mqi-hpc resubmit --beam`",
}
"""The way on from each phase in which nothing goes on without a person."""

_FAILED = "`mqi-hpc resubmit`"
_NOT_FETCHED = (
    "`mqi-hpc fetch`; where the results on the cluster are damaged or gone, `mqi-hpc resubmit --convert-only`"
)


def asks(status: TaskStatus, phase: str) -> bool:
    """Whether a task of this status and phase asks for a person."""
    return status in (TaskStatus.SUSPECT, TaskStatus.LOST) or phase in WAYS


def needs_person(task: Task) -> bool:
    """Whether a task asks for a person: by its state, or because its verdict has been contradicted since."""
    return asks(task.status, task.phase) or _doubted(task)


def reason(task: Task) -> str:
    """Return why a task asks for a person."""
    if _doubted(task):
        return f"{task.phase}, but {task.contradicted}"
    return f"{task.phase}{f': {task.detail}' if task.detail else ''}"


def way_on(task: Task) -> str:
    """Return which way leads on for a task, "" where it goes on, or is done, by itself."""
    if _doubted(task):
        return WAYS["contradicted"]
    for word in (task.phase, task.status):
        if word in WAYS:
            return WAYS[word]
    if task.type is TaskType.DOWNLOAD and (task.status, task.phase) == (TaskStatus.FAILED, "failed"):
        return _NOT_FETCHED
    if task.status in (TaskStatus.FAILED, TaskStatus.CANCELLED) and task.retry is None:
        return _FAILED
    return ""


def _doubted(task: Task) -> bool:
    """Whether Slurm contradicts a verdict that rests on files alone: it had not agreed before."""
    return bool(task.contradicted) and task.noted.startswith(WITHOUT_ACCOUNTING)
