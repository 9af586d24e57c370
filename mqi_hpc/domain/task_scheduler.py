"""Says what is to be begun next, over all cases in hand: highest priority first, then oldest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import IClock, IStore, IUnit
from mqi_hpc.core.models import STAGE_OF, Job, SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.next_task import next_task, slurm_tasks, to_be_cleared
from mqi_hpc.core.resubmit import History, current_tasks
from mqi_hpc.core.retry_plan import due, may_begin, next_due, pending, wait_of
from mqi_hpc.services.history import read_history

_Order = tuple[int, float, str]


@dataclass(frozen=True, slots=True)
class _InHand:
    """What counts of a case until something of it changes. `begun`: it is in flight; `holds`: GPU slots.

    `retries` are the tasks that are to be retried by themselves, now where `may_retry`.
    """

    order: _Order
    task: Task | None
    begun: bool
    holds: bool = False
    retries: tuple[Task, ...] = ()
    may_retry: bool = False


class TaskScheduler:
    """Hands out tasks one at a time (ITaskScheduler); what a job needs next is told by the store alone.

    A case leaves when all of its tasks have ended. `max_concurrent_jobs` bounds the cases in flight: those
    whose upload has begun and that have not ended; None: no bound.
    """

    def __init__(self, store: IStore, clock: IClock, *, max_concurrent_jobs: int | None = None) -> None:
        self._store = store
        self._clock = clock
        self._most = max_concurrent_jobs
        self._cases: dict[str, _InHand | None] = {}
        self._begun: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._retry_at: dict[str, dict[str, float]] = {}
        self._wants_slots: str | None = None

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

    def changed(self, case_id: str) -> None:
        """Note that something of a case has changed in the store."""
        if case_id in self._cases:
            self._cases[case_id] = None

    def get_next_task(self) -> Task | None:
        """Return a task to begin now, None where there is none; it is not handed out again until it ends."""
        self._read_changed()
        now = self._clock.monotonic()
        known = [entry for entry in self._cases.values() if entry is not None]
        room = self._most is None or sum(entry.begun for entry in known) < self._most
        slots_wanted = False
        for entry in sorted(known, key=lambda entry: entry.order):
            task = entry.task
            if task is None or task.task_id in self._begun:
                continue
            head = task.type in STAGE_OF
            # What is submitted again holds its slots still: who waits for slots may be waiting for it.
            if (head and slots_wanted and not entry.holds) or not (entry.begun or room):
                continue
            if now < self._not_before.get(task.task_id, now):
                # Who waits for slots is not overtaken: a small job would starve a large one.
                slots_wanted = slots_wanted or task.task_id == self._wants_slots
                continue
            self._begun.add(task.task_id)
            return task
        return None

    def complete_task(self, task_id: str) -> None:
        """Note that what was begun for a task is over, well or not."""
        self._begun.discard(task_id)
        self._not_before.pop(task_id, None)

    def defer_task(self, task_id: str, seconds: float, *, for_slots: bool = False) -> None:
        """Hand a begun task out again, but not before `seconds` have passed."""
        self._begun.discard(task_id)
        self._not_before[task_id] = self._clock.monotonic() + seconds
        if for_slots:
            self._wants_slots = task_id
        elif self._wants_slots == task_id:
            self._wants_slots = None

    def due_retry(self) -> tuple[str, tuple[str, ...]] | None:
        """Return a case and those of its tasks that are to be retried now, None where none is."""
        self._read_changed()
        now = self._clock.monotonic()
        for case_id, times in self._retry_at.items():
            if names := due(times, now):
                return case_id, names
        return None

    def defer_retry(self, case_id: str, seconds: float) -> None:
        """Let a case's retries wait: they could not be planned."""
        at = self._clock.monotonic() + seconds
        self._retry_at[case_id] = dict.fromkeys(self._retry_at.get(case_id, ()), at)

    def resume(self) -> None:
        """Make every deferred task due: the cluster answers again."""
        self._not_before.clear()

    def next_due(self) -> float | None:
        """Return the seconds until a deferred task or a retry is due, None where none will be."""
        now = self._clock.monotonic()
        retries = [next_due(times) for times in self._retry_at.values()]
        times = (*self._not_before.values(), *(at for at in retries if at is not None))
        return min((at - now for at in times if at > now), default=None)

    @property
    def waiting(self) -> int:
        """How many cases in hand have not been begun."""
        return sum(entry is None or not entry.begun for entry in self._cases.values())

    def _read_changed(self) -> None:
        dirty = [case_id for case_id, entry in self._cases.items() if entry is None]
        if not dirty:
            return
        with self._store.transaction(write=False) as unit:
            found = {case_id: _in_hand(unit, case_id) for case_id in dirty}
        for case_id, entry in found.items():
            self._note_retries(case_id, entry)
            if entry is None:
                del self._cases[case_id]
                mine = [task_id for task_id in self._not_before if task_id.startswith(f"{case_id}-")]
                for task_id in mine:
                    del self._not_before[task_id]
            else:
                self._cases[case_id] = entry

    def _note_retries(self, case_id: str, entry: _InHand | None) -> None:
        """Set when each retry of a case is due, by the clock that never steps, the first time it is seen."""
        before = self._retry_at.pop(case_id, {})
        if entry is None or not entry.may_retry:
            return
        now, clock = self._clock.now(), self._clock.monotonic()
        self._retry_at[case_id] = {
            task.task_id: before.get(task.task_id, clock + wait_of(task.retry, now))
            for task in entry.retries
            if task.retry is not None
        }


def _in_hand(unit: IUnit, case_id: str) -> _InHand | None:
    """Return what counts of a case, None where all of it has ended."""
    history = read_history(unit, case_id)
    if not history.jobs:
        return _InHand((0, 0.0, case_id), None, begun=False)
    if over(history):
        return None
    job = history.jobs[-1]
    tasks = history.tasks[job.job_id]
    order = (-job.priority, job.created_at.timestamp(), job.job_id)
    retries = tuple(pending(current_tasks(history)))
    return _InHand(
        order,
        next_task(job, tasks, siblings_live=siblings_live(history)),
        begun=_is_begun(job, tasks) and not _ended(history),
        holds=job.job_id in unit.resources.holdings(),
        retries=retries,
        may_retry=bool(retries) and may_begin(history),
    )


def over(history: History) -> bool:
    """Whether nothing of a case's jobs is to be done, retried or looked at any more."""
    to_come = pending(current_tasks(history))
    return _ended(history) and not to_come and not any(map(to_be_cleared, history.jobs))


def _ended(history: History) -> bool:
    return all(task.status.terminal for tasks in history.tasks.values() for task in tasks)


def siblings_live(history: History) -> bool:
    """Whether something that an older job of the case has in Slurm has not ended."""
    return any(
        not task.status.terminal
        for job in history.jobs[:-1]
        for task in slurm_tasks(history.tasks[job.job_id])
        if task.type is TaskType.BEAM_CALC
    )


def _is_begun(job: Job, tasks: Sequence[Task]) -> bool:
    planned = job.submit_state is SubmitState.PLANNED
    return not planned or any(task.status is not TaskStatus.PENDING for task in tasks)
