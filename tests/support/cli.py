"""Runs the installed `mqi-hpc` as a user does, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).parent / "mqi-hpc"

Completed = subprocess.CompletedProcess[str]


def mqi(config: Path | None, *words: str, program: Path = PROGRAM, timeout: float = 300) -> Completed:
    """Run a command; its output is captured and its exit code returned, whatever it is."""
    options = [] if config is None else ["--config", str(config)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MQI_HPC_", "COV_"))}
    return subprocess.run(
        [str(program), *options, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=environment | {"COLUMNS": "200", "PYTHONWARNINGS": "default"},
        stdin=subprocess.DEVNULL,
        cwd=config.parent if config is not None else None,
    )


def shown(config: Path, case: str, program: Path = PROGRAM) -> dict[str, Any]:
    """What `show --json` says of a case."""
    done = mqi(config, "show", case, "--json", program=program)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
