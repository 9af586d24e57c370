"""`submit --dry-run`: a case is checked and rendered, and Slurm asked whether it would take each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mqi_hpc.controllers.application import refused_lines
from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.diagnosis import Finding, Said
from mqi_hpc.core.models import Case, Job, Submission, job_name
from mqi_hpc.core.slurm_checks import judge_test
from mqi_hpc.records.layout import script
from mqi_hpc.services.case_service import CaseService
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.resource_service import ResourceService

Try = Callable[[Sequence[Submission], str, dict[str, str]], dict[str, Said]]
"""Asks Slurm, stage by stage, of submissions in a job's folder with these batch scripts; submits nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedStage:
    """A submission that would be made: its `tasks`, and what Slurm says of it (`found`; `cure` "": fine)."""

    stage: str
    name: str
    tasks: int
    found: str
    cure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedCase:
    """A case that would be submitted. No `stages`: it would be taken up where it is, `note` says where."""

    label: str
    case_id: str
    beams: tuple[int, ...]
    job_folder: str
    stages: tuple[TriedStage, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a submit would do. `exit_code`: 0 all of it would be taken, 1 none, 3 some."""

    cases: tuple[TriedCase, ...]
    rejected: tuple[str, ...]
    notes: tuple[str, ...]
    exit_code: int


class Rehearsal:
    """Makes trials; the store is read, and nothing is kept in it or anywhere."""

    def __init__(
        self,
        *,
        cases: CaseService,
        jobs: JobService,
        resources: ResourceService,
        jobs_of: Callable[[str], Sequence[Job]],
        try_: Try,
    ) -> None:
        self._cases = cases
        self._jobs = jobs
        self._resources = resources
        self._jobs_of = jobs_of
        self._try = try_

    def of(self, folder: str, deliveries: Sequence[str] | None) -> Trial:
        """Return what `submit` would do with a folder.

        Raises RejectedCase where it holds no case, ResourceError where the disk here is too full,
        ConfigurationError where it cannot be rendered, ConnectionError where the cluster is out of reach.
        """
        found = self._cases.look(folder, deliveries)
        self._resources.require_disk_space()
        cases = tuple(self._tried(case) for case in found.cases)
        rejected = refused_lines(found)
        codes = {int(any(stage.cure for stage in case.stages)) for case in cases}
        codes |= {1} if rejected else set()
        return Trial(
            cases=cases,
            rejected=rejected,
            notes=found.notes,
            exit_code=codes.pop() if len(codes) == 1 else 3,
        )

    def _tried(self, case: Case) -> TriedCase:
        beams = tuple(beam.number for beam in case.beams)
        if jobs := self._jobs_of(case.case_id):
            last = jobs[-1]
            return TriedCase(
                label=case.label,
                case_id=case.case_id,
                beams=beams,
                job_folder=self._jobs.folder(case.case_id, last.name),
                stages=(),
                note=f"it is registered, and {last.name} is {last.submit_state}: it is taken up where it is",
            )
        folder = self._jobs.folder(case.case_id, job_name(1))
        submissions = plan_submissions(case.instance, case.case_id, 1, case.beams)
        files = self._jobs.rendered(case)
        scripts = {one.stage: files[script(one.stage)].decode() for one in submissions}
        said = self._try(submissions, folder, scripts)
        return TriedCase(
            label=case.label,
            case_id=case.case_id,
            beams=beams,
            job_folder=folder,
            stages=tuple(_stage(one, said[one.stage]) for one in submissions),
        )


def _stage(one: Submission, said: Said) -> TriedStage:
    finding: Finding = judge_test(one.stage, said)
    # Where Slurm would take it, it says when and where on stderr.
    words = finding.found if finding.cure else " ".join(said.err.split()) or finding.found
    return TriedStage(
        stage=one.stage, name=one.name, tasks=len(one.indices), found=words[-500:], cure=finding.cure
    )
