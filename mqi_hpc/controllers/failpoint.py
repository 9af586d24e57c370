"""Lets this process die at a step that the environment names, for tests of what a power cut leaves behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

from mqi_hpc.core import failpoints
from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.core.failpoints import Failpoint

VARIABLE = "MQI_HPC_FAILPOINT"


def arm(environ: Mapping[str, str], die: Callable[[], None] | None = None) -> None:
    """Have this process killed (SIGKILL) at the failpoint that VARIABLE names; nothing where it names none.

    Raises ConfigurationError for a name that is none of them.
    """
    wanted = environ.get(VARIABLE, "")
    if not wanted:
        failpoints.install(None)
        return
    try:
        point = Failpoint(wanted)
    except ValueError as error:
        raise ConfigurationError(
            f"{VARIABLE}={wanted!r} names no failpoint",
            fix=f"Unset it: it is for tests. They are: {', '.join(Failpoint)}",
        ) from error
    end = die or _kill

    def reached(at: Failpoint) -> None:
        if at is point:
            end()

    failpoints.install(reached)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
