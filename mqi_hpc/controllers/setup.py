"""`init`: the configuration, folders and identity that an installation begins with, or begins again with."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from mqi_hpc.controllers.doctor import shell_of, usual_config
from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from mqi_hpc.controllers.parts import SystemClock
from mqi_hpc.core.errors import ConfigurationError, MQIError, StateError
from mqi_hpc.infrastructure import doctor
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader
from mqi_hpc.infrastructure.config.writer import write_config
from mqi_hpc.infrastructure.state import Instance, load_or_create_instance, open_store, write_instance
from mqi_hpc.infrastructure.state.instance import instance_file

_FOLDER = 0o700
_OWNER_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a person asks of `init`; None: not said."""

    host: str | None = None
    port: int | None = None
    user: str | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    logdata: Path | None = None
    workspace: str | None = None
    results: Path | None = None
    state: Path | None = None
    site: str | None = None
    partition: str | None = None
    account: str | None = None

    def with_answers(self, answers: Mapping[str, str]) -> Wishes:
        """Return these wishes and the answers a person gave, by name."""
        logdata = answers.get("logdata")
        return replace(
            self,
            host=answers.get("host", self.host),
            workspace=answers.get("workspace", self.workspace),
            logdata=self.logdata if logdata is None else Path(logdata),
        )

    def chosen(self) -> dict[str, object]:
        """Return the settings they make, by dotted key."""
        settings = {
            "app.site": self.site,
            "app.state_file": _path(self.state),
            "paths.local_logdata": _path(self.logdata),
            "paths.remote_workspace": self.workspace,
            "paths.local_results": _path(self.results),
            "ssh.host": self.host,
            "ssh.port": self.port,
            "ssh.username": self.user,
            "ssh.key_file": _path(self.key),
            "ssh.known_hosts": _path(self.known_hosts),
            "slurm.partition": self.partition,
            "slurm.account": self.account,
        }
        return {key: value for key, value in settings.items() if value is not None}


NEEDED = {"host": "--host", "logdata": "--logdata", "workspace": "--workspace"}
"""What must be said where there is no configuration yet, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What `init` did: the file, whether it wrote it, where the old one is kept, the instance, and notes."""

    config: Path
    written: bool
    kept: Path | None
    instance: str
    identity_file: Path
    made: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def missing(named: Path | None, wishes: Wishes, *, force: bool) -> list[str]:
    """Return what `init` must still be told, as names of Wishes; none where a configuration is there."""
    if (named or usual_config()).exists() and not force:
        return []
    return [name for name in NEEDED if getattr(wishes, name) is None]


def begin(
    named: Path | None, wishes: Wishes, *, force: bool, adopt: bool = False, identity: Path | None = None
) -> Begun:
    """Write a configuration where there is none, make folders and identity; raises MQIError.

    With `adopt` the store was lost: an empty one is made for the identity beside it, or for that in the
    file `identity`; never for another's.
    """
    path = (named or usual_config()).absolute()
    if identity is not None and not adopt:
        raise ConfigurationError("--instance goes with --adopt", fix="Add --adopt")
    written, kept = _configured(path, wishes, force)
    config = ConfigLoader().load(path)
    made = _folders(config)
    instance, notes = _identified(config, identity, adopt=adopt)
    if not config.paths.local_logdata.is_dir():
        notes.append(f"{config.paths.local_logdata} (paths.local_logdata) is not there yet")
    return Begun(
        config=path,
        written=written,
        kept=kept,
        instance=instance.id,
        identity_file=instance_file(config.app.state_file),
        made=tuple(made),
        notes=tuple(notes),
    )


def _configured(path: Path, wishes: Wishes, force: bool) -> tuple[bool, Path | None]:
    """Write the configuration where that is wanted; return whether, and where the old one is kept."""
    chosen = wishes.chosen()
    if path.exists() and not force:
        if chosen:
            raise ConfigurationError(
                f"there is a configuration already; {', '.join(sorted(chosen))} would not be used",
                where=str(path),
                fix="Change it with an editor; --force writes a new one and keeps the old one beside it",
            )
        return False, None
    if lacking := missing(path, wishes, force=force):
        raise ConfigurationError(
            f"{', '.join(lacking)}: not said, and needed for a new configuration",
            where=str(path),
            fix=f"Say {', '.join(f'{NEEDED[name]} ...' for name in lacking)}",
        )
    # Said in full: a service may see other XDG_ variables than the person who writes this.
    state = _path(wishes.state) or str(platformdirs.user_state_path("mqi-hpc") / "mqi.sqlite")
    results = str(Path(state).parent / "results")
    return True, write_config(
        path, {"app.state_file": state, "paths.local_results": results, **chosen}, force=force
    )


def _folders(config: AppConfig) -> list[Path]:
    """Make the folders that are ours and not there yet; return them."""
    made = []
    for folder in (config.app.state_file.parent, config.paths.local_results):
        if folder.is_dir():
            continue
        try:
            folder.mkdir(mode=_FOLDER, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the folder cannot be made: {error.strerror}",
                where=str(folder),
                fix="Correct app.state_file or paths.local_results",
            ) from error
        made.append(folder)
    return made


def _identified(config: AppConfig, identity: Path | None, *, adopt: bool) -> tuple[Instance, list[str]]:
    """Return this installation's identity and what is to be told of it; its store is there afterwards."""
    state = config.app.state_file
    known = instance_file(state).exists()
    if known and state.exists() and not adopt:
        return load_or_create_instance(state), []
    lifecycle = LifecycleManager(state)
    lifecycle.acquire_lock()
    try:
        if adopt:
            instance, notes = _adopted(config, identity)
        elif known:
            raise StateError(
                "the identity of an installation is here, its store is not",
                where=str(state),
                fix="Bring the store back from a backup; or, where it is lost for good, begin an empty one"
                " for this identity: `mqi-hpc init --adopt`",
            )
        else:
            instance, notes = load_or_create_instance(state), []
        open_store(state, instance=instance.id, secret=instance.secret, clock=SystemClock()).close()
        return instance, notes
    finally:
        lifecycle.release_lock()


def _adopted(config: AppConfig, identity: Path | None) -> tuple[Instance, list[str]]:
    """Return the identity whose store was lost, written beside the store's place; never a foreign one's."""
    state = config.app.state_file
    if state.exists() and state.stat().st_size:
        raise StateError(
            "the store is there: there is nothing to adopt",
            where=str(state),
            fix="Where it is damaged, or another installation's, move it away first (and its -wal and -shm)",
        )
    if identity is None and not instance_file(state).exists():
        raise StateError(
            "neither a store nor its identity is here",
            where=str(instance_file(state)),
            fix="Name a backup of that file with --instance FILE. Without its secret no case is found again:"
            " then begin anew, with another paths.remote_workspace",
        )
    given = _read_identity(identity) if identity is not None else load_or_create_instance(state)
    notes = [_owned(config, given)]
    ends = ("-wal", "-shm", ".previous", ".files")
    for left in (state, *(state.with_name(f"{state.name}{end}") for end in ends)):
        if left.exists():
            kept = left.with_name(f"{left.name}.lost-{int(time.time())}")
            left.rename(kept)
            notes.append(f"{left.name} was left over and is kept as {kept.name}")
    instance = write_instance(state, given.id, given.secret)
    notes.append(
        "the store is empty. Submit the cases once more: each finds its folder on the cluster again, and goes"
        " on from what was finished there"
    )
    return instance, notes


def _owned(config: AppConfig, given: Instance) -> str:
    """Return what is to be said of the workspace's owner; raises StateError where that is somebody else."""
    workspace = config.paths.remote_workspace
    try:
        with shell_of(config) as shell:
            owner = doctor.read_owner(shell, workspace, timeout=_OWNER_SECONDS)
    except MQIError as error:
        return f"whose {workspace} is could not be seen ({error.what}): `mqi-hpc doctor` will tell"
    if owner is None:
        return f"{workspace} is nobody's yet"
    if owner != given.id:
        raise StateError(
            f"the workspace belongs to installation {owner[:60]!r}, and this identity is {given.id}:"
            " nothing was changed",
            where=f"{workspace}/.owner",
            fix=f"Name the .instance file of {owner[:60]} with --instance FILE, or give this installation a"
            " paths.remote_workspace of its own",
        )
    return f"{workspace} belongs to {given.id}, as it should"


def _read_identity(path: Path) -> Instance:
    try:
        told = json.loads(path.read_bytes())
        return Instance(str(told["id"]), bytes.fromhex(told["secret"]))
    except OSError as error:
        raise StateError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StateError(
            "is no instance file", where=str(path), fix="It lies beside a store and ends in .instance"
        ) from error


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().absolute())
