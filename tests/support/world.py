"""A scripted cluster behind the effects port, for tests of the domain: what it says is set by the test.

It answers in the wire formats of submit.sh and the poll script; the real scripts have tests of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from mqi_hpc.core.effects import (
    Cancel,
    Completion,
    Download,
    Effect,
    Failure,
    Observe,
    Submit,
    Upload,
)
from mqi_hpc.core.models import STAGES
from mqi_hpc.core.observation import FIELD, MARK

NOW = 1_800_000_000.0


class Clock:
    """Time that moves when a test, or a waiting loop, moves it."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return NOW + self.time

    def monotonic(self) -> float:
        return self.time


class Ids:
    def __init__(self) -> None:
        self.count = 0

    def nonce(self) -> str:
        self.count += 1
        return f"n{self.count}"

    def draw(self) -> float:
        return 0.0


@dataclass
class Row:
    """A task in Slurm, as squeue shows it (`queued` False: as sacct alone shows it)."""

    job: int
    task: int | None
    name: str
    word: str
    reason: str = "None"
    node: str = "g1"
    exit_code: str = "0:0"
    queued: bool = True


@dataclass
class World:
    """The cluster: rows, sections by name, and hooks that replace an answer."""

    clock: Clock
    rows: list[Row] = field(default_factory=list)
    sections: dict[str, tuple[str, int]] = field(default_factory=dict)
    log: list[Effect] = field(default_factory=list)
    answers: dict[type, list[Callable[[Effect], Completion]]] = field(default_factory=dict)
    on_poll: Callable[[], None] = lambda: None
    next_id: int = 100
    silent: set[type] = field(default_factory=set)
    """Kinds of effect that do not come back."""
    dead_sections: set[str] = field(default_factory=set)
    _waiting: list[Completion] = field(default_factory=list)

    # The effects port

    def start(self, effect: Effect) -> None:
        self.log.append(effect)
        if type(effect) in self.silent:
            return
        scripted = self.answers.get(type(effect), [])
        self._waiting.append(scripted.pop(0)(effect) if scripted else self._answer(effect))

    def completions(self, timeout: float) -> list[Completion]:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            self.clock.time += timeout
        return waiting

    def close(self) -> None:
        self.log.clear()

    # What it says

    def started(self, kind: type) -> list[Effect]:
        return [effect for effect in self.log if isinstance(effect, kind)]

    def fail(
        self, kind: type, failure: Failure, error: str = "it failed", *, uncertain: bool = False
    ) -> None:
        """The next effect of `kind` fails so."""
        self.answers.setdefault(kind, []).append(
            lambda effect: Completion(effect=effect, error=error, failure=failure, uncertain=uncertain)
        )

    def say(self, kind: type, lines: list[str], exit_code: int = 0) -> None:
        """The next submit.sh says `lines` after its mark."""

        def answer(effect: Effect) -> Completion:
            text = "".join(f"{MARK}{effect.nonce} {line}\n" for line in lines)  # type: ignore[union-attr]
            return Completion(effect=effect, output=text, exit_code=exit_code)

        self.answers.setdefault(kind, []).append(answer)

    def end(self, name: str, word: str, *, task: int | None = None, exit_code: str = "0:0") -> None:
        """A task of the submission whose name ends with `name` comes to its end."""
        for row in self.rows:
            if row.name.endswith(name) and row.task == task:
                row.word, row.exit_code, row.reason = word, exit_code, "None"

    def _answer(self, effect: Effect) -> Completion:
        if isinstance(effect, Submit):
            return Completion(effect=effect, output=self._submit(effect))
        if isinstance(effect, Observe):
            self.on_poll()
            return Completion(effect=effect, output=self._observe(effect))
        if isinstance(effect, Cancel):
            for name, job in effect.targets:
                for row in self.rows:
                    if (row.name, row.job) == (name, job):
                        row.word, row.reason = "CANCELLED", "None"
        output = ""
        if isinstance(effect, Download):
            files = [f"/results/{effect.folder}/{file.local}" for file in effect.results]
            output = json.dumps({"files": files, "logs": {log: f"/results/{log}" for log in effect.logs}})
        return Completion(effect=effect, output=output)

    names: dict[str, str] = field(default_factory=dict)
    beams: int = 2

    def _submit(self, effect: Submit) -> str:
        lines = ["BEGIN"]
        for stage in STAGES:
            self.next_id += 1
            name = self.names[stage]
            tasks: list[int | None] = list(range(self.beams)) if stage == "beams" else [None]
            reason = "None" if stage == "interpret" else "Dependency"
            self.rows += [Row(self.next_id, task, name, "PENDING", reason, "") for task in tasks]
            lines.append(f"RECEIPT {stage} {name} {self.next_id} {int(self.clock.now())}")
        lines.append("DONE 0")
        return "".join(f"{MARK}{effect.nonce} {line}\n" for line in lines)

    def _observe(self, effect: Observe) -> str:
        submitted = str(int(NOW))
        queue = [
            FIELD.join((
                str(row.job), "N/A" if row.task is None else str(row.task), row.word, row.reason, submitted,
                row.node or "(null)", row.name,
            ))
            for row in self.rows if row.queued
        ]  # fmt: skip
        texts = {
            "date": (str(int(self.clock.now())), 0),
            "squeue": ("".join(f"{line}\n" for line in queue), 0),
        }
        if effect.sacct_ids:
            texts["sacct"] = ("".join(f"{self._accounted(row, submitted)}\n" for row in self.rows), 0)
        for job in effect.jobs:
            texts[f"receipts:{job.ref}"] = ("", 0)
            texts[f"status:{job.ref}"] = ("", 44)
            for ref, _ in job.records:
                texts[f"record:{ref}"] = ("", 44)
                texts[f"listing:{ref}"] = ("", 44)
        texts.update(self.sections)
        return "".join(
            f"{MARK}{effect.nonce} BEGIN {name}\n{text}\n{MARK}{effect.nonce} END {name} {code}\n"
            for name, (text, code) in texts.items()
            if name not in self.dead_sections
        )

    def _accounted(self, row: Row, submitted: str) -> str:
        job_id = str(row.job) if row.task is None else f"{row.job}_{row.task}"
        return FIELD.join((
            job_id, row.name, row.word, row.exit_code, submitted, submitted, submitted, row.node, "gres/gpu=1"
        ))  # fmt: skip


__all__ = ["Cancel", "Clock", "Download", "Ids", "Observe", "Row", "Submit", "Upload", "World"]
