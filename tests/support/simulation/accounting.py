"""slurmdbd: rows as sacct prints them, a few seconds late; it can be down, and hears then what it missed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from mqi_hpc.core.chain_plan import array_expression
from mqi_hpc.core.observation import FIELD
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.jobs import Element, Site, SlurmError, SlurmJob

_UNREACHABLE = (
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to "
    "host:localhost:6819: Connection refused\n"
    "sacct: error: Sending PersistInit msg: Connection refused\n"
    "sacct: error: Problem talking to the database: Connection refused"
)
_NONE = "Slurm accounting storage is disabled"

_Rows = dict[str, str]


class Accounting:
    """The database of one cluster. It keeps a job's rows for ever, as the real one does for months."""

    def __init__(self, clock: VirtualClock, site: Site) -> None:
        self._clock = clock
        self._site = site
        self._rows: dict[int, _Rows] = {}
        self._missed: list[tuple[int, _Rows]] = []
        self.up = True

    def note(self, job: SlurmJob) -> None:
        """Hear how a job is now; sacct shows it after the lag."""
        if self._site.accounting:
            news = _rows(job, self._site, registered=job.id in self._rows)
            self._clock.later(self._site.accounting_lag, partial(self._keep, job.id, news))

    def start(self) -> None:
        """Start slurmdbd again: slurmctld tells it what it missed."""
        self.up = True
        missed, self._missed = self._missed, []
        for job_id, news in missed:
            self._keep(job_id, news)

    def sacct(self, ids: Iterable[int]) -> str:
        """Return the rows of these jobs; an id it does not know has none. Raises SlurmError."""
        if not self._site.accounting:
            raise SlurmError(_NONE)
        if not self.up:
            raise SlurmError(_UNREACHABLE)
        return "".join(f"{row}\n" for job_id in ids for row in self._rows.get(job_id, {}).values())

    def forget(self, job_id: int) -> None:
        """Drop a job's rows, as a database of a smaller simulation may."""
        self._rows.pop(job_id, None)

    def _keep(self, job_id: int, news: _Rows) -> None:
        if not self.up:
            self._missed.append((job_id, news))
            return
        rows = self._rows.setdefault(job_id, {})
        for label in [label for label in rows if "[" in label]:
            del rows[label]
        rows.update(news)


def _rows(job: SlurmJob, site: Site, *, registered: bool) -> _Rows:
    """Return the rows of a job by JobID."""
    rows: _Rows = {}
    groups: dict[str, list[Element]] = {}
    for element in job.elements.values():
        if element.index is None:
            rows[str(job.id)] = _row(job, str(job.id), element)
        elif element.raw:
            label = f"{job.id}_{element.index}"
            rows[label] = _row(job, label, element)
        else:
            groups.setdefault(element.word, []).append(element)
    for elements in groups.values():
        whole = len(elements) == job.total and elements[0].word == "CANCELLED"
        if whole and not registered and site.before_23:
            # It was gone before the database heard that it is an array.
            label = str(job.id)
        elif len(elements) == 1 and site.splits_last:
            label = f"{job.id}_{elements[0].index}"
        else:
            indices = [element.index for element in elements if element.index is not None]
            label = f"{job.id}_[{array_expression(indices, job.request.throttle)}]"
        rows[label] = _row(job, label, elements[0])
    return rows


def _row(job: SlurmJob, label: str, element: Element) -> str:
    word = element.word
    end = "Unknown" if element.end is None else str(int(element.end))
    begun = "Unknown" if element.word == "PENDING" else "None"
    start = begun if element.start is None else str(int(element.start))
    gpu = f"gres/gpu={job.request.gpus}," if job.request.gpus else ""
    return FIELD.join((
        label,
        job.request.name,
        f"{word} by {element.by}" if word == "CANCELLED" and element.by is not None else word,
        element.code,
        str(int(job.submit)),
        start,
        end,
        element.node or "None assigned",
        f"billing=1,cpu=1,{gpu}mem=1G,node=1" if element.node else "",
    ))  # fmt: skip
