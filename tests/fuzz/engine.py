"""Runs generated inputs through parsers and counts what they say: the same facts, refused, or wrong.

Every second input is valid text of known facts, which must come back; the others are damaged: refused, or
still the same facts, never others. An input is named by target, seed and number, and can be made again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from mqi_hpc.core.observation import NotParsed
from mqi_hpc.records.form import FormatError

REFUSED = (NotParsed, FormatError)
MOST_SHOWN = 5
_CHUNK = 20_000


class Target(Protocol):
    """A parser under test, with what makes its inputs."""

    name: str
    share: int
    """How many of the inputs are its, relative to the others."""

    def make(self, rng: random.Random) -> tuple[Any, str]:
        """Return facts, and text as the cluster would write it."""

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        """Return the text hurt in a way that must be seen, or that changes no fact."""

    def read(self, text: str) -> Any:
        """Return the facts that the parser finds; raises what a refusal raises."""

    def fits(self, found: Any, facts: Any, *, damaged: bool) -> bool:
        """Whether what was found is the same facts, or (of damaged text) a part of them that says so."""


@dataclass
class Tally:
    """What became of the inputs of one target; `replays` are the numbers of wrong ones."""

    valid: int = 0
    damaged: int = 0
    same: int = 0
    refused: int = 0
    wrong: int = 0
    replays: list[int] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in another's counts."""
        for name in ("valid", "damaged", "same", "refused", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.replays = (self.replays + other.replays)[:MOST_SHOWN]


def make(target: Target, seed: int, number: int) -> tuple[Any, str, bool]:
    """Return facts and text of an input, and whether the text was damaged."""
    rng = random.Random(f"{target.name} {seed} {number}")
    facts, text = target.make(rng)
    damaged = number % 2 == 1
    return facts, target.damage(rng, facts, text) if damaged else text, damaged


def judge(target: Target, facts: Any, text: str, *, damaged: bool) -> str:
    """Return "same", "refused" or "wrong"; an error that is no refusal is wrong."""
    try:
        found = target.read(text)
    except REFUSED:
        return "refused" if damaged else "wrong"
    except Exception:  # noqa: BLE001 - whatever it is, a parser must not let it out
        return "wrong"
    return "same" if target.fits(found, facts, damaged=damaged) else "wrong"


def run(target: Target, seed: int, first: int, count: int) -> Tally:
    """Run inputs `first` to `first + count` of a target."""
    tally = Tally()
    for number in range(first, first + count):
        facts, text, damaged = make(target, seed, number)
        verdict = judge(target, facts, text, damaged=damaged)
        tally.damaged += damaged
        tally.valid += not damaged
        setattr(tally, verdict, getattr(tally, verdict) + 1)
        if verdict == "wrong" and len(tally.replays) < MOST_SHOWN:
            tally.replays.append(number)
    return tally


def run_all(targets: Mapping[str, Target], seed: int, inputs: int, processes: int) -> dict[str, Tally]:
    """Run at least `inputs` in all, shared out among targets, in several processes."""
    shares = sum(target.share for target in targets.values())
    tallies = {name: Tally() for name in targets}
    with ProcessPoolExecutor(processes) as pool:
        parts = []
        for name, target in targets.items():
            wanted = -(-inputs * target.share // shares)
            for first in range(0, wanted, _CHUNK):
                count = min(_CHUNK, wanted - first)
                parts.append((name, pool.submit(run, target, seed, first, count)))
        for name, part in parts:
            tallies[name].add(part.result())
    return tallies


def table(tallies: Mapping[str, Tally]) -> str:
    """Return the counts as a table, with their sums."""
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    lines = [
        f"{'parser':12} {'inputs':>9} {'valid':>9} {'damaged':>9} {'same':>9} {'refused':>9} {'wrong':>6}"
    ]
    for name, t in [*tallies.items(), ("all", total)]:
        lines.append(
            f"{name:12} {t.valid + t.damaged:9,} {t.valid:9,} {t.damaged:9,} "
            f"{t.same:9,} {t.refused:9,} {t.wrong:6,}"
        )
    return "\n".join(lines)
