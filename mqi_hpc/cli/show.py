"""What a person sees: Rich tables and lines. Decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mqi_hpc.controllers.application import Outcome
from mqi_hpc.controllers.trial import Trial
from mqi_hpc.services.report_service import BeamReport, CaseReport

_COLOURS = {
    "completed": "green",
    "done": "green",
    "failed": "red",
    "rejected": "red",
    "lost": "red",
    "suspect": "yellow",
    "partial": "yellow",
    "cancelled": "yellow",
}
_LOG_LINES = 15
_WIDE = 240


def _out() -> Console:
    # Without a terminal nothing is wrapped: programs and logs read whole lines.
    wide = None if sys.stdout.isatty() else _WIDE
    return Console(width=wide, highlight=False)


def _err() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def plain(text: str) -> None:
    """Print text as it is."""
    sys.stdout.write(f"{text}\n")


def progress(label: str, text: str) -> None:
    """Print a line of what is going on; work does not end because nobody listens any more."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{_printable(label)}: {_printable(text)}\n")
            sys.stderr.flush()


def outcome(result: Outcome) -> None:
    """Print how a submit ended."""
    for line in result.notes:
        _err().print(f"note: {escape(line)}")
    if result.rejected:
        _err().print("[red]rejected[/red]:")
        for line in result.rejected:
            _err().print(f"  {escape(line)}")
    for report in result.cases:
        case(report)


def trial(result: Trial) -> None:
    """Print what a submit would do."""
    for line in result.notes:
        _err().print(f"note: {escape(line)}")
    if result.rejected:
        _err().print("[red]rejected[/red]:")
        for line in result.rejected:
            _err().print(f"  {escape(line)}")
    for case_ in result.cases:
        beams = ", ".join(map(str, case_.beams))
        plain(f"{case_.label}: beams {beams}, in {case_.job_folder}")
        if case_.note:
            plain(f"  {case_.note}")
        for stage in case_.stages:
            word = "refused" if stage.cure else "ok"
            tasks = f" ({stage.tasks} tasks)" if stage.tasks > 1 else ""
            plain(f"  {word:<8}{stage.stage}{tasks} {stage.name}: {stage.found}")
            if stage.cure:
                plain(f"          cure: {stage.cure}")
    plain("Nothing was submitted, and nothing is kept.")


def cases(reports: Sequence[CaseReport]) -> None:
    """Print one line a case."""
    if not reports:
        plain("No cases yet: mqi-hpc submit FOLDER registers one.")
        return
    table = Table("case", "id", "status", "job", "beams done", "attention", box=None)
    for report in reports:
        done = sum(beam.status == "completed" for beam in report.beams)
        table.add_row(
            escape(report.label),
            report.case_id,
            _coloured(report.status),
            report.job or "-",
            f"{done}/{len(report.beams)}" if report.beams else "-",
            escape(report.attention or (report.rejected[0] if report.rejected else "")),
        )
    _out().print(table)


def case(report: CaseReport) -> None:
    """Print one case whole."""
    out = _out()
    out.print(f"case [bold]{escape(report.label)}[/bold] ({report.case_id}): {_coloured(report.status)}")
    if report.rejected:
        # Nothing else is known of a folder that was refused.
        out.print(f"  folder {escape(report.folder)}")
        for line in report.rejected:
            out.print(f"  [red]{escape(line)}[/red]", soft_wrap=True)
        return
    out.print(f"  folder {escape(report.folder)}, machine {escape(report.machine)}, job {report.job or '-'}")
    if report.refusal:
        out.print(f"  [red]{escape(report.refusal)}[/red]")
    if report.attention:
        out.print(f"  [yellow]attention: {escape(report.attention)}[/yellow]")
    stages = [
        task for task in report.tasks if task.slurm_id or (task.detail and not _told(task.detail, report))
    ]
    for task in stages:
        slurm = f" Slurm {task.slurm_id}" if task.slurm_id else ""
        tail = f" ({escape(task.detail)})" if task.detail and not _told(task.detail, report) else ""
        out.print(f"  {task.task}:{slurm} {_coloured(task.verdict)}{tail}")
    if report.beams:
        out.print(_beams(report.beams))
    for one in report.next:
        out.print(f"  next: {escape(one.text)}", soft_wrap=True)
    for path in report.results:
        out.print(f"  {escape(path)}", soft_wrap=True)
    for who, detail, paths in _failures(report):
        out.print(f"[red]{escape(who)}[/red]: {escape(detail)}")
        for path in paths:
            _tail(out, path)


def _beams(beams: Sequence[BeamReport]) -> Table:
    table = Table(
        "beam", "name", "Slurm id", "node", "GPU", "verdict", "max dose", "R80", "RT Dose", box=None
    )
    for beam in beams:
        dose = beam.dose
        table.add_row(
            str(beam.number),
            escape(beam.name),
            beam.slurm_id or "-",
            beam.node or "-",
            beam.gpu or "-",
            _coloured(beam.verdict) + (f" ({escape(beam.noted)})" if beam.noted else ""),
            f"{dose.maximum_gy:.4g} Gy" if dose else "-",
            f"{dose.range80_mm:.1f} mm" if dose and dose.range80_mm is not None else "-",
            escape(Path(dose.file).name) if dose else "-",
        )
    return table


def _told(detail: str, report: CaseReport) -> bool:
    """Whether a detail repeats the refusal, which stands above all else."""
    return bool(report.refusal) and str(report.refusal) in detail


def _failures(report: CaseReport) -> list[tuple[str, str, tuple[str, ...]]]:
    # A refusal is said once, above.
    found = [
        (f"beam {beam.number} (Slurm {beam.slurm_id})", f"{beam.verdict}: {beam.detail}", beam.logs)
        for beam in report.beams
        if beam.status not in ("completed", "pending", "running") and not _told(beam.detail, report)
    ]
    found += [
        (f"{task.task} (Slurm {task.slurm_id})", f"{task.verdict}: {task.detail}", task.logs)
        for task in report.tasks
        if task.slurm_id
        and task.status not in ("completed", "pending", "running")
        and not _told(task.detail, report)
    ]
    return found


def _tail(out: Console, path: str) -> None:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        out.print(f"  {escape(path)}: {error.strerror}")
        return
    out.print(f"  last lines of {escape(path)}:")
    for line in text.splitlines()[-_LOG_LINES:]:
        out.print(f"    {escape(_printable(line))}")


def logs(tails: Mapping[str, str], note: str) -> None:
    """Print log files, path by name."""
    if note:
        _err().print(f"note: {escape(note)}")
    if not tails:
        plain("No logs yet.")
    for name, path in tails.items():
        plain(f"==> {name} <==")
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        plain("\n".join(_printable(line) for line in text.splitlines()))


def rendered(files: Mapping[str, bytes]) -> None:
    """Print rendered text files; of others, their size."""
    for name in sorted(files):
        plain(f"==> {name} <==")
        try:
            plain(files[name].decode())
        except UnicodeDecodeError:
            plain(f"({len(files[name])} bytes)")


def _coloured(word: str) -> str:
    colour = _COLOURS.get(word.split(" ", maxsplit=1)[0])
    return f"[{colour}]{escape(word)}[/{colour}]" if colour else escape(word)


def _printable(line: str) -> str:
    # A log may hold terminal escapes; they are shown, not obeyed.
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line)
