"""submit --dry-run: what would be submitted, what Slurm says of it, and what is not submitted anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mqi_hpc.controllers.trial import Rehearsal, Trial
from mqi_hpc.core.diagnosis import Said
from mqi_hpc.core.errors import ResourceError
from mqi_hpc.core.intake import Rejected
from mqi_hpc.core.models import Job, Submission
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.services.case_service import Registration
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.resource_service import ResourceService
from tests.support.bench import KEY, make_case
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock

YES = Said(0, "", "sbatch: Job 5 to start at 2026-11-24T10:00:00\n")
NO = Said(1, "", "sbatch: error: Invalid account or account/partition combination specified\n")


class Cases:
    """A folder of one case, and of what is refused."""

    def __init__(self) -> None:
        self.rejected: tuple[Rejected, ...] = ()

    def look(self, folder: str, chosen: Sequence[str] | None) -> Registration:
        return Registration((make_case(),), self.rejected, ("a note",))


class Desk:
    """`said` is Slurm's answer for each stage; `asked` what it was asked."""

    def __init__(self, home: str, free: int = 1) -> None:
        store = MemoryStore()
        self.cases = Cases()
        self.said = dict.fromkeys(("interpret", "beams", "convert"), YES)
        self.asked: list[tuple[list[str], str, dict[str, str]]] = []
        self.jobs: list[Job] = []
        resources = ResourceService(store, gpu_count=None, min_disk_space_gb=1e-9, free_bytes=lambda: free)
        text = f"paths: {{local_logdata: /d, remote_workspace: {home}}}\nssh: {{host: h}}\n"
        renderer = Renderer(ConfigLoader().parse(text, Path("/config.yaml")), b"zip")
        self.service = JobService(store, renderer, resources, Clock(), workspace=home)
        self.rehearsal = Rehearsal(
            cases=self.cases,  # type: ignore[arg-type]
            jobs=self.service,
            resources=resources,
            jobs_of=lambda _: self.jobs,
            try_=self._try,
        )
        self.store = store

    def _try(
        self, submissions: Sequence[Submission], folder: str, scripts: dict[str, str]
    ) -> dict[str, Said]:
        self.asked.append(([one.name for one in submissions], folder, scripts))
        return self.said

    def of(self) -> Trial:
        return self.rehearsal.of("/cases/x", None)


def test_each_stage_is_tried_as_the_job_would_submit_it() -> None:
    desk = Desk("/work")
    trial = desk.of()
    (case,) = trial.cases
    assert (trial.exit_code, trial.notes, case.beams, case.note) == (0, ("a note",), (2, 3), "")
    assert {one.found for one in case.stages} == {"sbatch: Job 5 to start at 2026-11-24T10:00:00"}
    ((names, folder, scripts),) = desk.asked
    assert folder == case.job_folder == f"/work/{KEY}/j01"
    assert names == [f"mqi-i1-{KEY}-j01-{stage}" for stage in ("interpret", "beams", "convert")]
    assert all(f"stages.pyz {stage} --job-dir {folder}" in scripts[stage] for stage in scripts)


def test_what_is_refused_says_so_and_fails() -> None:
    desk = Desk("/work")
    desk.said["convert"] = NO
    trial = desk.of()
    assert trial.exit_code == 1
    assert "Invalid account" in trial.cases[0].stages[2].found
    assert trial.cases[0].stages[2].cure


def test_good_beside_refused_is_partial() -> None:
    desk = Desk("/work")
    desk.cases.rejected = (Rejected("beam 3 is missing"),)
    trial = desk.of()
    assert (trial.exit_code, trial.rejected) == (3, ("beam 3 is missing",))


def test_a_case_that_has_a_job_is_taken_up_where_it_is() -> None:
    desk = Desk("/work")
    with desk.store.transaction() as unit:
        unit.cases.put(make_case())
    desk.jobs = [desk.service.create_job(KEY)]
    (case,) = desk.of().cases
    assert case.stages == ()
    assert "j01 is planned" in case.note
    assert desk.asked == []


def test_a_full_disk_here_is_told_before_anything_is_asked() -> None:
    desk = Desk("/work", free=0)
    with pytest.raises(ResourceError, match="are free where results go"):
        desk.of()
    assert desk.asked == []
