"""Provokes sbatch's errors on a real cluster and keeps its words, with the class each must have.

A class is said here by what was done; whether a job came of it is then looked up in the queue: one that did
makes any class but UNKNOWN a lie.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass

from tests.corpus.sample import HOME
from tests.support.cluster import Cluster, wait_until

CONF = "/etc/slurm/slurm.conf"
SCRIPT = "#!/bin/bash\nsleep 3000\n"
PERMANENT, TRANSIENT, BACKPRESSURE, UNKNOWN = "permanent", "transient", "backpressure", "unknown"


@dataclass(frozen=True)
class Provocation:
    """What is asked for, in what state of the cluster: `before` and `after` are root's shell lines.

    `meanwhile` is run as root some seconds after sbatch was started.
    """

    what: str
    kind: str
    options: str = ""
    script: str = SCRIPT
    before: str = ""
    meanwhile: str = ""
    after: str = ""
    command: str = "sbatch"


@dataclass(frozen=True)
class Said:
    """What sbatch said (stderr), the class it must have, and whether a job came of it."""

    what: str
    kind: str
    exit_code: int
    lines: list[str]
    created: bool


def _setting(line: str) -> tuple[str, str]:
    """Return what sets and unsets a line of slurm.conf."""
    reload = "scontrol reconfigure; sleep 1"
    return f"cp {CONF} /tmp/conf; echo {line} >>{CONF}; {reload}", f"cp /tmp/conf {CONF}; {reload}"


def _limit(what: str, set_: str, unset: str) -> dict[str, str]:
    modify = f"sacctmgr -i modify {what} set"
    return {"before": f"{modify} {set_}; sleep 1", "after": f"{modify} {unset}; sleep 1"}


_ENFORCE = _setting("EnforcePartLimits=ALL")
_CTL = "/opt/cluster/ctl"

PERMANENTLY = [
    Provocation("no such partition", PERMANENT, "--partition=none"),
    Provocation("no such account", PERMANENT, "--account=nobody"),
    Provocation("no such qos", PERMANENT, "--qos=none"),
    Provocation("no such gres", PERMANENT, "--gres=tape:1"),
    Provocation("gres that is no word", PERMANENT, "--gres=gpu:x:y:z"),
    Provocation("a type of gpu that is not there", PERMANENT, "--gres=gpu:h900:1"),
    Provocation("more gpus than a node has", PERMANENT, "--gres=gpu:100"),
    Provocation("a time that is none", PERMANENT, "--time=frog"),
    Provocation("more time than the partition gives", PERMANENT, "--time=9-00:00:00", before=_ENFORCE[0],
                after=_ENFORCE[1]),
    Provocation("an array that is none", PERMANENT, "--array=5-x"),
    Provocation("an array of too high indices", PERMANENT, "--array=0-5000"),
    Provocation("no such feature", PERMANENT, "--constraint=avx9000"),
    Provocation("more memory than a node has", PERMANENT, "--mem=99T"),
    Provocation("memory that is none", PERMANENT, "--mem=frog"),
    Provocation("more cpus than a node has", PERMANENT, "--cpus-per-task=500"),
    Provocation("more nodes than there are", PERMANENT, "--nodes=50"),
    Provocation("a dependency on an id that is not known", PERMANENT, "--dependency=afterok:999999"),
    Provocation("a dependency that is none", PERMANENT, "--dependency=afterfoo:1"),
    Provocation("no such reservation", PERMANENT, "--reservation=none"),
    Provocation("no such node", PERMANENT, "--nodelist=nope"),
    Provocation("a node of another partition", PERMANENT, "--nodelist=c1 --partition=gpu"),
    Provocation("no such license", PERMANENT, "--licenses=frog:1"),
    Provocation("a begin that is no time", PERMANENT, "--begin=frog"),
    Provocation("a deadline that has passed", PERMANENT, "--deadline=2020-01-01"),
    Provocation("no such option", PERMANENT, "--frobnicate"),
    Provocation("a comment that is too long", PERMANENT, "--comment=" + "x" * 2000),
    Provocation("a name that is too long", PERMANENT, "--job-name=" + "x" * 2000),
    Provocation("a script that is not there", PERMANENT, "no-such-file.sbatch"),
    Provocation("a script that is a folder", PERMANENT, "/tmp"),
    Provocation("an empty script", PERMANENT, script=""),
    Provocation("a script of blanks", PERMANENT, script="  \n"),
    Provocation("a script without #!", PERMANENT, script="sleep 1\n"),
    Provocation("a script with DOS line ends", PERMANENT, script="#!/bin/bash\r\nsleep 1\r\n"),
    Provocation("a script that is too large", PERMANENT, "/tmp/large.sbatch",
                before="(echo '#!/bin/bash'; head -c 6000000 /dev/zero | tr '\\0' '#') >/tmp/large.sbatch"),
    Provocation("a group that may not use the partition", PERMANENT, "--partition=cpu",
                before="scontrol update partition=cpu allowgroups=root",
                after="scontrol update partition=cpu allowgroups=ALL"),
    Provocation("an account that may not use the partition", PERMANENT, "--partition=cpu",
                before=f"{_ENFORCE[0]}; scontrol update partition=cpu allowaccounts=other",
                after=f"scontrol update partition=cpu allowaccounts=ALL; {_ENFORCE[1]}"),
    Provocation("another user", PERMANENT, "--uid=root"),
    Provocation("a user without an account", PERMANENT, command="runuser -u nobody -- sbatch"),
    Provocation("a user nobody knows", PERMANENT, command="setpriv --reuid=4242 --clear-groups sbatch"),
    Provocation("no sbatch", PERMANENT, command="no-sbatch"),
    Provocation("more time than the qos gives", PERMANENT, "--time=10:00:00",
                **_limit("qos normal", "maxwall=60 flags=DenyOnLimit", "maxwall=-1 flags=-1")),
    Provocation("more gpus than the qos gives a job", PERMANENT, "--gres=gpu:2",
                **_limit("qos normal", "maxtresperjob=gres/gpu=1 flags=DenyOnLimit",
                        "maxtresperjob=gres/gpu=-1 flags=-1")),
    Provocation("no such cluster", PERMANENT, "--clusters=nowhere"),
]  # fmt: skip
FOR_NOW = [
    Provocation("the user's submit limit", BACKPRESSURE,
                **_limit("user mqi", "maxsubmitjobs=0", "maxsubmitjobs=-1")),
    Provocation("the user's submit limit, and an array", BACKPRESSURE, "--array=0-9",
                **_limit("user mqi", "maxsubmitjobs=5", "maxsubmitjobs=-1")),
    Provocation("the account's submit limit", BACKPRESSURE,
                **_limit("account mqi", "grpsubmitjobs=0", "grpsubmitjobs=-1")),
    Provocation("the qos's submit limit of a user", BACKPRESSURE,
                **_limit("qos normal", "maxsubmitjobsperuser=0", "maxsubmitjobsperuser=-1")),
    Provocation("the qos's submit limit of an account", BACKPRESSURE,
                **_limit("qos normal", "maxsubmitjobsperaccount=0", "maxsubmitjobsperaccount=-1")),
    Provocation("the qos's submit limit of all", BACKPRESSURE,
                **_limit("qos normal", "grpsubmitjobs=0", "grpsubmitjobs=-1")),
    Provocation("a partition that takes no jobs", TRANSIENT, "--partition=cpu",
                before="scontrol update partition=cpu state=inactive",
                after="scontrol update partition=cpu state=up"),
    Provocation("a partition that drains", TRANSIENT, "--partition=cpu",
                before="scontrol update partition=cpu state=drain",
                after="scontrol update partition=cpu state=up"),
    Provocation("slurmctld is not there", TRANSIENT, before=f"{_CTL} stop slurmctld",
                after=f"{_CTL} start slurmctld"),
    Provocation("munge is not there", TRANSIENT, before=f"{_CTL} stop munge", after=f"{_CTL} start munge"),
    Provocation("slurmctld cannot keep what it accepts", TRANSIENT,
                before="mv /var/lib/slurm/ctld /var/lib/slurm/away; touch /var/lib/slurm/ctld",
                after="rm -f /var/lib/slurm/ctld; mv /var/lib/slurm/away /var/lib/slurm/ctld"),
    Provocation("no slurm.conf", TRANSIENT, before=f"mv {CONF} /tmp/conf", after=f"mv /tmp/conf {CONF}"),
    Provocation("a broken slurm.conf", TRANSIENT, before=f"cp {CONF} /tmp/conf; echo Frog=1 >>{CONF}",
                after=f"cp /tmp/conf {CONF}"),
    Provocation("a host of slurmctld that no name leads to", TRANSIENT,
                before=f"cp {CONF} /tmp/conf; sed -i 's/^SlurmctldHost=.*/SlurmctldHost=nowhere/' {CONF}",
                after=f"cp /tmp/conf {CONF}"),
    Provocation("slurmctld has as many jobs as it may", TRANSIENT,
                # Those that have ended count too, for as long as it knows of them.
                before=f"cp {CONF} /tmp/conf; echo MaxJobCount=1 >>{CONF}; {_CTL} restart slurmctld",
                after=f"cp /tmp/conf {CONF}; {_CTL} restart slurmctld"),
]  # fmt: skip
IN_DOUBT = [
    Provocation("slurmctld is frozen", UNKNOWN, before=f"{_CTL} pause slurmctld",
                after=f"{_CTL} resume slurmctld"),
    Provocation("slurmctld is frozen, then killed", UNKNOWN, before=f"{_CTL} pause slurmctld",
                meanwhile=f"{_CTL} kill slurmctld", after=f"{_CTL} start slurmctld"),
]  # fmt: skip


def capture_errors(cluster: Cluster, version: str) -> None:
    """Provoke all, and write <version>/sbatch_errors.json."""
    kept: list[Said] = []
    for number, one in enumerate([*PERMANENTLY, *FOR_NOW, *IN_DOUBT]):
        name = f"mqi-error-{number}"
        said = _provoke(cluster, one, name)
        if said.exit_code == 0:
            # This version takes it: no error to keep.
            print(f"{version} accepted: {one.what}", flush=True)
            continue
        kept.append(said)
        _keep(version, kept)
        print(f"{version} {one.what}: {said.exit_code} created={said.created} {said.lines}", flush=True)


def _keep(version: str, kept: list[Said]) -> None:
    text = json.dumps([asdict(said) for said in kept], indent=1, ensure_ascii=False) + "\n"
    (HOME / version).mkdir(exist_ok=True)
    (HOME / version / "sbatch_errors.json").write_text(text, "utf-8")


def _provoke(cluster: Cluster, one: Provocation, name: str) -> Said:
    cluster.root("cat >/tmp/job.sbatch; chmod 644 /tmp/job.sbatch", one.script)
    target = "" if one.options.endswith((".sbatch", "/tmp")) else " /tmp/job.sbatch"
    named = "" if "--job-name" in one.options else f"--job-name={name}"
    user = "" if one.command != "sbatch" else "runuser -u mqi -- "
    line = f"cd /tmp; export LC_ALL=C; {user}timeout 180 {one.command} --parsable --output=/dev/null {named} "
    if one.before:
        cluster.root(one.before, check=False)
    try:
        run = f"{line}{one.options}{target}"
        if one.meanwhile:
            run = f"({run}) & pid=$!; sleep 2; {one.meanwhile} >/dev/null; wait $pid"
        done = cluster.root(run, check=False, timeout=240)
    finally:
        if one.after:
            cluster.root(one.after, check=False)
    wait_until(lambda: not cluster.root("scontrol ping | grep -v UP", check=False).stdout, 60, "slurmctld")
    # What a frozen slurmctld had in its ears it takes up soon after it wakes.
    cluster.root("sleep 1")
    # One that was refused leaves a record too, FAILED from the start.
    states = cluster.root(f"squeue -h -t all --name={shlex.quote(name)} -o %T").stdout.split()
    shown = [state for state in states if state != "FAILED"]
    cluster.root(f"scancel --name={shlex.quote(name)}", check=False)
    lines = [line.replace("x" * 2000, "xxx") for line in done.stderr.split("\n") if line]
    return Said(one.what, one.kind, done.returncode, lines, bool(shown))
