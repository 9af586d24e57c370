"""Looks at this machine and this process, by psutil (IHostProbe)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from mqi_hpc.core.monitoring import DiskReading, DiskUsage, GPUReading, HostStatus
from mqi_hpc.infrastructure.monitoring.latest import Latest
from mqi_hpc.infrastructure.monitoring.nvml import NvmlProbe

T = TypeVar("T")

_GONE = (psutil.Error, OSError)


class HostProbe:
    """IHostProbe. CPU use is that since the look before, by the thread that made this probe."""

    def __init__(
        self, *, gpus: NvmlProbe | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._gpus = NvmlProbe() if gpus is None else gpus
        self._monotonic = monotonic
        self._process = psutil.Process()
        self._disks: dict[str, Latest[DiskUsage | str]] = {}
        # The first answer of psutil is no measurement.
        psutil.cpu_percent(interval=None)

    def host(self) -> HostStatus:
        """Return CPU, load, memory and this process; None is what cannot be read, as without descriptors."""
        memory = _told(psutil.virtual_memory)
        return HostStatus(
            cpu_percent=_told(lambda: psutil.cpu_percent(interval=None)),
            cpus=_told(psutil.cpu_count),
            load=_told(psutil.getloadavg),
            memory_total=None if memory is None else memory.total,
            memory_available=None if memory is None else memory.available,
            process_rss=_told(lambda: int(self._process.memory_info().rss)),
            process_threads=_told(self._process.num_threads),
            process_fds=_told(self._process.num_fds),
        )

    def disk(self, path: str) -> DiskReading:
        """Return what was last heard of the disk of a path, and ask again; a hung mount holds nobody."""
        if path not in self._disks:
            self._disks[path] = Latest("disk", lambda: _asked(path), monotonic=self._monotonic)
        answer = self._disks[path].get()
        usage, error = (None, answer.value) if isinstance(answer.value, str) else (answer.value, "")
        return DiskReading(path=path, usage=usage, error=error, age=answer.age, waiting=answer.waiting)

    def disk_usage(self, path: str) -> DiskUsage:
        """Ask the file system of a path, or of the nearest folder above it that is there; raises OSError."""
        return disk_usage(path)

    def gpus(self) -> GPUReading:
        """Return what was last heard of the GPUs, and ask again."""
        return self._gpus.latest()

    def close(self) -> None:
        """Let go of the driver."""
        self._gpus.close()


def disk_usage(path: str) -> DiskUsage:
    """Ask the file system of a path, or of the nearest folder above it that is there; raises OSError."""
    for place in (Path(path), *Path(path).parents):
        with suppress(FileNotFoundError):
            found, device = psutil.disk_usage(str(place)), place.stat().st_dev
            return DiskUsage(path=path, total=found.total, used=found.used, free=found.free, device=device)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _asked(path: str) -> DiskUsage | str:
    try:
        return disk_usage(path)
    except OSError as error:
        return error.strerror or str(error)


def _told(ask: Callable[[], T]) -> T | None:
    """Return what the system says, None where it does not."""
    try:
        return ask()
    except _GONE:
        return None
