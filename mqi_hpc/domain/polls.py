"""When the cluster is looked at, and what a look leads to: changed jobs, and what is to be cancelled."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from mqi_hpc.core.effects import Cancel, Completion, Observe
from mqi_hpc.core.failpoints import Failpoint, reach
from mqi_hpc.core.interfaces import IClock, IEffects, IIds
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.domain.desk import Desk
from mqi_hpc.domain.submitter import Cancels
from mqi_hpc.domain.watcher import Watcher

_IDLE_SECONDS = 1.0
SWEEP_SECONDS = 900.0
"""Between looks for what has come back of jobs that are over, while there is nothing else to look at."""
SWEEP_FOR = 86_400.0
"""How long (s) after the last other look that is done."""


class Polls:
    """One look at a time, for all cases together; `looks` and `good_looks` count them.

    `last_good` is the monotonic time of the last look that saw the queue; None after one that did not.
    `cluster_free` is the free space (bytes) of the workspace, as last told.
    `unseen_since` is that of the last good look whatever came after it, or of the first look where none was
    good yet; None while there is nothing to look at.
    """

    def __init__(
        self,
        *,
        watcher: Watcher,
        desk: Desk,
        effects: IEffects,
        clock: IClock,
        ids: IIds,
        rhythm: PollRhythm,
    ) -> None:
        self._watcher = watcher
        self._desk = desk
        self._effects = effects
        self._clock = clock
        self._ids = ids
        self._rhythm = rhythm
        self._flying = False
        self._due = 0.0
        self._sweep_due = clock.monotonic() + SWEEP_SECONDS
        self._sweep_until = clock.monotonic() + SWEEP_FOR
        self._sweep_failed = False
        self._wait = rhythm.least
        self._cancelling: set[str] = set()
        self._log = structlog.get_logger("mqi_hpc.polls")
        self.last_good: float | None = None
        self.unseen_since: float | None = None
        self.looks = 0
        self.good_looks = 0
        self.cluster_free: int | None = None

    @property
    def cancelling(self) -> bool:
        """Whether a scancel is under way."""
        return bool(self._cancelling)

    def soon(self) -> None:
        """Make a look due now: something of ours has just changed."""
        self._due = self._clock.monotonic()
        self._wait = self._rhythm.least

    def wait(self) -> float | None:
        """Return the seconds until a look is due, None while one is under way."""
        return None if self._flying else max(0.0, self._due - self._clock.monotonic())

    def begin(self, cases: Sequence[str], *, even_early: bool = False) -> bool:
        """Start a look at the jobs of `cases` where one is due; True where it was started."""
        if self._flying or (self._clock.monotonic() < self._due and not even_early):
            return False
        now = self._clock.monotonic()
        effect = self._watcher.plan(cases, self._ids.nonce())
        if effect is None:
            # Nothing to look at: a submission makes a look due at once.
            self.last_good = self.unseen_since = None
            effect = self._sweep(now, even_early=even_early)
        else:
            self._sweep_due, self._sweep_until = now + SWEEP_SECONDS, now + SWEEP_FOR
        if effect is None:
            self._due = now + _IDLE_SECONDS
            return False
        self._flying = True
        if self.unseen_since is None:
            self.unseen_since = now
        self.looks += 1
        self._effects.start(effect)
        return True

    def _sweep(self, now: float, *, even_early: bool) -> Observe | None:
        # One that failed has told of an outage: another must be able to tell of its end.
        if not (now >= self._sweep_due and now < self._sweep_until) and not (
            even_early and self._sweep_failed
        ):
            return None
        self._sweep_due = now + SWEEP_SECONDS
        return self._watcher.sweep(self._ids.nonce())

    def observed(self, effect: Observe, completion: Completion) -> None:
        """Apply what a look saw, and set when the next is due."""
        now = self._clock.monotonic()
        self._flying = False
        self._sweep_failed = completion.error is not None and not effect.jobs
        if completion.error is not None:
            self.last_good = None
            self._due = now + self._wait
            return
        elapsed = 0.0 if self.last_good is None else now - self.last_good
        seen = self._watcher.apply(effect, completion, elapsed)
        self.last_good = now if seen.good else None
        if seen.good:
            self.unseen_since = now
        self.good_looks += seen.good
        self.cluster_free = seen.free_bytes if seen.free_bytes is not None else self.cluster_free
        for note in seen.notes:
            self._log.warning("poll", note=note)
        near = seen.changed or seen.soon
        self._wait = self._rhythm.next_wait(self._wait, changed=near, draw=self._ids.draw())
        self._due = now + self._wait
        for one in seen.call_offs:
            with self._desk.apart(one.job_id, "it cannot be cancelled"):
                self.cancel(one.job_id, one.targets, mark=one.mark)

    def cancel(self, job_id: str, targets: Cancels, *, mark: str = "") -> None:
        """Cancel Slurm jobs of a job of ours, and mark its folder, unless that is under way."""
        if job_id in self._cancelling:
            return
        with self._desk.open(job_id) as work:
            case_id = work.case.case_id
            work.unit.event(
                "cancelling", case_id, {"targets": [list(target) for target in targets], "mark": mark}
            )
            reach(Failpoint.CANCEL)
        reach(Failpoint.CANCEL_KEPT)
        self._cancelling.add(job_id)
        self._effects.start(Cancel(case_id=case_id, job_id=job_id, targets=targets, mark=mark))

    def cancelled(self, effect: Cancel, completion: Completion) -> None:
        """Note what became of a scancel; where it failed, the next look finds the job live and repeats it."""
        self._cancelling.discard(effect.job_id)
        reach(Failpoint.CANCEL_ANSWERED)
        with self._desk.open(effect.job_id) as work:
            said = completion.error or completion.output
            data = {"targets": [list(t) for t in effect.targets], "said": said[-500:]}
            work.unit.event("cancelled", effect.case_id, data)
            if completion.error is not None or completion.exit_code:
                ids = " ".join(str(slurm_id) for _, slurm_id in effect.targets)
                by_hand = f"; to do it by hand: scancel {ids}" if ids else ""
                work.notes.append(f"not cancelled: {said[-500:]}{by_hand}")
                return
        # Whether it is gone, a look tells.
        self._wait = self._rhythm.least
        self._due = min(self._due, self._clock.monotonic() + self._wait)
