"""./dev fuzz: a million generated inputs through every parser of the cluster's text.

    python -m tests.fuzz [--inputs N] [--seed S] [--processes P] [--only PARSER]
    python -m tests.fuzz --seed S --replay PARSER:NUMBER

Exit code 1 where one input was read as other facts than it was made of.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.fuzz.engine import judge, make, run_all, table
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run what the command line asks for."""
    asked = argparse.ArgumentParser(prog="./dev fuzz", description="Generated inputs through every parser.")
    asked.add_argument("--inputs", type=int, default=1_000_000, help="how many in all (default: %(default)s)")
    asked.add_argument(
        "--seed", type=int, default=1, help="another seed, other inputs (default: %(default)s)"
    )
    asked.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked.add_argument("--only", choices=sorted(TARGETS), help="one parser alone")
    asked.add_argument("--replay", metavar="PARSER:NUMBER", help="show one input and what became of it")
    given = asked.parse_args()
    if given.replay:
        name, _, number = given.replay.partition(":")
        return _replay(name, given.seed, int(number))
    targets = {given.only: TARGETS[given.only]} if given.only else TARGETS
    began = time.monotonic()
    tallies = run_all(targets, given.seed, given.inputs, given.processes)
    print(table(tallies))
    print(f"seed {given.seed}, {time.monotonic() - began:.0f} s")
    for name, tally in tallies.items():
        for number in tally.replays:
            print(f"wrong: ./dev fuzz --seed {given.seed} --replay {name}:{number}")
    return 1 if any(tally.wrong for tally in tallies.values()) else 0


def _replay(name: str, seed: int, number: int) -> int:
    target = TARGETS[name]
    facts, text, damaged = make(target, seed, number)
    verdict = judge(target, facts, text, damaged=damaged)
    print(f"{'damaged' if damaged else 'valid'} text: {text!r}\nfacts: {facts!r}")
    try:
        print(f"read: {target.read(text)!r}")
    except Exception as error:  # noqa: BLE001 - shown, whatever it is
        print(f"read: {type(error).__name__}: {error}")
    print(verdict)
    return 1 if verdict == "wrong" else 0


if __name__ == "__main__":
    sys.exit(main())
