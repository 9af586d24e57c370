"""The test cluster behaves as the real ones we submit to: else the other tests prove nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster

TERMINAL = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "PREEMPTED"}


@pytest.fixture(autouse=True)
def quiet(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.reset()


def ended(cluster: Cluster, job: str, fields: str = "JobID,State", rows: int = 1) -> list[dict[str, str]]:
    """Accounting's rows of `job` once all of them are terminal."""

    def look() -> list[dict[str, str]]:
        seen = cluster.sacct(job, fields)
        done = [row for row in seen if row["State"].split()[0] in TERMINAL]
        return seen if len(seen) == len(done) >= rows else []

    return wait_until(look, 60, f"job {job} ended in accounting")


def state(cluster: Cluster, job: str) -> str:
    return cluster.ssh(f"squeue -h -t all -o '%T %r' -j {job}").stdout.strip()


def test_each_array_element_is_given_one_gpu_of_its_own(cluster: Cluster) -> None:
    job = cluster.sbatch(
        "echo $SLURMD_NODENAME/$CUDA_VISIBLE_DEVICES; sleep 3",
        "--gres=gpu:1",
        "--array=0-7",
        "--output=gpu-%a.out",
    )

    rows = ended(cluster, job, "JobID,State,AllocTRES", rows=8)

    assert {row["State"] for row in rows} == {"COMPLETED"}
    assert all("gres/gpu=1" in row["AllocTRES"].split(",") for row in rows)
    seen = cluster.ssh("cat gpu-*.out", check=True).stdout.split()
    assert sorted(seen) == [f"{node}/{gpu}" for node in ("g1", "g2") for gpu in range(4)]


def test_a_chain_waits_for_its_held_head(cluster: Cluster) -> None:
    head = cluster.sbatch("true", "--hold", "--partition=cpu")
    array = cluster.sbatch("true", "--gres=gpu:1", "--array=0-1", f"--dependency=afterok:{head}")
    last = cluster.sbatch("true", "--partition=cpu", f"--dependency=afterany:{array}")

    assert state(cluster, head).startswith("PENDING JobHeld")
    assert state(cluster, last) == "PENDING Dependency"
    cluster.ssh(f"scontrol release {head}", check=True)
    rows = [
        row
        for job, count in ((head, 1), (array, 2), (last, 1))
        for row in ended(cluster, job, "JobID,State,Start,End", count)
    ]

    assert [row["State"] for row in rows] == ["COMPLETED"] * 4
    assert rows[0]["End"] <= min(rows[1]["Start"], rows[2]["Start"])
    assert rows[3]["Start"] >= max(rows[1]["End"], rows[2]["End"])


def test_a_failed_head_leaves_its_dependants_for_ever(cluster: Cluster) -> None:
    head = cluster.sbatch("exit 3", "--partition=cpu")
    array = cluster.sbatch("true", "--gres=gpu:1", "--array=0-1", f"--dependency=afterok:{head}")

    [row] = ended(cluster, head, "JobID,State,ExitCode")
    assert (row["State"], row["ExitCode"]) == ("FAILED", "3:0")
    wait_until(
        lambda: "DependencyNeverSatisfied" in state(cluster, array), 90, "a dependency known as never met"
    )


def test_a_stage_runs_with_a_clean_environment(cluster: Cluster) -> None:
    # --export=NONE makes newer slurmd clone(): without SYS_ADMIN it dies of it.
    job = cluster.sbatch("/usr/bin/python3 -c 'import numpy, pydicom'", "--export=NONE", "--partition=cpu")
    [row] = ended(cluster, job)
    assert row["State"] == "COMPLETED"
    assert cluster.ctl("status").count("running") == 8


def test_pydicom_is_new_enough_for_the_stages(cluster: Cluster) -> None:
    version = cluster.ssh("python3 -c 'import pydicom; print(pydicom.__version__)'", check=True).stdout
    assert tuple(int(part) for part in version.split(".")[:2]) >= (2, 3)


def test_a_killed_slurmctld_comes_back_with_its_queue(cluster: Cluster) -> None:
    before = cluster.sbatch("true", "--hold", "--partition=cpu")
    # A clean stop writes the queue down; a kill alone may lose the last seconds.
    cluster.ctl("restart", "slurmctld")
    cluster.ctl("kill", "slurmctld")
    assert cluster.ssh("timeout 5 squeue -h").returncode != 0
    cluster.ctl("start", "slurmctld")

    assert state(cluster, before).startswith("PENDING")
    cluster.ssh(f"scontrol release {before}", check=True)
    after = cluster.sbatch("true", "--gres=gpu:1")
    assert ended(cluster, before)[0]["State"] == "COMPLETED"
    assert ended(cluster, after)[0]["State"] == "COMPLETED"


def test_jobs_end_in_accounting_although_it_was_down(cluster: Cluster) -> None:
    cluster.ctl("kill", "slurmdbd")
    job = cluster.sbatch("true", "--gres=gpu:1")
    wait_until(lambda: state(cluster, job).startswith("COMPLETED"), 30, "the job's end in the queue")
    assert cluster.ssh(f"sacct -n -X -j {job}").returncode != 0
    cluster.ctl("start", "slurmdbd")
    assert ended(cluster, job)[0]["State"] == "COMPLETED"


def test_a_node_set_down_fails_its_job(cluster: Cluster) -> None:
    job = cluster.sbatch("sleep 300", "--gres=gpu:1", "--no-requeue")
    wait_until(lambda: state(cluster, job).startswith("RUNNING"), 30, "a running job")
    node = cluster.ssh(f"squeue -h -o %N -j {job}").stdout.strip()
    cluster.root(f"scontrol update nodename={node} state=down reason=test")
    assert ended(cluster, job)[0]["State"] == "NODE_FAIL"
    # It stays down until an administrator (here: `reset`) takes it back. Until the job's CPUs are freed,
    # sinfo reckons it "mixed".
    shown = f"sinfo -h -n {node} -p gpu -o %T"
    wait_until(lambda: cluster.root(shown).stdout.strip() == "down", 30, "a node that is down")


def test_higher_partitions_preempt_low(cluster: Cluster) -> None:
    low = cluster.sbatch("sleep 300", "--partition=low", "--gres=gpu:4", "--nodes=2", "--no-requeue")
    wait_until(lambda: state(cluster, low).startswith("RUNNING"), 30, "a running job")
    high = cluster.sbatch("true", "--gres=gpu:1")
    assert ended(cluster, low)[0]["State"] == "PREEMPTED"
    assert ended(cluster, high)[0]["State"] == "COMPLETED"


def test_the_pinned_host_key_is_demanded(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.ssh("id -un").stdout == "mqi\n"
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    forged = tmp_path / "known_hosts"
    forged.write_text(f"[127.0.0.1]:{cluster.port} {other.with_suffix('.pub').read_text()}")

    refused = subprocess.run(
        [*cluster.ssh_args(known_hosts=forged), "true"], capture_output=True, text=True, check=False
    )

    assert refused.returncode == 255
    assert "host key" in refused.stderr.lower()


def test_another_client_key_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    refused = subprocess.run(
        [*cluster.ssh_args(key_file=other), "true"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 255
    assert "permission denied" in refused.stderr.lower()


def test_the_config_is_private_and_points_here(cluster: Cluster, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    path = cluster.write_config(tmp_path, resources={"gpu_count": 2}, stages=None)
    config = yaml.safe_load(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert config["ssh"]["port"] == cluster.port
    assert config["resources"] == {"max_concurrent_jobs": 10, "gpu_count": 2, "min_disk_space_gb": 1}
    assert "stages" not in config
    assert Path(config["paths"]["local_results"]).is_dir()


def test_faults_can_be_read_by_the_engine(cluster: Cluster) -> None:
    cluster.fault(3, "exit 7")
    assert cluster.ssh("cat /var/lib/mqi-engine/faults/3", check=True).stdout == "exit 7\n"
    cluster.fault(3, "none")
    assert cluster.ssh("ls /var/lib/mqi-engine/faults", check=True).stdout == ""
