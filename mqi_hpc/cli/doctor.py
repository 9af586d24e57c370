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
from mqi_hpc.core.diagnosis import CheckStatus, Finding, exit_code

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Check everything a case needs, here and on the cluster. Takes a minute or two; changes nothing."""
    named = context.find_root().params.get("config")
    config = named if isinstance(named, Path) else None
    out = Console(highlight=False, soft_wrap=True)
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
