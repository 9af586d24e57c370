"""Beds on a simulated and on a real cluster: how each is waited for, hurt, and looked into."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mqi_hpc.core.retry import CircuitBreaker, RetryPolicy
from mqi_hpc.core.submission import SubmitReport, parse_submit
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.config.models import AppConfig
from mqi_hpc.infrastructure.connection import SSHConnectionPool
from mqi_hpc.infrastructure.executors import Control, RemoteExecutor, ThreadedEffects, TransferExecutor
from mqi_hpc.infrastructure.executors.prune import Pruner
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from tests.support.cluster import Cluster, wait_until
from tests.support.cluster_config import cluster_config, merged, write_config
from tests.support.memory_store import MemoryStore
from tests.support.simulation.bed import Bed, Sent
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.cluster import SimulatedCluster
from tests.support.simulation.jobs import Site

T = TypeVar("T")

GRID = {"size": [40, 30, 300], "spacing": [4, 5, 1], "position": [-80, -75, -280]}
PATIENCE = 240.0


class RealClock:
    """IClock."""

    def now(self) -> float:
        """Return UTC epoch seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds of a clock that never steps."""
        return time.monotonic()


@dataclass
class SimulatedBed(Bed):
    """On the simulated cluster; time moves where it is waited for."""

    sim: SimulatedCluster = field(kw_only=True)

    def submit_unreleased(self, sent: Sent) -> SubmitReport:
        self.sim.slurm.releases = False
        try:
            return self.submit(sent)
        finally:
            self.sim.slurm.releases = True

    def submit_cut(self, sent: Sent, step: str) -> SubmitReport:
        self.sim.link.cut_submit = step
        return self.submit(sent)

    def until(self, probe: Callable[[], T], what: str) -> T:
        for _ in range(int(PATIENCE)):
            if found := probe():
                return found
            self.sim.advance(1.0)
        raise AssertionError(f"{what}: not so after {PATIENCE:.0f} s of virtual time")

    def fault(self, beam: int, kind: str) -> None:
        self.sim.script.beams[beam] = kind

    def accounting(self, *, up: bool) -> None:
        if up:
            self.sim.slurm.accounting.start()
        else:
            self.sim.slurm.accounting.up = False

    def controller(self, *, up: bool) -> None:
        if up:
            self.sim.slurm.start()
        else:
            self.sim.slurm.stop()

    def partition(self, name: str, *, up: bool) -> None:
        self.sim.slurm.set_partition(name, up=up)

    def node_down(self, name: str) -> None:
        self.sim.slurm.node_down(name)

    def exists(self, path: str) -> bool:
        return self.sim.files.exists(path)

    def overwrite(self, path: str, content: bytes) -> None:
        assert self.sim.files.exists(path)
        self.sim.files.write(path, content)

    def remove(self, path: str) -> None:
        assert self.sim.files.exists(path)
        self.sim.files.remove(path)

    def link(self, *, up: bool) -> None:
        self.sim.link.down = not up


@dataclass
class RealBed(Bed):
    """On real Slurm, over SSH."""

    cluster: Cluster = field(kw_only=True)

    def submit_unreleased(self, sent: Sent) -> SubmitReport:
        self._stub("scontrol", "exit 1")
        return self._submit_with_stubs(sent)

    def submit_cut(self, sent: Sent, step: str) -> SubmitReport:
        word, stage = step.split()
        first = "" if word == "sbatch" else '/usr/bin/sbatch "$@" || exit; '
        kill = "kill -KILL -- -$(ps -o pgid= $$ | tr -d ' ')"
        case = f'case "$*" in *{stage}.sbatch) {first}{kill} ;; esac'
        self._stub("sbatch", f'{case}; exec /usr/bin/sbatch "$@"')
        return self._submit_with_stubs(sent)

    def _stub(self, name: str, line: str) -> None:
        path = f"{self.workspace}/bin/{name}"
        write = f"mkdir -p {self.workspace}/bin && cat >{path} && chmod 700 {path}"
        self.cluster.ssh(write, f"#!/bin/bash\n{line}\n", check=True)

    def _submit_with_stubs(self, sent: Sent) -> SubmitReport:
        nonce = self.nonce()
        line = f"PATH={self.workspace}/bin:$PATH setsid --wait bash {sent.folder}/submit.sh {nonce}"
        report = parse_submit(self.cluster.ssh(line).stdout, nonce)
        self.adopt(sent, report)
        return report

    def until(self, probe: Callable[[], T], what: str) -> T:
        return wait_until(probe, PATIENCE, what)

    def fault(self, beam: int, kind: str) -> None:
        self.cluster.fault(beam, kind)

    def accounting(self, *, up: bool) -> None:
        self.cluster.ctl("start" if up else "kill", "slurmdbd")

    def controller(self, *, up: bool) -> None:
        # A clean stop writes the queue down: what a kill loses is not told here.
        self.cluster.ctl("start" if up else "stop", "slurmctld")

    def partition(self, name: str, *, up: bool) -> None:
        self.cluster.root(f"scontrol update partitionname={name} state={'up' if up else 'down'}")

    def node_down(self, name: str) -> None:
        self.cluster.root(f"scontrol update nodename={name} state=down reason=test")

    def exists(self, path: str) -> bool:
        return self.cluster.ssh(f"test -e {path}").returncode == 0

    def overwrite(self, path: str, content: bytes) -> None:
        self.cluster.ssh(f"test -e {path} && cat >{path}", content.decode(), check=True)

    def remove(self, path: str) -> None:
        self.cluster.ssh(f"rm {path}", check=True)

    def link(self, *, up: bool) -> None:
        self.cluster.ctl("start" if up else "stop", "sshd")
        if not up:
            self.cluster.ctl("drop-ssh")


@contextmanager
def simulated_bed(home: Path, site: Site, **changes: object) -> Iterator[SimulatedBed]:
    """Yield a bed on a simulated cluster; `changes` are settings by section."""
    workspace = {"paths": {"remote_workspace": "/work", "local_results": str(home / "results")}}
    config = merged(merged(cluster_config(home, 22), {"moqui": {"grid": GRID}, **workspace}), changes)
    clock = VirtualClock()
    sim = SimulatedCluster(clock, site=site, results=home / "results", read_sources=True)
    loaded = ConfigLoader().load(write_config(home / "config.yaml", config))
    yield SimulatedBed(home, loaded, sim, clock, sim=sim)


@contextmanager
def real_bed(home: Path, cluster: Cluster, **changes: object) -> Iterator[RealBed]:
    """Yield a bed on a real cluster; `changes` are settings by section."""
    workspace = f"/home/mqi/{home.name}"
    paths = {"remote_workspace": workspace}
    config = ConfigLoader().load(
        cluster.write_config(home, **{"moqui": {"grid": GRID}, "paths": paths, **changes})
    )
    shell = RemoteExecutor(_pool(config))
    port = ThreadedEffects(
        shell,
        Control(shell, Renderer(config, b""), submit_timeout=60, command_timeout=30),
        TransferExecutor(
            shell,
            workspace=workspace,
            instance=MemoryStore().instance,
            results=config.paths.local_results,
            min_free_bytes=0,
            timeout=60,
        ),
        transfer_threads=2,
        prune=Pruner(shell, workspace=workspace, instance=MemoryStore().instance).prune,
    )
    try:
        yield RealBed(home, config, port, RealClock(), cluster=cluster)
    finally:
        port.close()
        cluster.reset()
        cluster.ssh(f"rm -rf {workspace}")


def _pool(config: AppConfig) -> SSHConnectionPool:
    policy = RetryPolicy(max_attempts=3, base_delay=0.1, max_delay=0.5)
    return SSHConnectionPool(config.ssh, policy, CircuitBreaker(), RealClock(), random.Random(1))
