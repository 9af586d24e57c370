"""Publishes metrics and health; what fails is logged once, and again when it changes (IMonitorSink)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from mqi_hpc.core.monitoring import Health, Metric
from mqi_hpc.infrastructure.monitoring.health import write_health
from mqi_hpc.infrastructure.monitoring.metrics import write_metrics


class FileSink:
    """IMonitorSink on two files."""

    def __init__(self, metrics_file: Path, health_file: Path) -> None:
        self._metrics_file = metrics_file
        self._health_file = health_file
        self._said: dict[Path, str] = {}
        self._log = structlog.get_logger("mqi_hpc.monitoring")

    def metrics(self, metrics: Sequence[Metric]) -> None:
        """Replace the metrics file."""
        self._try(self._metrics_file, "metrics_file", lambda path: write_metrics(path, metrics))

    def health(self, health: Health) -> None:
        """Replace the health file."""
        self._try(self._health_file, "health_file", lambda path: write_health(path, health))

    def _try(self, path: Path, setting: str, write: Callable[[Path], None]) -> None:
        said = self._said.get(path, "")
        try:
            write(path)
        except OSError as error:
            self._said[path] = error.strerror or str(error)
            if self._said[path] != said:
                self._log.warning(
                    "not written", setting=f"monitoring.{setting}", file=str(path), why=self._said[path]
                )
        else:
            if said:
                self._log.warning("written again", setting=f"monitoring.{setting}", file=str(path))
            self._said.pop(path, None)
