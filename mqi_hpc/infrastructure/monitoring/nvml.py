"""The GPUs of this machine, by NVML: what the driver says, and in words where it says nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import pynvml

from mqi_hpc.core.monitoring import GPUReading, GPUStatus
from mqi_hpc.infrastructure.monitoring.latest import Answer, Latest

T = TypeVar("T")

_MILLIWATTS = 1000.0
_PATIENCE = 1.0


class NvmlProbe:
    """Asks NVML in a thread of its own. The library is loaded once, and again after a driver went away."""

    def __init__(self, library: Any = pynvml, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._nvml = library
        self._latest = Latest("nvml", self._ask, monotonic=monotonic)
        self._guard = threading.Lock()
        self._ready = False
        self._closed = False

    def latest(self, wait: float = 0.0) -> GPUReading:
        """Return what was last heard and ask again; with `wait`, give the answer so many seconds to come."""
        answer = self._latest.get(wait)
        overdue = _overdue(answer)
        if answer.value is None:
            return GPUReading(note=f"none: {overdue or 'the driver has not answered yet'}")
        note = answer.value.note or overdue
        return GPUReading(gpus=answer.value.gpus, note=note, age=answer.age)

    def close(self) -> None:
        """Let go of the driver; where it hangs, that is left to the thread that waits for it."""
        self._closed = True
        if self._guard.acquire(timeout=_PATIENCE):
            try:
                self._let_go()
            finally:
                self._guard.release()

    def _ask(self) -> GPUReading:
        with self._guard:
            try:
                return self._read()
            except self._nvml.NVMLError as error:
                # Driver reloaded, GPUs reset: what was initialized is worth nothing now.
                self._let_go()
                return GPUReading(note=f"none: {_words(error)}")
            finally:
                if self._closed:
                    self._let_go()

    def _read(self) -> GPUReading:
        if not self._ready:
            self._nvml.nvmlInit()
            self._ready = True
        count = self._nvml.nvmlDeviceGetCount()
        gpus = tuple(self._gpu(index) for index in range(count))
        return GPUReading(gpus=gpus, note="" if gpus else "none: the driver knows of no GPU")

    def _let_go(self) -> None:
        if self._ready:
            self._ready = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _gpu(self, index: int) -> GPUStatus:
        uuid = None
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
            return self._status(index, uuid, handle)
        except self._nvml.NVMLError as error:
            if error.value == self._nvml.NVML_ERROR_UNINITIALIZED:
                raise
            return GPUStatus(index=index, uuid=uuid, note=_words(error))

    def _status(self, index: int, uuid: str, handle: Any) -> GPUStatus:
        nvml = self._nvml
        name = self._told(nvml.nvmlDeviceGetName, handle)
        rates = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._told(nvml.nvmlDeviceGetMemoryInfo, handle)
        heat = self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        power = self._told(nvml.nvmlDeviceGetPowerUsage, handle)
        return GPUStatus(
            index=index,
            uuid=uuid,
            name=None if name is None else _text(name),
            utilization=None if rates is None else float(rates.gpu),
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            temperature=None if heat is None else float(heat),
            power=None if power is None else power / _MILLIWATTS,
            note=self._mig(handle),
        )

    def _mig(self, handle: Any) -> str:
        modes = self._told(self._nvml.nvmlDeviceGetMigMode, handle)
        if modes is None or modes[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            return ""
        most = self._told(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        parts = [self._told(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, n) for n in range(most)]
        return f"MIG mode, {sum(part is not None for part in parts)} instances: their utilization is not told"

    def _told(self, ask: Callable[..., T], *arguments: Any) -> T | None:
        """Return what the driver says, None where it does not; raises NVMLError for a GPU that is gone."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in (self._nvml.NVML_ERROR_GPU_IS_LOST, self._nvml.NVML_ERROR_UNINITIALIZED):
                raise
            return None


def _overdue(answer: Answer[GPUReading]) -> str:
    late = answer.waiting is not None and answer.waiting >= 1
    return f"the driver has not answered for {answer.waiting:.0f} s" if late else ""


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
