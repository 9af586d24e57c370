"""Prunes: what may go by retention is planned, committed as an intent, removed, and recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mqi_hpc.core.effects import Completion, Failure, Prune
from mqi_hpc.core.errors import MQIError, ProcessingError, StateError
from mqi_hpc.core.interfaces import IClock, IEffects, ILocalResults, IStore, IUnit
from mqi_hpc.core.models import Case
from mqi_hpc.core.pruning import LocalFate, PruneAnswer, marked, pruned
from mqi_hpc.core.retention import CasePlan, JobHistory, PrunePlan, RetentionRules, Side, plan_case

_UNREACHED = (Failure.OUTAGE, Failure.ACCESS)
_PATIENCE = 1.0
"""Seconds of one wait for a completion; each effect has a limit of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOutcome:
    """What came of pruning one side of a case.

    `done`: nothing of it is left to do. `bytes`: what was freed, None where that is not known. `files` are
    the fates of delivered files, empty on the cluster. `unreached`: the cluster could not be asked.
    """

    case_id: str
    label: str
    side: Side
    done: bool
    text: str
    bytes: int | None = None
    files: tuple[LocalFate, ...] = ()
    unreached: bool = False


class RetentionService:
    """Plans and records prunes. Nothing is removed that the plan of the same moment does not allow."""

    def __init__(
        self, store: IStore, results: ILocalResults, clock: IClock, rules: RetentionRules, *, workspace: str
    ) -> None:
        self._store = store
        self._results = results
        self._clock = clock
        self._rules = rules
        self._workspace = workspace

    def plan(self, now: datetime, case_ids: Sequence[str] | None = None) -> PrunePlan:
        """Return what may go of the named cases, or of all; changes nothing.

        Raises ProcessingError where the store has none of a name.
        """
        with self._store.transaction(write=False) as unit:
            if case_ids is None:
                return PrunePlan(tuple(self._case(unit, case, now, named=False) for case in unit.cases.all()))
            wanted = dict.fromkeys(case_ids)
            return PrunePlan(tuple(self._case(unit, _get(unit, name), now, named=True) for name in wanted))

    def look(self, plan: PrunePlan) -> dict[str, tuple[LocalFate, ...]]:
        """Return by case id what would become of each delivered file that the plan allows to go."""
        return {case.case_id: self._results.look(side.files) for case, side in plan.of(Side.LOCAL)}

    def remote_effects(self, plan: PrunePlan) -> Iterator[Prune]:
        """Yield the effects of what the plan allows on the cluster, each committed as an intent before.

        From then on the case can be neither resubmitted nor fetched. A case of which something has begun
        since the plan was made is left out.
        """
        for planned, _ in plan.of(Side.REMOTE):
            with self._store.transaction() as unit:
                case = _get(unit, planned.case_id)
                if not self._case(unit, case, self._now(), named=planned.named).remote.allowed:
                    continue
                # Begun already: of the attempt before this one nobody knows how it ended.
                begun, now = pruned(case).remote_begun, self._now().isoformat()
                unit.cases.put(marked(case, remote_begun=begun or now, remote_open=begun))
                unit.event("pruning", case.case_id, {"side": Side.REMOTE, "where": self._folder(case)})
            yield Prune(case_id=case.case_id, folder=self._folder(case))

    def remote(self, plan: PrunePlan, effects: IEffects) -> list[PruneOutcome]:
        """Remove what the plan allows on the cluster, one case after the other; ends where it is not reached.

        `effects` serves nobody else. No lock is needed: intent and order meet in the store, the first wins.
        """
        outcomes: list[PruneOutcome] = []
        for effect in self.remote_effects(plan):
            effects.start(effect)
            while not (found := effects.completions(_PATIENCE)):
                pass
            outcomes += map(self.apply, found)
            if any(one.failure in _UNREACHED for one in found):
                break
        return outcomes

    def apply(self, completion: Completion) -> PruneOutcome:
        """Record how a removal on the cluster went.

        Where nothing was ever touched the intent is taken back; where that is open, or something is left,
        the case stays marked and a later prune brings it to its end.
        """
        effect = completion.effect
        if not isinstance(effect, Prune):
            raise StateError(f"{type(effect).__name__} is no removal")
        with self._store.transaction() as unit:
            case = _get(unit, effect.case_id)
            if completion.error is not None:
                failed = self._failed(unit, case, completion.error, uncertain=completion.uncertain)
                return replace(failed, unreached=completion.failure in _UNREACHED)
            answer = PruneAnswer.decode(completion.output)
            if answer.outcome == "kept":
                return self._failed(unit, case, answer.why, uncertain=False)
            gone = answer.outcome != "left"
            at = self._now().isoformat()
            changes = {"remote": at, "remote_begun": None} if gone else {"remote_open": at}
            unit.cases.put(marked(case, **{"remote_open": None, **changes}))
            data = {"side": Side.REMOTE, "where": effect.folder, "bytes": answer.bytes}
            unit.event("pruned" if gone else "prune failed", case.case_id, {**data, "why": answer.why})
        text = {
            "removed": "removed from the cluster",
            "gone": "was not on the cluster any more",
            "left": f"out of the way, but not wholly removed: {answer.why or 'no reason given'}",
        }[answer.outcome]
        return _outcome(case, Side.REMOTE, done=gone, text=text, freed=answer.bytes)

    def local(self, plan: PrunePlan) -> list[PruneOutcome]:
        """Remove the delivered files that the plan allows to go; one case's trouble is no other's."""
        return [outcome for case, _ in plan.of(Side.LOCAL) if (outcome := self._local(case)) is not None]

    def _local(self, planned: CasePlan) -> PruneOutcome | None:
        with self._store.transaction() as unit:
            case = _get(unit, planned.case_id)
            side = self._case(unit, case, self._now(), named=planned.named).local
            if not side.allowed:
                return None
        try:
            before = self._results.look(side.files)
            if not _at_hand(before) and pruned(case).local_begun is None:
                # What is not there was not removed by us, and its disk may be away.
                return _outcome(case, Side.LOCAL, done=True, text="nothing to remove", files=before)
            self._mark(case.case_id, local_begun=pruned(case).local_begun or self._now().isoformat())
            fates = self._results.remove(side.files)
        except (MQIError, OSError) as error:
            return _outcome(case, Side.LOCAL, done=False, text=str(error))
        return self._removed(case.case_id, fates)

    def _removed(self, case_id: str, fates: tuple[LocalFate, ...]) -> PruneOutcome:
        failed = [fate for fate in fates if fate.fate == "failed"]
        freed = sum(fate.file.bytes or 0 for fate in fates if fate.fate == "removed")
        with self._store.transaction() as unit:
            case = _get(unit, case_id)
            if not failed:
                unit.cases.put(marked(case, local=self._now().isoformat(), local_begun=None))
            told = [{"file": fate.file.path, "fate": fate.fate, "why": fate.why} for fate in fates]
            data = {"side": Side.LOCAL, "where": told, "bytes": freed}
            unit.event("prune failed" if failed else "pruned", case_id, data)
        text = failed[0].why if failed else "removed from the results folder"
        return _outcome(case, Side.LOCAL, done=not failed, text=text, freed=freed, files=fates)

    def _failed(self, unit: IUnit, case: Case, why: str, *, uncertain: bool) -> PruneOutcome:
        if uncertain:
            unit.cases.put(marked(case, remote_open=self._now().isoformat()))
        elif pruned(case).remote_open is None:
            unit.cases.put(marked(case, remote_begun=None))
        data = {"side": Side.REMOTE, "where": self._folder(case), "why": why, "uncertain": uncertain}
        unit.event("prune failed", case.case_id, data)
        text = f"how it ended is not known, prune again: {why}" if uncertain else f"nothing removed: {why}"
        return _outcome(case, Side.REMOTE, done=False, text=text)

    def _mark(self, case_id: str, **changes: str | None) -> None:
        with self._store.transaction() as unit:
            unit.cases.put(marked(_get(unit, case_id), **changes))

    def _case(self, unit: IUnit, case: Case, now: datetime, *, named: bool) -> CasePlan:
        jobs = unit.jobs.of_case(case.case_id)
        history = [JobHistory(job, tuple(unit.jobs.tasks(job.job_id))) for job in jobs]
        return plan_case(case, history, self._rules, now=now, named=named)

    def _folder(self, case: Case) -> str:
        return f"{self._workspace}/{case.case_id}"

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)


def _at_hand(fates: Sequence[LocalFate]) -> bool:
    return any(fate.fate in ("removed", "failed") for fate in fates)


def _get(unit: IUnit, case_id: str) -> Case:
    case = unit.cases.get(case_id)
    if case is None:
        raise ProcessingError(f"no case {case_id!r} in the store")
    return case


def _outcome(
    case: Case,
    side: Side,
    *,
    done: bool,
    text: str,
    freed: int | None = None,
    files: tuple[LocalFate, ...] = (),
) -> PruneOutcome:
    return PruneOutcome(
        case_id=case.case_id, label=case.label, side=side, done=done, text=text, bytes=freed, files=files
    )
