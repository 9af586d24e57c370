"""Plays one seed, judges it, and shrinks a schedule that broke something to the shortest that still does."""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import structlog

from tests.chaos.bugs import BUGS
from tests.chaos.faults import Fault, Schedule, draw_schedule, format_schedule
from tests.chaos.invariants import broken
from tests.chaos.world import World


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went. `digest` is that of its ledger; `cut_short` tells that it did not come to its end."""

    seed: int
    schedule: Schedule
    broken: tuple[str, ...]
    struck: tuple[Fault, ...]
    cut_short: bool
    turns: int
    seconds: float
    digest: str
    ledger: str

    @property
    def replay(self) -> str:
        """What `--replay` takes to play exactly this."""
        return f"{self.seed}:{format_schedule(self.schedule)}"

    @property
    def kind(self) -> str:
        """The invariant that broke first, without names."""
        return self.broken[0].partition(":")[0] if self.broken else ""


def play(seed: int, schedule: Schedule | None = None, bug: str | None = None) -> Outcome:
    """Play a seed under its own schedule, or another; with a planted bug, where one is named."""
    chosen = draw_schedule(seed) if schedule is None else schedule
    with BUGS[bug].planted() if bug else nullcontext():
        world = World(seed, chosen)
        try:
            world.run()
            wrong = broken(world)
        except Exception:  # noqa: BLE001 - a fault of the program under test is what is looked for
            wrong = [f"crash: {traceback.format_exc(limit=-4)}", *world.ledger.wrong]
    text = world.ledger.text()
    return Outcome(
        seed=seed,
        schedule=chosen,
        broken=tuple(wrong),
        struck=tuple(world.ledger.struck),
        cut_short=bool(world.cut_short) or (bool(wrong) and wrong[0].startswith("crash")),
        turns=world.turns,
        seconds=world.clock.monotonic(),
        digest=hashlib.sha256(text.encode()).hexdigest(),
        ledger=text,
    )


def shrink(outcome: Outcome, bug: str | None = None, most: int = 300) -> Outcome:
    """Return the run of the shortest schedule found that breaks the same invariant; at most `most` plays."""

    def fails(schedule: Schedule) -> Outcome | None:
        found = play(outcome.seed, schedule, bug)
        return found if found.kind == outcome.kind else None

    return _shrunk(outcome, fails, most)


def _shrunk(outcome: Outcome, fails: Callable[[Schedule], Outcome | None], most: int) -> Outcome:
    best, size, plays = outcome, max(1, len(outcome.schedule) // 2), 0
    while size:
        at, smaller = 0, False
        while at < len(best.schedule) and plays < most:
            plays += 1
            found = fails(best.schedule[:at] + best.schedule[at + size :])
            if found is None:
                at += size
            else:
                best, smaller = found, True
        size = size if smaller and size == 1 else size // 2
    return best


def silence() -> None:
    """Let nothing be logged in this process: it takes longer than what it tells of."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be logged for a while."""
    before = structlog.get_config()
    silence()
    try:
        yield
    finally:
        structlog.configure(**before)
