"""Says what is to be begun next, over all cases in hand: highest priority first, then oldest."""

from __future__ import annotations

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import IClock, IStore
from mqi_hpc.core.models import Task
from mqi_hpc.core.next_task import next_task


class TaskScheduler:
    """Hands out tasks one at a time (ITaskScheduler); what a job needs next is told by the store alone."""

    def __init__(self, store: IStore, clock: IClock) -> None:
        self._store = store
        self._clock = clock
        self._cases: dict[str, None] = {}
        self._begun: set[str] = set()
        self._not_before: dict[str, float] = {}

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases in hand, in the order in which they were taken up."""
        return tuple(self._cases)

    def schedule_case(self, case_id: str) -> None:
        """Take a case in hand; raises ProcessingError where the store has none of this id."""
        with self._store.transaction(write=False) as unit:
            if unit.cases.get(case_id) is None:
                raise ProcessingError(f"no case {case_id!r} in the store")
        self._cases[case_id] = None

    def get_next_task(self) -> Task | None:
        """Return a task to begin now, None where there is none; it is not handed out again until it ends."""
        now = self._clock.monotonic()
        with self._store.transaction(write=False) as unit:
            jobs = [jobs[-1] for case_id in self._cases if (jobs := unit.jobs.of_case(case_id))]
            for job in sorted(jobs, key=lambda job: (-job.priority, job.created_at, job.job_id)):
                task = next_task(job, unit.jobs.tasks(job.job_id))
                if task is None or task.task_id in self._begun:
                    continue
                if now >= self._not_before.get(task.task_id, now):
                    self._begun.add(task.task_id)
                    return task
        return None

    def complete_task(self, task_id: str) -> None:
        """Note that what was begun for a task is over, well or not."""
        self._begun.discard(task_id)
        self._not_before.pop(task_id, None)

    def defer_task(self, task_id: str, seconds: float) -> None:
        """Hand a begun task out again, but not before `seconds` have passed."""
        self._begun.discard(task_id)
        self._not_before[task_id] = self._clock.monotonic() + seconds

    def next_due(self) -> float | None:
        """Return the seconds until a deferred task is due, None where none is deferred."""
        now = self._clock.monotonic()
        return min((max(0.0, at - now) for at in self._not_before.values()), default=None)
