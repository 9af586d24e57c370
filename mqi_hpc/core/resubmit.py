"""What the next job of a case is to do: its stages, its beams, and the older jobs it takes the rest from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mqi_hpc.core.attention import needs_person
from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import STAGE_OF, STAGES, Case, Job, SubmitState, Task, TaskStatus, TaskType
from mqi_hpc.core.outcome import left_out
from mqi_hpc.core.pruning import require_remote
from mqi_hpc.records.layout import EXIT_NOT_NOW

_UNSENT = frozenset({SubmitState.PLANNED, SubmitState.UPLOADED})
_UNKNOWN = frozenset({SubmitState.SUBMITTING, SubmitState.AMBIGUOUS})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """A job to come.

    `stages` is a suffix of interpret, beams, convert; `indices` are the beams it computes. `sources` names
    the job that holds, or still computes, the dose of each other beam. `interpreted` is the job whose
    interpret output serves this one, None for its own. `waits_for` are older jobs whose array still runs.
    `asks` is (memory in MB, time in s) of the stages that ask for more than the configuration gives them.
    """

    stages: tuple[str, ...] = STAGES
    indices: tuple[int, ...]
    sources: Mapping[int, str] = field(default_factory=dict)
    interpreted: str | None = None
    waits_for: tuple[str, ...] = ()
    asks: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A case's jobs, j01 first, and the tasks of each by job id."""

    jobs: tuple[Job, ...]
    tasks: Mapping[str, Sequence[Task]]

    @property
    def slurm_ended(self) -> bool:
        """Whether everything that Slurm was to run of the case has ended."""
        return all(
            task.status.terminal for tasks in self.tasks.values() for task in tasks if task.type in STAGE_OF
        )

    def beam(self, index: int) -> tuple[Job, Task] | None:
        """Return the newest job that computes a beam, and its task there."""
        for job in reversed(self.jobs):
            for task in self.tasks[job.job_id]:
                if task.type is TaskType.BEAM_CALC and task.index == index:
                    return job, task
        return None

    def newest(self, kind: TaskType) -> tuple[Job, Task] | None:
        """Return the newest job that has a task of a kind that a job has once, and that task."""
        for job in reversed(self.jobs):
            for task in self.tasks[job.job_id]:
                if task.type is kind:
                    return job, task
        return None


def current_tasks(history: History) -> list[Task]:
    """Return the tasks that count for a case: of each kind, and of each beam, those of the newest job."""
    if not history.jobs:
        return []
    indices = {task.index for tasks in history.tasks.values() for task in tasks if _is_beam(task)}
    beams = [found[1] for index in sorted(indices) if (found := history.beam(index)) is not None]
    rest = [found[1] for kind in TaskType if (found := history.newest(kind)) is not None]
    order = list(TaskType)
    once = [task for task in rest if not _is_beam(task)]
    return sorted([*once, *beams], key=lambda task: (order.index(task.type), task.index))


def first_plan(case: Case) -> JobPlan:
    """Return the plan of a case's first job: everything."""
    return JobPlan(indices=tuple(beam.index for beam in case.beams))


def plan_resubmit(
    case: Case, history: History, *, numbers: Sequence[int] | None = None, convert_only: bool = False
) -> JobPlan:
    """Return the plan of the job that makes good what went wrong.

    `numbers` are DICOM beam numbers; None: every beam that has ended and is not done. Where no beam is to
    be computed again but doses were not converted, convert alone is planned, as with `convert_only`.
    Raises ProcessingError, saying why, where there is nothing to do or it cannot be done now.
    """
    _refuse_unsent(case, history)
    chosen = set() if convert_only else _chosen(case, history, numbers)
    if not chosen:
        return _convert_plan(case, history, convert_only=convert_only)
    interpreted = None if _interpreted_gone(history, chosen) else _interpreted(history)
    if interpreted is None:
        # A dose that stands is taken from where it is: its interpret is not in the store any more.
        done = {beam.index for beam in case.beams if _status(history, beam.index) is TaskStatus.COMPLETED}
        if left := [beam.number for beam in case.beams if beam.index not in chosen | done]:
            raise ProcessingError(
                f"{case.label}: interpret did not finish, and {beams_named(left)} cannot be left out",
                fix="Resubmit the case without --beam, when all of its beams have ended",
            )
        sources = {index: job for index, job in _sources(case, history, chosen).items() if index in done}
        return JobPlan(indices=tuple(sorted(chosen)), sources=sources)
    return JobPlan(
        stages=STAGES[1:],
        indices=tuple(sorted(chosen)),
        sources=_sources(case, history, chosen),
        interpreted=interpreted,
        waits_for=_running(history, chosen),
    )


def stale(history: History) -> tuple[tuple[Job, str], ...]:
    """Return what a new job replaces: (job, stage) of converts that have not ended."""
    return tuple(
        (job, "convert")
        for job in history.jobs
        for task in history.tasks[job.job_id]
        if task.type is TaskType.CONVERT and not task.status.terminal
    )


def _refuse_unsent(case: Case, history: History) -> None:
    if not history.jobs:
        raise ProcessingError(f"{case.label} has no job yet: there is nothing to resubmit", fix=_SUBMIT)
    require_remote(case, "resubmit")
    state = history.jobs[-1].submit_state
    if state in _UNSENT:
        raise ProcessingError(
            f"{case.label}: {history.jobs[-1].name} has not been submitted yet", fix=_SUBMIT
        )
    if state in _UNKNOWN:
        raise ProcessingError(
            f"{case.label}: whether {history.jobs[-1].name} was submitted is not known yet",
            fix="Wait for the next looks at the cluster; `mqi-hpc show` tells",
        )


def _chosen(case: Case, history: History, numbers: Sequence[int] | None) -> set[int]:
    if numbers is None:
        return {
            beam.index
            for beam in case.beams
            if (found := history.beam(beam.index)) is not None and _again(found[1])
        }
    known = {beam.number: beam.index for beam in case.beams}
    left = left_out(current_tasks(history))
    for number in numbers:
        if number not in known:
            raise ProcessingError(
                f"{case.label} has no beam {number}; its beams: {', '.join(map(str, known))}"
            )
        found = history.beam(known[number])
        # A done beam that convert left out, or that Slurm contradicts, is computed again where it is named.
        named = known[number] in left or (found is not None and needs_person(found[1]))
        if found is not None and not _again(found[1]) and not (named and found[1].status.terminal):
            state = "done" if found[1].status.terminal else "not ended yet"
            raise ProcessingError(
                f"{case.label}: beam {number} is {state}, nothing of it is computed again",
                fix="`mqi-hpc show` lists the beams that failed",
            )
    return {known[number] for number in numbers}


def _convert_plan(case: Case, history: History, *, convert_only: bool) -> JobPlan:
    sources = _sources(case, history, set())
    done = [index for index in sources if _status(history, index) is TaskStatus.COMPLETED]
    convert = history.newest(TaskType.CONVERT)
    interpreted = _interpreted(history)
    if not done or interpreted is None:
        raise ProcessingError(
            f"{case.label}: no beam is done, there is nothing to convert"
            if convert_only
            else f"{case.label}: no beam has failed, there is nothing to resubmit",
            fix="`mqi-hpc show` tells how it stands",
        )
    if convert is not None and (
        not convert[1].status.terminal or _all_converted(history, convert[1], convert_only)
    ):
        if not convert[1].status.terminal:
            raise ProcessingError(
                f"{case.label}: {convert[0].name} has not ended yet, there is nothing to resubmit",
                fix="`mqi-hpc show` tells how it stands; `mqi-hpc cancel` stops it",
            )
        raise ProcessingError(
            f"{case.label}: convert is done, there is nothing to resubmit",
            fix="`mqi-hpc fetch` brings results home again; `--convert-only` makes them anew",
        )
    return JobPlan(
        stages=STAGES[2:],
        indices=(),
        sources=sources,
        interpreted=interpreted,
        waits_for=_running(history, set()),
    )


def _interpreted(history: History) -> str | None:
    """Return the newest job whose interpret left a valid record, as far as is known; None: there is none."""
    found = history.newest(TaskType.INTERPRET)
    if found is None or found[1].status not in (TaskStatus.COMPLETED, TaskStatus.SUSPECT):
        return None
    return found[0].name if found[1].record is not None else None


def _interpreted_gone(history: History, chosen: set[int]) -> bool:
    """Whether a beam may have found that what an older job's interpret left does not stand any more.

    The fence stops it then before it leaves a word of its own, and squeue tells no exit code.
    """
    newest = [found for index in chosen if (found := history.beam(index)) is not None]
    return any("interpret" not in job.stages and _stopped(task) for job, task in newest)


def _stopped(task: Task) -> bool:
    failed = task.status is TaskStatus.FAILED and task.slurm == "FAILED"
    return failed and task.exit_code in (None, EXIT_NOT_NOW)


def _all_converted(history: History, convert: Task, convert_only: bool) -> bool:
    # A person who asks for convert alone knows of a dose that the last one did not take.
    done = convert.status is TaskStatus.COMPLETED and not convert_only
    return done and not left_out(current_tasks(history))


def _sources(case: Case, history: History, chosen: set[int]) -> dict[int, str]:
    found = {}
    for beam in case.beams:
        held = history.beam(beam.index)
        if beam.index in chosen or held is None:
            continue
        job, task = held
        if not task.status.terminal or task.status in (TaskStatus.COMPLETED, TaskStatus.SUSPECT):
            found[beam.index] = job.name
    return found


def _running(history: History, chosen: set[int]) -> tuple[str, ...]:
    return tuple(
        job.name
        for job in history.jobs
        if any(
            _is_beam(task) and not task.status.terminal and task.index not in chosen
            for task in history.tasks[job.job_id]
        )
    )


def _again(task: Task) -> bool:
    return task.status.terminal and task.status is not TaskStatus.COMPLETED


def _status(history: History, index: int) -> TaskStatus | None:
    found = history.beam(index)
    return None if found is None else found[1].status


def beams_named(numbers: Sequence[int]) -> str:
    """Return DICOM beam numbers as a person reads them: beam 2, or beams 2, 3."""
    return f"beam{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _is_beam(task: Task) -> bool:
    return task.type is TaskType.BEAM_CALC


def kinds_of(plan: JobPlan) -> tuple[TaskType, ...]:
    """Return the kinds of task that a job of this plan has, in order."""
    return tuple(kind for kind in TaskType if kind not in STAGE_OF or STAGE_OF[kind] in plan.stages)


_SUBMIT = "`mqi-hpc submit` or the daemon submits it"
