"""Whether the chain of events is what was written, measured against itself and what lies elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mqi_hpc.core.event_chain import ChainedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What a job's chain.json says of the chain: `head`, the digest of its newest event when it was planned.

    `where` is the chain.json, for people.
    """

    case_id: str
    job: str
    head: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the audit log stands: how many events, the digest of the last, and what is wrong with it.

    `anchors` is how many chain.json of jobs agree with it.
    """

    events: int
    head: str
    anchors: int
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Seen:
    """Where in a chain digests and jobs stand, by event number."""

    digests: dict[str, int] = field(default_factory=dict)
    planned: dict[tuple[str, str], int] = field(default_factory=dict)
    adopted: set[tuple[str, str, str]] = field(default_factory=set)


def verify(
    events: Iterable[ChainedEvent], head: str, anchors: Sequence[Anchor], written_down: Sequence[str] = ()
) -> Verification:
    """Return whether events, a whole chain that is said to end in `head`, are as they were written.

    A chain that was rewritten from some event on, `head` with it, is whole in itself: it no longer holds the
    heads that chain.json of jobs carry, or those that a person has `written_down`.
    """
    seen = _Seen(digests={"": 0})
    last, count = "", 0
    for event in events:
        count += 1
        if event.number != count:
            return _broken(count - 1, last, _misplaced(event, count))
        if not event.follows(last):
            said = f"event {count} ({event.kind}) has been changed, or another stands in its place"
            return _broken(count - 1, last, said)
        last = event.digest
        _note(event, seen, {anchor.head for anchor in anchors} | set(written_down))
    if last != head:
        return _broken(count, last, f"events after event {count} have been cut off")
    strayed = [why for why in (_strayed(anchor, seen) for anchor in anchors) if why is not None]
    unknown = [
        f"no event has the digest {digest}: the chain has been rewritten, or this is another's"
        for digest in written_down
        if digest not in seen.digests
    ]
    agree = len(anchors) - len(strayed)
    return Verification(events=count, head=head, anchors=agree, faults=(*strayed, *unknown))


def _misplaced(event: ChainedEvent, expected: int) -> str:
    if event.number < expected:
        return f"event {event.number} stands there twice"
    if event.number == expected + 1:
        return f"event {expected} is missing"
    return f"events {expected} to {event.number - 1} are missing"


def _broken(good: int, last: str, said: str) -> Verification:
    return Verification(events=good, head=last, anchors=0, faults=(said,))


def _note(event: ChainedEvent, seen: _Seen, wanted: set[str]) -> None:
    if event.digest in wanted:
        seen.digests[event.digest] = event.number
    if event.kind in ("job planned", "adopted"):
        data, case_id = json.loads(event.body), event.case_id or ""
        if event.kind == "adopted":
            seen.adopted.add((case_id, str(data.get("job")), str(data.get("audit_head"))))
        else:
            seen.planned[case_id, str(data.get("job"))] = event.number


def _strayed(anchor: Anchor, seen: _Seen) -> str | None:
    """Return why a chain.json does not agree with the chain, None where it does."""
    if (anchor.case_id, anchor.job, anchor.head) in seen.adopted:
        # It was planned with a store that is lost: its head is in that store's chain.
        return None
    planned = seen.planned.get((anchor.case_id, anchor.job))
    if planned is None:
        return f"{anchor.where}: no event tells that {anchor.job} of case {anchor.case_id} was planned"
    at = seen.digests.get(anchor.head)
    if at is None:
        return f"{anchor.where}: the head that it carries is in no event: the chain has been rewritten"
    if at >= planned:
        return f"{anchor.where}: the head that it carries is of event {at}, after it was planned ({planned})"
    return None
