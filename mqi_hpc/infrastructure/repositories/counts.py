"""Counts the rows of a store without reading them: for the metrics, however many cases there are."""

from __future__ import annotations

from mqi_hpc.core.models import TaskType
from mqi_hpc.core.monitoring import StoreCounts
from mqi_hpc.infrastructure.repositories.sqlite import Rows

_KINDS = [str(kind) for kind in TaskType]


def store_counts(rows: Rows) -> StoreCounts:
    """Return cases, jobs and tasks by status, and how many cases want attention."""
    tasks = rows.execute("SELECT kind, status, COUNT(*) FROM tasks GROUP BY kind, status")
    (attention,) = rows.execute(
        "SELECT COUNT(*) FROM cases WHERE json_extract(body, '$.attention') IS NOT NULL"
    ).fetchone()
    return StoreCounts(
        cases=dict(rows.execute("SELECT status, COUNT(*) FROM cases GROUP BY status").fetchall()),
        jobs=dict(rows.execute("SELECT status, COUNT(*) FROM jobs GROUP BY status").fetchall()),
        tasks={(_KINDS[kind], status): count for kind, status, count in tasks},
        attention=attention,
    )
