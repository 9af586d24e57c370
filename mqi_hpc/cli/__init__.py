"""Typer commands and Rich output: no decisions."""

from mqi_hpc.cli import archive, audit, orders, prune
from mqi_hpc.cli import doctor as _doctor
from mqi_hpc.cli import init as _init
from mqi_hpc.cli.app import app

app.command()(_init.init)
app.command()(_doctor.doctor)

__all__ = ["app", "archive", "audit", "orders", "prune"]
