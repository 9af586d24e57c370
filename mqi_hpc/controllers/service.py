"""The daemon as a process: one lock from start to end, settings read again when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

from mqi_hpc.controllers.container import Container, default_config
from mqi_hpc.controllers.daemon import End
from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader

_FIXED = ("app.state_file", "app.site", "paths.remote_workspace")
"""What a reload cannot change: cases, workspace and lock are bound to it."""
_PATIENCE = 2.0
"""Seconds for which the lock is waited for: a command may only have looked whether it is free."""


class Service:
    """Runs the daemon on a configuration file. `tell` hears what goes on.

    `watched`: a person reads it as it comes, so folders are named. Else it is kept in a log, and names none
    unless privacy.names asks for it.
    """

    def __init__(self, path: Path | None, tell: Callable[[str, str], None], *, watched: bool = False) -> None:
        self._path = path or default_config()
        self._tell = tell
        self._watched = watched
        self._stopping = False
        self._reload = False
        self._log = structlog.get_logger("mqi_hpc.service")

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; SIGHUP reads the settings again.

        Raises ConfigurationError, LockHeld, StateError.
        """
        config = ConfigLoader().load(self._path)
        container = Container(config, self._tell, names=self._names(config))
        lifecycle = container.lifecycle
        lifecycle.acquire_lock(_PATIENCE)
        try:
            lifecycle.register_shutdown_handler(self._stop)
            lifecycle.register_reload_handler(self._ask_reload)
            while self._run(container) is End.RELOAD:
                self._reload = False
                container = self._reloaded(container)
        finally:
            lifecycle.release_lock()

    def _run(self, container: Container) -> End:
        try:
            return container.daemon.run(stopping=lambda: self._stopping, reloading=lambda: self._reload)
        finally:
            container.parts.close()

    def _reloaded(self, before: Container) -> Container:
        """Return a daemon on the settings as the file has them now, or those before where it is bad."""
        try:
            config = ConfigLoader().load(self._path)
            changed = [name for name in _FIXED if _setting(before.config, name) != _setting(config, name)]
            if changed:
                raise ConfigurationError(
                    f"{', '.join(changed)} cannot change while it runs", fix="Restart the daemon"
                )
            container = self._after(before, config)
        except ConfigurationError as error:
            self._tell("mqi-hpc", f"the settings are kept as they were: {error}")
            self._log.warning("reload refused")
            return self._after(before, before.config)
        self._tell("mqi-hpc", "the settings were read again")
        self._log.info("reloaded")
        return container

    def _after(self, before: Container, config: AppConfig) -> Container:
        """Return a container whose daemon can run; raises ConfigurationError where it cannot be built."""
        container = Container(
            config,
            self._tell,
            lifecycle=before.lifecycle,
            notifier=before.notifier,
            names=self._names(config),
        )
        try:
            _ = container.daemon
        except BaseException:
            container.parts.close()
            raise
        return container

    def _names(self, config: AppConfig) -> bool:
        return self._watched or config.privacy.names

    def _stop(self) -> None:
        self._stopping = True

    def _ask_reload(self) -> None:
        self._reload = True


def _setting(config: AppConfig, name: str) -> object:
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)
