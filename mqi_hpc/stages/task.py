"""A task at work behind the fence: its status lines, its claim's output folder, its record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

from mqi_hpc.records import layout
from mqi_hpc.records.result import FileEntry, Record, Run, encode_record
from mqi_hpc.records.status import StatusLine, encode_line
from mqi_hpc.stages.digests import hash_file
from mqi_hpc.stages.errors import StageError
from mqi_hpc.stages.fence import Admission
from mqi_hpc.stages.jobs import Claim
from mqi_hpc.stages.publish import append_line, make_folder, publish, sync_file, sync_folder
from mqi_hpc.stages.signals import Signals


class Task:
    """The one run of a task that holds its claim."""

    def __init__(
        self, admission: Admission, claim: Claim, signals: Signals, now: Callable[[], float]
    ) -> None:
        self.admission = admission
        self.signals = signals
        self._claim = claim
        self._now = now
        number = admission.beam.number if admission.beam is not None else 0
        self.folder = admission.folder.at(layout.output_folder(admission.stage, number))
        self.output = self.folder / claim.folder
        """Where everything this run makes goes: no other run ever writes there."""

    def begin(self) -> None:
        """Make the output folder and say that the task has started."""
        job = self.admission.folder
        for path in (job.at("status"), job.at("logs"), self.folder):
            make_folder(path)
        self._say("started")
        self.output.mkdir(0o700)
        sync_folder(self.folder)

    def progress(self, text: str) -> None:
        """Say how far the work is; a few lines a task."""
        self._say("progress", text)

    def exited(self, exit_code: int, text: str = "") -> None:
        """Say how the task ended: its last line."""
        self._say("exited", text, exit_code)

    def run(self) -> Run:
        """Return who did the work, as of now, for the record of work well done."""
        identity, chain = self.admission.identity, self.admission.chain
        return Run(
            key=chain.key,
            job=chain.job,
            array_id=identity.submission_id,
            slurm_id=identity.slurm_id,
            restart=identity.restart,
            node=identity.node,
            start=self._claim.time,
            end=self._now(),
            exit_code=0,
        )

    def relative(self, path: Path) -> str:
        """Return a path as records name it: below the folder that holds the record."""
        return str(path.relative_to(self.folder))

    def entry(self, path: Path) -> FileEntry:
        """Return a finished file as records list it; its content is made durable."""
        sync_file(path)
        return FileEntry(path=self.relative(path), bytes=path.stat().st_size, sha256=hash_file(path))

    def publish(self, record: Record) -> None:
        """Publish the record of work done: the last thing a task does; a later signal changes nothing."""
        for root, _, _ in os.walk(self.output):
            sync_folder(Path(root))
        target = self.folder / layout.RECORD
        self.signals.hold()
        if not publish(encode_record(record).encode(), target):
            raise StageError(f"{self.relative(target)} is there already, and it is not this run's")

    def _say(self, event: str, text: str = "", exit_code: int | None = None) -> None:
        identity, stage, index = self.admission.identity, self.admission.stage, self.admission.index
        line = StatusLine(
            stage=stage,
            index=index,
            event=event,
            time=self._now(),
            slurm_id=identity.slurm_id,
            restart=identity.restart,
            node=identity.node,
            text=text,
            exit_code=exit_code,
        )
        append_line(self.admission.folder.at(layout.status_file(stage, index)), encode_line(line).encode())
