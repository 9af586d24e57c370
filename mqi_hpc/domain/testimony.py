"""What each witness said when a task was judged, as the audit log keeps it: lines of Slurm, record, exit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mqi_hpc.core.commands import capped
from mqi_hpc.core.models import STAGE_OF, Job, TaskType
from mqi_hpc.core.observation import Row
from mqi_hpc.core.readings import Reading
from mqi_hpc.domain.evidence import Evidence
from mqi_hpc.domain.reconciler import Judged, rows_of

_MOST_ROWS = 4
"""Rows of one witness that are kept: a task has one, and one more for each requeue."""


def testimony(job: Job, judged: Judged, evidence: Evidence) -> dict[str, Any]:
    """Return the evidence that changed a task: `row` of the table, how long it has held, and who said what.

    `queue` and `accounting` are the lines that speak of the task, as Slurm printed them; None where the
    section gave no good answer, `accounting` also where it was not asked. `at` is the cluster's time (epoch
    s) at the look.
    """
    task, reading, timer = judged.before, judged.reading, judged.verdict.timer
    submission = next(s for s in job.submissions if s.stage == STAGE_OF[task.type])
    index = task.index if task.type is TaskType.BEAM_CALC else None

    def lines(rows: Sequence[Row]) -> list[str]:
        # An array that was cancelled before it ran stands there as one job: its line is told as well.
        mine = rows_of(submission, index, rows) or rows_of(submission, None, rows)
        return [capped(row.raw) for row in mine[-_MOST_ROWS:]]

    asked = evidence.asked_accounting
    return {
        "at": evidence.cluster_time(),
        "row": judged.verdict.row,
        "waited": round(timer.waited, 3),
        "polls": timer.polls,
        "queue": None if evidence.queue is None else lines(evidence.queue),
        "accounting": lines(evidence.accounted) if asked else None,
        "accounting_state": reading.accounting if asked else "not asked",
        "record": _record(task.task_id, reading, evidence),
        "exit_record": reading.exit_code if reading.status_good else "unreadable",
    }


def _record(task_id: str, reading: Reading, evidence: Evidence) -> dict[str, Any]:
    section = evidence.record(task_id)
    there = section is not None and section.exit_code == 0
    sha256 = hashlib.sha256(section.text.encode()).hexdigest() if section is not None and there else None
    return {"is": reading.record, "sha256": sha256, "why": capped(reading.why_invalid)}
