"""What really happened, as the cluster's side saw it: the only witness that a run is judged by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.faults import Fault


@dataclass(frozen=True, slots=True)
class Ran:
    """A stage program that passed the fence and took its claim, `at` seconds after the beginning."""

    key: str
    job: str
    stage: str
    index: int
    slurm_id: int
    raw: int
    at: float


@dataclass(slots=True)
class Ledger:
    """Lines in order of time, and what the invariants ask of them.

    `words` are those that Slurm ended a task with, by (name, id, index); `spoilt` the tasks whose output is
    not what it should be. `harm` says, by case, what befell it that may end it otherwise than well; `wrong`
    are invariants that were seen broken while it happened. `patience`: how many runs of submit.sh left
    a case in doubt.
    """

    lines: list[str] = field(default_factory=list)
    struck: list[Fault] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)
    published: dict[tuple[str, str, str, int], list[dict[int, bytes]]] = field(default_factory=dict)
    spoilt: set[tuple[str, str, str, int]] = field(default_factory=set)
    exits: dict[tuple[str, str, str, int], list[int]] = field(default_factory=dict)
    words: dict[tuple[str, int, int], set[str]] = field(default_factory=dict)
    accepted: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    harm: dict[str, list[str]] = field(default_factory=dict)
    patience: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    delivered: dict[str, bytes] = field(default_factory=dict)
    execs: Counter[str] = field(default_factory=Counter)

    def note(self, at: float, *words: object) -> None:
        """Write a line."""
        self.lines.append(f"{at:.3f} {' '.join(map(str, words))}")

    def hurt(self, key: str, why: str) -> None:
        """Note that something befell a case which it need not come through."""
        self.harm.setdefault(key, []).append(why)

    def broken(self, at: float, text: str) -> None:
        """Note that an invariant was seen broken."""
        self.wrong.append(text)
        self.note(at, "BROKEN", text)

    def text(self) -> str:
        """Return all lines."""
        return "".join(f"{line}\n" for line in self.lines)
