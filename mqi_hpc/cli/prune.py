"""The command `prune`, and what it says: what would go and why, then what went."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mqi_hpc.cli import show
from mqi_hpc.cli.app import AsJson, app, one_case, open_container
from mqi_hpc.core.pruning import LocalFate
from mqi_hpc.core.retention import CasePlan, PrunePlan, Side, SidePlan
from mqi_hpc.services.retention_service import PruneOutcome

_WIDE = 240

Looks = Mapping[str, Sequence[LocalFate]]
"""What would become of delivered files, by case id."""


@app.command()
def prune(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="CASE", help="Only these; named, one that asks for attention goes too."),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only told.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="Only on the cluster.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Only delivered results.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what the retention settings give up, on the cluster and here. Without --yes: say what."""
    container = open_container(quiet=as_json)
    names = [one_case(container, case).case_id for case in cases] if cases else None
    sides = [side for side, only in ((Side.REMOTE, remote), (Side.LOCAL, local)) if only] or list(Side)
    retention = container.retention
    plan = retention.plan(datetime.now(UTC), names)
    if not yes:
        looks = retention.look(plan) if Side.LOCAL in sides else {}
        if as_json:
            show.plain(plan_json(plan, looks, sides))
        else:
            plan_text(plan, looks, sides)
        return
    outcomes = retention.local(plan) if Side.LOCAL in sides else []
    if Side.REMOTE in sides:
        with container.reaching():
            outcomes += retention.remote(plan, container.parts.effects)
    if as_json:
        show.plain(outcome_json(outcomes))
    else:
        outcome_text(outcomes)
    raise typer.Exit(exit_code(outcomes) if outcomes or names is None else 1)


def plan_text(plan: PrunePlan, looks: Looks, sides: Sequence[Side]) -> None:
    """Print what would go, of named cases also what stays and why, and how to have it done."""
    out = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    if not plan.cases:
        out.print("No cases: there is nothing to prune.")
        return
    table = Table("case", "id", "status", "where", "would go", "size", "why", box=None)
    total, going_cases = 0, set()
    for case, side, found in _rows(plan, sides):
        going, size = _going(case, side, found, looks)
        if going:
            total += size or 0
            going_cases.add(case.case_id)
        if going or case.named:
            told = "[yellow]yes[/yellow]" if going else "no"
            row = (case.case_id, case.status, side, told, megabytes(size), escape(found.why))
            table.add_row(escape(case.label), *row)
    if table.rows:
        out.print(table)
    for line in _left(looks if Side.LOCAL in sides else {}):
        out.print(f"  stays: {escape(line)}", soft_wrap=True)
    if going_cases:
        out.print(f"Nothing was removed. --yes removes what would go: at least {megabytes(total)}.")
    else:
        out.print("Nothing may go.")
    if staying := sum(not case.named for case in plan.cases if case.case_id not in going_cases):
        out.print(f"Cases of which nothing may go: {staying} (`mqi-hpc prune CASE`, or --json, tells why).")


def outcome_text(outcomes: Sequence[PruneOutcome]) -> None:
    """Print what went, and what did not."""
    out = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    if not outcomes:
        out.print("Nothing may go: `mqi-hpc prune --json`, without --yes, tells why.")
    for outcome in outcomes:
        colour = "green" if outcome.done else "yellow"
        size = "" if outcome.bytes is None else f" ({megabytes(outcome.bytes)})"
        out.print(
            f"{escape(outcome.label)} ({outcome.case_id}) {outcome.side}:"
            f" [{colour}]{escape(outcome.text)}[/{colour}]{size}",
            soft_wrap=True,
        )
        for line in _left({outcome.case_id: outcome.files}):
            out.print(f"  stays: {escape(line)}", soft_wrap=True)


def plan_json(plan: PrunePlan, looks: Looks, sides: Sequence[Side]) -> str:
    """Return the plan as JSON: {"dry_run": true, "cases": [...]}, times in ISO 8601, sizes in bytes."""
    cases: list[dict[str, Any]] = []
    for case in plan.cases:
        entry: dict[str, Any] = {
            "case_id": case.case_id,
            "label": case.label,
            "status": case.status,
            "ended_at": None if case.ended_at is None else case.ended_at.isoformat(),
        }
        for side in sides:
            found = case.of(side)
            going, size = _going(case, side, found, looks)
            entry[side] = {"would_go": going, "why": found.why, "bytes": size}
        if Side.LOCAL in sides:
            entry[Side.LOCAL]["files"] = [_fate(fate) for fate in looks.get(case.case_id, ())]
        cases.append(entry)
    return json.dumps({"dry_run": True, "cases": cases}, indent=2)


def outcome_json(outcomes: Sequence[PruneOutcome]) -> str:
    """Return what went as JSON: {"dry_run": false, "outcomes": [...]}."""
    entries = [{**asdict(outcome), "files": [_fate(fate) for fate in outcome.files]} for outcome in outcomes]
    return json.dumps({"dry_run": False, "outcomes": entries}, indent=2)


def exit_code(outcomes: Sequence[PruneOutcome]) -> int:
    """Return 0 where all is done, 3 where some is, 1 where none is, 4 where the cluster was not reached."""
    if any(outcome.unreached for outcome in outcomes):
        return 4
    done = [outcome.done for outcome in outcomes]
    if all(done):
        return 0
    return 3 if any(done) else 1


def megabytes(size: int | None) -> str:
    """Return a size for people; "-" where it is not known."""
    return "-" if size is None else f"{size / 1e6:.1f} MB"


def _rows(plan: PrunePlan, sides: Sequence[Side]) -> Iterator[tuple[CasePlan, Side, SidePlan]]:
    for case in plan.cases:
        for side in sides:
            yield case, side, case.of(side)


def _going(case: CasePlan, side: Side, found: SidePlan, looks: Looks) -> tuple[bool, int | None]:
    """Return whether something would go, and its bytes: of files, those that are still what was delivered."""
    if not found.allowed or side is Side.REMOTE:
        return found.allowed, found.bytes
    going = [fate for fate in looks.get(case.case_id, ()) if fate.fate == "removed"]
    return bool(going), sum(fate.file.bytes or 0 for fate in going)


def _left(looks: Looks) -> Iterator[str]:
    for fates in looks.values():
        for fate in fates:
            if fate.fate in ("left", "failed"):
                yield f"{fate.file.path}: {fate.why}"


def _fate(fate: LocalFate) -> dict[str, Any]:
    return {"file": fate.file.path, "bytes": fate.file.bytes, "fate": fate.fate, "why": fate.why}
