"""Makes the corpus: brings a real cluster into many states and keeps what our poll script says of each.

    python -m tests.corpus.capture IMAGE [SCENARIO...]

IMAGE is one that `./dev cluster image --suite SUITE` names; a scenario is a function below. It writes
tests/corpus/<version of Slurm>/.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mqi_hpc.core.effects import JobQuery, Observe
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.layout import output_folder
from tests.corpus.errors import capture_errors
from tests.corpus.sample import Sample, facts_of, write
from tests.support.cluster import Cluster, wait_until
from tests.support.simulation.beds import real_bed

USER, ROOT = 1000, 0
SLEEP = "sleep 3000"
STUBBORN = "trap '' TERM CONT; while :; do sleep 1; done"
SCONTROL = "TZ=UTC SLURM_BITSTR_LEN=0 scontrol show job -o"


class Capture:
    """One cluster, its jobs so far, and who cancelled which of them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.version = cluster.ssh("sbatch -V", check=True).stdout.split()[-1].rpartition(".")[0]
        self.renderer = Renderer(ConfigLoader().load(cluster.config_path), b"")
        self.cancelled_by: dict[int, int] = {}
        self.lives: list[tuple[int, int, str]] = []
        self.ids: list[int] = []
        self.count = 0

    def job(self, what: str, script: str, *options: str) -> int:
        """Submit a job of ours."""
        given = self.cluster.sbatch(script, f"--job-name=mqi-corpus-{what}", "--output=/dev/null", *options)
        self.ids.append(int(given))
        return self.ids[-1]

    def cancel(self, job: int, what: str = "", *, by: int = USER) -> None:
        """Cancel a job, or `what` of it (`12_3`)."""
        self.cancelled_by[job] = by
        run = self.cluster.ssh if by == USER else self.cluster.root
        run(f"scancel {shlex.quote(what or str(job))}", check=True)

    def until(self, job: int, state: str, *, every: bool = True) -> None:
        """Wait until all rows of a job are in one of the states `A|B`, or one is."""
        wanted = set(state.split("|"))
        line = f"squeue -h -r -t all -j {job} -o %T"

        def there() -> bool:
            found = set(self.cluster.root(line).stdout.split())
            return bool(found) and (found <= wanted if every else bool(found & wanted))

        wait_until(there, 240, f"job {job} {state}")

    def observe(self, ids: Iterable[int]) -> tuple[str, str]:
        """Return nonce and output of one poll."""
        self.count += 1
        nonce = f"corpus{self.count}"
        script = self.renderer.observe_script(Observe(nonce=nonce, jobs=(), sacct_ids=tuple(ids)))
        # The workspace is not there: the last section fails, and with it the script.
        return nonce, self.cluster.ssh("bash -s", script, timeout=300).stdout

    def keep(self, name: str, what: str, *, only: Iterable[int] | None = None) -> None:
        """Keep a poll over which nothing changed, accounting included, and what scontrol says of it."""
        ids = list(only if only is not None else self.ids)
        kept: list[tuple[str, str, str]] = []

        def steady() -> bool:
            before = self.cluster.root(SCONTROL).stdout
            nonce, text = self.observe(ids)
            same = _facts(before) == _facts(self.cluster.root(SCONTROL).stdout)
            said = text.replace(nonce, "").partition(" BEGIN squeue")[2].partition(" BEGIN space")[0]
            # Accounting is told of a change within some seconds.
            settled = bool(kept) and kept[-1][2] == said
            kept.append((nonce, text, said))
            if not (same and settled):
                self.cluster.root("sleep 7")
            return same and settled

        wait_until(steady, 180, f"a steady cluster for {name}")
        nonce, text, _ = kept[-1]
        facts = facts_of(self.cluster.root(SCONTROL).stdout, self.cancelled_by)
        lives = tuple(life for life in self.lives if life[0] in ids)
        write(self.version, name, text, Sample(what=what, nonce=nonce, facts=facts, lives=lives))
        print(f"{self.version} {name}: {len(facts)} tasks", flush=True)

    def keep_failed(self, name: str, what: str, *, queue: bool, accounting: bool) -> None:
        """Keep a poll during which a daemon is away."""
        facts = facts_of(self.cluster.root(SCONTROL).stdout, self.cancelled_by) if queue else ()
        nonce, text = self.observe(self.ids)
        sample = Sample(what=what, nonce=nonce, facts=facts, queue=queue, accounting=accounting)
        write(self.version, name, text, sample)
        print(f"{self.version} {name}: kept", flush=True)


def _facts(scontrol: str) -> object:
    return facts_of(scontrol, {})


def waiting(it: Capture) -> None:
    """Whatever waits: held, for another job, for room, for its turn in an array."""
    held = it.job("held", SLEEP, "--hold")
    it.job("dependent", SLEEP, f"--dependency=afterok:{held}")
    it.job("dependent-array", SLEEP, "--array=0-3", f"--dependency=afterany:{held}")
    it.job("throttled", SLEEP, "--array=0-5%2", "--gres=gpu:1")
    it.job("throttled-held", SLEEP, "--array=4-9%2", "--hold")
    it.job("step", SLEEP, "--array=0-20:4", "--hold")
    it.job("list", SLEEP, "--array=1,3,5-7", "--hold")
    it.job("long", SLEEP, "--array=0-199:2", "--hold")
    it.job("begin", SLEEP, "--begin=now+2hours")
    full = it.job("full", SLEEP, "--partition=cpu", "--ntasks=16")
    it.job("resources", SLEEP, "--partition=cpu", "--ntasks=16")
    it.job("priority", SLEEP, "--partition=cpu", "--ntasks=16")
    it.job("two-nodes", SLEEP, "--nodes=2", "--ntasks=2")
    for name in ("a b", "tab\there", "line\nend", "ünï ☃", "my-mqi-job", "$(id)", "'quoted\""):
        it.cluster.sbatch(SLEEP, f"--job-name={name}", "--hold", "--output=/dev/null")
    it.until(full, "RUNNING")
    it.keep("waiting", "held, dependent, throttled, in want of room; array expressions; names of other jobs")
    # Its process ends, and the node does not say so: COMPLETING lasts.
    completing = it.job("completing", SLEEP, "--nodelist=g2")
    it.until(completing, "RUNNING")
    it.cluster.ctl("pause", "slurmd-g2")
    it.cancel(completing)
    it.until(completing, "COMPLETING")
    it.keep("completing", "cancelled, and its node has not said yet that it has ended")
    it.cluster.ctl("resume", "slurmd-g2")
    for job in it.ids:
        it.cancel(job)
    it.cluster.root("scancel -u mqi")
    wait_until(lambda: not it.cluster.root("squeue -h").stdout, 120, "an empty queue")
    it.keep("all-cancelled", "everything cancelled by its owner, much of it before it ran")
    it.ids, it.lives = [], []


def ended(it: Capture) -> None:
    """Ends of every kind that a cluster without cgroups can give."""
    codes = {code: it.job(f"exit-{code}", f"exit {code}") for code in (0, 1, 2, 77, 137, 255)}
    it.job("killed", "kill -9 $$")
    mixed = it.job("mixed", "[ $SLURM_ARRAY_TASK_ID != 2 ] || exit 3", "--array=0-4")
    late = it.job("timeout", SLEEP, "--time=1")
    never = it.job("never", SLEEP, f"--dependency=afterok:{codes[1]}")
    it.job("never-array", SLEEP, "--array=0-2", f"--dependency=afterok:{mixed}")
    by_root = it.job("by-root", SLEEP)
    it.until(by_root, "RUNNING")
    it.cancel(by_root, by=ROOT)
    held = it.job("held-then-cancelled", SLEEP, "--array=0-9", "--hold")
    it.cancel(held)
    partly = it.job("partly", SLEEP, "--array=0-5%1", "--gres=gpu:1")
    it.until(partly, "RUNNING", every=False)
    it.cancel(partly, f"{partly}_[3-4]")
    it.cancel(partly, f"{partly}_0")
    it.until(codes[255], "FAILED")
    it.until(mixed, "COMPLETED|FAILED")
    it.until(late, "TIMEOUT")
    it.until(never, "PENDING")
    it.keep("ended", "exit codes, a signal, a time limit, cancelled by owner and root, never to run, in part")
    it.cancel(partly)
    for job in (never, never + 1):
        it.cancel(job, by=ROOT)
    wait_until(lambda: not it.cluster.root("squeue -h").stdout, 120, "an empty queue")
    it.keep("ended-later", "the same, and the rest cancelled")
    it.ids, it.lives = [], []


def taken_away(it: Capture) -> None:
    """Nodes that fail, jobs put back by an administrator, or by a job that goes before."""
    lost = it.job("node-fail", SLEEP, "--nodelist=g2", "--no-requeue")
    again = it.job("node-fail-requeued", SLEEP, "--nodelist=g2", "--requeue")
    for job in (lost, again):
        it.until(job, "RUNNING")
    it.cluster.root("scontrol update nodename=g2 state=down reason=corpus")
    it.until(lost, "NODE_FAIL")
    it.until(again, "PENDING")
    it.lives.append((again, -1, "NODE_FAIL"))
    admin = it.job("requeued", SLEEP, "--nodelist=g1", "--requeue")
    array = it.job("requeued-array", SLEEP, "--array=0-3", "--nodelist=g1", "--requeue")
    for job in (admin, array):
        it.until(job, "RUNNING")
    it.cluster.root(f"scontrol requeue {admin}; scontrol requeue {array}_2")
    it.lives += [(admin, -1, "REQUEUED"), (array, 2, "REQUEUED")]
    stuck = it.job("requeue-hold", SLEEP, "--nodelist=g1", "--requeue")
    it.until(stuck, "RUNNING")
    it.cluster.root(f"scontrol requeuehold {stuck}")
    it.lives.append((stuck, -1, "REQUEUED"))
    for job in (admin, array):
        it.until(job, "RUNNING")
    it.keep("taken-away", "a node set down under its jobs; put back by an administrator, one of them on hold")
    it.cluster.root("scontrol update nodename=g2 state=resume")
    for job in it.ids:
        it.cancel(job)
    wait_until(lambda: not it.cluster.root("squeue -h").stdout, 120, "an empty queue")
    it.ids, it.lives = [], []
    requeued = it.job("preempted", SLEEP, "--partition=low", "--nodelist=g1", "--gres=gpu:4", "--requeue")
    gone = it.job(
        "preempted-for-good", SLEEP, "--partition=low", "--nodelist=g2", "--gres=gpu:4", "--no-requeue"
    )
    for job in (requeued, gone):
        it.until(job, "RUNNING")
    for node in ("g1", "g2"):
        it.job(f"first-{node}", SLEEP, f"--nodelist={node}", "--gres=gpu:4")
    it.until(it.ids[-1], "RUNNING")
    it.until(it.ids[-2], "RUNNING")
    it.until(requeued, "PENDING")
    it.lives.append((requeued, -1, "PREEMPTED"))
    it.keep("preempted", "jobs of a low partition that had to make room, one put back and one not")
    for job in it.ids:
        it.cancel(job)
    wait_until(lambda: not it.cluster.root("squeue -h").stdout, 120, "an empty queue")
    it.ids, it.lives = [], []


def daemons_away(it: Capture) -> None:
    """Polls while slurmdbd or slurmctld is stopped or frozen."""
    job = it.job("running", SLEEP)
    it.until(job, "RUNNING")
    it.cluster.ctl("stop", "slurmdbd")
    it.keep_failed("slurmdbd-stopped", "slurmdbd is not there", queue=True, accounting=False)
    it.cluster.ctl("start", "slurmdbd")
    it.cluster.ctl("pause", "slurmctld")
    it.keep_failed("slurmctld-frozen", "slurmctld does not answer", queue=False, accounting=True)
    it.cluster.ctl("resume", "slurmctld")
    it.cluster.ctl("stop", "slurmctld")
    it.keep_failed("slurmctld-stopped", "slurmctld is not there", queue=False, accounting=True)
    it.cluster.ctl("start", "slurmctld")
    it.cancel(job)
    it.ids = []


def facts_of_the_cluster(it: Capture) -> None:
    """What doctor and gpus ask: scontrol show config, sinfo in both formats, with a node down."""
    from mqi_hpc.core import gpu_inventory, slurm_facts
    from tests.corpus.sample import HOME

    it.cluster.root("scontrol update nodename=g2 state=drain reason=corpus")
    job = it.job("on-two-gpus", SLEEP, "--gres=gpu:2", "--nodelist=g1")
    it.until(job, "RUNNING")
    for name, line in {
        "sinfo-partitions": f"sinfo -h -a -o {shlex.quote(slurm_facts.SINFO_FORMAT)}",
        "sinfo-nodes": f"sinfo -h -N -a -O {shlex.quote(gpu_inventory.SINFO_FORMAT)}",
        "scontrol-config": "scontrol show config",
    }.items():
        text = it.cluster.ssh(line, check=True).stdout
        (HOME / it.version / f"{name}.raw").write_text(text, "utf-8")
    # Refused where it has come back by itself.
    it.cluster.root("scontrol update nodename=g2 state=resume", check=False)
    it.cancel(job)
    it.ids = []


def chain(it: Capture) -> None:
    """A whole chain of ours with its receipts, status lines and records, as it runs and when it has ended."""
    home = it.cluster.home / "chain"
    home.mkdir()
    with real_bed(home, it.cluster) as bed:
        sent = bed.send()
        numbers = {beam.index: beam.number for beam in bed.case.beams}
        records = [("interpret", output_folder("interpret", 0)), ("convert", output_folder("convert", 0))]
        records += [(f"beam-{n}", output_folder("beams", numbers[n])) for n in numbers]
        ids = tuple(s.slurm_id for s in sent.job.submissions if s.slurm_id is not None)
        jobs = (JobQuery(ref="job", folder=sent.folder, records=tuple(records)),)
        bed.until(lambda: bed.observe(sent).status(sent.job.job_id), "a status line")
        for name in ("chain-begun", "chain-ended"):
            nonce = f"corpus-{name}"
            done = bed.run(Observe(nonce=nonce, jobs=jobs, sacct_ids=ids))
            facts = facts_of(it.cluster.root(SCONTROL).stdout, {}) if name == "chain-ended" else ()
            write(it.version, name, done.output, Sample(what="our own chain", nonce=nonce, facts=facts))
            if name == "chain-begun":
                bed.to_the_end(sent)
                it.cluster.root("sleep 7")


def errors(it: Capture) -> None:
    """What sbatch says when it fails."""
    capture_errors(it.cluster, it.version)


def main() -> None:
    """Capture what the command line names, else all."""
    image, *wanted = sys.argv[1:]
    env = {"MQI_MIN_JOB_AGE": "3600", "MQI_MESSAGE_TIMEOUT": "5"}
    with tempfile.TemporaryDirectory() as home, Cluster(image, Path(home), env) as cluster:
        it = Capture(cluster)
        for scenario in (waiting, ended, taken_away, daemons_away, facts_of_the_cluster, chain, errors):
            if not wanted or scenario.__name__ in wanted:
                scenario(it)


if __name__ == "__main__":
    main()
