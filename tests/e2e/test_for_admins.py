"""Every command of docs/for-admins.md does on a real cluster, with jobs of ours live, what the page says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mqi_hpc.controllers.parts import Parts
from mqi_hpc.core.effects import JobQuery, Observe
from mqi_hpc.infrastructure.config import ConfigLoader
from tests.support.cli import PROGRAM, Completed, mqi
from tests.support.cluster import Cluster, wait_until
from tests.support.daemon import DaemonProcess

pytestmark = pytest.mark.cluster

PAGE = Path(__file__).parents[2] / "docs" / "for-admins.md"
GRID = {"size": [40, 30, 300], "spacing": [4, 5, 1], "position": [-80, -75, -280]}
SCENES = frozenset(
    {"live", "hold", "release", "door-shut", "door-open", "qos", "cancel-one", "cancel-all", "clean"}
)
_FENCE = re.compile(r"^```(?P<info>.*)\n(?P<text>(?s:.*?))^```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: who runs it (root, mqi, here), in which scene, and what its output shows."""

    who: str
    scene: str
    fails: bool
    script: str
    shows: tuple[str, ...]
    shows_not: tuple[str, ...]

    @classmethod
    def read(cls, info: str, text: str) -> Block:
        who, scene, *rest = info.removeprefix("sh test ").split()
        notes = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
        words = [note.partition(": ")[::2] for note in notes]
        assert {kind for kind, _ in words} <= {"shows", "shows not"}, info
        return cls(
            who,
            scene,
            rest == ["fails"],
            text,
            tuple(word for kind, word in words if kind == "shows"),
            tuple(word for kind, word in words if kind == "shows not"),
        )


def blocks() -> list[Block]:
    found = [(match["info"], match["text"]) for match in _FENCE.finditer(PAGE.read_text(encoding="utf-8"))]
    return [Block.read(info, text) for info, text in found if info != "console"]


@dataclass(frozen=True)
class Place:
    """Where blocks run: the cluster, the configuration, and the page's variables."""

    cluster: Cluster
    config: Path
    workspace: str
    key: str = ""
    other: str = ""

    def play(self, scene: str) -> list[str]:
        """Run a scene's blocks in the page's order; each must do as the page says. Returns their words."""
        mine = [block for block in blocks() if block.scene == scene]
        assert mine, scene
        return [self._run(block) for block in mine]

    def _run(self, block: Block) -> str:
        variables = {
            "KEY": self.key,
            "OTHER": self.other,
            "WORKSPACE": self.workspace,
            "STATE": str(self.config.parent / "state"),
        }
        values = "".join(f"{name}={value!r}\n" for name, value in variables.items())
        done = self._shell(block.who, f"exec 2>&1; set -e -o pipefail\n{values}{block.script}")
        assert (done.returncode != 0) is block.fails, f"{block.script}\n{done.returncode}\n{done.stdout}"
        for word in block.shows:
            assert expanded(word, variables) in done.stdout, f"{block.script}\n{done.stdout}"
        for word in block.shows_not:
            assert expanded(word, variables) not in done.stdout, f"{block.script}\n{done.stdout}"
        return done.stdout

    def _shell(self, who: str, script: str) -> Completed:
        if who == "root":
            return self.cluster.root(script, check=False)
        if who == "mqi":
            return self.cluster.ssh("bash -s", script)
        assert who == "here"
        path = f"{PROGRAM.parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            stdin=subprocess.DEVNULL,
            cwd=self.config.parent,
            env={**os.environ, "PATH": path, "MQI_HPC_CONFIG": str(self.config), "COLUMNS": "200"},
        )


def expanded(word: str, variables: dict[str, str]) -> str:
    for name, value in variables.items():
        word = word.replace(f"${name}", value)
    return word


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Iterator[Place]:
    workspace = f"/home/mqi/{tmp_path.name}"
    config = cluster.write_config(
        tmp_path,
        moqui={"grid": GRID},
        paths={"remote_workspace": workspace},
        slurm={"comment": "proton beam QA; ask qa@example.org"},
        processing={"quiet_seconds": 2, "scan_interval_seconds": 1, "poll_max_seconds": 2},
        monitoring={"metrics_interval_seconds": 1, "health_check_interval_seconds": 1},
        retention={"remote_completed_days": 1e-6},
    )
    yield Place(cluster, config, workspace)
    cluster.root("sacctmgr --immediate modify user where name=mqi set MaxSubmitJobs=-1", check=False)
    cluster.reset()
    cluster.root(f"rm -rf -- {workspace}")


def sample(place: Place, name: str, beams: int = 2) -> None:
    """Let a case appear, whole, in the folder that is scanned."""
    away = place.config.parent / "away" / name
    made = mqi(place.config, "sample-case", str(away), "--beams", str(beams), "--layers", "2")
    assert made.returncode == 0, made.stderr
    (away / "_CASE_READY").touch()
    shutil.copytree(away, place.config.parent / "cases" / name)


def key_of(daemon: DaemonProcess, label: str) -> str:
    return next(str(case["case_id"]) for case in daemon.cases() if case["label"] == label)


def attention(daemon: DaemonProcess, label: str) -> str:
    return next(case["attention"] or "" for case in daemon.cases() if case["label"] == label)


def processes_of_a_poll(place: Place) -> int:
    """How many processes a poll starts on the login node, for one job with two tasks not yet judged.

    In a PID namespace of its own, process numbers count.
    """
    records = (("beam", "dose/beam_2"), ("convert", "results"))
    query = JobQuery(ref="job", folder=f"{place.workspace}/{place.key}/j01", records=records)
    parts = Parts(ConfigLoader().load(place.config))
    script = parts.renderer.observe_script(Observe(nonce="nonce", jobs=(query,), sacct_ids=(1,)))
    parts.close()
    inside = """last() { read -r n </proc/sys/kernel/ns_last_pid; echo "$n" >&2; }
        last; su mqi -s /bin/bash -c "bash -s" >/tmp/poll.out; last"""
    done = place.cluster.root(f"unshare --pid --fork --mount-proc bash -c {shlex.quote(inside)}", script)
    first, last = map(int, done.stderr.split())
    said = place.cluster.root("cat /tmp/poll.out; rm /tmp/poll.out").stdout
    assert "END squeue 0" in said and "END space 0" in said
    # Not ours: su, and the shell it starts.
    return last - first - 2


def limits(place: Place) -> str:
    return place.cluster.root("scontrol show assoc_mgr users=mqi flags=assoc").stdout


def refusals(daemon: DaemonProcess) -> str:
    """Why what has not been begun of the cases waits."""
    return "; ".join(task["detail"] for case in daemon.cases() for task in case["tasks"])


def stages_ran(place: Place, key: str) -> dict[str, int]:
    """How many rows of each stage of a case accounting holds, once all of them have ended."""

    def ended() -> list[str]:
        command = "sacct -n -P -X -D -S now-1hour -u mqi -o JobName,State"
        rows = [r for r in place.cluster.ssh(command, check=True).stdout.splitlines() if f"-{key}-" in r]
        return rows if len(rows) >= 4 and not re.search("PENDING|RUNNING", " ".join(rows)) else []

    stages = [
        row.partition("|")[0].rpartition("-")[2] for row in wait_until(ended, 90, "rows that have ended")
    ]
    return {stage: stages.count(stage) for stage in stages}


def beam_runs(place: Place, key: str) -> bool:
    """Whether the hanging beam of a case runs, all else of it that can end has, and accounting knows."""
    queue = place.cluster.ssh("squeue -h -r -o '%j %K %T' -u mqi", check=True).stdout.splitlines()
    mine = {(words[1], words[2]) for line in queue if f"-{key}-" in (words := line.split())[0]}
    ended = place.cluster.ssh("sacct -n -P -X -D -S now-1hour -o JobName,State -u mqi", check=True).stdout
    return mine == {("0", "RUNNING"), ("N/A", "PENDING")} and f"-{key}-j01-interpret|COMPLETED" in ended


def hanging(place: Place, daemon: DaemonProcess, name: str) -> str:
    """Bring a case as far as its first beam, which hangs; returns its key."""
    sample(place, name)
    daemon.until({f"{name}-f01": "processing"})
    key = key_of(daemon, f"{name}-f01")
    wait_until(lambda: beam_runs(place, key), 180, f"the first beam of {name} alone")
    return key


def with_cases(place: Place, key: str, other: str = "") -> Place:
    return Place(place.cluster, place.config, place.workspace, key, other)


def test_every_block_is_played() -> None:
    assert {block.scene for block in blocks()} == SCENES
    assert all(block.shows or block.shows_not for block in blocks())


def test_what_is_not_played_is_systemd() -> None:
    others = [match["text"] for match in _FENCE.finditer(PAGE.read_text()) if match["info"] == "console"]
    words = {line.split()[0] for text in others for line in text.splitlines()}
    assert words == {"install", "systemctl", "journalctl"}


def test_seeing_and_pausing_us(place: Place) -> None:
    place.cluster.fault(2, "hang")
    with DaemonProcess(place.config) as daemon:
        live = with_cases(place, hanging(place, daemon, "A001"))
        wait_until(lambda: "running" in mqi(place.config, "show", live.key).stdout, 60, "seen as running")
        live.play("live")
        assert processes_of_a_poll(live) <= 20 + 15 + 6 * 2, "docs/for-admins.md, the login node"
        live.play("hold")
        wait_until(lambda: "held" in attention(daemon, "A001-f01"), 120, "a case that asks for attention")
        live.play("release")
        wait_until(lambda: not attention(daemon, "A001-f01"), 120, "no attention needed any more")
        place.cluster.fault(2, "none")
        daemon.until({"A001-f01": "completed"})
        assert daemon.stop()[0] == 0


def test_a_shut_door_makes_cases_wait(place: Place) -> None:
    with DaemonProcess(place.config) as daemon:
        place.play("qos")
        place.play("door-shut")
        wait_until(lambda: "MaxSubmitJobs=0(" in limits(place), 60, "slurmctld knows of the limit")
        sample(place, "B001")
        daemon.until({"B001-f01": "processing"})
        wait_until(lambda: "AssocMaxSubmitJobLimit" in refusals(daemon), 120, "a chain Slurm does not take")
        assert attention(daemon, "B001-f01") == ""
        assert place.cluster.root("squeue -h -u mqi").stdout == ""
        place.play("door-open")
        daemon.until({"B001-f01": "completed"})


def test_a_limit_in_the_middle_of_a_chain_leaves_its_head_held(place: Place) -> None:
    """Each task of an array counts: two beams need room for four."""
    place.cluster.root("sacctmgr --immediate modify user where name=mqi set MaxSubmitJobs=2")
    wait_until(lambda: "MaxSubmitJobs=2(" in limits(place), 60, "slurmctld knows of the limit")
    with DaemonProcess(place.config) as daemon:
        sample(place, "F001")
        daemon.until({"F001-f01": "processing"})
        wait_until(lambda: "AssocMaxSubmitJobLimit" in refusals(daemon), 120, "an array Slurm does not take")
        queue = place.cluster.root("squeue -h -u mqi -o '%j %T %r'").stdout.split()
        assert queue[0].endswith("-interpret") and queue[1:] == ["PENDING", "JobHeldUser"]
        place.play("door-open")
        daemon.until({"F001-f01": "completed"})
        key = key_of(daemon, "F001-f01")
    assert stages_ran(place, key) == {"interpret": 1, "beams": 2, "convert": 1}


def test_who_cancels_is_obeyed(place: Place) -> None:
    place.cluster.fault(2, "hang")
    with DaemonProcess(place.config) as daemon:
        one, other = (hanging(place, daemon, name) for name in ("C001", "C002"))
        with_cases(place, one, other).play("cancel-one")
        daemon.until({"C001-f01": "partial", "C002-f01": "processing"})
        with_cases(place, other, one).play("cancel-all")
        daemon.until({"C001-f01": "partial", "C002-f01": "partial"})
        place.cluster.fault(2, "none")
        # What comes later is still done, and what was cancelled is left.
        sample(place, "C003")
        found = daemon.until({"C003-f01": "completed"})
        cancelled = [case for case in found if case["label"] != "C003-f01"]
        assert [case["job"] for case in cancelled] == ["j01", "j01"]
        details = [beam["detail"] for case in cancelled for beam in case["beams"] if beam["number"] == 2]
        assert all("cancelled" in detail for detail in details) and len(details) == 2
        # Never eligible to run, the converts are in accounting under their ids, whatever a time range shows.
        ids = [t["slurm_id"] for case in cancelled for t in case["tasks"] if t["task"] == "convert"]
        wait_until(lambda: cancelled_rows(place, ids) == len(ids) == 2, 90, "two cancelled converts")
        assert daemon.stop()[0] == 0


def cancelled_rows(place: Place, ids: list[str]) -> int:
    out = place.cluster.ssh(f"sacct -n -P -X -D -j {','.join(ids)} -o State", check=True).stdout
    return out.count("CANCELLED")


def test_cleaning_by_hand(place: Place) -> None:
    with DaemonProcess(place.config) as daemon:
        sample(place, "D001", beams=1)
        case = daemon.until({"D001-f01": "completed"})[0]
        assert daemon.stop()[0] == 0
    with_cases(place, case["case_id"]).play("clean")
    assert all(Path(file).exists() for file in case["results"])
    done = mqi(place.config, "prune", "--remote", "--yes")
    assert done.returncode == 0, done.stderr
    assert "was not on the cluster any more" in done.stdout
    again = mqi(place.config, "resubmit", "D001-f01")
    assert again.returncode == 1


def table(first: str) -> list[list[str]]:
    """The rows of the page's table whose head begins with a word; cells stripped."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[at:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def said(what: str) -> dict[str, str]:
    head, *rows = table("we do")
    return next(dict(zip(head, row, strict=True)) for row in rows if row[0].startswith(what))


def rpcs(text: str, section: str) -> dict[str, int]:
    """Counts by message type or user from sdiag or `sacctmgr show stats`."""
    part = text.partition(f"statistics by {section}")[2].partition("\n\n")[0]
    return {match[1]: int(match[2]) for match in re.finditer(r"^\s+(\S+)\s+\(.*?count:(\d+)", part, re.M)}


def test_what_we_ask_of_slurm_is_what_the_page_says(place: Place) -> None:
    cluster = place.cluster
    cluster.root("sdiag --reset; sacctmgr --immediate clear stats")
    with DaemonProcess(place.config) as daemon:
        sample(place, "E001")
        daemon.until({"E001-f01": "completed"})
        assert daemon.stop()[0] == 0
    sdiag, stats = cluster.root("sdiag").stdout, cluster.root("sacctmgr show stats").stdout
    asked = rpcs(sdiag, "message type")
    polls = polls_of(place)
    submit, poll = said("submit a case"), said("look at all cases")
    assert poll["squeue"] == "1"
    squeues = asked.get("REQUEST_JOB_USER_INFO", 0)
    assert squeues == polls + int(submit["squeue"])
    assert asked["REQUEST_SUBMIT_BATCH_JOB"] == int(submit["sbatch"])
    assert asked["REQUEST_UPDATE_JOB"] == int(submit["scontrol"])
    calls = int(submit["sbatch"]) + int(submit["scontrol"])
    assert rpcs(sdiag, "user")["mqi"] <= 3 * squeues + calls
    assert rpcs(stats, "user").get("mqi", 0) <= 4 * polls
    assert json.loads((place.config.parent / "state" / "health.json").read_text())["status"] == "stopped"


def polls_of(place: Place) -> int:
    metrics = (place.config.parent / "state" / "metrics.prom").read_text()
    match = re.search(r"^mqi_hpc_polls_total ([\d.]+)$", metrics, re.MULTILINE)
    assert match, metrics
    return int(float(match[1]))
