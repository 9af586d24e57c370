"""One transaction on the tables of a store: its repositories, and the chain of its events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.event_chain import ChainedEvent, chain_fault, next_event
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.core.monitoring import StoreCounts
from mqi_hpc.infrastructure.repositories import (
    CaseRepository,
    Contents,
    FolderRepository,
    JobRepository,
    ResourceRepository,
    Rows,
)
from mqi_hpc.infrastructure.repositories.counts import store_counts


class StateTransaction:
    """IUnit: the repositories and events of one transaction."""

    def __init__(self, rows: Rows, clock: IClock, contents: Contents) -> None:
        self._db = rows
        self._clock = clock
        self.cases = CaseRepository(rows)
        self.jobs = JobRepository(rows, contents)
        self.resources = ResourceRepository(rows)
        self.folders = FolderRepository(rows)

    def counts(self) -> StoreCounts:
        """Return how many of what there are."""
        return store_counts(self._db)

    def event(self, kind: str, case_id: str | None, data: Mapping[str, Any]) -> None:
        """Append an event to the chain."""
        head = self.audit_head()
        (number,) = self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM events").fetchone()
        self._append(
            next_event(head, number=number, at=self._clock.now(), kind=kind, case_id=case_id, data=data)
        )

    def events(self, case_id: str) -> list[dict[str, Any]]:
        """Return a case's events, oldest first."""
        rows = self._db.execute(
            "SELECT number, at, kind, case_id, data FROM events WHERE case_id=? ORDER BY number", [case_id]
        )
        return [
            {"number": number, "time": at, "kind": kind, "case_id": owner, "data": json.loads(data)}
            for number, at, kind, owner, data in rows
        ]

    def all_events(self) -> list[ChainedEvent]:
        """Return the whole chain, oldest event first."""
        return list(self._chain())

    def restore(self, events: Sequence[ChainedEvent]) -> None:
        """Begin the chain with events of another store, as they are.

        Raises StateError where there are events already, or these are no whole chain.
        """
        if self.audit_head():
            raise StateError("the store has events of its own: no others can be put before them")
        fault = chain_fault(events, events[-1].digest if events else "")
        if fault is not None:
            raise StateError(f"the events are no whole chain: {fault}")
        for event in events:
            self._append(event)

    def audit_head(self) -> str:
        """Return the digest of the newest event, empty where there is none."""
        (head,) = self._db.execute("SELECT value FROM meta WHERE name='head'").fetchone()
        return str(head)

    def verify(self) -> str | None:
        """Return what is wrong with the chain of events, None where it is whole."""
        return chain_fault(self._chain(), self.audit_head())

    def _chain(self) -> Iterator[ChainedEvent]:
        rows = self._db.execute("SELECT number, at, kind, case_id, data, digest FROM events ORDER BY number")
        for number, at, kind, case_id, data, digest in rows:
            yield ChainedEvent(number=number, at=at, kind=kind, case_id=case_id, body=data, digest=digest)

    def _append(self, event: ChainedEvent) -> None:
        self._db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
            [event.number, event.at, event.kind, event.case_id, event.body, event.digest],
        )
        self._db.execute("UPDATE meta SET value=? WHERE name='head'", [event.digest])
