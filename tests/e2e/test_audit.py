"""A case on the real cluster, told from the audit log with its evidence; the cluster bears the log out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_daemon import GRID, numbers, sample
from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    workspace = f"/home/mqi/{tmp_path.name}"
    yield cluster.write_config(tmp_path, moqui={"grid": GRID}, paths={"remote_workspace": workspace})
    cluster.reset()
    cluster.root(f"rm -rf -- {workspace}")


def test_a_case_is_told_and_the_cluster_bears_it_out(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P700", "--beams", "2", "--layers", "2")
    good, bad = numbers(folder)
    cluster.fault(bad, "exit 3")
    assert mqi(config, "submit", str(folder), "--wait").returncode == 3
    report = shown(config, "P700-f01")
    done = mqi(config, "why", "P700-f01", "--beam", str(good), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    texts = [one["text"] for one in told]
    ids = {beam["number"]: beam["slurm_id"].partition("_")[0] for beam in report["beams"]}
    assert any(f"beams {ids[good]}" in text and "receipts: " in text for text in texts)
    (verdict,) = [one for one in told if f"beam {good} (array index 0): done" in one["text"]]
    said = verdict["data"]["evidence"]
    assert (said["record"]["is"], said["exit_record"]) == ("valid", 0)
    assert all(f"{ids[good]}" in line and "COMPLETED" in line for line in said["queue"])
    record = f"/home/mqi/{config.parent.name}/{report['case_id']}/j01/dose/beam_{good}/result.json"
    assert cluster.ssh(f"sha256sum {record}", check=True).stdout.split()[0] == said["record"]["sha256"]
    assert not [text for text in texts if f"beam {bad} (" in text]
    failed = mqi(config, "why", "P700-f01", "--beam", str(bad)).stdout
    assert f"beam {bad} (array index 1): failed" in failed
    assert "exit record: 3" in failed

    verified = mqi(config, "audit", "verify", "--cluster")
    assert verified.returncode == 0, verified.stdout
    assert "1 chain.json on the cluster compared" in verified.stdout
    chain = f"/home/mqi/{config.parent.name}/{report['case_id']}/j01/chain.json"
    cluster.ssh(f"chmod u+w {chain} && sed -i s/audit_head/audit_tail/ {chain}", check=True)
    found = mqi(config, "audit", "verify", "--cluster")
    assert found.returncode == 1
    assert "on the cluster is another than the store's" in found.stdout
