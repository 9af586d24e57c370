"""The stage programs under attack: each passes the fence, works, and may be hurt on its way."""

from __future__ import annotations

from collections.abc import Callable, Generator

from tests.chaos.faults import Fault
from tests.chaos.files import StaleView, WatchedFiles, place_of
from tests.chaos.ledger import Ledger, Ran
from tests.chaos.works import WORKS
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.jobs import Program, Terminated
from tests.support.simulation.stages import TERMINATED, Script, Stages
from tests.support.simulation.task import Refused, Start, Task

KILLED = 137
Take = Callable[[str], tuple[Fault, ...]]
"""Gives the faults that strike a place this time."""


class Programs(Stages):
    """Stages whose output tells what it was made of. `twice` runs a program that Slurm does not know of."""

    def __init__(
        self, clock: VirtualClock, files: WatchedFiles, ledger: Ledger, script: Script, take: Take
    ) -> None:
        super().__init__(clock, files, script)
        self._watched = files
        self._ledger = ledger
        self._take = take
        self.twice: Callable[[Program, float], None] = lambda _, __: None
        self.silence: Callable[[Start, float], None] = lambda _, __: None
        self.begun: Callable[[str, str, str], None] = lambda *_: None

    def launch(self, start: Start) -> Program:
        """Return the program of one task, with what is to befall it."""
        return self._hurt(start, {fault.kind: fault.amount for fault in self._take(start.stage)})

    def plain(self, start: Start) -> Program:
        """Return the program of one task, whole."""
        return self._owned(super().launch(start), start)

    def _hurt(self, start: Start, faults: dict[str, int]) -> Program:
        key, _ = place_of(start.folder)
        for kind in sorted(faults.keys() & {"before", "after", "killed", "lost", "twice"}):
            self._ledger.hurt(key, f"{start.stage} {kind}")
        if "before" in faults:
            return KILLED
        if "twice" in faults:
            self.twice(self.plain(start), float(faults["twice"] % 3))
        if "lost" in faults:
            self.silence(start, float(faults["lost"]))
        inner = self.plain(start)
        if "stale" in faults:
            view = StaleView(self._watched, faults["stale"], hides=lambda path: "/receipt." in path)
            seeing = Programs(self._clock, self._watched, self._ledger, self._script, lambda _: ())
            seeing._files, seeing.begun = view, self.begun
            inner = seeing.plain(start)
        try:
            code = yield from _between(inner, faults.get("frozen", 0), cut="killed" in faults)
        finally:
            inner.close()
        if "late" in faults:
            yield float(faults["late"])
        return KILLED if "after" in faults else code

    def _owned(self, inner: Program, start: Start) -> Program:
        """Let a program write into its own job's folder alone: what is written elsewhere is told."""
        wait: float | None
        throwing: BaseException | None = None
        while True:
            before, self._watched.own = self._watched.own, start.folder
            try:
                wait = next(inner) if throwing is None else inner.throw(throwing)
            except StopIteration as stop:
                return int(stop.value)
            finally:
                self._watched.own = before
            try:
                yield wait
                throwing = None
            except Terminated as asked:
                throwing = asked

    def _work(self, task: Task, log: str) -> Program:
        start = task.start
        key, job = place_of(start.folder)
        place = (key, job, start.stage, start.index or 0)
        self._ledger.ran.append(Ran(*place, start.submission_id, start.raw_id, self._clock.monotonic()))
        self._ledger.note(self._clock.monotonic(), "claimed", *place, start.submission_id, start.raw_id)
        self.begun(key, job, start.stage)
        code, text = 0, ""
        if start.stage == "beams" and (faults := self._take("engine")):
            task.fault = faults[0].kind.replace("exit", "exit 9").replace("no-output", "no output")
            self._ledger.hurt(key, f"engine {faults[0].kind}")
            if task.fault in ("other-beam", "cut", "rubbish"):
                self._ledger.spoilt.add(place)
        try:
            task.say("started")
            yield from self._at_work(task)
            if task.fault.startswith("exit "):
                code, text = int(task.fault.split()[1]), "told to fail"
            elif task.fault != "no output":
                made = WORKS[start.stage](task)
                self._ledger.published.setdefault(place, []).append(made)
                self._ledger.note(self._clock.monotonic(), "published", *place, *sorted(made.items()))
        except Terminated:
            code, text = TERMINATED, "signal 15"
        except Refused as refusal:
            code, text = refusal.exit_code, str(refusal)
        if task.fault == "unsaid" and not code:
            self._ledger.note(self._clock.monotonic(), "killed after its record", *place)
            return KILLED
        if task.fault == "contradicted" and not code:
            # What is around the program swallows its exit code.
            task.say("exited", "told to fail", 9)
            self._ledger.exits.setdefault(place, []).append(9)
            return 0
        if text:
            self._say_in(log, f"mqi-hpc {start.stage}: {text}")
        task.say("exited", text, code)
        self._ledger.exits.setdefault(place, []).append(code)
        self._ledger.note(self._clock.monotonic(), "exited", *place, code, text)
        return code


def _between(inner: Program, frozen: int, *, cut: bool) -> Generator[float, None, int]:
    """Run a program; it stands still for `frozen` seconds at its first wait, or is cut there."""
    waits = 0
    while True:
        try:
            wait = next(inner)
        except StopIteration as stop:
            return int(stop.value)
        waits += 1
        if waits == 1 and frozen:
            wait += frozen
        if waits == 2 and cut:
            return KILLED
        try:
            yield wait
        except Terminated as asked:
            try:
                inner.throw(asked)
            except StopIteration as stop:
                return int(stop.value)
