"""All wiring in one place: settings in, a program out. The only module that knows infrastructure."""

from __future__ import annotations

import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import platformdirs

from mqi_hpc.controllers.application import Application
from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from mqi_hpc.controllers.log_reader import LogReader
from mqi_hpc.core.errors import ConfigurationError, ProcessingError
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.core.readings import Limits
from mqi_hpc.core.retry import CircuitBreaker
from mqi_hpc.domain.desk import Desk
from mqi_hpc.domain.reconciler import Reconciler
from mqi_hpc.domain.task_scheduler import TaskScheduler
from mqi_hpc.domain.watcher import Watcher
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader
from mqi_hpc.infrastructure.connection.pool import SSHConnectionPool
from mqi_hpc.infrastructure.executors import (
    Control,
    LocalExecutor,
    RemoteExecutor,
    Shell,
    ThreadedEffects,
    TransferExecutor,
)
from mqi_hpc.infrastructure.intake import CaseReader, write_sample_case
from mqi_hpc.infrastructure.monitoring.logs import configure_logging
from mqi_hpc.infrastructure.slurm.archive import build_stages
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.infrastructure.state import SqliteStateManager, load_or_create_instance
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.report_service import ReportService
from mqi_hpc.services.resource_service import ResourceService
from mqi_hpc.services.transfer_service import TransferService

Tell = Callable[[str, str], None]
"""Hears what goes on: (case label, text)."""

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


class Container:
    """Builds each part once, when it is first asked for."""

    def __init__(self, config: AppConfig, tell: Tell | None) -> None:
        self.config = config
        self._tell = tell
        self._clock = SystemClock()
        self._ids = SystemIds()
        configure_logging(config.app.log_file)

    @classmethod
    def open(cls, path: Path | None, tell: Tell | None) -> Container:
        """Return the container of a configuration file; ConfigurationError lists what is wrong with it."""
        return cls(ConfigLoader().load(path or _default_config()), tell)

    # What the commands use

    @contextmanager
    def running(self) -> Iterator[Application]:
        """Hold the lock, and end cleanly whatever happens."""
        self.application.initialize()
        try:
            yield self.application
        finally:
            self.application.shutdown()

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Allow effects without the lock: nothing of the store is changed."""
        try:
            yield
        finally:
            self._effects.close()

    def preview(self, folder: str) -> Mapping[str, bytes]:
        """Return what would be rendered for a folder; keeps nothing. Raises RejectedCase."""
        rendered = {}
        cases = self.cases.preview(folder)
        for case in cases:
            files = self.jobs.rendered(case)
            prefix = f"{case.label}/" if len(cases) > 1 else ""
            rendered.update({f"{prefix}{name}": text for name, text in files.items()})
        return rendered

    def rendered(self, case_id: str) -> Mapping[str, bytes]:
        """Return what was rendered for a case's newest job, or would be for its first."""
        return self.jobs.rendered(self.cases.get_case(case_id))

    def write_out(self, files: Mapping[str, bytes], folder: Path) -> list[Path]:
        """Write files below a folder; raises ProcessingError where one is there already."""
        paths = [folder / name for name in sorted(files)]
        if taken := [path for path in paths if path.exists()]:
            raise ProcessingError(f"{taken[0]} exists already", fix="Name an empty or new folder with --out")
        for path, name in zip(paths, sorted(files), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
        return paths

    @cached_property
    def cases(self) -> CaseService:
        """Registered cases."""
        processing = self.config.processing
        reader = CaseReader(self.config.machines, fraction_gap_seconds=processing.fraction_gap_seconds)
        return CaseService(
            self._store,
            reader,
            self._clock,
            site=self.config.app.site,
            seed_base=self.config.moqui.random_seed_base,
        )

    @cached_property
    def jobs(self) -> JobService:
        """Planned and submitted jobs."""
        return JobService(
            self._store,
            self._renderer,
            self._resources,
            self._clock,
            workspace=self.config.paths.remote_workspace,
        )

    @cached_property
    def reports(self) -> ReportService:
        """What is told of cases."""
        return ReportService(self._store)

    @cached_property
    def log_reader(self) -> LogReader:
        """Logs of stages."""
        patience = 2 * self.config.ssh.command_timeout_seconds
        return LogReader(self._transfers, self.reports, self._effects, self._clock, patience=patience)

    @cached_property
    def application(self) -> Application:
        """The use cases that change something."""
        return Application(
            lifecycle=LifecycleManager(self.config.app.state_file),
            cases=self.cases,
            resources=self._resources,
            reports=self.reports,
            orchestrator=self._orchestrator,
            effects=self._effects,
            clock=self._clock,
            retry=self.config.processing.retry_policy.policy(),
            submit_seconds=self.config.processing.submit_timeout_seconds,
        )

    # What they are made of

    @cached_property
    def _store(self) -> SqliteStateManager:
        instance = load_or_create_instance(self.config.app.state_file)
        return SqliteStateManager(
            self.config.app.state_file, instance=instance.id, secret=instance.secret, clock=self._clock
        )

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self.config, build_stages())

    @cached_property
    def _resources(self) -> ResourceService:
        resources, results = self.config.resources, self.config.paths.local_results
        return ResourceService(
            self._store,
            gpu_count=resources.gpu_count,
            min_disk_space_gb=resources.min_disk_space_gb,
            free_bytes=lambda: shutil.disk_usage(_existing(results)).free,
        )

    @cached_property
    def _shell(self) -> Shell:
        if self.config.transport == "local":
            return LocalExecutor()
        policy = self.config.processing.retry_policy.policy()
        rng = random.Random()  # noqa: S311 - spreads waits, guards nothing
        return RemoteExecutor(SSHConnectionPool(self.config.ssh, policy, CircuitBreaker(), self._clock, rng))

    @cached_property
    def _effects(self) -> ThreadedEffects:
        timeout = self.config.ssh.command_timeout_seconds
        control = Control(
            self._shell,
            self._renderer,
            submit_timeout=self.config.processing.submit_timeout_seconds,
            command_timeout=timeout,
        )
        transfer = TransferExecutor(
            self._shell,
            workspace=self.config.paths.remote_workspace,
            instance=self._store.instance,
            results=self.config.paths.local_results,
            min_free_bytes=self.config.resources.min_disk_space_gb * _GIGABYTE,
            timeout=timeout,
        )
        threads = max(1, self.config.ssh.connection_pool_size - 1)
        return ThreadedEffects(self._shell, control, transfer, transfer_threads=threads)

    @cached_property
    def _transfers(self) -> TransferService:
        return TransferService(self._store, self.jobs, self._effects)

    @cached_property
    def _orchestrator(self) -> WorkflowOrchestrator:
        processing = self.config.processing
        desk = Desk(self._store, self.cases, self.jobs, self._heard)
        limits = Limits(
            settle=processing.t_settle_seconds,
            lag=processing.t_lag_seconds,
            debounce=processing.debounce_seconds,
        )
        watcher = Watcher(
            self._store, desk, self.jobs, Reconciler(limits), accounting=self.config.slurm.accounting
        )
        return WorkflowOrchestrator(
            store=self._store,
            jobs=self.jobs,
            transfers=self._transfers,
            scheduler=TaskScheduler(self._store, self._clock),
            watcher=watcher,
            desk=desk,
            effects=self._effects,
            clock=self._clock,
            ids=self._ids,
            rhythm=PollRhythm(least=processing.poll_min_seconds, most=processing.poll_max_seconds),
            retry=processing.retry_policy.policy(),
        )

    def _heard(self, case_id: str, text: str) -> None:
        if self._tell is not None:
            self._tell(self.cases.get_case(case_id).label, text)


def sample_case(folder: Path, *, beams: int, layers: int) -> Path:
    """Write a synthetic case; see `write_sample_case`."""
    return write_sample_case(folder, beams=beams, layers=layers)


def _default_config() -> Path:
    path = platformdirs.user_config_path("mqi-hpc") / "config.yaml"
    if not path.exists():
        raise ConfigurationError(
            "no configuration was named, and there is none at its usual place",
            where=str(path),
            fix="Name one with --config or MQI_HPC_CONFIG; config/example.yaml shows what belongs there",
        )
    return path


def _existing(path: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())
