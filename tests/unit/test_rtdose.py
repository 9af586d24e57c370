"""RT Dose: what is stored is the dose, where it lies and whose it is; what cannot be stored is refused."""

from __future__ import annotations

import copy
import stat
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from mqi_hpc.records.chain import Grid
from mqi_hpc.stages.plan import read_plan
from mqi_hpc.stages.rtdose import dose_grid_scaling, range80, write_rtdose
from tests.support.cluster import ROOT
from tests.support.dciodvfy import complaints, needs_dciodvfy
from tests.support.dose_reader import DoseFile

FIXTURE = ROOT.parent / "shared" / "fixtures" / "water_1field_160MeV_plan.dcm"
GRID = Grid((4, 3, 10), (2.0, 3.0, 1.0), (-4.0, -5.0, -7.0))
STANDIN = "mqi stand-in engine version 1.0 - NOT FOR CLINICAL USE"


def plan(**changes: Any) -> Dataset:
    """A plan of two fraction groups, the second with beams 2 and 3; None leaves a tag out."""
    dataset = Dataset()
    tags = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "FrameOfReferenceUID": "1.2.5",
        "PatientName": "Müller^Änne",
        "PatientID": "P001",
        "PatientBirthDate": "19700101",
        "PatientSex": "F",
        "StudyDate": "20260102",
        "StudyTime": "101112",
        "StudyID": "S1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "",
        "FractionGroupSequence": [group(1, [1]), group(2, [2, 3])],
        **changes,
    }
    for name, value in tags.items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def group(number: int, beams: list[int]) -> Dataset:
    items = []
    for beam in beams:
        item = Dataset()
        item.ReferencedBeamNumber = beam
        items.append(item)
    dataset = Dataset()
    dataset.FractionGroupNumber = number
    dataset.ReferencedBeamSequence = items
    return dataset


def some_dose(grid: Grid = GRID, top: float = 2.0) -> np.ndarray:
    values = np.random.default_rng(1).random(tuple(reversed(grid.size)))
    return values / values.max() * top


ARGUMENTS: dict[str, Any] = {
    "grid": GRID,
    "plan": plan(),
    "beam_number": 3,
    "dose_type": "PHYSICAL",
    "engine": "moqui stand-in",
    "engine_version": STANDIN,
    "seed": 1003,
    "log_digest": "ab" * 32,
    "series_number": 7,
    "uid_root_text": "site/key/j01/3",
}


def write(path: Path, **changes: Any) -> Dataset:
    arguments = {**ARGUMENTS, "dose": some_dose(changes.get("grid", GRID)) if "dose" not in changes else None}
    arguments |= changes
    uid = write_rtdose(str(path), **arguments)
    dataset = pydicom.dcmread(path)
    assert dataset.SOPInstanceUID == uid == dataset.file_meta.MediaStorageSOPInstanceUID
    return dataset


@given(st.floats(1e-290, 1e300), st.floats(0.0, 1.0))
def test_scaling_fits_a_decimal_string_clips_nothing_and_wastes_nothing(top: float, part: float) -> None:
    text = dose_grid_scaling(top)
    assert len(text) <= 16
    assert top / float(text) <= 2**32 - 1
    assert top / float(text) > (2**32 - 1) * (1 - 1e-9)
    stored = round(top * part / float(text))
    assert abs(stored * float(text) - top * part) <= float(text) / 2 * (1 + 1e-6)


@pytest.mark.parametrize("top", [1e-9, 1e-5, 1.0, 99.99999999999])
def test_every_voxel_comes_back_within_half_a_step_at_its_own_place(tmp_path: Path, top: float) -> None:
    dose = some_dose(top=top)
    write(tmp_path / "d.dcm", dose=dose)
    read = DoseFile(tmp_path / "d.dcm")
    assert np.abs(read.values - dose.transpose(2, 1, 0)).max() <= read.scaling * 0.5000001
    assert list(read.x) == [-3.0, -1.0, 1.0, 3.0]
    assert list(read.y) == [-3.5, -0.5, 2.5]
    assert list(read.z) == [n - 6.5 for n in range(10)]


@pytest.mark.parametrize("place", [(0, 0, 0), (9, 2, 3), (5, 1, 0), (5, 0, 3)])
def test_a_single_hot_voxel_is_where_it_was(tmp_path: Path, place: tuple[int, int, int]) -> None:
    dose = np.zeros((10, 3, 4))
    dose[place] = 1.0
    write(tmp_path / "d.dcm", dose=dose)
    read = DoseFile(tmp_path / "d.dcm")
    assert np.argwhere(read.values > 0).tolist() == [list(reversed(place))]


def test_it_is_the_plans_patient_study_frame_group_and_beam(tmp_path: Path) -> None:
    made = write(tmp_path / "d.dcm")
    for name in ("PatientName", "PatientID", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyID"):
        assert getattr(made, name) == getattr(plan(), name)
    assert made.FrameOfReferenceUID == "1.2.5"
    (reference,) = made.ReferencedRTPlanSequence
    assert reference.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.481.8"
    assert reference.ReferencedSOPInstanceUID == "1.2.3.4"
    (of_group,) = reference.ReferencedFractionGroupSequence
    assert of_group.ReferencedFractionGroupNumber == 2
    assert [item.ReferencedBeamNumber for item in of_group.ReferencedBeamSequence] == [3]
    assert (made.Modality, made.DoseSummationType, made.DoseUnits) == ("RTDOSE", "BEAM", "GY")
    assert (made.DoseType, made.SeriesNumber) == ("PHYSICAL", 7)
    assert made.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian


def test_what_the_plan_lacks_is_empty_and_the_frame_of_reference_is_made_once(tmp_path: Path) -> None:
    bare = dict.fromkeys(("PatientName", "PatientSex", "StudyDate", "StudyID", "SpecificCharacterSet"))
    sparse = plan(**bare, FrameOfReferenceUID=None, FractionGroupSequence=None)
    made, again = write(tmp_path / "a.dcm", plan=sparse), write(tmp_path / "b.dcm", plan=sparse)
    assert all(name in made and not getattr(made, name) for name in bare if name != "SpecificCharacterSet")
    assert "SpecificCharacterSet" not in made
    assert made.FrameOfReferenceUID == again.FrameOfReferenceUID != ""
    assert (
        made.ReferencedRTPlanSequence[0].ReferencedFractionGroupSequence[0].ReferencedFractionGroupNumber == 1
    )


def test_beams_of_a_plan_share_the_study_and_frame_that_it_lacks(tmp_path: Path) -> None:
    sparse = plan(StudyInstanceUID=None, FrameOfReferenceUID=None)
    one, two = (write(tmp_path / f"{n}", plan=sparse, uid_root_text=f"{n}") for n in (1, 2))
    stranger = write(tmp_path / "3", plan=plan(StudyInstanceUID=None, SOPInstanceUID="1.2.3.5"))
    assert (one.StudyInstanceUID, one.FrameOfReferenceUID) == (two.StudyInstanceUID, two.FrameOfReferenceUID)
    assert len({one.StudyInstanceUID, one.FrameOfReferenceUID, stranger.StudyInstanceUID, ""}) == 4


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("PatientBirthDate", "1970-01-01", ""),
        ("PatientBirthDate", "19701301", ""),
        ("PatientBirthDate", "19701231", "19701231"),
        ("StudyDate", "unknown", ""),
        ("StudyTime", "noon", ""),
        ("StudyTime", "2359", "2359"),
        ("StudyTime", "235959.123456", "235959.123456"),
        ("PatientSex", "male", ""),
        ("PatientSex", "O", "O"),
        ("PatientID", "P" * 100, "P" * 100),
    ],
)
def test_a_value_of_no_dicom_form_is_left_empty_but_the_identity_is_never_touched(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, name: str, value: str, kept: str
) -> None:
    with pydicom.config.disable_value_validation():
        broken = plan(**{name: value})
    write_rtdose(str(tmp_path / "d.dcm"), **{**ARGUMENTS, "plan": broken, "dose": some_dose()})
    assert not recwarn, "a warning quotes the patient's data, and ends in a log"
    with pydicom.config.disable_value_validation():
        assert str(pydicom.dcmread(tmp_path / "d.dcm").get(name)) == kept


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (b"ISO_IR 100", "Müller^Änne".encode("latin1")),
        (b"ISO_IR 192", "Müller^Änne=山田".encode()),
        (b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
        (b"", b"M\xfcller^A"),
    ],
)
def test_the_patients_name_is_copied_byte_for_byte(tmp_path: Path, charset: bytes, name: bytes) -> None:
    elements = [(0x00080005, b"CS", charset), (0x00080018, b"UI", b"1.2.3\0"), (0x00100010, b"PN", name)]
    content = b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value) + len(value) % 2)
        + value.ljust(len(value) + len(value) % 2)
        for tag, vr, value in elements
    )
    syntax = b"\2\0\x10\0UI\x14\0001.2.840.10008.1.2.1\0"
    (tmp_path / "p.dcm").write_bytes(bytes(128) + b"DICM" + syntax + content)
    write_rtdose(
        str(tmp_path / "d.dcm"), **{**ARGUMENTS, "plan": read_plan(tmp_path / "p.dcm"), "dose": some_dose()}
    )
    made = (tmp_path / "d.dcm").read_bytes()
    length = struct.pack("<H", len(name) + len(name) % 2)
    assert b"\x10\0\x10\0PN" + length + name in made


def test_a_fraction_group_without_a_number_is_the_first(tmp_path: Path) -> None:
    group_without = group(5, [3])
    del group_without.FractionGroupNumber
    (reference,) = write(
        tmp_path / "d.dcm", plan=plan(FractionGroupSequence=[group_without])
    ).ReferencedRTPlanSequence
    assert reference.ReferencedFractionGroupSequence[0].ReferencedFractionGroupNumber == 1


@pytest.mark.parametrize(
    ("number", "engine", "title"),
    [
        (2, "moqui", "Recomputed: beam 2 1G180:TX"),
        (2, "moqui stand-in", "NOT FOR CLINICAL USE: beam 2 1G180:TX"),
        (3, "moqui stand-in", "NOT FOR CLINICAL USE: beam 3 L?nge " + "x" * 29),
        (4, "moqui", "Recomputed: beam 4"),
        (5, "moqui", "Recomputed: beam 5"),
    ],
)
def test_the_series_tells_one_beam_from_another(tmp_path: Path, number: int, engine: str, title: str) -> None:
    beams = [Dataset() for _ in range(3)]
    beams[0].BeamNumber, beams[0].BeamName = 2, "1G180:TX"
    beams[1].BeamNumber, beams[1].BeamName = 3, "Länge " + "x" * 50
    beams[2].BeamNumber = 4
    made = write(
        tmp_path / "d.dcm",
        plan=plan(IonBeamSequence=beams),
        beam_number=number,
        engine=engine,
        engine_version="v1",
    )
    assert made.SeriesDescription == title


def test_pydicom_2s_way_to_write_a_whole_file_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(tmp_path / "3.dcm")
    monkeypatch.setattr(pydicom, "__version__", "2.3.0")
    two = write(tmp_path / "2.dcm")
    for name in ("InstanceCreationTime", "ContentTime", "InstanceCreationDate", "ContentDate"):
        delattr(one, name)
        delattr(two, name)
    assert one == two
    assert one.file_meta == two.file_meta


def test_a_grid_beyond_the_pixel_datas_length_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    grid = Grid((1024, 1024, 1024), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="does not fit"):
        write(tmp_path / "d.dcm", grid=grid, dose=np.broadcast_to(1.0, (1024, 1024, 1024)))


def test_uids_follow_from_the_text_and_differ_with_it(tmp_path: Path) -> None:
    one, same, other = (
        write(tmp_path / f"{n}.dcm", uid_root_text=text) for n, text in enumerate(("a", "a", "b"))
    )
    assert (one.SOPInstanceUID, one.SeriesInstanceUID) == (same.SOPInstanceUID, same.SeriesInstanceUID)
    assert (
        len({one.SOPInstanceUID, one.SeriesInstanceUID, other.SOPInstanceUID, other.SeriesInstanceUID}) == 4
    )


@pytest.mark.parametrize(("engine", "version"), [("moqui stand-in", "1"), ("moqui", STANDIN)])
def test_a_dose_of_the_stand_in_says_so(tmp_path: Path, engine: str, version: str) -> None:
    made = write(tmp_path / "d.dcm", engine=engine, engine_version=version)
    assert made.DoseComment == "NOT FOR CLINICAL USE; entrance z = 3 mm, towards -z"
    assert "NOT FOR CLINICAL USE" in made.SeriesDescription
    assert "z = 3 mm" in made.ImageComments


def test_where_it_comes_from_is_in_it_and_a_real_engine_is_not_called_a_stand_in(tmp_path: Path) -> None:
    made = write(tmp_path / "d.dcm", engine="moqui", engine_version="v1.0.8")
    assert (made.ManufacturerModelName, made.SoftwareVersions) == ("moqui", "v1.0.8")
    for words in ("moqui v1.0.8", "seed 1003", "ab" * 32, "z = 3 mm"):
        assert words in made.ImageComments
    assert "NOT FOR CLINICAL USE" not in f"{made.DoseComment}{made.SeriesDescription}{made.ImageComments}"


def test_the_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "d.dcm")
    assert stat.S_IMODE((tmp_path / "d.dcm").stat().st_mode) == 0o600
    before = (tmp_path / "d.dcm").read_bytes()
    with pytest.raises(FileExistsError):
        write(tmp_path / "d.dcm")
    assert (tmp_path / "d.dcm").read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1e-9])
def test_a_dose_that_is_no_dose_is_refused_and_leaves_no_file(tmp_path: Path, value: float) -> None:
    dose = some_dose()
    dose[4, 1, 2] = value
    with pytest.raises(ValueError, match="cannot be stored"):
        write(tmp_path / "d.dcm", dose=dose)
    assert list(tmp_path.iterdir()) == []


def test_no_dose_at_all_or_one_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be stored"):
        write(tmp_path / "d.dcm", dose=np.zeros((10, 3, 4)))
    with pytest.raises(ValueError, match=r"shape \(4, 3, 10\)"):
        write(tmp_path / "d.dcm", dose=some_dose().transpose())


def column(*values: float) -> np.ndarray:
    """A dose with these values from the entrance face (high z) downwards."""
    return np.array(values[::-1], dtype=float)[:, None, None] * np.ones((1, 3, 4))


def grid_of(planes: int, spacing: float = 1.0) -> Grid:
    return Grid((4, 3, planes), (2.0, 3.0, spacing), (0.0, 0.0, 0.0))


def test_range80_is_interpolated_between_voxel_centres_below_the_high_face() -> None:
    # Centres at 1, 3, 5, 7 mm; 80 % of 10 is 8, midway from 10 (5 mm) to 6 (7 mm).
    assert range80(column(2, 4, 10, 6), grid_of(4, 2.0)) == pytest.approx(6.0)


def test_range80_is_none_where_the_dose_does_not_fall_in_the_grid() -> None:
    assert range80(column(1, 2, 3, 4), grid_of(4)) is None
    assert range80(column(1, 2, 10, 8.5), grid_of(4)) is None


@needs_dciodvfy
@pytest.mark.parametrize(
    "left_out",
    [
        (),
        ("PatientName", "PatientSex", "PatientBirthDate", "StudyDate"),
        ("FrameOfReferenceUID", "FractionGroupSequence", "StudyID", "StudyTime"),
    ],
)
@pytest.mark.parametrize("dose_type", ["PHYSICAL", "EFFECTIVE"])
def test_dciodvfy_finds_no_error(tmp_path: Path, left_out: tuple[str, ...], dose_type: str) -> None:
    write(tmp_path / "d.dcm", plan=plan(**dict.fromkeys(left_out)), dose_type=dose_type)
    assert complaints(tmp_path / "d.dcm", tmp_path) == []


@needs_dciodvfy
@pytest.mark.skipif(not FIXTURE.exists(), reason="the fixture is not here")
def test_dciodvfy_finds_no_error_with_the_real_plan(tmp_path: Path) -> None:
    write(tmp_path / "d.dcm", plan=pydicom.dcmread(FIXTURE), beam_number=1)
    assert complaints(tmp_path / "d.dcm", tmp_path) == []


@needs_dciodvfy
@pytest.mark.parametrize(
    "tag", ["DoseUnits", "ReferencedRTPlanSequence", "StudyInstanceUID", "DoseGridScaling"]
)
def test_dciodvfy_would_have_found_one(tmp_path: Path, tag: str) -> None:
    made = copy.deepcopy(write(tmp_path / "d.dcm"))
    delattr(made, tag)
    made.save_as(tmp_path / "broken.dcm")
    assert complaints(tmp_path / "broken.dcm", tmp_path) != []


def test_range80_is_the_deepest_fall_not_a_gap_between_layers() -> None:
    assert range80(column(3, 10, 3, 9, 3), grid_of(5)) == pytest.approx(3.5 + 1 / 6)


def test_a_maximum_below_what_numbers_hold_is_refused_not_stored_as_zeros() -> None:
    with pytest.raises(ValueError, match="too small"):
        dose_grid_scaling(1e-320)


def test_odd_words_of_an_engine_stay_one_value_of_any_character_set(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = write(
            tmp_path / "d.dcm",
            plan=plan(SpecificCharacterSet=None, PatientName="A^B"),
            engine="C:\\moqui\n",
            engine_version="caf\u00e9 \ufffd" + "x" * 99,
        )
    assert made.ManufacturerModelName == "C:?moqui?"
    assert made.SoftwareVersions.startswith("caf? ?x")
    assert len(made.SoftwareVersions) == 64


@needs_dciodvfy
def test_a_single_plane_is_a_valid_file(tmp_path: Path) -> None:
    made = write(tmp_path / "d.dcm", grid=grid_of(1))
    assert made.pixel_array.shape == (3, 4)
    assert complaints(tmp_path / "d.dcm", tmp_path) == []


def test_the_phantom_is_water(tmp_path: Path) -> None:
    assert write(tmp_path / "d.dcm").TissueHeterogeneityCorrection == "WATER"
