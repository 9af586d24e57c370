"""The larger means of breaking things: a stop in a submission, frozen links, full disks, stale views."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import Scene
from tests.support.proxy import Proxy

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

_STOP = """case "$*" in *{stage}.sbatch)
    {before}; touch {reached}; until [ -e {go} ]; do sleep 0.1; done; {after} ;;
esac
exec {real} "$@"
"""


def in_the_middle(scene: Scene, stage: str, *, accepted: bool) -> tuple[str, str]:
    """Let sbatch of a stage wait, after Slurm has accepted it or before it is asked.

    Returns two files on the cluster: the first is there once it waits, it goes on once the second is.
    """
    reached, go = scene.mark("reached"), scene.mark("go")
    before, after = ('out=$({real} "$@"); rc=$?', 'echo "$out"; exit $rc') if accepted else (":", ":")
    text = _STOP.replace("{before}", before).replace("{after}", after)
    scene.wrap("sbatch", text.replace("{stage}", stage).replace("{reached}", reached).replace("{go}", go))
    return reached, go


@contextlib.contextmanager
def through_proxy(scene: Scene) -> Iterator[Proxy]:
    """Lead the scenario's connections through a proxy that can freeze them."""
    with Proxy(scene.cluster.port) as proxy:
        known = scene.home / "known_hosts"
        host_key = scene.cluster.known_hosts.read_text().split(" ", 1)[1]
        known.write_text(f"[127.0.0.1]:{proxy.port} {host_key}")
        scene.configure(ssh={"port": proxy.port, "known_hosts": str(known)})
        yield proxy


def sshd_killed(scene: Scene) -> None:
    """End sshd and every session, as a login node that reboots."""
    scene.cluster.ctl("kill", "sshd")
    scene.cluster.ctl("drop-ssh")


def sshd_apart(scene: Scene) -> None:
    """Give the login node's sessions a view of the file system of their own, for `seen_there` to change."""
    run = "echo $$ >/run/cluster/sshd.pid; exec /usr/sbin/sshd -D -e -f /opt/cluster/sshd_config"
    start = f"setsid unshare -m --propagation private bash -c {shlex.quote(run)}"
    scene.undo.callback(scene.cluster.ctl, "drop-ssh")
    scene.undo.callback(scene.cluster.ctl, "restart", "sshd")
    scene.cluster.ctl("stop", "sshd")
    scene.cluster.ctl("drop-ssh")
    scene.cluster.root(f"{start} >>/var/log/cluster/sshd.log 2>&1 </dev/null &")
    scene.wait(lambda: scene.cluster.ssh("true").returncode == 0, "sshd in a mount namespace of its own")


def seen_there(scene: Scene, command: str) -> None:
    """Run a command in the file system as the login node's sessions see it."""
    scene.cluster.root(f"nsenter -t $(cat /run/cluster/sshd.pid) -m bash -c {shlex.quote(command)}")


def stale(scene: Scene, folder: str) -> None:
    """Let the login node see a folder as it is now, whatever jobs write there from here on."""
    copy = f"/root/stale-{scene.home.name}"
    seen_there(scene, f"cp -a {folder} {copy} && mount --bind {copy} {folder}")
    scene.undo.callback(scene.cluster.root, f"rm -rf {copy}")


def tmpfs(scene: Scene, path: str, size: str, owner: str = "mqi") -> None:
    """Mount a small disk on the cluster."""
    options = f"size={size},mode=700,uid=$(id -u {owner})"
    scene.cluster.root(f"mkdir -p {path} && mount -t tmpfs -o {options} tmpfs {path}")
    scene.undo.callback(scene.cluster.root, f"umount -l {path}")


def local_tmpfs(scene: Scene, path: Path, size: str) -> None:
    """Mount a small disk on this machine."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk here needs root")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    scene.undo.callback(subprocess.run, ["umount", "-l", str(path)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk of a folder up, to the last byte; returns the file that does."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    return filler


def clock(offset: str) -> dict[str, str]:
    """The environment of a daemon whose wall clock is off: `+1h`, or the file that says so."""
    if not FAKETIME:
        pytest.skip("libfaketime is missing (Debian: faketime)")
    source = "FAKETIME_TIMESTAMP_FILE" if offset.startswith("/") else "FAKETIME"
    return {
        "LD_PRELOAD": str(FAKETIME[0]),
        source: offset,
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
