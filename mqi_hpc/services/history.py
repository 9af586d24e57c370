"""Reads a case's jobs and tasks together."""

from __future__ import annotations

from mqi_hpc.core.interfaces import IUnit
from mqi_hpc.core.resubmit import History


def read_history(unit: IUnit, case_id: str) -> History:
    """Return a case's jobs with their tasks, as they stand in this transaction."""
    jobs = tuple(unit.jobs.of_case(case_id))
    return History(jobs=jobs, tasks={job.job_id: tuple(unit.jobs.tasks(job.job_id)) for job in jobs})
