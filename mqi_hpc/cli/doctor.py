"""`doctor`: what is wrong, here and on the cluster, and how to cure it. Shows it; decides nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mqi_hpc.controllers.doctor import examine
from mqi_hpc.controllers.orphans import Found, examine_orphans
from mqi_hpc.core.diagnosis import CheckStatus, Finding, exit_code
from mqi_hpc.core.errors import ConfigurationError

_COLOUR = {
    CheckStatus.OK: "green",
    CheckStatus.WARNING: "yellow",
    CheckStatus.FAILURE: "red",
    CheckStatus.SKIPPED: "dim",
}


def doctor(
    context: typer.Context,
    no_jobs: Annotated[
        bool, typer.Option("--no-jobs", help="Submit no jobs: compute nodes are not looked at.")
    ] = False,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Only list what is on the cluster and not in the store.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="With --orphans: cancel the jobs that nothing accounts for.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Check everything a case needs, here and on the cluster. Takes a minute or two; changes nothing."""
    named = context.find_root().params.get("config")
    config = named if isinstance(named, Path) else None
    out = Console(highlight=False, soft_wrap=True)
    if cancel and not orphans:
        raise ConfigurationError("--cancel goes with --orphans", fix="Add --orphans")
    if orphans:
        found = examine_orphans(config, cancel=cancel)
        if as_json:
            typer.echo(json.dumps(_as_data(found), indent=2))
        else:
            _show_orphans(out, found)
        raise typer.Exit(1 if found.remaining else 0)
    findings = examine(
        config, jobs=not no_jobs, hear=lambda finding: None if as_json else _show(out, finding)
    )
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _sum_up(out, findings)
    raise typer.Exit(exit_code(findings))


def _show(out: Console, finding: Finding) -> None:
    colour = _COLOUR[finding.status]
    word = f"[{colour}]{finding.status:<8}[/{colour}]"
    out.print(f"{word} {escape(finding.check)}: {escape(finding.found)}")
    if finding.cure:
        out.print(f"         cure: {escape(finding.cure)}")


def _sum_up(out: Console, findings: list[Finding]) -> None:
    counts = {status: sum(finding.status is status for finding in findings) for status in CheckStatus}
    out.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))


def _as_data(found: Found) -> dict[str, object]:
    orphans = [
        {**asdict(orphan), "cancelled": (orphan.name, orphan.slurm_id) in found.cancelled}
        for orphan in found.orphans
    ]
    return {"orphans": orphans, "not_judged": dict(found.not_judged), "notes": list(found.notes)}


def _show_orphans(out: Console, found: Found) -> None:
    for orphan in found.orphans:
        done = (orphan.name, orphan.slurm_id) in found.cancelled
        named = orphan.name if orphan.slurm_id is None else f"{orphan.name} {orphan.slurm_id}"
        word = "[green]cancelled[/green]" if done else f"[red]{orphan.kind:<9}[/red]"
        out.print(f"{word} {escape(named)}: {escape(orphan.what)}")
        if not done:
            out.print(f"          cure: {escape(orphan.cure)}")
    for label, why in found.not_judged.items():
        out.print(f"[yellow]not judged[/yellow] {escape(label)}: {escape(why)}")
    for note in found.notes:
        out.print(f"[yellow]note[/yellow] {escape(note)}")
    counts = f"{len(found.orphans)} found, {len(found.cancelled)} cancelled"
    out.print(counts if found.orphans else "Nothing on the cluster that the store does not account for")
