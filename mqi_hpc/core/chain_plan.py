"""From a case and a job number to the chain of sbatch calls, three or fewer: a pure plan, no shell text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mqi_hpc.core.errors import ConfigurationError, ProcessingError
from mqi_hpc.core.models import STAGES, Beam, Submission, job_name
from mqi_hpc.records.chain import SUFFIXES
from mqi_hpc.records.layout import submission_name

MAX_BEAMS = 1000
"""Array indices go from 0 to 999: Slurm's default MaxArraySize allows them, and 4096 characters hold them."""
PRODUCTION = "production"
"""The environment that goes without saying."""
_ABOUT = "unattended proton beam QA; ask the owner of this account"

_DEPENDS = {"beams": ("afterok", "interpret"), "convert": ("afterany", "beams")}
# Slurm keeps job names whole up to 64 characters everywhere; squeue and sacct split --name at commas.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_COMMENT_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResources:
    """What a stage asks of Slurm; `extra` are further sbatch options, verbatim; `left_out` nodes to avoid."""

    partition: str | None
    time: str
    memory: str
    cpus: int
    gres: str | None = None
    extra: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCall:
    """One sbatch call: its options but for the dependency, whose id comes from a receipt.

    `depends` names (condition, stage) of this job: afterok interpret, or afterany beams. `waits_for` are
    arrays of older jobs of the case, (job, Slurm job name), that convert waits for where they still run.
    """

    stage: str
    name: str
    options: tuple[str, ...]
    depends: tuple[str, str] | None
    held: bool
    waits_for: tuple[tuple[str, str], ...] = ()

    @property
    def dependency(self) -> str | None:
        """What the call waits for, in chain.json's words: `afterany:beams:j01/beams`; None: for nothing."""
        named = [self.depends[1]] if self.depends else []
        named += [f"{job}/beams" for job, _ in self.waits_for]
        condition = self.depends[0] if self.depends else "afterany"
        return ":".join([condition, *named]) if named else None


def default_comment(name: str, environment: str) -> str:
    """Return the comment of an installation that gives none of its own.

    >>> default_comment("QA room 5", "test")
    'QA room 5 (test), unattended proton beam QA; ask the owner of this account'
    """
    beside = f" ({environment})" if environment not in ("", PRODUCTION) else ""
    return f"{name}{beside}, {_ABOUT}"


def array_expression(indices: Iterable[int], throttle: int | None = None) -> str:
    """Return Slurm's array expression of `indices`, at most `throttle` of them at a time.

    >>> array_expression([0, 1, 2, 5], 4)
    '0-2,5%4'
    """
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    if not runs or runs[0][0] < 0 or (throttle is not None and throttle < 1):
        raise ValueError("an array has elements from 0 on, and at least one of them may run")
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if throttle is None else f"{text}%{throttle}"


def plan_submissions(
    instance: str, key: str, number: int, beams: Sequence[Beam], stages: Sequence[str] = STAGES
) -> tuple[Submission, ...]:
    """Return the submissions of job `number`, which computes `beams`; none of them is submitted yet.

    `stages` are all three, beams and convert, or convert alone, which computes none. Raises ProcessingError
    where the stages are others or the beams do not fit an array, ConfigurationError where `instance` makes
    names that Slurm would not keep as they are.
    """
    job = job_name(number)
    if tuple(stages) not in SUFFIXES:
        raise ProcessingError(
            f"the stages {', '.join(stages) or '(none)'} are no chain",
            where=f"job {job} of {key}",
            fix=f"A job has the stages {', '.join(STAGES)}, or the last two, or the last of them",
        )
    indices = tuple(sorted(beam.index for beam in beams))
    _check_indices(indices, array="beams" in stages, where=f"job {job} of {key}")
    names = {stage: submission_name(instance, key, job, stage) for stage in stages}
    for name in names.values():
        if not _NAME.match(name):
            raise ConfigurationError(
                f"{name!r} is no job name that Slurm keeps everywhere",
                where=f"instance id {instance!r}",
                fix="The name may have 64 characters: letters, digits, . _ and -",
            )
    return tuple(
        Submission(stage=stage, name=names[stage], indices=indices if stage == "beams" else (0,))
        for stage in stages
    )


def _check_indices(indices: tuple[int, ...], *, array: bool, where: str) -> None:
    if not array and indices:
        raise ProcessingError(
            f"beams with array indices {_shortly(indices)} cannot be computed by convert alone",
            where=where,
            fix="Give the job the stage beams too, or no beams",
        )
    one_each = len(set(indices)) == len(indices)
    if array and not (indices and one_each and indices[0] >= 0 and indices[-1] < MAX_BEAMS):
        raise ProcessingError(
            f"{len(indices)} beams with array indices {_shortly(indices)} cannot be one Slurm array",
            where=where,
            fix=f"A job takes 1 to {MAX_BEAMS} beams, each with an index of its own below {MAX_BEAMS}",
        )


def plan_calls(
    submissions: Sequence[Submission],
    resources: Mapping[str, StageResources],
    *,
    folder: str,
    comment: str,
    account: str | None,
    qos: str | None,
    gpu_count: int | None,
    waits_for: Sequence[tuple[str, str]] = (),
) -> tuple[StageCall, ...]:
    """Return the sbatch calls of a chain, in order; the first, its head, is held.

    What safety rests on (name, hold, array, no requeue, environment, folder, output) is on the command
    line, where it wins over the script and the environment, and last, where it wins over a site's own
    options; `folder` is the job's, absolute. `gpu_count` None: no throttle.
    `waits_for` are the older arrays, (job, Slurm job name), that convert waits for too.
    Raises ConfigurationError where Slurm would read `folder` or `comment` in another way.
    """
    if not folder.startswith("/") or not folder.isprintable() or set(folder) & set("%\\"):
        raise ConfigurationError(
            f"{folder!r} cannot be a job's folder",
            where="paths.remote_workspace",
            fix="Slurm needs an absolute path and reads % and backslash in it as patterns",
        )
    if not comment.isprintable() or len(comment.encode()) >= _COMMENT_BYTES:
        raise ConfigurationError(
            f"the comment {comment[:60]!r} cannot be given to Slurm",
            where="slurm.comment",
            fix=f"It should be one line of less than {_COMMENT_BYTES} bytes; without it, app.name and"
            " app.environment make the comment",
        )
    head = submissions[0]
    return tuple(
        StageCall(
            stage=submission.stage,
            name=submission.name,
            options=(
                *_wishes(resources[submission.stage], account, qos),
                *_safety(submission, folder, comment, gpu_count),
                *(("--hold",) if submission is head else ()),
            ),
            depends=None if submission is head else _DEPENDS[submission.stage],
            held=submission is head,
            waits_for=tuple(waits_for) if submission.stage == "convert" else (),
        )
        for submission in submissions
    )


def _wishes(want: StageResources, account: str | None, qos: str | None) -> tuple[str, ...]:
    named = {"partition": want.partition, "account": account, "qos": qos, "gres": want.gres}
    return (
        *want.extra,
        *(f"--{option}={value}" for option, value in named.items() if value),
        f"--cpus-per-task={want.cpus}",
        f"--mem={want.memory}",
        f"--time={want.time}",
        *(
            (f"--exclude={','.join(sorted({*_excluded(want.extra), *want.left_out}))}",)
            if want.left_out
            else ()
        ),
    )


def _excluded(extra: Sequence[str]) -> list[str]:
    """Return what a site's own options leave out: sbatch takes the last of an option alone."""
    own = [option.partition("=")[2] for option in extra if option.startswith("--exclude=")]
    return [own[-1]] if own else []


def _safety(submission: Submission, folder: str, comment: str, gpu_count: int | None) -> tuple[str, ...]:
    stage, indices = submission.stage, submission.indices
    array = stage == "beams"
    options = [
        "--parsable",
        f"--job-name={submission.name}",
        f"--comment={comment}",
        "--no-requeue",
        "--export=NONE",
        f"--chdir={folder}",
        f"--output={folder}/logs/{stage}-{'%A_%a' if array else '%A'}.log",
        "--open-mode=append",
        "--nodes=1",
        "--ntasks=1",
    ]
    if array:
        throttle = None if gpu_count is None else min(len(indices), gpu_count)
        options.append(f"--array={array_expression(indices, throttle)}")
    return tuple(options)


def _shortly(indices: Sequence[int]) -> str:
    return str(list(indices)) if len(indices) <= 8 else f"{indices[0]} to {indices[-1]}"
