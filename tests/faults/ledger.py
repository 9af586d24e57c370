"""What Slurm and the engine themselves say took effect: the outside judge of a scenario."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.support.cluster import Cluster, ClusterError, wait_until

RUNS = "/var/tmp/engine-runs"
"""On the cluster: a line for each start of the engine, appended by COUNTING_ENGINE."""
COUNTING_ENGINE = f"""#!/bin/bash
echo "$SLURM_JOB_NAME $SLURM_ARRAY_TASK_ID $SLURM_ARRAY_JOB_ID" >>{RUNS}
exec /opt/mqi-engine/tps_env "$@"
"""
STAGES = ("interpret", "beams", "convert")
_FENCED = {"78:0", "79:0"}
_NOT_ENDED = {"PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "COMPLETING"}


@dataclass(frozen=True)
class Row:
    """A row of accounting: an allocation of ours, or one that never was made."""

    job: str
    name: str
    state: str
    code: str
    node: str

    @property
    def id(self) -> str:
        return self.job.partition("_")[0]

    @property
    def stage(self) -> str:
        return self.name.rpartition("-")[2]

    @property
    def of(self) -> str:
        """The job of ours it belongs to: j01, j02."""
        return self.name.split("-")[-2]

    @property
    def began(self) -> bool:
        return self.node not in ("", "None assigned")

    @property
    def effect(self) -> bool:
        """It was started on a node, and no fence turned it away."""
        return self.began and self.code not in _FENCED


@dataclass(frozen=True)
class Ledger:
    """All that accounting and the engine hold of one case (by its key)."""

    rows: tuple[Row, ...]
    runs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, cluster: Cluster, key: str) -> Ledger:
        out = cluster.root(
            "sacct -n -P -X -D -u mqi -S now-3hours -o JobID,JobName%80,State,ExitCode,NodeList"
        ).stdout
        cells = (line.split("|") for line in out.splitlines() if f"-{key}-" in line)
        rows = (Row(job, name, state.split()[0], code, node) for job, name, state, code, node in cells)
        lines = cluster.root(f"cat {RUNS} 2>/dev/null || true").stdout.splitlines()
        runs = (line.split()[:2] for line in lines if f"-{key}-" in line)
        return cls(tuple(rows), tuple((name.split("-")[-2], index) for name, index in runs))

    def submissions(self) -> dict[str, Counter[str]]:
        """For each job of ours the number of submissions of each stage that took effect."""
        seen = {(row.of, row.stage, row.id) for row in self.rows if row.effect}
        counts: dict[str, Counter[str]] = {}
        for job, stage, _ in sorted(seen):
            counts.setdefault(job, Counter())[stage] += 1
        return counts

    def text(self) -> str:
        """Like `1/1/1`: interpret, beams, convert; of several jobs each; `none` where nothing did."""
        each = {
            job: "/".join(str(count[stage]) if count[stage] else "-" for stage in STAGES)
            for job, count in self.submissions().items()
        }
        if len(each) < 2:
            return next(iter(each.values()), "none")
        return " ".join(f"{job} {text}" for job, text in each.items())

    def faults(self) -> list[str]:
        """What happened more than once that may happen once; the engine's own count included."""
        found = [
            f"{job}: {count} {stage} took effect"
            for job, stages in self.submissions().items()
            for stage, count in stages.items()
            if count > 1
        ]
        found += [
            f"{job}: beam with index {index} was computed {count} times"
            for (job, index), count in Counter(self.runs).items()
            if count > 1
        ]
        interprets = sum(stages["interpret"] for stages in self.submissions().values())
        if interprets > 1 and not self._failed("interpret"):
            found.append(f"{interprets} interprets, none of which failed")
        return found

    def _failed(self, stage: str) -> bool:
        return any(row.stage == stage and row.effect and row.state != "COMPLETED" for row in self.rows)

    def ended(self, stages: Iterable[str] = STAGES) -> bool:
        """Whether accounting holds at least a row that ran of each stage, and the end of all that ran."""
        began = [row for row in self.rows if row.began]
        return {row.stage for row in began} >= set(stages) and not any(
            row.state in _NOT_ENDED for row in began
        )


def settled(cluster: Cluster, key: str, stages: Iterable[str] = STAGES) -> Ledger:
    """The ledger once slurmdbd has heard of all that ran; after a minute, as it is."""
    try:
        return wait_until(
            lambda: (ledger := Ledger.of(cluster, key)).ended(stages) and ledger, 60, "accounting's rows"
        ) or Ledger.of(cluster, key)
    except ClusterError:
        return Ledger.of(cluster, key)


def queued(cluster: Cluster, key: str) -> list[str]:
    """Unfinished jobs of a case: name, index, state and reason."""
    out = cluster.root("squeue -h -r -u mqi -o '%j %K %T %r'").stdout
    return [line for line in out.splitlines() if f"-{key}-" in line]
