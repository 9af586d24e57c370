"""Thousands of seeded runs of a whole installation under faults; every invariant is asked after each.

usage: ./dev chaos [--runs N] [--seed S] [--bug NAME]
       ./dev chaos --replay SEED[:SCHEDULE] [--bug NAME] [--ledger]

Exit code 0: every invariant held in every run, and faults enough struck; 1 otherwise. A seed that fails is
shown with the shortest schedule that still fails, and the line that plays it again.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from tests.chaos.bugs import BUGS
from tests.chaos.faults import parse_schedule
from tests.chaos.play import Outcome, play, shrink, silence
from tests.chaos.report import Tally, tell, tell_schedule

_CHUNK = 20
_MOST_SHOWN = 5


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="./dev chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=_count, default=1000, help="how many seeds (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--replay", metavar="SEED[:SCHEDULE]", help="play one run and tell how it went")
    parser.add_argument("--bug", choices=sorted(BUGS), help="with a bug planted, which is to be found")
    parser.add_argument("--ledger", action="store_true", help="with --replay: print all that happened")
    parser.add_argument("--processes", type=_count, default=os.cpu_count() or 1, help="default: one a core")
    options = parser.parse_args()
    silence()
    if options.replay is not None:
        seed, _, text = options.replay.partition(":")
        try:
            schedule = parse_schedule(text) if text else None
            number = int(seed)
        except ValueError as error:
            parser.error(f"--replay: {error}")
        outcome = play(number, schedule, options.bug)
        return _tell_one(outcome, ledger=options.ledger)
    return _many(options.seed, options.runs, options.bug, options.processes)


def _many(first: int, runs: int, bug: str | None, processes: int) -> int:
    began, tally = time.monotonic(), Tally()
    starts = range(first, first + runs, _CHUNK)
    ends = [min(start + _CHUNK, first + runs) for start in starts]
    with ProcessPoolExecutor(processes, initializer=_begin) as pool:
        try:
            for part in pool.map(_chunk, starts, ends, repeat(bug)):
                before = tally.runs
                tally.merge(part)
                for seed, why in part.violations:
                    print(f"seed {seed}: {why}", file=sys.stderr, flush=True)
                if tally.runs * 10 // runs > before * 10 // runs:
                    told = f"{tally.runs} runs, {len(tally.violations)} violations"
                    print(told, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            # What was played is told; exit code 1, as not all of it was.
            pool.shutdown(wait=False, cancel_futures=True)
    if not tally.runs:
        print("interrupted before anything was played")
        return 1
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = used.ru_utime + used.ru_stime
    for seed, _ in tally.violations[:_MOST_SHOWN]:
        _tell_violation(shrink(play(seed, bug=bug), bug), bug)
    if len(tally.violations) > _MOST_SHOWN:
        print(f"… and {len(tally.violations) - _MOST_SHOWN} seeds more:")
        for seed, text in tally.violations[_MOST_SHOWN:]:
            print(f"  {seed}: {text[:160]}")
    print(tell(tally, seconds, cpu_seconds))
    print("every invariant held" if tally.held else "NOT every invariant held, or too few faults struck")
    return 0 if tally.held and tally.runs == runs else 1


def _begin() -> None:
    # The parent hears Ctrl-C, and tells how far it came.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence()
    # A run's objects hang together until it ends, and die together.
    gc.set_threshold(50_000, 20, 100)


def _chunk(start: int, end: int, bug: str | None) -> Tally:
    tally = Tally()
    for outcome in _played(start, end, bug):
        tally.add(outcome)
    return tally


def _played(start: int, end: int, bug: str | None) -> Iterator[Outcome]:
    for seed in range(start, end):
        yield play(seed, bug=bug)


def _tell_violation(outcome: Outcome, bug: str | None) -> None:
    print(f"seed {outcome.seed}: {len(outcome.broken)} violation(s) under {len(outcome.schedule)} fault(s):")
    print(tell_schedule(outcome.schedule))
    for text in outcome.broken[:3]:
        print(f"  -> {text}")
    print(f"  ./dev chaos --replay '{outcome.replay}'{f' --bug {bug}' if bug else ''}\n")


def _tell_one(outcome: Outcome, *, ledger: bool) -> int:
    if ledger:
        print(outcome.ledger, end="")
    print(
        f"seed {outcome.seed}, {outcome.seconds:.0f} s of virtual time, {outcome.turns} turns; its schedule:"
    )
    print(tell_schedule(outcome.schedule))
    print(f"faults that struck: {len(outcome.struck)}; SHA-256 of the ledger: {outcome.digest}")
    for text in outcome.broken:
        print(f"  -> {text}")
    print("every invariant held" if not outcome.broken else f"{len(outcome.broken)} violation(s)")
    return 1 if outcome.broken else 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
