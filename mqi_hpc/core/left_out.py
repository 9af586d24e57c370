"""Nodes that new beams are kept away from for a while: a node that fails would else burn every retry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mqi_hpc.core.models import Task

# --exclude reads brackets as a range and commas as a list.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")
NO_NODE_TEXTS = ("requested node configuration is not available", "invalid node name")
"""What sbatch says where no node is left, or where one that is named has gone from the cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A node that beams are kept away from, since when and until when (UTC epoch s), by which task's end."""

    node: str
    since: float
    until: float
    task_id: str
    why: str


def is_node(name: str) -> bool:
    """Whether a name, as squeue or a stage tells it, is that of one node."""
    return _NAME.match(name) is not None


def left_out(tasks: Sequence[Task], most: int, now: float) -> tuple[LeftOut, ...]:
    """Return the nodes that are left out because of these tasks, by name: of more than `most`, the oldest go.

    `tasks` are those with a `left_out_until` that has not passed at `now` (`IJobRepository.left_out`). One
    that ended after `now` was noted by a clock that went wrong: it would keep a node away for as long again.
    """
    by_node: dict[str, LeftOut] = {}
    past = [task for task in tasks if (task.ended_at or 0.0) <= now]
    for task in sorted(past, key=lambda task: (task.ended_at or 0.0, task.task_id)):
        by_node[task.node] = LeftOut(
            node=task.node,
            since=task.ended_at or 0.0,
            until=max(task.left_out_until or 0.0, by_node[task.node].until if task.node in by_node else 0.0),
            task_id=task.task_id,
            why=task.detail or task.phase,
        )
    newest = sorted(by_node.values(), key=lambda one: (-one.since, one.node))[:most]
    return tuple(sorted(newest, key=lambda one: one.node))
