"""The parts that touch the world, built from the settings: store, shell, effects, scanner, probes."""

from __future__ import annotations

import random
import secrets
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from mqi_hpc.core.causes import Cause
from mqi_hpc.core.effects import Completion, Scan
from mqi_hpc.core.gpu_inventory import NodeGpus
from mqi_hpc.core.interfaces import IStore
from mqi_hpc.core.monitoring import GPUReading
from mqi_hpc.core.retention import RetentionRules
from mqi_hpc.core.retry import CircuitBreaker
from mqi_hpc.core.retry_causes import Asked, RetryTable, Rule
from mqi_hpc.core.slurm_sizes import megabytes, seconds
from mqi_hpc.infrastructure.config import AppConfig
from mqi_hpc.infrastructure.config.retries import RetryRuleConfig
from mqi_hpc.infrastructure.connection.pool import SSHConnectionPool
from mqi_hpc.infrastructure.executors import (
    Control,
    LocalExecutor,
    RemoteExecutor,
    Shell,
    ThreadedEffects,
    TransferExecutor,
)
from mqi_hpc.infrastructure.executors.prune import LocalResults, Pruner
from mqi_hpc.infrastructure.intake import CaseReader
from mqi_hpc.infrastructure.intake.scanner import FolderScanner
from mqi_hpc.infrastructure.monitoring.host import HostProbe
from mqi_hpc.infrastructure.monitoring.nvml import NvmlProbe
from mqi_hpc.infrastructure.monitoring.sink import FileSink
from mqi_hpc.infrastructure.slurm.archive import build_stages
from mqi_hpc.infrastructure.slurm.gpus import read_cluster_gpus
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.infrastructure.state import load_or_create_instance, open_store
from mqi_hpc.infrastructure.state.requests import RequestFolder, requests_folder

_DRIVER_SECONDS = 10.0
_GIGABYTE = 1_000_000_000


class SystemClock:
    """The real time (IClock)."""

    def now(self) -> float:
        """Return UTC epoch seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds of a clock that never steps."""
        return time.monotonic()


class SystemIds:
    """Real random things (IIds)."""

    def nonce(self) -> str:
        """Return 24 hexadecimal digits never used before."""
        return secrets.token_hex(12)

    def draw(self) -> float:
        """Return a number from 0 to 1."""
        return random.random()  # noqa: S311 - spreads waits, guards nothing


class Parts:
    """Builds each part once, when it is first asked for. `close` ends what was built."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self.clock = SystemClock()
        self.ids = SystemIds()
        self._closing: list[Callable[[], None]] = []

    def close(self) -> None:
        """End what runs by itself."""
        while self._closing:
            self._closing.pop()()

    @cached_property
    def store(self) -> IStore:
        """The case store."""
        path = self.config.app.state_file
        instance = load_or_create_instance(path)
        store = open_store(path, instance=instance.id, secret=instance.secret, clock=self.clock)
        self._closing.append(store.close)
        return store

    @cached_property
    def mailbox(self) -> RequestFolder:
        """Requests between processes on this store."""
        return RequestFolder(requests_folder(self.config.app.state_file))

    @cached_property
    def reader(self) -> CaseReader:
        """Reads case folders."""
        processing = self.config.processing
        return CaseReader(
            self.config.machines,
            fraction_gap_seconds=processing.fraction_gap_seconds,
            ignore=processing.ignore,
        )

    @cached_property
    def scanner(self) -> FolderScanner:
        """Finds case folders."""
        processing = self.config.processing
        scanner = FolderScanner(
            self.config.paths.local_logdata,
            self.reader,
            self.clock,
            ready=processing.ready,
            quiet_seconds=processing.quiet_seconds,
            ignore=processing.ignore,
            room_level=processing.room_level,
        )
        self._closing.append(scanner.close)
        return scanner

    @cached_property
    def renderer(self) -> Renderer:
        """Renders what is sent."""
        return Renderer(self.config, build_stages())

    @cached_property
    def shell(self) -> Shell:
        """The way to the cluster."""
        if self.config.transport == "local":
            return LocalExecutor()
        return RemoteExecutor(self._pool)

    @cached_property
    def _pool(self) -> SSHConnectionPool:
        policy = self.config.processing.retry_policy.policy()
        rng = random.Random()  # noqa: S311 - spreads waits, guards nothing
        return SSHConnectionPool(self.config.ssh, policy, CircuitBreaker(), self.clock, rng)

    def local_gpus(self) -> GPUReading:
        """Return the GPUs of this machine; waits for a slow driver, not for ever."""
        probe = NvmlProbe()
        try:
            return probe.latest(wait=_DRIVER_SECONDS)
        finally:
            probe.close()

    def cluster_gpus(self) -> tuple[NodeGpus, ...]:
        """Return the GPUs of the cluster, and hang up; raises ConnectionError where Slurm does not say."""
        try:
            return read_cluster_gpus(self.shell, self.config.ssh.command_timeout_seconds)
        finally:
            self.shell.close()

    def open_connections(self) -> int:
        """Return how many SSH connections are open."""
        return self._pool.open_connections if self.config.transport == "ssh" else 0

    @cached_property
    def effects(self) -> ThreadedEffects:
        """What acts on the world."""
        config = self.config
        timeout = config.ssh.command_timeout_seconds
        control = Control(
            self.shell,
            self.renderer,
            submit_timeout=config.processing.submit_timeout_seconds,
            command_timeout=timeout,
        )
        workspace, instance = config.paths.remote_workspace, self.store.instance
        transfer = TransferExecutor(
            self.shell,
            workspace=workspace,
            instance=instance,
            results=config.paths.local_results,
            min_free_bytes=config.resources.min_disk_space_gb * _GIGABYTE,
            timeout=timeout,
        )
        effects = ThreadedEffects(
            self.shell,
            control,
            transfer,
            transfer_threads=max(1, config.ssh.connection_pool_size - 1),
            scan=self._scan,
            prune=Pruner(self.shell, workspace=workspace, instance=instance).prune,
        )
        self._closing.append(effects.close)
        return effects

    def _scan(self, effect: Scan) -> Completion:
        # Built at the first scan: a command that looks for no cases watches no folder.
        return self.scanner.scan(effect)

    @cached_property
    def probe(self) -> HostProbe:
        """Looks at this machine."""
        probe = HostProbe()
        self._closing.append(probe.close)
        return probe

    @cached_property
    def sink(self) -> FileSink:
        """Writes metrics and health."""
        monitoring, beside = self.config.monitoring, self.config.app.state_file
        return FileSink(
            monitoring.metrics_file or beside.with_name("metrics.prom"),
            monitoring.health_file or beside.with_name("health.json"),
        )

    @cached_property
    def local_results(self) -> LocalResults:
        """Delivered files at home."""
        return LocalResults(self.config.paths.local_results)

    def retention_rules(self) -> RetentionRules:
        """Return what prune may remove."""
        retention = self.config.retention
        return RetentionRules(
            remote_completed_days=retention.remote_completed_days,
            remote_failed_days=retention.remote_failed_days,
            local_results_days=retention.local_results_days,
        )

    @cached_property
    def retry_table(self) -> RetryTable:
        """Return what is done again by itself."""
        retries, stages = self.config.processing.retries, self.config.slurm.stages
        memory, time_ = retries.out_of_memory, retries.timeout
        return RetryTable(
            most=retries.most,
            rules={
                **{
                    cause: _rule(rule, leave_out=rule.leave_out_seconds)
                    for cause, rule in (
                        (Cause.NODE_FAIL, retries.node_fail),
                        (Cause.BOOT_FAIL, retries.boot_fail),
                        (Cause.GPU_CHECK, retries.gpu_check),
                    )
                },
                Cause.PREEMPTED: _rule(retries.preempted),
                Cause.OUT_OF_MEMORY: _rule(
                    memory,
                    factor=memory.memory_factor,
                    maximum=megabytes(memory.memory_maximum) if memory.memory_maximum else None,
                ),
                Cause.TIMEOUT: _rule(
                    time_,
                    factor=time_.time_factor,
                    maximum=seconds(time_.time_maximum) if time_.time_maximum else None,
                ),
                Cause.BURNT: _rule(retries.burnt),
            },
            asked={
                stage: Asked(megabytes(asked.memory), seconds(asked.time))
                for stage, asked in (
                    ("interpret", stages.interpret),
                    ("beams", stages.beams),
                    ("convert", stages.convert),
                )
            },
        )

    def free_bytes(self) -> int:
        """Return the free space where results go."""
        return shutil.disk_usage(_existing(self.config.paths.local_results)).free


def _rule(
    rule: RetryRuleConfig, *, leave_out: float = 0.0, factor: float = 1.0, maximum: int | None = None
) -> Rule:
    return Rule(
        most=rule.most,
        pauses=rule.pauses_seconds,
        counted=rule.counted,
        leave_out=leave_out,
        factor=factor,
        maximum=maximum,
    )


def _existing(path: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())
