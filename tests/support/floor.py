"""An installation with cases on the simulated cluster, driven turn by turn, for tests of the domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mqi_hpc.core.effects import Completion, Effect
from mqi_hpc.core.models import Case, Job, Task, TaskType
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.core.requests import Request, Verb
from mqi_hpc.core.resubmit import History, current_tasks
from mqi_hpc.core.retry_causes import RetryTable
from mqi_hpc.services.history import read_history
from mqi_hpc.services.report_service import CaseReport
from tests.support.simulation.beds import SimulatedBed
from tests.support.simulation.installation import Installation


class Counted:
    """An effects port that notes what passes through it, and when."""

    def __init__(self, port: Any) -> None:
        self._port = port
        self.started: list[tuple[float, Effect]] = []

    def start(self, effect: Effect) -> None:
        self.started.append((self._port.clock.monotonic(), effect))
        self._port.start(effect)

    def completions(self, timeout: float) -> list[Completion]:
        found: list[Completion] = self._port.completions(timeout)
        return found

    def close(self) -> None:
        self._port.close()

    def of(self, kind: type) -> list[Effect]:
        return [effect for _, effect in self.started if isinstance(effect, kind)]


@dataclass
class Floor:
    """`said` is what a person was told; `home` the installation, made anew by `restart`."""

    bed: SimulatedBed
    gpu_count: int | None = None
    max_concurrent_jobs: int | None = None
    said: list[str] = field(default_factory=list)
    retries: RetryTable = field(default_factory=RetryTable)

    def __post_init__(self) -> None:
        self.sim = self.bed.sim
        self.case = self.bed.case
        self.port = Counted(self.sim)
        self._orders = 0
        self.restart()

    def restart(self) -> None:
        """Make services and loop anew on the same store: what a kill and a start do."""
        self.home = Installation(
            self.bed.store,
            self.port,
            self.bed.clock,
            self.bed.renderer,
            workspace=self.bed.workspace,
            gpu_count=self.gpu_count,
            max_concurrent_jobs=self.max_concurrent_jobs,
            rhythm=PollRhythm(least=5.0, most=60.0),
            tell=lambda _, text: self.said.append(text),
            retries=self.retries,
        )

    def take(self, case: Case | None = None) -> None:
        self.home.take(case or self.case)

    def more(self, count: int, beams: int = 2) -> list[Case]:
        """Further cases with the files of the first, each with a key and a label of its own."""
        chosen = {"beams": self.case.beams[:beams], "beam_count": beams}
        return [
            self.case.evolve(case_id=f"case{n:08d}", label=f"P{n}-f01", identity=f"another {n}", **chosen)
            for n in range(count)
        ]

    def report(self, case_id: str | None = None) -> CaseReport:
        return self.home.report(case_id or self.case.case_id)

    def until(self, enough: Callable[[], bool] | str) -> CaseReport:
        wanted = enough
        probe = (lambda: self.report().status == wanted) if isinstance(wanted, str) else wanted
        try:
            self.home.run_until(probe, 5000)
        except AssertionError as error:
            error.add_note(f"{self.report()}\n{self.said}")
            raise
        return self.report()

    def order(self, verb: Verb, **changes: Any) -> str:
        """Give an order, and have the case led, as a command or the daemon does."""
        self._orders += 1
        request = Request(
            request_id=f"r{self._orders}", verb=verb, case_id=self.case.case_id, who="ann", **changes
        )
        said = self.home.orders.carry_out(request)
        self.home.orchestrator.process_case(self.case.case_id)
        return said

    def jobs(self) -> list[Job]:
        with self.bed.store.transaction(write=False) as unit:
            return unit.jobs.of_case(self.case.case_id)

    def tasks(self) -> list[Task]:
        """The tasks that count."""
        with self.bed.store.transaction(write=False) as unit:
            return current_tasks(read_history(unit, self.case.case_id))

    def history(self) -> History:
        """The case's jobs and tasks."""
        with self.bed.store.transaction(write=False) as unit:
            return read_history(unit, self.case.case_id)

    def events(self) -> list[dict[str, Any]]:
        """All that was recorded of the case."""
        return self.home.reports.events(self.case.case_id)

    def phase(self, kind: str) -> str:
        """The phase of the case's task of a kind that it has once."""
        return next(task.phase for task in self.tasks() if task.type == kind)

    def turns(self, count: int) -> None:
        """Turn the loop."""
        for _ in range(count):
            self.home.orchestrator.turn()

    def beams(self) -> list[str]:
        return [task.phase for task in self.tasks() if task.type is TaskType.BEAM_CALC]

    def in_slurm(self) -> dict[str, list[str]]:
        """Every job Slurm ever took of the case: by the end of its name, its indices."""
        found: dict[str, list[str]] = {}
        for job in self.sim.slurm.jobs.values():
            if f"-{self.case.case_id}-" in job.request.name:
                found.setdefault("-".join(job.request.name.split("-")[-2:]), []).extend(
                    map(str, job.elements)
                )
        return found
