"""What many runs came to, for people: violations with their replay, faults that struck, effect by fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from tests.chaos.faults import CELLS, CLUSTER, ENGINE, KINDS, MEANINGS, ORDERS, PLACES, Fault
from tests.chaos.play import Outcome

FEWEST_MEDIAN = 3
FEWEST_IN_CELL = 10


@dataclass(slots=True)
class Tally:
    """Counts over runs."""

    runs: int = 0
    cut_short: int = 0
    violations: list[tuple[int, str]] = field(default_factory=list)
    struck: Counter[int] = field(default_factory=Counter)
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count a run."""
        self.runs += 1
        self.cut_short += outcome.cut_short
        if outcome.broken:
            self.violations.append((outcome.seed, outcome.broken[0]))
        self.struck[len(outcome.struck)] += 1
        self.cells.update((fault.place, fault.kind) for fault in outcome.struck)

    def merge(self, other: Tally) -> None:
        """Take another tally in."""
        self.runs += other.runs
        self.cut_short += other.cut_short
        self.violations += other.violations
        self.struck += other.struck
        self.cells += other.cells

    @property
    def median(self) -> float:
        """The median of the number of faults that struck a run."""
        return median(self.struck.elements())

    @property
    def thin(self) -> list[str]:
        """The cells that were struck less often than they should have been, in 10 000 runs."""
        fewest = FEWEST_IN_CELL * min(self.runs, 10_000) // 10_000
        return [f"{place} {kind}" for place, kind in CELLS if self.cells[place, kind] < fewest]

    @property
    def held(self) -> bool:
        """Whether all is as it has to be."""
        return not (self.violations or self.cut_short or self.thin) and self.median >= FEWEST_MEDIAN


def tell(tally: Tally, seconds: float, cpu_seconds: float) -> str:
    """Return the summary of all runs; `cpu_seconds` are those of all processes together."""
    spread = ", ".join(f"{count}: {tally.struck[count]}" for count in sorted(tally.struck))
    lines = [
        f"{tally.runs} runs in {seconds:.0f} s ({cpu_seconds:.0f} s of CPU); "
        f"{len(tally.violations)} violations; {tally.cut_short} cut short",
        f"faults that struck a run: median {tally.median:g}; runs by number of faults: {spread}",
        "",
        _table(tally),
        "",
        *(f"  {kind:7} {MEANINGS[kind]}" for kind in KINDS),
        "",
        _list("to the cluster", "cluster", CLUSTER, tally),
        _list("in the engine", "engine", ENGINE, tally),
        _list("people's orders", "order", ORDERS, tally),
    ]
    if tally.thin:
        lines.append(f"struck too seldom: {', '.join(tally.thin)}")
    return "\n".join(lines)


def _table(tally: Tally) -> str:
    rows = [f"{'':10}" + "".join(f"{kind:>8}" for kind in KINDS)]
    for place in PLACES:
        cells = "".join(
            f"{tally.cells[place, kind]:>8}" if (place, kind) in CELLS else f"{'-':>8}" for kind in KINDS
        )
        rows.append(f"{place:10}{cells}")
    return "\n".join(rows)


def _list(title: str, place: str, kinds: Iterable[str], tally: Tally) -> str:
    return f"{title}: " + ", ".join(f"{kind} {tally.cells[place, kind]}" for kind in kinds)


def tell_schedule(schedule: Iterable[Fault]) -> str:
    """Return a schedule as a list for people."""
    return "\n".join(f"  {_sentence(fault)}" for fault in schedule) or "  (no fault at all)"


def _sentence(fault: Fault) -> str:
    if fault.place == "cluster":
        return f"at {fault.at} s, to the cluster: {fault.kind} ({fault.amount} s)"
    if fault.place == "engine":
        return f"beam no. {fault.at} to be begun: its engine fails ({fault.kind})"
    if fault.place == "order":
        when = f"at {fault.at} s" if fault.at else "when all have ended"
        return f"{when}: a person orders {fault.kind} (case {fault.amount})"
    return f"{fault.place} no. {fault.at}: {fault.kind} ({fault.amount}): {MEANINGS[fault.kind]}"
