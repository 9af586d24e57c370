"""What else befalls files, links and this machine: inodes, read-only disks, suspends, hands in folders."""

from __future__ import annotations

import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.faults.means import fill, in_the_middle, local_tmpfs, through_proxy, tmpfs
from tests.faults.scene import Scene
from tests.support.cli import mqi
from tests.support.daemon import DaemonProcess

pytestmark = pytest.mark.cluster


STRICT = """
set -u; set -o noclobber; shopt -s failglob; export BASHOPTS
umask 000; cd /; ulimit -n 64; trap 'echo bye' EXIT
export TMPDIR=/nowhere POSIXLY_CORRECT=1 CDPATH=/tmp:/home/mqi TAR_OPTIONS=--totals
export BLOCK_SIZE=1M DF_BLOCK_SIZE=1M IFS=: LD_PRELOAD=/nowhere.so
export QUOTING_STYLE=shell-always GREP_OPTIONS=--color=always
export BASH_ENV=/home/mqi/.bashrc PYTHONPATH=/nowhere PYTHONOPTIMIZE=2 PYTHONHASHSEED=1 PS4='+ ' COLUMNS=20
"""


def no_traceback(scene: Scene) -> None:
    daemon = scene.daemon
    assert daemon is not None
    assert "Traceback" not in daemon.said, daemon.said[-6000:]


def test_cluster_inodes(scene: Scene) -> None:
    """The cluster's disk has space and no inodes, before the upload; freed later."""
    tmpfs(scene, scene.workspace, "200m")
    scene.cluster.root(f"mount -o remount,nr_inodes=12 {scene.workspace}")
    scene.case()
    with scene.running():
        scene.wait(
            lambda: scene.find().get("attention") or "space" in str(scene.find()), "the case tells", 120
        )
        scene.cluster.root(f"mount -o remount,nr_inodes=100000 {scene.workspace}")
        scene.mended()
        scene.made_good(None)
        no_traceback(scene)


def test_cluster_inodes_under_the_engine(scene: Scene) -> None:
    """The cluster's disk runs out of inodes while a beam runs."""
    tmpfs(scene, scene.workspace, "200m")
    scene.hang(2)
    scene.hang(3)
    scene.case()
    with scene.running():
        scene.runs()
        scene.runs(index="1")
        used = scene.cluster.root(f"df --output=iused {scene.workspace} | tail -1").stdout.strip()
        scene.cluster.root(f"mount -o remount,nr_inodes={used} {scene.workspace}")
        scene.heal(2)
        scene.heal(3)
        assert scene.ended() == "failed"
        scene.cluster.root(f"mount -o remount,nr_inodes=100000 {scene.workspace}")
        scene.mended()
        scene.made_good(None)
        no_traceback(scene)


def test_workspace_read_only(scene: Scene) -> None:
    """The workspace turns read-only while beams run (an error of the file server), and writable again."""
    tmpfs(scene, scene.workspace, "200m")
    scene.hang(2)
    scene.hang(3)
    scene.case()
    with scene.running():
        scene.runs()
        scene.runs(index="1")
        # Over what is open for writing: that goes on, and whoever opens anew is refused.
        scene.cluster.root(f"cd {scene.workspace} && mount --bind . .")
        read_only = f"mount -o remount,bind,ro {scene.workspace}"
        # Busy for as long as somebody writes there.
        scene.wait(lambda: scene.cluster.root(read_only, check=False).returncode == 0, "a mount read-only")
        scene.looks_pass(2)
        scene.heal(2)
        scene.heal(3)
        scene.chain_over()
        assert scene.ended() == "failed"
        assert scene.find()["results"] == []
        scene.cluster.root(f"umount {scene.workspace}")
        scene.mended()
        scene.made_good(None)
        no_traceback(scene)


def test_workspace_read_only_before(scene: Scene) -> None:
    """The workspace is read-only when a case comes, and writable later."""
    tmpfs(scene, scene.workspace, "200m")
    scene.cluster.root(f"mount -o remount,ro {scene.workspace}")
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.find().get("attention") or "ead-only" in str(scene.find()), "the case tells")
        scene.cluster.root(f"mount -o remount,rw {scene.workspace}")
        scene.mended()
        scene.made_good(None)
        no_traceback(scene)


def test_local_inodes(scene: Scene) -> None:
    """The disk of the results has space and no inodes; freed later."""
    results = scene.home / "results"
    local_tmpfs(scene, results, "50m")
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", str(results)], check=True)
    scene.case()
    with scene.running():
        scene.runs("convert", "N/A", state="PENDING")
        scene.chain_over()
        scene.wait(lambda: scene.find().get("attention") or "space" in str(scene.find()), "the case tells")
        subprocess.run(["mount", "-o", "remount,nr_inodes=10000", str(results)], check=True)
        scene.mended()
        scene.ends()
        no_traceback(scene)


def test_few_files(scene: Scene) -> None:
    """The daemon has no file descriptors left (ulimit -n) while beams run, and has some again."""
    scene.hang()
    scene.case()
    with scene.running() as daemon:
        scene.runs()
        pid = daemon.process.pid
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={used - 1}:4096"], check=True)
        scene.case("P002")
        scene.said("Too many open files")
        scene.heal()
        scene.chain_over()
        assert daemon.process.poll() is None, daemon.said
        subprocess.run(["prlimit", f"--pid={pid}", "--nofile=4096:4096"], check=True)
        scene.mended()
        scene.ends()
        scene.ends(name="P002")
        no_traceback(scene)


@pytest.mark.parametrize("where", ["upload", "download"])
def test_suspended_in_transfer(scene: Scene, where: str) -> None:
    """This machine is suspended in a transfer, and its sessions are gone when it wakes."""
    with through_proxy(scene) as proxy:
        proxy.freeze_after = (30_000, 0) if where == "upload" else (0, 1_000_000)
        scene.case()
        with scene.running() as daemon:
            scene.wait(proxy.struck.is_set, "a transfer half way")
            daemon.process.send_signal(signal.SIGSTOP)
            scene.cluster.ctl("drop-ssh")
            proxy.freeze_after = (0, 0)
            for pipe in list(proxy.pipes):
                pipe.close()
            daemon.process.send_signal(signal.SIGCONT)
            scene.mended()
            scene.ends()
            no_traceback(scene)


def test_suspended_while_submitting(scene: Scene) -> None:
    """This machine is suspended in a submission, which ends well meanwhile; the chain runs to its end."""
    reached, go = in_the_middle(scene, "beams", accepted=True)
    scene.case()
    with scene.running() as daemon:
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        daemon.process.send_signal(signal.SIGSTOP)
        scene.cluster.root(f"touch {go}")
        scene.wait(lambda: scene.exists(f"{scene.workspace}/{scene.key()}/j01/receipt.convert"), "receipts")
        scene.chain_over()
        scene.cluster.ctl("drop-ssh")
        daemon.process.send_signal(signal.SIGCONT)
        scene.mended()
        scene.ends()
        no_traceback(scene)


def test_no_python(scene: Scene) -> None:
    """The stages' python is not there on the compute nodes for a while."""
    python = "/usr/local/bin/stage-python"
    scene.configure(stages={"python": python})
    scene.undo.callback(scene.cluster.root, f"rm -f {python}")
    scene.case()
    with scene.running():
        assert scene.ended() == "failed"
        assert python in mqi(scene.config, "logs", "P001-f01").stdout
        scene.cluster.root(f"ln -s /usr/bin/python3 {python}")
        scene.mended()
        scene.made_good(None)
        no_traceback(scene)


def test_no_python_under_the_beams(scene: Scene) -> None:
    """The stages' python goes away between interpret and the beams, and comes back."""
    python = "/usr/local/bin/stage-python"
    scene.configure(stages={"python": python})
    scene.cluster.root(f"ln -s /usr/bin/python3 {python}")
    scene.undo.callback(scene.cluster.root, f"rm -f {python}")
    scene.cluster.root("scontrol update partitionname=gpu state=down")
    scene.undo.callback(scene.cluster.root, "scontrol update partitionname=gpu state=up")
    scene.case()
    with scene.running():
        job = scene.runs(state="PENDING")
        scene.wait(
            lambda: "Dependency" not in scene.cluster.root(f"squeue -h -j {job} -o %r").stdout, "beams free"
        )
        scene.cluster.root(f"rm {python}; scontrol update partitionname=gpu state=up")
        assert scene.ended() == "failed"
        scene.cluster.root(f"ln -s /usr/bin/python3 {python}")
        scene.mended()
        scene.made_good(None)
        no_traceback(scene)


def test_folder_unreadable(scene: Scene) -> None:
    """The case's folder on the cluster has mode 000 while beams end, and is as it was later."""
    scene.hang(2)
    scene.case()
    with scene.running():
        scene.runs()
        folder = f"{scene.workspace}/{scene.key()}/j01"
        scene.cluster.root(f"chmod 000 {folder}")
        scene.looks_pass(3)
        scene.cluster.root(f"chmod 700 {folder}")
        scene.heal(2)
        scene.mended()
        scene.made_good(None)
        no_traceback(scene)


@pytest.mark.parametrize(
    ("damage", "harm"),
    [
        ("find dose -path '*beam_2*' -name result.json -delete", False),
        ("f=$(find dose -name '*.raw' | head -1); printf XXXX | dd of=$f bs=1 seek=1000 conv=notrunc", False),
        (
            "f=$(find results -name '*.dcm' | head -1); printf XX | dd of=$f bs=1 seek=90000 conv=notrunc",
            True,
        ),
        ("rm $(find results -name '*.dcm' | head -1)", True),
    ],
    ids=["a beam's record removed", "a dose changed", "an RT Dose changed", "an RT Dose removed"],
)
def test_hands_on_results(scene: Scene, damage: str, harm: bool) -> None:
    """Somebody's hands on the cluster after the verdicts and before the download."""
    results = scene.home / "results"
    local_tmpfs(scene, results, "20m")
    filler = fill(results)
    scene.case()
    with scene.running():
        scene.told("no space")
        scene.chain_over()
        scene.cluster.root(f"cd {scene.workspace}/{scene.key()}/j01; {damage}")
        filler.unlink()
        scene.mended()
        assert scene.ended() == ("partial" if harm else "completed")
        if not harm:
            scene.judge()
            return
        download = scene.find()["tasks"][-1]
        assert "--convert-only" in download["way_on"], download
        scene.order("resubmit", "P001-f01", "--convert-only")
        scene.ends(submissions="j01 1/1/1 j02 -/-/1")


def test_large_banner(scene: Scene) -> None:
    """sshd with a banner of 100 kB."""
    scene.cluster.root("head -c 75000 /dev/urandom | base64 >/etc/ssh/large-banner")
    scene.sshd_conf("Banner /etc/ssh/large-banner")
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()
        no_traceback(scene)


def test_results_folder_removed(scene: Scene) -> None:
    """The folder of the results is removed here in the middle of a download."""
    with through_proxy(scene) as proxy:
        proxy.freeze_after = (0, 1_000_000)
        scene.case()
        with scene.running():
            scene.wait(proxy.struck.is_set, "a download half way")
            shutil.rmtree(scene.home / "results")
            proxy.freeze_after = (0, 0)
            for pipe in list(proxy.pipes):
                pipe.thaw()
            scene.mended()
            scene.ends()
            no_traceback(scene)


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_case_folder(scene: Scene, how: str) -> None:
    """The case's folder here in the middle of the upload."""
    with through_proxy(scene) as proxy:
        proxy.freeze_after = (30_000, 0)
        scene.case()
        folder, kept = scene.home / "cases" / "P001", scene.home / "kept"
        with scene.running():
            scene.wait(proxy.struck.is_set, "an upload half way")
            shutil.copytree(folder, kept)
            if how == "removed":
                shutil.rmtree(folder)
            for path in folder.rglob("*.ptn"):
                path.write_bytes(path.read_bytes()[:-14] + b"\1" * 14)
            proxy.freeze_after = (0, 0)
            for pipe in list(proxy.pipes):
                pipe.close()
            scene.mended()
            scene.told("cannot be entered" if how == "removed" else "has changed")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(kept, folder)
            if how == "changed":
                assert scene.ended() == "failed"
                scene.order("resubmit", "P001-f01")
            scene.ends()
            no_traceback(scene)


def test_garbage_configuration(scene: Scene) -> None:
    """The configuration is replaced by garbage, and SIGHUP."""
    scene.hang()
    scene.case()
    with scene.running() as daemon:
        scene.runs()
        good = scene.config.read_bytes()
        for count, garbage in enumerate((b"\0\xff\xfe", b"ssh: [", b"- a\n- b\n", b"app: &a\n  x: *a\n")):
            scene.config.write_bytes(garbage)
            daemon.reload()
            scene.wait(partial(told, daemon, "kept as they were", count + 1), "a word of each", 30)
        scene.config.write_bytes(good)
        daemon.reload()
        scene.heal()
        scene.mended()
        scene.ends()
        no_traceback(scene)


def told(daemon: DaemonProcess, words: str, times: int) -> bool:
    return daemon.said.count(words) >= times


def test_store_deleted(scene: Scene) -> None:
    """The store's file is deleted while beams run: the daemon ends, and its next life finds the job again."""
    scene.hang()
    scene.case()
    with scene.running() as daemon:
        scene.runs()
        for name in ("mqi.sqlite", "mqi.sqlite-wal", "mqi.sqlite-shm"):
            (scene.state / name).unlink(missing_ok=True)
        scene.heal()
        scene.said("moved or removed while it was in use")
        scene.wait(lambda: daemon.process.poll() == 1, "its end")
        no_traceback(scene)
    with scene.running():
        scene.mended()
        scene.ends()
        no_traceback(scene)


def test_same_plan_twice(scene: Scene) -> None:
    """Two folders with the same case appear at once."""
    scene.case()
    shutil.copytree(scene.home / "cases" / "P001", scene.home / "cases" / "P001-copy")
    with scene.running():
        scene.mended()
        scene.ends()
        assert len(scene.cases()) == 1, scene.cases()
        no_traceback(scene)


def test_killed_while_it_cancels(scene: Scene) -> None:
    """The daemon is killed in the middle of its scancel for a person's `cancel`."""
    scene.hang()
    scene.case()
    reached, go = scene.mark("reached"), scene.mark("go")
    wait = f"touch {reached}; until [ -e {go} ]; do sleep 0.1; done"
    scene.wrap("scancel", f'{wait}; exec {{real}} "$@"\n')
    with scene.running() as daemon:
        scene.runs()
        scene.order("cancel", "P001-f01")
        scene.wait(lambda: scene.exists(reached), "an order half way")
        daemon.kill()
    scene.cluster.root(f"touch {go}")
    scene.unwrap("scancel")
    with scene.running():
        scene.mended()
        assert scene.ended() in ("cancelled", "partial")
        scene.heal()
        report = scene.judge(submissions=None)
        assert (report["beams"][0]["status"], report["results"]) == ("cancelled", [])
        no_traceback(scene)


def test_killed_while_it_resubmits(scene: Scene) -> None:
    """The daemon is killed in the middle of the submission of a person's `resubmit`."""
    scene.hang()
    scene.case()
    with scene.running() as daemon:
        scene.cluster.root(f"scancel {scene.runs()}")
        assert scene.ended() in ("failed", "partial")
        reached, go = in_the_middle(scene, "beams", accepted=True)
        scene.order("resubmit", "P001-f01")
        scene.wait(lambda: scene.exists(reached), "an order half way")
        daemon.kill()
    scene.cluster.root(f"touch {go}")
    scene.unwrap("sbatch")
    scene.heal()
    with scene.running():
        scene.mended()
        scene.ends(submissions=None)
        no_traceback(scene)


def test_strict_profile(scene: Scene) -> None:
    """A login profile with strict shell options, CDPATH, TMPDIR, TAR_OPTIONS, LD_PRELOAD and the like."""
    scene.profile(STRICT)
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()
        no_traceback(scene)


def test_login_shell(scene: Scene) -> None:
    """Our account's login shell is a plain /bin/sh."""
    scene.undo.callback(scene.cluster.root, "usermod -s /bin/bash mqi")
    scene.cluster.root("usermod -s /bin/sh mqi")
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()
        no_traceback(scene)


def test_slow_profile(scene: Scene) -> None:
    """A login profile that takes three seconds (modules on a slow file system)."""
    scene.profile("sleep 3\n")
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()
        no_traceback(scene)
