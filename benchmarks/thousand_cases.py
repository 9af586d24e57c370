"""A thousand cases through the real orchestrator and store on a simulated cluster: nothing may grow.

usage: python -m benchmarks.thousand_cases [--cases 1000] [--from 200]

The cluster is simulated in another process; cases of three beams are put into the store as they are. Prints
memory, threads and open files when the first FROM cases are done and when all are. Exit code 1 where memory
has grown by 5 MiB or more in between, or the number of threads or open files is another.
"""

from __future__ import annotations

import argparse
import gc
import logging
import resource
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import structlog

from mqi_hpc.core.models import Case
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.infrastructure.state import SqliteStateManager
from tests.support.bench import PlainRenderer, make_case
from tests.support.simulation import Script, Site
from tests.support.simulation.elsewhere import ClusterElsewhere
from tests.support.simulation.installation import Installation

IN_HAND = 20
MOST_GROWTH = 5 * 1024 * 1024
BEAMS = 3
SECONDS = {"interpret": 10.0, "beams": 30.0, "convert": 10.0}
SITE = Site(
    version="22.05",
    gpus={**{f"g{n}": 4 for n in range(1, 9)}, "c1": 0},
    partitions={"gpu": tuple(f"g{n}" for n in range(1, 9)), "cpu": ("c1",)},
)


@dataclass(frozen=True)
class Sample:
    """What the process takes: resident bytes, threads, open files; and the time (s) since it began."""

    memory: int
    threads: int
    files: int
    seconds: float


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--from", dest="first", type=int, default=200)
    options = parser.parse_args()
    if not 0 < options.first < options.cases:
        parser.error("--from must lie between 0 and --cases")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as home:
        first, last, polled = run(Path(home), options.cases, options.first)
    print(f"{'cases done':>12} {'memory MiB':>12} {'threads':>8} {'files':>8} {'seconds':>8}")
    for done, sample in ((options.first, first), (options.cases, last)):
        print(
            f"{done:>12} {sample.memory / 2**20:>12.2f} {sample.threads:>8} {sample.files:>8}"
            f" {sample.seconds:>8.1f}"
        )
    growth = last.memory - first.memory
    print(f"growth {growth / 2**20:+.2f} MiB; virtual time {polled:.0f} s; peak {_peak() / 2**20:.2f} MiB")
    same = (last.threads, last.files) == (first.threads, first.files)
    return 0 if growth < MOST_GROWTH and same else 1


def run(home: Path, count: int, first: int) -> tuple[Sample, Sample, float]:
    """Lead `count` cases to their end; return samples at `first` and at the end, and the virtual time (s)."""
    began = time.monotonic()
    cluster = ClusterElsewhere(SITE, Script(seconds=SECONDS))
    try:
        store = SqliteStateManager(home / "state.sqlite", instance="i1", secret=b"s" * 32, clock=cluster)
        installation = Installation(
            store, cluster, cluster, PlainRenderer(), rhythm=PollRhythm(least=5.0, most=30.0)
        )
        samples = []
        open_cases: deque[str] = deque()
        taken = done = 0
        while done < count:
            while taken < count and len(open_cases) < IN_HAND:
                case = _case(taken)
                installation.take(case)
                open_cases.append(case.case_id)
                taken += 1
            installation.orchestrator.turn()
            for case_id in list(open_cases):
                if case_id in installation.scheduler.cases:
                    continue
                status = installation.report(case_id).status
                if status != "completed":
                    raise RuntimeError(f"case {case_id} came to {status}: {installation.report(case_id)}")
                open_cases.remove(case_id)
                done += 1
                if done in (first, count):
                    samples.append(_sample(began))
        return samples[0], samples[1], cluster.monotonic()
    finally:
        cluster.close()


def _case(number: int) -> Case:
    return make_case(BEAMS, key=f"case{number:08d}")


def _sample(began: float) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        memory=pages * resource.getpagesize(),
        threads=sum(1 for _ in Path("/proc/self/task").iterdir()),
        files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        seconds=time.monotonic() - began,
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
