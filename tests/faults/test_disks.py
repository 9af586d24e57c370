"""File systems: full, gone, hanging, and showing files late; on the cluster and on this side."""

from __future__ import annotations

import subprocess

import pytest

from tests.faults.means import fill, local_tmpfs, seen_there, sshd_apart, stale, tmpfs
from tests.faults.scene import Scene

pytestmark = pytest.mark.cluster


def test_late_files(scene: Scene) -> None:
    """A file system that shows what jobs wrote late (a stale NFS client on the login node)."""
    scene.configure(processing={"t_settle_seconds": 60, "t_lag_seconds": 60})
    sshd_apart(scene)
    scene.hang(2)
    scene.hang(3)
    scene.case()
    with scene.running():
        scene.runs()
        scene.runs(index="1")
        folder = f"{scene.workspace}/{scene.key()}/j01"
        # From here on the login node sees the folder as it is now.
        stale(scene, folder)
        scene.heal(2)
        scene.heal(3)
        scene.chain_over()
        scene.wait(lambda: "not there yet" in str(scene.find()["beams"]), "records that are waited for")
        scene.looks_pass(3)
        assert scene.find()["status"] == "processing"
        seen_there(scene, f"umount {folder}")
        scene.mended()
        scene.ends()


def test_too_late_files(scene: Scene) -> None:
    """Files shown later than T_settle: failed, and what comes late is told, never delivered unasked."""
    sshd_apart(scene)
    scene.hang(2)
    scene.case()
    with scene.running():
        scene.runs()
        folder = f"{scene.workspace}/{scene.key()}/j01/dose"
        stale(scene, folder)
        scene.heal(2)
        scene.wait(lambda: scene.find()["beams"][0]["status"] == "failed", "a beam that left nothing")
        seen_there(scene, f"umount {folder}")
        scene.mended()
        scene.made_good("j01 1/1/1 j02 -/1/1")


def test_hanging_files(scene: Scene) -> None:
    """A file system that hangs under the status files of one case: it waits, another goes on."""
    sshd_apart(scene)
    scene.hang(2)
    scene.case()
    with scene.running():
        scene.runs()
        folder = f"{scene.workspace}/{scene.key()}/j01/status"
        # Whoever opens it waits, as on a mount whose server is away.
        never = f"/root/never-{scene.home.name}"
        seen_there(scene, f"mkfifo -m 666 {never}; mount --bind {never} {folder}/interpret-0.jsonl")
        scene.undo.callback(scene.cluster.root, f"rm -f {never}")
        scene.looks_pass(1)
        scene.heal(2)
        scene.case("P002")
        scene.until("completed", "P002")
        assert scene.find()["status"] == "processing"
        seen_there(scene, f"umount {folder}/interpret-0.jsonl")
        scene.mended()
        scene.ends()
        scene.judge("P002")
        scene.judge()


def test_workspace_deleted(scene: Scene) -> None:
    """The workspace is deleted under us while beams run."""
    scene.hang(2)
    scene.hang(3)
    scene.case()
    with scene.running():
        scene.runs()
        scene.cluster.root(f"rm -rf -- {scene.workspace}")
        scene.looks_pass(2)
        scene.heal(2)
        scene.heal(3)
        scene.mended()
        scene.chain_over()
        scene.looks_or_end(10)
        report = scene.judge(submissions=None)
        assert report["results"] == []
        assert report["status"] == "failed" or report["attention"], report


def test_cluster_disk_below_the_least(scene: Scene) -> None:
    """The cluster's disk has less space than we keep free."""
    scene.configure(resources={"min_disk_space_gb": 0.02})
    tmpfs(scene, scene.workspace, "10m")
    scene.case()
    with scene.running():
        scene.told("space")
        scene.cluster.root(f"mount -o remount,size=200m {scene.workspace}")
        scene.mended()
        scene.ends()


def test_cluster_disk_full_under_the_engine(scene: Scene) -> None:
    """The cluster's disk fills up under the engine."""
    tmpfs(scene, scene.workspace, "200m")
    scene.hang(2)
    scene.hang(3)
    scene.case()
    with scene.running():
        scene.runs()
        scene.runs(index="1")
        scene.cluster.root(f"head -c 300M /dev/zero >{scene.workspace}/filler 2>/dev/null || true")
        scene.heal(2)
        scene.heal(3)
        assert scene.ended() == "failed"
        assert scene.find()["results"] == []
        scene.cluster.root(f"rm {scene.workspace}/filler")
        scene.mended()
        scene.made_good(None)


def test_login_tmp_full(scene: Scene) -> None:
    """The login node's /tmp is full."""
    sshd_apart(scene)
    # Only the login node's: on this machine the database has its temporary tables in the same folder.
    seen_there(
        scene, "mount -t tmpfs -o size=64k,mode=1777 tmpfs /tmp; head -c 1M /dev/zero >/tmp/filler || true"
    )
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()


def test_results_on_a_full_disk(scene: Scene) -> None:
    """Disk full on this side: no place for the results."""
    results = scene.home / "results"
    local_tmpfs(scene, results, "20m")
    filler = fill(results)
    scene.case()
    with scene.running():
        scene.told("space")
        scene.chain_over()
        filler.unlink()
        scene.mended()
        scene.ends()


def test_results_disk_fills_up(scene: Scene) -> None:
    """Disk full on this side in the middle of a download."""
    results = scene.home / "results"
    scene.configure(resources={"min_disk_space_gb": 0})
    local_tmpfs(scene, results, "2m")
    scene.case()
    with scene.running():
        scene.told("space")
        subprocess.run(["mount", "-o", "remount,size=50m", str(results)], check=True)
        scene.mended()
        scene.ends()


def test_store_on_a_full_disk(scene: Scene) -> None:
    """The store on a full disk while beams run."""
    local_tmpfs(scene, scene.state, "8m")
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        filler = fill(scene.state)
        scene.heal()
        scene.chain_over()
        daemon = scene.daemon
        assert daemon is not None
        alive = daemon.process.poll() is None
        filler.unlink()
        scene.mended()
        if alive:
            scene.ends()
            return
    with scene.running():
        scene.ends()
