"""Shows GPUs: the cluster's as Slurm sees them, our budget of them, and this machine's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mqi_hpc.core.gpu_inventory import NodeGpus
from mqi_hpc.core.left_out import LeftOut
from mqi_hpc.core.monitoring import GPUReading

Slots = tuple[int, int | None]
"""Slots of our budget in use, and in all (None: no budget is set)."""

_WIDE = 240
_MEBIBYTE = 2**20


def print_gpus(
    local: GPUReading,
    nodes: Sequence[NodeGpus] | None,
    slots: Slots,
    *,
    as_json: bool,
    left_out: Sequence[LeftOut] = (),
) -> None:
    """Print the GPUs; `nodes` None: the cluster was not asked, or did not answer.

    `left_out` are nodes that new beams keep away from.
    """
    if as_json:
        told = {**_told(local, nodes, slots), "left_out": [_kept_away(one) for one in left_out]}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    out = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    if nodes is not None:
        _cluster(out, nodes)
    used, budget = slots
    limit = "no limit is set (resources.gpu_count)" if budget is None else f"{used} of {budget} slots in use"
    out.print(f"our budget: {limit}")
    for one in left_out:
        until = _time(one.until).strftime("%Y-%m-%d %H:%M UTC")
        out.print(f"new beams keep away from {escape(one.node)} until {until}: {escape(one.why)}")
    _local(out, local)


def _cluster(out: Console, nodes: Sequence[NodeGpus]) -> None:
    if not nodes:
        out.print("cluster: Slurm knows of no GPU")
        return
    table = Table("node", "GPUs", "used", "free", "types", "state", "partitions", box=None)
    for node in nodes:
        table.add_row(
            escape(node.node),
            str(node.total),
            _number(node.used),
            _number(node.free),
            escape(", ".join(f"{name}: {count}" for name, count in node.types.items())) or "-",
            escape(node.state),
            escape(", ".join(node.partitions)) or "-",
        )
    out.print(table)
    free = [node.free for node in nodes]
    unknown = "" if None not in free else "; of some nodes it is not known"
    known = sum(count for count in free if count is not None)
    out.print(f"cluster: {known} of {sum(node.total for node in nodes)} GPUs free{unknown}")


def _local(out: Console, local: GPUReading) -> None:
    if local.note:
        out.print(f"this machine: {escape(local.note)}")
    if not local.gpus:
        return
    table = Table("GPU", "name", "uuid", "busy", "memory", "°C", "W", "note", box=None)
    for gpu in local.gpus:
        memory = f"{_mebibytes(gpu.memory_used)}/{_mebibytes(gpu.memory_total)} MiB"
        table.add_row(
            str(gpu.index),
            escape(gpu.name or "?"),
            gpu.uuid or "?",
            f"{_number(gpu.utilization)} %",
            memory,
            _number(gpu.temperature),
            _number(gpu.power),
            escape(gpu.note),
        )
    out.print(table)


def _told(local: GPUReading, nodes: Sequence[NodeGpus] | None, slots: Slots) -> dict[str, object]:
    cluster = None if nodes is None else [{**asdict(n), "free": n.free, "usable": n.usable} for n in nodes]
    return {
        "cluster": cluster,
        "budget": {"used": slots[0], "total": slots[1]},
        "local": {"gpus": [asdict(gpu) for gpu in local.gpus], "note": local.note, "age": local.age},
    }


def _kept_away(one: LeftOut) -> dict[str, str]:
    since, until = _time(one.since).isoformat(), _time(one.until).isoformat()
    return {"node": one.node, "since": since, "until": until, "why": one.why, "task": one.task_id}


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _mebibytes(value: int | None) -> str:
    return "?" if value is None else f"{value / _MEBIBYTE:.0f}"
