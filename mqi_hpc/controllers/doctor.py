"""`doctor`: looks at everything a case needs, here and on the cluster, check by check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from mqi_hpc.controllers.parts import Parts
from mqi_hpc.core.diagnosis import REACHING, CheckStatus, Finding, failure, ok, skipped
from mqi_hpc.core.errors import ConfigurationError, MQIError
from mqi_hpc.infrastructure import doctor
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader
from mqi_hpc.infrastructure.executors import Shell

Hear = Callable[[Finding], None]
"""Hears each finding when it is there."""

_BEYOND = ("login shell", "slurmctld", "workspace", "nodes")


def usual_config() -> Path:
    """Return where the configuration lies where none is named."""
    return platformdirs.user_config_path("mqi-hpc") / "config.yaml"


@contextmanager
def shell_of(config: AppConfig) -> Iterator[Shell]:
    """Lend the way to the cluster, and close it."""
    shell = Parts(config).shell
    try:
        yield shell
    finally:
        shell.close()


def examine(named: Path | None, *, jobs: bool, hear: Hear) -> list[Finding]:
    """Return all findings on an installation, told to `hear` one by one. Never raises for what it finds.

    `named` is the configuration file, None: at its usual place. `jobs`: small jobs look at compute nodes.
    """
    findings: list[Finding] = []

    def told(more: Sequence[Finding]) -> None:
        for finding in more:
            findings.append(finding)
            hear(finding)

    path = named or usual_config()
    try:
        config = ConfigLoader().load(path)
        doctor.sbatch_options(config)
    except ConfigurationError as error:
        told([_misconfigured(path, error)])
        return findings
    told([ok("configuration", str(path.absolute()))])
    told(doctor.look_at_machine(config))
    if config.transport == "local":
        told([skipped(name, "transport is local") for name in (*REACHING, "sessions")])
    else:
        told(doctor.look_at_connection(config.ssh))
    if any(f.status is CheckStatus.FAILURE and f.check in REACHING for f in findings):
        told([skipped(check, "no connection") for check in _BEYOND])
        return findings
    with shell_of(config) as shell:
        seen = doctor.look_at_cluster(shell, config, _instance(config))
        told(seen)
        told(_nodes(shell, config, seen, jobs))
    return findings


def _nodes(shell: Shell, config: AppConfig, seen: Sequence[Finding], jobs: bool) -> list[Finding]:
    """Look at nodes, where jobs may be submitted and can be."""
    if not jobs:
        return [skipped("nodes", "--no-jobs")]
    wanted = ("login shell", "slurm commands", "slurmctld", "workspace", "workspace owner")
    for finding in seen:
        if finding.check in wanted and finding.status is CheckStatus.FAILURE:
            return [skipped("nodes", f"see {finding.check}")]
    return doctor.look_at_nodes(shell, config)


def _instance(config: AppConfig) -> str | None:
    try:
        return doctor.own_instance(config.app.state_file)
    except MQIError:
        return None  # told of as "store"


def _misconfigured(path: Path, error: ConfigurationError) -> Finding:
    found = f"{error.where}: {error.what}" if error.where else error.what
    if not path.exists():
        return failure("configuration", found, "`mqi-hpc init` writes one; or name one with --config")
    cure = error.fix or f"Correct {path}; config/example.yaml shows every setting"
    return failure("configuration", found, cure)
