"""The commands export and import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mqi_hpc.cli import show
from mqi_hpc.cli.app import app, load_config
from mqi_hpc.controllers.archive import export_to, import_from

_FILE = typer.Argument(metavar="FILE", help="The JSON file.")


@app.command("export")
def export(file: Annotated[Path, _FILE]) -> None:
    """Write the whole state as one JSON file: a backup, or the way to another machine. It holds a secret."""
    done = export_to(load_config(), file)
    show.plain(f"{done.path}: {done.cases} cases, {done.events} events; keep it secret, it holds the key")


@app.command("import")
def import_(file: Annotated[Path, _FILE]) -> None:
    """Fill an empty store from an export."""
    done = import_from(load_config(), file)
    show.plain(
        f"instance {done.instance}: {done.cases} cases, {done.jobs} jobs, {done.events} events imported"
    )
