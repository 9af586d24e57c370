"""Removal on the cluster, over both transports: only our own settled case, out of the way in one step."""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.effects import Prune, Upload
from mqi_hpc.core.errors import ConfigurationError, ConnectionError, ProcessingError
from mqi_hpc.core.models import InputFile
from mqi_hpc.core.pruning import PruneAnswer
from mqi_hpc.infrastructure.executors import LocalExecutor, RemoteExecutor, Shell, TransferExecutor, prune
from mqi_hpc.infrastructure.executors.prune import Pruner
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown, Result
from tests.contract.test_transport import pool
from tests.support.cluster import Cluster, wait_until

KEY = "abc123def456"
OTHER = "zzz999zzz999"
QUIET = "exit 0"


class WithPath:
    """A shell whose commands find our squeue first."""

    def __init__(self, shell: Shell, folder: str) -> None:
        self._shell = shell
        self._folder = folder

    @property
    def target(self) -> str:
        return self._shell.target

    def run(self, argv: Sequence[str], **options: Any) -> Result:
        line = f'PATH={shlex.quote(self._folder)}:$PATH; exec "$@"'
        return self._shell.run(["bash", "-c", line, "x", *argv], **options)

    def close(self) -> None:
        self._shell.close()


@dataclass
class Site:
    """A workspace with one case in it, on the far side of a transport; `real` is a shell as it is."""

    real: Shell
    base: str
    beside: Callable[[str], str]

    @property
    def workspace(self) -> str:
        return f"{self.base}/work it's $(x)"

    def at(self, line: str) -> str:
        return self.beside(f"cd {shlex.quote(self.workspace)} && {line}")

    def program(self, name: str, text: str) -> None:
        path = shlex.quote(f"{self.base}/bin/{name}")
        self.beside(f"printf '#!/bin/bash\\n%s\\n' {shlex.quote(text)} >{path} && chmod +x {path}")

    def pruner(self, *, instance: str = "i1", shell: Shell | None = None, timeout: float = 60) -> Pruner:
        return Pruner(
            shell or WithPath(self.real, f"{self.base}/bin"),
            workspace=self.workspace,
            instance=instance,
            timeout=timeout,
        )

    def prune(self, **options: Any) -> PruneAnswer:
        completion = self.pruner(**options).prune(self.effect())
        answer = PruneAnswer.decode(completion.output)
        assert completion.exit_code == (answer.outcome in {"kept", "left"})
        return answer

    def effect(self) -> Prune:
        return Prune(case_id=KEY, folder=f"{self.workspace}/{KEY}")


def build(site: Site) -> Site:
    base, work = shlex.quote(site.base), shlex.quote(site.workspace)
    site.beside(f"mkdir -p {base}/bin {work}/{KEY}/input {work}/{KEY}/j01/dose/beam_1 {work}/{OTHER}")
    site.at("echo i1 >.owner && echo kept >../outside")
    site.at(f"cd {KEY} && head -c 300000 /dev/zero >j01/dose/beam_1/dose.raw && ln -s / input/root")
    site.at(f"cd {KEY} && touch -- 'j01/a b' 'j01/-rf' $'j01/new\\nline' 'j01/$(touch pwned)' 'j01/*'")
    site.program("squeue", QUIET)
    return site


@pytest.fixture(scope="module")
def ssh_shell(request: pytest.FixtureRequest) -> Iterator[RemoteExecutor]:
    shell = RemoteExecutor(pool(request.getfixturevalue("cluster")))
    yield shell
    shell.close()


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.cluster)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param == "local":
        shell = LocalExecutor()

        def beside(line: str) -> str:
            return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout

        yield build(Site(shell, str(tmp_path), beside))
        shell.close()
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    base = f"/home/mqi/prune-{secrets.token_hex(4)}"
    yield build(
        Site(
            request.getfixturevalue("ssh_shell"),
            base,
            lambda line: cluster.ssh(f"bash -c {shlex.quote(line)}", check=True).stdout,
        )
    )
    cluster.ssh(f"chmod -R u+rwX {base}; rm -rf {base}")


def test_a_case_goes_and_nothing_else(site: Site) -> None:
    answer = site.prune()
    assert answer.outcome == "removed"
    assert answer.bytes is not None
    assert answer.bytes >= 300_000
    assert site.at("ls -A; cat ../outside") == f".owner\n{OTHER}\nkept\n"


def test_what_is_gone_already_is_said(site: Site) -> None:
    site.prune()
    assert site.prune() == PruneAnswer(outcome="gone")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("echo other >.owner", r"another installation \(other\)"),
        ("rm .owner", "no .owner"),
        ("mv .owner x; ln -s x .owner", "symbolic link"),
        ("rm .owner; mkdir .owner", "directory"),
        (f"mv {KEY} away; ln -s away {KEY}", "symbolic link"),
        (f"mv {KEY} away; ln -s / {KEY}", "symbolic link"),
        (f"mv {KEY} away; ln -s nowhere {KEY}", "symbolic link"),
        (f"mv {KEY} away; echo x >{KEY}", "regular file"),
        (f"mv {KEY} away; mkfifo {KEY}", "fifo"),
    ],
)
def test_what_is_not_plainly_ours_is_left_as_it_is(site: Site, spoil: str, words: str) -> None:
    site.at(spoil)
    before = site.at("find . -printf '%y %P %l\\n' | sort")
    answer = site.prune()
    assert answer.outcome == "kept"
    assert re.search(words, answer.why), answer.why
    assert site.at("find . -printf '%y %P %l\\n' | sort") == before


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REVOKED", "NEWWORD"])
def test_a_case_with_an_unfinished_job_is_kept(site: Site, state: str) -> None:
    site.program("squeue", f"echo 'RUNNING another'; echo '{state} mqi-i1-{KEY}-j01-beams'")
    answer = site.prune()
    assert (answer.outcome, answer.why) == ("kept", f"Slurm shows mqi-i1-{KEY}-j01-beams as {state}")
    assert site.at(f"ls {KEY}") == "input\nj01\n"


def test_ended_jobs_and_those_of_others_hold_nothing_back(site: Site) -> None:
    rows = [f"COMPLETED mqi-i1-{KEY}-j01-beams", f"RUNNING mqi-i1-{OTHER}-j01-beams", "PENDING x y  z"]
    rows += [f"CANCELLED mqi-i1-{KEY}-j01-convert", f"RUNNING mqi-i2-{KEY}-j01-beams"]
    site.program("squeue", "\n".join(f"echo '{row}'" for row in rows))
    assert site.prune().outcome == "removed"


@pytest.mark.parametrize(
    "text", ["echo 'slurm_load_jobs error: Unable to contact slurm controller'; exit 1", "exec sleep 600"]
)
def test_a_queue_that_fails_or_hangs_says_nothing(
    site: Site, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "SQUEUE_SECONDS", 2)
    site.program("squeue", text)
    with pytest.raises(ConnectionError, match="asking squeue for jobs of the case failed") as caught:
        site.pruner().prune(site.effect())
    assert not isinstance(caught.value, OutcomeUnknown)
    assert site.at(f"ls -A; ls {KEY}") == f".owner\n{KEY}\n{OTHER}\ninput\nj01\n"


def test_a_queue_in_a_strange_environment_is_asked_in_our_words(site: Site) -> None:
    site.program(
        "squeue", 'printf "%s\\n" "RUNNING mqi-i1-$1 ${SQUEUE_FORMAT-none}" "$@" >"$(dirname $0)/asked"'
    )
    shell = WithPath(site.real, f"{site.base}/bin")
    site.pruner(shell=shell).prune(site.effect())
    asked = site.beside(f"cat {shlex.quote(site.base)}/bin/asked").splitlines()
    assert asked[0].endswith("none")
    assert asked[3:6] == ["-t", "all", "-u"]


def test_a_workspace_that_is_not_there_is_no_empty_one(site: Site) -> None:
    site.beside(f"mv {shlex.quote(site.workspace)} {shlex.quote(site.base)}/unmounted")
    with pytest.raises(ConfigurationError, match=r"entering the workspace.*paths\.remote_workspace"):
        site.pruner().prune(site.effect())


def test_parts_that_cannot_be_written_go_as_well(site: Site) -> None:
    site.at(f"chmod 500 {KEY}/j01/dose/beam_1 {KEY}/j01/dose && chmod 000 {KEY}/j01 && chmod 400 {KEY}/input")
    assert site.prune().outcome == "removed"
    assert site.at("ls -A") == f".owner\n{OTHER}\n"


def test_what_cannot_be_removed_is_told_and_finished_later(site: Site) -> None:
    site.program("rm", "echo \"rm: cannot remove 'x': Device or resource busy\" >&2; exit 1")
    answer = site.prune()
    assert (answer.outcome, "Device or resource busy" in answer.why) == ("left", True)
    listed = site.at("ls -A").split()
    assert KEY not in listed
    assert sum(name.startswith(f".pruned-{KEY}-") for name in listed) == 1
    site.beside(f"rm {shlex.quote(site.base)}/bin/rm")
    assert site.prune().outcome == "removed"
    assert site.at("ls -A") == f".owner\n{OTHER}\n"


@pytest.mark.parametrize("signal", ["KILL", "TERM", "HUP"])
def test_killed_in_the_middle_a_later_prune_finishes(site: Site, signal: str) -> None:
    # rm is reached when the folder is out of the way; there its script dies, and then rm itself.
    site.program("rm", f'kill -{signal} "$(ps -o ppid= -p $PPID)" $PPID; exec sleep 1')
    with pytest.raises(OutcomeUnknown):
        site.pruner().prune(site.effect())
    listed = site.at("ls -A").split()
    assert KEY not in listed
    assert len(listed) == 3
    site.beside(f"rm {shlex.quote(site.base)}/bin/rm")
    assert site.prune().outcome == "removed"
    assert site.at("ls -A") == f".owner\n{OTHER}\n"


def test_a_removal_that_does_not_end_in_time_is_open(site: Site) -> None:
    site.program("rm", "exec sleep 600")
    with pytest.raises(OutcomeUnknown):
        site.pruner(timeout=3).prune(site.effect())
    site.beside(f"rm {shlex.quote(site.base)}/bin/rm")
    assert site.prune().outcome == "removed"


def test_a_folder_that_cannot_be_moved_stays_whole(site: Site) -> None:
    site.program("mv", "echo \"mv: cannot move 'x' to 'y': Device or resource busy\" >&2; exit 1")
    with pytest.raises(ConnectionError, match=r"out of the way failed .* Device or resource busy") as caught:
        site.pruner().prune(site.effect())
    assert not isinstance(caught.value, OutcomeUnknown)
    site.program("mv", '/bin/cp -r "${@:3}"; exit 1')  # as mv does where a rename is refused
    with pytest.raises(OutcomeUnknown):
        site.pruner().prune(site.effect())
    site.beside(f"rm {shlex.quote(site.base)}/bin/mv")
    assert site.prune().outcome == "removed"
    assert site.at("ls -A") == f".owner\n{OTHER}\n"


def test_a_folder_that_is_replaced_while_it_is_looked_at_is_put_back(site: Site) -> None:
    # The last command before the move is du.
    site.program("du", f'/bin/mv {KEY} away; ln -s away {KEY}; echo "4 ."')
    answer = site.prune()
    assert (answer.outcome, answer.why) == ("kept", "the case's folder was replaced while it was looked at")
    assert site.at(f"ls -A; readlink {KEY}; ls away") == (f".owner\n{KEY}\naway\n{OTHER}\naway\ninput\nj01\n")


def test_a_size_that_cannot_be_told_holds_nothing_back(site: Site) -> None:
    site.program("du", "echo '4 .'; exit 1")
    assert site.prune() == PruneAnswer(outcome="removed")


def test_of_two_prunes_at_once_both_end_and_all_is_gone(site: Site) -> None:
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda _: site.prune(), range(2)))
    # A removal that meets another may tell of something left, which the next finds gone.
    assert {answer.outcome for answer in answers} <= {"removed", "gone", "left"}
    assert site.prune().outcome in {"removed", "gone"}
    assert site.at("ls -A") == f".owner\n{OTHER}\n"


def test_what_an_upload_brought_goes_and_may_come_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "plan.dcm").write_bytes(b"plan")
    upload = Upload(
        case_id=OTHER,
        job_id=f"{OTHER}-j01",
        source=str(tmp_path),
        input_folder=f"{site.workspace}/{OTHER}/input",
        inputs=(InputFile(remote="plan.dcm", local="plan.dcm", bytes=4, sha256=sha256(b"plan").hexdigest()),),
        job_folder=f"{site.workspace}/{OTHER}/j01",
        files={"chain.json": b"{}"},
    )
    mover = TransferExecutor(
        site.real,
        workspace=site.workspace,
        instance="i1",
        results=tmp_path / "results",
        min_free_bytes=0,
        timeout=30,
    )
    for _ in range(2):
        mover.upload(upload)
        effect = Prune(case_id=OTHER, folder=f"{site.workspace}/{OTHER}")
        assert PruneAnswer.decode(site.pruner().prune(effect).output).outcome == "removed"
        assert site.at("ls -A") == f".owner\n{KEY}\n"


def test_old_leavings_of_other_cases_are_swept_young_ones_and_links_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.at(f"mkdir .pruned-{OTHER}-1 .pruned-short-1 && ln -s {OTHER} .pruned-{OTHER}-2")
    assert site.prune().swept == 0
    assert site.at(f"ls -A | grep -c pruned-{OTHER}") == "2\n"
    monkeypatch.setattr(prune, "STALE_SECONDS", -60)
    assert site.prune() == PruneAnswer(outcome="gone", swept=1)
    assert site.at("ls -A") == f".owner\n.pruned-short-1\n.pruned-{OTHER}-2\n{OTHER}\n"


@pytest.mark.parametrize(
    ("key", "folder"),
    [
        (KEY, "{w}"),
        (KEY, "{w}/"),
        (KEY, "{w}/zzz999zzz999"),
        (KEY, "{w}/abc123def456/"),
        (KEY, "{w}/../abc123def456"),
        ("..", "{w}/.."),
        ("", "{w}/"),
        ("*", "{w}/*"),
        ("ABC123DEF456", "{w}/ABC123DEF456"),
        ("abc123def456\n", "{w}/abc123def456\n"),
    ],
)
def test_another_folder_than_the_cases_own_is_refused(site: Site, key: str, folder: str) -> None:
    effect = Prune(case_id=key, folder=folder.format(w=site.workspace))
    with pytest.raises(ProcessingError, match="nothing was removed"):
        site.pruner().prune(effect)


@pytest.mark.cluster
def test_the_real_queue_holds_a_case_back_until_its_job_has_ended(
    cluster: Cluster, ssh_shell: RemoteExecutor
) -> None:
    base = f"/home/mqi/prune-{secrets.token_hex(4)}"
    site = build(
        Site(ssh_shell, base, lambda line: cluster.ssh(f"bash -c {shlex.quote(line)}", check=True).stdout)
    )
    cluster.ssh(f"rm -rf {base}/bin", check=True)
    name = f"mqi-i1-{KEY}-j01-beams"
    job = cluster.sbatch("sleep 600", f"--job-name={name}", "--hold", "--array=0-3")
    try:
        answer = site.prune(shell=ssh_shell)
        assert (answer.outcome, answer.why) == ("kept", f"Slurm shows {name} as PENDING")
        cluster.ctl("pause", "slurmctld")
        with pytest.raises(ConnectionError, match="asking squeue"):
            site.pruner(shell=ssh_shell, timeout=120).prune(site.effect())
        cluster.ctl("resume", "slurmctld")
        assert site.at(f"ls {KEY}") == "input\nj01\n"
        cluster.ssh(f"scancel {job}", check=True)
        wait_until(lambda: site.prune(shell=ssh_shell).outcome == "removed", 120, "the case to be pruned")
    finally:
        cluster.reset()
        cluster.ssh(f"rm -rf {base}")
