"""What slurmctld does by itself: looks at what waits, starts it, hears how it ended, and forgets it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.support.simulation.accounting import Accounting
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.jobs import Element, Node, Program, Request, Site, SlurmJob
from tests.support.simulation.runner import Runner

Launch = Callable[[SlurmJob, Element], Program]
"""Makes the program that an element runs."""


class Scheduler:
    """Jobs, nodes, and what is started where. `up` False: slurmctld is down; what runs runs on.

    While `hangs` says so, no program gets on: each waits for the file system.
    """

    def __init__(
        self, clock: VirtualClock, site: Site, launch: Launch, hangs: Callable[[], bool] = lambda: False
    ) -> None:
        self.site = site
        self.accounting = Accounting(clock, site)
        self.runner = Runner(clock, hangs, site.term_seconds)
        self.nodes = {name: Node(gpus=gpus) for name, gpus in site.gpus.items()}
        self.down_partitions: set[str] = set()
        self.jobs: dict[int, SlurmJob] = {}
        self.up = True
        self._clock = clock
        self._launch = launch
        self._last = 0
        self._pass_planned = False
        self._unheard: list[Callable[[], None]] = []

    def _soon(self) -> None:
        if not self._pass_planned:
            self._pass_planned = True
            self._clock.later(self.site.schedule_interval, self._pass)

    def _pass(self) -> None:
        """Look at everything that waits, in order of ids."""
        self._pass_planned = False
        if not self.up:
            return
        blocked: set[str] = set()
        for job in list(self.jobs.values()):
            if not job.pending:
                continue
            self._look_at_dependencies(job)
            self._explain(job)
            if job.held or job.waits:
                continue
            self._start_some(job, blocked)

    def _look_at_dependencies(self, job: SlurmJob) -> None:
        for wait in list(job.waits):
            condition, other = wait
            before = self.jobs.get(other)
            if before is not None and before.live:
                continue
            if condition == "afterany" or before is None or not before.bad:
                job.waits.remove(wait)
            else:
                job.never = True

    def _explain(self, job: SlurmJob) -> None:
        if job.held:
            job.reason = "JobHeldUser"
        elif job.never:
            job.reason = "DependencyNeverSatisfied"
        elif job.waits:
            job.reason = "Dependency"
        else:
            job.reason = "None"

    def _start_some(self, job: SlurmJob, blocked: set[str]) -> None:
        request = job.request
        for element in job.pending:
            if request.throttle is not None and len(job.running) >= request.throttle:
                job.reason = "JobArrayTaskLimit"
                return
            if request.partition in self.down_partitions:
                job.reason = "PartitionDown"
                return
            node = None if request.partition in blocked else self._room(request)
            if node is None:
                job.reason = "Priority" if request.partition in blocked else "Resources"
                blocked.add(request.partition)
                return
            self._start(job, element, node)

    def _room(self, request: Request) -> str | None:
        for name in self.site.partitions[request.partition]:
            node = self.nodes[name]
            if name not in request.left_out and node.up and node.cpus >= 1 and node.gpus >= request.gpus:
                return name
        return None

    def _start(self, job: SlurmJob, element: Element, node: str) -> None:
        element.word, element.node, element.start = "RUNNING", node, self._clock.now()
        element.reason = "None"
        if job.pending:
            # The last to start keeps the array's own raw id.
            self._last += 1
            element.raw = self._last
        else:
            element.raw = job.id
        self.nodes[node].cpus -= 1
        self.nodes[node].gpus -= job.request.gpus
        element.program = self._launch(job, element)
        self.accounting.note(job)
        self.runner.run(element, partial(self._heard, job, element))

    def _heard(self, job: SlurmJob, element: Element, code: int) -> None:
        if self.up:
            self._ended(job, element, code)
        else:
            self._unheard.append(partial(self._ended, job, element, code))

    def _ended(self, job: SlurmJob, element: Element, code: int) -> None:
        current = self.jobs.get(job.id) is job and job.elements.get(element.index) is element
        if not current or element.word != "RUNNING":
            return
        element.reason = "NonZeroExitCode" if code else "None"
        self._close(job, element, "FAILED" if code else "COMPLETED", self.site.exit_code(code))
        self.accounting.note(job)
        self._soon()

    def _give_back(self, job: SlurmJob, element: Element) -> None:
        if element.node:
            self.nodes[element.node].cpus += 1
            self.nodes[element.node].gpus += job.request.gpus

    def _close(self, job: SlurmJob, element: Element, word: str, code: str) -> None:
        """Bring an element to its end and give back what it held."""
        self._give_back(job, element)
        element.word, element.code, element.end = word, code, self._clock.now()
        job.bad = job.bad or word != "COMPLETED"
        self._clock.later(self.site.min_job_age, partial(self._forget, job, element))

    def _forget(self, job: SlurmJob, element: Element) -> None:
        """slurmctld forgets what ended MinJobAge ago; what waits for it is looked at before."""
        for other in self.jobs.values():
            if any(wait[1] == job.id for wait in other.waits):
                self._look_at_dependencies(other)
        if job.elements.get(element.index) is element:
            del job.elements[element.index]
        if not job.elements and self.jobs.get(job.id) is job:
            del self.jobs[job.id]
