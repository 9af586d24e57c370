"""The poll script's answer: framed sections of squeue, sacct and the files of each job."""

from __future__ import annotations

from mqi_hpc.core.effects import JobQuery, Observe
from mqi_hpc.core.observation import FIELD, MARK
from mqi_hpc.records import layout
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.filesystem import FileSystem
from tests.support.simulation.jobs import Element, Site, SlurmError, SlurmJob
from tests.support.simulation.slurm import Slurm

ABSENT, NO_FOLDER, UNREADABLE = 44, 45, 46


def observe(effect: Observe, slurm: Slurm, files: FileSystem, clock: VirtualClock, workspace: str) -> str:
    """Return what the poll script writes."""
    sections = _Sections(effect.nonce)
    sections.add("date", f"{int(clock.now())}\n")
    try:
        sections.add("squeue", squeue(slurm.shown(), slurm.site))
    except SlurmError as error:
        sections.add("squeue", str(error), error.exit_code)
    if effect.sacct_ids:
        try:
            sections.add("sacct", slurm.accounting.sacct(effect.sacct_ids))
        except SlurmError as error:
            sections.add("sacct", str(error), error.exit_code)
    if files.away:
        # The file system hangs: what needs it does not come to its end.
        return sections.text
    for query in effect.jobs:
        _job(sections, query, files)
    space = (
        "Filesystem 1024-blocks Used Available Capacity Mounted on\n"
        f"simulated 1 1 {files.free_bytes // 1024} 1% /\n"
    )
    sections.add("space", space, 0 if files.is_folder(workspace) else 1)
    return sections.text


def squeue(jobs: list[SlurmJob], site: Site) -> str:
    """Return `squeue -h -t all` in our format."""
    return "".join(f"{_row(job, element)}\n" for job in jobs for element in _shown(job, site))


def _shown(job: SlurmJob, site: Site) -> list[Element]:
    """Return what has a row of its own: what was cancelled while it waited has one together, as no array."""
    elements = list(job.elements.values())
    together = [element for element in elements if element.never_ran]
    if not together or (len(together) == 1 and site.splits_last):
        return elements
    one = Element(None, word="CANCELLED", reason=together[0].reason)
    return [one, *(element for element in elements if not element.never_ran)]


def _row(job: SlurmJob, element: Element) -> str:
    return FIELD.join((
        str(job.id),
        "N/A" if element.index is None else str(element.index),
        element.word,
        job.reason if element.word == "PENDING" else element.reason,
        str(int(job.submit)),
        element.node,
        job.request.name,
    ))  # fmt: skip


class _Sections:
    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self.text = ""

    def add(self, name: str, text: str, code: int = 0) -> None:
        mark = f"{MARK}{self._nonce}"
        self.text += f"{mark} BEGIN {name}\n{text}\n{mark} END {name} {code}\n"


def _job(sections: _Sections, query: JobQuery, files: FileSystem) -> None:
    folder = query.folder
    if not files.is_folder(folder):
        for name in (
            f"receipts:{query.ref}",
            f"status:{query.ref}",
            *(f"record:{r}" for r, _ in query.records),
        ):
            sections.add(name, "", NO_FOLDER)
        return
    sections.add(f"receipts:{query.ref}", _receipts(files, folder))
    lines = "".join(
        (files.read(f"{folder}/status/{name}") or b"").decode("utf-8", "replace")
        for name in files.names(f"{folder}/status")
        if name.endswith(".jsonl")
    )
    sections.add(f"status:{query.ref}", lines, 0 if lines else ABSENT)
    for ref, path in query.records:
        record = files.read(f"{folder}/{path}/{layout.RECORD}")
        if record is None:
            sections.add(f"record:{ref}", "", ABSENT)
            continue
        sections.add(f"record:{ref}", record.decode("utf-8", "replace"))
        listed = files.walk(f"{folder}/{path}")
        sections.add(f"listing:{ref}", "".join(f"{stored.size} {name}\n" for name, stored in listed))


def _receipts(files: FileSystem, folder: str) -> str:
    text = ""
    for stage in layout.STAGES:
        receipt = files.read(f"{folder}/{layout.receipt(stage)}")
        if receipt is not None:
            text += f"{stage} {receipt.decode('utf-8', 'replace') or '-' + chr(10)}"
    if files.exists(f"{folder}/{layout.WITHDRAWN}"):
        text += "withdrawn -\n"
    claims = [name.removeprefix("claim.") for name in files.names(folder) if name.startswith("claim.")]
    return text + (f"claimed {' '.join(claims)}\n" if claims else "")
