"""The GPU that Slurm gave: whether there is one, what it is called, what it was seen doing."""

from __future__ import annotations

import time
from typing import Callable, List, Mapping, NamedTuple, Optional, Sequence

from mqi_hpc.records.layout import EXIT_NO_GPU
from mqi_hpc.records.result import Gpu
from mqi_hpc.stages.driver import Answer, Probe, visible_devices
from mqi_hpc.stages.errors import StageError

FIRST_LINE = 60.0
"""Seconds from one status line with the GPU's values to the next, at least."""
GROWTH = 1.5
"""Each comes at this multiple of the running time of the one before: some 20 lines in two days."""


_BROKEN = ("gpu is lost", "fallen off the bus", "unable to determine the device handle", "requires reset")
"""What NVML and nvidia-smi say of a GPU that only an administrator brings back."""


def find_gpu(environ: Mapping[str, str], required: bool) -> Gpu:
    """Return the GPU of this task.

    Raises StageError (EXIT_NO_GPU) where one is required and Slurm gave none, or its driver calls it broken.
    A driver that says nothing of it, or nothing in time, is no reason: CUDA may know better.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible_devices(visible)
    if not devices:
        if required:
            raise StageError(
                f"Slurm gave this task no GPU (CUDA_VISIBLE_DEVICES is {visible!r}); "
                "see slurm.gres and the node's gres.conf",
                EXIT_NO_GPU,
            )
        return Gpu(visible=visible)
    probe = Probe(devices[:1], "", time.monotonic)
    try:
        answer = probe.wait()
    finally:
        probe.close()
    states = answer.states
    if required and not states and any(words in answer.why.lower() for words in _BROKEN):
        raise StageError(f"the driver says that GPU {devices[0]} does not work: {answer.why}", EXIT_NO_GPU)
    return Gpu(visible=visible, uuid=states[0].uuid, name=states[0].name) if states else Gpu(visible=visible)


class Look(NamedTuple):
    """What one look saw, None where the driver did not tell: %, MiB, C, W.

    Of several devices: utilization in the mean, the others at most.
    """

    utilization: Optional[float]
    memory: Optional[float]
    temperature: Optional[float]
    power: Optional[float]


class Telemetry:
    """Looks at the GPU without ever waiting for it; after a look that failed there is none."""

    def __init__(self, gpu: Gpu, clock: Callable[[], float] = time.monotonic) -> None:
        self._devices = visible_devices(gpu.visible)
        self._clock = clock
        self._begin = clock()
        self._next_line = FIRST_LINE
        self._probe: Optional[Probe] = None
        self._seen: List[Look] = []
        self._source = ""
        self._given_up = "" if self._devices else "no GPU"
        self._said = not self._devices

    def look(self) -> None:
        """Take in what the last look found, if it is back, and begin another. Does not wait."""
        self._take_in()
        if self._probe is None and not self._given_up:
            self._probe = Probe(self._devices, self._source, self._clock)

    def line(self) -> str:
        """Return what was seen last, or why nothing is, where it is time for a status line; else ''.

        Values come at growing intervals, the end of looking once.
        """
        self._take_in()
        elapsed = self._clock() - self._begin
        if self._said or elapsed < self._next_line or not (self._seen or self._given_up):
            return ""
        self._next_line = max(elapsed + FIRST_LINE, elapsed * GROWTH)
        if self._given_up:
            self._said = True
            return f"GPU telemetry {'given up' if self._seen else 'none'}: {self._given_up}"
        look = self._seen[-1]
        values = [_text(look.utilization, "%"), _text(look.memory, "MiB")]
        told = ", ".join(value for value in values if value)
        return f"GPU {told or 'utilization and memory not told'} ({self._source})"

    def summary(self) -> str:
        """Return it in words; where nothing was seen, why. Takes in a last look that is back."""
        self._take_in()
        if not self._seen:
            return f"none: {self._given_up or 'the engine ended before the first look was back'}"
        use, memory, heat, power = (_known(column) for column in zip(*self._seen))
        parts = []
        if use:
            parts.append(f"utilization {sum(use) / len(use):.0f} % in the mean, {max(use):.0f} % at most")
        most = [(memory, "MiB"), (heat, "C"), (power, "W")]
        tops = [f"{max(column):.0f} {unit}" for column, unit in most if column]
        if tops:
            parts.append(f"at most {', '.join(tops)}")
        several = f" at {len(self._devices)} GPUs" if len(self._devices) > 1 else ""
        end = f"; given up: {self._given_up}" if self._given_up else ""
        looks = "1 look" if len(self._seen) == 1 else f"{len(self._seen)} looks"
        return f"{looks}{several} by {self._source}: {', '.join(parts)}{end}"

    def __enter__(self) -> None:
        """Begin a time after which no look is under way."""

    def __exit__(self, *_: object) -> None:
        self._take_in()
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _take_in(self) -> None:
        if self._probe is None:
            return
        answer = self._probe.answer()
        if answer is None:
            return
        self._probe = None
        look = _look(answer)
        if look is None:
            self._given_up = answer.why or f"{answer.source} tells no value of this GPU"
        else:
            self._source = answer.source
            self._seen.append(look)


def _look(answer: Answer) -> Optional[Look]:
    """Return the look in an answer, None where it has no value at all."""
    columns = [_known(column) for column in zip(*(state.values for state in answer.states))]
    if not any(columns):
        return None
    use, *others = columns
    return Look(sum(use) / len(use) if use else None, *(max(other) if other else None for other in others))


def _known(values: Sequence[Optional[float]]) -> List[float]:
    return [value for value in values if value is not None]


def _text(value: Optional[float], unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"
