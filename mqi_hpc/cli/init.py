"""`init`: asks for what is missing, has it written, and says what to do next. Decides nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mqi_hpc.controllers.setup import Begun, Wishes, begin, missing

_QUESTIONS = {
    "host": "Login node of the cluster (a name, or an alias of ~/.ssh/config)",
    "logdata": "Folder on this machine in which cases arrive",
    "workspace": "Folder on the cluster for this program alone (absolute path)",
}


def init(  # noqa: PLR0917 - each is an option
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Login node, or its alias in ~/.ssh/config.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Its SSH port.")] = None,
    user: Annotated[str | None, typer.Option(help="Login name there.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key file.")] = None,
    known_hosts: Annotated[Path | None, typer.Option(help="File of host keys that are trusted.")] = None,
    logdata: Annotated[Path | None, typer.Option(help="Folder in which cases arrive; only read.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Folder on the cluster, absolute.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder for results; outside --logdata.")] = None,
    state: Annotated[Path | None, typer.Option(help="The case store.")] = None,
    site: Annotated[str | None, typer.Option(help="Name of the cluster, for good.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write a new configuration; the old one is kept beside it.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="The store was lost: begin an empty one for the same identity.")
    ] = False,
    instance: Annotated[
        Path | None, typer.Option(help="With --adopt: a backup of the .instance file of the lost store.")
    ] = None,
) -> None:
    """Write a configuration where there is none, and make this installation's folders and identity."""
    named = context.find_root().params.get("config")
    config = named if isinstance(named, Path) else None
    wishes = Wishes(
        host=host,
        port=port,
        user=user,
        key=key,
        known_hosts=known_hosts,
        logdata=logdata,
        workspace=workspace,
        results=results,
        state=state,
        site=site,
        partition=partition,
        account=account,
    )
    if sys.stdin.isatty():
        wishes = _asked(wishes, missing(config, wishes, force=force))
    _show(begin(config, wishes, force=force, adopt=adopt, identity=instance), named=config is not None)


def _asked(wishes: Wishes, names: list[str]) -> Wishes:
    answers = {name: typer.prompt(_QUESTIONS[name]) for name in names}
    return wishes.with_answers(answers)


def _show(begun: Begun, *, named: bool) -> None:
    what = "written" if begun.written else "was there already, left as it is"
    typer.echo(f"Configuration: {begun.config} ({what})")
    if begun.kept is not None:
        typer.echo(f"  the one before: {begun.kept}")
    for folder in begun.made:
        typer.echo(f"Made: {folder}")
    typer.echo(f"This installation is instance {begun.instance}; keep a backup of {begun.identity_file}")
    for note in begun.notes:
        typer.echo(f"Note: {note}")
    program = f"mqi-hpc --config {begun.config}" if named else "mqi-hpc"
    typer.echo("Next:")
    typer.echo(f"  {program} doctor            # checks all of it, here and on the cluster")
    typer.echo(f"  {program} sample-case DIR   # a synthetic case to try it with; then: submit DIR --wait")
    typer.echo(f"  {program} run               # the daemon")
