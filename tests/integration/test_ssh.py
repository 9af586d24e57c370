"""SSH as clusters really treat it: wrong keys, links that break or freeze, full disks, noisy profiles."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mqi_hpc.core.effects import Cancel, Completion, Effect, Failure, Observe, Submit, Upload
from mqi_hpc.core.errors import (
    AuthenticationError,
    ConnectionError,
    HostKeyError,
    ResourceError,
    TransportTimeout,
)
from mqi_hpc.infrastructure.connection import SSHConnectionPool
from mqi_hpc.infrastructure.executors import Control, RemoteExecutor, ThreadedEffects, TransferExecutor
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown
from tests.contract.test_transport import KEY, World, pool, ssh_config
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster


class Renderer:
    """Only the poll script, as any text."""

    def __init__(self, script: str) -> None:
        self.script = script

    def job_files(self, request: object) -> dict[str, bytes]:
        return {}

    def observe_script(self, effect: Observe) -> str:
        return self.script


@pytest.fixture
def workspace(cluster: Cluster) -> Iterator[str]:
    yield "/home/mqi/ws-ssh"
    cluster.ssh("rm -rf /home/mqi/ws-ssh")


@contextmanager
def executor(cluster: Cluster, **changes: object) -> Iterator[RemoteExecutor]:
    shell = RemoteExecutor(pool(cluster, **changes))
    try:
        yield shell
    finally:
        shell.close()


@contextmanager
def effects(cluster: Cluster, tmp_path: Path, workspace: str, **options: object) -> Iterator[ThreadedEffects]:
    connections = pool(cluster, **options)
    shell = RemoteExecutor(connections)
    port = ThreadedEffects(
        shell,
        Control(shell, Renderer("echo seen; cat"), submit_timeout=30, command_timeout=20),
        transfer(shell, tmp_path, workspace),
        transfer_threads=connections.transfers,
    )
    try:
        yield port
    finally:
        port.close()


def transfer(shell: RemoteExecutor, tmp_path: Path, workspace: str, timeout: float = 20) -> TransferExecutor:
    return TransferExecutor(
        shell,
        workspace=workspace,
        instance="i1",
        results=tmp_path / "results",
        min_free_bytes=0,
        timeout=timeout,
    )


def upload_effect(tmp_path: Path, workspace: str, size: int) -> Upload:
    world = World(None, workspace, str, tmp_path)  # type: ignore[arg-type]
    return world.effect({"plan.dcm": b"plan", "beam_1/1.ptn": b"\xa5" * size})


def one(port: ThreadedEffects, effect: Effect) -> Completion:
    port.start(effect)
    return wait_until(lambda: port.completions(1.0), 60, "a completion")[0]


def sessions(cluster: Cluster) -> set[str]:
    return set(cluster.root("pgrep -f '^sshd(-session)?: mqi' || true").stdout.split())


@contextmanager
def sshd_with(cluster: Cluster, line: str) -> Iterator[None]:
    """Run sshd with one more line of configuration; sessions that are open are ended before and after."""
    path = "/opt/cluster/sshd_config"
    cluster.root(
        f"cp {path} /root/sshd_config; echo {shlex.quote(line)} >>{path}; /opt/cluster/ctl restart sshd"
    )
    cluster.ctl("drop-ssh")
    try:
        yield
    finally:
        cluster.root(f"cp /root/sshd_config {path}; /opt/cluster/ctl restart sshd")
        cluster.ctl("drop-ssh")


# Who is who


def other_key(tmp_path: Path, *options: str) -> Path:
    path = tmp_path / "other_key"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", *(options or ("",)), "-f", str(path)]
    subprocess.run(words, check=True)
    return path


def test_a_host_that_is_not_the_one_we_know_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    public = other_key(tmp_path).with_suffix(".pub").read_text()
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{cluster.port} {public}")
    with executor(cluster, known_hosts=str(known)) as shell:
        with pytest.raises(HostKeyError) as caught:
            shell.run(["true"], timeout=5)
    text = str(caught.value)
    assert text.count("SHA256:") == 2
    assert "ssh-keygen -R" in text
    fingerprint = cluster.root("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1]
    assert fingerprint in text


@pytest.mark.parametrize("content", ["", "# nothing\n", "example.org ssh-ed25519 AAAA\nrubbish\n"])
def test_an_unknown_host_is_refused_with_its_fingerprint(
    cluster: Cluster, tmp_path: Path, content: str
) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(content)
    with executor(cluster, known_hosts=str(known)) as shell:
        with pytest.raises(HostKeyError) as caught:
            shell.run(["true"], timeout=5)
    fingerprint = cluster.root("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1]
    assert fingerprint in str(caught.value)
    assert f"ssh-keyscan -p {cluster.port} 127.0.0.1 >> {known}" in str(caught.value)
    assert known.read_text() == content


def test_hashed_names_are_known_and_revoked_keys_are_not(cluster: Cluster, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(cluster.known_hosts.read_text())
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    with executor(cluster, known_hosts=str(known)) as shell:
        assert shell.run(["echo", "x"], timeout=5).stdout == b"x\n"
    key = cluster.known_hosts.read_text().split(" ", 1)[1]
    known.write_text(known.read_text() + f"@revoked * {key}")
    with executor(cluster, known_hosts=str(known)) as shell:
        with pytest.raises(HostKeyError, match="revoked"):
            shell.run(["true"], timeout=5)


def test_a_refused_key_is_offered_once_and_no_more(cluster: Cluster, tmp_path: Path) -> None:
    log = "/var/log/cluster/sshd.log"
    before = int(cluster.root(f"wc -l <{log}").stdout)
    with executor(cluster, key_file=str(other_key(tmp_path))) as shell:
        for _ in range(3):
            with pytest.raises(AuthenticationError, match="authorized_keys"):
                shell.run(["true"], timeout=5)

    def closed() -> list[str]:
        lines = cluster.root(f"tail -n +{before + 1} {log}").stdout.splitlines()
        return [line for line in lines if "authenticating user mqi" in line]

    assert len(wait_until(closed, 10, "the refusal in the log")) == 1


@pytest.mark.parametrize("fault", ["passphrase", "rubbish", "gone"])
def test_a_key_that_cannot_be_used_is_told_before_it_is_offered(
    cluster: Cluster, tmp_path: Path, fault: str
) -> None:
    path = tmp_path / "nokey"
    if fault == "passphrase":
        path = other_key(tmp_path, "secret")
    elif fault == "rubbish":
        path.write_text("no key\n")
    with executor(cluster, key_file=str(path)) as shell:
        with pytest.raises(
            AuthenticationError, match="passphrase" if fault == "passphrase" else "cannot be read"
        ):
            shell.run(["true"], timeout=5)


# Ways there


def test_openssh_configuration_leads_through_a_jump(cluster: Cluster, tmp_path: Path) -> None:
    host_key = cluster.known_hosts.read_text().split(" ", 1)[1]
    known = tmp_path / "known_hosts"
    known.write_text(f"{cluster.known_hosts.read_text()}the-inner-one {host_key}")
    (tmp_path / "part").write_text(
        f"Host inner\n  HostName 127.0.0.1\n  HostKeyAlias the-inner-one\n  ProxyJump outer\n"
        f"Host outer\n  HostName 127.0.0.1\n  Port {cluster.port}\n"
    )
    ssh = tmp_path / "config"
    ssh.write_text(
        f"Include {tmp_path}/par*\nIdentityFile {cluster.key_file}\nIdentitiesOnly yes\nUser mqi\n"
    )
    unset = {"port": None, "username": None, "key_file": None}
    with executor(cluster, host="inner", known_hosts=str(known), config_file=str(ssh), **unset) as shell:
        assert shell.target == "mqi@127.0.0.1:22"
        seen = shell.run(["bash", "-c", "echo $SSH_CONNECTION"], timeout=10).stdout.split()
    assert (seen[0], seen[3]) == (b"127.0.0.1", b"22")


def test_openssh_configuration_leads_through_a_command(cluster: Cluster, tmp_path: Path) -> None:
    ssh = tmp_path / "config"
    inner = shlex.join([*cluster.ssh_args()[:-1], "-W", "127.0.0.1:22", "mqi@127.0.0.1"])
    ssh.write_text(f"Host 127.0.0.1\n  ProxyCommand {inner}\n")
    with executor(cluster, config_file=str(ssh)) as shell:
        seen = shell.run(["bash", "-c", "echo $SSH_CONNECTION"], timeout=10).stdout.split()
    assert seen[0] == b"127.0.0.1"


def test_no_server_is_told_in_words_and_then_left_alone(cluster: Cluster) -> None:
    with executor(cluster, port=1) as shell:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="no connection"):
                shell.run(["true"], timeout=5)
        with pytest.raises(ConnectionError, match="not tried again for"):
            shell.run(["true"], timeout=5)


# Links that break


def test_a_link_that_breaks_in_an_upload_costs_nothing_but_time(
    cluster: Cluster, tmp_path: Path, workspace: str
) -> None:
    effect = upload_effect(tmp_path, workspace, 120_000_000)
    outcome: list[OutcomeUnknown] = []

    def send() -> None:
        try:
            transfer(shell, tmp_path, workspace).upload(effect)
        except OutcomeUnknown as error:
            outcome.append(error)

    part = f"{workspace}/{KEY}/input.part-*/beam_1/1.ptn"
    with executor(cluster) as shell:
        thread = threading.Thread(target=send)
        thread.start()
        wait_until(lambda: cluster.root(f"ls {part}", check=False).stdout, 30, "the transfer to begin")
        cluster.ctl("drop-ssh")
        thread.join(60)
        assert len(outcome) == 1
        assert "input\n" not in cluster.root(f"ls {workspace}/{KEY}").stdout
        again = transfer(shell, tmp_path, workspace).upload(effect)
    assert json.loads(again.output)["sent_bytes"] == 120_000_012
    assert cluster.root(f"ls -A {workspace}/{KEY}").stdout == "input\nj01\n"
    assert cluster.root(f"sha256sum {workspace}/{KEY}/input/beam_1/1.ptn").stdout.startswith(
        hashlib.sha256(b"\xa5" * 120_000_000).hexdigest()
    )


def test_a_transfer_that_freezes_delays_no_command(cluster: Cluster) -> None:
    release = threading.Event()
    outcome: list[OutcomeUnknown] = []

    def endless() -> Iterator[bytes]:
        while not release.is_set():
            yield b"x" * 100_000

    def send() -> None:
        try:
            shell.run(["cat"], stdin=endless(), timeout=300, stall=2.0, sink=lambda _: None)
        except OutcomeUnknown as error:
            outcome.append(error)

    with executor(cluster) as shell:
        assert shell.run(["true"], timeout=10, control=True).exit_code == 0
        control = sessions(cluster)
        thread = threading.Thread(target=send)
        thread.start()
        frozen = wait_until(lambda: sessions(cluster) - control, 30, "a second connection")
        wait_until(lambda: cluster.root("pgrep -x cat", check=False).stdout, 30, "the transfer to begin")
        cluster.root(f"kill -STOP {' '.join(sessions(cluster) - control)}")
        try:
            for _ in range(3):
                assert shell.run(["echo", "x"], timeout=10, control=True).stdout == b"x\n"
            thread.join(30)
            assert "stood still" in str(outcome[0])
            # The frozen connection is not trusted again: the next transfer has a fresh one.
            assert shell.run(["echo", "x"], timeout=10).stdout == b"x\n"
        finally:
            release.set()
            cluster.root(f"kill -CONT {' '.join(frozen)}; pkill -KILL -x cat", check=False)


def test_a_server_that_does_not_answer_is_given_up_in_time(cluster: Cluster) -> None:
    cluster.ctl("pause", "sshd")
    try:
        with executor(cluster, connect_timeout_seconds=1) as shell:
            with pytest.raises(TransportTimeout, match="no answer within"):
                shell.run(["true"], timeout=5)
    finally:
        cluster.ctl("resume", "sshd")


def test_a_connection_that_died_unnoticed_is_replaced(cluster: Cluster) -> None:
    with executor(cluster) as shell:
        for _ in range(3):
            assert shell.run(["echo", "x"], timeout=10, control=True).stdout == b"x\n"
            cluster.ctl("drop-ssh")
        assert shell.run(["echo", "x"], timeout=10, control=True).stdout == b"x\n"


def test_few_connections_are_opened_and_they_are_used_again(cluster: Cluster) -> None:
    cluster.ctl("drop-ssh")
    wait_until(lambda: not sessions(cluster), 10, "no session")
    accepted = "grep -c 'Accepted publickey for mqi' /var/log/cluster/sshd.log"
    before = int(cluster.root(accepted).stdout)
    with executor(cluster) as shell:
        threads = [
            threading.Thread(
                target=shell.run, args=(["sleep", "0.3"],), kwargs={"timeout": 20, "control": n % 2 == 0}
            )
            for n in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 2 <= int(cluster.root(accepted).stdout) - before <= 3


# Servers with limits and moods


def test_one_session_a_connection_is_enough(cluster: Cluster, tmp_path: Path, workspace: str) -> None:
    with sshd_with(cluster, "MaxSessions 1"), executor(cluster) as shell:
        results: list[bytes] = []

        def run(word: str) -> None:
            results.append(
                shell.run(["bash", "-c", f"sleep 1; echo {word}"], timeout=30, control=True).stdout
            )

        threads = [threading.Thread(target=run, args=(str(n),)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(results) == [b"0\n", b"1\n", b"2\n"]
        transfer(shell, tmp_path, workspace).upload(upload_effect(tmp_path, workspace, 1000))


def test_a_pool_of_one_connection_is_enough(cluster: Cluster, tmp_path: Path, workspace: str) -> None:
    with executor(cluster, connection_pool_size=1) as shell:
        transfer(shell, tmp_path, workspace).upload(upload_effect(tmp_path, workspace, 1000))
        assert len(sessions(cluster)) <= 2


@pytest.fixture
def profile(cluster: Cluster) -> Iterator[Callable[[str], None]]:
    """Sets what the account's login profile does."""

    def write(text: str) -> None:
        cluster.root("cat >/home/mqi/.bashrc", text)

    cluster.root("touch /home/mqi/.bashrc; cp -p /home/mqi/.bashrc /root/bashrc")
    yield write
    cluster.root("cp -p /root/bashrc /home/mqi/.bashrc")


NOISE = """
echo 'Welcome to the cluster'; echo 'WARNING: Disk quota exceeded' >&2; printf '\\036 no newline'
export SLURM_CLUSTERS=nowhere SCANCEL_VERBOSE=1
"""


def test_a_noisy_profile_harms_nothing(
    cluster: Cluster, tmp_path: Path, workspace: str, profile: Callable[[str], None]
) -> None:
    job = cluster.sbatch("sleep 600", "--hold", "--job-name=mine")
    profile(NOISE)
    with effects(cluster, tmp_path, workspace) as port:
        effect = upload_effect(tmp_path, workspace, 1000)
        effect = replace(effect, files={"submit.sh": b'echo "nonce $1"; exit 75\n'})
        assert one(port, effect).error is None
        submitted = one(
            port, Submit(case_id=KEY, job_id="j", job_folder=effect.job_folder, nonce="it's $(x)")
        )
        assert submitted.output.count("nonce it's $(x)\n") == 1
        assert (submitted.exit_code, submitted.error, submitted.uncertain) == (75, None, False)
        assert "seen\n" in one(port, Observe(nonce="n", jobs=(), sacct_ids=())).output
        cancel = Cancel(case_id=KEY, job_id="j", targets=(("another", int(job)), ("mine", int(job))))
        cancelled = one(port, cancel)
    assert cancelled.output.splitlines() == [
        f"scancel --name=another {job}: exit 0",
        f"scancel --name=mine {job}: exit 0",
    ]
    wait_until(lambda: "CANCELLED" in cluster.ssh(f"sacct -nPX -j {job} -o state").stdout, 30, "cancelled")


def test_a_profile_that_swallows_commands_is_told(
    cluster: Cluster, tmp_path: Path, workspace: str, profile: Callable[[str], None]
) -> None:
    profile("echo 'no commands here' >&2; exit 0\n")
    with executor(cluster) as shell:
        with pytest.raises(ConnectionError, match=r"no commands here.*login profile"):
            transfer(shell, tmp_path, workspace).upload(upload_effect(tmp_path, workspace, 1000))


@pytest.mark.parametrize("login_shell", ["/bin/sh", "/usr/bin/tcsh", "/usr/bin/fish"])
def test_any_login_shell_will_do(cluster: Cluster, tmp_path: Path, workspace: str, login_shell: str) -> None:
    if cluster.root(f"test -x {login_shell}", check=False).returncode:
        pytest.skip(f"the image has no {login_shell}")
    cluster.root(f"usermod -s {login_shell} mqi")
    try:
        with executor(cluster) as shell:
            transfer(shell, tmp_path, workspace).upload(upload_effect(tmp_path, workspace, 1000))
    finally:
        cluster.root("usermod -s /bin/bash mqi")


# Disks


def test_a_disk_that_fills_up_is_told_and_left_clean(cluster: Cluster, tmp_path: Path) -> None:
    cluster.root("mkdir -p /mnt/small && mount -t tmpfs -o size=2m,mode=1777 tmpfs /mnt/small")
    try:
        with executor(cluster) as shell:
            mover = transfer(shell, tmp_path, "/mnt/small/ws")
            effect = upload_effect(tmp_path, "/mnt/small/ws", 1_000_000)
            cluster.root("head -c 1500000 /dev/zero >/mnt/small/other")
            with pytest.raises(ResourceError, match="GB are free on the cluster"):
                mover.upload(effect)
            cluster.root("rm /mnt/small/other")
            # Space that goes away between the look and the transfer, as on a shared disk.
            hole = replace(effect, files={"big": b"x" * 900_000})
            cluster.root("rm -rf /mnt/small/ws; cat >/home/mqi/fill; chmod 755 /home/mqi/fill", FILL)
            with fake_tar(cluster):
                with pytest.raises(ResourceError, match="No space left on device"):
                    mover.upload(hole)
            assert cluster.root(f"ls -A /mnt/small/ws/{KEY}").stdout == ""
            cluster.root("rm /mnt/small/other")
            mover.upload(effect)
    finally:
        cluster.root("umount -l /mnt/small")


FILL = """#!/bin/bash
head -c 700000 /dev/zero >/mnt/small/other
exec /usr/bin/tar "$@"
"""


@contextmanager
def fake_tar(cluster: Cluster) -> Iterator[None]:
    cluster.root("mv /home/mqi/fill /usr/local/bin/tar")
    try:
        yield
    finally:
        cluster.root("rm /usr/local/bin/tar")


# The effects port


def test_submission_whose_answer_is_lost_is_uncertain(
    cluster: Cluster, tmp_path: Path, workspace: str
) -> None:
    with effects(cluster, tmp_path, workspace) as port:
        effect = replace(upload_effect(tmp_path, workspace, 10), files={"submit.sh": b"touch ran; sleep 5\n"})
        effect = replace(effect, files={"submit.sh": f"touch {effect.job_folder}/ran; sleep 5\n".encode()})
        assert one(port, effect).failure is None
        port.start(Submit(case_id=KEY, job_id="j", job_folder=effect.job_folder, nonce="n"))
        ran = f"test -e {effect.job_folder}/ran"
        wait_until(lambda: cluster.root(ran, check=False).returncode == 0, 30, "submit.sh to begin")
        cluster.ctl("drop-ssh")
        lost = wait_until(lambda: port.completions(1.0), 60, "a completion")[0]
        assert (lost.failure, lost.uncertain) == (Failure.OUTAGE, True)

        cluster.ctl("kill", "sshd")
        cluster.ctl("drop-ssh")
        try:
            refused = one(port, Submit(case_id=KEY, job_id="j", job_folder=effect.job_folder, nonce="n"))
        finally:
            cluster.ctl("start", "sshd")
        assert (refused.failure, refused.uncertain) == (Failure.OUTAGE, False)


def test_submission_that_takes_too_long_is_uncertain(
    cluster: Cluster, tmp_path: Path, workspace: str
) -> None:
    with executor(cluster) as shell:
        effect = replace(upload_effect(tmp_path, workspace, 10), files={"submit.sh": b"echo on; sleep 60\n"})
        transfer(shell, tmp_path, workspace).upload(effect)
        control = Control(shell, Renderer(""), submit_timeout=1, command_timeout=20)
        done = control.submit(Submit(case_id=KEY, job_id="j", job_folder=effect.job_folder, nonce="n"))
    assert (done.uncertain, done.failure, done.exit_code) == (True, Failure.OUTAGE, 124)
    assert done.output.startswith("on\n")


def test_close_does_not_wait_for_what_is_stuck(cluster: Cluster, tmp_path: Path, workspace: str) -> None:
    connections = pool(cluster)
    shell = RemoteExecutor(connections)
    control = Control(shell, Renderer("echo first; sleep 300"), submit_timeout=300, command_timeout=100)
    mover = transfer(shell, tmp_path, workspace)
    port = ThreadedEffects(shell, control, mover, transfer_threads=2, close_seconds=0.5)
    port.start(Observe(nonce="n", jobs=(), sacct_ids=()))
    wait_until(lambda: cluster.root("pgrep -f 'sleep 300'", check=False).stdout, 30, "the poll to begin")
    closing = threading.Thread(target=port.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    # What the poll had said until then is not lost.
    (done,) = port.completions(0)
    assert (done.output, done.exit_code) == ("first\n", 124)
    cluster.root("pkill -f 'sleep 300'", check=False)


def test_settings_reach_the_pool(cluster: Cluster) -> None:
    connections = pool(cluster, connection_pool_size=4)
    assert isinstance(connections, SSHConnectionPool)
    assert connections.transfers == 3
    assert connections.target == f"mqi@127.0.0.1:{ssh_config(cluster).port}"
    connections.close()
