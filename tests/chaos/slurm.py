"""Slurm under attack: whom its faults and its admins harm is noted, and so is whose jobs are touched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.chaos.files import place_of
from tests.chaos.ledger import Ledger
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.jobs import MQI, Element, Program, Request, Site, SlurmError, SlurmJob
from tests.support.simulation.scheduler import Launch
from tests.support.simulation.slurm import Slurm
from tests.support.simulation.task import Start

ROOT = 0


def case_of(job: SlurmJob) -> str | None:
    """Return the key of the case that a job is of; None: it is none of ours."""
    return place_of(job.request.folder)[0] if job.request.folder else None


class HurtSlurm(Slurm):
    """A cluster that can be hurt. `caller` is the head's name of the submit.sh at work, `run` its number.

    `deaf` makes the next sbatch or release act and say that it failed.
    """

    def __init__(
        self,
        clock: VirtualClock,
        site: Site,
        launch: Launch,
        hangs: Callable[[], bool],
        ledger: Ledger,
    ) -> None:
        super().__init__(clock, site, launch, hangs)
        self._ledger = ledger
        self.restarts: dict[tuple[int, int | None], int] = {}
        self.caller = ""
        self.run = 0
        self._by_run: dict[tuple[int, str], int] = {}
        self.deaf = False

    # Commands

    def sbatch(self, request: Request) -> int:
        job_id = super().sbatch(request)
        now = self._clock.monotonic()
        if self.run:
            times = self._by_run[self.run, request.name] = self._by_run.get((self.run, request.name), 0) + 1
            if times > 1:
                text = f"sbatch was repeated blindly: {request.name}, {times} times by one submit.sh"
                self._ledger.broken(now, text)
        self._ledger.accepted.setdefault(request.name, []).append((now, job_id))
        self._ledger.note(now, "sbatch", request.name, job_id, request.waits)
        self._lose("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
        return job_id

    def release(self, job_id: int) -> None:
        job = self.jobs.get(job_id)
        if self.caller and job is not None and job.request.name != self.caller and job.held:
            text = f"{self.caller} released {job_id}, which is {job.request.name}"
            self._ledger.broken(self._clock.monotonic(), text)
        super().release(job_id)
        self._ledger.note(self._clock.monotonic(), "release", job_id)
        self._lose("slurm_update error: Socket timed out on send/recv operation")

    def scancel(self, name: str, job_id: int, uid: int = MQI) -> None:
        job = self.jobs.get(job_id)
        if job is not None and job.live and job.request.name == name and not job.request.folder:
            self._ledger.broken(self._clock.monotonic(), f"a job of others was cancelled: {name} {job_id}")
        self._ledger.note(self._clock.monotonic(), "scancel", name, job_id, uid)
        live = job is not None and job.live
        super().scancel(name, job_id, uid)
        if live and job is not None and not job.live and job.request.name != name:
            text = f"{job_id} was cancelled as {name}, and is {job.request.name}"
            self._ledger.broken(self._clock.monotonic(), text)

    def _close(self, job: SlurmJob, element: Element, word: str, code: str) -> None:
        super()._close(job, element, word, code)
        place = (job.request.name, job.id, element.index or 0)
        self._ledger.words.setdefault(place, set()).add(word)

    def _lose(self, words: str) -> None:
        if self.deaf:
            self.deaf = False
            raise SlurmError(words)

    # What happens to it

    def crash(self, lost: float) -> None:
        then = self._clock.now() - lost
        for job in self.jobs.values():
            touched = (
                job.submit > then
                or job.released > then
                or any((one.start or 0.0) > then or (one.end or 0.0) > then for one in job.elements.values())
            )
            key = case_of(job)
            if touched and key is not None:
                self._ledger.hurt(key, f"slurmctld forgot {job.id}")
        super().crash(lost)

    def ours(self, *, running: bool = False) -> list[tuple[SlurmJob, Element]]:
        """Return what is live of ours, or what runs of it, in order of ids."""
        return [
            (job, element)
            for job in self.jobs.values()
            if job.request.folder
            for element in job.elements.values()
            if (element.word == "RUNNING" if running else element.live)
        ]

    def hold_by_admin(self, job: SlurmJob) -> None:
        """Hold a job, as root does."""
        job.held = True
        job.reason = "JobHeldAdmin"

    def let_go(self, job: SlurmJob) -> None:
        """Release a job that root held."""
        if self.jobs.get(job.id) is job and job.held:
            job.held, job.released = False, self._clock.now()
            self._soon()

    def preempt(self, job: SlurmJob, element: Element) -> None:
        """End a running element for somebody more important."""
        self.runner.terminate(element)
        self._close(job, element, "PREEMPTED", "0:0")
        self.accounting.note(job)
        self._soon()

    def requeue(self, job: SlurmJob, element: Element) -> None:
        """Make a running element wait again, as root may although it was not to be requeued."""
        self.runner.kill(element)
        self._give_back(job, element)
        at = (job.id, element.index)
        self.restarts[at] = self.restarts.get(at, 0) + 1
        job.elements[element.index] = Element(element.index)
        self.accounting.note(job)
        self._soon()

    def lose(self, start: Start) -> None:
        """Give up the node that an element runs on; its program works on."""
        job = self.jobs.get(start.submission_id)
        element = None if job is None else job.elements.get(start.index)
        if job is not None and element is not None and element.word == "RUNNING":
            self.runner.abandon(element)
            element.reason = "NodeDown"
            self._close(job, element, "NODE_FAIL", self.site.node_fail_code)
            self.accounting.note(job)
            self._soon()

    def beside(self, program: Program, seconds: float) -> None:
        """Run a program that Slurm does not know of."""
        element = Element(None, program=program)
        self._clock.later(seconds, partial(self.runner.run, element, _nobody))


def _nobody(_: int) -> None:
    """Nobody hears how it ended."""


__all__ = ["ROOT", "HurtSlurm", "case_of"]
