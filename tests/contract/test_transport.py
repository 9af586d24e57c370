"""One contract for both transports: the same tests run on this machine and over SSH to a real cluster."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from mqi_hpc.core.effects import Download, ResultFile, Upload
from mqi_hpc.core.errors import (
    ConfigurationError,
    ConnectionError,
    IntegrityError,
    LocalFolderError,
    MQIError,
    ProcessingError,
    ResourceError,
)
from mqi_hpc.core.models import InputFile
from mqi_hpc.core.retry import CircuitBreaker, RetryPolicy
from mqi_hpc.infrastructure.config.models import SSHConfig
from mqi_hpc.infrastructure.connection import SSHConnectionPool
from mqi_hpc.infrastructure.executors import LocalExecutor, RemoteExecutor, Shell, TransferExecutor
from mqi_hpc.infrastructure.executors.files import Arrival
from mqi_hpc.infrastructure.executors.script import new_nonce, run_script
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown, Result
from mqi_hpc.infrastructure.executors.upload import WorkspaceRefused
from tests.support.cluster import Cluster

KEY = "abc123def456"
ODD = [
    "a b",
    "it's",
    '"q"',
    "$(touch pwned)",
    "`touch pwned`",
    "-rf",
    "ünïcødé 束",
    "semi;colon&",
    "*",
    "~",
    "x\ty",
]


class Clock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def ssh_config(cluster: Cluster, **changes: object) -> SSHConfig:
    settings = {
        "host": "127.0.0.1",
        "port": cluster.port,
        "username": "mqi",
        "key_file": str(cluster.key_file),
        "known_hosts": str(cluster.known_hosts),
        "config_file": str(cluster.home / "no_ssh_config"),
        "connection_pool_size": 3,
    }
    return SSHConfig.model_validate({**settings, **changes})


def pool(cluster: Cluster, **changes: object) -> SSHConnectionPool:
    policy = RetryPolicy(max_attempts=3, base_delay=0.1, max_delay=0.5)
    return SSHConnectionPool(
        ssh_config(cluster, **changes), policy, CircuitBreaker(), Clock(), random.Random(1)
    )


class Counting:
    """A shell that counts the commands it passes on."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self.commands: list[list[str]] = []

    @property
    def target(self) -> str:
        return self._shell.target

    def run(self, argv: list[str], **options: object) -> Result:
        self.commands.append(list(argv))
        return self._shell.run(argv, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self._shell.close()


@dataclass
class World:
    """A transport, a workspace on its far side, and a way to look at that side past the transport."""

    shell: Shell
    workspace: str
    beside: Callable[[str], str]
    home: Path

    def transfer(
        self, *, instance: str = "i1", min_free: float = 0.0, shell: Shell | None = None
    ) -> TransferExecutor:
        return TransferExecutor(
            shell or self.shell,
            workspace=self.workspace,
            instance=instance,
            results=self.home / "results",
            min_free_bytes=min_free,
            timeout=30,
        )

    def in_case(self, line: str) -> str:
        return self.beside(f"cd {shlex.quote(self.workspace)}/{KEY} && {line}")

    def effect(self, files: dict[str, bytes], job: dict[str, bytes] | None = None) -> Upload:
        source = self.home / "case"
        inputs = []
        for remote, data in files.items():
            path = source / "in" / remote
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            inputs.append(registered(remote, f"in/{remote}", data))
        return Upload(
            case_id=KEY,
            job_id=f"{KEY}-j01",
            source=str(source),
            input_folder=f"{self.workspace}/{KEY}/input",
            inputs=tuple(inputs),
            job_folder=f"{self.workspace}/{KEY}/j01",
            files={"chain.json": b"{}\n", "submit.sh": b"true\n"} if job is None else job,
        )


def registered(remote: str, local: str, data: bytes) -> InputFile:
    return InputFile(remote=remote, local=local, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture(scope="module")
def ssh_shell(request: pytest.FixtureRequest) -> Iterator[RemoteExecutor]:
    shell = RemoteExecutor(pool(request.getfixturevalue("cluster")))
    yield shell
    shell.close()


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.cluster)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    name = f"ws-{secrets.token_hex(4)} it's $(x)"
    if request.param == "local":
        shell = LocalExecutor()

        def beside(line: str) -> str:
            return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout

        yield World(shell, str(tmp_path / name), beside, tmp_path)
        shell.close()
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    workspace = f"/home/mqi/{name}"
    yield World(
        request.getfixturevalue("ssh_shell"),
        workspace,
        lambda line: cluster.ssh(line, check=True).stdout,
        tmp_path,
    )
    cluster.ssh(f"rm -rf {shlex.quote(workspace)}")


# Commands


def test_output_errors_and_exit_code(world: World) -> None:
    result = world.shell.run(["bash", "-c", "echo out; echo err >&2; exit 3"], timeout=20)
    assert (result.stdout, result.exit_code, result.truncated) == (b"out\n", 3, False)
    assert b"err\n" in result.stderr


@pytest.mark.parametrize("word", [*ODD, "new\nline", "", "back\\slash", "!history"])
def test_a_word_arrives_as_it_is_and_is_never_run(world: World, word: str) -> None:
    result = world.shell.run(["printf", "%s", word], timeout=20)
    assert result.stdout.decode() == word


def test_a_nul_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="NUL"):
        world.shell.run(["echo", "a\0b"], timeout=20)


def test_stdin_of_any_bytes_comes_back(world: World) -> None:
    data = random.Random(3).randbytes(3_000_000)
    result = world.shell.run(["cat"], stdin=[data[:1], b"", data[1:]], timeout=60)
    assert result.stdout == data


def test_much_output_on_both_streams_neither_blocks_nor_grows(world: World) -> None:
    script = "head -c 20000000 /dev/zero >&2 & head -c 20000000 /dev/zero; wait; exit 5"
    result = world.shell.run(["bash", "-c", script], timeout=60, cap=1000)
    assert result.exit_code == 5
    assert result.truncated
    assert (len(result.stdout), len(result.stderr)) == (1000, 1000)


def test_stdin_that_nobody_reads_is_no_error(world: World) -> None:
    result = world.shell.run(["bash", "-c", "exit 4"], stdin=[b"x" * 10_000_000], timeout=30)
    assert result.exit_code == 4


def test_a_command_that_does_not_end_is_ended_on_its_own_side(world: World) -> None:
    result = world.shell.run(["bash", "-c", "echo began; exec sleep 300"], timeout=1)
    assert (result.stdout, result.exit_code) == (b"began\n", 124)


def test_a_command_that_closes_its_output_is_waited_for(world: World) -> None:
    result = world.shell.run(["bash", "-c", "echo out; exec >&- 2>&-; sleep 0.5; exit 3"], timeout=30)
    assert (result.stdout, result.exit_code) == (b"out\n", 3)


def test_a_background_process_does_not_hold_the_answer_back(world: World) -> None:
    result = world.shell.run(["bash", "-c", "sleep 60 & echo done"], timeout=300)
    assert (result.stdout, result.exit_code) == (b"done\n", 0)


def test_a_command_that_is_killed_tells_no_outcome(world: World) -> None:
    # The whole group dies, `timeout` with it, as when a node is shut down.
    with pytest.raises(OutcomeUnknown) as caught:
        world.shell.run(["bash", "-c", "echo began; kill -KILL 0"], timeout=30)
    assert caught.value.partial == b"began\n"


def test_input_that_fails_ends_the_command_and_is_raised(world: World) -> None:
    def failing() -> Iterator[bytes]:
        yield b"some"
        raise IntegrityError("changed")

    with pytest.raises(IntegrityError, match="changed"):
        world.shell.run(["cat"], stdin=failing(), timeout=60)


def test_a_sink_that_fails_ends_the_command_and_is_raised(world: World) -> None:
    def sink(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        world.shell.run(["cat", "/dev/zero"], timeout=60, sink=sink)


def test_a_transfer_that_stands_still_is_given_up(world: World) -> None:
    with pytest.raises(OutcomeUnknown, match="stood still"):
        world.shell.run(["sleep", "300"], stdin=[b"x" * 50_000_000], timeout=300, stall=1.0)


def test_a_script_answers_through_noise(world: World) -> None:
    nonce = new_nonce()
    script = r"""printf 'no newline'; say ONE "$1"; echo $'\036'; say TWO; say END"""
    answers = run_script(world.shell, script, ["it's $(x)"], timeout=20, nonce=nonce)
    assert [(a.word, " ".join(a.rest)) for a in answers] == [("ONE", "it's $(x)"), ("TWO", "")]


# Uploads


def test_upload_puts_everything_in_its_place_once(world: World) -> None:
    names = [f"beam_1/{n} {odd}.ptn" for n, odd in enumerate(ODD) if "\\" not in odd and "\t" not in odd]
    files = {name: os.urandom(n * 700) for n, name in enumerate(["plan.dcm", *names])}
    counting = Counting(world.shell)
    effect = world.effect(files)
    said = json.loads(world.transfer(shell=counting).upload(effect).output)
    assert said["sent_files"] == said["files"] == len(files) + 2
    assert said["sent_bytes"] == said["bytes"] == sum(map(len, files.values())) + 8
    assert len(counting.commands) == 2
    assert world.in_case("cd input && sha256sum -c --quiet MANIFEST.sha256 && find . -type f | wc -l") == (
        f"{len(files) + 1}\n"
    )
    assert world.in_case("ls -A") == "input\nj01\n"
    assert world.in_case("cd j01 && ls") == (
        "MANIFEST.sha256\nchain.json\ndose\ninterpreted\nlogs\nresults\nstatus\nsubmit.sh\n"
    )
    assert world.in_case("find . -type f ! -perm 600; find . -type d ! -perm 700") == ""
    assert world.in_case("cat ../.owner") == "i1\n"

    again = json.loads(world.transfer(shell=counting).upload(effect).output)
    assert (again["sent_files"], again["files"], len(counting.commands)) == (0, len(files) + 2, 3)


def test_a_second_job_sends_no_input(world: World) -> None:
    effect = world.effect({"plan.dcm": b"plan"})
    world.transfer().upload(effect)
    second = replace(effect, job_folder=f"{world.workspace}/{KEY}/j02")
    assert json.loads(world.transfer().upload(second).output)["sent_files"] == 2
    assert world.in_case("ls -A") == "input\nj01\nj02\n"


def test_a_changed_local_file_publishes_nothing(world: World) -> None:
    effect = world.effect({"plan.dcm": b"plan", "beam_1/1.ptn": b"x" * 400_000})
    (Path(effect.source) / "in/beam_1/1.ptn").write_bytes(b"x" * 399_999 + b"y")
    with pytest.raises(IntegrityError, match="changed since the case was registered"):
        world.transfer().upload(effect)
    assert "input\n" not in world.in_case("ls -A")
    (Path(effect.source) / "in/beam_1/1.ptn").write_bytes(b"x" * 400_000)
    world.transfer().upload(effect)
    assert world.in_case("ls -A") == "input\nj01\n"


@pytest.mark.parametrize("data", [b"", b"pla", b"plan and more"])
def test_a_file_of_another_size_is_named(world: World, data: bytes) -> None:
    effect = world.effect({"plan.dcm": b"plan"})
    (Path(effect.source) / "in/plan.dcm").write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"it had 4 bytes, now {len(data)}"):
        world.transfer().upload(effect)


def test_another_installation_is_refused(world: World) -> None:
    effect = world.effect({"plan.dcm": b"plan"})
    world.transfer(instance="other").upload(effect)
    with pytest.raises(WorkspaceRefused, match=r"another installation \(other\).*paths.remote_workspace"):
        world.transfer(instance="i1").upload(effect)
    assert world.in_case("cat ../.owner") == "other\n"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("sed -i 1s/^./x/ input/MANIFEST.sha256", "another MANIFEST"),
        ("echo x >>input/plan.dcm", "plan.dcm: FAILED"),
        ("rm input/plan.dcm", "plan.dcm"),
        ("echo x >input/more.ptn", "does not list.*more.ptn"),
        ("ln -s plan.dcm input/link.ptn", "does not list.*link.ptn"),
        ("mv input elsewhere; ln -s elsewhere input", "symbolic link"),
        ("echo x >>j01/submit.sh", "submit.sh: FAILED"),
        ("rm j01/MANIFEST.sha256", "without MANIFEST"),
    ],
)
def test_what_was_tampered_with_is_refused_and_left(world: World, spoil: str, words: str) -> None:
    effect = world.effect({"plan.dcm": b"plan", "beam_1/1.ptn": b"x"})
    world.transfer().upload(effect)
    world.in_case(spoil)
    before = world.in_case("find . -type f -exec sha256sum {} +")
    with pytest.raises(IntegrityError, match=f"(?s){words}"):
        world.transfer().upload(effect)
    assert world.in_case("find . -type f -exec sha256sum {} +") == before


def test_another_case_under_the_same_key_is_refused(world: World) -> None:
    world.transfer().upload(world.effect({"plan.dcm": b"plan"}))
    with pytest.raises(IntegrityError, match="another MANIFEST"):
        world.transfer().upload(world.effect({"plan.dcm": b"another"}))


def test_leavings_of_an_earlier_attempt_are_replaced(world: World) -> None:
    effect = world.effect({"plan.dcm": b"plan"})
    world.beside(
        f"mkdir -p {shlex.quote(world.workspace)}/{KEY}/input {shlex.quote(world.workspace)}/{KEY}/j01"
    )
    world.in_case("mkdir input.part-1; echo half >input.part-1/plan.dcm; echo half >input/plan.dcm")
    assert json.loads(world.transfer().upload(effect).output)["sent_files"] == 3
    assert world.in_case("ls -A; cat input/plan.dcm") == "input\nj01\nplan"


def together(*actions: Callable[[], object]) -> list[Exception | None]:
    """Run actions at once; return what each raised."""

    def outcome(action: Callable[[], object]) -> Exception | None:
        try:
            action()
        except MQIError as error:
            return error
        return None

    with ThreadPoolExecutor() as threads:
        return list(threads.map(outcome, actions))


def test_of_two_installations_that_come_at_once_one_gets_the_workspace(world: World) -> None:
    effect = world.effect({"plan.dcm": b"plan"})
    movers = [world.transfer(instance=name) for name in ("one", "two")]
    outcomes = together(*(partial(mover.upload, effect) for mover in movers))
    assert [type(o) for o in outcomes if o] == [WorkspaceRefused]
    assert world.in_case("cat ../.owner") == ("one\n" if outcomes[0] is None else "two\n")


def test_attempts_that_overlap_never_publish_anything_half(world: World) -> None:
    # As when the link of one was lost, and its far end goes on while the next begins.
    effect = world.effect({f"beam_1/{n}.ptn": os.urandom(10_000) for n in range(40)})
    outcomes = together(*[lambda: world.transfer().upload(effect)] * 4)
    assert all(o is None or isinstance(o, ConnectionError) for o in outcomes)
    world.transfer().upload(effect)
    assert world.in_case("ls -A") == "input\nj01\n"
    assert world.in_case("cd input && sha256sum -c --quiet MANIFEST.sha256") == ""


def test_a_case_folder_that_is_a_link_is_refused_as_the_cases_own(world: World) -> None:
    effect = world.effect({"plan.dcm": b"plan"})
    world.transfer().upload(effect)
    world.in_case(f"cd .. && mv {KEY} moved && ln -s moved {KEY}")
    with pytest.raises(ProcessingError, match="symbolic link"):
        world.transfer().upload(effect)


def test_too_little_space_is_said_before_anything_is_sent(world: World) -> None:
    counting = Counting(world.shell)
    with pytest.raises(ResourceError, match="GB are free on the cluster"):
        world.transfer(min_free=1e18, shell=counting).upload(world.effect({"plan.dcm": b"plan"}))
    assert len(counting.commands) == 1


def test_a_workspace_that_cannot_be_made_is_told(world: World) -> None:
    blocked = replace(world, workspace="/etc/passwd/mqi")
    with pytest.raises(ConfigurationError, match="making the workspace failed") as caught:
        blocked.transfer().upload(blocked.effect({"plan.dcm": b"plan"}))
    assert "paths.remote_workspace" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"input_folder": "/tmp/elsewhere/input"},
        {"job_folder": "{ws}/../j01"},
        {"job_folder": "{ws}/abc123def456/job"},
        {"files": {}},
        {"files": {"../up": b""}},
        {"files": {"MANIFEST.sha256": b""}},
        {"files": {"new\nline": b""}},
        {"inputs": (registered("a/../../b", "in/plan.dcm", b"plan"),)},
        {"inputs": (registered("plan.dcm", "../plan.dcm", b"plan"),)},
        {"inputs": (registered("x", "in/plan.dcm", b"plan"), registered("x", "in/plan.dcm", b"plan"))},
    ],
)
def test_no_path_leaves_its_root(world: World, change: dict[str, object]) -> None:
    effect = world.effect({"plan.dcm": b"plan"})
    (world.home / "case" / "plan.dcm").write_bytes(b"plan")
    filled = {k: v.format(ws=world.workspace) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(ProcessingError):
        world.transfer().upload(replace(effect, **filled))


@pytest.mark.parametrize("kind", ["link", "folder link", "fifo", "folder", "gone"])
def test_only_regular_files_within_the_case_are_read(world: World, kind: str) -> None:
    effect = world.effect({"beam_1/1.ptn": b"x"})
    path = Path(effect.source) / "in/beam_1/1.ptn"
    path.unlink()
    if kind == "link":
        (world.home / "secret").write_bytes(b"x")
        path.symlink_to(world.home / "secret")
    elif kind == "folder link":
        path.parent.rmdir()
        (world.home / "beside").mkdir()
        (world.home / "beside" / "1.ptn").write_bytes(b"x")
        path.parent.symlink_to(world.home / "beside")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(IntegrityError, match=r"registered|regular"):
        world.transfer().upload(effect)


# Downloads


def result(remote: str, data: bytes) -> ResultFile:
    return ResultFile(
        remote=remote,
        local=remote.rsplit("/", 1)[-1],
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


@pytest.fixture
def dose(world: World) -> tuple[World, Download, dict[str, bytes]]:
    """A job with two results and a log on the far side, and the effect that brings them home."""
    world.transfer().upload(world.effect({"plan.dcm": b"plan"}))
    # One whose bytes look like our own framing, one of no bytes at all.
    contents = {"a b's.dcm": b"\n\x1e0000 FILE 0 5\nxx" * 40_000, "b.dcm": b"", "ü.dcm": os.urandom(300_000)}
    for name, data in contents.items():
        put(world, f"j01/results/{name}", data)
    put(world, "j01/logs/beams-5_1.log", b"line\n" * 30_000 + b"\0last \xff\n")
    download = Download(
        case_id=KEY,
        job_id=f"{KEY}-j01",
        job_folder=f"{world.workspace}/{KEY}/j01",
        folder="P001-f01/j01",
        results=tuple(result(f"results/{name}", data) for name, data in contents.items()),
        logs=("logs/none.log", "logs/beams-5_1.log"),
    )
    return world, download, contents


def put(world: World, path: str, data: bytes) -> None:
    target = shlex.quote(f"{world.workspace}/{KEY}/{path}")
    world.shell.run(["bash", "-c", f"cat >{target}"], stdin=[data], timeout=30)


def test_download_brings_results_and_log_tails(dose: tuple[World, Download, dict[str, bytes]]) -> None:
    world, download, contents = dose
    counting = Counting(world.shell)
    said = json.loads(world.transfer(shell=counting).download(download).output)
    folder = world.home / "results/P001-f01/j01"
    assert said["files"] == [str(folder / name) for name in contents]
    assert {name: (folder / name).read_bytes() for name in contents} == contents
    assert said["logs"] == {"logs/beams-5_1.log": str(folder / "logs/beams-5_1.log")}
    tail = (folder / "logs/beams-5_1.log").read_bytes()
    assert len(tail) == 65536
    assert tail.endswith(b"line\n\0last \xff\n")
    assert {p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in folder.parent.rglob("*") if p.is_dir()} == {0o700}
    assert len(counting.commands) == 2


def test_what_is_here_is_not_fetched_again(dose: tuple[World, Download, dict[str, bytes]]) -> None:
    world, download, contents = dose
    download = replace(download, logs=())
    world.transfer().download(download)
    folder = world.home / "results/P001-f01/j01"
    (folder / "ü.dcm").unlink()
    (folder / ".half.part").write_bytes(b"half")
    kept = (folder / "a b's.dcm").stat().st_mtime_ns
    counting = Counting(world.shell)
    world.transfer(shell=counting).download(download)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == contents
    assert (folder / "a b's.dcm").stat().st_mtime_ns == kept
    world.transfer(shell=counting).download(download)
    assert len(counting.commands) == 1


def test_a_different_file_here_is_never_replaced(dose: tuple[World, Download, dict[str, bytes]]) -> None:
    world, download, _ = dose
    folder = world.home / "results/P001-f01/j01"
    folder.mkdir(parents=True)
    (folder / "b.dcm").write_bytes(b"by hand")
    with pytest.raises(IntegrityError, match="not replaced"):
        world.transfer().download(download)
    assert (folder / "b.dcm").read_bytes() == b"by hand"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("printf y | dd of=j01/results/ü.dcm conv=notrunc 2>&1", "ü.dcm has SHA-256"),
        ("echo >>j01/results/ü.dcm", "ü.dcm has 300001 bytes, its record says 300000"),
        ("truncate -s 5 j01/results/ü.dcm", "ü.dcm has 5 bytes"),
        ("rm j01/results/ü.dcm", "ü.dcm is not there"),
        ("rm j01/results/ü.dcm && mkdir j01/results/ü.dcm", "ü.dcm is not there"),
    ],
)
def test_a_result_that_is_not_what_its_record_says_is_not_delivered(
    dose: tuple[World, Download, dict[str, bytes]], spoil: str, words: str
) -> None:
    world, download, _ = dose
    world.in_case(spoil)
    with pytest.raises(IntegrityError, match=words):
        world.transfer().download(download)
    folder = world.home / "results/P001-f01/j01"
    assert sorted(p.name for p in folder.iterdir()) == ["a b's.dcm", "b.dcm"]


def test_a_job_folder_that_is_gone_is_told(dose: tuple[World, Download, dict[str, bytes]]) -> None:
    world, download, _ = dose
    world.in_case("mv j01 gone")
    with pytest.raises(IntegrityError, match="not there"):
        world.transfer().download(download)


def test_too_little_space_here_is_said_before_anything_is_fetched(
    dose: tuple[World, Download, dict[str, bytes]],
) -> None:
    world, download, _ = dose
    counting = Counting(world.shell)
    with pytest.raises(ResourceError, match="GB are free here"):
        world.transfer(min_free=1e18, shell=counting).download(download)
    assert counting.commands == []


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../out"},
        {"folder": "/abs"},
        {"folder": "a//b"},
        {"folder": "a\nb"},
        {"results": (ResultFile(remote="results/x", local="../x", bytes=1, sha256="0" * 64),)},
        {"results": (ResultFile(remote="results/x", local="logs", bytes=1, sha256="0" * 64),)},
        {"results": (ResultFile(remote="../x", local="x", bytes=1, sha256="0" * 64),)},
        {"results": (ResultFile(remote="a", local="x", bytes=1, sha256="0" * 64),) * 2},
        {"logs": ("../../.ssh/id",)},
    ],
)
def test_no_download_leaves_its_root(
    dose: tuple[World, Download, dict[str, bytes]], change: dict[str, object]
) -> None:
    world, download, _ = dose
    with pytest.raises(ProcessingError):
        world.transfer().download(replace(download, **change))
    assert not (world.home / "out").exists()


def test_a_link_among_the_results_is_not_followed(dose: tuple[World, Download, dict[str, bytes]]) -> None:
    world, download, _ = dose
    (world.home / "results").mkdir(exist_ok=True)
    (world.home / "elsewhere").mkdir()
    (world.home / "results" / "P001-f01").symlink_to(world.home / "elsewhere")
    with pytest.raises(ProcessingError, match="symbolic link"):
        world.transfer().download(download)
    assert list((world.home / "elsewhere").iterdir()) == []


def test_results_that_cannot_be_written_are_a_matter_of_settings(
    dose: tuple[World, Download, dict[str, bytes]],
) -> None:
    world, download, _ = dose
    (world.home / "results").write_bytes(b"a file in the way")
    with pytest.raises(LocalFolderError, match=r"paths\.local_results"):
        world.transfer().download(download)


def test_a_results_folder_that_goes_away_in_the_middle_is_waited_for(
    dose: tuple[World, Download, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, download, contents = dose
    keep, results = Arrival.keep, world.home / "results"

    def gone(arrival: Arrival) -> None:
        shutil.rmtree(results)
        monkeypatch.setattr(Arrival, "keep", keep)
        keep(arrival)

    monkeypatch.setattr(Arrival, "keep", gone)
    with pytest.raises(LocalFolderError, match=r"paths\.local_results"):
        world.transfer().download(download)
    files = json.loads(world.transfer().download(download).output)["files"]
    assert [Path(path).read_bytes() for path in files] == list(contents.values())


def test_a_warning_of_the_loader_does_not_make_a_result_absent(
    dose: tuple[World, Download, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, download, contents = dose
    # As login environments have it: each program there says on stderr that it cannot be preloaded.
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    files = json.loads(world.transfer().download(download).output)["files"]
    assert [Path(path).read_bytes() for path in files] == list(contents.values())
