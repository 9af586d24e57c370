"""`doctor --orphans`: looks at the queue, reads the store, looks again, and cancels where it is asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mqi_hpc.controllers.doctor import usual_config
from mqi_hpc.controllers.parts import Parts
from mqi_hpc.core.effects import Cancel
from mqi_hpc.core.errors import ConfigurationError, ConnectionError
from mqi_hpc.core.interfaces import IStore
from mqi_hpc.core.orphans import Orphan, expected, find_lost, find_orphans, left, targets
from mqi_hpc.core.resubmit import History
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader
from mqi_hpc.infrastructure.doctor.orphans import OrphanSight
from mqi_hpc.infrastructure.executors import Control, Shell
from mqi_hpc.services.history import read_history

_SAID = 500
_LOOKS = 5
_PAUSE = 2.0
"""Slurm ends a job a moment after scancel has returned: looked for so often, so many seconds apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found. `cancelled` are those that a look after scancel no longer showed; `notes` for people.

    `not_judged`: cases that are being submitted, by label, each with its reason.
    """

    orphans: tuple[Orphan, ...]
    cancelled: tuple[tuple[str, int], ...]
    not_judged: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def remaining(self) -> tuple[Orphan, ...]:
        """What is still to be seen to."""
        return tuple(o for o in self.orphans if (o.name, o.slurm_id or 0) not in self.cancelled)


def examine_orphans(named: Path | None, *, cancel: bool) -> Found:
    """Return what the cluster holds and the store does not account for. Works beside a running daemon.

    `named` is the configuration file, None: at its usual place. Raises ConnectionError where the queue does
    not answer, ConfigurationError where there is no store or the workspace is another's.
    """
    config = ConfigLoader().load(named or usual_config())
    if not config.app.state_file.exists():
        raise ConfigurationError(
            "there is no store here: all of the cluster would look like an orphan",
            where=str(config.app.state_file),
            fix="`mqi-hpc init`; where the store was lost, `mqi-hpc init --adopt`",
        )
    parts = Parts(config)
    try:
        return _Examination(config, parts).run(cancel=cancel)
    finally:
        parts.close()
        parts.shell.close()


class _Examination:
    def __init__(self, config: AppConfig, parts: Parts) -> None:
        self._config = config
        self._store: IStore = parts.store
        self._shell: Shell = parts.shell
        self._control: Callable[[], Control] = lambda: Control(
            parts.shell,
            parts.renderer,
            submit_timeout=config.processing.submit_timeout_seconds,
            command_timeout=config.ssh.command_timeout_seconds,
        )
        self._sight = OrphanSight(
            parts.shell, workspace=config.paths.remote_workspace, instance=parts.store.instance
        )

    def run(self, *, cancel: bool) -> Found:
        first = self._sight.look()
        cases, labels = self._read()
        if cancel and not cases:
            raise ConfigurationError(
                "the store holds no case: whatever runs would be ended",
                where=str(self._config.app.state_file),
                fix="Where the store was lost, `mqi-hpc run` takes over what is there; then ask again",
            )
        second = self._sight.look(folders=False)
        seen = find_orphans(
            self._store.instance,
            cases,
            before=first.queue,
            after=second.queue,
            folders=first.folders,
        )
        wanted = expected(cases)
        unseen = find_lost(wanted, queue=second.queue, accounted=())
        notes: list[str] = []
        lost = self._unknown(wanted, unseen, notes)
        cancelled: tuple[tuple[str, int], ...] = ()
        if cancel and (chosen := targets(seen.orphans)):
            cancelled = self._cancelled(chosen, notes)
        return Found(
            orphans=(*seen.orphans, *lost),
            cancelled=cancelled,
            not_judged={labels[key]: why for key, why in seen.not_judged.items()},
            notes=tuple(notes),
        )

    def _read(self) -> tuple[dict[str, History], dict[str, str]]:
        """Return all cases of the store by key, and their labels."""
        with self._store.transaction(write=False) as unit:
            cases = unit.cases.all()
            histories = {case.case_id: read_history(unit, case.case_id) for case in cases}
        return histories, {case.case_id: case.label for case in cases}

    def _unknown(
        self, wanted: Mapping[tuple[str, int], str], unseen: tuple[Orphan, ...], notes: list[str]
    ) -> tuple[Orphan, ...]:
        """Return what accounting does not know either of what the queue does not show."""
        ids = sorted({orphan.slurm_id for orphan in unseen if orphan.slurm_id is not None})
        if not ids:
            return ()
        if self._config.slurm.accounting == "off":
            notes.append(f"{len(unseen)} submissions are not in the queue, and there is no accounting to ask")
            return ()
        try:
            accounted = self._sight.accounted(ids)
        except ConnectionError as error:
            # An error is no absence.
            notes.append(
                f"{len(unseen)} submissions are not in the queue; nothing is said of them: {error.what}"
            )
            return ()
        gone = {(name, slurm_id): wanted[name, slurm_id] for name, slurm_id in wanted if slurm_id in ids}
        return find_lost(gone, queue=(), accounted=accounted)

    def _cancelled(
        self, chosen: tuple[tuple[str, int], ...], notes: list[str]
    ) -> tuple[tuple[str, int], ...]:
        """Cancel, and return what the queue then no longer shows; what scancel says counts for nothing."""
        # A case may have been taken up since: what the store knows by now is left alone.
        cases, _ = self._read()
        first = self._sight.look(folders=False)
        again = find_orphans(self._store.instance, cases, before=first.queue, after=first.queue, folders=())
        wanted = tuple(one for one in targets(again.orphans) if one in chosen)
        if spared := tuple(one for one in chosen if one not in wanted):
            notes.append(f"left alone: ended, or the store accounts for them by now: {_named(spared)}")
        said = self._scancel(wanted)
        remaining = wanted
        for attempt in range(_LOOKS):
            if attempt:
                time.sleep(_PAUSE)
            remaining = left(wanted, self._sight.look(folders=False).queue)
            if not remaining:
                break
        if remaining:
            shown = _named(remaining)
            notes.append(f"not cancelled, the queue still shows it: {shown}; scancel said: {said}")
        return tuple(one for one in wanted if one not in remaining)

    def _scancel(self, wanted: tuple[tuple[str, int], ...]) -> str:
        """Cancel, with an event before and after, of no case; returns what scancel said."""
        if not wanted:
            return ""
        named = [list(target) for target in wanted]
        with self._store.transaction() as unit:
            unit.event("cancelling", None, {"targets": named, "by": "doctor --orphans"})
        said = self._control().cancel(Cancel(case_id="", job_id="", targets=wanted)).output
        with self._store.transaction() as unit:
            unit.event("cancelled", None, {"targets": named, "said": said[-_SAID:]})
        return said


def _named(targets_: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name} {slurm_id}" for name, slurm_id in targets_)
