"""Asks what may hang in a thread of its own: whoever wants the answer gets the last one, and its age."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """The last answer, None before the first; its age and how long the open question waits, in seconds."""

    value: T | None
    age: float | None
    waiting: float | None


class Latest(Generic[T]):
    """One question, at most once under way. `ask` gives a value; it may hang, and should not raise."""

    def __init__(
        self, name: str, ask: Callable[[], T], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._ask = ask
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._value: T | None = None
        self._at: float | None = None
        self._asked: float | None = None
        self._log = structlog.get_logger("mqi_hpc.monitoring")

    def get(self, wait: float = 0.0) -> Answer[T]:
        """Return the last answer and ask anew; with `wait`, give the new one so many seconds to come."""
        with self._changed:
            if self._asked is None:
                self._asked = self._monotonic()
                # A daemon thread: one that hangs in the kernel must not hold the program's end.
                threading.Thread(target=self._run, name=f"mqi-{self._name}", daemon=True).start()
            if wait > 0:
                self._changed.wait_for(lambda: self._asked is None, timeout=wait)
            now = self._monotonic()
            return Answer(
                self._value,
                None if self._at is None else now - self._at,
                None if self._asked is None else now - self._asked,
            )

    def _run(self) -> None:
        value: T | None = None
        try:
            value = self._ask()
        except Exception:  # noqa: BLE001 - the top of a thread: told here or nowhere
            self._log.exception("a look at this machine failed", look=self._name)
        with self._changed:
            if value is not None:
                self._value, self._at = value, self._monotonic()
            self._asked = None
            self._changed.notify_all()
