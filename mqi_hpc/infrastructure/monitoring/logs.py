"""Logs: JSON lines to a file or stderr, with the keys of the specification; cases by key, never by name."""

from __future__ import annotations

import logging
import os
from logging.handlers import WatchedFileHandler
from pathlib import Path

import structlog

from mqi_hpc.core.errors import ConfigurationError

_NAME = "mqi_hpc"


class _Line(logging.Formatter):
    """The rendered line alone: logging would add a traceback that is in it already."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


def configure_logging(log_file: Path | None) -> None:
    """Send every event as one JSON object a line to `log_file`; without one only warnings, to stderr.

    The file may be moved away meanwhile (logrotate): a new one is begun. Raises ConfigurationError where it
    cannot be written.
    """
    handler: logging.Handler = logging.StreamHandler()
    if log_file is not None:
        try:
            log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            handler = WatchedFileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"the log cannot be written: {error.strerror}", where=f"app.log_file {log_file}"
            ) from error
    handler.setFormatter(_Line())
    logger = logging.getLogger(_NAME)
    for former in list(logger.handlers):
        logger.removeHandler(former)
        former.close()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if log_file is None else logging.INFO)
    logger.propagate = False
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_logger_name,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
