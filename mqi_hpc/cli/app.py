"""The commands: arguments in, a use case called, its answer shown. No decisions."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mqi_hpc.cli import show
from mqi_hpc.cli.gpus import print_gpus
from mqi_hpc.controllers.application import Outcome
from mqi_hpc.controllers.container import AppConfig, Container, add_fraction, load_settings, sample_case
from mqi_hpc.controllers.service import Service
from mqi_hpc.core.errors import ConfigurationError, ConnectionError, ProcessingError
from mqi_hpc.core.models import Case

app = typer.Typer(
    help="Slurm-native submitter for proton beam QA: from a case folder to a verified RT Dose.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_state: dict[str, Path | None] = {"config": None}


class Room(StrEnum):
    """The machines of the default configuration."""

    G1 = "G1"
    G2 = "G2"


CaseArgument = Annotated[
    str, typer.Argument(help="A folder, a label or id (or its beginning), or a Slurm id.")
]
Priority = Annotated[int | None, typer.Option(help="Before cases of lower priority; 0 where not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.callback()
def _options(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="MQI_HPC_CONFIG", help="The configuration file."),
    ] = None,
) -> None:
    _state["config"] = config


def config_path() -> Path | None:
    """Return the configuration file that was named."""
    return _state["config"]


def load_config() -> AppConfig:
    """Return the settings of the configuration that was named."""
    return load_settings(_state["config"])


def open_container(quiet: bool = False) -> Container:
    """Return the container of the configuration that was named."""
    return Container.open(_state["config"], tell=None if quiet else show.progress)


def finish(outcome: Outcome, *, as_json: bool) -> None:
    """Print how a command ended, and end with its exit code."""
    if as_json:
        show.plain(json.dumps(asdict(outcome), indent=2))
    else:
        show.outcome(outcome)
    raise typer.Exit(outcome.exit_code)


def one_case(container: Container, text: str) -> Case:
    """Return the case that `text` means; raises ProcessingError where it means none, or several."""
    looked_up = str(Path(text).absolute()) if Path(text).exists() else text
    found = container.cases.find(looked_up)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ProcessingError(f"no case {text!r}", fix="`mqi-hpc status` lists those there are")
    names = ", ".join(case.label for case in found)
    raise ProcessingError(f"{text!r} may mean {names}", fix="Name one of them")


@app.command()
def submit(
    folder: Annotated[Path, typer.Argument(metavar="CASE", help="The case's folder.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the results are home.")] = False,
    deliveries: Annotated[
        str | None, typer.Option(help="Delivery folders that make one fraction: A,B,C (by hand).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask Slurm whether it would take it; submit and keep nothing.")
    ] = False,
    priority: Priority = None,
    as_json: AsJson = False,
) -> None:
    """Check a case and send it to the cluster; run again, it is taken up where it is."""
    if dry_run and wait:
        raise ConfigurationError(
            "--wait does not go with --dry-run: nothing is submitted", fix="Leave one out"
        )
    container = open_container(quiet=as_json)
    chosen = [name for name in deliveries.split(",") if name] if deliveries is not None else None
    if dry_run:
        trial = container.rehearse(str(folder.absolute()), chosen)
        if as_json:
            show.plain(json.dumps({"dry_run": True, **asdict(trial)}, indent=2))
        else:
            show.trial(trial)
        raise typer.Exit(trial.exit_code)
    with container.acting() as actor:
        outcome = actor.submit(str(folder.absolute()), chosen, wait=wait, priority=priority)
    finish(outcome, as_json=as_json)


@app.command()
def run() -> None:
    """Be the daemon: find cases, lead them, bring results home; until SIGTERM. SIGHUP reads the settings."""
    Service(_state["config"], show.progress, watched=sys.stderr.isatty()).run()


@app.command()
def status(as_json: AsJson = False) -> None:
    """List all cases."""
    reports = open_container().reports.cases()
    if as_json:
        show.plain(json.dumps({"cases": [asdict(report) for report in reports]}, indent=2))
    else:
        show.cases(reports)


@app.command("show")
def show_case(case: CaseArgument, as_json: AsJson = False) -> None:
    """Show one case: its beams, their verdicts, and where the doses are."""
    container = open_container()
    report = container.reports.case(one_case(container, case).case_id)
    if as_json:
        show.plain(json.dumps(asdict(report), indent=2))
    else:
        show.case(report)


@app.command()
def logs(
    case: CaseArgument,
    beam: Annotated[int | None, typer.Option(help="Only this beam (DICOM BeamNumber).")] = None,
) -> None:
    """Print the logs of a case's stages, fetched from the cluster where it can be reached."""
    container = open_container()
    found = one_case(container, case)
    with container.reaching():
        tails, note = container.log_reader.tails(found.case_id, beam)
    show.logs(tails, note)


@app.command()
def render(
    case: CaseArgument,
    out: Annotated[Path | None, typer.Option(help="Write the files there instead of printing them.")] = None,
) -> None:
    """Show what is or would be submitted: scripts and engine input. Sends nothing, keeps nothing."""
    container = open_container()
    folder = Path(case)
    if folder.is_dir():
        rendered = container.preview(str(folder.absolute()))
    else:
        rendered = container.rendered(one_case(container, case).case_id)
    if out is None:
        show.rendered(rendered)
        return
    for path in container.write_out(rendered, out):
        show.plain(str(path))


@app.command()
def gpus(as_json: AsJson = False) -> None:
    """List GPUs: the cluster's as Slurm sees them, our budget of them, and this machine's own."""
    container = open_container(quiet=True)
    local, slots, left = container.parts.local_gpus(), container.gpu_slots(), container.left_out()
    with container.reaching():
        try:
            nodes = container.parts.cluster_gpus()
        except ConnectionError:
            if not as_json:
                print_gpus(local, None, slots, as_json=False, left_out=left)
            raise
    print_gpus(local, nodes, slots, as_json=as_json, left_out=left)


@app.command("sample-case")
def sample(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")
    ],
    *,
    beams: Annotated[int, typer.Option(min=1, max=99, help="Treatment beams.")] = 3,
    layers: Annotated[int, typer.Option(min=1, max=200, help="Energy layers of a beam.")] = 8,
    fractions: Annotated[int, typer.Option(min=1, max=40, help="Fractions, one a day.")] = 1,
    room: Annotated[Room, typer.Option(help="The machine that delivered it.")] = Room.G2,
    seed: Annotated[int | None, typer.Option(help="Makes the same case each time.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Add a fraction to the sample case in DIR.")] = False,
) -> None:
    """Write a synthetic case, plan and machine logs. NOT FOR CLINICAL USE."""
    if add:
        show.plain(str(add_fraction(folder)))
        return
    show.plain(
        str(sample_case(folder, beams=beams, layers=layers, fractions=fractions, machine=room, seed=seed))
    )
