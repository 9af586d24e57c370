"""`sinfo` of a real cluster, read over SSH: GPUs in all, in use, and on nodes out of service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.core.gpu_inventory import NodeGpus
from mqi_hpc.infrastructure.executors import RemoteExecutor
from mqi_hpc.infrastructure.slurm.gpus import read_cluster_gpus
from tests.contract.test_transport import pool
from tests.support.cli import mqi
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture
def shell(cluster: Cluster) -> Iterator[RemoteExecutor]:
    cluster.reset()
    shell = RemoteExecutor(pool(cluster))
    yield shell
    shell.close()
    cluster.reset()


def gpus(shell: RemoteExecutor) -> dict[str, NodeGpus]:
    return {node.node: node for node in read_cluster_gpus(shell, 60)}


def test_gpus_in_all_and_in_use(cluster: Cluster, shell: RemoteExecutor) -> None:
    before = gpus(shell)
    assert {name: (node.total, node.used, node.free) for name, node in before.items()} == {
        "g1": (4, 0, 4),
        "g2": (4, 0, 4),
    }
    assert all(node.partitions == ("gpu", "low") and node.types == {} for node in before.values())
    cluster.sbatch("sleep 600", "--gres=gpu:3", "--nodelist=g1", "--partition=gpu")
    busy = wait_until(lambda: (now := gpus(shell))["g1"].used and now, 60, "GPUs in use")
    assert busy
    assert (busy["g1"].used, busy["g1"].free, busy["g1"].state) == (3, 1, "mixed")
    assert (busy["g2"].used, busy["g2"].free) == (0, 4)


def test_a_drained_node_has_none_to_give(cluster: Cluster, shell: RemoteExecutor) -> None:
    cluster.root("scontrol update nodename=g2 state=drain reason=test")
    node = wait_until(lambda: (n := gpus(shell)["g2"]).state == "drained" and n, 60, "a drained node")
    assert (node.total, node.used, node.free, node.usable) == (4, 0, 0, False)


def test_settings_of_the_account_change_nothing(cluster: Cluster, shell: RemoteExecutor) -> None:
    noise = "export SINFO_FORMAT=%N SINFO_ALL=no SLURM_TIME_FORMAT=relative\necho noise\n"
    cluster.ssh("cp -p ~/.bashrc ~/.bashrc.was; { cat; cat ~/.bashrc.was; } > ~/.bashrc", noise)
    try:
        assert set(gpus(shell)) == {"g1", "g2"}
    finally:
        cluster.ssh("mv ~/.bashrc.was ~/.bashrc || rm ~/.bashrc")


def test_a_controller_that_is_down_is_an_error_not_no_gpus(cluster: Cluster, shell: RemoteExecutor) -> None:
    cluster.ctl("stop", "slurmctld")
    try:
        with pytest.raises(ConnectionError, match="sinfo failed with exit code") as caught:
            read_cluster_gpus(shell, 5)
    finally:
        cluster.ctl("start", "slurmctld")
    assert caught.value.where == shell.target
    assert "sinfo" in caught.value.fix


def test_the_command(cluster: Cluster, tmp_path: Path) -> None:
    config = cluster.write_config(tmp_path, resources={"gpu_count": 3})
    done = mqi(config, "gpus")
    assert done.returncode == 0, done.stderr
    assert "cluster: 8 of 8 GPUs free" in done.stdout
    assert "our budget: 0 of 3 slots in use" in done.stdout
    told = json.loads(mqi(config, "gpus", "--json").stdout)
    assert [node["node"] for node in told["cluster"]] == ["g1", "g2"]
    assert told["budget"] == {"used": 0, "total": 3}


def test_the_command_without_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    config = cluster.write_config(tmp_path, ssh={"port": 1})
    done = mqi(config, "gpus")
    assert (done.returncode, "our budget" in done.stdout) == (4, True)
    assert "Traceback" not in done.stderr
    done = mqi(config, "gpus", "--json")
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (4, 4)
