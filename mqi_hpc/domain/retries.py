"""Retries that nobody asked for: what was promised when a task ended becomes the case's next job, once."""

from __future__ import annotations

from collections.abc import Collection

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import job_name
from mqi_hpc.core.retry_causes import RetryTable
from mqi_hpc.core.retry_plan import plan_retry
from mqi_hpc.domain.desk import Desk
from mqi_hpc.domain.next_job import call_off_retries, history_of, plan_next
from mqi_hpc.domain.orders import describe
from mqi_hpc.services.job_service import JobService


class Retries:
    """Plans the jobs that were promised."""

    def __init__(self, desk: Desk, jobs: JobService, table: RetryTable) -> None:
        self._desk = desk
        self._jobs = jobs
        self._table = table

    def carry_out(self, case_id: str, names: Collection[str]) -> None:
        """Plan the next job of a case for those of the tasks `names` that are still to be retried.

        Promise and job are read and kept in one transaction: a person who was faster is obeyed, and a crash
        leaves the promise. Where the case as it stands leaves nothing to plan, it is taken back, and a person
        is asked. Raises ProcessingError or ConfigurationError where the job cannot be made now.
        """
        with self._desk.open_case(case_id) as (unit, case, jobs):
            history = history_of(jobs)
            try:
                found = plan_retry(case, history, names, self._table)
            except ProcessingError as error:
                found = None
                call_off_retries(unit, case, jobs, f"it cannot be: {error.what}")
            if found is None:
                return
            priority = history.jobs[-1].priority
            plan_next(self._jobs, unit, case, jobs, found.plan, priority=priority, retries=found.tasks)
        said = describe(case, found.plan, job_name(len(history.jobs) + 1))
        self._desk.tell(case_id, f"retried by itself: {said}")
