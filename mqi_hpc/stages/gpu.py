"""The GPU that Slurm gave: whether there is one, what it is called, what it did."""

from __future__ import annotations

import shutil
import subprocess
from typing import List, Mapping

from mqi_hpc.records.result import Gpu
from mqi_hpc.stages.errors import StageError

BOUND = 10.0
"""Seconds that nvidia-smi has for an answer."""
NO_PROGRAM = "no nvidia-smi"
_NONE = ("", "NoDevFiles")


def find_gpu(environ: Mapping[str, str], required: bool) -> Gpu:
    """Return the GPU of this task; raises StageError where one is required and Slurm gave none."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    if required and visible in _NONE:
        raise StageError(
            f"Slurm gave this task no GPU (CUDA_VISIBLE_DEVICES is {visible!r}); "
            "see slurm.gres and the node's gres.conf"
        )
    if visible in _NONE:
        return Gpu(visible=visible)
    answer = _ask(visible, "uuid,name")
    if not isinstance(answer, list) or len(answer) != 2:
        return Gpu(visible=visible)
    return Gpu(visible=visible, uuid=answer[0], name=answer[1])


class Telemetry:
    """What the GPU was seen doing while the engine ran."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._seen: List[List[float]] = []
        self._given_up = False
        program = shutil.which("nvidia-smi")
        self._why = NO_PROGRAM if program is None else "the engine ended before the first look"

    def look(self) -> None:
        """Take one look; after one that failed, none: a driver that hangs is not to hold up the beam."""
        if self._gpu.visible in _NONE or self._given_up:
            return
        answer = _ask(self._gpu.visible, "utilization.gpu,memory.used,temperature.gpu,power.draw")
        try:
            if not isinstance(answer, list):
                raise ValueError(answer)
            utilization, memory, temperature, power = (float(value) for value in answer)
        except ValueError as error:
            self._why = str(error)
            self._given_up = True
            return
        self._seen.append([utilization, memory, temperature, power])

    def summary(self) -> str:
        """Return it in words; where nothing was seen, why."""
        if self._gpu.visible in _NONE:
            return "none: no GPU"
        if not self._seen:
            return f"none: {self._why}"
        columns = list(zip(*self._seen))
        return (
            f"{len(self._seen)} looks: utilization {sum(columns[0]) / len(self._seen):.0f} % in the mean, "
            f"at most {max(columns[1]):.0f} MiB, {max(columns[2]):.0f} C, {max(columns[3]):.0f} W"
        )


def _ask(visible: str, fields: str) -> object:
    """Return nvidia-smi's answer for the first visible device, a list of texts; else, why there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return NO_PROGRAM
    device = visible.split(",", maxsplit=1)[0]
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={device}"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        return f"nvidia-smi cannot be run: {error.strerror}"
    try:
        output, _ = process.communicate(timeout=BOUND)
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gave no answer within {BOUND:.0f} s"
    finally:
        # Not waited for: with a broken driver it may never end, not even killed.
        process.kill()
    lines = output.decode(errors="replace").splitlines()
    if process.returncode or len(lines) != 1:
        return f"nvidia-smi exited with {process.returncode} and {len(lines)} lines"
    return [value.strip() for value in lines[0].split(",")]
