"""The commands that answer for what was done: why, and audit verify."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from mqi_hpc.cli import show
from mqi_hpc.cli.app import AsJson, CaseArgument, app, load_config, one_case, open_container
from mqi_hpc.controllers.audit import verify_audit
from mqi_hpc.core.audit import Verification
from mqi_hpc.core.story import Told

_audit = typer.Typer(help="The audit log: every command sent, every observation that changed a state.")
app.add_typer(_audit, name="audit")


@app.command()
def why(
    case: CaseArgument,
    beam: Annotated[int | None, typer.Option(help="Leave out other beams (DICOM BeamNumber).")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell a case's story: what was sent, what was seen, and on what evidence each verdict rests."""
    container = open_container(quiet=True)
    told = container.reports.story(one_case(container, case).case_id, beam)
    if as_json:
        show.plain(json.dumps([asdict(one) for one in told], indent=2))
        return
    for one in told:
        _tell(one)


@_audit.command("verify")
def verify(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Compare with each chain.json on the cluster too.")
    ] = False,
    head: Annotated[
        list[str] | None, typer.Option(help="A head that was written down; may be given again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for an event that was changed, removed, moved or cut off. Changes nothing."""
    found = verify_audit(load_config(), cluster=cluster, written_down=tuple(head or ()))
    if as_json:
        show.plain(json.dumps(asdict(found), indent=2))
    else:
        _show(found)
    raise typer.Exit(1 if found.faults else 0)


def _tell(one: Told) -> None:
    show.plain(f"{_time(one.at)}  {one.text}")
    for line in one.evidence:
        show.plain(f"                      {line}")


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _show(found: Verification) -> None:
    for fault in found.faults:
        show.plain(f"FAULT  {fault}")
    for note in found.notes:
        show.plain(f"note   {note}")
    if found.faults:
        head = found.head or "(none)"
        show.plain(f"{found.events} events are as they were written, up to {head}. Keep the store as it is,")
        show.plain("ask whoever may have touched it, and compare it with the newest backup")
    else:
        show.plain(f"{found.events} events, all as they were written; {found.anchors} jobs bear them out")
        show.plain(f"head {found.head or '(none)'}: write it down, `audit verify --head` looks for it")
