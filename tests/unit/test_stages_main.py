"""The stage programs as Slurm starts and ends them: races, signals, full disks; each way out tells."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.records import layout
from mqi_hpc.records.form import FormatError
from mqi_hpc.stages import __main__ as program
from mqi_hpc.stages.errors import Interrupted, Refused, StageError, describe, foreseen, one_line
from mqi_hpc.stages.fence import INTERVAL
from mqi_hpc.stages.signals import Signals
from mqi_hpc.stages.task import Task
from tests.support.stage_job import BeamSpec, Here, StageJob, await_gone, process_kept


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    with process_kept():
        yield Here(monkeypatch, capsys)


@pytest.fixture
def job(tmp_path: Path, here: Here) -> StageJob:
    made = StageJob(tmp_path, [BeamSpec(2, "A"), BeamSpec(3, "B")])
    assert here(made, "interpret") == (0, "")
    return made


# --- started wrongly, or not ours


@pytest.mark.parametrize("arguments", [[], ["beams"], ["dose", "--job-dir", "x"]])
def test_wrong_arguments_are_told_with_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_package_runs_as_the_archive_does(job: StageJob) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mqi_hpc.stages", "beams", "--job-dir", str(job.folder)],
        env=job.environ("beams", SLURM_JOB_NAME="mqi-x"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "this is Slurm job 'mqi-x'" in done.stderr) == (78, True)


def test_a_refusal_is_one_line_and_touches_nothing(job: StageJob, here: Here) -> None:
    before = job.snapshot()
    code, text = here(job, "beams", SLURM_ARRAY_JOB_ID="999")
    assert code == 78
    assert text == "mqi-hpc beams: this is Slurm job 999, receipt.beams names 202\n"
    assert job.snapshot() == before


def test_a_record_that_came_and_went_leaves_a_convert_that_says_so(job: StageJob, here: Here) -> None:
    job.record_path("interpret").unlink()
    code, text = here(job, "convert")
    assert (code, "interpret did not finish: j01: interpret has left no record" in text) == (79, True)


def test_a_receipt_that_comes_late_lets_the_job_work(
    job: StageJob, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job.folder / layout.receipt("beams")
    receipt = path.read_bytes()
    path.unlink()
    waited = 0
    real = program.time.sleep

    def sleep(seconds: float) -> None:
        nonlocal waited
        if seconds != INTERVAL:
            real(seconds)  # waiting for the engine
            return
        waited += 1
        if waited == 3:
            path.write_bytes(receipt)

    monkeypatch.setattr(program.time, "sleep", sleep)
    assert here(job, "beams") == (0, "")
    assert waited == 3
    assert job.record_path("beams", 2).exists()


# --- races


def test_of_many_starts_of_one_element_exactly_one_computes(job: StageJob) -> None:
    job.behave(f"open({str(job.engine) + '.runs'!r}, 'a').write('run\\n')")
    processes = [job.start("beams") for _ in range(6)]
    codes = []
    for process in processes:
        process.communicate(timeout=120)
        codes.append(process.returncode)
    assert Path(f"{job.engine}.runs").read_text() == "run\n"
    assert codes.count(0) >= 1 and set(codes) <= {0, 79}
    assert [line.event for line in job.status("beams")] == ["started", "progress", "exited"]
    assert len(list((job.folder / "dose/beam_2").iterdir())) == 2


def test_elements_run_side_by_side(job: StageJob) -> None:
    processes = [job.start("beams", index) for index in (0, 1)]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert job.record_path("beams", 2).exists() and job.record_path("beams", 3).exists()


# --- signals


def engine_that_waits(job: StageJob, tmp_path: Path, *, stubborn: bool = False) -> Path:
    """Make the engine tell its pid through a FIFO, and then wait for ever."""
    fifo = tmp_path / "engine.pid"
    os.mkfifo(fifo)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    job.behave(
        f"{ignore}child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(fifo)!r}).write_text('%d %d' % (os.getpid(), child.pid))\n"
        "time.sleep(600)"
    )
    return fifo


@pytest.mark.parametrize(
    ("number", "stubborn"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, False), (signal.SIGUSR1, False)],
)
def test_a_signal_ends_the_engine_and_is_told(
    job: StageJob, tmp_path: Path, number: signal.Signals, stubborn: bool
) -> None:
    fifo = engine_that_waits(job, tmp_path, stubborn=stubborn)
    process = job.start("beams")
    pids = [int(pid) for pid in fifo.read_text().split()]
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert text == f"mqi-hpc beams: beam 2 (index 0): ended by {number.name}\n"
    for pid in pids:
        await_gone(pid)
    last = job.status("beams")[-1]
    assert (last.event, last.exit_code, last.text) == ("exited", 128 + number, f"ended by {number.name}")
    assert not job.record_path("beams", 2).exists()
    # What was claimed stays claimed: a second start under the same id does not compute.
    assert job.run("beams").returncode == 79


def test_a_kill_leaves_a_claim_that_nobody_takes_over(job: StageJob, tmp_path: Path) -> None:
    fifo = engine_that_waits(job, tmp_path)
    process = job.start("beams")
    pids = [int(pid) for pid in fifo.read_text().split()]
    process.kill()
    process.communicate(timeout=60)
    for pid in pids:  # Slurm would end what is left of the job.
        os.kill(pid, signal.SIGKILL)
    assert [line.event for line in job.status("beams")] == ["started", "progress"]
    before = job.snapshot()
    assert job.run("beams").returncode == 79
    assert job.run("beams", SLURM_RESTART_COUNT="1").returncode == 79
    assert job.snapshot() == before


def test_a_signal_while_the_fence_waits_ends_it_with_nothing_touched(job: StageJob) -> None:
    path = job.folder / layout.receipt("beams")
    path.unlink()
    path.write_text("")
    process = job.start("beams")
    before = job.snapshot()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert job.snapshot() == before


def test_a_signal_that_comes_while_the_record_is_published_changes_nothing(
    job: StageJob, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mqi_hpc.stages import task

    publish = task.publish

    def interrupted(content: bytes, target: Path) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return publish(content, target)

    monkeypatch.setattr(task, "publish", interrupted)
    assert here(job, "beams") == (0, "")
    assert job.status("beams")[-1].exit_code == 0
    assert job.record_path("beams", 2).exists()


def test_a_signal_just_before_the_record_leaves_none(
    job: StageJob, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Task.run

    def interrupted(self: Task) -> object:
        self.signals._raising = False  # as if it came while no Python code ran
        os.kill(os.getpid(), signal.SIGTERM)
        return run(self)

    monkeypatch.setattr(Task, "run", interrupted)
    code, text = here(job, "beams")
    assert (code, "ended by SIGTERM" in text) == (143, True)
    assert not job.record_path("beams", 2).exists()
    assert job.status("beams")[-1].exit_code == 143


def test_signals_are_held_back_raised_once_and_then_held_back_for_good() -> None:
    with process_kept():
        signals = Signals()
        signals.install()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Interrupted) as caught:
            signals.allow()
        assert caught.value.exit_code == 128 + signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)  # while the first one is being dealt with
        signals = Signals()
        signals.install()
        signals.allow()
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.close()
        os.kill(os.getpid(), signal.SIGTERM)


# --- what cannot be written


CAN_MOUNT = (
    subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    ).returncode
    == 0
)


@pytest.mark.skipif(not CAN_MOUNT, reason="needs a user namespace that may mount")
def test_a_full_file_system_is_told_and_leaves_no_record(job: StageJob) -> None:
    job.behave("dose = dose * 100000")
    command = job.command("beams")
    script = (
        'mount -t tmpfs -o size=64k none "$1/dose" && shift && "$@"; code=$?; '
        "find . -name result.json; exit $code"
    )
    (job.folder / "dose").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(job.folder), *command],
        env=job.environ("beams"),
        cwd=job.folder / "dose",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stdout == ""
    last = job.status("beams")[-1]
    assert (last.event, last.exit_code) == ("exited", done.returncode)


@pytest.mark.skipif(not CAN_MOUNT, reason="needs a user namespace that may mount")
def test_interpret_on_a_full_file_system_says_so(tmp_path: Path) -> None:
    job = StageJob(tmp_path, [BeamSpec(2, "A", rows=9000)])
    (job.folder / "interpreted").mkdir()
    script = 'mount -t tmpfs -o size=64k none "$1/interpreted" && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(job.folder), *job.command("interpret")],
        env=job.environ("interpret"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 74
    assert "No space left on device" in done.stderr and "free space or quota" in done.stderr
    assert done.stderr.count("\n") == 1
    assert job.status("interpret")[-1].exit_code == 74


def test_a_status_line_that_cannot_be_written_does_not_undo_the_record(
    job: StageJob, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Task, exit_code: int, text: str = "") -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "status/beams-0.jsonl")

    monkeypatch.setattr(Task, "exited", full)
    code, text = here(job, "beams")
    assert code == 0
    assert "its last status line could not be written: No space left on device" in text
    assert job.record_path("beams", 2).exists()


def test_a_task_whose_first_line_cannot_be_written_does_not_work(job: StageJob, here: Here) -> None:
    (job.folder / "status/beams-0.jsonl").mkdir()
    code, text = here(job, "beams")
    assert code == 74
    assert "Is a directory" in text and "last status line" in text
    assert not (job.folder / "dose/beam_2/210-0").exists()


def test_a_record_in_the_way_is_never_overwritten(job: StageJob, here: Here) -> None:
    path = job.record_path("beams", 2)
    path.parent.mkdir(parents=True)
    path.write_text("another's")
    code, text = here(job, "beams")
    assert (code, "result.json is there already" in text) == (1, True)
    assert path.read_text() == "another's"


def test_a_bug_is_told_with_its_traceback(job: StageJob, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: Task) -> None:
        raise KeyError("oops")

    monkeypatch.setitem(program.RUNNERS, "beams", broken)
    code, text = here(job, "beams")
    assert code == 70
    assert "Traceback" in text and "internal error: KeyError: 'oops'" in text
    assert job.status("beams")[-1].exit_code == 70


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (StageError("a\n  b"), 1, "a b"),
        (Refused("x", 79), 79, "x"),
        (Interrupted(signal.SIGTERM), 143, "ended by SIGTERM"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 74, "Disk quota exceeded; free space or quota"),
        (OSError("odd"), 74, "odd"),
        (FormatError("chain.json is not JSON"), 1, "chain.json is not JSON"),
        (MemoryError(), 1, "not enough memory"),
        (
            ModuleNotFoundError("No module named 'numpy'"),
            1,
            "No module named 'numpy': the stages' Python needs",
        ),
    ],
)
def test_each_error_has_its_exit_code_and_one_line(error: BaseException, code: int, said: str) -> None:
    found, text = describe(error)
    assert (found, text.startswith(said)) == (code, True)
    assert foreseen(error)


def test_a_line_for_people_is_bounded_and_printable() -> None:
    assert one_line("a\x1b[31m\tb\u2028c") == "a?[31m b c"
    assert len(one_line("x" * 10_000)) == 600


def test_an_old_python_is_told(job: StageJob, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(job.folder / layout.STAGES_ARCHIVE) as archive:
        main = archive.read("__main__.py").decode()
    code = f"import sys; sys.version_info = (3, 6, 8); exec(compile({main!r}, 'main', 'exec'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("mqi-hpc: the stages need Python 3.9 or newer")
