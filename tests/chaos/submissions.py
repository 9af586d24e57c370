"""submit.sh under attack: each step takes a moment, in which it may die, freeze, or meet another run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mqi_hpc.core.effects import Completion, Failure, Submit
from mqi_hpc.core.errors import ConnectionError
from tests.chaos.faults import Fault
from tests.chaos.files import StaleView, WatchedFiles
from tests.chaos.programs import Take
from tests.chaos.slurm import HurtSlurm
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.submit import Run, SubmitScript

STEP_SECONDS = 0.2
LIFE = 250.0
"""How long (s) the daemon waits for submit.sh; less than `submit_seconds`, past which none is alive."""


class _DeafFiles(StaleView):
    """A host whose next link acts and is told to have failed: NFS repeats a request whose reply was lost."""

    def __init__(self, files: WatchedFiles) -> None:
        super().__init__(files, 0.0, lambda _: False)
        self._deaf = True

    def publish(self, path: str, content: bytes) -> bool:
        won = super().publish(path, content)
        if self._deaf:
            self._deaf = False
            return False
        return won


@dataclass(slots=True)
class OneRun:
    """One submit.sh at work. `answer` hears how it ended, once; a run that nobody started has none."""

    script: SubmitScript
    answer: Callable[[Completion], None]
    effect: Submit
    alive: Callable[[], bool] = lambda: True
    steps: Run = field(init=False)
    dies: bool = False
    deaf: bool = False
    number: int = 0

    def __post_init__(self) -> None:
        self.steps = self.script.run()


class Submissions:
    """Runs submit.sh step by step. `kill` ends the daemon, and what it has started."""

    def __init__(
        self,
        clock: VirtualClock,
        slurm: HurtSlurm,
        files: WatchedFiles,
        take: Take,
        kill: Callable[[], None],
        script: type[SubmitScript] = SubmitScript,
    ) -> None:
        self._clock = clock
        self._slurm = slurm
        self._files = files
        self._take = take
        self._kill = kill
        self._script = script
        self._runs = 0

    def begin(
        self,
        effect: Submit,
        answer: Callable[[Completion], None],
        alive: Callable[[], bool],
        *,
        lag: float = 0.0,
        after: float = 0.0,
    ) -> None:
        """Start a run whose host's cache is `lag` seconds old; `alive` says whether its session lives."""
        self._runs += 1
        run = OneRun(self._made(effect, lag), answer, effect, alive, number=self._runs)
        self._clock.later(after, lambda: self._step(run))

    def stray(self, effect: Submit, after: float) -> None:
        """Start a run that nobody waits for."""
        self.begin(effect, _unheard, lambda: True, after=after)

    def cut(self, effect: Submit, steps: int) -> None:
        """Run the first steps, and die."""
        script = self._made(effect, 0.0)
        run = script.run()
        for _ in range(steps):
            self._slurm.caller = _head(effect, self._files)
            try:
                next(run)
            except (StopIteration, ConnectionError):
                return
        run.close()

    def _made(self, effect: Submit, lag: float) -> SubmitScript:
        files = StaleView(self._files, lag) if lag else self._files
        return self._script(files, self._slurm, self._clock, effect.job_folder, effect.nonce)

    def _step(self, run: OneRun) -> None:
        if not run.alive():
            run.steps.close()
            return
        self._slurm.caller, self._slurm.deaf = _head(run.effect, self._files), run.deaf
        self._slurm.run, run.deaf = run.number, False
        try:
            step = next(run.steps)
        except StopIteration as ended:
            run.answer(Completion(effect=run.effect, output=run.script.said, exit_code=int(ended.value)))
            return
        except ConnectionError as error:
            _lost(run, str(error))
            return
        finally:
            self._slurm.caller, self._slurm.run, self._slurm.deaf = "", 0, False
        if run.dies:
            run.steps.close()
            _lost(run, "submit.sh was killed")
            return
        wait = STEP_SECONDS
        for fault in self._take(step.split()[0]):
            wait += self._hurt(run, fault)
        if wait >= 0:
            self._clock.later(wait, lambda: self._step(run))

    def _hurt(self, run: OneRun, fault: Fault) -> float:
        """Let a fault befall the step to come; returns how much longer it takes, below 0: it is not taken."""
        if fault.kind == "before":
            run.steps.close()
            _lost(run, "submit.sh was killed")
            return -1e9
        if fault.kind == "after":
            run.dies = True
        elif fault.kind == "lost":
            run.deaf = fault.place != "receipt"
            if fault.place == "receipt":
                run.script.files = _DeafFiles(self._files)
        elif fault.kind in ("late", "frozen"):
            return float(fault.amount)
        elif fault.kind == "stale":
            run.script.files = StaleView(self._files, fault.amount)
        elif fault.kind == "twice":
            self.stray(run.effect, fault.amount % 3 * STEP_SECONDS)
        return 0.0


def _lost(run: OneRun, error: str) -> None:
    run.answer(
        Completion(
            effect=run.effect, output=run.script.said, error=error, failure=Failure.OUTAGE, uncertain=True
        )
    )


def _head(effect: Submit, files: WatchedFiles) -> str:
    """Return the name that the head of a job's chain bears."""
    names = files.names(effect.job_folder) if not files.away else []
    head = next((s for s in ("interpret", "beams", "convert") if f"{s}.sbatch" in names), "interpret")
    key, job = effect.job_folder.split("/")[-2:]
    return f"mqi-i1-{key}-{job}-{head}"


def _unheard(_: Completion) -> None:
    """Nobody waits for it."""
