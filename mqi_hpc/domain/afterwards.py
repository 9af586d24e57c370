"""What Slurm says of judged tasks: a verdict stands, but what speaks against it is not passed over."""

from __future__ import annotations

from collections.abc import Sequence

from mqi_hpc.core.models import STAGE_OF, Job, SubmitState, Task, TaskStatus, task_name
from mqi_hpc.core.next_task import slurm_tasks
from mqi_hpc.core.observation import Row
from mqi_hpc.core.readings import WITHOUT_ACCOUNTING, Accounting
from mqi_hpc.domain.desk import OpenJob
from mqi_hpc.domain.evidence import Evidence
from mqi_hpc.domain.reconciler import slurm_rows

_AGREED = "; accounting has agreed since"


def unconfirmed(task: Task) -> bool:
    """Whether a task was taken for done without accounting, which has not spoken of it since."""
    alone = task.status is TaskStatus.COMPLETED and task.noted.startswith(WITHOUT_ACCOUNTING)
    return alone and not task.noted.endswith(_AGREED) and not task.contradicted


def to_be_confirmed(job: Job, tasks: Sequence[Task]) -> bool:
    """Whether accounting is still to be asked about a job that is over."""
    return job.submit_state is SubmitState.STANDING and any(map(unconfirmed, slurm_tasks(tasks)))


def look_back(work: OpenJob, evidence: Evidence) -> None:
    """Note what a look says of judged tasks: that accounting agrees at last, or something else than before.

    A controller that came back from an older state rewrites ended tasks to NODE_FAIL or CANCELLED, and an
    administrator may requeue one: where Slurm had agreed once, that is an event alone. Where it had not
    spoken before, a person is asked. A row for many tasks does not count: Slurm does not keep it up to date.
    """
    if evidence.queue is None:
        return
    for task in slurm_tasks(list(work.tasks)):
        submission = work.job.submission(STAGE_OF[task.type])
        if not task.status.terminal or task.contradicted or submission is None:
            continue
        live, ended = slurm_rows(submission, task, evidence, begun=True)
        row = live or ended
        if row is None or row.collapsed:
            continue
        data = {"task": task.task_id, "slurm": row.word, "line": row.raw}
        if _speaks_against(task, row):
            work.unit.event("contradicted", work.case.case_id, {**data, "verdict": task.phase})
            said = f"Slurm has said {row.word} of it since"
            work.put_task(task.evolve(contradicted=said), why=row.raw)
            work.notes.append(f"{task_name(work.case, task)}: {task.phase}, but {said}")
        elif unconfirmed(task) and row.word == "COMPLETED" and evidence.accounting is Accounting.GOOD:
            work.unit.event("confirmed", work.case.case_id, data)
            work.put_task(task.evolve(noted=task.noted + _AGREED))


def _speaks_against(task: Task, row: Row) -> bool:
    """Whether a row of Slurm says another thing of a judged task than its verdict does."""
    if task.status is TaskStatus.CANCELLED:
        return False
    if not row.terminal:
        return not row.ending
    done = task.status is TaskStatus.COMPLETED
    return row.word != "COMPLETED" if done else row.word == "COMPLETED" != task.slurm
