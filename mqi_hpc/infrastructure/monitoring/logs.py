"""Logs: JSON lines to a file or stderr, with the keys of the specification; cases by key, never by name."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import structlog

from mqi_hpc.core.errors import ConfigurationError


def configure_logging(log_file: Path | None) -> None:
    """Send every event as one JSON object a line; without a file only warnings go, to stderr."""
    if log_file is None:
        factory = structlog.PrintLoggerFactory(sys.stderr)
        level = logging.WARNING
    else:
        try:
            log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            log_file.touch(mode=0o600)
            stream = log_file.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ConfigurationError(
                f"the log cannot be written: {error.strerror}", where=f"app.log_file {log_file}"
            ) from error
        factory = structlog.WriteLoggerFactory(stream)  # type: ignore[assignment]
        level = logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
