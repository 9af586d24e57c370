"""The GPU of a task: found, named, watched; whatever the driver does, the beam is not held up."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.records.layout import EXIT_NO_GPU
from mqi_hpc.records.result import BeamRecord, Gpu
from mqi_hpc.stages import driver, engine, gpu_probe
from mqi_hpc.stages.beam import _Progress
from mqi_hpc.stages.driver import Answer, Probe, State, visible_devices
from mqi_hpc.stages.errors import Interrupted, StageError
from mqi_hpc.stages.gpu import Telemetry, find_gpu
from mqi_hpc.stages.signals import Signals
from tests.support.stage_job import BeamSpec, Here, StageJob, await_gone, process_kept

NAMED = "0, GPU-7, NVIDIA RTX A5000"
NO_PYNVML = "raise ImportError('No module named pynvml')"

NVML = """
import os
NVML_TEMPERATURE_GPU = 0
class NVMLError(Exception): pass
class Use:
    gpu = 40
class Memory:
    used = 512 * 2**20
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetHandleByIndex(index): return f"GPU-{index}"
def nvmlDeviceGetHandleByUUID(uuid):
    if "?" in uuid: raise NVMLError("Invalid Argument")
    return uuid
def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle): return "board of " + handle
def nvmlDeviceGetUUID(handle): return handle
def nvmlDeviceGetName(handle): return b"NVIDIA A100"
def nvmlDeviceGetUtilizationRates(handle):
    if handle.startswith("MIG-"): raise NVMLError("Not Supported")
    return Use
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetTemperature(handle, sensor):
    if handle.startswith("MIG-"): raise NVMLError("Not Supported")
    return 61
def nvmlDeviceGetPowerUsage(handle):
    if handle.startswith("MIG-"): raise NVMLError("Not Supported")
    return 151400
"""


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A node's driver programs: an nvidia-smi of a shell body, a pynvml of a module's text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "lib").mkdir()
        self.pynvml(NO_PYNVML)

    def smi(self, body: str) -> None:
        path = self.folder / "bin/nvidia-smi"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def pynvml(self, text: str) -> None:
        (self.folder / "lib/pynvml.py").write_text(text)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/lib")
    # Only tests of the bound are to come near it, however slow the machine.
    monkeypatch.setattr(driver, "BOUND", 300.0)
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does to the driver, no descriptor and no child of ours stays behind."""
    before, had = descriptors(), children()
    yield
    assert descriptors() <= before
    assert children() <= had


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def children() -> set[str]:
    """The numbers of this process's children, of those too that have ended and nobody waited for."""
    ours = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                ours.add(stat.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ours


def ask(*devices: str, source: str = "") -> Answer:
    return Probe(devices or ("0",), source, time.monotonic).wait()


def looked(telemetry: Telemetry) -> Telemetry:
    """Look, and await what it finds."""
    telemetry.look()
    if telemetry._probe is not None:
        telemetry._probe.wait()
    return telemetry


# --- which devices


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("", []),
        ("NoDevFiles", []),
        ("-1", []),
        ("0", ["0"]),
        ("3,1", ["3", "1"]),
        (" 0 , 1 ", ["0", "1"]),
        ("0,-1,1", ["0"]),
        ("0,,1", ["0"]),
        ("GPU-7,MIG-8", ["GPU-7", "MIG-8"]),
        ("MIG-GPU-7/1/0", ["MIG-GPU-7/1/0"]),
    ],
)
def test_what_cuda_may_see_is_read_as_cuda_reads_it(visible: str, devices: list[str]) -> None:
    assert visible_devices(visible) == devices


@pytest.mark.parametrize("visible", [None, "", "NoDevFiles", "-1"])
def test_no_gpu_is_an_error_where_one_is_required(node: Node, visible: str | None) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(StageError, match="gave this task no GPU") as failed:
        find_gpu(environ, required=True)
    # The code by which the workstation knows that another node may have one.
    assert failed.value.exit_code == EXIT_NO_GPU
    assert find_gpu(environ, required=False) == Gpu(visible=visible or "")


@pytest.mark.parametrize(
    "said",
    [
        "Unable to determine the device handle for GPU 0000:02:00.0: Unknown Error",
        "Unable to determine the device handle for GPU0: GPU is lost.  Reboot the system to recover this GPU",
    ],
)
def test_a_gpu_that_its_driver_calls_broken_is_none(node: Node, said: str) -> None:
    node.smi(f"echo '{said}'; exit 15")
    with pytest.raises(StageError, match="the driver says that GPU 0 does not work") as failed:
        find_gpu({"CUDA_VISIBLE_DEVICES": "0"}, required=True)
    assert failed.value.exit_code == EXIT_NO_GPU
    assert find_gpu({"CUDA_VISIBLE_DEVICES": "0"}, required=False) == Gpu(visible="0")


def test_a_gpu_that_nvml_has_lost_is_none(node: Node) -> None:
    node.pynvml(
        "class NVMLError(Exception): pass\n"
        "def nvmlInit(): pass\n"
        "def nvmlShutdown(): pass\n"
        "def nvmlDeviceGetHandleByIndex(index): raise NVMLError('GPU is lost')\n"
    )
    with pytest.raises(StageError, match="GPU is lost"):
        find_gpu({"CUDA_VISIBLE_DEVICES": "0"}, required=True)


def test_the_driver_names_the_first_of_the_gpus_that_slurm_gave(node: Node) -> None:
    node.smi(f"""[ "$3" = --id=GPU-7 ] && echo "{NAMED}, 1, 2, 3, 4" """)
    found = find_gpu({"CUDA_VISIBLE_DEVICES": "GPU-7,GPU-8"}, required=True)
    assert found == Gpu(visible="GPU-7,GPU-8", uuid="GPU-7", name="NVIDIA RTX A5000")


@pytest.mark.parametrize(
    "body", ["exit 9", "echo a; echo b", "echo alone", "echo 'No devices were found'", "kill -9 $$", ""]
)
def test_a_driver_that_says_nothing_useful_leaves_the_gpu_unnamed(node: Node, body: str) -> None:
    node.smi(body)
    assert find_gpu({"CUDA_VISIBLE_DEVICES": "0"}, required=True) == Gpu(visible="0")


def test_a_driver_that_hangs_leaves_the_gpu_unnamed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "BOUND", 0.2)
    node.smi("sleep 600")
    assert find_gpu({"CUDA_VISIBLE_DEVICES": "0"}, required=True) == Gpu(visible="0")


# --- one question


def test_nvml_is_asked_before_nvidia_smi(node: Node) -> None:
    node.pynvml(NVML)
    node.smi("exit 1")
    assert ask("0", "GPU-7") == Answer(
        "nvml",
        (
            State("GPU-0", "NVIDIA A100", (40.0, 512.0, 61.0, 151.4)),
            State("GPU-7", "NVIDIA A100", (40.0, 512.0, 61.0, 151.4)),
        ),
    )


def test_an_instance_has_its_own_memory_and_its_boards_heat_by_nvml(node: Node) -> None:
    node.pynvml(NVML)
    assert ask("MIG-5").states == (State("MIG-5", "NVIDIA A100", (None, 512.0, 61.0, 151.4)),)


@pytest.mark.parametrize(
    "broken",
    [
        NO_PYNVML,
        "1 / 0",
        "syntax error",
        NVML.replace("def nvmlInit(): pass", "def nvmlInit(): raise NVMLError('Library Not Found')"),
        NVML.replace("def nvmlShutdown(): pass", ""),
        NVML.replace("gpu = 40", "gpu = float('nan')"),
        NVML.replace("gpu = 40", "gpu = 'many'"),
        NVML.replace("used = 512", "used = -1"),
    ],
)
def test_where_nvml_fails_nvidia_smi_is_asked(node: Node, broken: str) -> None:
    node.pynvml(broken)
    node.smi(f'echo "{NAMED}, 1, 2, 3, 4"')
    assert ask() == Answer("nvidia-smi", (State("GPU-7", "NVIDIA RTX A5000", (1.0, 2.0, 3.0, 4.0)),))


def test_why_neither_answered_is_said_of_both(node: Node) -> None:
    assert ask() == Answer(why="no nvidia-smi and no pynvml")
    node.pynvml(NVML)
    assert ask("GPU-?").why == "no nvidia-smi and nvml: Invalid Argument"
    assert ask("GPU-?", source="nvml").why == "nvml: Invalid Argument"
    assert ask(source="nvidia-smi").why == "no nvidia-smi"
    node.pynvml("raise OSError('x' * 100000)")
    assert len(ask().why) < 600


def test_a_function_that_this_pynvml_has_not_costs_its_own_value_alone(node: Node) -> None:
    node.pynvml(NVML.replace("def nvmlDeviceGetPowerUsage", "def nvmlOther"))
    assert ask().states[0].values == (40.0, 512.0, 61.0, None)


@pytest.mark.parametrize(
    "word", ["[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "[GPU requires reset]"]
)
def test_a_value_that_nvidia_smi_has_not_is_no_failure(node: Node, word: str) -> None:
    node.smi(f"echo '{NAMED}, {word}, 5, 6, {word}'")
    assert ask().states[0].values == (None, 5.0, 6.0, None)


def test_several_devices_are_told_apart_whatever_the_order(node: Node) -> None:
    node.smi(
        """[ "$3" = --id=1,0 ] || exit 3
echo '0, GPU-a, A, 1, 1, 1, 1'
echo '1, GPU-b, B, 2, 2, 2, 2'"""
    )
    assert [state.uuid for state in ask("1", "0").states] == ["GPU-b", "GPU-a"]


LISTING = """[ "$1" = -L ] && cat <<'END' && exit
GPU 0: NVIDIA A100 (UUID: GPU-a)
  MIG 1g.5gb      Device  0: (UUID: MIG-1)
  MIG 3g.20gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA A100 (UUID: GPU-b)
  MIG 7g.40gb     Device  0: (UUID: MIG-3)
END
"""


def test_an_instance_is_known_by_its_board_to_nvidia_smi(node: Node) -> None:
    node.smi(
        LISTING
        + """[ "$3" = --id=GPU-b,GPU-a ] || exit 3
echo '0, GPU-a, NVIDIA A100, [N/A], 30000, 50, 90'
echo '1, GPU-b, NVIDIA A100, [N/A], 40000, 60, 99.5'"""
    )
    assert ask("MIG-3", "MIG-1", "MIG-2").states == (
        State("MIG-3", "NVIDIA A100 MIG 7g.40gb", (None, None, 60.0, 99.5)),
        State("MIG-1", "NVIDIA A100 MIG 1g.5gb", (None, None, 50.0, 90.0)),
        State("MIG-2", "NVIDIA A100 MIG 3g.20gb", (None, None, 50.0, 90.0)),
    )
    assert ask("MIG-9").why == "nvidia-smi -L does not list MIG-9 and no pynvml"


def test_an_instance_named_as_old_drivers_do_names_its_board(node: Node) -> None:
    node.smi("""[ "$3" = --id=GPU-a ] && echo '0, GPU-a, NVIDIA A100, [N/A], 30000, 50, 90'""")
    (state,) = ask("MIG-GPU-a/1/0").states
    assert state == State("MIG-GPU-a/1/0", "NVIDIA A100 MIG 1/0", (None, None, 50.0, 90.0))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("exit 9", "nvidia-smi exited with 9"),
        ("echo no driver; exit 9", "nvidia-smi exited with 9: no driver"),
        ("echo 'No devices were found'", "said nothing of device 0 but 'No devices were found'"),
        ("", "said nothing of device 0 but ''"),
        ("echo '1, GPU-7, A, 1, 2, 3, 4'", "said nothing of device 0 but '1 GPU-7"),
        (f"echo '{NAMED}, 1, 2, 3'", "said nothing of device 0"),
        (f"echo '{NAMED}, 1, 2, 3, many'", "said 'many' where a number belongs"),
        (f"echo '{NAMED}, nan, 2, 3, 4'", "said nan where"),
        (f"echo '{NAMED}, 1e300, 2, 3, 4'", "said 1e+300 where"),
        (f"echo '{NAMED}, -1, 2, 3, 4'", "said -1.0 where"),
        ("head -c 100000 /dev/zero", "said more than 65536 bytes"),
        ("exec yes", "said more than 65536 bytes"),
        ("head -c 999 /dev/urandom | tr -d ,", "said nothing of device 0"),
    ],
)
def test_rubbish_from_nvidia_smi_is_told_in_words(node: Node, body: str, why: str) -> None:
    node.smi(body)
    answer = ask(source="nvidia-smi")
    assert why in answer.why
    assert (answer.source, answer.states) == ("", ())


def test_an_nvidia_smi_that_is_no_program_is_told(node: Node) -> None:
    node.smi("")
    (node.folder / "bin/nvidia-smi").write_text("not a program")
    assert ask().why == "nvidia-smi cannot be run: Exec format error and no pynvml"


@pytest.mark.parametrize(
    "heard", [b"{}\n", b"no json\n", b"[]\n", b'{"source":1,"devices":[],"why":""}\n', b"\xff\n"]
)
def test_an_answer_that_is_none_is_told(heard: bytes) -> None:
    answer = driver._read(heard)
    assert "what the driver was heard to say" in answer.why
    assert not answer.states


def test_no_process_to_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert ask().why == "no process to ask the driver with: No such file or directory"
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert ask().why == "the program that asks the driver ended without a word"


def test_it_is_asked_in_the_zip_application_too(node: Node, tmp_path: Path) -> None:
    from mqi_hpc.infrastructure.slurm.archive import build_stages

    node.smi(f'echo "{NAMED}, 1, 2, 3, 4"')
    archive = tmp_path / "stages.pyz"
    archive.write_bytes(build_stages())
    # A module of the same name in the job's folder is not taken for ours.
    (tmp_path / "mqi_hpc.py").write_text("raise SystemExit(3)")
    code = (
        "import sys; sys.path[0] = 'stages.pyz'; from mqi_hpc.stages.gpu import find_gpu; "
        "print(find_gpu({'CUDA_VISIBLE_DEVICES': '0'}, True).uuid)"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("GPU-7\n", "")


def test_the_program_that_asks_writes_one_line(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.smi(f'echo "{NAMED}, 1, 2, 3, 4"')
    gpu_probe.main(["nvidia-smi", "0"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out)["source"] == "nvidia-smi"


# What the driver may print: its own words, in any order, and rubbish.
ROWS = st.lists(
    st.lists(
        st.sampled_from(["0", "1", "GPU-7", "A100", "[N/A]", "50", "1e5", "-3", "nan", "x", "", "\udcff"]),
        max_size=8,
    ).map(", ".join)
    | st.text(max_size=40),
    max_size=4,
).map("\n".join)
LISTS = st.lists(
    st.sampled_from(
        [
            "GPU 0: A (UUID: GPU-a)",
            "  MIG 1g.5gb  Device  0: (UUID: MIG-1)",
            "GPU x",
            "  MIG (UUID: MIG-1)",
            "",
        ]
    ),
    max_size=4,
).map("\n".join)


@given(
    ROWS, LISTS, st.lists(st.sampled_from(["0", "GPU-7", "MIG-1", "MIG-GPU-7/1/0"]), min_size=1, max_size=3)
)
def test_whatever_nvidia_smi_says_is_an_answer_or_a_reason(
    rows: str, listed: str, devices: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.which", lambda name: "/nvidia-smi")
        patch.setattr(gpu_probe, "_run", lambda program, *words: listed if words == ("-L",) else rows)
        said = json.dumps(gpu_probe.probe("nvidia-smi", devices)) + "\n"
    answer = driver._read(said.encode())
    if answer.states:
        assert len(answer.states) == len(devices)
        assert all(0 <= value < 1e7 for state in answer.states for value in state.values if value is not None)
    else:
        assert answer.why
    assert answer.why.isprintable()


@given(st.binary(max_size=60))
def test_whatever_is_heard_is_an_answer_or_a_reason(heard: bytes) -> None:
    answer = driver._read(heard)
    assert bool(answer.why) or answer.states or answer == Answer()
    assert answer.why.isprintable()


# --- looks


def test_looks_are_summed_up(node: Node) -> None:
    node.smi(f"echo '{NAMED}, 50, 1000, 60, 200.5'")
    telemetry = Telemetry(Gpu(visible="0"))
    assert telemetry.summary() == "none: the engine ended before the first look was back"
    looked(telemetry)
    node.smi(f"echo '{NAMED}, 100, 900, 70, 100'")
    looked(telemetry)
    assert telemetry.summary() == (
        "2 looks by nvidia-smi: utilization 75 % in the mean, 100 % at most, at most 1000 MiB, 70 C, 200 W"
    )


def test_several_gpus_are_one_look(node: Node) -> None:
    node.smi("echo '0, GPU-a, A, 20, 1, [N/A], 4'; echo '1, GPU-b, B, 40, 2, [N/A], 3'")
    assert looked(Telemetry(Gpu(visible="0,1"))).summary() == (
        "1 look at 2 GPUs by nvidia-smi: utilization 30 % in the mean, 30 % at most, at most 2 MiB, 4 W"
    )


def test_values_that_are_never_told_are_left_out(node: Node) -> None:
    node.smi(f"echo '{NAMED}, [N/A], [N/A], 60, [N/A]'")
    assert looked(Telemetry(Gpu(visible="0"))).summary() == "1 look by nvidia-smi: at most 60 C"
    node.smi(f"echo '{NAMED}, 7, [N/A], [N/A], [N/A]'")
    assert looked(Telemetry(Gpu(visible="0"))).summary() == (
        "1 look by nvidia-smi: utilization 7 % in the mean, 7 % at most"
    )
    node.smi(f"echo '{NAMED}, [N/A], [N/A], [N/A], [N/A]'")
    assert looked(Telemetry(Gpu(visible="0"))).summary() == "none: nvidia-smi tells no value of this GPU"


def test_without_a_gpu_there_is_nothing_to_look_at(node: Node, clock: Clock) -> None:
    node.smi("exit 1")
    telemetry = looked(Telemetry(Gpu(visible=""), clock))
    clock.now += 1e6
    assert (telemetry.summary(), telemetry.line()) == ("none: no GPU", "")
    telemetry.__exit__()


def test_after_a_look_that_failed_there_is_none(node: Node) -> None:
    telemetry = looked(Telemetry(Gpu(visible="0")))
    node.smi(f"echo '{NAMED}, 50, 1000, 60, 200'")
    assert looked(telemetry).summary() == "none: no nvidia-smi and no pynvml"


def test_what_was_seen_before_it_failed_is_kept(node: Node) -> None:
    node.pynvml(NVML)
    telemetry = looked(Telemetry(Gpu(visible="0")))
    node.pynvml(NVML.replace("def nvmlInit(): pass", "def nvmlInit(): raise NVMLError('GPU is lost')"))
    # What nvidia-smi sees is not mixed in with what NVML saw.
    node.smi(f"echo '{NAMED}, 50, 1000, 60, 200'")
    assert looked(telemetry).summary() == (
        "1 look by nvml: utilization 40 % in the mean, 40 % at most, at most 512 MiB, 61 C, 151 W; "
        "given up: nvml: GPU is lost"
    )


# --- a driver that hangs


@pytest.mark.parametrize("way", ["nvml", "nvidia-smi"])
def test_a_driver_that_hangs_is_never_waited_for(
    node: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    monkeypatch.setattr(driver, "BOUND", 10.0)
    pid = tmp_path / "pid"
    if way == "nvml":
        hang = f"open({str(pid)!r}, 'w').write(str(os.getpid()) + '\\n'); import time; time.sleep(600)"
        node.pynvml(NVML.replace("def nvmlInit(): pass", f"def nvmlInit(): {hang}"))
    else:
        node.smi(f"trap '' TERM HUP INT; sleep 600 & echo $! > {pid}; wait")
    telemetry = Telemetry(Gpu(visible="0"), clock)
    telemetry.look()
    while not (pid.exists() and pid.read_text().endswith("\n")):
        telemetry.look()
    clock.now += 9
    telemetry.look()
    assert telemetry.line() == ""
    assert telemetry.summary() == "none: the engine ended before the first look was back"
    clock.now += 1
    telemetry.look()
    assert telemetry.summary() == "none: the driver gave no answer within 10 s"
    await_gone(int(pid.read_text()))
    clock.now += 50
    assert telemetry.line() == "GPU telemetry none: the driver gave no answer within 10 s"


def test_a_driver_that_is_slow_is_not_asked_twice_at_once(node: Node, clock: Clock, tmp_path: Path) -> None:
    count, go = tmp_path / "count", tmp_path / "go"
    node.smi(
        f"echo x >> {count}; while [ ! -e {go} ]; do sleep 0.01; done; echo '{NAMED}, 50, 1000, 60, 200'"
    )
    telemetry = Telemetry(Gpu(visible="0"), clock)
    for _ in range(5):
        telemetry.look()
        clock.now += 1
    while not count.exists():
        telemetry.look()
    assert telemetry.summary().startswith("none: ")
    go.touch()
    probe = telemetry._probe
    assert probe is not None
    probe.wait()
    assert telemetry.summary().startswith("1 look by nvidia-smi")
    assert count.read_text() == "x\n"


def test_a_look_under_way_ends_with_the_beam(node: Node, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    node.smi(f"echo $$ > {pid}; exec sleep 600")
    telemetry = Telemetry(Gpu(visible="0"))
    telemetry.look()
    while not (pid.exists() and pid.read_text().endswith("\n")):
        telemetry.look()
    telemetry.__exit__()
    telemetry.__exit__()
    await_gone(int(pid.read_text()))


def test_what_nvidia_smi_leaves_running_goes_with_it(node: Node, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    node.smi(f"sleep 600 >/dev/null & echo $! > {pid}; echo '{NAMED}, 50, 1000, 60, 200'")
    assert looked(Telemetry(Gpu(visible="0"))).summary().startswith("1 look")
    await_gone(int(pid.read_text()))


def test_a_process_that_cannot_be_killed_is_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    node.smi("sleep 600")
    probe = Probe(["0"], "nvidia-smi", time.monotonic)
    process = probe._process
    assert process is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda group, number: killed.append(group))
        patch.setattr(driver, "REAP", 0.01)
        probe.close()
    assert killed == [process.pid]
    assert process.returncode is None
    os.killpg(process.pid, 9)
    process.wait()


# --- status lines


def test_lines_come_once_a_minute_and_then_ever_more_seldom(node: Node, clock: Clock) -> None:
    node.smi(f"echo '{NAMED}, 87, 4012, 60, 200'")
    telemetry = Telemetry(Gpu(visible="0"), clock)
    looked(telemetry)
    begin, times = clock.now, []
    while clock.now - begin < 2 * 86400:
        clock.now += 10
        if line := telemetry.line():
            assert line == "GPU 87 %, 4012 MiB (nvidia-smi)"
            times.append(clock.now - begin)
    assert times[:3] == [60, 120, 180]
    assert len(times) <= 20
    assert all(after - before >= 60 for before, after in itertools.pairwise(times))


def test_no_line_before_anything_was_seen(node: Node, clock: Clock) -> None:
    telemetry = Telemetry(Gpu(visible="0"), clock)
    clock.now += 100
    assert telemetry.line() == ""
    telemetry.__exit__()


def test_why_there_is_nothing_is_said_once(node: Node, clock: Clock) -> None:
    telemetry = looked(Telemetry(Gpu(visible="0"), clock))
    assert telemetry.line() == ""
    clock.now += 60
    assert telemetry.line() == "GPU telemetry none: no nvidia-smi and no pynvml"
    clock.now += 1e6
    assert telemetry.line() == ""


def test_that_it_was_given_up_is_said_once(node: Node, clock: Clock) -> None:
    node.smi(f"echo '{NAMED}, [N/A], [N/A], 60, 200'")
    telemetry = looked(Telemetry(Gpu(visible="0"), clock))
    clock.now += 60
    assert telemetry.line() == "GPU utilization and memory not told (nvidia-smi)"
    node.smi("exit 1")
    looked(telemetry)
    clock.now += 60
    assert telemetry.line() == "GPU telemetry given up: nvidia-smi exited with 1"
    clock.now += 1e6
    assert telemetry.line() == ""


def test_a_beams_progress_tells_both_batch_and_gpu(node: Node, clock: Clock, tmp_path: Path) -> None:
    node.smi(f"echo '{NAMED}, 87, 4012, 60, 200'")
    log, said = tmp_path / "log", list[str]()
    log.write_text("starting\n")
    telemetry = looked(Telemetry(Gpu(visible="0"), clock))
    progress = _Progress(SimpleNamespace(progress=said.append), log, telemetry)
    clock.now += 60
    progress.tick()
    log.write_text("(3 of 8 batches)\n")
    progress.tick()
    clock.now += 60
    progress.tick()
    telemetry.__exit__()
    assert said == [
        "the engine runs; GPU 87 %, 4012 MiB (nvidia-smi)",
        "the engine runs: batch 3 of 8",
        "the engine runs: batch 3 of 8; GPU 87 %, 4012 MiB (nvidia-smi)",
    ]


# --- a whole beam


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    with process_kept():
        yield Here(monkeypatch, capsys)


@pytest.fixture
def job(tmp_path: Path, here: Here, node: Node, monkeypatch: pytest.MonkeyPatch) -> StageJob:
    (tmp_path / "case").mkdir()
    made = StageJob(tmp_path / "case", [BeamSpec(2, "1G180:TX")])
    assert here(made, "interpret") == (0, "")
    monkeypatch.setattr(engine, "TICK", 0.02)
    return made


def until_asked(job: StageJob, asked: Path, times: int) -> None:
    """Let the engine compute until the driver was asked so often."""
    job.behave(f"while pathlib.Path({str(asked)!r}).read_text().count('x') < {times}: time.sleep(0.01)")


def test_a_record_holds_the_gpu_and_what_it_was_seen_doing(
    job: StageJob, here: Here, node: Node, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    node.smi(f"echo x >> {asked}; echo '{NAMED}, 87, 4012, 60, 200'")
    until_asked(job, asked, 3)
    path = os.environ["PATH"]
    assert here(job, "beams", PATH=path) == (0, "")
    record = job.record("beams", 2)
    assert isinstance(record, BeamRecord)
    assert record.gpu == Gpu(visible="0", uuid="GPU-7", name="NVIDIA RTX A5000")
    assert " by nvidia-smi: utilization 87 % in the mean" in record.telemetry


def test_a_driver_that_hangs_fails_no_beam(
    job: StageJob, here: Here, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BOUND", 0.3)
    node.smi("sleep 600")
    given_up, line = tmp_path / "given up", Telemetry.line

    def seen(telemetry: Telemetry) -> str:
        if telemetry._given_up:
            given_up.touch()
        return line(telemetry)

    monkeypatch.setattr(Telemetry, "line", seen)
    job.behave(f"while not pathlib.Path({str(given_up)!r}).exists(): time.sleep(0.01)")
    assert here(job, "beams", PATH=os.environ["PATH"]) == (0, "")
    record = job.record("beams", 2)
    assert isinstance(record, BeamRecord)
    assert record.gpu == Gpu(visible="0")
    assert record.telemetry == "none: the driver gave no answer within 0 s"


def test_a_beam_that_fails_leaves_no_question_behind(
    job: StageJob, here: Here, node: Node, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    node.smi(f"echo x >> {asked}; [ $(wc -l < {asked}) = 1 ] || sleep 600; echo '{NAMED}, 87, 4012, 60, 200'")
    job.behave(
        f"while pathlib.Path({str(asked)!r}).read_text().count('x') < 2: time.sleep(0.01)\nsys.exit(3)"
    )
    assert here(job, "beams", PATH=os.environ["PATH"])[0] == 3


def test_a_signal_waits_until_a_look_is_over(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TICK", 0.02)
    signals, looks = Signals(), list[str]()
    signals.install()

    def tick() -> None:
        looks.append("begun")
        os.kill(os.getpid(), signal.SIGTERM)
        looks.append("over")

    with pytest.raises(Interrupted):
        engine.run_engine(["sleep", "600"], tmp_path, tmp_path / "log", tick, signals)
    assert looks == ["begun", "over"]
