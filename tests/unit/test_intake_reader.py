"""Case folders as they lie on disk: what is taken, and everything that is refused, in words."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from mqi_hpc.core.errors import RejectedCase
from mqi_hpc.core.intake import identity, input_files
from mqi_hpc.infrastructure.config import default_machines
from mqi_hpc.infrastructure.intake import folder as folder_module
from mqi_hpc.infrastructure.intake.folder import Unreadable, read_file, walk
from mqi_hpc.infrastructure.intake.plans import PHOTON_PLAN, read_plans
from tests.support.cases import START, CaseFolder, deliver, edit_info, logs, make_case, read, refusals

FIXTURE = Path(__file__).parents[3] / "shared/fixtures/water_1field_160MeV_plan.dcm"


@pytest.fixture
def case(tmp_path: Path) -> CaseFolder:
    return make_case(tmp_path / "P001")


def beams(case: CaseFolder) -> Any:
    (fraction,) = read(case.folder).fractions
    return fraction.plan.beams


def plan_refusal(case: CaseFolder, change: Any) -> str:
    case.edit_plan(change)
    found = read(case.folder)
    assert not found.fractions
    return refusals(found)


def test_a_case_folder_and_its_study_folder_hold_the_same_case(case: CaseFolder) -> None:
    (whole,) = read(case.folder).fractions
    (flat,) = read(case.study).fractions
    assert identity(whole) == identity(flat)
    assert [number for number, _ in whole.deliveries_by_beam] == [2, 3]
    for _, local, size, sha256 in input_files(whole):
        file, content = read_file(case.folder, local, most=10**6)
        assert (file.bytes, file.sha256, len(content)) == (size, sha256, size)


def test_identity_does_not_depend_on_names(case: CaseFolder, tmp_path: Path) -> None:
    (before,) = read(case.folder).fractions
    case.plan.rename(case.study / "anything")
    (after,) = read(case.folder.rename(tmp_path / "other name")).fractions
    assert identity(before) == identity(after)


@pytest.mark.parametrize("name", ["x.DCM", "noextension", "RP.1.2.3", "plan.bin"])
def test_a_plan_is_told_by_what_it_is(case: CaseFolder, name: str) -> None:
    case.plan.rename(case.study / name)
    assert len(read(case.folder).fractions) == 1


@pytest.mark.parametrize(
    "name", ["a b", "it's", '"q"', "$(touch x)", "`x`", "-rf", "a\nb", "é漢", "a;b|c&d", "*"]
)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    case = make_case(tmp_path / name)
    odd = case.deliveries[2].rename(case.study / name)
    (fraction,) = read(case.folder).fractions
    assert [local for _, local, _, _ in input_files(fraction)][1] == f"{case.study.name}/{name}/PlanInfo.txt"
    logs(odd)[0].unlink()
    assert "the .ptn of layer 1 is missing" in refusals(read(case.folder))


def test_names_that_are_no_text_are_refused_in_words(case: CaseFolder) -> None:
    os.rename(case.deliveries[2], os.fsencode(case.study) + b"/\xff\xfe")  # noqa: PTH104 - bytes
    said = refusals(read(case.folder))
    assert r"\xff\xfe: its name is not UTF-8 text" in said
    said.encode()


@pytest.mark.parametrize("name", ["x.extracting", "x.zip.tmp", "x.backup.1", "extract_1.tmp", ".hidden"])
def test_what_is_still_being_copied_is_left_alone(case: CaseFolder, name: str) -> None:
    shutil.copytree(case.deliveries[2], case.study / name)
    assert len(read(case.folder).fractions) == 1


@pytest.mark.parametrize("where", ["a" * 300, "nowhere", "a\0b"])
def test_a_folder_that_is_none(where: str) -> None:
    with pytest.raises(RejectedCase, match="rejected"):
        read(where)


def test_a_file_is_no_folder(case: CaseFolder) -> None:
    with pytest.raises(RejectedCase, match="is no folder"):
        read(case.plan)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no RT Ion Plan was found" in refusals(read(tmp_path))


def test_no_plan_tells_the_faults_of_deliveries_too(case: CaseFolder) -> None:
    case.plan.unlink()
    (case.deliveries[2] / "PlanRange.txt").unlink()
    said = refusals(read(case.folder))
    assert "no RT Ion Plan was found" in said
    assert "PlanRange.txt: is missing" in said


# --- the tree


def test_links_are_not_followed(case: CaseFolder, tmp_path: Path) -> None:
    (case.study / "away").symlink_to(tmp_path)
    (case.study / "loop").symlink_to(case.folder)
    said = refusals(read(case.folder))
    assert "away: is a symbolic link" in said
    assert "loop: is a symbolic link" in said


def test_pipes_do_not_block(case: CaseFolder) -> None:
    os.mkfifo(case.study / "pipe.dcm")
    os.mkfifo(case.study / "harmless")
    said = refusals(read(case.folder))
    assert "pipe.dcm: is no regular file" in said
    assert "harmless" not in said
    with pytest.raises(Unreadable):
        read_file(case.study, "harmless", most=100)


def test_what_lies_too_deep_is_told(case: CaseFolder) -> None:
    deep = case.folder / "a/b/c/d/e"
    deep.mkdir(parents=True)
    assert "a/b/c/d/e: lies more than 4 folders deep" in refusals(read(case.folder))
    deep.rmdir()
    assert len(read(case.folder).fractions) == 1


def test_a_folder_of_too_many_files_is_none_of_a_case(
    case: CaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(list(case.folder.rglob("*")))
    monkeypatch.setattr(folder_module, "MOST_FILES", count)
    assert len(read(case.folder).fractions) == 1
    monkeypatch.setattr(folder_module, "MOST_FILES", count - 1)
    with pytest.raises(RejectedCase, match=f"holds more than {count - 1} files"):
        read(case.folder)


def test_a_folder_may_bear_a_plans_name(case: CaseFolder) -> None:
    (case.study / "plan.dcm").mkdir()
    assert len(read(case.folder).fractions) == 1


def test_what_may_not_be_read_is_told(case: CaseFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real, scan = os.open, os.scandir
    secret = [
        logs(case.deliveries[2])[1],
        case.deliveries[3] / "PlanInfo.txt",
        case.deliveries[3] / "PlanRange.txt",
    ]

    def refuse(path: Any, *rest: Any, **options: Any) -> int:
        if Path(path) in secret:
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)

    (case.study / "closed").mkdir()

    def closed(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folder_module.os, "open", refuse)
    monkeypatch.setattr(folder_module.os, "scandir", closed)
    said = refusals(read(case.folder))
    for path in secret:
        assert f"{case.relative(path)}: cannot be read: Permission denied" in said
    assert f"{case.study.name}/closed: cannot be read: Permission denied" in said


def test_a_plan_that_may_not_be_read_is_told_what_else_lies_there_is_not(
    case: CaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case.study / "notes").write_text("x")

    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder_module.os, "open", refuse)
    said = refusals(read(case.folder))
    assert f"{case.relative(case.plan)}: cannot be read: Permission denied" in said
    assert "notes" not in said


def test_a_file_that_grows_while_it_is_read_is_refused(
    case: CaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs(case.deliveries[2])[0]
    real = os.fstat
    seen = []

    def grows(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        seen.append(status)
        if len(seen) == 2:  # opened and looked at: now the copy goes on
            with log.open("ab") as file:
                file.write(bytes(16))
        return status

    monkeypatch.setattr(folder_module.os, "fstat", grows)
    with pytest.raises(Unreadable, match="changes while it is read"):
        read_file(case.folder, case.relative(log), most=10**6)


def test_a_huge_text_file_is_not_swallowed(case: CaseFolder) -> None:
    os.truncate(case.deliveries[2] / "PlanRange.txt", 10**12)
    assert "at most 1048576 are expected" in refusals(read(case.folder))


def test_a_huge_file_that_only_calls_itself_dicom(case: CaseFolder) -> None:
    for name, head in (("z.dcm", b""), ("y.dcm", bytes(128) + b"DICM")):
        (case.study / name).write_bytes(head)
        os.truncate(case.study / name, 10**12)
    said = refusals(read(case.folder))
    assert "z.dcm: cannot be read as DICOM" in said
    assert "y.dcm: cannot be read as DICOM" in said


# --- plans


def test_other_dicom_files_are_passed_over(case: CaseFolder) -> None:
    other = pydicom.dcmread(case.plan)
    for name, sop_class in (("CT.dcm", "1.2.840.10008.5.1.4.1.1.2"), ("RT.dcm", PHOTON_PLAN)):
        other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = sop_class
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        other.save_as(case.study / name)
    assert len(read(case.folder).fractions) == 1
    case.plan.unlink()
    said = refusals(read(case.folder))
    assert "RT Ion Plan was found in the folder" in said
    assert "RT.dcm: is a photon plan (RT Plan); an RT Ion Plan is expected" in said


def test_one_plan_twice_is_one_plan(case: CaseFolder) -> None:
    shutil.copy(case.plan, case.folder / "again.dcm")
    assert len(read(case.folder).fractions) == 1
    with (case.folder / "again.dcm").open("r+b") as file:
        file.write(b"x")  # in the preamble: another file under the same UID
    assert "under the same UID" in refusals(read(case.folder))


def test_two_plans_that_fit_are_refused(case: CaseFolder) -> None:
    twin = pydicom.dcmread(case.plan)
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    twin.save_as(case.folder / "twin.dcm")
    found = read(case.folder)
    assert not found.fractions
    assert "both fit it: one plan is expected" in refusals(found)


def test_without_preamble_and_implicit(case: CaseFolder) -> None:
    wanted = beams(case)
    plan = pydicom.dcmread(case.plan)
    plan.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    plan.save_as(case.plan, implicit_vr=True)
    assert beams(case) == wanted
    case.plan.write_bytes(case.plan.read_bytes()[132:])
    assert beams(case) == wanted
    bare = Dataset()
    bare.update({element.tag: element for element in plan})
    bare.save_as(case.plan, implicit_vr=True, little_endian=True)
    assert beams(case) == wanted


@pytest.mark.parametrize("content", [b"", b"x", b"\x08\x00", bytes(200), bytes(128) + b"DICM", b"DICM" * 100])
def test_what_is_no_dicom(case: CaseFolder, content: bytes) -> None:
    case.plan.write_bytes(content)
    assert "cannot be read as DICOM" in refusals(read(case.folder))


def test_a_plan_cut_off_anywhere_is_refused_or_all_that_counts_is_there(
    case: CaseFolder, tmp_path: Path
) -> None:
    """Above all: no beam or layer ever goes missing with the rest of the file."""
    content, wanted = case.plan.read_bytes(), beams(case)
    there = tmp_path / "cut"
    there.mkdir()
    taken = 0
    for cut in range(0, len(content), 7):
        (there / "plan.dcm").write_bytes(content[:cut])
        plans, faults = read_plans(walk(str(there)), ["G2"])
        assert plans or faults
        for plan in plans:
            taken += 1
            assert plan.beams == wanted
    assert taken <= 3


def test_layers_are_control_points_with_weight(case: CaseFolder) -> None:
    def change(plan: Any) -> None:
        first, second = plan.IonBeamSequence[1:]
        for point in first.IonControlPointSequence[1:]:
            if point.ControlPointIndex % 2:
                del point.NominalBeamEnergy
        for point in second.IonControlPointSequence:  # one spot: a scalar
            point.ScanSpotPositionMap = point.ScanSpotPositionMap[:2]
            point.ScanSpotMetersetWeights = point.ScanSpotMetersetWeights[0]

    before = beams(case)
    case.edit_plan(change)
    assert [beam.energies for beam in beams(case)] == [beam.energies for beam in before]
    assert [len(beam.energies) for beam in before] == [3, 3]


def test_line_scan_layers_are_rises_of_the_meterset(case: CaseFolder) -> None:
    before = beams(case)

    def change(plan: Any) -> None:
        for item in plan.IonBeamSequence:
            for point in item.IonControlPointSequence:
                del point.ScanSpotMetersetWeights

    case.edit_plan(change)
    assert [beam.energies for beam in beams(case)] == [beam.energies for beam in before]


@pytest.mark.parametrize(
    "mark",
    [{"TreatmentDeliveryType": "SETUP"}, {"BeamName": " Setup "}, {"BeamDescription": "SITE SETUP"}],
)
def test_set_up_beams_are_left_out(case: CaseFolder, mark: dict[str, str]) -> None:
    def change(plan: Any) -> None:
        item = plan.IonBeamSequence[2]
        for name, value in mark.items():
            setattr(item, name, value)

    case.edit_plan(change)
    found = read(case.folder)
    assert found.ignored_setup == (case.relative(case.deliveries[3]),)
    assert [beam.number for beam in found.fractions[0].plan.beams] == [2]


def test_what_dicom_leaves_optional_may_be_absent(case: CaseFolder) -> None:
    def change(plan: Any) -> None:
        del plan.FractionGroupSequence
        for item in plan.IonBeamSequence:
            del item.BeamDescription
            del item.NumberOfControlPoints
            if item.BeamNumber != 1:
                del item.TreatmentDeliveryType

    case.edit_plan(change)
    assert [beam.number for beam in beams(case)] == [2, 3]


def test_everything_wrong_with_a_plan_is_told_at_once(case: CaseFolder) -> None:
    def change(plan: Any) -> None:
        plan.PatientID = ""
        plan.IonBeamSequence[1].TreatmentMachineName = "TR2"
        plan.IonBeamSequence[2].BeamName = ""

    said = plan_refusal(case, change)
    assert "no usable RT Ion Plan" in said
    assert "has no PatientID" in said
    assert "the machine of beam 2, 'TR2', is unknown; machines with a calibration: G1, G2" in said
    assert "beam 3 has no BeamName" in said


def _set(number: int, **values: Any) -> Any:
    def change(plan: Any) -> None:
        item = next(item for item in plan.IonBeamSequence if item.BeamNumber == number)
        for name, value in values.items():
            setattr(item, name, value)

    return change


def _points(**values: Any) -> Any:
    def change(plan: Any) -> None:
        for point in plan.IonBeamSequence[1].IonControlPointSequence:
            for name, value in values.items():
                setattr(point, name, value)

    return change


def _drop(plan: Any) -> None:
    del plan.IonBeamSequence[2]


def _all_setup(plan: Any) -> None:
    for item in plan.IonBeamSequence:
        item.TreatmentDeliveryType = "SETUP"


def _no_uid(plan: Any) -> None:
    del plan.SOPInstanceUID


def _odd_uid(plan: Any) -> None:
    plan.SOPInstanceUID = "../1.2"


def _no_number(plan: Any) -> None:
    del plan.IonBeamSequence[1].BeamNumber


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set(2, BeamNumber=3), "two of its beams have one BeamNumber"),
        (_set(2, BeamNumber=0), "the BeamNumber of its beam at place 2 is not from 1 to 9999"),
        (_set(2, BeamNumber=10000), "not from 1 to 9999"),
        (_no_number, "the BeamNumber of its beam at place 2"),
        (_set(2, BeamName="a/b"), "beam 2 has no BeamName that can be a file name"),
        (_set(2, TreatmentMachineName="G1"), "several machines: G1, G2"),
        (_set(2, TreatmentMachineName="G1-G2"), "may be G1 or G2"),
        (_set(2, TreatmentMachineName=""), "the machine of beam 2, '', is unknown"),
        (_set(2, NumberOfControlPoints=99), "beam 2 has 6 control points; NumberOfControlPoints says 99"),
        (_set(2, IonControlPointSequence=[]), "beam 2 has no energy layers"),
        (_points(NominalBeamEnergy=None), "beam 2 has no energy layers"),
        (_points(NominalBeamEnergy=0), "beam 2 has no energy layers"),
        (_points(ScanSpotMetersetWeights=[0.0] * 9), "beam 2 has no energy layers"),
        (
            _points(ScanSpotMetersetWeights=[float("nan")] * 9),
            "ScanSpotMetersetWeights is negative or no number",
        ),
        (_points(ScanSpotMetersetWeights=[-1.0] * 9), "ScanSpotMetersetWeights is negative or no number"),
        (_points(CumulativeMetersetWeight=[1, 2]), "beam 2 has control points that cannot be read"),
        (_drop, "its fraction group has beams 3, which are not among its beams"),
        (_all_setup, "has no treatment beam"),
        (_no_uid, "has no SOPInstanceUID"),
        (_odd_uid, "has no valid SOPInstanceUID"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of pydicom, which writes what we make it write
def test_a_wrong_plan_is_refused(case: CaseFolder, change: Any, said: str) -> None:
    assert said in plan_refusal(case, change)


def test_the_machine_is_the_named_one_else_the_one_within_the_name(case: CaseFolder) -> None:
    g2 = default_machines()["G2"]
    for name, machines, wanted in (
        ("G2", {"G": g2, "G2": g2}, "G2"),
        ("Room G2 (Proton)", {"G1": g2, "G2": g2}, "G2"),
        ("Room12G2x", {"G1": g2, "G2": g2}, "G2"),
        ("Room 2B", {"2B": g2, "B3": g2}, "2B"),
        ("TR2", {"TR2": g2}, "TR2"),
    ):
        for number in (1, 2, 3):
            case.edit_plan(_set(number, TreatmentMachineName=name))
        (fraction,) = read(case.folder, machines=machines).fractions
        assert {beam.machine for beam in fraction.plan.beams} == {wanted}


@pytest.mark.parametrize("name", ["G20", "G1 or G2", "1G21", "g2", ""])
def test_a_machine_of_another_number_is_another_machine(case: CaseFolder, name: str) -> None:
    for number in (1, 2, 3):
        case.edit_plan(_set(number, TreatmentMachineName=name))
    machines = {"G1": default_machines()["G1"], "G2": default_machines()["G2"]}
    found = read(case.folder, machines=machines)
    assert not found.fractions
    assert "machines with a calibration: G1, G2" in refusals(found)


damages = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "cut", "take", "put"]),
        st.binary(max_size=3),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["plan", "PlanInfo.txt", "PlanRange.txt", "log"]), damages)
def test_a_damaged_file_is_the_case_it_says_or_a_refusal_in_words(
    case: CaseFolder, which: str, steps: list[tuple[float, str, bytes]]
) -> None:
    delivery = case.deliveries[2]
    path = {"plan": case.plan, "log": logs(delivery)[0]}.get(which, delivery / which)
    good = path.read_bytes()
    (whole,) = read(case.folder).fractions
    content = good
    for where, how, put in steps:
        at = int(where * len(content))
        rest = {"set": content[at + len(put) :], "cut": b"", "take": content[at + 1 + len(put) :]}
        middle = put if how in ("set", "put") else b""
        content = content[:at] + middle + rest.get(how, content[at:])
    try:
        path.write_bytes(content)
        found = read(case.folder)
    finally:
        path.write_bytes(good)
    for fraction in found.fractions:
        assert fraction.plan.patient_id == whole.plan.patient_id
        assert [number for number, _ in fraction.deliveries_by_beam] == [2, 3]
        assert (identity(fraction) == identity(whole)) == (content == good)
        for number, pieces in fraction.deliveries_by_beam:
            planned = fraction.plan.beam(number)
            assert planned
            assert [n for piece in pieces for n, _ in piece.logs] == list(range(1, 1 + len(planned.energies)))
            assert len(planned.energies) == 3
    assert found.fractions or refusals(found)
    assert whole.plan.patient_id not in refusals(found)


@pytest.mark.skipif(not FIXTURE.exists(), reason="the shared plan is not here")
def test_a_planning_systems_own_plan(tmp_path: Path) -> None:
    folder = tmp_path / "water"
    folder.mkdir()
    shutil.copy(FIXTURE, folder / "plan.dcm")
    case = CaseFolder(folder, folder, folder / "plan.dcm", {})
    deliver(case, 1, START)
    (fraction,) = read(folder, machines={"TR2": default_machines()["G2"]}).fractions
    (beam,) = fraction.plan.beams
    assert (beam.number, beam.name, beam.machine, beam.energies) == (1, "Field 1", "TR2", (160.0,))
    assert "'TR2', is unknown" in refusals(read(folder))


# --- deliveries


def test_faults_of_all_files_are_told_at_once(case: CaseFolder) -> None:
    first, second = case.deliveries[2], case.deliveries[3]
    cut = logs(first)[0]
    cut.write_bytes(cut.read_bytes()[:-1])
    logs(first)[1].write_bytes(b"")
    (second / "PlanInfo.txt").unlink()
    (case.study / "broken.dcm").write_bytes(b"x")
    said = refusals(read(case.folder))
    assert f"{case.relative(cut)}: has " in said
    assert "not a multiple of 16" in said
    assert "has 0 bytes" in said
    assert f"{case.relative(second)}/PlanInfo.txt: is missing" in said
    assert "broken.dcm: cannot be read as DICOM" in said


def test_every_plan_info_is_held_against_the_plan(case: CaseFolder) -> None:
    edit_info(case.deliveries[2], DICOM_PATIENT_ID="SOMEONE_ELSE")
    edit_info(case.deliveries[3], DICOM_BEAM_NUMBER="9")
    found = read(case.folder)
    assert not found.fractions
    said = refusals(found)
    assert f"{case.relative(case.deliveries[2])}/PlanInfo.txt: wrong patient" in said
    assert "unknown beam number 9: the plan's treatment beams are 2, 3" in said
    assert "SOMEONE_ELSE" not in said
    assert str(pydicom.dcmread(case.plan).PatientID) not in said


def test_blanks_around_a_patient_id_do_not_count(case: CaseFolder) -> None:
    edit_info(case.deliveries[2], DICOM_PATIENT_ID=f"  {pydicom.dcmread(case.plan).PatientID}  ")
    assert len(read(case.folder).fractions) == 1


def test_a_layer_without_log_and_a_log_without_layer(case: CaseFolder) -> None:
    first, second = case.deliveries[2], case.deliveries[3]
    logs(first)[1].unlink()
    shutil.copy(logs(second)[0], second / "02_x_001_003_009.ptn")
    said = refusals(read(case.folder))
    assert f"{case.relative(first)}: the .ptn of layer 2 is missing" in said
    assert "02_x_001_003_009.ptn: belongs to no layer of PlanRange" in said


def _rows(delivery: Path, change: Any) -> None:
    path = delivery / "PlanRange.txt"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *change(rows)]) + "\n")


def _cell(row: str, column: int, value: str) -> str:
    cells = row.split(",")
    return ",".join([*cells[:column], value, *cells[column + 1 :]])


def test_a_monstrous_number_of_layers_is_told_briefly(case: CaseFolder) -> None:
    edit_info(case.deliveries[2], STOP_LAYER_NUMBER="999999")
    said = refusals(read(case.folder))
    assert "has no row for layers 4, 5, " in said
    assert "23 and 999976 more, which PlanInfo says it holds" in said
    assert len(said) < 5000


def test_rows_of_plan_range_are_the_layers_of_plan_info(case: CaseFolder) -> None:
    _rows(case.deliveries[2], lambda rows: rows[:-1])
    edit_info(case.deliveries[3], STOP_LAYER_NUMBER="2")
    said = refusals(read(case.folder))
    assert "has no row for layer 3, which PlanInfo says it holds" in said
    assert "has rows for layer 3; PlanInfo says layers 1 to 2" in said


def test_an_unknown_monitor_range_and_another_energy(case: CaseFolder) -> None:
    first, second = case.deliveries[2], case.deliveries[3]
    _rows(first, lambda rows: [_cell(rows[0], 5, "9"), *rows[1:]])
    _rows(second, lambda rows: [_cell(rows[0], 2, "143.0"), *rows[1:]])
    said = refusals(read(case.folder))
    assert "layer 1 has DOSE1_RANGE '9'; the machine knows 2, 3, 4, 5" in said
    assert "layer 1 has 143 MeV, beam 3 of the plan 145" in said


def test_one_log_for_two_layers(case: CaseFolder) -> None:
    name = logs(case.deliveries[2])[0].name
    _rows(case.deliveries[2], lambda rows: [rows[0], _cell(rows[1], 9, name), rows[2]])
    assert "is named for layer 1 and for layer 2" in refusals(read(case.folder))


def test_logs_are_found_by_name_or_by_the_number_at_its_end(case: CaseFolder) -> None:
    (before,) = read(case.folder).fractions
    wanted = [[layer for layer, _ in d.logs] for _, (d,) in before.deliveries_by_beam]
    _rows(case.deliveries[2], lambda rows: [_cell(row, 9, "") for row in rows])
    _rows(
        case.deliveries[3], lambda rows: [r.replace(".ptn", "").replace("02_", r"D:\logs\02_") for r in rows]
    )
    (after,) = read(case.folder).fractions
    assert [[layer for layer, _ in d.logs] for _, (d,) in after.deliveries_by_beam] == wanted
    shutil.copy(logs(case.deliveries[2])[0], case.deliveries[2] / "again_001.ptn")
    assert "the .ptn of layer 1 is missing" in refusals(read(case.folder))


def test_names_that_differ_in_capitals_only_are_not_guessed_at(case: CaseFolder) -> None:
    log = logs(case.deliveries[2])[0]
    shutil.copy(log, log.with_suffix(".PTN"))
    assert "in capitals only: which is meant?" in refusals(read(case.folder))


@pytest.mark.parametrize("name", ["PlanInfo.txt", "PlanRange.txt"])
def test_two_texts_that_differ_in_capitals_only_are_not_chosen_from(case: CaseFolder, name: str) -> None:
    delivery = case.deliveries[2]
    shutil.copy(delivery / name, delivery / name.upper())
    found = read(case.folder)
    assert not found.fractions
    assert "in capitals only: which is meant?" in refusals(found)


def test_a_plan_range_alone_is_a_delivery_that_lacks_the_rest(case: CaseFolder) -> None:
    for path in [case.deliveries[2] / "PlanInfo.txt", *logs(case.deliveries[2])]:
        path.unlink()
    said = refusals(read(case.folder))
    assert f"{case.relative(case.deliveries[2])}/PlanInfo.txt: is missing" in said


def test_a_log_without_end_is_not_read(case: CaseFolder) -> None:
    log = logs(case.deliveries[2])[0]
    os.truncate(log, 1 << 40)  # sparse
    assert f"{log.name}: has {1 << 40} bytes, at most" in refusals(read(case.folder))


def test_plan_range_csv_is_preferred(case: CaseFolder) -> None:
    delivery = case.deliveries[2]
    shutil.copy(delivery / "PlanRange.txt", delivery / "PlanRange.csv")
    (delivery / "PlanRange.txt").write_text("rubbish")
    (fraction,) = read(case.folder).fractions
    local = {remote: local for remote, local, _, _ in input_files(fraction)}
    assert local["beam_2/PlanRange.txt"].endswith("PlanRange.csv")


@pytest.mark.parametrize("name", ["PlanInfo.txt", "PlanRange.txt"])
@pytest.mark.parametrize("content", [b"", b"\0\0", b"\xff\xfeP\0l\0", b"a,b,c\n" * 3, bytes(range(256))])
def test_rubbish_in_a_text_file(case: CaseFolder, name: str, content: bytes) -> None:
    (case.deliveries[2] / name).write_bytes(content)
    found = read(case.folder)
    assert not found.fractions
    assert f"/{name}: " in refusals(found)


def test_a_text_in_another_code_page_is_read(case: CaseFolder) -> None:
    path = case.deliveries[2] / "PlanInfo.txt"
    path.write_bytes(path.read_bytes() + "SHARE_DIR,日本\r\n".encode("shift_jis"))
    assert len(read(case.folder).fractions) == 1


def test_a_folder_of_logs_without_plan_info(case: CaseFolder) -> None:
    (case.deliveries[2] / "PlanInfo.txt").unlink()
    said = refusals(read(case.folder))
    assert f"{case.relative(case.deliveries[2])}/PlanInfo.txt: is missing" in said


def test_a_beam_without_delivery_is_named(case: CaseFolder) -> None:
    shutil.rmtree(case.deliveries[3])
    found = read(case.folder)
    assert not found.fractions
    assert "beam 3 has no whole delivery" in refusals(found)


def test_an_interrupted_delivery_is_joined(case: CaseFolder) -> None:
    shutil.rmtree(case.deliveries[2])
    deliver(case, 2, START, layers=(1, 2))
    second = deliver(case, 2, START + timedelta(minutes=9), layers=(3, 3))
    (fraction,) = read(case.folder).fractions
    names = [remote for remote, *_ in input_files(fraction)]
    assert "beam_2/PlanInfo-2.txt" in names
    assert "beam_2/003.ptn" in names
    assert dict(fraction.deliveries_by_beam)[2][1].folder == case.relative(second)


def test_without_times_folder_names_tell_the_time(case: CaseFolder) -> None:
    later = START + timedelta(hours=3)
    case.add_fraction(later)
    for info in case.study.rglob("PlanInfo.txt"):
        edit_info(info.parent, TCSC_IRRAD_DATETIME=None)
    found = read(case.folder, now=later)
    assert len(found.fractions) == 2
    assert {d.started.date() for f in found.fractions for _, (d,) in f.deliveries_by_beam if d.started} == {
        START.date()
    }


def test_a_name_that_is_no_time_gives_none(case: CaseFolder) -> None:
    for number, name in ((2, "2026999999999900"), (3, "afternoon")):
        edit_info(case.deliveries[number], TCSC_IRRAD_DATETIME=None)
        case.deliveries[number].rename(case.study / name)
    (fraction,) = read(case.folder).fractions
    assert [d.started for _, (d,) in fraction.deliveries_by_beam] == [None, None]


def test_a_second_fraction_and_a_faulty_third(case: CaseFolder) -> None:
    day = timedelta(days=1)
    case.add_fraction(START + day)
    bad = case.add_fraction(START + 2 * day)
    logs(bad[2])[0].write_bytes(b"123")
    found = read(case.folder, now=START + 2 * day)
    assert len(found.fractions) == 2
    assert "has 3 bytes" in refusals(found)
    assert len({identity(fraction) for fraction in found.fractions}) == 2
