"""Looks at the cluster for all jobs at once, and brings each job in line with what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mqi_hpc.core.effects import Completion, JobQuery, Observe
from mqi_hpc.core.failpoints import Failpoint, reach
from mqi_hpc.core.interfaces import IStore, IUnit
from mqi_hpc.core.lost_chain import NEVER_RAN, left_in_queue
from mqi_hpc.core.models import STAGE_OF, Case, Job, SubmitState, Task, TaskStatus, TaskType, task_name
from mqi_hpc.core.next_task import past, slurm_tasks, to_be_cleared, watched
from mqi_hpc.core.observation import PREFIX, Row
from mqi_hpc.domain.afterwards import look_back, to_be_confirmed
from mqi_hpc.domain.desk import Desk, OpenJob
from mqi_hpc.domain.evidence import Evidence, read_evidence
from mqi_hpc.domain.reconciler import Reconciler
from mqi_hpc.domain.recovery import Found, Patience, clear, recover
from mqi_hpc.domain.submitter import Cancels
from mqi_hpc.domain.testimony import testimony
from mqi_hpc.records.chain import Chain, decode_chain
from mqi_hpc.records.layout import CHAIN, output_folder
from mqi_hpc.services.job_service import JobService

_NOT_JUDGED = "it cannot be judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOff:
    """What to cancel of a job; `mark`: its folder, where nothing of it is to begin any more, else ""."""

    job_id: str
    targets: Cancels
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a poll led to: whether anything changed (or will `soon`), what to call off, what went wrong."""

    changed: bool
    call_offs: tuple[CallOff, ...]
    notes: tuple[str, ...]
    good: bool
    soon: bool = False
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What a look led to for one job."""

    changed: bool
    soon: bool
    call_off: CallOff | None


class Watcher:
    """Plans polls and applies them."""

    def __init__(
        self,
        store: IStore,
        desk: Desk,
        jobs: JobService,
        reconciler: Reconciler,
        *,
        accounting: str,
        submit_seconds: float,
    ) -> None:
        self._store = store
        self._desk = desk
        self._jobs = jobs
        self._reconciler = reconciler
        self._accounting = accounting
        self._patience = Patience(submit=submit_seconds, lag=reconciler.limits.lag)
        self._chains: dict[str, Chain] = {}
        self._unseen: set[str] = set()
        # Jobs that are over and not confirmed; read once, None: not yet.
        self._alone: set[str] | None = None
        self._sent = False

    def plan(self, case_ids: Sequence[str], nonce: str) -> Observe | None:
        """Return one look at all jobs of these cases that are in Slurm's hands, None where none is."""
        queries = []
        sacct_ids: set[int] = set()
        with self._store.transaction(write=False) as unit:
            for case_id in case_ids:
                case = unit.cases.get(case_id)
                for job in unit.jobs.of_case(case_id):
                    tasks = unit.jobs.tasks(job.job_id)
                    if case is None or not watched(job, tasks):
                        continue
                    queries.append(self._query(case, job, tasks))
                    if job.job_id in self._unseen and self._accounting != "off":
                        sacct_ids.update(s.slurm_id for s in job.submissions if s.slurm_id is not None)
        refs = {query.ref for query in queries}
        self._chains = {ref: chain for ref, chain in self._chains.items() if ref in refs}
        self._unseen &= refs
        if not queries:
            return None
        return Observe(nonce=nonce, jobs=tuple(queries), sacct_ids=tuple(sorted(sacct_ids)))

    def apply(self, effect: Observe, completion: Completion, elapsed: float) -> Seen:
        """Bring the looked-at jobs in line with what was seen, each in a transaction of its own."""
        evidence = read_evidence(
            completion.output, effect.nonce, asked=bool(effect.sacct_ids), accounting=self._accounting
        )
        changed = soon = False
        call_offs = []
        for query in effect.jobs:
            with self._desk.apart(query.ref, _NOT_JUDGED):
                one = self._look_at(query.ref, evidence, elapsed)
                changed, soon = changed or one.changed, soon or one.soon
                if one.call_off is not None:
                    call_offs.append(one.call_off)
        if not effect.jobs:
            self._look_back(evidence)
        call_offs += self._strays(evidence.queue or (), {query.ref for query in effect.jobs})
        return Seen(
            changed=changed,
            call_offs=tuple(call_offs),
            notes=evidence.notes,
            good=evidence.queue is not None,
            soon=soon,
            free_bytes=evidence.free_bytes(),
        )

    def _look_at(self, job_id: str, evidence: Evidence, elapsed: float) -> _Judged:
        with self._desk.open(job_id) as work:
            before = list(work.tasks), work.job
            wanted, near = self._apply_to(work, evidence, elapsed)
            after = work.tasks, work.job
            points = _points(before, after)
            for point, _ in points:
                reach(point)
        for _, kept in points:
            reach(kept)
        return _Judged(changed=_differs(before, after), soon=near, call_off=wanted)

    def sweep(self, nonce: str) -> Observe | None:
        """Return a look at what is over; None: nothing was ever sent.

        It is at the queue, for what came back of jobs there, and at the accounting of those that were taken
        for done without it.
        """
        with self._store.transaction(write=False) as unit:
            if self._alone is None:
                self._alone, self._sent = _over(unit)
            jobs = [job for job_id in sorted(self._alone) if (job := unit.jobs.get(job_id)) is not None]
        if not self._sent:
            return None
        ids = {s.slurm_id for job in jobs for s in job.submissions if s.slurm_id is not None}
        return Observe(nonce=nonce, jobs=(), sacct_ids=tuple(sorted(ids)))

    def _look_back(self, evidence: Evidence) -> None:
        """Bring in line what was judged without accounting, now that it was asked for that alone."""
        for job_id in sorted(self._alone or ()):
            with self._desk.apart(job_id, _NOT_JUDGED), self._desk.open(job_id) as work:
                look_back(work, evidence)
                self._remember(work)

    def _remember(self, work: OpenJob) -> None:
        """Keep in mind whether accounting is still to be asked about a job that is over."""
        self._sent = True
        if self._alone is not None:
            self._alone.discard(work.job.job_id)
            if to_be_confirmed(work.job, work.tasks):
                self._alone.add(work.job.job_id)

    def _strays(self, queue: Sequence[Row], looked_at: set[str]) -> list[CallOff]:
        """Return, by job, what the queue shows unfinished of jobs of which nothing may be in Slurm any more.

        A thawed run of submit.sh, or a controller that came back from an older state, may have put it there.
        """
        own = f"{PREFIX}{self._store.instance}-"
        rows = [row for row in queue if row.name.startswith(own) and not row.ending]
        job_ids = {"-".join(row.name.removeprefix(own).split("-")[:2]) for row in rows} - looked_at
        if not job_ids:
            return []
        strays = []
        with self._store.transaction(write=False) as unit:
            for job_id in sorted(job_ids):
                job = unit.jobs.get(job_id)
                if job is not None and past(job, unit.jobs.tasks(job_id)):
                    strays.append(CallOff(job_id=job_id, targets=left_in_queue(job, rows)))
        return strays

    def _query(self, case: Case, job: Job, tasks: Sequence[Task]) -> JobQuery:
        return JobQuery(
            ref=job.job_id,
            folder=self._jobs.folder(case.case_id, job.name),
            records=tuple(
                (task.task_id, output_folder(STAGE_OF[task.type], _number(case, task)))
                for task in slurm_tasks(tasks)
                if not task.status.terminal
            ),
        )

    def _apply_to(self, work: OpenJob, evidence: Evidence, elapsed: float) -> tuple[CallOff | None, bool]:
        """Bring one job in line; returns what to call off of it, and whether it will change soon."""
        job_id = work.job.job_id
        if to_be_cleared(work.job):
            return self._call_off(work, clear(work, evidence, elapsed)), False
        if work.job.submit_state is not SubmitState.STANDING:
            doubt = recover(work, evidence, elapsed, self._patience)
            if doubt.ask:
                self._unseen.add(job_id)
            if not doubt.stands:
                return self._call_off(work, doubt), False
        found = self._reconciler.reconcile(work.job, self._chain(work), work.tasks, evidence, elapsed)
        if found.unseen:
            self._unseen.add(job_id)
        elif evidence.queue is not None:
            self._unseen.discard(job_id)
        for judged in found.judged:
            said = testimony(work.job, judged, evidence) if judged.changed else None
            work.put_task(judged.after, why=judged.verdict.timer.row, evidence=said)
            if judged.changed:
                work.notes.append(sentence(work.case, judged.after))
        if found.dead_stages in (("convert",), ("interpret",)):
            # It waits for beams that are lost, or nothing waits for it any more: that it ends is our doing.
            cancelled = dict.fromkeys((*work.job.cancelled, *found.dead_stages))
            work.put_job(work.job.evolve(cancelled=tuple(cancelled)))
        look_back(work, evidence)
        self._remember(work)
        ids = {s.stage: (s.name, s.slurm_id) for s in work.job.submissions}
        dead = [(name, slurm_id) for name, slurm_id in map(ids.__getitem__, found.dead_stages)]
        targets = tuple((name, slurm_id) for name, slurm_id in dead if slurm_id is not None)
        self._burn_lost(work)
        doomed = Found(cancels=tuple(dict.fromkeys(targets + found.ghosts)))
        return self._call_off(work, doomed), found.soon

    def _call_off(self, work: OpenJob, found: Found) -> CallOff | None:
        if not found.cancels and not found.mark:
            return None
        folder = self._jobs.folder(work.case.case_id, work.job.name) if found.mark else ""
        return CallOff(job_id=work.job.job_id, targets=found.cancels, mark=folder)

    def _burn_lost(self, work: OpenJob) -> None:
        """Mark a chain that has ended without a part that never began: only a new job can make that good."""
        tasks = slurm_tasks(work.tasks)
        lost = [task for task in tasks if NEVER_RAN in task.parameters]
        if lost and all(task.status.terminal for task in tasks):
            named = ", ".join(dict.fromkeys(STAGE_OF[task.type] for task in lost))
            work.put_job(work.job.evolve(cancelled=work.job.stages))
            work.mark(SubmitState.BURNT, f"{work.job.name} is burnt: the controller has lost {named}")
            work.notes.append(str(work.job.refusal))

    def _chain(self, work: OpenJob) -> Chain:
        job_id = work.job.job_id
        if job_id not in self._chains:
            self._chains[job_id] = decode_chain(work.unit.jobs.files(job_id)[CHAIN].decode())
        return self._chains[job_id]


def _over(unit: IUnit) -> tuple[set[str], bool]:
    """Return the jobs that accounting is still to confirm, and whether any job was ever sent."""
    alone, sent = set(), False
    for case in unit.cases.all():
        for job in unit.jobs.of_case(case.case_id):
            sent = sent or job.submit_state not in (SubmitState.PLANNED, SubmitState.UPLOADED)
            if to_be_confirmed(job, unit.jobs.tasks(job.job_id)):
                alone.add(job.job_id)
    return alone, sent


def sentence(case: Case, task: Task) -> str:
    """Return a task's state as a person reads it."""
    where = f" on {task.node}" if task.node and not task.status.terminal else ""
    tail = f" ({task.detail})" if task.detail else ""
    noted = f" [{task.noted}]" if task.noted and task.status is TaskStatus.COMPLETED else ""
    return f"{task_name(case, task)}: {task.phase}{where}{tail}{noted}"


def _number(case: Case, task: Task) -> int:
    return case.beams[task.index].number if task.type is TaskType.BEAM_CALC else 0


def _points(
    before: tuple[Sequence[Task], Job], after: tuple[Sequence[Task], Job]
) -> list[tuple[Failpoint, Failpoint]]:
    """Return the failpoints at a change, before and after it is kept."""
    points = []
    state = after[1].submit_state
    if state is not before[1].submit_state:
        if state is SubmitState.STANDING:
            points.append((Failpoint.FOUND, Failpoint.FOUND_KEPT))
        if state is SubmitState.UPLOADED:
            points.append((Failpoint.AGAIN, Failpoint.AGAIN_KEPT))
    if sum(task.status.terminal for task in after[0]) > sum(task.status.terminal for task in before[0]):
        points.append((Failpoint.VERDICT, Failpoint.VERDICT_KEPT))
    return points


def _differs(before: tuple[Sequence[Task], Job], after: tuple[Sequence[Task], Job]) -> bool:
    same = all((a.status, a.phase) == (b.status, b.phase) for a, b in zip(before[0], after[0], strict=True))
    return not same or before[1].submit_state is not after[1].submit_state
