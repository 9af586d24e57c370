"""An effects port that writes down every command before it is sent, and its answer before it is acted on."""

from __future__ import annotations

from mqi_hpc.core.commands import answered, is_command, told
from mqi_hpc.core.effects import Completion, Effect
from mqi_hpc.core.interfaces import IEffects, IStore


class AuditedEffects:
    """IEffects around another: what stands in the log as sent may not have been sent, never the reverse.

    So a crash between the two leaves a command without an answer, which is what it is.
    """

    def __init__(self, store: IStore, inner: IEffects) -> None:
        self._store = store
        self._inner = inner

    def start(self, effect: Effect) -> None:
        """Write a command down, then start it."""
        if is_command(effect):
            with self._store.transaction() as unit:
                unit.event("sent", effect.case_id, told(effect, unit.jobs.files(effect.job_id)))
        self._inner.start(effect)

    def completions(self, timeout: float) -> list[Completion]:
        """Return what has come to its end, each answer written down."""
        found = self._inner.completions(timeout)
        answers = [(c.effect, c) for c in found if is_command(c.effect)]
        if answers:
            with self._store.transaction() as unit:
                for command, completion in answers:
                    unit.event("answered", command.case_id, answered(command, completion))
        return found

    def close(self) -> None:
        """End the inner port."""
        self._inner.close()
