"""The stage programs' one entrance: stages.pyz <interpret|beams|convert> --job-dir DIR."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Callable, Dict, List, Optional

from mqi_hpc.records.layout import STAGES
from mqi_hpc.stages import beam, convert, interpret
from mqi_hpc.stages.errors import AlreadyDone, Interrupted, describe, foreseen
from mqi_hpc.stages.fence import Admission, admit, take_claim
from mqi_hpc.stages.identity import read_identity
from mqi_hpc.stages.jobs import Claim, JobFolder
from mqi_hpc.stages.signals import Signals
from mqi_hpc.stages.task import Task

RUNNERS: Dict[str, Callable[[Task], None]] = {
    "interpret": interpret.run,
    "beams": beam.run,
    "convert": convert.run,
}


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one stage; return its exit code (`mqi_hpc.stages.errors` lists them)."""
    parser = argparse.ArgumentParser(prog="stages.pyz", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--job-dir", required=True, metavar="DIR", help="the job's folder")
    options = parser.parse_args(arguments)
    os.umask(0o077)
    signals = Signals()
    host = socket.gethostname()
    try:
        identity = read_identity(os.environ, host)
        folder = JobFolder(Path(options.job_dir))
        admission = admit(folder, options.stage, identity, clock=time.monotonic, sleep=time.sleep)
        claim = Claim(
            array_id=identity.submission_id,
            slurm_id=identity.slurm_id,
            restart=identity.restart,
            host=host,
            process=os.getpid(),
            time=time.time(),
        )
        # Held back until the task can say that it exited.
        signals.install()
        take_claim(admission, claim)
    except AlreadyDone as done:
        _complain(options.stage, str(done))
        return 0
    except Exception as error:  # noqa: BLE001 - every failure becomes one line and an exit code
        return _failure(options.stage, error)[0]
    return _work(admission, Task(admission, claim, signals, time.time), signals)


def _work(admission: Admission, task: Task, signals: Signals) -> int:
    code, text = 0, ""
    try:
        try:
            task.begin()
            signals.allow()
            RUNNERS[admission.stage](task)
        finally:
            signals.close()
    except (Exception, Interrupted) as error:  # noqa: BLE001 - every failure becomes one line and an exit code
        code, text = _failure(_name(admission), error)
    try:
        task.exited(code, text)
    except OSError as error:
        # The record, where there is one, stands; the workstation waits for this line, and judges without.
        _complain(_name(admission), f"its last status line could not be written: {describe(error)[1]}")
    return code


def _name(admission: Admission) -> str:
    if admission.beam is None:
        return admission.stage
    return f"{admission.stage}: beam {admission.beam.number} (index {admission.index})"


def _failure(name: str, error: BaseException) -> tuple[int, str]:
    code, text = describe(error)
    if not foreseen(error):
        traceback.print_exception(type(error), error, error.__traceback__)
    _complain(name, text)
    return code, text


def _complain(name: str, text: str) -> None:
    sys.stderr.write(f"mqi-hpc {name}: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
