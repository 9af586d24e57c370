"""Faults of the way to the cluster: sshd killed in the middle of things, keys refused, sessions rationed."""

from __future__ import annotations

import socket

import pytest

from tests.faults.means import in_the_middle, sshd_killed, through_proxy
from tests.faults.scene import Scene

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("stage", "accepted"),
    [("interpret", True), ("beams", True), ("convert", False)],
    ids=["interpret", "array", "convert"],
)
def test_killed_in_sbatch(scene: Scene, stage: str, accepted: bool) -> None:
    """sshd killed in the middle of sbatch."""
    reached, go = in_the_middle(scene, stage, accepted=accepted)
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        sshd_killed(scene)
        scene.cluster.root(f"touch {go}")
        scene.outage()
        scene.unwrap("sbatch")
        scene.cluster.ctl("start", "sshd")
        scene.mended()
        scene.ends()


def test_login_node_freezes(scene: Scene) -> None:
    """The login node freezes in sbatch, and thaws when the chain has long been completed by another."""
    reached, go = in_the_middle(scene, "beams", accepted=True)
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        scene.cluster.ctl("drop-ssh")
        scene.unwrap("sbatch")
        scene.mended()
        scene.ends()
        scene.cluster.root(f"touch {go}")
        left = "pgrep -u mqi -f submit.sh || true"
        scene.wait(lambda: not scene.cluster.root(left).stdout, "the thawed submission's end")
        scene.judge()


@pytest.mark.parametrize("stage", ["interpret", "convert"])
def test_called_off_while_it_freezes(scene: Scene, stage: str) -> None:
    """The login node freezes in sbatch, the case is cancelled, and then it thaws."""
    reached, go = in_the_middle(scene, stage, accepted=False)
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        scene.cluster.ctl("drop-ssh")
        scene.unwrap("sbatch")
        scene.wait(lambda: scene.find().get("attention"), "a submission in doubt")
        scene.order("cancel", "P001-f01")
        assert scene.ended() == "cancelled"
        scene.mended()
        scene.cluster.root(f"touch {go}")
        left = "pgrep -u mqi -f submit.sh || true"
        scene.wait(lambda: not scene.cluster.root(left).stdout, "the thawed submission's end")
        scene.chain_over()
        report = scene.judge(submissions="none")
        assert (report["status"], report["results"]) == ("cancelled", [])


def test_killed_in_upload(scene: Scene) -> None:
    """sshd killed in the middle of an upload."""
    with through_proxy(scene) as proxy:
        proxy.freeze_after = (30_000, 0)
        scene.case()
        with scene.running():
            scene.wait(proxy.struck.is_set, "an upload half way")
            sshd_killed(scene)
            proxy.freeze_after = (0, 0)
            scene.outage(1)
            scene.cluster.ctl("start", "sshd")
            scene.mended()
            scene.ends()


def test_killed_in_download(scene: Scene) -> None:
    """sshd killed in the middle of a download."""
    with through_proxy(scene) as proxy:
        proxy.freeze_after = (0, 1_000_000)
        scene.case()
        with scene.running():
            scene.wait(proxy.struck.is_set, "a download half way")
            sshd_killed(scene)
            proxy.freeze_after = (0, 0)
            scene.outage(1)
            scene.cluster.ctl("start", "sshd")
            scene.mended()
            scene.ends()


def test_frozen_link(scene: Scene) -> None:
    """Every connection freezes without a word while beams run (a dead switch)."""
    with through_proxy(scene) as proxy:
        scene.hang()
        scene.case()
        with scene.running():
            scene.runs()
            for pipe in list(proxy.pipes):
                pipe.freeze()
            scene.looks_pass(1, "poll_failures")
            scene.heal()
            scene.mended()
            scene.ends()


def test_key_refused(scene: Scene) -> None:
    """The SSH key is refused for a while."""
    keys = "/home/mqi/.ssh/authorized_keys"
    scene.hang()
    scene.case()
    with scene.running() as daemon:
        scene.runs()
        scene.undo.callback(scene.cluster.root, f"[ ! -e {keys}.away ] || mv {keys}.away {keys}")
        scene.cluster.root(f"mv {keys} {keys}.away")
        scene.cluster.ctl("drop-ssh")
        scene.outage(1)
        scene.said("refuses us")
        scene.heal()
        scene.cluster.root(f"mv {keys}.away {keys}")
        daemon.reload()
        scene.mended()
        scene.ends()


def test_host_key_changed(scene: Scene) -> None:
    """The host's key changes while a beam runs, and is the right one again."""
    place, name = "/etc/ssh", "ssh_host_ed25519_key"
    scene.hang()
    scene.case()
    with scene.running() as daemon:
        scene.runs()
        scene.cluster.root(f"cp -a {place}/{name} /root/; cp -a {place}/{name}.pub /root/")
        scene.undo.callback(scene.cluster.ctl, "restart", "sshd")
        scene.undo.callback(scene.cluster.root, f"cp -a /root/{name} /root/{name}.pub {place}/")
        scene.cluster.root(f"rm {place}/{name}; ssh-keygen -q -t ed25519 -N '' -f {place}/{name}")
        scene.cluster.ctl("restart", "sshd")
        scene.cluster.ctl("drop-ssh")
        scene.outage(1)
        scene.said("refuses us")
        scene.heal()
        scene.cluster.root(f"cp -a /root/{name} /root/{name}.pub {place}/")
        scene.cluster.ctl("restart", "sshd")
        daemon.reload()
        scene.mended()
        scene.ends()


def test_one_session(scene: Scene) -> None:
    """sshd with MaxSessions 1."""
    scene.sshd_conf("MaxSessions 1")
    scene.case()
    scene.case("P002")
    with scene.running():
        scene.mended()
        scene.until("completed", "P002")
        scene.until("completed")
        scene.judge("P002")
        scene.judge()


def test_startups_dropped(scene: Scene) -> None:
    """sshd drops every new connection (MaxStartups is used up by others) for a while."""
    scene.sshd_conf("MaxStartups 1:100:1", "LoginGraceTime 300")
    with socket.create_connection(("127.0.0.1", scene.cluster.port)) as other:
        assert other.recv(4) == b"SSH-"
        scene.case()
        with scene.running():
            scene.outage()
            other.close()
            scene.mended()
            scene.ends()
