"""The stage programs as they are seen from outside: fence, claim, status lines, and a record at the end.

Each is a program of Slurm's (jobs.Program): virtual seconds come out of it, its exit code at last. What it
writes goes through mqi_hpc.records, as what the real ones write does.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field

from mqi_hpc.records import layout
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.filesystem import FileSystem
from tests.support.simulation.jobs import Program, Terminated
from tests.support.simulation.task import JobFolder, Refused, Start, Task
from tests.support.simulation.works import WORKS

PATIENCE = 90.0
"""How long (s) the fence waits for a receipt."""
TERMINATED = 143


@dataclass(slots=True)
class Script:
    """How stages go here: seconds each takes, and faults by DICOM beam number.

    A fault is `exit CODE`, `no output` (exit 0 and nothing written), `other-beam` (a record of another
    number), `cut` (its record lists a file that is shorter), `rubbish` (half a record), `hang` or `none`;
    `stages` holds faults of interpret and convert by name; on `bad_nodes` a beam finds no GPU that works.
    """

    seconds: dict[str, float] = field(
        default_factory=lambda: {"interpret": 20.0, "beams": 120.0, "convert": 10.0}
    )
    beams: dict[int, str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    bad_nodes: set[str] = field(default_factory=set)


class Stages:
    """Runs stages on a file system."""

    def __init__(self, clock: VirtualClock, files: FileSystem, script: Script) -> None:
        self._clock = clock
        self._files = files
        self._script = script

    def launch(self, start: Start) -> Program:
        """Return the program of one task."""
        log = f"{start.folder}/logs/{start.stage}-{start.submission_id}"
        log += ".log" if start.index is None else f"_{start.index}.log"
        try:
            task = yield from self._admitted(start)
        except Refused as refusal:
            self._say_in(log, f"mqi-hpc {start.stage}: {refusal}")
            return refusal.exit_code
        if task is None:
            return 0
        return (yield from self._work(task, log))

    def _work(self, task: Task, log: str) -> Program:
        number = task.beam.number if task.beam is not None else 0
        fault = self._script.beams.get(number) if number else self._script.stages.get(task.start.stage)
        task.fault = fault or "none"
        if task.start.stage == "beams" and task.start.node in self._script.bad_nodes:
            task.fault = f"exit {layout.EXIT_NO_GPU}"
        code, text = 0, ""
        try:
            task.say("started")
            if task.fault == "hang":
                yield math.inf
            yield from self._at_work(task)
            if task.fault.startswith("exit "):
                code, text = int(task.fault.split()[1]), "told to fail"
            elif task.fault != "no output":
                WORKS[task.start.stage](task)
        except Terminated:
            code, text = TERMINATED, "signal 15"
        except Refused as refusal:
            code, text = refusal.exit_code, str(refusal)
        if text:
            self._say_in(log, f"mqi-hpc {task.start.stage}: {text}")
        task.say("exited", text, code)
        return code

    def _at_work(self, task: Task) -> Generator[float, None, None]:
        half = self._script.seconds[task.start.stage] / 2
        yield half
        task.say("progress", "half of it is done")
        yield half

    def _say_in(self, log: str, text: str) -> None:
        if self._files.is_folder(log.rpartition("/")[0]):
            self._files.append(log, f"{text}\n")

    def _admitted(self, start: Start) -> Generator[float, None, Task | None]:
        """Pass the fence and take the claim; None where the work is done already."""
        files, folder = self._files, start.folder
        waited = 0.0
        while True:
            if not files.exists(f"{folder}/{layout.CHAIN}"):
                raise Refused(layout.EXIT_NOT_OURS, "the job's folder or its chain.json is gone")
            if files.exists(f"{folder}/{layout.WITHDRAWN}"):
                raise Refused(layout.EXIT_NOT_OURS, "the job was called off")
            if files.exists(f"{folder}/{layout.receipt(start.stage)}"):
                break
            if waited >= PATIENCE:
                raise Refused(layout.EXIT_NOT_OURS, f"no receipt within {PATIENCE:.0f} s")
            yield 1.0
            waited += 1.0
        job = JobFolder(files, folder)
        chain = job.chain
        name, slurm_id = job.receipt(start.stage)
        ours = (start.name, start.submission_id)
        if (name, slurm_id) != ours or chain.submission(start.stage).name != name:
            raise Refused(
                layout.EXIT_NOT_OURS,
                f"this is Slurm job {start.submission_id}, the receipt names {name} {slurm_id}",
            )
        index = start.index or 0
        task = Task(self._clock, job, chain, start, chain.beam(index) if start.stage == "beams" else None)
        if start.stage != "interpret":
            task.interpreted = job.interpreted(chain)
        if not files.publish(f"{folder}/{layout.claim(start.stage, index)}", task.claim().encode()):
            if job.standing(chain, start.stage, index) is None:
                raise Refused(layout.EXIT_NOT_NOW, "another run holds the claim")
            return None
        return task
