"""What a transfer's end means for its job: done, to be tried again, or failed."""

from __future__ import annotations

from mqi_hpc.core.effects import Completion, Failure
from mqi_hpc.core.models import SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.domain.desk import OpenJob

_PHASES = {Failure.SPACE: "no space", Failure.FOLDER: "no folder"}
"""Phases that ask for attention: a person has to see to a disk or a folder."""
_AGAIN = frozenset({Failure.OUTAGE, Failure.ACCESS, Failure.SPACE, Failure.FOLDER})


def apply_transfer(work: OpenJob, task: Task, completion: Completion) -> bool:
    """Bring a job in line with how the transfer of `task` went; True: it is to be tried again.

    A task that was called off meanwhile stays so.
    """
    if task.status.terminal:
        return False
    upload = task.type is TaskType.UPLOAD
    if completion.error is None:
        parameters = task.parameters if upload else {**task.parameters, "delivered": completion.output}
        work.put_task(
            task.evolve(status=TaskStatus.COMPLETED, phase="done", detail="", parameters=parameters)
        )
        if upload:
            work.mark(SubmitState.UPLOADED, "")
        return False
    if completion.failure in _AGAIN:
        phase = _PHASES.get(completion.failure, "paused")
        if (task.phase, task.detail) != (phase, completion.error):
            # Said once, not at every attempt of a long night.
            work.notes.append(f"{'upload' if upload else 'download'}: {completion.error}")
        work.put_task(task.evolve(status=TaskStatus.RUNNING, phase=phase, detail=completion.error))
        return True
    work.notes.append(f"{'upload' if upload else 'download'}: {completion.error}")
    work.put_task(task.evolve(status=TaskStatus.FAILED, phase="failed", detail=completion.error))
    if upload:
        work.mark(SubmitState.REFUSED, completion.error)
        work.end_all(f"the upload failed: {completion.error}")
    return False
