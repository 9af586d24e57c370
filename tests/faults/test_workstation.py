"""This side: clocks that are off, power cuts, two daemons; and what login profiles and plugins say."""

from __future__ import annotations

import pytest

from tests.faults.means import clock, in_the_middle, through_proxy
from tests.faults.scene import Scene, copy_of
from tests.support.cli import mqi
from tests.support.daemon import DaemonProcess

pytestmark = pytest.mark.cluster

NOISE = """
echo 'Welcome to the cluster'; echo 'WARNING: quota exceeded' >&2; printf '\\036 no newline'
echo '12345'; echo 'Submitted batch job 12345' >&2
"""
HOSTILE = """
export SQUEUE_FORMAT='%i %u' SQUEUE_STATES=RUNNING SQUEUE_SORT=-i SQUEUE_USERS=other SQUEUE_PARTITION=low
export SACCT_FORMAT=jobid SLURM_TIME_FORMAT=relative SLURM_CLUSTERS=nowhere SLURM_BITSTR_LEN=8
export SBATCH_PARTITION=low SBATCH_ARRAY_INX=7-9 SBATCH_REQUEUE=1 SBATCH_EXPORT=NIL SBATCH_DEBUG=1
export SBATCH_TIMELIMIT=1 SBATCH_JOB_NAME=mine SBATCH_ACCOUNT=nobody SBATCH_DEPENDENCY=singleton
export SCANCEL_STATE=RUNNING SCANCEL_INTERACTIVE=1 LC_ALL=tr_TR.UTF-8 TZ=Asia/Seoul
alias squeue=false sbatch=false; squeue() { false; }; sbatch() { false; }; export -f squeue sbatch
"""


@pytest.mark.parametrize("offset", ["+1h", "-1h"])
def test_clock_off(scene: Scene, offset: str) -> None:
    """This machine's clock is off against the cluster's."""
    scene.case()
    with scene.running(clock(offset)):
        scene.mended()
        scene.ends()


def test_clock_steps(scene: Scene) -> None:
    """This machine's clock steps by an hour, forth and back, while beams run."""
    says = scene.home / "clock"
    says.write_text("+0\n")
    fake = clock(str(says))
    scene.hang()
    scene.case()
    with scene.running(fake):
        scene.runs()
        for step in ("+1h", "-1h", "+0"):
            says.write_text(f"{step}\n")
            scene.looks_pass(2)
        scene.heal()
        scene.mended()
        scene.ends()


def test_noisy_profile(scene: Scene) -> None:
    """A login profile that prints on stdout and stderr."""
    scene.profile(NOISE)
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()


def test_hostile_profile(scene: Scene) -> None:
    """A login profile with hostile SQUEUE_*, SBATCH_*, SLURM_*, aliases and functions."""
    scene.profile(HOSTILE)
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()


LUA = """
function slurm_job_submit(desc, parts, uid)
  slurm.log_user("NOTICE: your project has 12345 core hours left")
  slurm.log_user("Submitted batch job 99999")
  return slurm.SUCCESS
end
function slurm_job_modify(desc, rec, parts, uid)
  slurm.log_user("NOTICE: modified")
  return slurm.SUCCESS
end
return slurm.SUCCESS
"""


def test_job_submit_noise(scene: Scene) -> None:
    """A job_submit plugin that talks to whoever submits."""
    scene.cluster.root("cat >/etc/slurm/job_submit.lua", LUA)
    scene.slurm_conf("JobSubmitPlugins=lua")
    scene.undo.callback(scene.cluster.ctl, "restart", "slurmctld")
    scene.cluster.ctl("restart", "slurmctld")
    said = scene.cluster.ssh("sbatch --parsable --hold --wrap true")
    assert "12345" in said.stderr, said
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()


def test_wrapped_sbatch(scene: Scene) -> None:
    """A site's wrapper around sbatch that prints banners with numbers on both streams."""
    banner = (
        'echo "=== Stampede 3 ==="; echo 777 jobs queued >&2; {real} "$@"; rc=$?; echo "bye 42"; exit $rc\n'
    )
    scene.wrap("sbatch", banner)
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()


def test_lying_sbatch(scene: Scene) -> None:
    """sbatch is accepted but says "Socket timed out" (its reply was lost)."""
    once = scene.mark("lied")
    scene.wrap(
        "sbatch",
        f'if [ -e {once} ]; then exec {{real}} "$@"; fi; touch {once}; {{real}} "$@" >/dev/null\n'
        'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2\n'
        "exit 1\n",
    )
    scene.case()
    with scene.running():
        scene.told("not known")
        scene.mended()
        scene.ends()


def test_second_daemon(scene: Scene) -> None:
    """A second daemon on the same store."""
    scene.hang()
    scene.case()
    with scene.running() as daemon:
        scene.runs()
        second = mqi(scene.config, "run")
        assert second.returncode == 5
        assert str(daemon.process.pid) in second.stderr
        scene.heal()
        scene.mended()
        scene.ends()


def test_copied_store(scene: Scene) -> None:
    """Two daemons on two copies of one store (a workstation restored from a backup beside the living one)."""
    scene.hang()
    scene.cluster.root("scontrol update partitionname=cpu state=down")
    scene.undo.callback(scene.cluster.root, "scontrol update partitionname=cpu state=up")
    assert mqi(scene.config, "status", "--json").returncode == 0
    with scene.running() as daemon:
        scene.wait((scene.state / "metrics.prom").exists, "a daemon that runs")
        assert daemon.stop()[0] == 0
    twin = scene.home / "twin"
    copy_of(scene.state, twin / "state")
    for name in ("results", "cases"):
        (twin / name).mkdir(parents=True)
    scene.cluster.write_config(twin, **scene.settings)
    scene.case()
    copy_of(scene.home / "cases", twin / "cases-there")
    (twin / "cases").rmdir()
    (twin / "cases-there").rename(twin / "cases")
    with DaemonProcess(twin / "config.yaml") as other, scene.running():
        scene.runs("interpret", "N/A", state="PENDING")
        scene.cluster.root("scontrol update partitionname=cpu state=up")
        scene.runs()
        scene.looks_pass(3)
        scene.heal()
        scene.mended()
        scene.ends()
        other.until({"P001-f01": "completed"})


def test_foreign_workspace(scene: Scene) -> None:
    """Two installations set to one workspace: the second is refused."""
    scene.case()
    with scene.running():
        scene.mended()
        scene.ends()
        twin = scene.home / "twin"
        scene.cluster.write_config(twin, **scene.settings)
        made = mqi(twin / "config.yaml", "sample-case", str(twin / "cases" / "P009"), "--beams", "1")
        assert made.returncode == 0, made.stderr
        done = mqi(twin / "config.yaml", "submit", str(twin / "cases" / "P009"), "--wait")
        assert done.returncode not in (0, 3), done.stdout
        assert "another" in (done.stderr + done.stdout), done.stderr + done.stdout
        scene.judge()


def test_power_cut(scene: Scene) -> None:
    """Power cut here in the middle of a download: what was not synced is garbage."""
    with through_proxy(scene) as proxy:
        proxy.freeze_after = (0, 1_000_000)
        scene.case()
        with scene.running() as daemon:
            scene.wait(proxy.struck.is_set, "a download half way")
            daemon.kill()
        proxy.freeze_after = (0, 0)
        # As journals leave it: lengths are right, what is in them was never written.
        parts = [p for p in (scene.home / "results").rglob("*") if p.is_file() and p.suffix != ".dcm"]
        for part in parts:
            size = part.stat().st_size
            part.write_bytes(b"\0" * size)
        wal = scene.state / "mqi.sqlite-wal"
        if wal.exists():
            with wal.open("ab") as file:
                file.write(b"\0" * 2000)
        with scene.running():
            scene.mended()
            scene.ends()


def test_power_cut_while_submitting(scene: Scene) -> None:
    """Power cut here in the middle of a submission."""
    reached, go = in_the_middle(scene, "beams", accepted=True)
    scene.case()
    with scene.running() as daemon:
        scene.wait(lambda: scene.exists(reached), "a submission half way")
        daemon.kill()
    scene.cluster.root(f"touch {go}")
    scene.unwrap("sbatch")
    with scene.running():
        scene.mended()
        scene.ends()
