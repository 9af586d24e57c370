"""What is no case is refused by `mqi-hpc submit`: in words, before anything is kept or a cluster asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from tests.support.cases import CaseFolder, edit_info, logs, make_case
from tests.support.cli import Completed, mqi
from tests.support.cluster_config import cluster_config, write_config

PATIENT = "QX-7731042"
OTHER = "ZW-5519386"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose cluster is not there: a refusal must not need it."""
    (tmp_path / "cases").mkdir()
    return write_config(tmp_path / "config.yaml", cluster_config(tmp_path, 9))


def case_of(config: Path, name: str = "case") -> CaseFolder:
    case = make_case(config.parent / "cases" / name)
    case.edit_plan(lambda plan: setattr(plan, "PatientID", PATIENT))
    for delivery in case.deliveries.values():
        edit_info(delivery, DICOM_PATIENT_ID=PATIENT)
    return case


def assert_refused(done: Completed, config: Path, *said: str) -> None:
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert "rejected" in told
    for words in said:
        assert words in " ".join(told.split()), told
    assert "Traceback" not in told
    for patient in (PATIENT, OTHER):
        assert patient not in told
        assert all(patient not in log.read_text() for log in config.parent.rglob("*.log"))
    status = mqi(config, "status", "--json")
    assert status.returncode == 0, status.stderr
    answer = json.loads(status.stdout)
    assert [case["status"] for case in answer["cases"]] in ([], ["rejected"])


def no_plan(case: CaseFolder) -> None:
    case.plan.unlink()


def photon_plan(case: CaseFolder) -> None:
    shutil.copyfile(str(get_testdata_file("rtplan.dcm", download=False)), case.plan)


def two_plans(case: CaseFolder) -> None:
    twin = pydicom.dcmread(case.plan)
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    twin.save_as(case.study / "twin.dcm")


def wrong_patient(case: CaseFolder) -> None:
    edit_info(case.deliveries[3], DICOM_PATIENT_ID=OTHER)


def unknown_beam(case: CaseFolder) -> None:
    edit_info(case.deliveries[3], DICOM_BEAM_NUMBER="7")


def beam_without_delivery(case: CaseFolder) -> None:
    shutil.rmtree(case.deliveries[3])


def truncated_log(case: CaseFolder) -> None:
    log = logs(case.deliveries[3])[1]
    log.write_bytes(log.read_bytes()[:-5])


def missing_layer(case: CaseFolder) -> None:
    logs(case.deliveries[3])[1].unlink()


def no_plan_info(case: CaseFolder) -> None:
    (case.deliveries[3] / "PlanInfo.txt").unlink()


def no_plan_range(case: CaseFolder) -> None:
    (case.deliveries[3] / "PlanRange.txt").unlink()


def everything_at_once(case: CaseFolder) -> None:
    truncated_log(case)
    (case.deliveries[2] / "PlanInfo.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_plan, ["no RT Ion Plan was found"]),
        (photon_plan, ["photon plan", "an RT Ion Plan is expected"]),
        (two_plans, ["twin.dcm", "both fit it", "one plan is expected"]),
        (wrong_patient, ["PlanInfo.txt: wrong patient"]),
        (unknown_beam, ["PlanInfo.txt: unknown beam number 7", "treatment beams are 2, 3"]),
        (beam_without_delivery, ["beam 3 has no whole delivery"]),
        (truncated_log, ["_002.ptn: has", "not a multiple of 16"]),
        (missing_layer, ["the .ptn of layer 2 is missing"]),
        (no_plan_info, ["PlanInfo.txt: is missing"]),
        (no_plan_range, ["PlanRange.txt: is missing"]),
        (everything_at_once, ["PlanInfo.txt: is missing", "not a multiple of 16"]),
    ],
)
def test_what_is_no_case_is_refused(
    config: Path, damage: Callable[[CaseFolder], None], said: list[str]
) -> None:
    case = case_of(config)
    damage(case)
    assert_refused(mqi(config, "submit", str(case.folder)), config, *said)


@pytest.mark.parametrize(
    "name", ["two words", 'it\'s "so"', "$(touch run)`touch run`;touch run", "a\nb", "-rf", "Müller 患者"]
)
def test_a_folders_name_is_a_name_and_never_run(config: Path, name: str) -> None:
    case = case_of(config, name)
    missing_layer(case)
    done = mqi(config, "submit", "--", str(case.folder))
    assert_refused(done, config, "the .ptn of layer 2 is missing")
    assert not list(config.parent.rglob("run"))


@pytest.mark.parametrize(("where", "said"), [("nowhere", "does not exist"), ("file", "is no folder")])
def test_what_is_no_folder_is_refused(config: Path, where: str, said: str) -> None:
    (config.parent / "file").touch()
    assert_refused(mqi(config, "submit", str(config.parent / where)), config, said)


def test_a_program_is_told_in_json_why_nothing_came_of_it(tmp_path: Path) -> None:
    done = mqi(None, "--config", str(tmp_path / "none.yaml"), "status", "--json")
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert (told["exit_code"], told["where"]) == (2, str(tmp_path / "none.yaml"))
    assert "cannot read the configuration" in told["error"]
    assert "Traceback" not in done.stderr
