"""Whether all invariants held, by what the cluster's side saw: design.md 2, asked from the outside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from mqi_hpc.core.causes import Cause
from mqi_hpc.core.models import STAGE_OF, Case, CaseStatus, Job, Task, TaskStatus
from mqi_hpc.core.readings import WITHOUT_ACCOUNTING
from mqi_hpc.core.resubmit import current_tasks
from mqi_hpc.services.history import read_history
from tests.chaos.truth import true_dose, true_rt_dose
from tests.chaos.world import MOST_RETRIES, World, tasks_of

_ENDED = frozenset(
    {CaseStatus.COMPLETED, CaseStatus.PARTIAL, CaseStatus.FAILED, CaseStatus.CANCELLED, CaseStatus.REJECTED}
)
_LOOKS_FREE = 30


def broken(world: World) -> list[str]:
    """Return every invariant that a run broke, in words; none: all held."""
    return [*dict.fromkeys((*world.ledger.wrong, *_asked(world)))]


def _asked(world: World) -> Iterator[str]:
    if world.cut_short:
        yield f"stuck: no end {world.cut_short}; {_where(world)}"
    with world.store.transaction(write=False) as unit:
        cases = unit.cases.all()
        histories = {case.case_id: read_history(unit, case.case_id) for case in cases}
        tasks = {case.case_id: tasks_of(unit, case.case_id) for case in cases}
    yield from _exactly_once(world)
    yield from _retried_once(world)
    for case in cases:
        jobs = histories[case.case_id].jobs
        yield from _right_beam(world, case)
        yield from _done_is_verified(world, case, jobs, tasks[case.case_id])
        yield from _slurm_agrees(world, jobs, tasks[case.case_id])
        yield from _delivery(world, case)
        if not world.cut_short:
            yield from _nothing_lost(world, case, current_tasks(histories[case.case_id]))
    fault = world.store.verify()
    if fault is not None:
        yield f"the chain of events does not verify: {fault}"
    yield from _left_over(world)
    yield from _light(world)


def _where(world: World) -> str:
    return ", ".join(
        f"{case.case_id} {case.status}{f' ({case.attention})' if case.attention else ''}"
        for case in world.store.cases.values()
    )


def _exactly_once(world: World) -> Iterator[str]:
    """One submission of each (case, job, stage) takes effect, and each of its tasks once."""
    effective: dict[tuple[str, str, str], set[int]] = {}
    times: Counter[tuple[str, str, str, int]] = Counter()
    for one in world.ledger.ran:
        effective.setdefault((one.key, one.job, one.stage), set()).add(one.slurm_id)
        times[one.key, one.job, one.stage, one.index] += 1
    for place, ids in effective.items():
        if len(ids) > 1:
            yield f"exactly once: {' '.join(place)} took effect as Slurm jobs {sorted(ids)}"
    for task, count in times.items():
        if count > 1:
            yield f"exactly once: {' '.join(map(str, task))} ran {count} times behind the fence"


def _retried_once(world: World) -> Iterator[str]:
    """A task is retried by itself once, and so many times in a row until a person asks for it."""
    once: Counter[str] = Counter()
    row: Counter[tuple[str | None, str]] = Counter()
    for _, kind, key, body in world.store.log:
        data = json.loads(body) if kind in ("order", "job planned") else {}
        if data.get("verb") == "resubmit":
            row = Counter({place: count for place, count in row.items() if place[0] != key})
        for told in data.get("automatic", ()):
            once[told["task"]] += 1
            row[key, told["task"].partition("/")[2]] += told["cause"] != Cause.NO_NODE
            if once[told["task"]] > 1 or row[key, told["task"].partition("/")[2]] > MOST_RETRIES:
                yield f"retried too often: {told['task']}, attempt {told['attempt']} for {told['cause']}"


def _right_beam(world: World, case: Case) -> Iterator[str]:
    """Every dose is that of its own beam's input, and an array index means one beam for ever."""
    for (key, job, stage, index), made in world.ledger.published.items():
        if key != case.case_id or stage == "interpret":
            continue
        by_number = {beam.number: beam for beam in case.beams}
        true = true_dose if stage == "beams" else true_rt_dose
        for one in made:
            for number, content in one.items():
                if content != true(case, by_number[number]):
                    yield f"wrong beam: {key} {job} {stage}: beam {number} is {content!r}"
                if stage == "beams" and by_number[number].index != index:
                    yield f"wrong beam: {key} {job}: array index {index} was beam {number}"


def _done_is_verified(world: World, case: Case, jobs: tuple[Job, ...], tasks: list[Task]) -> Iterator[str]:
    names = {job.job_id: job.name for job in jobs}
    for task in tasks:
        if task.status is not TaskStatus.COMPLETED or task.type not in STAGE_OF:
            continue
        place = (case.case_id, names[task.job_id], STAGE_OF[task.type], task.index)
        if place not in world.ledger.published:
            yield f"done is not verified: {task.task_id} is {task.phase}, and nothing was published of it"
        elif place in world.ledger.spoilt:
            yield f"done is not verified: {task.task_id} is {task.phase}, and its output is spoilt"
        elif 0 not in world.ledger.exits.get(place, []) and task.phase != "accepted" and _told(task):
            yield f"done is not verified: {task.task_id} is {task.phase}; its program did not exit 0"


def _told(task: Task) -> bool:
    """Whether a verdict claims that the program left an exit record."""
    return not task.noted.startswith("it left no exit record")


def _slurm_agrees(world: World, jobs: tuple[Job, ...], tasks: list[Task]) -> Iterator[str]:
    """What is done by Slurm's word, Slurm has ended well; without it, the verdict says so."""
    if not world.setting.site.accounting:
        return
    by_id = {job.job_id: job for job in jobs}
    for task in tasks:
        if task.status is not TaskStatus.COMPLETED or task.phase != "done" or task.type not in STAGE_OF:
            continue
        one = by_id[task.job_id].submission(STAGE_OF[task.type])
        words = world.ledger.words.get((one.name, one.slurm_id or 0, task.index), set()) if one else set()
        if "COMPLETED" not in words and not task.noted.startswith(WITHOUT_ACCOUNTING):
            yield f"done is not verified: {task.task_id} is done, and Slurm ended it as {sorted(words)}"


def _delivery(world: World, case: Case) -> Iterator[str]:
    """What came home is what each beam's engine made; what should have come home did."""
    beams = {f"RD.beam_{beam.number}_{beam.name}.dcm": beam for beam in case.beams}
    home = {
        name.rpartition("/")[2]: content
        for name, content in world.ledger.delivered.items()
        if name.startswith(f"{case.label}/")
    }
    for name, content in home.items():
        beam = beams.get(name)
        if beam is None or content != true_rt_dose(case, beam):
            yield f"wrong dose delivered: {case.label}/{name} is {content!r}"
    if case.status is CaseStatus.COMPLETED and home.keys() != beams.keys():
        yield f"{case.label} is completed, and only {sorted(home)} came home"


def _nothing_lost(world: World, case: Case, current: list[Task]) -> Iterator[str]:
    """A case comes to an end, and to a good one unless something befell it that explains another."""
    harm = world.ledger.harm.get(case.case_id, [])
    if case.status not in _ENDED and not case.attention:
        yield f"lost: {case.label} is {case.status}, and nobody is asked"
    if case.status is CaseStatus.COMPLETED or harm:
        return
    phases = [f"{task.type} {task.index}: {task.phase} ({task.detail})" for task in current]
    yield f"harmed by an outage, or by another's fault: {case.label} is {case.status}: {'; '.join(phases)}"


def _left_over(world: World) -> Iterator[str]:
    if world.cut_short:
        return
    for job in world.left():
        key, number = job.request.name.split("-")[2:4]
        if world.store.backups and f"{key}-{number}" not in world.store.jobs:
            # An older store does not know what was asked for since, and cancels nothing that it does not
            # know: `doctor --orphans` lists it, for a person.
            continue
        states = sorted({one.word for one in job.elements.values()})
        yield f"left in the queue: {job.request.name} {job.id} {'/'.join(states)} {job.reason}"


def _light(world: World) -> Iterator[str]:
    """At most one look at a time, and no more of them than time and changes give reason for."""
    execs, seconds = world.ledger.execs, world.clock.monotonic()
    reasons = sum(execs[kind] for kind in ("submit", "cancel", "upload", "download")) + world.lives
    most = _LOOKS_FREE + seconds / 10.0 + 2 * reasons
    if execs["observe"] > most:
        yield f"not light: {execs['observe']} looks in {seconds:.0f} s, {reasons} reasons for more"
