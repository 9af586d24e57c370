"""A fresh Slurm cluster in a container, for tests.

`Cluster` starts one from the image `./dev cluster image` names (or MQI_TEST_IMAGE), with its own keys
and a port of its own, so that runs beside each other and beside `./dev cluster` never meet.
`tests/conftest.py` imports the session fixture `cluster`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

# Ryuk comes from a registry, which a test machine may not reach: finalizers and `sweep` clean up instead.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

from docker.errors import DockerException, NotFound
from testcontainers.core.container import DockerContainer

import docker
from tests.support.cluster_config import cluster_config, merged, write_config

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "docker" / "slurm-cluster" / "engine"
LABEL = "org.mqi-hpc.test-owner"
READY_SECONDS = 60

T = TypeVar("T")
Completed = subprocess.CompletedProcess[str]


class ClusterError(RuntimeError):
    """The cluster did not do what a test asked of it; the message says which command and why."""


def wait_until(probe: Callable[[], T], seconds: float = 30.0, what: str = "condition") -> T:
    """Poll `probe` until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() >= end:
            raise ClusterError(f"{what}: not so after {seconds:g} s (last seen: {value!r})")
        time.sleep(0.1)


class Cluster:
    """One container with Slurm, accounting and sshd; `home` holds its keys and local data."""

    def __init__(self, image: str, home: Path, env: dict[str, str] | None = None) -> None:
        self.image = image
        self.home = home
        self.key_file = home / "id_ed25519"
        self.known_hosts = home / "known_hosts"
        self._env = env or {}
        self._container: DockerContainer | None = None
        self.container_id = ""
        self.port = 0

    def start(self) -> Cluster:
        """Start the container and wait until jobs can be submitted."""
        for folder in (self.home, *(self.home / name for name in ("state", "cases", "results"))):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", self.key_file], check=True
        )
        container = (
            DockerContainer(self.image)
            .with_kwargs(
                hostname="login",
                cap_add=["SYS_ADMIN"],  # slurmd from 24.11 on makes namespaces for --export=NONE
                labels={LABEL: f"{os.getpid()}:{_birth(os.getpid())}", "org.mqi-hpc.kind": "slurm-cluster"},
            )
            .with_volume_mapping(str(ENGINE), "/opt/mqi-engine", "ro")
            .with_env("MQI_AUTHORIZED_KEY", self.key_file.with_suffix(".pub").read_text().strip())
        )
        container.ports["22/tcp"] = ("127.0.0.1", None)  # with_exposed_ports would bind every address
        for name, value in self._env.items():
            container = container.with_env(name, value)
        self._container = container.start()
        atexit.register(self.stop)
        try:
            self.container_id = container.get_wrapped_container().id
            self._await_ready()
            self.port = int(self._inspect()["NetworkSettings"]["Ports"]["22/tcp"][0]["HostPort"])
            host_key = self.root("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout
            self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {host_key}")
            self.known_hosts.chmod(0o600)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Remove the container; harmless when it is gone already."""
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(NotFound):
                container.stop()
        atexit.unregister(self.stop)

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # Commands

    def ssh_args(self, *, key_file: Path | None = None, known_hosts: Path | None = None) -> list[str]:
        """The ssh command line up to the remote command, deaf to the developer's own ssh settings."""
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(known_hosts or self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "ConnectTimeout": "10",
        }
        flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
        key = str(key_file or self.key_file)
        return ["ssh", "-F", "none", "-p", str(self.port), "-i", key, *flags, "mqi@127.0.0.1"]

    def ssh(
        self, cmd: str, stdin: str | None = None, *, check: bool = False, timeout: float = 120
    ) -> Completed:
        """Run a shell line as the submitting user."""
        return self._run([*self.ssh_args(), cmd], stdin, check, timeout)

    def root(
        self, cmd: str, stdin: str | None = None, *, check: bool = True, timeout: float = 120
    ) -> Completed:
        """Run a shell line as root inside the container."""
        exec_ = [_client(), "exec", *(["-i"] if stdin is not None else []), self.container_id]
        return self._run([*exec_, "bash", "-c", cmd], stdin, check, timeout)

    def ctl(self, verb: str, *daemons: str) -> str:
        """Start, stop, restart, kill, pause or resume daemons; returns what ctl printed."""
        return self.root(shlex.join(["/opt/cluster/ctl", verb, *daemons])).stdout

    def fault(self, beam: int, kind: str) -> None:
        """Make the stand-in engine misbehave for a DICOM beam number; `none` ends it."""
        self.root(shlex.join(["/opt/cluster/fault", str(beam), kind]))

    def sbatch(self, script: str, *options: str) -> str:
        """Submit a script's text as the submitting user and return its id."""
        line = shlex.join(["sbatch", "--parsable", "--chdir=/home/mqi", *options])
        return self.ssh(line, f"#!/bin/bash\n{script}\n", check=True).stdout.strip()

    def sacct(self, job: str, fields: str) -> list[dict[str, str]]:
        """Accounting's rows of a job (allocations only), one mapping a row."""
        names = fields.split(",")
        out = self.ssh(f"sacct -n -P -X -D -j {shlex.quote(job)} -o {shlex.quote(fields)}", check=True).stdout
        return [dict(zip(names, line.split("|"), strict=True)) for line in out.splitlines()]

    def reset(self) -> None:
        """Give the next test a quiet cluster: daemons up, no jobs, no faults, nodes idle."""
        if paused := self._daemons("paused"):
            self.ctl("resume", *paused)
        self.ctl("start", "all")
        self.root("rm -f /var/lib/mqi-engine/faults/*; scancel --user=mqi; scancel --user=other")
        wait_until(lambda: not self.root("squeue -h").stdout, 60, "an empty queue")
        wait_until(self._idle, 60, "idle nodes")

    # Configuration

    @property
    def config_path(self) -> Path:
        """A configuration for this cluster, written on first use."""
        path = self.home / "config.yaml"
        return path if path.exists() else write_config(path, self.config(self.home))

    def config(self, home: Path, **overrides: Any) -> dict[str, Any]:
        """Settings with local data under `home`; `overrides` are laid over them section by section."""
        access = {"ssh": {"key_file": str(self.key_file), "known_hosts": str(self.known_hosts)}}
        return merged(merged(cluster_config(home, self.port), access), overrides)

    def write_config(self, home: Path, **overrides: Any) -> Path:
        """Write `home`/config.yaml with local data under `home`, for a test that wants its own."""
        for name in ("state", "cases", "results"):
            (home / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        return write_config(home / "config.yaml", self.config(home, **overrides))

    # Inside

    def _run(self, argv: list[str], stdin: str | None, check: bool, timeout: float) -> Completed:
        # Without text of its own, no input: ssh would else read the terminal's.
        source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, **source)
        if check and done.returncode != 0:
            raise ClusterError(
                f"exit {done.returncode} of {argv[-1]!r}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done

    def _inspect(self) -> dict[str, Any]:
        done = self._run([_client(), "inspect", self.container_id], None, True, 30)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found[0]

    def _await_ready(self) -> None:
        done = self.root(
            f"/opt/cluster/ctl wait-ready {READY_SECONDS}", check=False, timeout=READY_SECONDS + 30
        )
        if done.returncode != 0:
            logs = self._run([_client(), "logs", "--tail", "40", self.container_id], None, False, 30)
            raise ClusterError(
                f"{self.image} is not ready: {done.stderr.strip()}\n{logs.stdout}{logs.stderr}"
            )

    def _daemons(self, state: str) -> list[str]:
        rows = (line.split() for line in self.ctl("status").splitlines())
        return [name for name, now in rows if now == state]

    def _idle(self) -> bool:
        pairs = [line.split() for line in self.root("sinfo -h -N -o '%N %T' | sort -u").stdout.splitlines()]
        for node in (node for node, state in pairs if state.startswith(("down", "drain"))):
            # Refused when the node has come back meanwhile, which is what we want.
            self.root(f"scontrol update nodename={node} state=resume", check=False)
        return bool(pairs) and all(state == "idle" for _, state in pairs)


def _client() -> str:
    return os.environ.get("MQI_DOCKER", "docker")


def _birth(pid: int) -> str:
    """When a process started, in kernel ticks: a reused pid has another birth."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def sweep() -> None:
    """Remove containers whose starting process is gone: a killed test run cannot remove its own."""
    for container in docker.from_env().containers.list(all=True, filters={"label": LABEL}):
        pid, _, birth = container.labels[LABEL].partition(":")
        if _birth(int(pid)) != birth:
            with contextlib.suppress(DockerException):
                container.remove(force=True, v=True)


def cluster_image() -> str:
    """The image tests run on: MQI_TEST_IMAGE, or what `./dev` builds."""
    if named := os.environ.get("MQI_TEST_IMAGE"):
        return named
    try:
        docker.from_env().ping()
    except DockerException as error:
        if not os.environ.get("MQI_REQUIRE_CLUSTER"):
            pytest.skip(f"no Docker engine answers ({error}); ./dev test brings one")
    built = subprocess.run(
        [str(ROOT / "dev"), "cluster", "image"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        pytest.fail(f"./dev cluster image failed: {built.stderr.strip()[-2000:]}", pytrace=False)
    return built.stdout.split()[-1]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for the whole session; a test that breaks it calls `reset` when done."""
    image = cluster_image()
    sweep()
    with Cluster(image, tmp_path_factory.mktemp("cluster")) as started:
        yield started
