"""What Slurm says of itself, judged for `doctor` against what this program asks of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mqi_hpc.core.chain_plan import MAX_BEAMS
from mqi_hpc.core.diagnosis import CLOCK_LIMIT, CLOCK_WARNING, Finding, Said, failure, ok, skipped, warning
from mqi_hpc.core.sbatch_errors import ErrorKind, classify
from mqi_hpc.core.slurm_facts import (
    Partition,
    StageWish,
    number,
    offers,
    parse_config,
    parse_partitions,
    seconds,
    told_at,
)

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel")
TESTED = ("22.05", "24.11", "26.05")

_NAMED = re.compile(r"slurm(?:-\S+)? ([0-9]{2})\.([0-9]{2})")


def judge_commands(said: Said) -> Finding:
    """Judge which of Slurm's commands are there; `said` gives `name=path` lines."""
    lines = [line for line in said.out.split("\n") if "=" in line]
    there = {line.split("=", 1)[0] for line in lines if line.split("=", 1)[1].strip()}
    if missing := [name for name in COMMANDS if name not in there]:
        return failure(
            "slurm commands",
            f"not on PATH of a command over SSH: {', '.join(missing)}",
            "Add Slurm's bin folder to PATH in ~/.bashrc of the account on the login node (above any line"
            " that returns early where the shell is not interactive), or name another ssh.host",
        )
    return ok("slurm commands", "all there")


def judge_version(said: Said) -> Finding:
    """Judge Slurm's version by what `sbatch -V` says."""
    match = _NAMED.search(said.out)
    if match is None:
        return warning("slurm version", f"not told: {said.words}", "Try `sbatch -V` on the login node")
    version, tested = f"{match[1]}.{match[2]}", ", ".join(TESTED)
    if version in TESTED:
        return ok("slurm version", f"{version}, one of those tested")
    if version < TESTED[0]:
        return warning(
            "slurm version",
            f"{version} is older than any that was tested ({tested})",
            "Upgrade Slurm if you can",
        )
    if version > TESTED[-1]:
        return warning(
            "slurm version",
            f"{version} is newer than any that was tested ({tested})",
            "Send one sample case (mqi-hpc sample-case) before the first patient's",
        )
    return ok("slurm version", f"{version}, between those tested ({tested})")


def judge_controller(said: Said | None) -> Finding:
    """Judge whether slurmctld answers, by `scontrol show config`."""
    if said is not None and said.code == 0 and parse_config(said.out):
        return ok("slurmctld", f"answers; cluster {parse_config(said.out).get('ClusterName', '?')}")
    why = "it was not asked" if said is None else said.words
    return failure(
        "slurmctld",
        f"Slurm's controller does not answer: {why}",
        "Try `scontrol ping` on the login node and tell the cluster's administrator; cases wait"
        " meanwhile, and none is lost",
    )


def judge_slurm_clock(login: Said, config: Said) -> Finding:
    """Judge slurmctld's clock by the login node's: receipts bear the one, accounting the other."""
    told = told_at(config.out)
    if told is None or not re.fullmatch(r"[0-9]{9,11}", login.out.strip()):
        return skipped("slurm clock", "Slurm did not tell its time")
    ahead = int(login.out) - told
    if abs(ahead) <= CLOCK_WARNING:
        return ok("slurm clock", "login node and slurmctld agree")
    found = (
        f"the login node's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} slurmctld's"
    )
    cure = "Ask the cluster's administrator to set up NTP on the login node"
    if ahead >= CLOCK_LIMIT / 2:
        return failure(
            "slurm clock",
            f"{found}; from {CLOCK_LIMIT} s on, this program would take its own jobs for older ones",
            cure,
        )
    return warning("slurm clock", found, cure)


def judge_config(settings: Mapping[str, str], *, poll_max: float, accounting_off: bool) -> list[Finding]:
    """Judge the settings of slurm.conf that matter here; `poll_max` is in seconds."""
    return [
        _array_size(settings),
        _job_age(settings, poll_max, accounting_off),
        _invalid_dependencies(settings),
    ]


def _array_size(settings: Mapping[str, str]) -> Finding:
    size = number(settings.get("MaxArraySize", ""))
    if size is None:
        return skipped("slurm arrays", "Slurm did not tell MaxArraySize")
    if size < 2:
        cure = "The beams of a case are a job array: ask the administrator for MaxArraySize=1001, the default"
        return failure("slurm arrays", f"MaxArraySize is {size}: job arrays are switched off", cure)
    if size < 101 and size < MAX_BEAMS:
        cure = "Cases with more beams are refused by Slurm: ask for MaxArraySize=1001, the default"
        return warning("slurm arrays", f"MaxArraySize is {size}: at most {size} beams a case", cure)
    return ok("slurm arrays", f"up to {min(size, MAX_BEAMS)} beams a case")


def _job_age(settings: Mapping[str, str], poll_max: float, accounting_off: bool) -> Finding:
    check, age = "slurm MinJobAge", number(settings.get("MinJobAge", ""))
    if age is None:
        return skipped(check, "Slurm did not tell MinJobAge")
    if age and age <= poll_max:
        found = (
            f"ended jobs leave the queue after {age} s, this program looks every {poll_max:.0f} s at longest"
        )
        only = (
            "; without accounting their end is then not seen" if accounting_off else "; accounting tells then"
        )
        return warning(check, found + only, f"Set processing.poll_max_seconds below {age}")
    return ok(check, "ended jobs stay for ever" if age == 0 else f"ended jobs are seen for {age} s")


def _invalid_dependencies(settings: Mapping[str, str]) -> Finding:
    check = "slurm dependencies"
    told = f"{settings.get('SchedulerParameters', '')},{settings.get('DependencyParameters', '')}"
    if "kill_invalid_depend" in told:
        return ok(
            check,
            "Slurm itself cancels what waits for a failed job (kill_invalid_depend)",
        )
    return ok(check, "what waits for a failed job is cancelled by this program")


def judge_accounting(said: Said, settings: Mapping[str, str], mode: str) -> Finding:
    """Judge whether sacct answers; `mode` is slurm.accounting (auto, on, off)."""
    check, kind = "accounting", settings.get("AccountingStorageType", "unknown storage")
    if said.code == 0 and "error:" not in said.err.lower():
        used = "; not used (slurm.accounting: off)" if mode == "off" else ""
        return ok(check, f"sacct answers ({kind}){used}")
    none = "accounting_storage/none" in kind or "storage is disabled" in said.err.lower()
    if mode == "off":
        return ok(check, f"off, as slurm.accounting says ({kind})")
    if none and mode == "auto":
        cure = "Verdicts rest on our own records, and say so. Set slurm.accounting: off, or ask for slurmdbd"
        return warning(check, f"this cluster has none ({kind})", cure)
    if none:
        return failure(
            check, f"this cluster has none ({kind})", "Set slurm.accounting: auto, or ask for slurmdbd"
        )
    cure = "Try `sacct` there; tell the administrator that slurmdbd or its database is away. Verdicts wait"
    return failure(check, f"sacct fails ({kind}): {said.words}", cure)


def judge_association(said: Said, settings: Mapping[str, str], user: str, account: str | None) -> Finding:
    """Judge whether the user may use the account; `said` gives cluster|account|partition|qos lines."""
    check = "association"
    enforced = "associations" in settings.get("AccountingStorageEnforce", "")
    rows = [line.split("|") for line in said.out.split("\n") if line.count("|") >= 3]
    here = settings.get("ClusterName", "")
    accounts = sorted({row[1] for row in rows if row[0] == here or not here})
    if said.code:
        return skipped(check, f"sacctmgr does not tell ({said.words})")
    if account in accounts or (account is None and accounts):
        return ok(check, f"{user} may use {', '.join(accounts)}")
    if not enforced:
        return ok(check, "none needed: Slurm enforces none")
    wanted = f"account {account}" if account else "any account"
    have = f"; {', '.join(accounts)} would do" if accounts else ""
    cure = "Correct slurm.account" if accounts else "Ask the administrator: sacctmgr add user"
    return failure(check, f"{user} has no association with {wanted} on {here or 'this cluster'}{have}", cure)


def judge_partitions(said: Said, wishes: Sequence[StageWish]) -> list[Finding]:
    """Judge the partition of each stage by sinfo: there, up, its time limit, its generic resources."""
    found = parse_partitions(said.out)
    if said.code or not found:
        cure = "Try `sinfo` on the login node"
        return [
            failure(f"partition ({wish.stage})", f"sinfo tells none: {said.words}", cure) for wish in wishes
        ]
    return [_partition(found, wish) for wish in wishes]


def _partition(found: Mapping[str, Partition], wish: StageWish) -> Finding:
    check, names = f"partition ({wish.stage})", ", ".join(sorted(found)) or "none"
    setting = f"slurm.partition or slurm.stages.{wish.stage}.partition"
    if wish.partition is None:
        chosen = [one for one in found.values() if one.default]
        if not chosen:
            return failure(check, "Slurm has no default partition", f"Name one in {setting}: {names}")
    else:
        wanted = wish.partition.split(",")
        if missing := [name for name in wanted if name not in found]:
            return failure(
                check,
                f"there is no partition {', '.join(missing)}",
                f"Correct {setting}; those there are: {names}",
            )
        chosen = [found[name] for name in wanted]
    findings = [_one_partition(check, one, wish) for one in chosen]
    # sbatch takes whichever of several partitions fits first.
    return next((one for one in findings if not one.cure), findings[0])


def _one_partition(check: str, one: Partition, wish: StageWish) -> Finding:
    if not one.state.startswith("up"):
        cure = "Ask the cluster's administrator when it is up again, or name another"
        return warning(check, f"{one.name} is {one.state}", cure)
    limit, asked = seconds(one.limit), seconds(wish.time)
    if limit is not None and asked is not None and asked > limit:
        cure = f"Set slurm.stages.{wish.stage}.time to at most {one.limit}: the job would wait for ever"
        return failure(check, f"{one.name} allows {one.limit}, the stage asks for {wish.time}", cure)
    fitting = list(one.groups)
    if wish.gres is not None:
        fitting = [group for group in one.groups if offers(group.gres, wish.gres)]
        if not fitting:
            have = ", ".join(sorted({group.gres for group in one.groups})) or "nothing"
            cure = f"Correct slurm.gres or the partition; the nodes of {one.name} have: {have}"
            return failure(check, f"no node of {one.name} can give {wish.gres}", cure)
    awake = sum(group.nodes for group in fitting if not group.away)
    if not awake:
        states = ", ".join(sorted({group.state for group in fitting})) or "there are none"
        cure = "Cases wait until a node is back: ask the cluster's administrator"
        return warning(check, f"no node of {one.name} takes jobs now ({states})", cure)
    gres = f" with {wish.gres}" if wish.gres else ""
    return ok(check, f"{one.name} is up, {awake} node{'' if awake == 1 else 's'}{gres}, limit {one.limit}")


def judge_test(stage: str, said: Said) -> Finding:
    """Judge `sbatch --test-only` with the options of a stage, in Slurm's own words."""
    check = f"sbatch ({stage})"
    if said.code == 0:
        return ok(check, "Slurm would take it")
    error = classify(said.err.splitlines(), said.code)
    if error.kind is ErrorKind.BACKPRESSURE:
        return warning(check, error.text, "A limit is reached; cases wait until jobs have ended")
    if error.kind is ErrorKind.PERMANENT:
        cure = "Correct the section slurm of the configuration; those are Slurm's own words"
        return failure(check, f"Slurm refuses the stage: {error.text}", cure)
    return failure(check, f"sbatch --test-only failed: {error.text}", "Try it again; see the checks above")
