"""Slurm 22.05 to 26.05 as its users meet it: its commands, and what can happen to it.

What it models was seen on the real ones: tests/contract/test_cluster.py holds both to the same behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.jobs import (
    MQI,
    Element,
    Request,
    Site,
    SlurmError,
    SlurmJob,
)
from tests.support.simulation.scheduler import Launch, Scheduler

_ORPHAN_SECONDS = 70.0
_POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
_DOWN = "Unable to contact slurm controller (connect failure)"


class Slurm(Scheduler):
    """A cluster. `accepted` counts the sbatch calls that gave an id.

    `releases` False: scontrol releases nothing. `submit_limit`: the limit for which nothing is accepted now.
    """

    def __init__(
        self, clock: VirtualClock, site: Site, launch: Launch, hangs: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(clock, site, launch, hangs)
        self.accepted = 0
        self.releases = True
        self.submit_limit = ""

    # Commands

    def sbatch(self, request: Request) -> int:
        """Accept a job and return its id; raises SlurmError with sbatch's words."""
        self._answer(f"sbatch: error: Batch job submission failed: {_DOWN}")
        if self.submit_limit:
            failed = f"sbatch: error: Batch job submission failed: {_POLICY}"
            raise SlurmError(f"sbatch: error: {self.submit_limit}\n{failed}")
        refusal = self._refusal(request)
        if refusal:
            raise SlurmError(f"sbatch: error: Batch job submission failed: {refusal}")
        self._last += 1
        indices: tuple[int | None, ...] = (None,) if request.indices is None else request.indices
        job = SlurmJob(
            id=self._last,
            request=request,
            submit=self._clock.now(),
            held=request.hold,
            # 22.05 takes an id it does not know for one that ended well; the others take only afterany so.
            waits=[(condition, other) for condition, other in request.waits if other in self.jobs],
            elements={index: Element(index) for index in indices},
            total=len(indices),
        )
        self.jobs[job.id] = job
        self.accepted += 1
        self._explain(job)
        self.accounting.note(job)
        self._soon()
        return job.id

    def release(self, job_id: int) -> None:
        """Let a held job run; raises SlurmError with scontrol's words."""
        self._answer(f"slurm_update error: {_DOWN}")
        job = self.jobs.get(job_id)
        if job is None:
            raise SlurmError(f"Invalid job id specified for job {job_id}")
        if not job.live:
            raise SlurmError(f"Job has already finished for job {job_id}")
        if not self.releases:
            raise SlurmError(f"Access/permission denied for job {job_id}")
        if job.held:
            job.held, job.released = False, self._clock.now()
            self._explain(job)
            self._soon()

    def scancel(self, name: str, job_id: int, uid: int = MQI) -> None:
        """End a job if it bears that name; nothing happens to one of another name. Raises SlurmError."""
        self._answer(f"scancel: error: {_DOWN}")
        job = self.jobs.get(job_id)
        if job is None or not job.live:
            raise SlurmError(f"scancel: error: Kill job error on job id {job_id}: Invalid job id specified")
        if job.request.name != name:
            return
        for element in list(job.elements.values()):
            if element.word == "PENDING":
                element.by = uid
                element.reason = job.reason
                self._close(job, element, "CANCELLED", "0:0")
            elif element.word == "RUNNING":
                element.by = uid
                self.runner.terminate(element)
                self._close(job, element, "CANCELLED", "0:0")
        self.accounting.note(job)
        self._soon()

    def live(self, name: str) -> list[SlurmJob]:
        """Return the unfinished jobs of a name, as squeue without -t shows them."""
        self._answer(f"slurm_load_jobs error: {_DOWN}")
        return [job for job in self.jobs.values() if job.request.name == name and job.live]

    def shown(self) -> list[SlurmJob]:
        """Return all jobs that are remembered, as squeue -t all shows them."""
        self._answer(f"slurm_load_jobs error: {_DOWN}")
        return list(self.jobs.values())

    # What happens to the cluster

    def stop(self) -> None:
        """Stop slurmctld; its state is safe."""
        self.up = False

    def start(self) -> None:
        """Start slurmctld: it hears what ended meanwhile."""
        self.up = True
        unheard, self._unheard = self._unheard, []
        for news in unheard:
            news()
        self._soon()

    def crash(self, lost: float) -> None:
        """Kill slurmctld so that it comes back, on `start`, as it was `lost` seconds ago.

        Jobs accepted since are gone, and their ids are handed out again; what was released since is held
        again, what was started since waits to be started again, and what ended since seems to run on
        (reference/protocol.md, B1).
        """
        self.up = False
        then = self._clock.now() - lost
        for job in list(self.jobs.values()):
            for element in list(job.elements.values()):
                self._undo(job, element, then)
            if job.submit > then:
                del self.jobs[job.id]
                continue
            job.held = job.held or job.released > then
            job.never = False
            job.waits = [wait for wait in job.request.waits if wait[1] in self.jobs]
            job.bad = any(not one.live and one.word != "COMPLETED" for one in job.elements.values())
        raws = [element.raw for job in self.jobs.values() for element in job.elements.values()]
        self._last = max([*self.jobs, *raws], default=0)

    def set_partition(self, name: str, *, up: bool) -> None:
        """Let a partition start jobs, or not."""
        if up:
            self.down_partitions.discard(name)
        else:
            self.down_partitions.add(name)
        self._soon()

    def node_down(self, name: str, *, silently: bool = False) -> None:
        """Take a node down: its programs are asked to end. `silently`: it was cut off, and they work on."""
        self.nodes[name].up = False
        for job in list(self.jobs.values()):
            for element in job.running:
                if element.node != name:
                    continue
                if silently:
                    self.runner.abandon(element)
                else:
                    self.runner.terminate(element)
                element.reason = "NodeDown"
                self._close(job, element, "NODE_FAIL", self.site.node_fail_code)
                self.accounting.note(job)
        self._soon()

    def end(self, word: str, *, stage: str = "beams", index: int | None = None) -> None:
        """Let what runs of a stage (one element of it) end as Slurm ends jobs: PREEMPTED, TIMEOUT, ..."""
        for job in list(self.jobs.values()):
            for element in job.running:
                if job.request.stage == stage and index in (None, element.index):
                    self.runner.terminate(element)
                    self._close(job, element, word, "0:0")
                    self.accounting.note(job)
        self._soon()

    def node_up(self, name: str) -> None:
        """Take a node back into service."""
        self.nodes[name].up = True
        self._soon()

    # Inside

    def _answer(self, words: str) -> None:
        if not self.up:
            raise SlurmError(words)

    def _refusal(self, request: Request) -> str:
        if request.partition not in self.site.partitions:
            return "Invalid partition name specified"
        if request.account not in self.site.accounts:
            return "Invalid account or account/partition combination specified"
        if request.indices is not None and (not request.indices or max(request.indices) > 1000):
            return "Invalid job array specification"
        if unknown := set(request.left_out) - set(self.nodes):
            return f"Invalid node name specified ({', '.join(sorted(unknown))})"
        if set(self.site.partitions[request.partition]) <= set(request.left_out):
            return "Requested node configuration is not available"
        if len(self.jobs) >= self.site.most_jobs:
            return "Resource temporarily unavailable"
        forgotten = [other for condition, other in request.waits if condition == "afterok"]
        if not self.site.before_23 and any(other not in self.jobs for other in forgotten):
            return "Job dependency problem"
        return ""

    def _undo(self, job: SlurmJob, element: Element, then: float) -> None:
        """Set an element back to what it was at `then`."""
        if element.start is not None and element.start > then:
            if element.word == "RUNNING":
                self.runner.kill(element)
                self._give_back(job, element)
            fresh = Element(element.index)
            job.elements[element.index] = fresh
        elif element.end is not None and element.end > then and element.start is not None:
            ghost = Element(element.index, raw=element.raw, word="RUNNING", start=element.start)
            ghost.node = element.node
            self.nodes[ghost.node].cpus -= 1
            self.nodes[ghost.node].gpus -= job.request.gpus
            job.elements[element.index] = ghost
            self._clock.later(_ORPHAN_SECONDS, partial(self._lost, job, ghost))
        elif element.end is not None and element.end > then:
            job.elements[element.index] = Element(element.index)

    def _lost(self, job: SlurmJob, element: Element) -> None:
        """The node does not know what slurmctld believes it runs."""
        if element.word == "RUNNING":
            element.reason = "NodeDown"
            self._close(job, element, "NODE_FAIL", self.site.node_fail_code)
            self.accounting.note(job)
            self._soon()
