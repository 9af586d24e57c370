"""The chain of events: each digest covers the event and all before it, so a change anywhere shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainedEvent:
    """An event as it is kept: `at` UTC epoch s, `body` its data as canonical JSON text (ASCII)."""

    number: int
    at: float
    kind: str
    case_id: str | None
    body: str
    digest: str

    def follows(self, head: str) -> bool:
        """Whether the event is as it was when it was appended to the chain that ended in `head`."""
        as_it_was = _digest(head, [self.number, float(self.at), self.kind, self.case_id, self.body])
        return self.digest == as_it_was and _is_canonical(self.body)


def next_event(
    head: str, *, number: int, at: float, kind: str, case_id: str | None, data: Mapping[str, Any]
) -> ChainedEvent:
    """Return the event that follows a chain that ends in `head`; raises ValueError where JSON has no word."""
    body = _canonical(dict(data))
    # A float, as a column gives it back: an integer's digest would not be found again.
    at = float(at)
    digest = _digest(head, [number, at, kind, case_id, body])
    return ChainedEvent(number=number, at=at, kind=kind, case_id=case_id, body=body, digest=digest)


def chain_fault(events: Iterable[ChainedEvent], head: str) -> str | None:
    """Return what is wrong with a whole chain that is said to end in `head`, None where nothing is."""
    last, expected = "", 1
    for event in events:
        if event.number != expected:
            return f"event {expected} is missing"
        if not event.follows(last):
            return f"event {expected} has been changed, or one before it"
        last, expected = event.digest, expected + 1
    return None if last == head else "events at the end have been cut off"


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _is_canonical(body: str) -> bool:
    try:
        data = json.loads(body)
        return isinstance(data, dict) and _canonical(data) == body
    except (ValueError, RecursionError):
        return False


def _digest(head: str, event: list[Any]) -> str:
    return hashlib.sha256(json.dumps([head, *event]).encode()).hexdigest()
