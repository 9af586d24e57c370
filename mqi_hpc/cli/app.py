"""The commands: arguments in, a use case called, its answer shown. No decisions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mqi_hpc.cli import show
from mqi_hpc.controllers.container import Container, sample_case
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import Case

app = typer.Typer(
    help="Slurm-native submitter for proton beam QA: from a case folder to a verified RT Dose.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_state: dict[str, Path | None] = {"config": None}

CaseArgument = Annotated[
    str, typer.Argument(help="A folder, a label or id (or its beginning), or a Slurm id.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.callback()
def _options(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="MQI_HPC_CONFIG", help="The configuration file."),
    ] = None,
) -> None:
    _state["config"] = config


def _container(quiet: bool = False) -> Container:
    return Container.open(_state["config"], tell=None if quiet else show.progress)


def _one(container: Container, text: str) -> Case:
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
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the results are home.")] = False,
    deliveries: Annotated[
        str | None, typer.Option(help="Delivery folders that make one fraction: A,B,C (by hand).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a case and send it to the cluster; run again, it is taken up where it is."""
    container = _container(quiet=as_json)
    chosen = [name for name in deliveries.split(",") if name] if deliveries is not None else None
    with container.running() as application:
        outcome = application.submit(str(folder.absolute()), chosen, wait=wait)
    if as_json:
        show.plain(json.dumps(asdict(outcome), indent=2))
    else:
        show.outcome(outcome)
    raise typer.Exit(outcome.exit_code)


@app.command()
def status(as_json: AsJson = False) -> None:
    """List all cases."""
    reports = _container().reports.cases()
    if as_json:
        show.plain(json.dumps({"cases": [asdict(report) for report in reports]}, indent=2))
    else:
        show.cases(reports)


@app.command("show")
def show_case(case: CaseArgument, as_json: AsJson = False) -> None:
    """Show one case: its beams, their verdicts, and where the doses are."""
    container = _container()
    report = container.reports.case(_one(container, case).case_id)
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
    container = _container()
    found = _one(container, case)
    with container.reaching():
        tails, note = container.log_reader.tails(found.case_id, beam)
    show.logs(tails, note)


@app.command()
def render(
    case: CaseArgument,
    out: Annotated[Path | None, typer.Option(help="Write the files there instead of printing them.")] = None,
) -> None:
    """Show what is or would be submitted: scripts and engine input. Sends nothing, keeps nothing."""
    container = _container()
    folder = Path(case)
    if folder.is_dir():
        rendered = container.preview(str(folder.absolute()))
    else:
        rendered = container.rendered(_one(container, case).case_id)
    if out is None:
        show.rendered(rendered)
        return
    for path in container.write_out(rendered, out):
        show.plain(str(path))


@app.command("sample-case")
def sample(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")
    ],
    beams: Annotated[int, typer.Option(min=1, max=99, help="Treatment beams.")] = 3,
    layers: Annotated[int, typer.Option(min=1, max=200, help="Energy layers of a beam.")] = 8,
) -> None:
    """Write a synthetic case, plan and machine logs. NOT FOR CLINICAL USE."""
    show.plain(str(sample_case(folder, beams=beams, layers=layers)))
