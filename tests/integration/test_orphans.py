"""doctor --orphans on real Slurm: what is ours and unknown is found and ended, all else runs on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_daemon import numbers, sample
from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    workspace = f"/home/mqi/{tmp_path.name}"
    yield cluster.write_config(tmp_path, paths={"remote_workspace": workspace})
    cluster.reset()
    cluster.ctl("start", "slurmctld")
    cluster.root(f"rm -rf -- {workspace}")


def orphans(config: Path, *words: str) -> tuple[int, dict[str, Any]]:
    done = mqi(config, "doctor", "--orphans", "--json", *words)
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def asleep(cluster: Cluster, name: str, *options: str) -> int:
    """Submit a job of this name that sleeps; returns its id."""
    line = f"sbatch --parsable -J {name} -p cpu -o /dev/null {' '.join(options)} --wrap 'sleep 600'"
    return int(cluster.ssh(line, check=True).stdout.split(";")[0])


def live(cluster: Cluster) -> set[int]:
    out = cluster.ssh("squeue -h -u mqi -t pending,running,suspended -o %F", check=True).stdout
    return {int(word) for word in out.split()}


def test_r37_orphans_are_found_and_ended_and_nothing_else(cluster: Cluster, config: Path) -> None:
    assert orphans(config)[0] == 2, "no store is here yet"
    folder = sample(config, "P700", "--beams", "2", "--layers", "2")
    cluster.fault(numbers(folder)[0], "hang")
    sent = mqi(config, "submit", str(folder))
    assert sent.returncode == 0, sent.stderr
    report = shown(config, "P700-f01")
    instance = json.loads((config.parent / "state" / "mqi.sqlite.instance").read_text())["id"]
    key = report["case_id"]
    assert orphans(config) == (0, {"orphans": [], "not_judged": {}, "notes": []})

    held = asleep(cluster, f"mqi-{instance}-{key}-j01-interpret", "--hold")
    array = asleep(cluster, f"mqi-{instance}-otherkey0000-j01-beams", "--array=0-2")
    convert = asleep(cluster, f"mqi-{instance}-otherkey0000-j01-convert", f"--dependency=afterany:{array}")
    others = {asleep(cluster, "mqi-zzzzzz-otherkey0000-j01-beams"), asleep(cluster, "somebody-else")}
    cluster.ssh(f"mkdir {report_workspace(config)}/unknownkey00", check=True)
    code, found = orphans(config)
    assert code == 1
    assert {(one["kind"], one["slurm_id"]) for one in found["orphans"]} == {
        ("job", held),
        ("job", array),
        ("job", convert),
        ("folder", None),
    }
    before = live(cluster)

    code, found = orphans(config, "--cancel")
    assert code == 1, "the folder is left"
    assert {one["slurm_id"] for one in found["orphans"] if one["cancelled"]} == {held, array, convert}
    wait_until(lambda: not live(cluster) & {held, array, convert}, 60, "the orphans' end")
    assert before - live(cluster) <= {held, array, convert} | {interpret_of(report)}
    assert others <= live(cluster)
    cluster.ssh(f"rmdir {report_workspace(config)}/unknownkey00", check=True)
    assert orphans(config)[0] == 0

    # A controller that is away says nothing.
    cluster.ctl("stop", "slurmctld")
    assert orphans(config, "--cancel")[0] == 4
    cluster.ctl("start", "slurmctld")
    wait_until(lambda: orphans(config)[0] == 0, 60, "Slurm's answer")


def report_workspace(config: Path) -> str:
    return f"/home/mqi/{config.parent.name}"


def interpret_of(report: dict[str, Any]) -> int:
    return next(int(task["slurm_id"]) for task in report["tasks"] if task["task"] == "interpret")
