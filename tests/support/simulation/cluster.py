"""A whole cluster in memory behind the effects port: Slurm, file system, stages, SSH, and their faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mqi_hpc.core.effects import (
    Cancel,
    Completion,
    Download,
    Effect,
    Failure,
    Observe,
    Prune,
    Scan,
    Submit,
    Survey,
    Upload,
)
from mqi_hpc.core.errors import ConnectionError, MQIError
from mqi_hpc.core.failpoints import Failpoint, reach
from mqi_hpc.core.intake import ScanReport
from mqi_hpc.infrastructure.executors.effects import classify
from mqi_hpc.records.layout import WITHDRAWN
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.filesystem import FileSystem
from tests.support.simulation.jobs import Element, Program, Site, SlurmError, SlurmJob
from tests.support.simulation.observe import observe
from tests.support.simulation.slurm import Slurm
from tests.support.simulation.stages import Script, Stages
from tests.support.simulation.submit import SubmitScript
from tests.support.simulation.task import Start
from tests.support.simulation.transfers import Transfers


@dataclass(slots=True)
class Link:
    """The way to the cluster, and what is wrong with it.

    `seconds` is how long each kind of effect takes. `down` and `refused` make every effect fail, as an
    outage or for our key. The next effects whose kind stands in `lose_replies` act, and their replies are
    lost; those in `stall` do not come back until `SimulatedCluster.release`. `cut_submit` names the step of
    submit.sh (`receipt beams`) before which the next run of it dies.
    """

    seconds: dict[type[Effect], float] = field(
        default_factory=lambda: {
            Upload: 2.0, Submit: 1.0, Observe: 0.5, Cancel: 0.5, Download: 2.0, Prune: 1.0, Scan: 0.5,
            Survey: 1.0,
        }
    )  # fmt: skip
    down: bool = False
    refused: bool = False
    lose_replies: list[type[Effect]] = field(default_factory=list)
    stall: list[type[Effect]] = field(default_factory=list)
    cut_submit: str | None = None


class SimulatedCluster:
    """IEffects on a simulated cluster.

    An effect acts, and completes, `link.seconds` of virtual time after it was started; `completions` moves
    time on, at most by its timeout, where nothing has completed yet. `clock` may be moved by others too.
    `scan` answers for the workstation's own case folders: none are there, unless it says so.
    """

    def __init__(
        self,
        clock: VirtualClock,
        version: str = "22.05",
        *,
        site: Site | None = None,
        script: Script | None = None,
        workspace: str = "/work",
        instance: str = "i1",
        results: Path | None = None,
        read_sources: bool = False,
        scan: Callable[[Scan], ScanReport] = lambda _: ScanReport(),
    ) -> None:
        self.clock = clock
        self.workspace = workspace
        self.files = FileSystem()
        self.script = script or Script()
        self.link = Link()
        self.slurm = Slurm(clock, site or Site(version=version), self._launch, self._away)
        self._stages = Stages(clock, self.files, self.script)
        self._transfers = Transfers(
            self.files, workspace=workspace, instance=instance, results=results, read_sources=read_sources
        )
        self._done: list[Completion] = []
        self._stalled: list[Effect] = []
        self._session = 0
        self._dead: set[int] = set()
        self._actions: dict[type[Effect], Callable[..., Completion]] = {
            Upload: lambda effect: Completion(effect=effect, output=self._transfers.upload(effect)),
            Download: lambda effect: Completion(effect=effect, output=self._transfers.download(effect)),
            Prune: self._prune,
            Survey: lambda effect: Completion(effect=effect, payload=self._transfers.survey(effect)),
            Submit: self._submit,
            Observe: self._observe,
            Cancel: self._cancel,
            Scan: lambda effect: Completion(effect=effect, payload=scan(effect)),
        }

    # The effects port

    def start(self, effect: Effect) -> None:
        """Take an effect on."""
        if type(effect) in self.link.stall:
            self.link.stall.remove(type(effect))
            self._stalled.append(effect)
            return
        self.clock.later(self.link.seconds[type(effect)], partial(self._act, effect, self._session))

    def completions(self, timeout: float) -> list[Completion]:
        """Return what has completed; where nothing has, move time on until something has, or `timeout`."""
        end = self.clock.monotonic() + timeout
        while not self._done:
            wait = self.clock.next_due()
            left = end - self.clock.monotonic()
            if wait is None or wait > left:
                self.clock.advance(max(0.0, left))
                break
            self.clock.advance(wait)
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End the session: what was started acts still, and does not come back."""
        self._session += 1
        self._done.clear()
        self._stalled.clear()

    # What happens to it

    def die(self) -> None:
        """End the session as if every command under way was killed with it: what has not acted never does."""
        self._dead.add(self._session)
        self.close()

    def release(self) -> None:
        """Let stalled effects go on."""
        stalled, self._stalled = self._stalled, []
        for effect in stalled:
            self.clock.later(0.0, partial(self._act, effect, self._session))

    def advance(self, seconds: float) -> None:
        """Move time on."""
        self.clock.advance(seconds)

    # Inside

    def _away(self) -> bool:
        return self.files.away

    def _act(self, effect: Effect, session: int) -> None:
        if session in self._dead:
            return
        completion = self._completion(effect)
        if session == self._session:
            self._done.append(completion)

    def _completion(self, effect: Effect) -> Completion:
        if isinstance(effect, Scan):
            return self._actions[Scan](effect)
        if self.link.refused:
            return _failed(effect, "the host does not take our key", Failure.ACCESS)
        if self.link.down:
            return _failed(effect, "the host does not answer", Failure.OUTAGE)
        try:
            completion = self._actions[type(effect)](effect)
        except (MQIError, OSError) as error:
            # A submit.sh that hangs in the file system may have done its work.
            uncertain = isinstance(effect, Submit)
            return _failed(effect, str(error), classify(error), uncertain=uncertain)
        if type(effect) in self.link.lose_replies:
            self.link.lose_replies.remove(type(effect))
            return Completion(
                effect=effect, error="the connection broke off", failure=Failure.OUTAGE, uncertain=True
            )
        return completion

    def _submit(self, effect: Submit) -> Completion:
        script = SubmitScript(self.files, self.slurm, self.clock, effect.job_folder, effect.nonce)
        cut, self.link.cut_submit = self.link.cut_submit, None
        reach(Failpoint.SUBMIT_SENT)
        run = script.run()
        while True:
            try:
                step = next(run)
            except StopIteration as ended:
                return Completion(effect=effect, output=script.said, exit_code=ended.value)
            if step == cut:
                run.close()
                error = "submit.sh was cut short"
                return Completion(
                    effect=effect, output=script.said, error=error, failure=Failure.OUTAGE, uncertain=True
                )

    def _observe(self, effect: Observe) -> Completion:
        text = observe(effect, self.slurm, self.files, self.clock, self.workspace)
        return Completion(effect=effect, output=text)

    def _cancel(self, effect: Cancel) -> Completion:
        lines, failed = [], 0
        if effect.mark:
            lines.append(self._mark(effect.mark))
        for name, slurm_id in effect.targets:
            code, said = 0, ""
            try:
                self.slurm.scancel(name, slurm_id)
            except SlurmError as error:
                code, said, failed = error.exit_code, f": {error}", 1
            lines.append(f"scancel --name={name} {slurm_id}: exit {code}{said}")
        return Completion(effect=effect, output="\n".join(lines), exit_code=failed)

    def _mark(self, folder: str) -> str:
        if self.files.away:
            return f"mark {WITHDRAWN}: exit 124"
        if not self.files.is_folder(folder):
            return f"mark {WITHDRAWN}: exit 1: No such file or directory"
        try:
            self.files.publish(f"{folder}/{WITHDRAWN}", b"")
        except OSError as error:
            return f"mark {WITHDRAWN}: exit 1: {error.strerror}"
        return f"mark {WITHDRAWN}: exit 0"

    def _prune(self, effect: Prune) -> Completion:
        answer = self._transfers.prune(effect, self._shown)
        return Completion(
            effect=effect, output=answer.encode(), exit_code=int(answer.outcome in ("kept", "left"))
        )

    def _shown(self) -> list[tuple[str, str]]:
        try:
            jobs = self.slurm.shown()
        except SlurmError as error:
            raise ConnectionError(f"asking squeue for jobs of the case: {error}") from error
        return [(one.word, job.request.name) for job in jobs for one in job.elements.values()]

    def _launch(self, job: SlurmJob, element: Element) -> Program:
        return self._stages.launch(
            Start(
                folder=job.request.folder,
                stage=job.request.stage,
                name=job.request.name,
                submission_id=job.id,
                raw_id=element.raw,
                index=element.index,
                node=element.node,
            )
        )


def _failed(effect: Effect, error: str, failure: Failure, *, uncertain: bool = False) -> Completion:
    return Completion(effect=effect, error=error, failure=failure, uncertain=uncertain)
