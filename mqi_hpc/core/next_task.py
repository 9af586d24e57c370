"""What a job's next task is, told from its stored state alone: the same after any restart."""

from __future__ import annotations

from collections.abc import Sequence

from mqi_hpc.core.models import STAGE_OF, Job, SubmitState, Task, TaskStatus, TaskType

_NEVER = frozenset({SubmitState.REFUSED, SubmitState.WITHDRAWN, SubmitState.BURNT})


def task_of(tasks: Sequence[Task], kind: TaskType) -> Task:
    """Return a job's task of a kind that every job has once: UPLOAD, CONVERT or DOWNLOAD."""
    return next(task for task in tasks if task.type is kind)


def interpret_of(tasks: Sequence[Task]) -> Task | None:
    """Return a job's INTERPRET task, None where it takes an older job's output."""
    return next((task for task in tasks if task.type is TaskType.INTERPRET), None)


def head_of(tasks: Sequence[Task]) -> Task:
    """Return the task that stands for the submission of the whole chain: the first that Slurm runs."""
    return slurm_tasks(tasks)[0]


def slurm_tasks(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that Slurm runs: interpret, the beams, convert."""
    return [task for task in tasks if task.type in STAGE_OF]


def to_be_cleared(job: Job) -> bool:
    """Whether a job that will never run may have left something in Slurm that is to be cancelled."""
    return job.submit_state in _NEVER and bool(job.cancelled)


def past(job: Job, tasks: Sequence[Task]) -> bool:
    """Whether nothing of a job may be in Slurm any more: what bears its names there is a ghost."""
    ended = all(task.status.terminal for task in slurm_tasks(tasks))
    return job.submit_state in _NEVER or (job.submit_state is SubmitState.STANDING and ended)


def watched(job: Job, tasks: Sequence[Task]) -> bool:
    """Whether the cluster is to be asked about a job: something of it may be in Slurm and is not judged."""
    sent = job.submit_state in (SubmitState.SUBMITTING, SubmitState.STANDING, SubmitState.AMBIGUOUS)
    live = sent and any(not task.status.terminal for task in slurm_tasks(tasks))
    return live or to_be_cleared(job)


def next_task(job: Job, tasks: Sequence[Task], *, siblings_live: bool = False) -> Task | None:
    """Return the task that is to be begun next, None where nothing is to be begun (now, or ever).

    `siblings_live`: beams of the case that an older job computes have not ended, so nothing is fetched yet.
    The chain's head stands for the submission of the whole. A chain that may have been sent (SUBMITTING,
    AMBIGUOUS) is never sent again from here.
    """
    if job.submit_state is SubmitState.PLANNED:
        return task_of(tasks, TaskType.UPLOAD)
    if job.submit_state is SubmitState.UPLOADED:
        return head_of(tasks)
    if siblings_live or any(not task.status.terminal for task in slurm_tasks(tasks)):
        return None
    download = task_of(tasks, TaskType.DOWNLOAD)
    return None if download.status.terminal else download


def settled(tasks: Sequence[Task]) -> bool:
    """Whether every task of a job has ended."""
    return all(task.status is not TaskStatus.PENDING and task.status.terminal for task in tasks)
