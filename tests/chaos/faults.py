"""What can go wrong, where and when, as values: a schedule of faults, drawn from a seed, said in one line."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

EFFECTS = ("upload", "submit", "observe", "cancel", "download", "scan", "survey")
COMMIT = "commit"
STEPS = ("sbatch", "receipt", "release")
"""Steps of submit.sh, each between a look at the queue and what follows it."""
PROGRAMS = ("interpret", "beams", "convert")
PLACES = (*EFFECTS, COMMIT, *STEPS, *PROGRAMS)

KINDS = ("before", "after", "lost", "late", "killed", "frozen", "stale", "twice", "clock")
MEANINGS = {
    "before": "it fails, or its program dies, before anything was done",
    "after": "it is done, and whoever asked dies before he hears of it",
    "lost": "it is done, and he is told that it failed (of a stage: Slurm gives its node up)",
    "late": "it is done, and he is told much later",
    "killed": "daemon, or stage, dies in the middle of it, with what it has started",
    "frozen": "whoever does it stands still in the middle, and goes on much later",
    "stale": "it sees the file system as it was some time ago",
    "twice": "two do it at once",
    "clock": "the workstation's clock jumps by hours",
}

NO_SENSE = {
    (COMMIT, "lost"): "the store is a local file: a commit that was made is known to be made",
    (COMMIT, "late"): "a commit that takes long is `frozen`",
    (COMMIT, "killed"): "a transaction has no middle: it stands or not, which is `after` and `before`",
    (COMMIT, "stale"): "the store is local, and its lock with it",
    (COMMIT, "twice"): "a second process is refused by the lock (tests/unit/test_lifecycle.py)",
    ("cancel", "stale"): "scancel reads no file",
    ("download", "stale"): "a look has seen the files; a name that a host has never asked for is not cached",
    ("scan", "stale"): "the case folders are read as they are; that they grow is intake's (test_scanner.py)",
    ("survey", "stale"): "it reads a folder that no host writes to any more",
    ("scan", "before"): "a scan does not leave the workstation: it does not fail on the way",
    ("scan", "lost"): "the same",
    ("sbatch", "killed"): "submit.sh killed between two steps is `before` and `after`",
    ("receipt", "killed"): "the same",
    ("release", "killed"): "the same",
    ("release", "stale"): "what it reads was read for the step before",
}  # fmt: skip
"""Cells of the table that are left out, and why."""

CELLS = tuple((place, kind) for place in PLACES for kind in KINDS if (place, kind) not in NO_SENSE)

CLUSTER = (
    "ctld-down", "ctld-lost", "dbd-down", "node-down", "node-silent", "admin-cancel", "admin-hold",
    "requeue", "preempt", "outage", "key-refused", "disk-full", "files-away", "bits-flipped", "dose-damaged",
    "store-older", "preempt-all",
)  # fmt: skip
ENGINE = ("exit", "no-output", "other-beam", "cut", "rubbish", "unsaid", "contradicted")
_ALONE = tuple(kind for kind in CLUSTER if kind != "preempt-all")
"""What befalls the cluster in any run; the rest only where it is to be retried again and again."""
ORDERS = ("cancel", "resubmit", "accept", "fetch")

_FORM = re.compile(r"([a-z-]+):([a-z-]+)@(\d+)~(\d+)\Z")

_FIRST = {
    "upload": 4, "submit": 4, "observe": 30, "cancel": 2, "download": 4, "scan": 4, "survey": 2, COMMIT: 60,
    "sbatch": 9, "receipt": 9, "release": 3, "interpret": 3, "beams": 7, "convert": 3,
}  # fmt: skip
"""Up to which occurrence of a place faults are drawn: more is seldom come to."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault: at the `at`-th time (from 1) of a place, or `at` seconds after the beginning.

    `place` is one of PLACES, "cluster", "engine" (`at`-th beam begun) or "order" (seconds; 0: when a case has
    ended otherwise than well). `amount` says how long or how much, or whom.
    """

    place: str
    kind: str
    at: int
    amount: int

    def __str__(self) -> str:
        return f"{self.place}:{self.kind}@{self.at}~{self.amount}"


Schedule = tuple[Fault, ...]


def parse_schedule(text: str) -> Schedule:
    """Return the schedule that `format_schedule` wrote; raises ValueError."""
    found = []
    for word in filter(None, text.split(",")):
        match = _FORM.match(word)
        if match is None or not _known(match[1], match[2]):
            raise ValueError(f"{word!r} is no fault; one reads submit:frozen@2~700")
        found.append(Fault(match[1], match[2], int(match[3]), int(match[4])))
    return tuple(found)


def format_schedule(schedule: Iterable[Fault]) -> str:
    """Return a schedule in one word."""
    return ",".join(map(str, schedule))


def _known(place: str, kind: str) -> bool:
    others = {"cluster": CLUSTER, "engine": ENGINE, "order": ORDERS}
    return kind in others[place] if place in others else (place, kind) in CELLS


def draw_schedule(seed: int) -> Schedule:
    """Return the schedule of a seed: faults at effects, what befalls the cluster, and people's orders."""
    rng = random.Random(f"faults of {seed}")
    faults = [_at_effect(rng) for _ in range(rng.randint(4, 7))]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        kind = rng.choice(_ALONE)
        faults.append(Fault("cluster", kind, rng.randint(1, 150), rng.choice((10, 40, 120, 400, 900))))
    if any(fault.place == "survey" for fault in faults):
        # Else no folder is ever found to be taken.
        at = rng.randint(8, 150)
        faults.append(Fault("cluster", "store-older", at, 900))
        if at % 4 == 0:
            # Called off while the folder is read.
            faults.append(Fault("order", "cancel", at + 1 + at % 8, at % 3))
    if rng.random() < 0.25:
        faults.append(Fault("engine", rng.choice(ENGINE), rng.randint(1, 8), 0))
    if rng.random() < 0.4 or any(fault.place == "cancel" for fault in faults):
        # Else nothing of ours is ever cancelled.
        faults.append(Fault("order", "cancel", rng.randint(15, 120), rng.randint(0, 3)))
    for kind, chance in (("resubmit", 0.5), ("accept", 0.3), ("fetch", 0.1)):
        if rng.random() < chance:
            at = rng.choice((0, 0, rng.randint(1, 150)))
            faults.append(Fault("order", kind, at, rng.randint(0, 3)))
    if rng.random() < 0.15:
        faults += _row(rng)
    if rng.random() < 0.06:
        faults += _thaw(rng)
    if rng.random() < 0.02:
        # What the controller lost, while accounting is silent for longer than T_lag twice.
        at = rng.randint(8, 60)
        faults += [Fault("cluster", "ctld-lost", at, 10), Fault("cluster", "dbd-down", at, 2000)]
    return tuple(dict.fromkeys(faults))


def _row(rng: random.Random) -> list[Fault]:
    """Return failures in a row, of what is retried by itself, and perhaps a person who calls it off."""
    at = rng.randint(15, 90)
    if rng.random() < 0.3:
        return [Fault("cluster", "preempt-all", at, 1200)]
    faults = []
    if rng.random() < 0.4:
        faults.append(Fault("order", "cancel", at + rng.randint(60, 140), rng.randint(0, 3)))
    for _ in range(rng.randint(1, 5)):
        kind = rng.choice(("node-down", "node-silent", "preempt"))
        faults.append(Fault("cluster", kind, at, rng.choice((10, 40))))
        at += rng.randint(5, 120)
    return faults


def _thaw(rng: random.Random) -> list[Fault]:
    """Return a host that freezes in submit.sh, longer than that may live, and who calls it off meanwhile."""
    place = rng.choice(("submit", "sbatch", "receipt", "release"))
    thawed = Fault(place, "frozen", rng.randint(1, 4), rng.choice((500, 900)))
    # Before it is given up, a cancel is refused: it is being submitted.
    return [thawed, Fault("order", "cancel", rng.randint(258, 480), rng.randint(0, 3))]


def _at_effect(rng: random.Random) -> Fault:
    place, kind = rng.choice(CELLS)
    at = rng.randint(1, _FIRST[place])
    if kind == "stale":
        # Longer than NFS caches a folder (acdirmax, 60 s) nothing is stale.
        amount = rng.choice((3, 15, 59))
    elif kind == "late":
        amount = rng.choice((5, 40, 110))
    elif kind == "clock":
        amount = rng.randint(0, 24)
    elif kind == "frozen":
        amount = rng.choice((4, 30, 200, 500, 900))
    else:
        amount = rng.choice((0, 1, 7, 60))
    return Fault(place, kind, at, amount)
