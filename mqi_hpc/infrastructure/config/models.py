"""The settings: every key, its default and what it means. `config/example.yaml` shows them all."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, field_validator, model_validator

from mqi_hpc.core.retry import RetryPolicy
from mqi_hpc.infrastructure.config.physics import MachineConfig, MoquiConfig, default_machines
from mqi_hpc.infrastructure.config.retries import RetriesConfig
from mqi_hpc.infrastructure.config.slurm import SlurmConfig
from mqi_hpc.infrastructure.config.types import (
    Command,
    Count,
    HostName,
    LocalPath,
    OneLine,
    PositiveNumber,
    PositiveSeconds,
    RemotePath,
    Seconds,
    Section,
    SiteName,
    Strings,
)


def _default_state_file() -> Path:
    return platformdirs.user_state_path("mqi-hpc") / "mqi.sqlite"


class ApplicationConfig(Section):
    """Who this installation is and where it keeps its own files."""

    name: OneLine = Field(
        default="mqi-hpc",
        min_length=1,
        description="Who runs this: begins the default comment of Slurm jobs.",
    )
    version: OneLine = Field(
        default="2.0.0", description="Of this file, for your own records: the program does nothing with it."
    )
    environment: OneLine = Field(
        default="production",
        description="Stands beside the name in that comment, unless production or empty.",
    )
    state_file: LocalPath = Field(
        default_factory=_default_state_file,
        description="The case store; lock, instance id, secret and requests lie beside it.",
    )
    log_file: LocalPath | None = Field(default=None, description="Log file (JSON lines); without it, stderr.")
    site: SiteName = Field(default="default", description="Name of the cluster, part of every identity.")


class PathsConfig(Section):
    """Where cases come from and where work and results go."""

    local_logdata: LocalPath = Field(description="Folder scanned for cases; only ever read.")
    remote_workspace: RemotePath = Field(description="Folder on the cluster that this installation owns.")
    local_results: LocalPath = Field(
        description="Verified results; outside local_logdata. Default: results, beside state_file."
    )


class SSHConfig(Section):
    """How the cluster is reached."""

    host: HostName = Field(default="", description="Login node's name, or an alias of ssh.config_file.")
    port: int | None = Field(
        default=None, ge=1, le=65535, description="TCP port; default: ssh.config_file's, else 22."
    )
    username: OneLine | None = Field(
        default=None, description="Login name; default: ssh.config_file's, else the local user's."
    )
    key_file: LocalPath | None = Field(
        default=None, description="Private key; default: ssh.config_file's, or an agent's."
    )
    connection_pool_size: int = Field(
        default=5, ge=1, le=16, description="Most SSH connections open at once."
    )
    known_hosts: LocalPath = Field(
        default=Path("~/.ssh/known_hosts"), description="Host keys we trust; others are refused."
    )
    config_file: LocalPath = Field(
        default=Path("~/.ssh/config"), description="OpenSSH client configuration, honoured where it exists."
    )
    connect_timeout_seconds: PositiveSeconds = Field(default=15, description="Longest wait for a connection.")
    command_timeout_seconds: PositiveSeconds = Field(
        default=60, description="Longest time of one remote command."
    )

    def local_user(self) -> str:
        """The login name where neither this section nor ssh.config_file gives one."""
        return getpass.getuser()


class ResourcesConfig(Section):
    """How much may be used."""

    max_concurrent_jobs: Count = Field(default=10, description="Most cases in flight at once.")
    gpu_count: Count | None = Field(
        default=None, description="Most GPUs used at once, over all cases; default: no limit."
    )
    min_disk_space_gb: float = Field(
        default=100,
        ge=0,
        allow_inf_nan=False,
        description="Free space (GB) to keep, here and on the cluster.",
    )


class RetryConfig(Section):
    """Backoff of one failed operation."""

    max_attempts: Count = Field(default=3, description="Attempts in all.")
    base_delay: Seconds = Field(default=1.0, description="Seconds before the second attempt.")
    max_delay: Seconds = Field(default=60.0, description="Longest wait in seconds.")
    exponential_base: float = Field(
        default=2.0, ge=1, allow_inf_nan=False, description="Factor from one wait to the next."
    )

    def policy(self) -> RetryPolicy:
        """The kernel's value of these settings."""
        return RetryPolicy(self.max_attempts, self.base_delay, self.max_delay, self.exponential_base)


class ProcessingConfig(Section):
    """When things are looked at, and how long they may take. Times in seconds."""

    scan_interval_seconds: PositiveSeconds = Field(default=60, description="Between scans for new cases.")
    retry_policy: RetryConfig = Field(default_factory=RetryConfig, description="Backoff of one operation.")
    ready: Literal["marker", "quiet", "either"] = Field(
        default="either",
        description="A case is ready when _CASE_READY is there, when it is quiet, or either.",
    )
    quiet_seconds: Seconds = Field(default=300, description="Without change for this long: quiet.")
    ignore: Strings = Field(default=(), description="More names (patterns) that a scan passes over.")
    room_level: bool = Field(
        default=False, description="A folder for each treatment room lies between local_logdata and cases."
    )
    fraction_gap_seconds: PositiveSeconds = Field(
        default=3600, description="A longer gap opens a new fraction."
    )
    poll_min_seconds: PositiveSeconds = Field(
        default=10, description="Shortest time between polls of the cluster."
    )
    poll_max_seconds: PositiveSeconds = Field(
        default=180, description="Longest time between polls of the cluster."
    )
    t_settle_seconds: Seconds = Field(
        default=120, description="Wait for a record after Slurm says COMPLETED."
    )
    t_lag_seconds: Seconds = Field(default=600, description="Wait for accounting that says nothing.")
    debounce_seconds: Seconds = Field(default=60, description="Wait before a node failure is believed.")
    submit_timeout_seconds: PositiveSeconds = Field(
        default=300, description="Longest life of the submit script."
    )

    retries: RetriesConfig = Field(
        default_factory=RetriesConfig, description="What is done again by itself, by cause."
    )

    @model_validator(mode="after")
    def _ordered(self) -> ProcessingConfig:
        if self.poll_min_seconds > self.poll_max_seconds:
            raise ValueError("poll_min_seconds should not exceed poll_max_seconds")
        return self


class MonitoringConfig(Section):
    """How often the program looks at itself. Times in seconds."""

    metrics_interval_seconds: PositiveSeconds = Field(
        default=30, description="Between samples of the metrics."
    )
    health_check_interval_seconds: PositiveSeconds = Field(default=60, description="Between health checks.")
    metrics_file: LocalPath | None = Field(
        default=None, description="Prometheus text file; default: metrics.prom, beside state_file."
    )
    health_file: LocalPath | None = Field(
        default=None, description="What the daemon says of itself; default: health.json, beside state_file."
    )


class StagesConfig(Section):
    """What runs on the cluster."""

    python: OneLine = Field(
        default="python3", min_length=1, description="Python 3.9 or newer with numpy and pydicom."
    )
    engine: Command = Field(
        default=("tps_env",), description="The dose engine's command, as a list of words."
    )
    engine_name: OneLine = Field(default="moqui", description="The engine's name, for the records.")
    require_gpu: bool = Field(default=True, description="A beam without a GPU fails before it computes.")


class PrivacyConfig(Section):
    """What may be seen of patients outside the case store."""

    names: bool = Field(
        default=False,
        description="Allow case labels in comments of Slurm jobs, and folders and labels in the daemon's log;"
        " job names and remote paths never hold any.",
    )


class RetentionConfig(Section):
    """What `prune` may remove, in days after a case ended; 0 keeps it for ever."""

    remote_completed_days: float = Field(
        default=14, ge=0, allow_inf_nan=False, description="Remote folder of a delivered case."
    )
    remote_failed_days: float = Field(
        default=60, ge=0, allow_inf_nan=False, description="Remote folder of any other case."
    )
    local_results_days: float = Field(default=0, ge=0, allow_inf_nan=False, description="Delivered results.")
    min_free_percent: PositiveNumber = Field(
        default=5,
        lt=100,
        description="Below this share of free space here, the daemon's health asks for a prune.",
    )


class AppConfig(Section):
    """The whole configuration."""

    app: ApplicationConfig = Field(default_factory=ApplicationConfig, description="This installation.")
    paths: PathsConfig = Field(description="Folders.")
    ssh: SSHConfig = Field(default_factory=SSHConfig, description="The way to the cluster.")
    transport: Literal["ssh", "local"] = Field(
        default="ssh", description="local: this machine is itself a node that submits."
    )
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig, description="Limits.")
    processing: ProcessingConfig = Field(default_factory=ProcessingConfig, description="Times.")
    monitoring: MonitoringConfig = Field(default_factory=MonitoringConfig, description="Self-observation.")
    slurm: SlurmConfig = Field(default_factory=SlurmConfig, description="What Slurm is asked for.")
    stages: StagesConfig = Field(default_factory=StagesConfig, description="Programs on the cluster.")
    machines: dict[str, MachineConfig] = Field(
        default_factory=default_machines,
        description="Log calibration by machine name; a list of your own replaces the default one.",
    )
    moqui: MoquiConfig = Field(default_factory=MoquiConfig, description="The dose engine's parameters.")
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig, description="Patients' names.")
    retention: RetentionConfig = Field(default_factory=RetentionConfig, description="How long things stay.")

    @model_validator(mode="before")
    @classmethod
    def _results_beside_state(cls, raw: Any) -> Any:
        paths = raw.get("paths") if isinstance(raw, dict) else None
        if not isinstance(paths, dict) or "local_results" in paths:
            return raw
        app = raw.get("app")
        state = app.get("state_file") if isinstance(app, dict) else None
        state = state if isinstance(state, str | Path) else _default_state_file()
        return {**raw, "paths": {**paths, "local_results": Path(state).parent / "results"}}

    @field_validator("machines")
    @classmethod
    def _some_machine(cls, machines: dict[str, MachineConfig]) -> dict[str, MachineConfig]:
        if not machines:
            raise ValueError("should name at least one machine, or be left out")
        return machines
