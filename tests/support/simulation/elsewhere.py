"""A simulated cluster in a process of its own, so that what it takes is not measured with what uses it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from mqi_hpc.core.effects import Completion, Effect
from tests.support.simulation.clock import START, VirtualClock
from tests.support.simulation.cluster import SimulatedCluster
from tests.support.simulation.jobs import Site
from tests.support.simulation.stages import Script


class ClusterElsewhere:
    """IEffects and IClock: virtual time is the other process's, as it was at its last answer."""

    def __init__(self, site: Site, script: Script) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, site, script), daemon=True)
        self._process.start()
        theirs.close()
        self._now = 0.0

    def start(self, effect: Effect) -> None:
        """Hand an effect over."""
        self._pipe.send(("start", effect))

    def completions(self, timeout: float) -> list[Completion]:
        """Return what has completed, moving time on where nothing has."""
        found: list[Completion] = self._ask("completions", timeout)
        return found

    def now(self) -> float:
        """Return UTC epoch seconds."""
        return START + self._now

    def monotonic(self) -> float:
        """Return the seconds since the simulation began."""
        return self._now

    def close(self) -> None:
        """End the other process."""
        self._pipe.send(("stop", None))
        self._process.join()
        self._process.close()
        self._pipe.close()

    def _ask(self, word: str, value: object) -> Any:
        self._pipe.send((word, value))
        self._now, answer = self._pipe.recv()
        return answer


def _serve(pipe: Connection, site: Site, script: Script) -> None:
    clock = VirtualClock()
    cluster = SimulatedCluster(clock, site=site, script=script)
    while True:
        word, value = pipe.recv()
        if word == "start":
            cluster.start(value)
        elif word == "completions":
            found = cluster.completions(value)
            pipe.send((clock.monotonic(), found))
        else:
            pipe.close()
            return
