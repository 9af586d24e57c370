"""Doctor on a real cluster: all is well, and each thing that may be wrong is found, with its cure."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.controllers.doctor import examine
from mqi_hpc.controllers.setup import Wishes, begin
from mqi_hpc.core.diagnosis import CheckStatus, Finding, exit_code
from mqi_hpc.core.errors import StateError
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster

OK, WARNING, FAILURE, SKIPPED = CheckStatus.OK, CheckStatus.WARNING, CheckStatus.FAILURE, CheckStatus.SKIPPED


@pytest.fixture(autouse=True)
def quiet(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.reset()
    cluster.root("rm -rf /home/mqi/ws-doctor /home/mqi/.bashrc-doctor")


def findings(cluster: Cluster, home: Path, *, jobs: bool = False, **changes: Any) -> list[Finding]:
    paths = {"remote_workspace": "/home/mqi/ws-doctor", **changes.pop("paths", {})}
    path = cluster.write_config(home, paths=paths, **changes)
    found = examine(path, jobs=jobs, hear=lambda _: None)
    assert len({finding.check for finding in found}) == len(found)
    for finding in found:
        assert bool(finding.cure) == (finding.status in (WARNING, FAILURE)), finding
    return found


def failures(found: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in found if finding.status is FAILURE}


def left_behind(cluster: Cluster) -> str:
    names = cluster.ssh("ls -A | grep mqi-doctor; ls -A ws-doctor 2>/dev/null | grep mqi-doctor").stdout
    return names + cluster.root("squeue -h -u mqi -t pending,running -o '%j'").stdout


def test_a_good_cluster_is_found_good_and_left_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    found = findings(cluster, tmp_path, jobs=True)
    told = {finding.check: finding for finding in found}
    assert {f.check: f.found for f in found if f.status not in (OK, SKIPPED)}.keys() == {"machines"}
    assert {name for name, finding in told.items() if finding.status is SKIPPED} == {"workspace owner"}
    assert told["node (beams): gpu"].status is OK
    assert told["node (beams): python"].found.startswith("Python 3.")
    assert told["node (interpret, convert)"].found.startswith("c1 ")
    assert exit_code(found) == 0
    wait_until(lambda: left_behind(cluster) == "", 30, "nothing left behind")
    assert cluster.ssh("test -e ws-doctor").returncode == 1


def test_another_key_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    found = findings(cluster, tmp_path, ssh={"key_file": str(other)})
    assert set(failures(found)) == {"login"}
    assert "authorized_keys" in failures(found)["login"].cure
    assert exit_code(found) == 4


def test_an_unknown_and_a_changed_host_key(cluster: Cluster, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text("")
    cure = failures(findings(cluster, tmp_path, ssh={"known_hosts": str(known)}))["host key"].cure
    assert "fingerprint" in cure
    assert f"ssh-keyscan -p {cluster.port} 127.0.0.1" in cure
    assert "Only if" in cure

    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    known.write_text(f"[127.0.0.1]:{cluster.port} {(tmp_path / 'other.pub').read_text()}")
    found = findings(cluster, tmp_path, ssh={"known_hosts": str(known)})
    assert "in between" in failures(found)["host key"].cure
    assert exit_code(found) == 4


def test_a_host_that_is_down(cluster: Cluster, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(cluster.known_hosts.read_text().replace(str(cluster.port), "1"))
    found = findings(cluster, tmp_path, ssh={"port": 1, "known_hosts": str(known)})
    assert set(failures(found)) == {"connection"}
    assert "ssh.host" in failures(found)["connection"].cure
    assert exit_code(found) == 4
    assert next(f for f in found if f.check == "slurmctld").found == "no connection"


def test_slurmctld_is_down(cluster: Cluster, tmp_path: Path) -> None:
    # A clean stop first: a fresh 26.05 that is killed before it wrote its state does not start again.
    cluster.ctl("restart", "slurmctld")
    cluster.ctl("kill", "slurmctld")
    found = findings(cluster, tmp_path, jobs=True)
    assert set(failures(found)) == {"slurmctld"}
    assert "scontrol ping" in failures(found)["slurmctld"].cure
    assert exit_code(found) == 1
    assert next(f for f in found if f.check == "nodes").found == "see slurmctld"


def test_slurmdbd_is_down(cluster: Cluster, tmp_path: Path) -> None:
    cluster.ctl("kill", "slurmdbd")
    found = findings(cluster, tmp_path)
    assert set(failures(found)) == {"accounting"}
    assert "slurmdbd" in failures(found)["accounting"].cure
    assert exit_code(found) == 1


@pytest.mark.parametrize(
    ("slurm", "check", "word", "cure"),
    [
        ({"partition": "gpux"}, "sbatch (beams)", "invalid partition", "section slurm"),
        ({"partition": "gpux"}, "partition (beams)", "no partition gpux", "cpu, gpu, low"),
        ({"gres": "gpux:1"}, "sbatch (beams)", "gres", "section slurm"),
        ({"gres": "gpux:1"}, "partition (beams)", "can give gpux:1", "gpu:4"),
        ({"account": "nobody"}, "association", "account nobody", "slurm.account"),
        ({"stages": {"beams": {"time": "9-00"}}}, "partition (beams)", "allows 1-00:00:00", "time"),
    ],
)
def test_settings_that_slurm_does_not_know(
    cluster: Cluster, tmp_path: Path, slurm: dict[str, Any], check: str, word: str, cure: str
) -> None:
    found = failures(findings(cluster, tmp_path, slurm=slurm))
    assert word in found[check].found.lower() or word in found[check].found
    assert cure in found[check].cure


def test_a_python_that_is_none(cluster: Cluster, tmp_path: Path) -> None:
    stages = {"python": "/bin/false", "engine": ["tps_nowhere"]}
    found = failures(findings(cluster, tmp_path, jobs=True, stages=stages))
    assert set(found) == {
        "node (interpret, convert): python",
        "node (beams): python",
        "node (beams): engine",
    }
    assert "numpy" in found["node (beams): python"].cure
    assert left_behind(cluster) == ""


def test_a_busy_queue_is_no_failure_and_nothing_stays_in_it(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mqi_hpc.infrastructure import doctor
    from mqi_hpc.infrastructure.doctor import nodes

    def impatient(shell: Any, config: Any) -> list[Finding]:
        return nodes.look_at_nodes(shell, config, seconds=12)

    monkeypatch.setattr(doctor, "look_at_nodes", impatient)
    cluster.sbatch("sleep 600", "--gres=gpu:4", "--nodes=2", "--exclusive")
    wait_until(lambda: "RUNNING" in cluster.root("squeue -h -o %T").stdout, 60, "a full partition")
    found = {finding.check: finding for finding in findings(cluster, tmp_path, jobs=True)}
    assert found["node (beams)"].status is WARNING
    assert "the queue is busy" in found["node (beams)"].found
    assert found["node (interpret, convert)"].status is OK
    names = "squeue -h -u mqi -t pending,running -o %j | grep mqi-check"
    wait_until(lambda: cluster.root(names, check=False).stdout == "", 30, "no job left behind")
    assert cluster.ssh("ls -A | grep mqi-doctor").stdout == ""


def test_workspaces_that_will_not_do(cluster: Cluster, tmp_path: Path) -> None:
    denied = failures(findings(cluster, tmp_path, paths={"remote_workspace": "/root/ws"}))
    assert "remote_workspace" in denied["workspace"].cure

    cluster.ssh("mkdir -m 700 ws-doctor && echo other1 >ws-doctor/.owner", check=True)
    foreign = failures(findings(cluster, tmp_path))
    assert set(foreign) == {"workspace owner"}
    assert "other1" in foreign["workspace owner"].found
    assert "init --adopt --instance" in foreign["workspace owner"].cure


def test_disks_too_small(cluster: Cluster, tmp_path: Path) -> None:
    found = failures(findings(cluster, tmp_path, resources={"min_disk_space_gb": 1e9}))
    assert set(found) == {"disk space here", "workspace space"}
    assert "prune" in found["workspace space"].cure


def test_a_profile_that_prints(cluster: Cluster, tmp_path: Path) -> None:
    cluster.root("cp -p /home/mqi/.bashrc /tmp/bashrc 2>/dev/null; echo 'echo Welcome' >/home/mqi/.bashrc")
    try:
        found = {finding.check: finding for finding in findings(cluster, tmp_path)}
    finally:
        cluster.root("rm -f /home/mqi/.bashrc; [ ! -e /tmp/bashrc ] || mv /tmp/bashrc /home/mqi/.bashrc")
    assert found["login shell"].status is WARNING
    assert "Welcome" in found["login shell"].found
    assert found["sbatch (beams)"].status is OK


def test_a_lost_store_is_adopted_and_a_foreign_workspace_is_not(cluster: Cluster, tmp_path: Path) -> None:
    path = cluster.write_config(tmp_path, paths={"remote_workspace": "/home/mqi/ws-doctor"})
    own = begin(path, Wishes(), force=False).instance
    cluster.ssh(f"mkdir -m 700 ws-doctor && echo {own} >ws-doctor/.owner", check=True)
    store = tmp_path / "state" / "mqi.sqlite"
    for name in ("", "-wal", "-shm"):
        store.with_name(store.name + name).unlink(missing_ok=True)

    again = begin(path, Wishes(), force=False, adopt=True)
    assert again.instance == own
    assert any("as it should" in note for note in again.notes)
    assert store.exists()

    store.unlink()
    cluster.ssh("echo other1 >ws-doctor/.owner", check=True)
    with pytest.raises(StateError, match="other1"):
        begin(path, Wishes(), force=False, adopt=True)
    assert not store.exists()
    assert cluster.ssh("cat ws-doctor/.owner").stdout == "other1\n"
