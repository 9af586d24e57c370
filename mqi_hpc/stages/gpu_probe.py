"""Asks the driver what the GPUs do, as a program of its own: a driver that hangs holds up nobody else."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

NVML = "nvml"
SMI = "nvidia-smi"
NO_PYNVML = "no pynvml"
NO_SMI = "no nvidia-smi"

_FIELDS = "index,uuid,name,utilization.gpu,memory.used,temperature.gpu,power.draw"
_NUMBERS = ("utilization", "memory", "temperature", "power")
_LISTED = re.compile(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)|\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")
_OLD = "MIG-GPU-"
"""What instances were called before driver 470: MIG-GPU-<UUID>/<GPU instance>/<compute instance>."""
_MOST = 1 << 16
"""Bytes of nvidia-smi's answer that are read."""
_ABSURD = 1e7
"""No percentage, MiB, degree Celsius or watt of one GPU comes near it."""
_TEXT = 200

State = Dict[str, Any]
"""One device: uuid, name, utilization (%), memory (MiB), temperature (C), power (W); None: not told."""


class NoAnswer(Exception):  # noqa: N818 - an outcome, told in one line
    """This way of asking gave nothing; the message says why."""


def main(arguments: Sequence[str]) -> None:
    """Write what `probe` finds as one JSON line; arguments: the way of asking ("": any), the devices."""
    sys.stdout.write(json.dumps(probe(arguments[0], arguments[1:])) + "\n")


def probe(way: str, devices: Sequence[str]) -> Dict[str, Any]:
    """Return which way answered, what it said of each of `devices` in their order, and else why not.

    A device is what CUDA_VISIBLE_DEVICES may hold: an index, a GPU's UUID or a MIG instance's.
    """
    whys = []
    asks: Tuple[Tuple[str, Callable[[Sequence[str]], List[State]]], ...]
    asks = ((NVML, _by_nvml), (SMI, _by_smi))
    for name, ask in asks:
        if way in ("", name):
            try:
                return {"source": name, "devices": ask(devices), "why": ""}
            except NoAnswer as error:
                whys.append(str(error)[:_TEXT])
    return {"source": "", "devices": [], "why": " and ".join(reversed(whys))}


def _by_nvml(devices: Sequence[str]) -> List[State]:
    try:
        import pynvml
    except ImportError as error:
        raise NoAnswer(NO_PYNVML) from error
    except Exception as error:  # a site's own module may break in any way; nvidia-smi is asked next
        raise NoAnswer(f"pynvml cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        pynvml.nvmlInit()
        try:
            return [_nvml_device(pynvml, device) for device in devices]
        finally:
            pynvml.nvmlShutdown()
    except NoAnswer:
        raise
    except Exception as error:  # the driver's errors, and those of a pynvml of another age
        raise NoAnswer(f"nvml: {error or type(error).__name__}") from error


def _nvml_device(nvml: Any, device: str) -> State:
    if device.isdigit():
        handle = nvml.nvmlDeviceGetHandleByIndex(int(device))
    else:
        handle = nvml.nvmlDeviceGetHandleByUUID(device)
    # An instance has memory of its own; heat and power are the whole board's.
    mig = device.startswith("MIG-")
    board = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if mig else handle

    def told(ask: Callable[[], Any]) -> Optional[float]:
        try:
            value = ask()
        except (nvml.NVMLError, AttributeError):
            return None
        return _checked(float(value), "nvml")

    return {
        "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "utilization": told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory": told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20),
        "temperature": told(lambda: nvml.nvmlDeviceGetTemperature(board, nvml.NVML_TEMPERATURE_GPU)),
        "power": told(lambda: nvml.nvmlDeviceGetPowerUsage(board) / 1000),
    }


def _by_smi(devices: Sequence[str]) -> List[State]:
    program = shutil.which(SMI)
    if program is None:
        raise NoAnswer(NO_SMI)
    instances = any(device.startswith("MIG-") and not device.startswith(_OLD) for device in devices)
    listed = _boards(_run(program, "-L")) if instances else {}
    boards = [_board(listed, device) for device in devices]
    ids = ",".join(dict.fromkeys(board for board, _ in boards))
    text = _run(program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits", f"--id={ids}")
    rows = [[value.strip() for value in line.split(",")] for line in text.splitlines()]
    return [_smi_device(rows, *pair, device) for pair, device in zip(boards, devices)]


def _smi_device(rows: List[List[str]], board: str, profile: str, device: str) -> State:
    count = len(_FIELDS.split(","))
    for row in rows:
        if len(row) == count and (row[0] == board or row[1].startswith(board)):
            break
    else:
        said = next((" ".join(row) for row in rows if any(row)), "")
        raise NoAnswer(f"{SMI} said nothing of device {device} but {said!r:.100}")
    state: State = {"uuid": row[1][:_TEXT], "name": row[2][:_TEXT]}
    state.update({name: _smi_number(value) for name, value in zip(_NUMBERS, row[3:])})
    if profile:
        # What the board uses says nothing of the one instance on it that is ours.
        name = f"{row[2]} MIG {profile}"[:_TEXT]
        state.update({"uuid": device[:_TEXT], "name": name, "utilization": None, "memory": None})
    return state


def _boards(text: str) -> Dict[str, Tuple[str, str]]:
    """Return the GPU's UUID and the profile of each MIG instance by its UUID, out of `nvidia-smi -L`."""
    found: Dict[str, Tuple[str, str]] = {}
    board = ""
    for line in text.splitlines():
        match = _LISTED.match(line)
        if match and match[1]:
            board = match[1]
        elif match:
            found[match[3]] = board, match[2]
    return found


def _board(listed: Dict[str, Tuple[str, str]], device: str) -> Tuple[str, str]:
    if not device.startswith("MIG-"):
        return device, ""
    if device.startswith(_OLD):
        parent, _, instance = device[len("MIG-") :].partition("/")
        return parent, instance or "instance"
    if device not in listed:
        raise NoAnswer(f"{SMI} -L does not list {device}")
    return listed[device]


def _run(program: str, *arguments: str) -> str:
    """Return what nvidia-smi said. Not bounded in time: whoever started this program ends it."""
    try:
        process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise NoAnswer(f"{SMI} cannot be run: {error.strerror}") from error
    with process:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        output = process.stdout.read(_MOST)
        if len(output) == _MOST:
            process.kill()
            raise NoAnswer(f"{SMI} said more than {_MOST} bytes")
    text = output.decode(errors="replace")
    if process.returncode:
        said = " ".join(text.split())
        raise NoAnswer(f"{SMI} exited with {process.returncode}" + (f": {said:.120}" if said else ""))
    return text


def _smi_number(value: str) -> Optional[float]:
    """Return a value as a number, None where nvidia-smi has none: [N/A], [Unknown Error] and the like."""
    if value == "N/A" or (value.startswith("[") and value.endswith("]")):
        return None
    try:
        return _checked(float(value), SMI)
    except ValueError as error:
        raise NoAnswer(f"{SMI} said {value!r:.100} where a number belongs") from error


def _checked(number: float, source: str) -> float:
    if not (math.isfinite(number) and 0 <= number < _ABSURD):
        raise NoAnswer(f"{source} said {number} where a percentage, MiB, C or W belongs")
    return number


def _text(value: Any) -> str:
    """Return a text that older pynvml give as bytes."""
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value))[:_TEXT]
