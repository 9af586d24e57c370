"""Looks at this machine for `doctor`: settings, state, lock, daemon, folders, disks. Changes nothing."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mqi_hpc.core.diagnosis import Finding, failure, ok, skipped, warning
from mqi_hpc.core.errors import MQIError
from mqi_hpc.infrastructure.config import AppConfig, default_machines
from mqi_hpc.infrastructure.monitoring.health import read_health
from mqi_hpc.infrastructure.state import load_or_create_instance, open_store
from mqi_hpc.infrastructure.state.instance import instance_file

LOCAL_SECONDS = 15.0
_GIGABYTE = 1_000_000_000
_FEW = 500


class Clock:
    """The real time (IClock)."""

    def now(self) -> float:
        """Return UTC epoch seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds of a clock that never steps."""
        return time.monotonic()


def look_at_machine(config: AppConfig, *, seconds: float = LOCAL_SECONDS) -> list[Finding]:
    """Return the findings on this machine; a file system that hangs costs its own check only."""
    lock = Lock(config.app.state_file)
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("private key", lambda: _key(config)),
        ("machines", lambda: _machines(config)),
        ("case folders", lambda: _scan_root(config.paths.local_logdata)),
        ("state folder", lambda: _folder("state folder", config.app.state_file.parent, "app.state_file")),
        ("store", lambda: _store(config.app.state_file)),
        ("lock", lambda: _lock(lock)),
        ("daemon", lambda: _daemon(config, lock)),
        (
            "results folder",
            lambda: _folder("results folder", config.paths.local_results, "paths.local_results"),
        ),
        ("disk space here", lambda: _space(config)),
    ]
    return [bounded(name, look, seconds) for name, look in checks]


def bounded(check: str, look: Callable[[], Finding], seconds: float) -> Finding:
    """Return what `look` finds; that it hangs or fails is a finding too."""
    answers: queue.SimpleQueue[Finding] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(look())
        except MQIError as error:
            answers.put(failure(check, f"{error.where}: {error.what}".removeprefix(": "), error.fix))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            answers.put(
                failure(check, f"{where}{error.strerror or error}", "Check that path and its permissions")
            )
        except Exception as error:  # noqa: BLE001 - one check that breaks must not take the others with it
            answers.put(failure(check, f"the check itself broke: {error!r}", "Please report this"))

    # A thread that hangs in the kernel cannot be ended; it must not keep the program either.
    threading.Thread(target=run, name=f"doctor {check}", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        cure = "Does a file system hang? Try `ls` and `df` by hand"
        return failure(check, f"no answer within {seconds:.0f} s", cure)


def own_instance(state_file: Path) -> str | None:
    """Return the id beside the state file, None where there is none; it is not made. Raises StateError."""
    return load_or_create_instance(state_file).id if instance_file(state_file).exists() else None


class Lock:
    """The lock of a store, as seen from outside: asked for, never kept."""

    def __init__(self, state_file: Path) -> None:
        self.path = state_file.with_name(f"{state_file.name}.lock")
        self._holder = state_file.with_name(f"{state_file.name}.lock.holder")

    def held(self) -> bool:
        """Whether somebody has it. Raises OSError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared and at once given back: whoever wants it meanwhile would have to ask in this very moment.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holder(self) -> str:
        """Return who says that they have it, in words."""
        try:
            told = json.loads(self._holder.read_text(encoding="utf-8"))
            return f"process {int(told['pid'])}, {str(told['command'])[:60]}"
        except (OSError, ValueError, KeyError, TypeError):
            return "it did not say who it is"


def _key(config: AppConfig) -> Finding:
    key = config.ssh.key_file
    if config.transport == "local":
        return skipped("private key", "transport is local")
    if key is None:
        return ok("private key", "none named: ~/.ssh/config's, an agent's or the usual ones are offered")
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        return warning("private key", f"others may read {key} (mode {mode:03o})", f"chmod 600 {key}")
    return ok("private key", f"{key} (mode {mode:03o})")


def _machines(config: AppConfig) -> Finding:
    names = ", ".join(sorted(config.machines))
    if config.machines == default_machines():
        return warning(
            "machines",
            f"the log calibration of {names} is this program's own default",
            "Doses depend on it: have a physicist compare config/example.yaml's section machines with yours,"
            " and write it into the configuration",
        )
    return ok("machines", f"log calibration of {names}")


def _scan_root(root: Path) -> Finding:
    check, cure = "case folders", "Check paths.local_logdata, and that this user may read it"
    if not root.is_dir():
        return failure(check, f"{root} is not a folder{'' if root.exists() else ': it is not there'}", cure)
    found = 0
    with os.scandir(root) as entries:
        for entry in entries:
            found += entry.is_dir()
            if found >= _FEW:
                break
    if not os.access(root, os.R_OK | os.X_OK):
        return failure(check, f"{root} may not be entered", cure)
    return ok(check, f"{root} holds {found}{' or more' if found >= _FEW else ''} folders")


def _folder(check: str, path: Path, setting: str) -> Finding:
    """Judge a folder of ours: there or to be made, writable, and for this user alone."""
    there = existing(path)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = f"{path} may not be written" if there == path else f"{path} cannot be made in {there}"
        return failure(check, what, f"Correct {setting}, or give this user the right to write there")
    if there != path:
        return ok(check, f"{path} is not there yet; it is made when it is needed")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return warning(check, f"others may look into {path} (mode {mode:03o})", f"chmod 700 {path}")
    return ok(check, f"{path} (mode {mode:03o})")


def _store(state: Path) -> Finding:
    """Judge store and identity, which belong together."""
    check = "store"
    if not instance_file(state).exists():
        if state.exists():
            return failure(
                check,
                f"{state} is there, its identity {instance_file(state).name} is not",
                "Bring the .instance file back from a backup: its secret names the cases on the cluster",
            )
        return ok(check, "none yet; it is made with the first case, or by `mqi-hpc init`")
    own = load_or_create_instance(state)
    if not state.exists():
        return warning(
            check,
            f"the identity {own.id} is here, its store {state} is not",
            "Nothing to do where this installation is new. Was the store lost: bring it back from a backup,"
            " or begin an empty one with `mqi-hpc init --adopt`",
        )
    mode = state.stat().st_mode & 0o777
    if mode & 0o077:
        return warning(check, f"others may read {state} (mode {mode:03o})", f"chmod 600 {state}")
    if not os.access(state, os.R_OK | os.W_OK):
        return failure(check, f"{state} may not be written", "It must belong to the user that runs mqi-hpc")
    open_store(state, instance=own.id, secret=own.secret, clock=Clock()).close()
    return ok(check, f"{state} of instance {own.id}")


def _lock(lock: Lock) -> Finding:
    if lock.held():
        return ok("lock", f"held: {lock.holder()}")
    return ok("lock", "free")


def _daemon(config: AppConfig, lock: Lock) -> Finding:
    check = "daemon"
    path = config.monitoring.health_file or config.app.state_file.with_name("health.json")
    report, held = read_health(path, time.time()), lock.held()
    if report.status in ("missing", "stopped") and not held:
        return ok(check, "does not run (`mqi-hpc run` starts it)")
    if report.status == "missing":
        return ok(check, f"none has spoken in {path}; a command holds the lock ({lock.holder()})")
    told = "; ".join(finding.what for finding in report.findings)
    found = f"{report.status}: {report.why}{f' ({told})' if told else ''}"
    cure = report.cure or "; ".join(finding.cure for finding in report.findings) or "See its log"
    if report.good:
        return ok(check, found)
    if report.status == "failing" or (report.status == "stale" and held):
        return failure(check, found, cure)
    return warning(check, found, cure)


def _space(config: AppConfig) -> Finding:
    check, wanted = "disk space here", config.resources.min_disk_space_gb * _GIGABYTE
    places = {"results": config.paths.local_results, "state": config.app.state_file.parent}
    free = {name: shutil.disk_usage(existing(path)).free for name, path in places.items()}
    told = ", ".join(f"{size / _GIGABYTE:.1f} GB for {name}" for name, size in free.items())
    if free["results"] < wanted:
        return failure(
            check,
            f"{told}; resources.min_disk_space_gb asks for {wanted / _GIGABYTE:.1f} GB",
            "Make room on the disk of paths.local_results, or lower the setting",
        )
    return ok(check, f"{told} free")


def existing(path: Path) -> Path:
    """Return a path, or the nearest one above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())
