"""Looks at the machine: real psutil, an NVML that misbehaves in every way, and questions that hang."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest
from structlog.testing import capture_logs

from mqi_hpc.core.monitoring import GPUReading, GPUStatus
from mqi_hpc.infrastructure.monitoring.host import HostProbe, disk_usage
from mqi_hpc.infrastructure.monitoring.latest import Latest
from mqi_hpc.infrastructure.monitoring.nvml import NvmlProbe
from tests.support.cluster import wait_until

LONG = 60.0


def error(code: int) -> Exception:
    return pynvml.NVMLError(code)


class Nvml:
    """The library, as it answers with `gpus`; `fails` names calls that raise, `hold` makes the count hang."""

    NVMLError = pynvml.NVMLError
    NVML_ERROR_GPU_IS_LOST = pynvml.NVML_ERROR_GPU_IS_LOST
    NVML_ERROR_UNINITIALIZED = pynvml.NVML_ERROR_UNINITIALIZED
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.fails: dict[str, int] = {}
        self.lost: set[int] = set()
        self.mig: int | None = None
        self.calls: list[str] = []
        self.hold: threading.Event | None = None
        self.held = threading.Event()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise error(self.fails[name])

    def nvmlInit(self) -> None:  # noqa: N802
        self._call("init")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._call("shutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._call("count")
        if self.hold is not None:
            self.held.set()
            assert self.hold.wait(LONG)
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._call("handle")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        self._call("uuid")
        return f"GPU-{handle}"

    def _of(self, handle: int, name: str, value: Any) -> Any:
        self._call(name)
        if handle in self.lost:
            raise error(pynvml.NVML_ERROR_GPU_IS_LOST)
        return value

    def nvmlDeviceGetName(self, handle: int) -> Any:  # noqa: N802
        return self._of(handle, "name", b"NVIDIA H100" if handle else "NVIDIA H100")

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return self._of(handle, "rates", SimpleNamespace(gpu=37, memory=5))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return self._of(handle, "memory", SimpleNamespace(used=1 << 30, total=80 << 30, free=79 << 30))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:  # noqa: N802
        return self._of(handle, "heat", 41)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:  # noqa: N802
        return self._of(handle, "power", 71_500)

    def nvmlDeviceGetMigMode(self, handle: int) -> Any:  # noqa: N802
        if self.mig is None:
            raise error(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self._of(handle, "mig", [self.mig, self.mig])

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:  # noqa: N802
        self._call("max")
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, n: int) -> int:  # noqa: N802
        if n >= 3:
            raise error(pynvml.NVML_ERROR_NOT_FOUND)
        return n


def whole(index: int, **changes: Any) -> GPUStatus:
    told: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "NVIDIA H100",
        "utilization": 37.0,
        "memory_used": 1 << 30,
        "memory_total": 80 << 30,
        "temperature": 41.0,
        "power": 71.5,
    }
    return GPUStatus(**{**told, **changes})


@pytest.fixture
def nvml() -> Iterator[Nvml]:
    library = Nvml()
    yield library
    if library.hold is not None:
        library.hold.set()


# NVML


def test_what_the_driver_says(nvml: Nvml) -> None:
    nvml.gpus = 2
    reading = NvmlProbe(nvml).latest(LONG)
    assert reading.gpus == (whole(0), whole(1))
    assert (reading.note, reading.age is not None) == ("", True)


def test_it_is_loaded_once_and_let_go_once(nvml: Nvml) -> None:
    probe = NvmlProbe(nvml)
    for _ in range(3):
        probe.latest(LONG)
    probe.close()
    probe.close()
    assert (nvml.calls.count("init"), nvml.calls.count("shutdown")) == (1, 1)


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("init", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "none: NVML Shared Library Not Found"),
        ("init", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "none: Driver Not Loaded"),
        ("init", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "none: RM has detected an NVML/RM version"),
        ("init", pynvml.NVML_ERROR_NO_PERMISSION, "none: Insufficient Permissions"),
        ("count", pynvml.NVML_ERROR_UNKNOWN, "none: Unknown Error"),
        ("uuid", pynvml.NVML_ERROR_UNINITIALIZED, "none: Uninitialized"),
        ("power", pynvml.NVML_ERROR_UNINITIALIZED, "none: Uninitialized"),
    ],
)
def test_a_driver_that_is_not_there_is_said_and_asked_again(
    nvml: Nvml, call: str, code: int, words: str
) -> None:
    nvml.fails = {call: code}
    probe = NvmlProbe(nvml)
    reading = probe.latest(LONG)
    assert reading.gpus == ()
    assert reading.note.startswith(words)
    nvml.fails = {}
    assert probe.latest(LONG).gpus == (whole(0),)


def test_no_gpu_at_all(nvml: Nvml) -> None:
    nvml.gpus = 0
    assert NvmlProbe(nvml).latest(LONG).note == "none: the driver knows of no GPU"


def test_a_driver_that_cannot_even_be_let_go(nvml: Nvml) -> None:
    nvml.fails = {"count": pynvml.NVML_ERROR_UNKNOWN, "shutdown": pynvml.NVML_ERROR_UNKNOWN}
    assert NvmlProbe(nvml).latest(LONG).note == "none: Unknown Error"


def test_a_gpu_that_fell_off_the_bus_hides_no_other(nvml: Nvml) -> None:
    nvml.gpus, nvml.lost = 3, {1}
    lost = GPUStatus(index=1, uuid="GPU-1", note="GPU is lost")
    assert NvmlProbe(nvml).latest(LONG).gpus == (whole(0), lost, whole(2))


def test_a_gpu_without_a_handle(nvml: Nvml) -> None:
    nvml.fails = {"handle": pynvml.NVML_ERROR_GPU_IS_LOST}
    assert NvmlProbe(nvml).latest(LONG).gpus == (GPUStatus(index=0, note="GPU is lost"),)


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("name", ["name"]),
        ("rates", ["utilization"]),
        ("memory", ["memory_used", "memory_total"]),
        ("heat", ["temperature"]),
        ("power", ["power"]),
    ],
)
def test_what_the_driver_does_not_say_is_none(nvml: Nvml, call: str, fields: list[str]) -> None:
    nvml.fails = {call: pynvml.NVML_ERROR_NOT_SUPPORTED}
    assert NvmlProbe(nvml).latest(LONG).gpus == (whole(0, **dict.fromkeys(fields)),)


def test_mig_mode_is_said(nvml: Nvml) -> None:
    nvml.mig = pynvml.NVML_DEVICE_MIG_ENABLE
    nvml.fails = {"rates": pynvml.NVML_ERROR_NOT_SUPPORTED}
    note = "MIG mode, 3 instances: their utilization is not told"
    assert NvmlProbe(nvml).latest(LONG).gpus == (whole(0, utilization=None, note=note),)
    nvml.mig, nvml.fails = pynvml.NVML_DEVICE_MIG_DISABLE, {}
    assert NvmlProbe(nvml).latest(LONG).gpus == (whole(0),)


def test_a_driver_that_hangs_stops_nobody(nvml: Nvml) -> None:
    now = 1000.0
    probe = NvmlProbe(nvml, monotonic=lambda: now)
    assert probe.latest(LONG).gpus == (whole(0),)
    nvml.hold = threading.Event()
    probe.latest()
    assert nvml.held.wait(LONG)
    now = 1090.0
    reading = probe.latest()
    assert (reading.gpus, reading.age) == ((whole(0),), 90.0)
    assert reading.note == "the driver has not answered for 90 s"
    # One question, however often it is asked for; and an end that does not wait for it.
    threads = threading.active_count()
    for _ in range(20):
        probe.latest()
    assert threading.active_count() <= threads
    probe.close()
    assert "shutdown" not in nvml.calls
    nvml.hold.set()
    wait_until(lambda: "shutdown" in nvml.calls, LONG, "the driver let go once it answered")
    assert nvml.calls.count("shutdown") == 1


def test_before_the_first_answer(nvml: Nvml) -> None:
    nvml.hold = threading.Event()
    now = 10.0
    probe = NvmlProbe(nvml, monotonic=lambda: now)
    assert probe.latest() == GPUReading(note="none: the driver has not answered yet")
    now = 70.0
    assert probe.latest() == GPUReading(note="none: the driver has not answered for 60 s")


def test_this_machine_is_answered_for_in_words() -> None:
    reading = NvmlProbe().latest(LONG)
    assert bool(reading.gpus) is not reading.note.startswith("none: ")


def test_the_program_ends_though_the_driver_hangs(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import threading
        from types import SimpleNamespace
        import pynvml
        from mqi_hpc.infrastructure.monitoring.nvml import NvmlProbe
        held = threading.Event()
        def hang():
            held.set()
            threading.Event().wait()
        probe = NvmlProbe(SimpleNamespace(NVMLError=pynvml.NVMLError, nvmlInit=hang))
        probe.latest()
        held.wait()
        probe.close()
        print("end")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "end\n"


# Latest


def test_the_last_answer_and_its_age() -> None:
    now, answers = 10.0, iter(["first", "second"])
    latest = Latest("x", lambda: next(answers), monotonic=lambda: now)
    assert latest.get(LONG).value == "first"
    now = 15.0
    answer = latest.get(LONG)
    assert (answer.value, answer.age, answer.waiting) == ("second", 0.0, None)


def test_an_answer_that_does_not_come() -> None:
    now, gate = 10.0, threading.Event()
    latest = Latest("x", lambda: gate.wait(LONG), monotonic=lambda: now)
    assert latest.get() == latest.get()
    now = 14.0
    assert (latest.get().value, latest.get().waiting) == (None, 4.0)
    gate.set()
    wait_until(lambda: latest.get().value, LONG, "the answer")


def test_a_question_that_fails_is_logged_and_asked_again() -> None:
    turns: list[int] = []

    def ask() -> str:
        turns.append(1)
        if len(turns) == 1:
            raise RuntimeError("no idea")
        return "an answer"

    latest = Latest("x", ask)
    with capture_logs() as logs:
        assert latest.get(LONG).value is None
    assert [(log["event"], log["look"]) for log in logs] == [("a look at this machine failed", "x")]
    assert latest.get(LONG).value == "an answer"


# The host


@pytest.fixture
def probe(nvml: Nvml) -> HostProbe:
    return HostProbe(gpus=NvmlProbe(nvml))


def test_this_machine(probe: HostProbe) -> None:
    sum(range(200_000))
    status = probe.host()
    assert status.cpu_percent is not None and 0.0 <= status.cpu_percent <= 100.0
    assert status.cpus == os.cpu_count()
    assert status.load is not None and len(status.load) == 3
    assert status.memory_total == psutil.virtual_memory().total
    assert status.memory_available is not None and 0 < status.memory_available <= status.memory_total
    assert status.process_rss is not None and status.process_rss > 1 << 20
    assert status.process_threads is not None and status.process_threads >= 1
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(Path(os.devnull).open())
        after = probe.host().process_fds
    assert status.process_fds is not None and after is not None
    # Other tests' threads may still close theirs.
    assert after >= status.process_fds + 20


@pytest.mark.parametrize("name", ["memory_info", "num_threads", "num_fds"])
def test_what_the_system_does_not_say_is_none(
    probe: HostProbe, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refused(*_: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, name, refused)
    status = probe.host()
    field = {"memory_info": "process_rss", "num_threads": "process_threads", "num_fds": "process_fds"}[name]
    assert getattr(status, field) is None
    assert status.memory_total is not None


def test_without_file_descriptors_there_is_less_to_say(
    probe: HostProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for name in ("virtual_memory", "cpu_percent", "cpu_count", "getloadavg"):
        monkeypatch.setattr(psutil, name, refused)
    status = probe.host()
    assert (status.memory_total, status.memory_available) == (None, None)
    assert (status.cpu_percent, status.cpus, status.load) == (None, None, None)
    assert status.process_threads is not None


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    usage = disk_usage(str(tmp_path / "not" / "yet"))
    assert usage.path == str(tmp_path / "not" / "yet")
    assert usage.total == psutil.disk_usage(str(tmp_path)).total
    assert usage.device == tmp_path.stat().st_dev
    assert 0.0 <= usage.free_percent <= 100.0


def test_a_disk_is_asked_in_the_background(probe: HostProbe, tmp_path: Path) -> None:
    path = str(tmp_path)
    reading = wait_until(lambda: (r := probe.disk(path)).usage is not None and r, LONG, "an answer")
    assert reading.usage is not None and reading.usage.total == psutil.disk_usage(path).total
    assert (reading.error, reading.age is not None) == ("", True)
    assert probe.disk_usage(path).total == reading.usage.total


def test_a_disk_that_cannot_be_looked_at(probe: HostProbe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "below")
    reading = wait_until(lambda: (r := probe.disk(path)).error and r, LONG, "an answer")
    assert (reading.usage, reading.error) == (None, "Not a directory")
    with pytest.raises(OSError, match="Not a directory"):
        probe.disk_usage(path)


def test_a_disk_that_hangs_stops_nobody(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    now, gate = 0.0, threading.Event()
    real: Callable[[str], Any] = psutil.disk_usage

    def slow(path: str) -> Any:
        assert path != "/mnt/dead" or gate.wait(LONG)
        return real("/")

    root = Path("/").stat()
    monkeypatch.setattr(psutil, "disk_usage", slow)
    monkeypatch.setattr(Path, "stat", lambda self: root)
    probe = HostProbe(gpus=NvmlProbe(nvml), monotonic=lambda: now)
    probe.disk("/mnt/dead")
    now = 30.0
    dead = probe.disk("/mnt/dead")
    assert (dead.usage, dead.error, dead.age, dead.waiting) == (None, "", None, 30.0)
    wait_until(lambda: probe.disk("/").usage, LONG, "the other disk")
    gate.set()
    wait_until(lambda: probe.disk("/mnt/dead").usage, LONG, "the disk that came back")


def test_gpus_by_the_probe(probe: HostProbe, nvml: Nvml) -> None:
    assert wait_until(lambda: probe.gpus().gpus, LONG, "an answer") == (whole(0),)
    probe.close()
    wait_until(lambda: "shutdown" in nvml.calls, LONG, "the driver let go")


def test_a_probe_finds_its_own_driver() -> None:
    probe = HostProbe()
    assert wait_until(lambda: (r := probe.gpus()).age is not None and r, LONG, "an answer")
    probe.close()
