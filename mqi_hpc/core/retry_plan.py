"""The next job that nobody asked for: which retries are to come, what goes together, and its plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mqi_hpc.core.causes import WORDS, Cause, Retry
from mqi_hpc.core.models import STAGE_OF, Case, Job, SubmitState, Task, TaskType
from mqi_hpc.core.resubmit import History, JobPlan, beams_named, current_tasks, plan_resubmit
from mqi_hpc.core.retry_causes import Asked, RetryTable, cause_of, retried

GATHER = 60.0
"""What is due within so many seconds of the first goes along with it: one job for what failed together."""
_OPEN = frozenset({SubmitState.PLANNED, SubmitState.UPLOADED, SubmitState.SUBMITTING, SubmitState.AMBIGUOUS})


def pending(tasks: Sequence[Task]) -> list[Task]:
    """Return those of a case's current tasks that are to be retried, each in a job to come.

    A retry of interpret takes everything with it; one of convert follows from any other.
    """
    promised = [task for task in tasks if task.retry is not None]
    for kind in (TaskType.INTERPRET, TaskType.BEAM_CALC):
        if found := [task for task in promised if task.type is kind]:
            return found
    return promised


def may_begin(history: History) -> bool:
    """Whether a next job could be planned now: the one before is sent, or never will be.

    Where interpret is to run again, all that waited for it must have ended.
    """
    if history.jobs[-1].submit_state in _OPEN:
        return False
    if any(task.type is not TaskType.BEAM_CALC for task in pending(current_tasks(history))):
        return history.slurm_ended
    return True


def due(times: Mapping[str, float], now: float) -> tuple[str, ...]:
    """Return what goes into one job now, of retries by when each is due; () where none is to begin yet."""
    if not times:
        return ()
    first = min(times.values())
    together = [name for name, at in times.items() if at <= first + GATHER]
    return tuple(together) if now >= max(times[name] for name in together) else ()


def wait_of(retry: Retry, now: float) -> float:
    """Return how long (s) a promised retry waits still, at `now` (UTC epoch s).

    A clock that was set back makes it no longer than the whole pause anew.
    """
    return min(max(retry.at - now, 0.0), retry.pause)


def next_due(times: Mapping[str, float]) -> float | None:
    """Return when `due` will first say something, None where it never will."""
    first = min(times.values(), default=None)
    return None if first is None else max(at for at in times.values() if at <= first + GATHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPlan:
    """A retry to be planned: the job, and what each of its stages asks Slurm for where that is not the usual.

    `tasks` are those that it is made for.
    """

    plan: JobPlan
    tasks: tuple[Task, ...]


def plan_retry(case: Case, history: History, names: Collection[str], table: RetryTable) -> RetryPlan | None:
    """Return the job that retries the tasks `names`, None where none of them is to be retried, or not now.

    Raises ProcessingError where it cannot be planned.
    """
    tasks = current_tasks(history)
    chosen = tuple(task for task in pending(tasks) if task.task_id in names)
    if not chosen or not may_begin(history):
        return None
    if chosen[0].type is TaskType.INTERPRET:
        plan = plan_resubmit(case, history)
    elif chosen[0].type is TaskType.BEAM_CALC:
        plan = plan_resubmit(case, history, numbers=[case.beams[task.index].number for task in chosen])
    else:
        plan = plan_resubmit(case, history, convert_only=True)
    jobs = {job.job_id: job for job in history.jobs}
    asks = {}
    for stage in plan.stages:
        same = [task for task in tasks if STAGE_OF.get(task.type) == stage and _runs(plan, task)]
        wanted = [table.asks(stage, _causes(history, jobs[task.job_id], task)) for task in same]
        most = Asked(max(one.memory for one in wanted), max(one.time for one in wanted))
        if most != table.asked[stage]:
            asks[stage] = (most.memory, most.time)
    return RetryPlan(plan=replace(plan, asks=asks), tasks=chosen)


def _runs(plan: JobPlan, task: Task) -> bool:
    return task.type is not TaskType.BEAM_CALC or task.index in plan.indices


def _causes(history: History, job: Job, task: Task) -> list[Cause]:
    promised = [task.retry.cause] if task.retry is not None else []
    return [*promised, *(one.cause for one in retried(history, job, task))]


# What a person is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """What follows by itself for some tasks (`what`: beams 2, 3), and when (ISO 8601, UTC); `text` says it.

    Where nothing does, `at` is None and `cause` is what it would need a person for.
    """

    what: str
    cause: str
    text: str
    at: str | None = None
    attempt: int | None = None
    most: int | None = None
    without: tuple[str, ...] = ()


def outlook(case: Case, history: History) -> tuple[Next, ...]:
    """Return what will happen next by itself to what of a case has failed, or why nothing will."""
    tasks = current_tasks(history)
    to_come = pending(tasks)
    groups: dict[tuple[object, ...], list[Task]] = {}
    for task in to_come:
        assert task.retry is not None  # noqa: S101 - what `pending` is
        groups.setdefault((replace(task.retry, without=""),), []).append(task)
    lines = [_to_come(case, group) for group in groups.values()]
    # The end of a task that a retry replaces is no news.
    beams_only = any(task.type is not TaskType.CONVERT for task in to_come)
    jobs = {job.job_id: job for job in history.jobs}
    left: dict[tuple[Cause, str], list[Task]] = {}
    for task in tasks:
        cause = cause_of(task, jobs[task.job_id])
        stays = cause is not None and task.retry is None and task.not_retried
        if cause is not None and stays and not (task.type is TaskType.CONVERT and beams_only):
            left.setdefault((cause, task.not_retried), []).append(task)
    return (*lines, *(_nothing(case, cause, why, group) for (cause, why), group in left.items()))


def _to_come(case: Case, tasks: Sequence[Task]) -> Next:
    retry = tasks[0].retry
    assert retry is not None  # noqa: S101 - a group of those to come
    without = tuple(sorted({task.retry.without for task in tasks if task.retry and task.retry.without}))
    what = _named(case, tasks)
    all_of_it = ", and all that follows" if tasks[0].type is TaskType.INTERPRET else ""
    text = f"{what}{all_of_it}: {promise(retry)}"
    if without:
        text += f", without node{'s' if len(without) > 1 else ''} {', '.join(without)}"
    return Next(
        what=what,
        cause=str(retry.cause),
        text=text,
        at=_time(retry.at).isoformat(),
        attempt=retry.attempt,
        most=retry.most,
        without=without,
    )


def promise(retry: Retry) -> str:
    """Return a promised retry as a person reads it, without its node."""
    at = _time(retry.at).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"retry {retry.attempt} of {retry.most} at {at}, because {WORDS[retry.cause]}"


def _nothing(case: Case, cause: Cause, why: str, tasks: Sequence[Task]) -> Next:
    what = _named(case, tasks)
    way = {Cause.SUSPECT: "`mqi-hpc accept --reason` or `mqi-hpc resubmit`"}.get(cause, "`mqi-hpc resubmit`")
    return Next(what=what, cause=str(cause), text=f"{what}: not retried by itself: {why}; {way}")


def _named(case: Case, tasks: Sequence[Task]) -> str:
    numbers = [case.beams[task.index].number for task in tasks if task.type is TaskType.BEAM_CALC]
    others = [str(task.type) for task in tasks if task.type is not TaskType.BEAM_CALC]
    return ", ".join([*others, *([beams_named(numbers)] if numbers else [])])


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
