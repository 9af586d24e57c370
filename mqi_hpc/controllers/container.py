"""All wiring in one place: settings in, a program out."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import platformdirs

from mqi_hpc import __version__
from mqi_hpc.controllers.application import Application
from mqi_hpc.controllers.client import Client
from mqi_hpc.controllers.daemon import Daemon
from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from mqi_hpc.controllers.log_reader import LogReader
from mqi_hpc.controllers.parts import Parts
from mqi_hpc.controllers.told import without_names
from mqi_hpc.controllers.trial import Rehearsal, Trial
from mqi_hpc.core.errors import ConfigurationError, LockHeld, ProcessingError
from mqi_hpc.core.left_out import LeftOut, left_out
from mqi_hpc.core.models import Job, job_name
from mqi_hpc.core.polling import PollRhythm
from mqi_hpc.core.readings import Limits
from mqi_hpc.core.requests import Request, Verb
from mqi_hpc.core.resubmit import plan_resubmit
from mqi_hpc.core.retry_plan import outlook
from mqi_hpc.domain.audited import AuditedEffects
from mqi_hpc.domain.desk import Desk
from mqi_hpc.domain.orders import Orders, describe
from mqi_hpc.domain.polls import Polls
from mqi_hpc.domain.reconciler import Reconciler
from mqi_hpc.domain.request_desk import RequestDesk
from mqi_hpc.domain.retries import Retries
from mqi_hpc.domain.scans import Scans
from mqi_hpc.domain.system_monitor import MonitorLimits, SystemMonitor
from mqi_hpc.domain.task_scheduler import TaskScheduler
from mqi_hpc.domain.watcher import Watcher
from mqi_hpc.domain.workflow_orchestrator import WorkflowOrchestrator
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader
from mqi_hpc.infrastructure.doctor import try_submissions
from mqi_hpc.infrastructure.intake import add_fraction, write_sample_case
from mqi_hpc.infrastructure.monitoring.logs import configure_logging
from mqi_hpc.infrastructure.monitoring.notify import Notifier
from mqi_hpc.infrastructure.state.requests import new_request_id
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.history import read_history
from mqi_hpc.services.intake_service import IntakeService
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.report_service import ReportService
from mqi_hpc.services.resource_service import ResourceService
from mqi_hpc.services.retention_service import RetentionService
from mqi_hpc.services.transfer_service import TransferService

__all__ = ["AppConfig", "Container", "add_fraction", "default_config", "load_settings", "sample_case"]

sample_case = write_sample_case

Tell = Callable[[str, str], None]
"""Hears what goes on: (case label, text)."""

_SCAN_GRACE_SECONDS = 120.0


class Container:
    """Builds each part once, when it is first asked for.

    `lifecycle` is that of an earlier container whose lock goes on (a reload); `notifier` likewise. Without
    `names`, what is told names no folder: nobody reads it now, it is kept.
    """

    def __init__(
        self,
        config: AppConfig,
        tell: Tell | None,
        *,
        lifecycle: LifecycleManager | None = None,
        notifier: Notifier | None = None,
        names: bool = True,
    ) -> None:
        self.config = config
        self.parts = Parts(config)
        self.lifecycle = lifecycle or LifecycleManager(config.app.state_file)
        self.notifier = notifier or Notifier()
        self._tell = tell
        self._names = names
        configure_logging(config.app.log_file)

    @classmethod
    def open(cls, path: Path | None, tell: Tell | None) -> Container:
        """Return the container of a configuration file; ConfigurationError lists what is wrong with it."""
        return cls(load_settings(path), tell)

    # What the commands use

    @contextmanager
    def acting(self) -> Iterator[Application | Client]:
        """Hold the lock and act; where another process holds it, act through that one."""
        try:
            self.application.initialize()
        except LockHeld:
            try:
                yield self.client
            finally:
                self.close()
            return
        try:
            yield self.application
        finally:
            self.close()

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Allow effects without the lock: nothing that the lock guards is changed."""
        try:
            yield
        finally:
            self.parts.close()

    def close(self) -> None:
        """End what runs, and give the lock back."""
        try:
            self.parts.close()
        finally:
            self.lifecycle.release_lock()

    def request(
        self,
        verb: Verb,
        case_id: str,
        *,
        beams: tuple[int, ...] | None = None,
        convert_only: bool = False,
        reason: str = "",
        priority: int | None = None,
    ) -> Request:
        """Return an order of the person at this machine."""
        return Request(
            request_id=new_request_id(),
            verb=verb,
            case_id=case_id,
            who=_user(),
            beams=beams,
            convert_only=convert_only,
            reason=reason,
            priority=priority,
        )

    def planned(self, case_id: str, *, beams: tuple[int, ...] | None, convert_only: bool) -> str:
        """Return what a resubmit would submit; changes nothing. Raises ProcessingError as the order would."""
        with self.parts.store.transaction(write=False) as unit:
            history = read_history(unit, case_id)
        case = self.cases.get_case(case_id)
        coming = [f"{case.label}: by itself: {one.text}" for one in outlook(case, history) if one.at]
        plan = plan_resubmit(case, history, numbers=beams, convert_only=convert_only)
        now = f"{case.label}: {describe(case, plan, job_name(len(history.jobs) + 1))}"
        return "\n".join([*coming, f"{now} (asked for now)" if coming else now])

    def gpu_slots(self) -> tuple[int, int | None]:
        """Return the slots of our GPU budget that jobs hold, and all there are (None: no budget)."""
        with self.parts.store.transaction(write=False) as unit:
            return sum(unit.resources.holdings().values()), self.config.resources.gpu_count

    def left_out(self) -> tuple[LeftOut, ...]:
        """Return the nodes that new beams keep away from now."""
        with self.parts.store.transaction(write=False) as unit:
            now = self.parts.clock.now()
            tasks = unit.jobs.left_out(now)
        return left_out(tasks, self.config.processing.retries.most_left_out, now)

    def preview(self, folder: str) -> Mapping[str, bytes]:
        """Return what would be rendered for a folder; keeps nothing. Raises RejectedCase."""
        rendered = {}
        cases = self.cases.preview(folder)
        for case in cases:
            files = self.jobs.rendered(case)
            prefix = f"{case.label}/" if len(cases) > 1 else ""
            rendered.update({f"{prefix}{name}": text for name, text in files.items()})
        return rendered

    def rehearse(self, folder: str, deliveries: Sequence[str] | None) -> Trial:
        """Return what a submit of a folder would do; submits and keeps nothing. Raises as `Rehearsal.of`."""
        store, config = self.parts.store, self.config

        def jobs_of(case_id: str) -> Sequence[Job]:
            with store.transaction(write=False) as unit:
                return unit.jobs.of_case(case_id)

        rehearsal = Rehearsal(
            cases=self.cases,
            jobs=self.jobs,
            resources=self._resources,
            jobs_of=jobs_of,
            try_=lambda submissions, home, scripts: try_submissions(
                self.parts.shell, config, submissions, home, scripts
            ),
        )
        try:
            return rehearsal.of(folder, deliveries)
        finally:
            self.parts.shell.close()

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

    # Services

    @cached_property
    def cases(self) -> CaseService:
        """Registered cases."""
        return CaseService(
            self.parts.store,
            self.parts.reader,
            self.parts.clock,
            site=self.config.app.site,
            seed_base=self.config.moqui.random_seed_base,
        )

    @cached_property
    def jobs(self) -> JobService:
        """Planned and submitted jobs."""
        return JobService(
            self.parts.store,
            self.parts.renderer,
            self._resources,
            self.parts.clock,
            workspace=self.config.paths.remote_workspace,
            most_left_out=self.config.processing.retries.most_left_out,
        )

    @cached_property
    def reports(self) -> ReportService:
        """What is told of cases."""
        return ReportService(self.parts.store)

    @cached_property
    def retention(self) -> RetentionService:
        """What prune may remove."""
        return RetentionService(
            self.parts.store,
            self.parts.local_results,
            self.parts.clock,
            self.parts.retention_rules(),
            workspace=self.config.paths.remote_workspace,
        )

    @cached_property
    def log_reader(self) -> LogReader:
        """Logs of stages."""
        patience = 2 * self.config.ssh.command_timeout_seconds
        return LogReader(self._transfers, self.reports, self._effects, self.parts.clock, patience=patience)

    @cached_property
    def _resources(self) -> ResourceService:
        resources = self.config.resources
        return ResourceService(
            self.parts.store,
            gpu_count=resources.gpu_count,
            min_disk_space_gb=resources.min_disk_space_gb,
            free_bytes=self.parts.free_bytes,
        )

    @cached_property
    def _transfers(self) -> TransferService:
        return TransferService(self.parts.store, self.jobs, self._effects)

    @cached_property
    def _effects(self) -> AuditedEffects:
        return AuditedEffects(self.parts.store, self.parts.effects)

    # The program

    @cached_property
    def application(self) -> Application:
        """The use cases that change something."""
        return Application(
            lifecycle=self.lifecycle,
            cases=self.cases,
            resources=self._resources,
            reports=self.reports,
            orchestrator=self._orchestrator(scans=None),
            orders=self._orders,
            requests=RequestDesk(self.parts.mailbox, self._orders, self._lead),
            effects=self._effects,
            clock=self.parts.clock,
            retry=self.config.processing.retry_policy.policy(),
            submit_seconds=self.config.processing.submit_timeout_seconds,
        )

    @cached_property
    def client(self) -> Client:
        """The use cases through another process."""
        return Client(
            cases=self.cases,
            reports=self.reports,
            mailbox=self.parts.mailbox,
            new_id=new_request_id,
            sleep=time.sleep,
            nobody_leads=self._nobody_leads,
            take_over=self._take_over,
        )

    @cached_property
    def daemon(self) -> Daemon:
        """The daemon."""
        intake = IntakeService(self.parts.store, self.cases, self.parts.clock, site=self.config.app.site)
        scans = Scans(
            self.parts.store,
            intake,
            self._effects,
            self.parts.clock,
            interval=self.config.processing.scan_interval_seconds,
            stirred=self.parts.scanner.stirred,
            tell=self._heard,
        )
        orchestrator = self._orchestrator(scans=scans)
        return Daemon(
            store=self.parts.store,
            orchestrator=orchestrator,
            scans=scans,
            requests=RequestDesk(self.parts.mailbox, self._orders, orchestrator.take, stays=True),
            monitor=self._monitor,
            notifier=self.notifier,
            clock=self.parts.clock,
            gpu_slots=self.config.resources.gpu_count,
            connections=self.parts.open_connections,
        )

    @cached_property
    def _monitor(self) -> SystemMonitor:
        config = self.config
        limits = MonitorLimits(
            metrics_interval=config.monitoring.metrics_interval_seconds,
            health_interval=config.monitoring.health_check_interval_seconds,
            min_free=config.resources.min_disk_space_gb * 1e9,
            min_free_percent=config.retention.min_free_percent,
            look_limit=3 * config.processing.poll_max_seconds + 3 * config.ssh.command_timeout_seconds,
            scan_limit=3 * config.processing.scan_interval_seconds + _SCAN_GRACE_SECONDS,
        )
        places = {
            "state": str(config.app.state_file.parent),
            "results": str(config.paths.local_results),
        }
        return SystemMonitor(
            self.parts.probe,
            self.parts.sink,
            self.parts.clock,
            limits=limits,
            places=places,
            version=__version__,
        )

    @cached_property
    def _scheduler(self) -> TaskScheduler:
        most = self.config.resources.max_concurrent_jobs
        return TaskScheduler(self.parts.store, self.parts.clock, max_concurrent_jobs=most)

    @cached_property
    def _desk(self) -> Desk:
        return Desk(
            self.parts.store,
            self.cases,
            self.jobs,
            self._heard,
            self._scheduler.changed,
            clock=self.parts.clock,
            retries=self.parts.retry_table,
        )

    @cached_property
    def _orders(self) -> Orders:
        return Orders(self._desk, self.cases, self.jobs)

    def _orchestrator(self, *, scans: Scans | None) -> WorkflowOrchestrator:
        parts, processing, store = self.parts, self.config.processing, self.parts.store
        limits = Limits(
            settle=processing.t_settle_seconds,
            lag=processing.t_lag_seconds,
            debounce=processing.debounce_seconds,
        )
        watcher = Watcher(
            store,
            self._desk,
            self.jobs,
            Reconciler(limits),
            accounting=self.config.slurm.accounting,
            submit_seconds=processing.submit_timeout_seconds,
        )
        polls = Polls(
            watcher=watcher,
            desk=self._desk,
            effects=self._effects,
            clock=parts.clock,
            ids=parts.ids,
            rhythm=PollRhythm(least=processing.poll_min_seconds, most=processing.poll_max_seconds),
        )
        return WorkflowOrchestrator(
            store=store,
            jobs=self.jobs,
            transfers=self._transfers,
            scheduler=self._scheduler,
            polls=polls,
            desk=self._desk,
            effects=self._effects,
            clock=parts.clock,
            ids=parts.ids,
            slots_wait=processing.poll_min_seconds,
            retry=processing.retry_policy.policy(),
            retries=Retries(self._desk, self.jobs, parts.retry_table),
            scans=scans,
        )

    def _take_over(self) -> Application | None:
        try:
            self.application.initialize()
        except LockHeld:
            return None
        return self.application

    def _nobody_leads(self) -> bool:
        try:
            self.lifecycle.acquire_lock()
        except LockHeld:
            return False
        self.lifecycle.release_lock()
        return True

    def _lead(self, case_id: str) -> None:
        self.application.lead_too(case_id)

    def _heard(self, case_id: str | None, text: str) -> None:
        if self._tell is None:
            return
        if not self._names:
            self._tell(case_id or "mqi-hpc", without_names(text))
            return
        found = [] if case_id is None else self.cases.find(case_id)
        self._tell(found[0].label if found else case_id or "mqi-hpc", text)


def _user() -> str:
    """Return who asks: the login name, or the user's number where there is none (a container)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def load_settings(path: Path | None) -> AppConfig:
    """Return the settings in a file, or at the usual place; raises ConfigurationError."""
    return ConfigLoader().load(path or default_config())


def default_config() -> Path:
    """Return the configuration file at its usual place; raises ConfigurationError where there is none."""
    path = platformdirs.user_config_path("mqi-hpc") / "config.yaml"
    if not path.exists():
        raise ConfigurationError(
            "no configuration was named, and there is none at its usual place",
            where=str(path),
            fix="Name one with --config or MQI_HPC_CONFIG; `mqi-hpc init` writes one",
        )
    return path
