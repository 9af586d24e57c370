"""Doctor's looks at this machine, and its scripts against a Slurm that is told what to say."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.controllers import doctor as facade
from mqi_hpc.core.diagnosis import CheckStatus, Finding, ok
from mqi_hpc.core.errors import ConfigurationError, ConnectionError
from mqi_hpc.core.monitoring import Finding as HealthFinding
from mqi_hpc.core.monitoring import Health, HealthStatus
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader
from mqi_hpc.infrastructure.doctor import (
    look_at_cluster,
    look_at_connection,
    look_at_machine,
    look_at_nodes,
    own_instance,
    read_owner,
    sbatch_options,
)
from mqi_hpc.infrastructure.doctor.local import bounded
from mqi_hpc.infrastructure.executors.local import LocalExecutor
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown, Result
from mqi_hpc.infrastructure.monitoring.health import write_health
from mqi_hpc.infrastructure.state import load_or_create_instance, open_store
from tests.support.cluster import wait_until
from tests.support.cluster_config import merged, to_yaml
from tests.support.simulation.clock import VirtualClock

OK, WARNING, FAILURE, SKIPPED = CheckStatus.OK, CheckStatus.WARNING, CheckStatus.FAILURE, CheckStatus.SKIPPED

FAKES = {
    "sbatch": """
if [ "$1" = -V ]; then echo 'slurm 24.11.5'; exit; fi
printf '%s\\n' "$*" >>"$FAKE/sbatch.calls"
case $* in
  *--test-only*) echo 'sbatch: Job 5 to start at now' >&2; exit 0 ;;
esac
cat >"$FAKE/job"
case $(cat "$FAKE/mode") in
  refused) echo 'sbatch: error: invalid partition specified: x' >&2; exit 1 ;;
  answered) (bash "$FAKE/job") || true ;;
esac
n=$(cat "$FAKE/next"); echo $((n + 1)) >"$FAKE/next"
echo "$n;cluster"
""",
    "squeue": """
rows() { # state, reason: a row of each job, numbered as sbatch did
  sed -n 's/.*--job-name=\\([^ ]*\\).*/\\1/p' "$FAKE/sbatch.calls" |
    grep -v -e -interpret -e -beams -e -convert | grep -n '' | sed "s/^\\([0-9]*\\):\\(.*\\)/\\2|\\1|$1|$2/"
}
case $(cat "$FAKE/mode") in
  pending) rows PENDING Resources ;;
  running) rows RUNNING None ;;
esac
""",
    "scancel": """printf '%s\\n' "$*" >>"$FAKE/scancel.calls" """,
    "sacct": "true",
    "sacctmgr": "echo 'mqi|lab||normal'",
    "sinfo": """printf 'gpu*\\037up\\0371-00:00:00\\037gpu:4\\0372\\037idle\\n'""",
    "scontrol": """
echo "Configuration data as of $(date -u +%Y-%m-%dT%H:%M:%S)"
echo 'AccountingStorageType = accounting_storage/slurmdbd'
echo 'ClusterName = mqi'
echo 'MaxArraySize = 1001'
echo 'MinJobAge = 300 sec'
""",
}


class FakeSlurm:
    """Slurm's commands as shell scripts; `mode` says what becomes of a job."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.folder = folder
        self.bin.mkdir(parents=True)
        for name, text in FAKES.items():
            self.replace(name, text)
        (folder / "next").write_text("1\n")
        self.mode("answered")

    def replace(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def mode(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(fake.folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return fake


@pytest.fixture
def shell() -> Iterator[LocalExecutor]:
    executor = LocalExecutor()
    yield executor
    executor.close()


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "app": {"state_file": str(tmp_path / "state" / "mqi.sqlite")},
        "paths": {
            "local_logdata": str(tmp_path / "cases"),
            "remote_workspace": str(tmp_path / "ws"),
            "local_results": str(tmp_path / "results"),
        },
        "transport": "local",
        "resources": {"min_disk_space_gb": 0.001},
        "slurm": {"partition": "gpu"},
    }
    return merged(base, changes)


def config(tmp_path: Path, **changes: Any) -> AppConfig:
    for name in ("state", "cases", "results"):
        (tmp_path / name).mkdir(mode=0o700, exist_ok=True)
    return ConfigLoader().parse(to_yaml(settings(tmp_path, **changes)), tmp_path / "config.yaml")


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.check for finding in findings}) == len(findings)
    for finding in findings:
        assert bool(finding.cure) == (finding.status in (WARNING, FAILURE)), finding
    return {finding.check: finding for finding in findings}


def here(tmp_path: Path, **changes: Any) -> dict[str, Finding]:
    return by_check(look_at_machine(config(tmp_path, **changes)))


# This machine


def test_a_fresh_machine_is_fine(tmp_path: Path) -> None:
    found = here(tmp_path)
    assert {name for name, finding in found.items() if finding.status is not OK} == {
        "machines",
        "private key",
    }
    assert found["private key"].status is SKIPPED
    assert found["machines"].status is WARNING
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == []


def test_a_calibration_of_ones_own_is_fine(tmp_path: Path) -> None:
    one = {"x_offset": 1, "y_offset": 1, "x_gain": 0.1, "y_gain": 0.1, "gantry_number": 1}
    assert here(tmp_path, machines={"M": one})["machines"].status is OK


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    places = {"local_logdata": str(tmp_path / "no"), "local_results": str(tmp_path / "later" / "results")}
    found = here(tmp_path, paths=places)
    assert found["case folders"].status is FAILURE
    assert found["results folder"].status is OK
    assert found["disk space here"].status is OK


def test_folders_open_to_others_and_files_in_their_place(tmp_path: Path) -> None:
    made = config(tmp_path)
    (tmp_path / "state").chmod(0o755)
    (tmp_path / "results").rmdir()
    (tmp_path / "results").write_text("")
    found = by_check(look_at_machine(made))
    assert found["state folder"].status is WARNING
    assert "chmod 700" in found["state folder"].cure
    assert found["results folder"].status is FAILURE


def test_a_disk_too_small(tmp_path: Path) -> None:
    found = here(tmp_path, resources={"min_disk_space_gb": 1e9})["disk space here"]
    assert found.status is FAILURE
    assert "min_disk_space_gb" in found.found


@pytest.mark.parametrize(("mode", "status"), [(0o600, OK), (0o644, WARNING)])
def test_the_keys_mode(tmp_path: Path, mode: int, status: CheckStatus) -> None:
    key = tmp_path / "key"
    key.write_text("")
    key.chmod(mode)
    ssh = {"host": "h", "key_file": str(key)}
    assert here(tmp_path, transport="ssh", ssh=ssh)["private key"].status is status


def test_no_key_and_a_key_that_is_not_there(tmp_path: Path) -> None:
    assert here(tmp_path, transport="ssh", ssh={"host": "h"})["private key"].status is OK
    missing = here(tmp_path, transport="ssh", ssh={"host": "h", "key_file": str(tmp_path / "no")})[
        "private key"
    ]
    assert missing.status is FAILURE
    assert str(tmp_path / "no") in missing.found


def test_store_and_identity(tmp_path: Path) -> None:
    made = config(tmp_path)
    state = made.app.state_file
    own = load_or_create_instance(state)
    assert own_instance(state) == own.id

    lost = by_check(look_at_machine(made))["store"]
    assert lost.status is WARNING
    assert "--adopt" in lost.cure

    open_store(state, instance=own.id, secret=own.secret, clock=VirtualClock()).close()
    assert own.id in by_check(look_at_machine(made))["store"].found

    state.chmod(0o644)
    assert by_check(look_at_machine(made))["store"].status is WARNING
    state.chmod(0o600)

    state.write_bytes(b"rubbish" * 1000)
    assert by_check(look_at_machine(made))["store"].status is FAILURE

    state.with_name(f"{state.name}.instance").unlink()
    orphan = by_check(look_at_machine(made))["store"]
    assert orphan.status is FAILURE
    assert "backup" in orphan.cure
    assert own_instance(state) is None


def test_the_lock_is_looked_at_and_left_alone(tmp_path: Path) -> None:
    made = config(tmp_path)
    state = made.app.state_file
    lock = state.with_name(f"{state.name}.lock")
    assert by_check(look_at_machine(made))["lock"].found == "free"
    assert not lock.exists()

    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "did not say" in by_check(look_at_machine(made))["lock"].found
        told = {"pid": 7, "command": "mqi-hpc"}
        state.with_name(f"{state.name}.lock.holder").write_text(json.dumps(told))
        found = by_check(look_at_machine(made))
        assert found["lock"].found == "held: process 7, mqi-hpc"
        assert found["daemon"].status is OK
    assert by_check(look_at_machine(made))["lock"].found == "free"


@pytest.mark.parametrize(
    ("status", "age", "held", "expected"),
    [
        (HealthStatus.OK, 1, True, OK),
        (HealthStatus.WARNING, 1, True, WARNING),
        (HealthStatus.FAILING, 1, True, FAILURE),
        (HealthStatus.OK, 10_000, True, FAILURE),
        (HealthStatus.OK, 10_000, False, WARNING),
        (HealthStatus.STOPPED, 10_000, False, OK),
    ],
)
def test_what_the_daemon_says_of_itself(
    tmp_path: Path, status: HealthStatus, age: float, held: bool, expected: CheckStatus
) -> None:
    made = config(tmp_path)
    state = made.app.state_file
    bad = (HealthFinding(status=status, what="a disk is full", cure="make room"),)
    findings = bad if status in (HealthStatus.WARNING, HealthStatus.FAILING) else ()
    health = Health(status=status, time=time.time() - age, interval=60, findings=findings)
    write_health(state.with_name("health.json"), health)
    with state.with_name(f"{state.name}.lock").open("w") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        found = by_check(look_at_machine(made))["daemon"]
    assert found.status is expected
    assert ("a disk is full" in found.found) == bool(findings)


def test_a_check_that_hangs_or_breaks_is_a_finding() -> None:
    never = threading.Event()

    def hangs() -> Finding:
        never.wait()
        return ok("x", "late")

    def breaks() -> Finding:
        raise ZeroDivisionError("odd")

    def denied() -> Finding:
        raise PermissionError(13, "Permission denied", "/root/x")

    assert "no answer" in bounded("x", hangs, 0.01).found
    never.set()
    assert "odd" in bounded("x", breaks, 60).found
    assert "/root/x: Permission denied" in bounded("x", denied, 60).found


# The cluster


def test_a_good_cluster(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    made = config(tmp_path)
    found = by_check(look_at_cluster(shell, made, "abcdef"))
    assert {name for name, finding in found.items() if finding.status is not OK} == {"workspace owner"}
    assert found["workspace owner"].status is SKIPPED
    assert not Path(made.paths.remote_workspace).exists()
    assert not list(tmp_path.glob(".mqi-doctor*"))


def test_the_options_tried_are_those_of_the_jobs(
    slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path
) -> None:
    extra = ["--constraint=a b", "--comment2='$x'"]
    made = config(
        tmp_path,
        slurm={"stages": {"beams": {"extra": extra, "time": "00:05:00"}}},
        resources={"gpu_count": 2},
    )
    look_at_cluster(shell, made, None)
    tried = [line for line in slurm.calls("sbatch") if "--test-only" in line]
    assert len(tried) == 3
    assert "--constraint=a b --comment2='$x' --partition=gpu --gres=gpu:1" in tried[1]
    assert "--time=00:05:00" in tried[1]
    assert tried[1].endswith("--array=0-3%2")
    assert not any("--hold" in line for line in tried)


def test_a_setting_that_makes_no_options_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"slurm\.comment"):
        sbatch_options(config(tmp_path, slurm={"comment": "x" * 2000}))


def test_a_silent_controller_skips_what_needs_it(
    slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path
) -> None:
    slurm.replace("scontrol", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    found = by_check(look_at_cluster(shell, config(tmp_path), None))
    assert found["slurmctld"].status is FAILURE
    assert "connect failure" in found["slurmctld"].found
    assert found["sbatch (beams)"].status is SKIPPED
    assert found["accounting"].status is SKIPPED
    assert found["workspace links"].status is OK


def test_commands_that_print_rubbish(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    for name in FAKES:
        slurm.replace(name, "head -c 5000 /dev/urandom; head -c 300 /dev/urandom >&2; exit 3")
    found = by_check(look_at_cluster(shell, config(tmp_path), None))
    assert found["slurmctld"].status is FAILURE
    assert found["workspace"].status is OK


def test_a_foreign_workspace_is_not_touched(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    made = config(tmp_path)
    workspace = Path(made.paths.remote_workspace)
    workspace.mkdir(mode=0o700)
    (workspace / ".owner").write_text("other1\n")
    before = workspace.stat().st_mtime_ns
    found = by_check(look_at_cluster(shell, made, "abcdef"))
    assert found["workspace owner"].status is FAILURE
    assert "other1" in found["workspace owner"].found
    assert "--adopt" in found["workspace owner"].cure
    assert found["workspace links"].status is SKIPPED
    assert workspace.stat().st_mtime_ns == before

    own = by_check(look_at_cluster(shell, made, "other1"))
    assert own["workspace owner"].status is OK
    assert [path.name for path in workspace.iterdir()] == [".owner"]


def test_a_workspace_that_is_a_file_or_a_dead_link(
    slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path
) -> None:
    made = config(tmp_path)
    workspace = Path(made.paths.remote_workspace)
    workspace.symlink_to(tmp_path / "nowhere")
    assert by_check(look_at_cluster(shell, made, None))["workspace"].status is FAILURE
    workspace.unlink()
    workspace.write_text("")
    found = by_check(look_at_cluster(shell, made, None))["workspace"]
    assert found.status is FAILURE
    assert "file" in found.found


def test_a_file_system_whose_second_link_replaces_the_first(
    slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path
) -> None:
    slurm.replace("ln", 'exec /bin/ln -f "$@"')
    found = by_check(look_at_cluster(shell, config(tmp_path), None))["workspace links"]
    assert found.status is FAILURE
    assert "a second link takes the place of the first" in found.found


def test_a_full_disk_and_a_quota(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    made = config(tmp_path, resources={"min_disk_space_gb": 1e9})
    assert by_check(look_at_cluster(shell, made, None))["workspace space"].status is FAILURE
    slurm.replace("quota", "echo 'over your quota on /home'; exit 1")
    found = by_check(look_at_cluster(shell, config(tmp_path), None))["workspace space"]
    assert found.status is WARNING
    assert "over your quota" in found.found


class CutShort:
    """This machine's shell, whose output breaks off within the answer of a command."""

    target = "this machine"

    def __init__(self, shell: LocalExecutor, at: bytes) -> None:
        self._shell, self._at = shell, at

    def run(self, argv: Any, *, sink: Callable[[bytes], None], **more: Any) -> Any:
        heard = bytearray()
        self._shell.run(argv, sink=heard.extend, **more)
        sink(bytes(heard[: heard.index(self._at) + len(self._at) + 3]))
        raise OutcomeUnknown("no end of the command", where=self.target)

    def close(self) -> None: ...


def test_what_was_told_before_a_look_was_cut_short_stands(
    slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path
) -> None:
    found = by_check(look_at_cluster(CutShort(shell, b" ACCOUNTING "), config(tmp_path), None))
    assert found["slurmctld"].status is OK
    assert found["partition (beams)"].status is OK
    assert found["accounting"].status is FAILURE
    assert "cut short" in found["accounting"].found
    assert found["workspace"].status is FAILURE
    assert found["workspace links"].status is SKIPPED


class Broken:
    """A shell that fails as it is told, after having said something."""

    target = "mqi@login:22"

    def __init__(self, *, say: bytes = b"", error: Exception | None = None) -> None:
        self._say, self._error = say, error

    def run(self, argv: Any, *, sink: Callable[[bytes], None] | None = None, **_: Any) -> Any:
        if sink is not None and self._say:
            sink(self._say)
        if self._error is not None:
            raise self._error
        return Result(stdout=self._say, stderr=b"", exit_code=0)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "broken",
    [
        Broken(),
        Broken(say=b"This account is currently not available.\n"),
        Broken(error=ConnectionError("the connection was lost", where="mqi@login:22")),
    ],
)
def test_a_login_shell_that_lets_nothing_through(broken: Broken, tmp_path: Path) -> None:
    (finding,) = look_at_cluster(broken, config(tmp_path), None)
    assert finding.check == "login shell"
    assert finding.status is FAILURE
    assert "profile" in finding.cure


# Nodes


def test_good_nodes(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    engine = tmp_path / "the engine"
    engine.write_text("")
    engine.chmod(0o755)
    made = config(tmp_path, stages={"engine": [str(engine)]})
    found = look_at_nodes(shell, made, seconds=60)
    told = {finding.check: finding for finding in found}
    assert told["node (interpret, convert)"].status is OK
    assert told["node (beams): engine"].found == str(engine)
    assert told["node (beams): gpu"].status is OK
    assert slurm.calls("scancel") == []
    assert not list(tmp_path.glob(".mqi-doctor*"))
    beams = [line for line in slurm.calls("sbatch") if "--gres" in line]
    assert len(beams) == 1
    assert "--array" not in beams[0]
    assert "--time=5 " in beams[0]


def test_a_workspace_with_an_odd_name(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    odd = tmp_path / "the 'ws' & $x; # é"
    made = config(
        tmp_path, paths={"remote_workspace": str(odd)}, stages={"python": sys.executable, "engine": ["true"]}
    )
    odd.mkdir(mode=0o700)
    told = by_check([*look_at_cluster(shell, made, None), *look_at_nodes(shell, made, seconds=60)])
    assert [finding for finding in told.values() if finding.status is not OK] == []
    assert list(odd.iterdir()) == []


def test_a_python_that_does_not_run(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    made = config(tmp_path, stages={"python": "/bin/false", "engine": ["no-such-engine"]})
    told = {finding.check: finding for finding in look_at_nodes(shell, made, seconds=60)}
    assert told["node (beams): python"].status is FAILURE
    assert "exit code 1" in told["node (beams): python"].found
    assert told["node (beams): engine"].status is FAILURE


@pytest.mark.parametrize(
    ("mode", "status", "word"),
    [
        ("pending", WARNING, "the queue is busy (Resources)"),
        ("running", WARNING, "did not end in time"),
        ("over", FAILURE, "without a word"),
        ("refused", FAILURE, "invalid partition"),
    ],
)
def test_jobs_that_do_not_answer_are_taken_back(
    slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path, mode: str, status: CheckStatus, word: str
) -> None:
    slurm.mode(mode)
    seconds = 30 if mode == "over" else 6
    for finding in look_at_nodes(shell, config(tmp_path), seconds=seconds):
        assert finding.status is status
        assert word in finding.found
    left = slurm.calls("scancel")
    assert all("--name=mqi-check-" in line and line.startswith("-u ") for line in left)
    if status is WARNING:
        assert [line.split()[-1] for line in left] == ["1", "2"]
    else:
        # A refusal may have been a lost answer: there is no id, but the name is the probe's alone.
        assert [line.rpartition("-")[2] for line in left] == (["0", "1"] if mode == "refused" else [])
    assert not list(tmp_path.glob(".mqi-doctor*"))


def test_a_broken_link_takes_the_jobs_back(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.mode("pending")
    shell = LocalExecutor()
    made = config(tmp_path)
    found: list[Finding] = []
    worker = threading.Thread(target=lambda: found.extend(look_at_nodes(shell, made, seconds=300)))
    worker.start()
    wait_until(lambda: len(slurm.calls("sbatch")) == 2, 60, "two jobs")
    shell.close()
    worker.join(60)
    wait_until(lambda: len(slurm.calls("scancel")) == 2, 60, "both jobs cancelled")
    wait_until(lambda: not list(tmp_path.glob(".mqi-doctor*")), 60, "the folder gone")
    assert {finding.status for finding in found} == {FAILURE}


def test_no_folder_no_jobs(slurm: FakeSlurm, shell: LocalExecutor, tmp_path: Path) -> None:
    slurm.replace("mktemp", "echo 'mktemp: Permission denied' >&2; exit 1")
    for finding in look_at_nodes(shell, config(tmp_path), seconds=5):
        assert finding.status is FAILURE
        assert "Permission denied" in finding.found
    assert slurm.calls("sbatch") == []


# Whose the workspace is


def test_the_owner_is_read(shell: LocalExecutor, tmp_path: Path) -> None:
    assert read_owner(shell, str(tmp_path / "no"), timeout=60) is None
    assert read_owner(shell, str(tmp_path), timeout=60) is None
    (tmp_path / ".owner").write_text("abcdef\n")
    assert read_owner(shell, str(tmp_path), timeout=60) == "abcdef"
    with pytest.raises(ConfigurationError):
        read_owner(shell, str(tmp_path / ".owner"), timeout=60)


# The way there


def test_a_host_that_does_not_answer(tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("")
    ssh = {
        "host": "127.0.0.1",
        "port": 1,
        "known_hosts": str(known),
        "key_file": str(tmp_path / "k"),
        "username": "x",
    }
    made = config(tmp_path, transport="ssh", ssh=ssh)
    found = by_check(look_at_connection(made.ssh))
    assert sum(finding.status is FAILURE for finding in found.values()) == 1
    assert found["sessions"].status is SKIPPED


def test_no_known_hosts_file_teaches_no_blind_trust(tmp_path: Path) -> None:
    made = config(
        tmp_path, transport="ssh", ssh={"host": "h", "port": 2222, "known_hosts": str(tmp_path / "no")}
    )
    found = by_check(look_at_connection(made.ssh))
    cure = found["host key"].cure
    assert "administrator" in cure
    assert "ssh-keyscan -p 2222 h > new_key; ssh-keygen -lf new_key" in cure
    assert "Only if" in cure


def test_an_openssh_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text("Host h\n  Port many\n")
    ssh = {"host": "h", "config_file": str(tmp_path / "ssh_config")}
    assert (
        by_check(look_at_connection(config(tmp_path, transport="ssh", ssh=ssh).ssh))["connection"].status
        is FAILURE
    )


# All of it


def test_the_whole_on_a_machine_that_submits_itself(slurm: FakeSlurm, tmp_path: Path) -> None:
    config(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(settings(tmp_path, stages={"engine": ["true"]})))
    heard: list[Finding] = []
    findings = facade.examine(path, jobs=True, hear=heard.append)
    assert heard == findings
    told = by_check(findings)
    assert told["connection"].status is SKIPPED
    assert told["sbatch (beams)"].status is OK
    assert told["node (beams)"].status is OK
    without = by_check(facade.examine(path, jobs=False, hear=lambda _: None))
    assert without["nodes"].found == "--no-jobs"


def test_a_bad_configuration_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("paths: {}\nssx: 1\n")
    (finding,) = facade.examine(path, jobs=True, hear=lambda _: None)
    assert (finding.check, finding.status) == ("configuration", FAILURE)
    assert "ssx" in finding.found
    (absent,) = facade.examine(tmp_path / "no.yaml", jobs=True, hear=lambda _: None)
    assert "mqi-hpc init" in absent.cure


def test_out_of_reach_the_rest_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    ssh = {"host": "127.0.0.1", "port": 1, "known_hosts": str(tmp_path / "no")}
    config(tmp_path)
    path.write_text(to_yaml(settings(tmp_path, transport="ssh", ssh=ssh)))
    told = by_check(facade.examine(path, jobs=True, hear=lambda _: None))
    assert told["host key"].status is FAILURE
    assert told["workspace"].found == "no connection"


def test_jobs_are_not_sent_where_the_workspace_is_somebody_elses(slurm: FakeSlurm, tmp_path: Path) -> None:
    made = config(tmp_path)
    workspace = Path(made.paths.remote_workspace)
    workspace.mkdir()
    (workspace / ".owner").write_text("other1\n")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(settings(tmp_path)))
    told = by_check(facade.examine(path, jobs=True, hear=lambda _: None))
    assert told["nodes"].found == "see workspace owner"
