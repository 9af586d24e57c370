"""Entry point of `mqi-hpc`: a user's mistake becomes one message and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import sys

from mqi_hpc.cli import app
from mqi_hpc.controllers.failpoint import arm
from mqi_hpc.core.errors import ConfigurationError, ConnectionError, LockHeld, MQIError

_FAILED, _USAGE, _UNREACHABLE, _LOCKED, _INTERRUPTED = 1, 2, 4, 5, 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 failed, 2 usage, 3 partial, 4 unreachable, 5 locked."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        arm(os.environ)
        app(args=arguments, prog_name="mqi-hpc")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except MQIError as error:
        code = _code(error)
        print(f"mqi-hpc: {error}", file=sys.stderr)  # noqa: T201 - the one place that tells a user's mistake
        if "--json" in (sys.argv[1:] if arguments is None else arguments):
            told = {"error": error.what, "where": error.where, "fix": error.fix, "exit_code": code}
            print(json.dumps(told))  # noqa: T201 - a program reads this
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _code(error: MQIError) -> int:
    if isinstance(error, ConfigurationError):
        return _USAGE
    if isinstance(error, ConnectionError):
        return _UNREACHABLE
    return _LOCKED if isinstance(error, LockHeld) else _FAILED
