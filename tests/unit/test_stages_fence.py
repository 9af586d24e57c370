"""The fence: who may work, by receipt, order and claim; everyone else is turned away, nothing touched."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mqi_hpc.records import layout
from mqi_hpc.records.chain import Interpreted
from mqi_hpc.records.layout import submission_name
from mqi_hpc.stages.errors import AlreadyDone, Refused
from mqi_hpc.stages.fence import PATIENCE, Admission, admit, standing_of, take_claim
from mqi_hpc.stages.identity import Identity, read_identity
from mqi_hpc.stages.jobs import Claim, JobFolder, NotStanding
from tests.support.stage_job import (
    ARRAY_ID,
    INSTANCE,
    KEY,
    RAW_ID,
    BeamSpec,
    Here,
    StageJob,
    process_kept,
)


@pytest.fixture
def job(tmp_path: Path) -> StageJob:
    return StageJob(tmp_path, [BeamSpec(2, "1G180:TX"), BeamSpec(3, "B")])


@pytest.fixture
def interpreted(
    job: StageJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> StageJob:
    with process_kept():
        assert Here(monkeypatch, capsys)(job, "interpret") == (0, "")
    return job


class Clock:
    """Time that passes only when somebody sleeps; `then` happens after a number of sleeps."""

    def __init__(self, then: dict[int, Callable[[], object]] | None = None) -> None:
        self.now = 0.0
        self.slept = 0
        self._then = then or {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1
        if self.slept in self._then:
            self._then[self.slept]()


def knock(
    job: StageJob, stage: str, index: int = 0, clock: Clock | None = None, **env: str | None
) -> Admission:
    clock = clock or Clock()
    identity = read_identity(job.environ(stage, index, **env), "host")
    return admit(JobFolder(job.folder), stage, identity, clock=clock, sleep=clock.sleep)


def refused(
    job: StageJob, stage: str, index: int = 0, clock: Clock | None = None, **env: str | None
) -> Refused:
    before = job.snapshot()
    with pytest.raises(Refused) as caught:
        knock(job, stage, index, clock, **env)
    assert job.snapshot() == before
    return caught.value


def claim(job: StageJob, stage: str, index: int = 0, **changes: object) -> Claim:
    made = Claim(
        array_id=ARRAY_ID[stage], slurm_id=RAW_ID[stage] + index, restart=0, host="g1", process=1, time=5.0
    )
    return dataclasses.replace(made, **changes)


# --- who we are


def test_a_job_alone_is_its_own_submission() -> None:
    identity = read_identity({"SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, "host")
    assert identity == Identity("n", 7, None, None, 2, "host")
    assert identity.submission_id == 7


def test_an_array_element_belongs_to_the_array() -> None:
    identity = read_identity(
        {
            "SLURM_JOB_NAME": "n",
            "SLURM_JOB_ID": "9",
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "0",
            "SLURMD_NODENAME": "g1",
        },
        "host",
    )
    assert identity == Identity("n", 9, 7, 0, 0, "g1")
    assert identity.submission_id == 7


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "within a Slurm job only"),
        ({"SLURM_JOB_ID": "7"}, "within a Slurm job only"),
        ({"SLURM_JOB_NAME": "n"}, "within a Slurm job only"),
        ({"SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "7x"}, "SLURM_JOB_ID is '7x'"),
        ({"SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "-7"}, "no number"),
        ({"SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "\u0667"}, "no number"),
        ({"SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7"}, "only one is set"),
        ({"SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}, "only one is set"),
        ({"SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "x"}, "SLURM_RESTART_COUNT"),
    ],
)
def test_without_slurms_word_there_is_no_identity(environ: dict[str, str], said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        read_identity(environ, "host")
    assert caught.value.exit_code == layout.EXIT_NOT_OURS


# --- the receipt


def test_our_own_receipt_admits(job: StageJob) -> None:
    admission = knock(job, "interpret")
    assert (admission.stage, admission.index, admission.beam) == ("interpret", 0, None)
    assert admission.chain == job.chain


def test_a_folder_that_is_gone_ends_it_at_once(job: StageJob) -> None:
    clock = Clock()
    shutil.rmtree(job.folder)
    assert refused(job, "interpret", clock=clock).exit_code == 78
    assert clock.slept == 0


def test_a_file_in_place_of_the_folder_ends_it_at_once(job: StageJob) -> None:
    shutil.rmtree(job.folder)
    job.folder.write_text("")
    assert refused(job, "interpret").exit_code == 78


def test_a_chain_that_is_gone_ends_it_at_once(job: StageJob) -> None:
    clock = Clock()
    (job.folder / layout.CHAIN).unlink()
    assert "gone" in str(refused(job, "interpret", clock=clock))
    assert clock.slept == 0


def test_a_folder_that_goes_while_we_wait_ends_it(job: StageJob) -> None:
    (job.folder / layout.receipt("interpret")).unlink()
    clock = Clock({3: (job.folder / layout.CHAIN).unlink})
    with pytest.raises(Refused, match="gone"):
        knock(job, "interpret", clock=clock)
    assert clock.slept == 3


def test_a_job_that_was_called_off_begins_nothing(interpreted: StageJob) -> None:
    clock = Clock()
    (interpreted.folder / layout.WITHDRAWN).touch()
    for stage in ("interpret", "beams", "convert"):
        refusal = refused(interpreted, stage, clock=clock)
        assert (refusal.exit_code, "called off" in str(refusal)) == (78, True)
    assert clock.slept == 0


def test_a_job_that_is_called_off_while_we_wait_for_its_receipt_begins_nothing(job: StageJob) -> None:
    (job.folder / layout.receipt("interpret")).unlink()
    clock = Clock({3: (job.folder / layout.WITHDRAWN).touch})
    with pytest.raises(Refused, match="called off"):
        knock(job, "interpret", clock=clock)
    assert clock.slept == 3


def test_what_a_job_did_before_it_was_called_off_is_built_on(interpreted: StageJob) -> None:
    digest = record_digest(interpreted)
    (interpreted.folder / layout.WITHDRAWN).touch()
    second_job(interpreted, digest)
    admission = knock(interpreted, "beams", 0)
    assert admission.interpreted is not None


@pytest.mark.parametrize(
    "content", [None, "", "mqi 101", "mqi 101 5 6\n", "mqi 0 5\n", "mqi x 5\n", "\xff\n"]
)
def test_a_receipt_that_never_comes_whole_is_waited_for_and_then_refused(
    job: StageJob, content: str | None
) -> None:
    path = job.folder / layout.receipt("interpret")
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    clock = Clock()
    error = refused(job, "interpret", clock=clock)
    assert error.exit_code == 78
    assert "receipt.interpret" in str(error)
    assert clock.now == PATIENCE == 90


def test_a_late_receipt_admits(job: StageJob) -> None:
    path = job.folder / layout.receipt("interpret")
    path.write_text("")
    clock = Clock({89: lambda: job.put_receipt("interpret")})
    assert knock(job, "interpret", clock=clock).stage == "interpret"
    assert clock.slept == 89


def test_a_chain_that_vanishes_between_two_looks_is_not_waited_for(
    job: StageJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobFolder, "chain", lambda self: None)
    clock = Clock({2: (job.folder / layout.CHAIN).unlink})
    with pytest.raises(Refused, match="gone"):
        knock(job, "interpret", clock=clock)


@pytest.mark.parametrize("content", ["{}", "rubbish", "\xff"])
def test_a_chain_that_does_not_parse_is_refused_in_the_end(job: StageJob, content: str) -> None:
    (job.folder / layout.CHAIN).write_bytes(content.encode("latin-1"))
    assert refused(job, "interpret").exit_code == 78


def test_a_chain_of_another_job_is_refused(job: StageJob) -> None:
    other = job.case / "j02"
    shutil.copytree(job.folder, other)
    job.folder = other
    assert "abcdefgh0123/j01, the folder is abcdefgh0123/j02" in str(refused(job, "interpret"))


@pytest.mark.parametrize(
    ("name", "slurm_id"), [("mqi-other-case-j01-interpret", None), (None, 100), ("mqi-x", 100)]
)
def test_anothers_receipt_turns_us_away_at_once(
    job: StageJob, name: str | None, slurm_id: int | None
) -> None:
    job.put_receipt("interpret", name, slurm_id)
    clock = Clock()
    assert refused(job, "interpret", clock=clock).exit_code == 78
    assert clock.slept == 0


def test_a_ghost_of_another_id_is_turned_away(job: StageJob) -> None:
    assert "names 101" in str(refused(job, "interpret", SLURM_JOB_ID="99"))


def test_another_name_is_turned_away(job: StageJob) -> None:
    assert refused(job, "interpret", SLURM_JOB_NAME="mqi-x").exit_code == 78


def test_an_elements_raw_id_is_not_the_arrays(interpreted: StageJob) -> None:
    # The receipt names the array; a raw id that happens to be the same does not count.
    assert refused(interpreted, "beams", SLURM_ARRAY_JOB_ID="5", SLURM_JOB_ID="202").exit_code == 78


def test_a_stage_that_is_no_array_does_not_run_in_one(job: StageJob) -> None:
    error = refused(job, "interpret", SLURM_ARRAY_JOB_ID="101", SLURM_ARRAY_TASK_ID="0")
    assert "in an array" in str(error)


def test_the_array_does_not_run_outside_one(interpreted: StageJob) -> None:
    error = refused(
        interpreted, "beams", SLURM_JOB_ID="202", SLURM_ARRAY_JOB_ID=None, SLURM_ARRAY_TASK_ID=None
    )
    assert (error.exit_code, "in no array" in str(error)) == (78, True)


# --- the order


def test_an_element_gets_its_beam(interpreted: StageJob) -> None:
    admission = knock(interpreted, "beams", 1)
    assert admission.beam is not None and admission.beam.number == 3
    assert knock(interpreted, "convert").beam is None


def test_an_index_that_is_none_of_ours_is_turned_away(interpreted: StageJob) -> None:
    assert refused(interpreted, "beams", 7).exit_code == 78


@pytest.mark.parametrize(
    ("stage", "said"), [("beams", "does not stand"), ("convert", "interpret did not finish")]
)
def test_without_interprets_record_nothing_runs(job: StageJob, stage: str, said: str) -> None:
    error = refused(job, stage)
    assert (error.exit_code, said in str(error)) == (79, True)


def spoil_receipt(job: StageJob) -> None:
    job.put_receipt("interpret", slurm_id=77)


def spoil_receipt_name(job: StageJob) -> None:
    job.put_receipt("interpret", name="mqi-x")


def spoil_receipt_text(job: StageJob) -> None:
    (job.folder / "receipt.interpret").write_text("rubbish\n")


def drop_claim(job: StageJob) -> None:
    (job.folder / "claim.interpret-0").unlink()


def spoil_claim(job: StageJob) -> None:
    (job.folder / "claim.interpret-0").write_text("1 2\n")


def claim_of_no_time(job: StageJob) -> None:
    (job.folder / "claim.interpret-0").write_text("101 101 0 g1 1 1.2.3\n")


def other_claim(job: StageJob) -> None:
    (job.folder / "claim.interpret-0").write_bytes(claim(job, "interpret", slurm_id=102).encode())


def later_restart(job: StageJob) -> None:
    (job.folder / "claim.interpret-0").write_bytes(claim(job, "interpret", restart=1).encode())


def drop_record(job: StageJob) -> None:
    job.record_path("interpret").unlink()


def spoil_record(job: StageJob) -> None:
    job.record_path("interpret").write_text("{}")


def binary_record(job: StageJob) -> None:
    job.record_path("interpret").write_bytes(b"\xff")


def cut_file(job: StageJob) -> None:
    next(job.folder.rglob("*.csv")).write_text("")


def drop_file(job: StageJob) -> None:
    next(job.folder.rglob("*.csv")).unlink()


def link_file(job: StageJob) -> None:
    path = next(job.folder.rglob("*.csv"))
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_receipt, spoil_receipt_name, spoil_receipt_text, drop_claim, spoil_claim, claim_of_no_time,
        other_claim, later_restart, drop_record, spoil_record, binary_record, cut_file, drop_file, link_file,
    ],
)  # fmt: skip
def test_interprets_record_must_be_valid(interpreted: StageJob, spoil: Callable[[StageJob], None]) -> None:
    spoil(interpreted)
    assert refused(interpreted, "beams").exit_code == 79
    assert refused(interpreted, "convert").exit_code == 79


# --- another job's interpret


def second_job(job: StageJob, digest: str, named: str = "j01") -> None:
    chain = job.make_chain("j02", Interpreted(named, digest), 0)
    job.next_job(dataclasses.replace(chain, beams=job.chain.beams))


def record_digest(job: StageJob) -> str:
    return JobFolder(job.folder).standing(job.chain, "interpret", 0).digest


def test_a_later_job_takes_the_interpret_that_chain_json_names(interpreted: StageJob) -> None:
    digest = record_digest(interpreted)
    second_job(interpreted, digest)
    admission = knock(interpreted, "beams")
    assert admission.interpreted is not None
    assert admission.interpreted.folder == interpreted.case / "j01" / "interpreted"
    assert admission.interpreted.digest == digest
    assert knock(interpreted, "convert").interpreted == admission.interpreted
    assert "array index 1 is none of this job's beams" in str(refused(interpreted, "beams", 1))


def test_a_third_job_names_the_one_that_interpreted(interpreted: StageJob) -> None:
    interpreted.resubmit("j02", 0)
    interpreted.resubmit("j03", 1)
    assert knock(interpreted, "beams", 1).interpreted == knock(interpreted, "convert").interpreted
    # The one between has no interpret of its own.
    named = dataclasses.replace(interpreted.chain.interpreted, job="j02")
    interpreted.write_chain(dataclasses.replace(interpreted.chain, interpreted=named))
    assert "j02: it has no stage interpret, only beams, convert" in str(refused(interpreted, "convert"))


@pytest.mark.parametrize(("computed", "stage"), [((0,), "interpret"), ((), "interpret"), ((), "beams")])
def test_a_stage_that_the_job_does_not_have_is_refused(
    interpreted: StageJob, computed: tuple[int, ...], stage: str
) -> None:
    interpreted.resubmit("j02", *computed)
    interpreted.put_receipt(stage, submission_name(INSTANCE, KEY, "j02", stage))
    error = refused(interpreted, stage)
    assert (error.exit_code, f"j02 has no stage {stage}" in str(error)) == (78, True)


@pytest.mark.parametrize(
    ("digest", "named", "said"),
    [("0" * 64, "j01", "not the one"), ("0" * 64, "j09", "no chain.json")],
)
def test_a_later_job_without_the_named_record_is_refused(
    interpreted: StageJob, digest: str, named: str, said: str
) -> None:
    second_job(interpreted, digest, named)
    error = refused(interpreted, "beams")
    assert (error.exit_code, said in str(error)) == (79, True)


def test_a_source_job_whose_chain_does_not_parse_is_refused(interpreted: StageJob) -> None:
    second_job(interpreted, record_digest(interpreted))
    (interpreted.case / "j01" / layout.CHAIN).write_text("{}")
    assert refused(interpreted, "beams").exit_code == 79


def test_a_later_job_with_another_input_is_refused(interpreted: StageJob) -> None:
    digest = record_digest(interpreted)
    beams = (
        interpreted.chain.beams[0],
        dataclasses.replace(interpreted.chain.beams[1], input_digest="1" * 64),
    )
    second_job(interpreted, digest)
    interpreted.write_chain(dataclasses.replace(interpreted.chain, beams=beams))
    assert "another input for beam 3" in str(refused(interpreted, "beams"))


def test_a_beam_that_another_job_does_not_have_has_no_record_there(interpreted: StageJob) -> None:
    with pytest.raises(NotStanding, match="no beam 9"):
        standing_of(JobFolder(interpreted.folder), "j01", "beams", 9)


# --- the claim


def test_a_claim_says_who_holds_it(job: StageJob) -> None:
    made = claim(job, "interpret", host="a b")
    take_claim(knock(job, "interpret"), made)
    content = (job.folder / "claim.interpret-0").read_text()
    assert content == "101 101 0 a_b 1 5.000000\n"
    assert JobFolder(job.folder).claim("interpret", 0) == dataclasses.replace(made, host="a_b")
    assert made.folder == "101-0"


def test_a_claim_is_taken_once_even_by_the_same_id(job: StageJob) -> None:
    admission = knock(job, "interpret")
    take_claim(admission, claim(job, "interpret"))
    before = job.snapshot()
    with pytest.raises(Refused) as caught:
        take_claim(admission, claim(job, "interpret", process=2))
    assert caught.value.exit_code == 79
    assert job.snapshot() == before


def test_a_repeat_of_done_work_is_told_so(interpreted: StageJob) -> None:
    before = interpreted.snapshot()
    with pytest.raises(AlreadyDone):
        take_claim(knock(interpreted, "interpret"), claim(interpreted, "interpret", process=2))
    assert interpreted.snapshot() == before


def test_a_requeue_of_done_work_is_a_repeat(interpreted: StageJob) -> None:
    admission = knock(interpreted, "interpret", SLURM_RESTART_COUNT="1")
    with pytest.raises(AlreadyDone):
        take_claim(admission, claim(interpreted, "interpret", restart=1))


def test_elements_have_claims_of_their_own(interpreted: StageJob) -> None:
    for index in (0, 1):
        take_claim(knock(interpreted, "beams", index), claim(interpreted, "beams", index))
    assert {p.name for p in interpreted.folder.glob("claim.*")} == {
        "claim.interpret-0",
        "claim.beams-0",
        "claim.beams-1",
    }
