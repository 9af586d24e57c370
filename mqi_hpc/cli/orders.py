"""The commands that ask something for one case: resubmit, accept, cancel, fetch."""

from __future__ import annotations

from typing import Annotated

import typer

from mqi_hpc.cli import show
from mqi_hpc.cli.app import AsJson, CaseArgument, Priority, app, finish, one_case, open_container
from mqi_hpc.core.requests import Verb

Beams = Annotated[list[int] | None, typer.Option("--beam", help="DICOM BeamNumber; may be given again.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the results are home.")]


def _order(
    verb: Verb,
    case: str,
    *,
    wait: bool = False,
    as_json: bool,
    beams: list[int] | None = None,
    convert_only: bool = False,
    reason: str = "",
    priority: int | None = None,
) -> None:
    container = open_container(quiet=as_json)
    request = container.request(
        verb,
        one_case(container, case).case_id,
        beams=tuple(beams) if beams else None,
        convert_only=convert_only,
        reason=reason,
        priority=priority,
    )
    with container.acting() as actor:
        outcome = actor.order(request, wait=wait)
    finish(outcome, as_json=as_json)


@app.command()
def resubmit(
    case: CaseArgument,
    *,
    beam: Beams = None,
    convert_only: Annotated[
        bool, typer.Option("--convert-only", help="Compute nothing; convert the doses that stand.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be submitted, and stop.")] = False,
    wait: Wait = False,
    priority: Priority = None,
    as_json: AsJson = False,
) -> None:
    """Compute failed beams again, and convert anew; beams that are done stay as they are."""
    if plan:
        container = open_container(quiet=True)
        numbers = tuple(beam) if beam else None
        found = one_case(container, case)
        show.plain(container.planned(found.case_id, beams=numbers, convert_only=convert_only))
        return
    _order(
        Verb.RESUBMIT,
        case,
        wait=wait,
        as_json=as_json,
        beams=beam,
        convert_only=convert_only,
        priority=priority,
    )


@app.command()
def accept(
    case: CaseArgument,
    reason: Annotated[str, typer.Option(help="Why the dose may be trusted; kept with the beam.")],
    beam: Beams = None,
    as_json: AsJson = False,
) -> None:
    """Take a suspect beam's dose for good: Slurm and its own record disagree, and a person has looked."""
    _order(Verb.ACCEPT, case, as_json=as_json, beams=beam, reason=reason)


@app.command()
def cancel(
    case: CaseArgument,
    reason: Annotated[str, typer.Option(help="Why; kept with the case.")] = "",
    as_json: AsJson = False,
) -> None:
    """Stop a case: what is in Slurm of it is cancelled, what was not sent is not sent."""
    _order(Verb.CANCEL, case, as_json=as_json, reason=reason)


@app.command()
def fetch(case: CaseArgument, as_json: AsJson = False) -> None:
    """Bring a case's results home again."""
    _order(Verb.FETCH, case, as_json=as_json)
