"""One scenario: a cluster, a store of its own, a daemon and a case; how it is broken, mended and judged."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typer.testing import CliRunner

from mqi_hpc.cli import app
from tests.faults.ledger import COUNTING_ENGINE, STAGES, queued, settled
from tests.support.cli import mqi, shown
from tests.support.cluster import Cluster, ClusterError, wait_until
from tests.support.cluster_config import merged
from tests.support.daemon import DaemonProcess
from tests.support.dose_reader import DoseFile

GRID = {"size": [40, 30, 300], "spacing": [4, 5, 1], "position": [-80, -75, -280]}
ENGINE = "/usr/local/bin/counting-engine"
QUICK = {
    "moqui": {"grid": GRID},
    "privacy": {"names": True},
    "stages": {"engine": [ENGINE]},
    "resources": {"min_disk_space_gb": 0.001},
    "ssh": {"connect_timeout_seconds": 5, "command_timeout_seconds": 20},
    "monitoring": {"metrics_interval_seconds": 1, "health_check_interval_seconds": 1},
    "processing": {
        "scan_interval_seconds": 1,
        "quiet_seconds": 2,
        "poll_min_seconds": 1,
        "poll_max_seconds": 2,
        "t_settle_seconds": 6,
        "t_lag_seconds": 12,
        "debounce_seconds": 3,
        "submit_timeout_seconds": 30,
        "retry_policy": {"base_delay": 0.5, "max_delay": 3},
        "retries": {cause: {"pauses_seconds": [1]} for cause in ("node_fail", "preempted", "burnt")},
    },
}


@dataclass(frozen=True)
class Dose:
    """An RT Dose as another program reads it; `values` in Gy, [x, y, z]."""

    values: NDArray[np.float64]

    @classmethod
    def of(cls, path: Path) -> Dose:
        return cls(DoseFile(path).values)

    def same(self, other: Dose) -> bool:
        """Whether every voxel agrees, to what two versions of numpy may differ by (1e-6 of the maximum)."""
        if self.values.shape != other.values.shape:
            return False
        return float(abs(self.values - other.values).max()) <= 1e-6 * float(other.values.max())


class Scene:
    """The world of one scenario.

    `doses` are those expected, by beam number, computed without Slurm. `tell` keeps a line of the table.
    `spoilt`: the cluster is not fit for another scenario.
    """

    def __init__(
        self, cluster: Cluster, home: Path, doses: Mapping[int, Dose], tell: Callable[[dict[str, Any]], None]
    ) -> None:
        self.cluster = cluster
        self.home = home
        self.workspace = f"/home/mqi/{home.name}"
        self.undo = ExitStack()
        self.spoilt = False
        self.daemon: DaemonProcess | None = None
        self.doses = doses
        self._tell = tell
        self._began = time.monotonic()
        self._counted: dict[str, tuple[int, int]] = {}
        self._mended: int | None = None
        cluster.root(f"cat >{ENGINE} && chmod 755 {ENGINE}", COUNTING_ENGINE)
        cluster.root("install -m 666 /dev/null /var/tmp/engine-runs")
        self.undo.callback(cluster.root, f"rm -rf -- {self.workspace}")
        self.configure()

    @property
    def config(self) -> Path:
        return self.home / "config.yaml"

    @property
    def state(self) -> Path:
        return self.home / "state"

    def tell(self, **cells: str) -> None:
        """Fill in cells of the scenario's line in the table."""
        self._tell(dict(cells))

    # The case and the daemon

    def configure(self, **overrides: Any) -> None:
        """Write the configuration: short times, and what the scenario needs."""
        paths = {"paths": {"remote_workspace": self.workspace}}
        self.settings = merged(merged(QUICK, paths), overrides)
        self.cluster.write_config(self.home, **self.settings)

    def case(self, name: str = "P001", beams: int = 2, layers: int = 2) -> None:
        """Let a case appear in the folder that is scanned."""
        folder = self.home / "cases" / name
        run_here(self.config, "sample-case", str(folder), "--beams", str(beams), "--layers", str(layers))

    @contextmanager
    def running(self, environment: Mapping[str, str] | None = None) -> Iterator[DaemonProcess]:
        """Run the daemon; it is killed at the end."""
        with DaemonProcess(self.config, environment) as self.daemon:
            yield self.daemon
            self.looks()
        (self.state / "metrics.prom").unlink(missing_ok=True)

    def order(self, *words: str) -> None:
        """Give an order beside the daemon."""
        done = mqi(self.config, *words)
        assert done.returncode in (0, 1, 3), done.stderr

    def find(self, name: str = "P001") -> dict[str, Any]:
        return next((c for c in self.cases() if c["label"] == f"{name}-f01"), {})

    def cases(self) -> list[dict[str, Any]]:
        """What `status --json` says; none where there is no store yet."""
        if not (self.state / "mqi.sqlite").exists():
            return []
        found: list[dict[str, Any]] = json.loads(run_here(self.config, "status", "--json"))["cases"]
        return found

    def key(self, name: str = "P001") -> str:
        """The case's key, once it is registered."""
        return str(self.wait(lambda: self.find(name), f"case {name}")["case_id"])

    # Waiting for what a scenario needs

    def wait(self, probe: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        """Wait for a condition; where it does not come, show what the daemon said."""
        end = time.monotonic() + seconds
        while True:
            value = probe()
            if value:
                return value
            said = self.daemon.said[-4000:] if self.daemon is not None else "no daemon"
            if time.monotonic() >= end:
                raise ClusterError(f"{what}: not so after {seconds:g} s\n{said}")
            # Seldom enough to leave two cores to what is watched.
            time.sleep(0.3)

    def said(self, text: str, seconds: float = 120) -> None:
        daemon = self.daemon
        assert daemon is not None
        self.wait(lambda: text in daemon.said, f"the daemon says {text!r}", seconds)

    def told(self, text: str, name: str = "P001", seconds: float = 120) -> None:
        """Wait until the case itself says `text`, to whoever looks at it."""
        self.wait(lambda: text in str(self.find(name)), f"{name} says {text!r}", seconds)

    def runs(self, stage: str = "beams", index: str = "0", name: str = "P001", state: str = "RUNNING") -> str:
        """Wait until squeue shows a task of the case so; returns its job id."""
        key = self.key(name)

        def look() -> str:
            out = self.cluster.root("squeue -h -r -u mqi -o '%j %K %T %F'").stdout
            words = [line.split() for line in out.splitlines() if f"-{key}-" in line]
            return next((w[3] for w in words if w[0].endswith(stage) and w[1] == index and w[2] == state), "")

        return str(self.wait(look, f"{stage} {index} of {name} {state}"))

    def looks(self, kind: str = "polls") -> int:
        """Looks at the cluster so far, or those that failed (`poll_failures`), by the daemon's metrics.

        They begin at 0 again with each daemon and each reload.
        """
        path = self.state / "metrics.prom"
        text = path.read_text() if path.exists() else ""
        match = re.search(rf"^mqi_hpc_{kind}_total ([\d.e+]+)$", text, re.MULTILINE)
        before, last = self._counted.get(kind, (0, 0))
        now = int(float(match[1])) if match else 0
        self._counted[kind] = (before + last, now) if now < last else (before, now)
        return sum(self._counted[kind])

    def looks_pass(self, count: int, kind: str = "polls") -> None:
        """Wait until the daemon has looked `count` more times."""
        before = self.looks(kind)
        self.wait(lambda: self.looks(kind) >= before + count, f"{count} more {kind}", 240)

    def looks_or_end(self, count: int) -> None:
        """Wait until the daemon has looked `count` more times, or the case is over: looks end with it."""
        before = self.looks()
        self.wait(
            lambda: self.over() or self.looks() >= before + count, f"an end, or {count} more looks", 240
        )

    def outage(self, count: int = 2) -> None:
        """Wait until `count` attempts in a row have found no way to the cluster."""

        def failures() -> bool:
            path = self.state / "metrics.prom"
            text = path.read_text() if path.exists() else ""
            match = re.search(r"^mqi_hpc_cluster_outage_failures ([\d.e+]+)$", text, re.MULTILINE)
            return match is not None and float(match[1]) >= count

        self.wait(failures, "an outage that is noticed", 300)

    def until(self, status: str, name: str = "P001", seconds: float = 300) -> None:
        """Wait until the case has a status."""
        self.wait(lambda: self.find(name).get("status") == status, f"{name} {status}", seconds)

    def chain_over(self, seconds: float = 200) -> None:
        """Wait until nothing of ours is in the queue."""
        self.wait(lambda: not self.cluster.root("squeue -h -u mqi").stdout, "the chain's end", seconds)

    def over(self, name: str = "P001") -> bool:
        """Whether the case has come to an end, whichever."""
        return self.find(name).get("status") in {"completed", "partial", "failed", "cancelled"}

    def ended(self, name: str = "P001") -> str:
        """Wait until the case has come to an end, whichever; returns it."""
        self.wait(lambda: self.over(name), "an end", 300)
        return str(self.find(name)["status"])

    # Breaking and mending

    def hang(self, beam: int = 2) -> None:
        """Let the engine wait at a beam (2 is the first), so that there is time to break something."""
        self.cluster.fault(beam, "hang")

    def heal(self, beam: int = 2) -> None:
        self.cluster.fault(beam, "none")

    def mended(self) -> None:
        """The fault is over: what is looked at from here on is the recovery."""
        self._mended = self.looks()

    def wrap(self, program: str, text: str) -> None:
        """Put a script before a program of the login node; {real} is the real one."""
        path = f"/usr/local/bin/{program}"
        self.cluster.root(
            f"cat >{path} && chmod 755 {path}",
            "#!/bin/bash\n" + text.replace("{real}", f"/usr/bin/{program}"),
        )
        self.undo.callback(self.cluster.root, f"rm -f {path}")

    def unwrap(self, program: str) -> None:
        self.cluster.root(f"rm -f /usr/local/bin/{program}")

    def mark(self, name: str) -> str:
        """A file on the cluster that wrappers make or wait for; it is not there yet."""
        path = f"/tmp/{self.home.name}-{name}"
        self.cluster.root(f"rm -f {path}")
        self.undo.callback(self.cluster.root, f"rm -f {path}")
        return path

    def exists(self, path: str) -> bool:
        return self.cluster.root(f"test -e {shlex.quote(path)}", check=False).returncode == 0

    def slurm_conf(self, *lines: str) -> None:
        """Change settings of Slurm for the scenario."""
        path = "/etc/slurm/slurm.conf"
        self.cluster.root(f"cp -p {path} /root/slurm.conf.was")
        for line in lines:
            self.cluster.root(f"sed -i '/^{line.partition('=')[0]}=/d' {path}; sed -i '1a {line}' {path}")
        self.cluster.root("scontrol reconfigure")
        self.undo.callback(self.cluster.root, f"mv /root/slurm.conf.was {path} && scontrol reconfigure")

    def sshd_conf(self, *lines: str) -> None:
        """Run sshd with these settings first; sessions that are open end."""
        path = "/opt/cluster/sshd_config"
        text = "\\n".join(lines)
        self.cluster.root(f"cp {path} /root/sshd_config.was; sed -i '1i {text}' {path}")
        self._new_sshd()
        self.undo.callback(self._new_sshd)
        self.undo.callback(self.cluster.root, f"cp /root/sshd_config.was {path}")

    def _new_sshd(self) -> None:
        self.cluster.ctl("restart", "sshd")
        self.cluster.ctl("drop-ssh")

    def profile(self, text: str) -> None:
        """Begin the login profile, which bash reads for every command over SSH, with `text`."""
        path = "/home/mqi/.bashrc"
        self.cluster.root(f"cp -p {path} {path}.was; {{ cat; cat {path}.was; }} >{path}", text)
        self.undo.callback(self.cluster.root, f"mv {path}.was {path}")

    # The judgement

    def ends(
        self,
        status: str = "completed",
        name: str = "P001",
        *,
        submissions: str | None = "1/1/1",
        seconds: float = 300,
    ) -> dict[str, Any]:
        """Wait for the case's status, and judge it from outside: by accounting, engine and files.

        `submissions`: interpret, beams and convert that took effect, as Ledger.text says it; None: only
        that none took effect twice. Returns what `show --json` says.
        """
        self.until(status, name, seconds)
        return self.judge(name, submissions)

    def slurmctld_dies(self) -> None:
        """Kill the controller and start it again, as a crash of its machine.

        It hands ids out again that slurmd remembers, and may cancel a later case's jobs for it.
        """
        self.spoilt = True
        self.cluster.ctl("kill", "slurmctld")
        self.cluster.ctl("start", "slurmctld")

    def made_good(self, submissions: str | None) -> dict[str, Any]:
        """Wait for an end, and bring it to a good one: by a person's `resubmit`, where it is not that."""
        if self.ended() != "completed":
            self.order("resubmit", "P001-f01")
        return self.ends(submissions=submissions)

    def judge(self, name: str = "P001", submissions: str | None = "1/1/1") -> dict[str, Any]:
        """Judge a case that has ended, and keep the line of the table."""
        looks = self.looks()
        report = shown(self.config, f"{name}-f01")
        key = str(report["case_id"])
        ran = submissions or "1/-/-"
        stages = STAGES if "1/1/1" in ran else STAGES[: "1/" in ran]
        ledger = settled(self.cluster, key, stages)
        right, wrong = self._results(report)
        ghosts = self._ghosts(key)
        self.tell(
            submissions=ledger.text(),
            results=f"{right} right" + (f", {wrong}" if wrong else ""),
            polls="-" if self._mended is None else str(looks - self._mended),
            seconds=f"{time.monotonic() - self._began:.0f}",
        )
        notes = f"{ledger.rows}\n{ledger.runs}\n{self.daemon.said[-6000:] if self.daemon else ''}"
        assert not ghosts, f"left in the queue: {ghosts}\n{notes}"
        assert ledger.faults() == [], notes
        if submissions is not None:
            assert ledger.text() == submissions, notes
        assert "wrong" not in wrong, f"{wrong}\n{report}"
        return report

    def _results(self, report: dict[str, Any]) -> tuple[int, str]:
        """How many delivered doses are right; what is wrong with the others."""
        right, wrong = 0, []
        for beam in report["beams"]:
            vouched = beam["verdict"] in ("done", "accepted")
            file = (beam.get("dose") or {}).get("file")
            if not file:
                if vouched and report["status"] == "completed":
                    wrong.append(f"beam {beam['number']} wrong: done, and not here")
                continue
            found = Dose.of(Path(file))
            if not vouched or not found.same(self.doses[beam["number"]]):
                wrong.append(f"beam {beam['number']} wrong: {beam['verdict']}, {found.values.max()} Gy")
            else:
                right += 1
        extra = len(report["results"]) - right - len(wrong)
        if extra:
            wrong.append(f"{extra} files wrong: of no beam")
        withheld = len(report["beams"]) - right - len(wrong)
        return right, "; ".join([*wrong, *([f"{withheld} withheld"] if withheld else [])])

    def _ghosts(self, key: str) -> list[str]:
        """What of the case is in the queue still, although the daemon had time to see to it."""
        try:
            wait_until(lambda: not queued(self.cluster, key), 60, "an empty queue")
        except Exception:  # noqa: BLE001 - what is left is told by name
            return queued(self.cluster, key)
        return []

    def close(self) -> None:
        """Undo what the scenario did to the cluster."""
        paused = [row.split()[0] for row in self.cluster.ctl("status").splitlines() if "paused" in row]
        if paused:
            self.cluster.ctl("resume", *paused)
        self.cluster.ctl("start", "all")
        self.undo.close()
        self.cluster.reset()


def run_here(config: Path, *words: str) -> str:
    """Run a command in this process, which is asked often: a new one takes a second of a core."""
    done = CliRunner().invoke(app, ["--config", str(config), *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def copy_of(folder: Path, to: Path) -> Path:
    """A copy of a local folder, times and modes too."""
    return Path(shutil.copytree(folder, to, symlinks=True))
