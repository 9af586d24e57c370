"""What befalls jobs on a real cluster, and what is said of it: verdict, attention, way on, next."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_exactly_once import Site, live, make_site, ran_once, receipts, rows
from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster, wait_until
from tests.support.daemon import DaemonProcess

pytestmark = pytest.mark.cluster

QUICK = {
    "quiet_seconds": 1,
    "scan_interval_seconds": 1,
    "poll_max_seconds": 2,
    "submit_timeout_seconds": 12,
    "t_lag_seconds": 8,
    "t_settle_seconds": 8,
    "debounce_seconds": 3,
}
PATIENCE = 150.0
DAY = "1-00:00:00"

Report = dict[str, Any]


@pytest.fixture
def cleared(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for partition in ("cpu", "gpu", "low"):
        cluster.root(f"scontrol update partitionname={partition} state=up maxtime={DAY}")
    cluster.reset()
    cluster.root(f"rm -rf -- /home/mqi/{tmp_path.name}-*")


@pytest.fixture
def site(cluster: Cluster, cleared: Path) -> Site:
    return make_site(cluster, cleared, processing=QUICK)


def beam(site: Site, label: str, at: int) -> Report:
    found: Report = shown(site.config, label)["beams"][at]
    return found


def verdict(site: Site, label: str, at: int, wanted: str) -> Report:
    """Wait until a beam (by array index) has a verdict, and return what is said of it."""

    def there() -> Report:
        found = beam(site, label, at)
        assert found["verdict"] == wanted or found["status"] in ("pending", "running"), found
        return found if found["verdict"] == wanted else {}

    try:
        return wait_until(there, PATIENCE, f"{wanted}: beam {at} of {label}")
    except Exception as error:
        error.add_note(str(shown(site.config, label)))
        raise


def ended(site: Site, key: str, wanted: Mapping[str, str], job: str = "j01") -> None:
    """Wait until accounting has a row of each of `wanted`, by "beams_1" and the like: it hears late."""

    def there() -> bool:
        found = set()
        for slurm_id, name, state, code in rows(site.cluster, [key]):
            at = slurm_id.partition("_")[2]
            stage = name.rsplit("-", 1)[1] + (f"_{at}" if at else "")
            found.add((name.split("-")[-2], stage, f"{state} {code}"))
        return {(job, stage, said) for stage, said in wanted.items()} <= found

    try:
        wait_until(there, 90, f"{wanted} in accounting")
    except Exception as error:
        error.add_note(str(rows(site.cluster, [key])))
        raise


def known(site: Site, name: str) -> list[int]:
    """The DICOM beam numbers of a sample case, by array index."""
    return sorted(
        int(line.split(",")[1])
        for info in (site.config.parent / "cases" / name).rglob("PlanInfo.txt")
        for line in info.read_text().splitlines()
        if line.startswith("DICOM_BEAM_NUMBER")
    )


@contextmanager
def running(site: Site, *names: str, hangs: tuple[int, ...]) -> Iterator[tuple[DaemonProcess, list[str]]]:
    """A daemon with cases of which the beams `hangs` run and do not end; yields their labels too."""
    for name in names:
        site.drop(name)
    for at in hangs:
        site.cluster.fault(known(site, names[0])[at], "hang")
    labels = [f"{name}-f01" for name in names]
    with site.daemon() as daemon:
        daemon.until(dict.fromkeys(labels, "processing"))
        yield daemon, labels


def let_go(site: Site) -> None:
    """Let every engine that hangs go on."""
    site.cluster.root("rm -f /var/lib/mqi-engine/faults/*")


def resubmit(site: Site, label: str) -> None:
    done = mqi(site.config, "resubmit", label)
    assert done.returncode == 0, done.stderr


def nexts(site: Site, label: str) -> list[tuple[str, str | None]]:
    return [(one["cause"], one["at"]) for one in shown(site.config, label)["next"]]


# Waiting for a person


def test_suspended_held_and_blocked_beams_are_told_and_go_on(cluster: Cluster, cleared: Path) -> None:
    """One beam at a time: the second is held by an admin, then the partition's time is cut."""
    budget = {"gpu_count": 1, "max_concurrent_jobs": 30}
    site = make_site(cluster, cleared, processing=QUICK, resources=budget)
    with running(site, "W", hangs=(0,)) as (daemon, (label,)):
        first = verdict(site, label, 0, "running")["slurm_id"]
        second = beam(site, label, 1)["slurm_id"]
        cluster.root(f"scontrol suspend {first}")
        assert verdict(site, label, 0, "suspended")["way_on"] == ""
        assert shown(site.config, label)["attention"] is None
        cluster.root(f"scontrol resume {first}")
        verdict(site, label, 0, "running")

        cluster.root(f"scontrol hold {second}")
        held = verdict(site, label, 1, "held")
        assert held["detail"] == "JobHeldAdmin"
        assert "scontrol release" in held["way_on"]
        let_go(site)
        verdict(site, label, 0, "done")
        report = shown(site.config, label)
        assert (report["status"], report["next"]) == ("processing", [])
        assert "held: JobHeldAdmin" in report["attention"]

        # Not by the job's own limit: what root asks for, Slurm lets pass.
        cluster.root("scontrol update partitionname=gpu maxtime=30")
        cluster.root(f"scontrol release {second}")
        blocked = verdict(site, label, 1, "blocked")
        assert blocked["detail"] == "PartitionTimeLimit"
        assert "mend what Slurm names" in blocked["way_on"]
        assert "blocked: PartitionTimeLimit" in shown(site.config, label)["attention"]
        cluster.root(f"scontrol update partitionname=gpu maxtime={DAY}")
        daemon.until({label: "completed"})
        report = shown(site.config, label)
        assert (report["attention"], report["job"]) == (None, "j01")
        ran_once(site, [report["case_id"]])


# Interpret fails

LABELS = ("C-f01", "I-f01")


def test_what_waits_for_a_failed_interpret_is_cancelled(site: Site) -> None:
    """Slurm says DependencyNeverSatisfied of the array for ever, and would run convert after it."""
    site.cluster.root("scontrol update partitionname=cpu state=down")
    site.drop("I", "C")
    with site.daemon() as daemon:
        keys = {case["label"]: case["case_id"] for case in daemon.until(dict.fromkeys(LABELS, "processing"))}
        for label in LABELS:
            wait_until(lambda: shown(site.config, label)["submission"] == "standing", 60, "a chain")  # noqa: B023
            attention = wait_until(lambda: shown(site.config, label)["attention"], 60, "attention")  # noqa: B023
            assert "blocked: PartitionDown" in attention
        # One way on from there is to give it up.
        given_up = mqi(site.config, "cancel", "C-f01")
        assert given_up.returncode in (0, 1), given_up.stderr
        daemon.until({"C-f01": "cancelled"})
        assert shown(site.config, "C-f01")["attention"] is None
        key = keys["I-f01"]
        site.cluster.root(f"echo damaged >>{site.folder(key)}/stages.pyz")
        site.cluster.root("scontrol update partitionname=cpu state=up")
        daemon.until({"I-f01": "failed"})
        report = shown(site.config, "I-f01")
        verdicts = {task["task"]: task["verdict"] for task in report["tasks"]}
        assert (verdicts["interpret"], verdicts["convert"]) == ("failed", "failed (interpret)")
        assert [one["verdict"] for one in report["beams"]] == ["failed (interpret)"] * 2
        assert {one["way_on"] for one in report["beams"]} == {"`mqi-hpc resubmit`"}
        assert nexts(site, "I-f01") == [("program", None)]
        wait_until(lambda: not live(site.cluster), 60, "an empty queue")
        behind = [row for row in rows(site.cluster, [key]) if not row[1].endswith("-interpret")]
        assert {(row[1].rsplit("-", 1)[1], row[2].split()[0]) for row in behind} == {
            ("beams", "CANCELLED"),
            ("convert", "CANCELLED"),
        }
        resubmit(site, "I-f01")
        daemon.until({"I-f01": "completed"})
    ran_once(site, [key], "j02")


# Requeued, out of time


@pytest.mark.slow
def test_a_requeued_beam_is_not_computed_twice_and_one_out_of_time_not_retried(site: Site) -> None:
    with running(site, "R", "T", hangs=(1,)) as (daemon, (requeued, late)):
        for label in (requeued, late):
            verdict(site, label, 0, "done")
            verdict(site, label, 1, "running")
        again, done = (beam(site, requeued, at)["slurm_id"] for at in (1, 0))
        over = beam(site, late, 1)["slurm_id"]
        site.cluster.root(f"scontrol update jobid={over} timelimit=1")

        # As it was submitted with --no-requeue: what runs, and what has ended.
        for slurm_id in (again, done):
            refused = site.cluster.root(f"scontrol requeue {slurm_id}", check=False)
            assert refused.returncode != 0, refused
        assert beam(site, requeued, 1)["verdict"] == "running"
        site.cluster.root(f"scontrol update jobid={again} requeue=1 && scontrol requeue {again}")
        failed = verdict(site, requeued, 1, "failed")
        # 143: the first run, ended by SIGTERM, said so where KillWait gave it the time. The second, which the
        # fence ended (79, below), touched nothing.
        assert failed["exit_code"] in (143, None), failed
        assert failed["way_on"] == "`mqi-hpc resubmit`"
        assert [at for _, at in nexts(site, requeued)] == [None]
        timeout = verdict(site, late, 1, "failed (timeout)")
        assert "time limit reached" in timeout["detail"]
        assert timeout["way_on"] == "`mqi-hpc resubmit`"
        assert nexts(site, late) == [("timeout", None)]
        daemon.until({requeued: "partial", late: "partial"})
        keys = {case["label"]: case["case_id"] for case in daemon.cases()}
        ended(site, keys[requeued], {"beams_0": "COMPLETED 0:0", "beams_1": "FAILED 79:0"})
        ended(site, keys[late], {"beams_0": "COMPLETED 0:0", "beams_1": "TIMEOUT 0:0"})
        let_go(site)
        for label in (requeued, late):
            resubmit(site, label)
        daemon.until({requeued: "completed", late: "completed"})
        for key in keys.values():
            ended(site, key, {"beams_1": "COMPLETED 0:0", "convert": "COMPLETED 0:0"}, "j02")
            assert set(receipts(site, key, "j02")) == {"beams", "convert"}


# Preempted


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["requeue", "cancel"])
def test_a_preempted_beam_is_computed_again_by_itself(cluster: Cluster, cleared: Path, mode: str) -> None:
    """Uncounted: more often than the limit over all causes."""
    stages = {
        "beams": {"partition": "low"},
        "interpret": {"partition": "cpu"},
        "convert": {"partition": "cpu"},
    }
    retries = {"most": 1, "preempted": {"pauses_seconds": [15]}}
    site = make_site(cluster, cleared, processing={**QUICK, "retries": retries}, slurm={"stages": stages})
    cluster.root(f"scontrol update partitionname=low preemptmode={mode}")
    try:
        with running(site, "L", hangs=(1,)) as (daemon, (label,)):
            verdict(site, label, 0, "done")
            verdict(site, label, 1, "running")
            key = daemon.cases()[0]["case_id"]
            # On both nodes, so that the retry waits.
            urgent = cluster.sbatch("sleep 600", "--partition=gpu", "--account=mqi", "-N2", "--exclusive")
            gone = verdict(site, label, 1, "failed (infrastructure)")
            assert "preempted" in gone["detail"]
            assert gone["way_on"] == ""
            (promise,) = shown(site.config, label)["next"]
            assert (promise["cause"], promise["attempt"], promise["most"]) == ("preempted", 1, 50)
            assert promise["without"] == []
            let_go(site)
            wait_until(lambda: shown(site.config, label)["job"] == "j02", PATIENCE, "the next job")
            verdict(site, label, 1, "queued")
            assert shown(site.config, label)["status"] == "processing"
            cluster.root(f"scancel {urgent}")
            daemon.until({label: "completed"})
            ended(site, key, {"beams_0": "COMPLETED 0:0", "beams_1": "PREEMPTED 0:0"})
            ended(site, key, {"beams_1": "COMPLETED 0:0", "convert": "COMPLETED 0:0"}, "j02")
            assert shown(site.config, label)["attention"] is None
    finally:
        cluster.root("scontrol update partitionname=low preemptmode=requeue")


# A node goes down when all is written


@pytest.mark.slow
def test_a_node_that_fails_after_the_record_leaves_a_suspect_that_can_be_accepted(
    cluster: Cluster, cleared: Path
) -> None:
    # The stage is called by `exec`: here it comes back, and its script waits.
    stays = """if [ "${SLURM_ARRAY_TASK_ID:-}" = 1 ]; then
exec() { "$@"; code=$?; while [ -e /var/tmp/stay ]; do sleep 0.2; done; exit $code; }
fi"""
    site = make_site(cluster, cleared, processing=QUICK, slurm={"prologue": stays})
    cluster.root("touch /var/tmp/stay")
    try:
        with running(site, "N", hangs=()) as (daemon, (label,)):
            verdict(site, label, 0, "done")
            key = daemon.cases()[0]["case_id"]
            number = known(site, "N")[1]
            record = f"ls {site.folder(key)}/dose/beam_{number}/result.json"
            wait_until(lambda: cluster.ssh(record).returncode == 0, PATIENCE, "a record")
            node = verdict(site, label, 1, "running")["node"]
            cluster.root(f"scontrol update nodename={node} state=down reason=test")
            suspect = verdict(site, label, 1, "suspect")
            assert "a valid record, but Slurm says NODE_FAIL" in suspect["detail"]
            assert "accept --reason" in suspect["way_on"]
            assert nexts(site, label) == [("suspect", None)]
            assert "suspect: a valid record" in shown(site.config, label)["attention"]
            cluster.root(f"scontrol update nodename={node} state=resume")
            daemon.until({label: "partial"})
            report = shown(site.config, label)
            assert (report["job"], len(report["results"])) == ("j01", 1)
            accepted = mqi(site.config, "accept", label, "--reason", "the dose was compared")
            assert accepted.returncode == 0, accepted.stderr
            daemon.until({label: "completed"})
            assert len(shown(site.config, label)["results"]) == 2
            ended(site, key, {"beams_0": "COMPLETED 0:0", "convert": "COMPLETED 0:0"})
    finally:
        cluster.root("rm -f /var/tmp/stay")


# Accounting comes back


@pytest.mark.slow
def test_what_was_judged_without_accounting_is_confirmed_by_it_later(site: Site) -> None:
    home = site.config.parent / "sooner"
    home.mkdir()
    # The look at what is over comes every quarter of an hour: here sooner.
    patch = "import mqi_hpc.domain.polls\nmqi_hpc.domain.polls.SWEEP_SECONDS = 3.0\n"
    (home / "sitecustomize.py").write_text(patch)
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    cluster = site.cluster
    with short_memory(cluster), DaemonProcess(site.config, {"PYTHONPATH": path}) as daemon:
        cluster.ctl("pause", "slurmdbd")
        site.drop("D")
        (case,) = daemon.until({"D-f01": "completed"})
        noted = [one["noted"] for one in shown(site.config, "D-f01")["beams"]]
        assert noted == ["judged without accounting, which did not answer"] * 2
        cluster.ctl("resume", "slurmdbd")
        agreed = [f"{one}; accounting has agreed since" for one in noted]

        def confirmed() -> bool:
            return [one["noted"] for one in shown(site.config, "D-f01")["beams"]] == agreed

        wait_until(confirmed, PATIENCE, "accounting agrees")
        report = shown(site.config, "D-f01")
        assert (report["status"], report["attention"], report["next"]) == ("completed", None, [])
        ended(site, case["case_id"], {"beams_0": "COMPLETED 0:0", "beams_1": "COMPLETED 0:0"})


@contextmanager
def short_memory(cluster: Cluster) -> Iterator[None]:
    """Let slurmctld forget jobs two seconds after their end."""
    cluster.root("sed -i 's/^MinJobAge=.*/MinJobAge=2/' /etc/slurm/slurm.conf && scontrol reconfigure")
    try:
        yield
    finally:
        cluster.ctl("resume", "slurmdbd")
        cluster.root("/opt/cluster/ctl configure && scontrol reconfigure")
