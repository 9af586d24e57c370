"""What administrators do beside us: partitions, reservations, accounts, limits, holds and requeues."""

from __future__ import annotations

from functools import partial

import pytest

from tests.faults.means import in_the_middle
from tests.faults.scene import Scene

pytestmark = pytest.mark.cluster

LIMIT = "sacctmgr --immediate modify user where name=mqi set "


def partition(scene: Scene, name: str, state: str) -> None:
    scene.cluster.root(f"scontrol update partitionname={name} state={state}")
    scene.undo.callback(scene.cluster.root, f"scontrol update partitionname={name} state=up")


def limited(scene: Scene, setting: str, off: str, shown: str) -> None:
    """Set a limit of ours in accounting, and wait until slurmctld knows it."""
    scene.undo.callback(scene.cluster.root, f"{LIMIT}{off}", check=False)
    scene.cluster.root(f"{LIMIT}{setting}")
    asked = "scontrol show assoc_mgr users=mqi flags=assoc"
    scene.wait(lambda: shown in scene.cluster.root(asked).stdout, "the limit")


@pytest.mark.parametrize("state", ["INACTIVE", "DRAIN"])
def test_partition_closed_before(scene: Scene, state: str) -> None:
    """The GPU partition takes no jobs when a case comes, and does later."""
    partition(scene, "gpu", state)
    scene.case()
    with scene.running():
        scene.wait(lambda: "partition" in str(scene.find()).lower(), "the case tells of the partition", 60)
        scene.looks_pass(3)
        assert not scene.over(), scene.find()
        scene.cluster.root("scontrol update partitionname=gpu state=up")
        scene.mended()
        scene.ends()


def test_partition_closed_in_the_middle(scene: Scene) -> None:
    """The GPU partition is set INACTIVE in the middle of the submission, and up again later."""
    reached, go = in_the_middle(scene, "beams", accepted=False)
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        partition(scene, "gpu", "INACTIVE")
        scene.cluster.root(f"touch {go}")
        scene.wait(lambda: "partition" in str(scene.find()).lower(), "the case tells of the partition", 60)
        scene.looks_pass(3)
        assert not scene.over(), scene.find()
        scene.cluster.root("scontrol update partitionname=gpu state=up")
        scene.mended()
        scene.ends()


def test_partition_deleted(scene: Scene) -> None:
    """The GPU partition is deleted before a case is submitted, and made again."""
    again = (
        "scontrol show partition gpu >/dev/null 2>&1 || scontrol create partitionname=gpu nodes=g[1-2] "
        "default=yes maxtime=1-0 defaulttime=60 prioritytier=10 preemptmode=off"
    )
    reached, go = in_the_middle(scene, "beams", accepted=False)
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        scene.undo.callback(scene.cluster.root, again)
        scene.cluster.root("scontrol delete partitionname=gpu")
        scene.cluster.root(f"touch {go}")
        scene.told("partition")
        scene.looks_or_end(3)
        scene.cluster.root(again)
        scene.mended()
        scene.made_good(None)


def test_reservation(scene: Scene) -> None:
    """A maintenance reservation over all nodes holds the whole chain, and is taken away."""
    scene.cluster.root(
        "scontrol create reservation reservationname=maint starttime=now duration=60 "
        "flags=maint,ignore_jobs nodes=ALL users=root"
    )
    scene.undo.callback(scene.cluster.root, "scontrol delete reservationname=maint", check=False)
    scene.case()
    with scene.running():
        scene.runs("interpret", "N/A", state="PENDING")
        scene.said("submitted")
        scene.looks_pass(5)
        scene.cluster.root("scontrol delete reservationname=maint")
        scene.mended()
        scene.ends()


def test_gres_gone(scene: Scene) -> None:
    """Every node's GPUs are set to 0 while beams wait; told, called off by a person, and made again."""
    partition(scene, "gpu", "DOWN")
    scene.case()
    with scene.running():
        scene.runs(state="PENDING")
        # slurmd's own word brings them back: an update to more than it has told is refused.
        again = "scontrol update nodename=g[1-2] gres=; scontrol reconfigure"
        scene.undo.callback(scene.cluster.ctl, "restart", "slurmctld", "slurmd-g1", "slurmd-g2")
        scene.undo.callback(scene.cluster.root, again, check=False)
        scene.cluster.root("scontrol update nodename=g[1-2] gres=gpu:0", check=False)
        scene.cluster.root("scontrol update partitionname=gpu state=up")
        scene.told("BadConstraints")
        assert scene.find()["attention"]
        scene.order("cancel", "P001-f01")
        assert scene.ended() == "cancelled"
        scene.cluster.root(again, check=False)
        scene.cluster.ctl("restart", "slurmctld", "slurmd-g1", "slurmd-g2")
        scene.order("resubmit", "P001-f01")
        scene.mended()
        scene.ends(submissions=None)


def test_account_removed(scene: Scene) -> None:
    """Our user is removed from accounting between upload and submission, and is put back."""
    back = "sacctmgr -i -Q add user mqi account=mqi"
    reached, go = in_the_middle(scene, "interpret", accepted=False)
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission that begins")
        scene.undo.callback(scene.cluster.root, back, check=False)
        scene.cluster.root("sacctmgr -i delete user mqi")
        users = "scontrol show assoc_mgr users=mqi flags=users"
        scene.wait(lambda: "UserName=mqi" not in scene.cluster.root(users).stdout, "a user less")
        scene.cluster.root(f"touch {go}")
        scene.wait(lambda: scene.over() or "ccount" in str(scene.find()), "the case tells", 60)
        scene.cluster.root(back)
        scene.wait(lambda: "UserName=mqi" in scene.cluster.root(users).stdout, "a user again")
        scene.mended()
        scene.made_good(None)


def test_limit_between(scene: Scene) -> None:
    """A submit limit that takes interpret and not the beams, until the case before has ended."""
    limited(scene, "MaxSubmitJobs=4", "MaxSubmitJobs=-1", "MaxSubmitJobs=4(")
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        scene.case("P002")
        scene.told("AssocMaxSubmitJobLimit", "P002")
        scene.heal()
        scene.mended()
        scene.ends()
        scene.ends(name="P002")


def test_max_jobs_zero(scene: Scene) -> None:
    """MaxJobs 0 for us (an admin freezes the account), lifted later."""
    limited(scene, "MaxJobs=0", "MaxJobs=-1", "MaxJobs=0(")
    scene.case()
    with scene.running():
        scene.runs("interpret", "N/A", state="PENDING")
        scene.said("submitted")
        scene.looks_pass(3)
        scene.cluster.root(f"{LIMIT}MaxJobs=-1")
        scene.mended()
        scene.ends()


def test_suspended(scene: Scene) -> None:
    """An admin suspends a running beam, and resumes it."""
    scene.hang()
    scene.case()
    with scene.running():
        job = scene.runs()
        scene.cluster.root(f"scontrol suspend {job}_0")
        scene.told("suspended")
        scene.looks_pass(3)
        scene.cluster.root(f"scontrol resume {job}_0")
        scene.heal()
        scene.mended()
        scene.ends()


def test_time_limit_lowered(scene: Scene) -> None:
    """An admin lowers the time limit of a running beam to what it has used."""
    scene.hang()
    scene.case()
    with scene.running():
        job = scene.runs()
        scene.cluster.root(f"scontrol update jobid={job}_0 timelimit=1")
        scene.until("partial")
        scene.heal()
        scene.mended()
        scene.made_good("j01 1/1/1 j02 -/1/1")


def test_convert_requeued(scene: Scene) -> None:
    """An admin requeues convert while it runs."""
    scene.case()
    with scene.running():
        job = scene.runs("convert", "N/A", state="PENDING")
        scene.cluster.root(
            f'until [ "$(squeue -h -j {job} -o %T)" = RUNNING ]; do sleep 0.05; done; '
            f"scontrol update jobid={job} requeue=1; scontrol requeue {job}",
            check=False,
        )
        scene.mended()
        scene.made_good(None)


def test_name_of_ours(scene: Scene) -> None:
    """Another user submits jobs that bear our names, before ours are there and while they run."""
    reached, go = in_the_middle(scene, "interpret", accepted=False)
    scene.hang()
    scene.case()
    with scene.running():
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        chain = f"{scene.workspace}/{scene.key()}/j01/chain.json"
        names = scene.cluster.root(f"grep -o 'mqi-[a-z0-9]*-[a-z0-9]*-j01-[a-z]*' {chain} | sort -u")
        assert len(names.stdout.split()) == 3, names
        for name in names.stdout.split():
            theirs = f"sbatch --chdir=/tmp -p cpu -J {name} --wrap 'sleep 3; exit 1'"
            scene.cluster.root(f'su other -c "{theirs}"')
        scene.cluster.root(f"touch {go}")
        scene.runs()
        scene.heal()
        scene.mended()
        scene.ends()


def test_all_cancelled_again_and_again(scene: Scene) -> None:
    """`scancel -u mqi` by an admin, three times."""

    def planned(job: str) -> bool:
        return bool(scene.find()["job"] == job)

    scene.hang()
    scene.case()
    with scene.running():
        for following in ("j02", "j03", "j04"):
            scene.runs()
            scene.cluster.root("scancel -u mqi")
            assert scene.ended() == "failed"
            scene.chain_over()
            scene.order("resubmit", "P001-f01")
            scene.wait(partial(planned, following), "the next job")
        scene.runs()
        scene.heal()
        scene.mended()
        scene.ends(submissions="j01 1/1/- j02 -/1/- j03 -/1/- j04 -/1/1")


def test_cleared_state(scene: Scene) -> None:
    """slurmctld comes back with its state cleared while a beam runs."""
    scene.spoilt = True
    scene.hang()
    scene.case()
    with scene.running():
        scene.runs()
        scene.cluster.ctl("stop", "slurmctld")
        scene.cluster.root("rm -rf /var/lib/slurm/ctld/*")
        scene.cluster.ctl("start", "slurmctld")
        scene.heal()
        scene.mended()
        scene.made_good(None)


def test_slurmd_restarted(scene: Scene) -> None:
    """slurmd is killed and started again at once under a running beam, which lives on."""
    scene.hang()
    scene.case()
    with scene.running():
        job = scene.runs()
        scene.told("the engine runs")
        node = scene.cluster.root(f"squeue -h -j {job}_0 -o %N").stdout.strip()
        scene.cluster.ctl("kill", f"slurmd-{node}")
        scene.cluster.ctl("start", f"slurmd-{node}")
        scene.looks_pass(3)
        scene.heal()
        scene.mended()
        # A slurmd that comes back may be taken for a node that failed: then the next job follows by itself.
        scene.ends(submissions=None)


def test_moved(scene: Scene) -> None:
    """An admin moves the waiting array to another partition, raises its priority and lifts its throttle."""
    partition(scene, "gpu", "DOWN")
    scene.case()
    with scene.running():
        job = scene.runs(state="PENDING")
        for change in ("partition=low", "priority=4000000", "arraytaskthrottle=0", "comment=moved"):
            scene.cluster.root(f"scontrol update jobid={job} {change}")
        scene.mended()
        scene.ends()
