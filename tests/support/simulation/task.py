"""A task at work in its job's folder: what it reads there, and how it leaves status lines and its record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from mqi_hpc.records import layout
from mqi_hpc.records.chain import Chain, ChainBeam, decode_chain
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.result import (
    Expected,
    FileEntry,
    InterpretRecord,
    Record,
    Run,
    decode_record,
    encode_record,
    faults,
)
from mqi_hpc.records.status import StatusLine, encode_line
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.filesystem import FileSystem, Stored

_decoded = lru_cache(maxsize=256)(decode_chain)
"""Every stage reads the chain of its job: it never changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What Slurm tells a batch script: its job, and where it runs."""

    folder: str
    stage: str
    name: str
    submission_id: int
    raw_id: int
    index: int | None
    node: str
    restart: int = 0


class Refused(Exception):  # noqa: N818 - the fence's word
    """The fence: nothing was touched."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class JobFolder:
    """A job's folder, as stages read it."""

    def __init__(self, files: FileSystem, path: str) -> None:
        self.files = files
        self.path = path

    @property
    def chain(self) -> Chain:
        """The job's chain.json."""
        return _decoded((self.files.read(f"{self.path}/{layout.CHAIN}") or b"").decode())

    def receipt(self, stage: str) -> tuple[str, int]:
        """Return name and id in a receipt; ("", 0) where there is none."""
        words = (
            (self.files.read(f"{self.path}/{layout.receipt(stage)}") or b"")
            .decode("utf-8", "replace")
            .split()
        )
        return (words[0], int(words[1])) if len(words) == 3 and words[1].isdecimal() else ("", 0)

    def sibling(self, job: str) -> JobFolder:
        """Return another job's folder of the same case."""
        return JobFolder(self.files, f"{self.path.rpartition('/')[0]}/{job}")

    def interpreted(self, chain: Chain) -> tuple[str, InterpretRecord]:
        """Return SHA-256 and content of the interpret record a job builds on; raises Refused."""
        named = chain.interpreted
        other = self if named.job == chain.job else self.sibling(named.job)
        found = other.standing(other.chain, "interpret", 0) if other.files.exists(other.path) else None
        if found is None or named.record_digest not in (None, found[0]):
            raise Refused(layout.EXIT_NOT_NOW, "interpret did not finish: its record does not stand")
        assert isinstance(found[1], InterpretRecord)
        return found[0], found[1]

    def standing(self, chain: Chain, stage: str, index: int) -> tuple[str, Record] | None:
        """Return SHA-256 and content of a task's valid record, None where there is none."""
        folder = f"{self.path}/{layout.output_folder(stage, _number(chain, stage, index))}"
        content = self.files.read(f"{folder}/{layout.RECORD}")
        if content is None:
            return None
        try:
            record = decode_record(content.decode())
            expected = Expected(chain, stage, index, self.receipt(stage)[1], 0)
            sizes = {path: stored.size for path, stored in self.files.walk(folder)}
            found = faults(record, expected, sizes)
        except FormatError:
            return None
        return None if found else (hashlib.sha256(content).hexdigest(), record)


@dataclass(slots=True)
class Task:
    """A task at work behind the fence."""

    clock: VirtualClock
    job: JobFolder
    chain: Chain
    start: Start
    beam: ChainBeam | None
    interpreted: tuple[str, InterpretRecord] | None = None
    fault: str = "none"
    begun: float = 0.0

    def claim(self) -> str:
        """Return the claim's line: `id raw restart host pid time`."""
        self.begun = self.clock.now()
        start = self.start
        ids = f"{start.submission_id} {start.raw_id} {start.restart}"
        return f"{ids} {start.node} 1 {self.begun:.6f}\n"

    def say(self, event: str, text: str = "", exit_code: int | None = None) -> None:
        """Append a status line, unless the job's folder has gone."""
        start, index = self.start, self.start.index or 0
        line = StatusLine(
            stage=start.stage,
            index=index,
            event=event,
            time=self.clock.now(),
            slurm_id=start.raw_id,
            restart=start.restart,
            node=start.node,
            text=text,
            exit_code=exit_code,
        )
        if self.job.files.is_folder(self.job.path):
            path = f"{self.job.path}/{layout.status_file(start.stage, index)}"
            self.job.files.append(path, encode_line(line))

    def leave(self, name: str, content: bytes) -> FileEntry:
        """Write an output file into this run's own folder and return its entry."""
        if not self.job.files.is_folder(self.job.path):
            raise Refused(74, "the job's folder has gone")
        path = f"{self.start.raw_id}-{self.start.restart}/{name}"
        self.job.files.write(f"{self._folder}/{path}", content)
        return FileEntry(path, len(content), hashlib.sha256(content).hexdigest())

    def publish(self, record: Record) -> None:
        """Publish the record, once; a fault that was ordered spoils it before."""
        if self.fault == "cut":
            entry = record.files[0]
            self.job.files.write(f"{self._folder}/{entry.path}", Stored(entry.bytes - 1, "0" * 64, None))
        text = encode_record(record)
        if self.fault == "rubbish":
            text = text[: len(text) // 2]
        if not self.job.files.publish(f"{self._folder}/{layout.RECORD}", text.encode()):
            raise Refused(1, "a record is there already")

    def run(self) -> Run:
        """Return who did the work, as of now."""
        start = self.start
        return Run(
            key=self.chain.key,
            job=self.chain.job,
            array_id=start.submission_id,
            slurm_id=start.raw_id,
            restart=start.restart,
            node=start.node,
            start=self.begun,
            end=self.clock.now(),
            exit_code=0,
        )

    @property
    def _folder(self) -> str:
        number = self.beam.number if self.beam is not None else 0
        return f"{self.job.path}/{layout.output_folder(self.start.stage, number)}"


def _number(chain: Chain, stage: str, index: int) -> int:
    return chain.beam(index).number if stage == "beams" else 0
