"""Sample cases: byte for byte what a machine writes, and what the plan says is what the logs hold."""

from __future__ import annotations

import os
import re
import shutil
import struct
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.infrastructure.config import default_machines
from mqi_hpc.infrastructure.intake import add_fraction, write_sample_case
from mqi_hpc.infrastructure.intake.sample import planned_layers
from mqi_hpc.records.delivery import BEAM_ON, ROW_BYTES
from tests.support.cases import START, deliver, logs, make_case, read

G2 = default_machines()["G2"]


def rows(path: Path) -> list[tuple[int, ...]]:
    content = path.read_bytes()
    assert len(content) % ROW_BYTES == 0
    return list(struct.iter_unpack(">8H", content))


def spots(path: Path) -> list[tuple[float, float, int]]:
    """Runs of beam-on rows at one place, as (x mm, y mm, counts)."""
    found: list[list[Any]] = []
    for x, y, _, _, dose, _, _, flags in rows(path):
        if flags & BEAM_ON:
            if not found or found[-1][:2] != [x, y]:
                found.append([x, y, 0])
            found[-1][2] += dose
    return [((x - 24580) * 0.00726, (y - 32772) * 0.0071411, n) for x, y, n in found]


@pytest.mark.parametrize(("beams", "layers"), [(1, 1), (3, 8), (5, 40)])
def test_a_sample_case_is_taken_whole(tmp_path: Path, beams: int, layers: int) -> None:
    case = make_case(tmp_path / "P", beams=beams, layers=layers)
    found = read(case.folder)
    (fraction,) = found.fractions
    assert not found.rejected
    assert not found.waiting
    assert [beam.number for beam in fraction.plan.beams] == list(range(2, beams + 2))
    assert fraction.plan.setup == (1,)
    assert all(len(set(beam.energies)) == layers for beam in fraction.plan.beams)
    assert all(50 <= energy <= 160 for beam in fraction.plan.beams for energy in beam.energies)


def test_the_layout_is_the_machines(tmp_path: Path) -> None:
    case = make_case(tmp_path / "P", beams=2, layers=2)
    plan = pydicom.dcmread(case.plan)
    assert case.study == case.folder / plan.StudyInstanceUID
    assert case.plan.name == f"RP.{plan.SOPInstanceUID}.dcm"
    assert (case.folder / "_CASE_READY").is_file()
    assert [d.name for d in case.deliveries.values()] == ["2026030209010000", "2026030209020000"]
    assert "NOT FOR CLINICAL USE" in plan.RTPlanName
    delivery = case.deliveries[2]
    names = [path.name for path in logs(delivery)]
    assert all(re.fullmatch(r"02_\d{7}_\d{3}_\d{3}_00[12]\.ptn", name) for name in names)
    info = (delivery / "PlanInfo.txt").read_bytes().decode()
    for line in (
        f"DICOM_PATIENT_ID,{plan.PatientID}\r\n",
        f"DICOM_STUDY_INS_UID,{plan.StudyInstanceUID}\r\n",
        "DICOM_BEAM_NUMBER,2\r\n",
        "TCSC_IRRAD_DATETIME,2026030209010000\r\n",
        "START_LAYER_NUMBER,1\r\n",
        "STOP_LAYER_NUMBER,2\r\n",
    ):
        assert line in info
    table = (delivery / "PlanRange.txt").read_bytes().decode().split("\r\n")
    assert table[0] == (
        "RESULT_ID,LAYER_NO,LAYER_ENERGY,PATIENT_ID,FLD_NO,DOSE1_RANGE,DOSE2_RANGE,PLAN_DOSE1_RANGE,"
        "PLAN_DOSE2_RANGE,SCAN_OUT_FL_NM,PLAN_SCAN_OUT_FL_NM"
    )
    assert [line.split(",")[9] for line in table[1:3]] == names
    assert {row[6] for row in rows(logs(delivery)[1])} == {2}


@pytest.mark.parametrize("shift", [(0.0, 0.0), (30.0, -20.0)])
def test_logs_hold_the_plans_spots(tmp_path: Path, shift: tuple[float, float]) -> None:
    case = make_case(tmp_path / "P", beams=1, layers=2)
    delivery = deliver(case, 2, START.replace(hour=20), shift_mm=shift, counts=90_000, rows_per_spot=7)
    layers = planned_layers(pydicom.dcmread(case.plan), 2)
    total = sum(weight for layer in layers for _, _, weight in layer.spots)
    for layer, path in zip(layers, logs(delivery), strict=True):
        delivered = spots(path)
        assert len(delivered) == len(layer.spots)
        for (x, y, counts), (px, py, weight) in zip(delivered, layer.spots, strict=True):
            assert (x, y) == pytest.approx((px + shift[0], py + shift[1]), abs=0.004)
            assert counts == pytest.approx(90_000 * weight / total, abs=1)


def test_counts_are_fewer_where_the_monitor_counts_more(tmp_path: Path) -> None:
    case = make_case(tmp_path / "P", beams=1, layers=1)
    fine = deliver(case, 2, START.replace(hour=20))
    coarse = deliver(case, 2, START.replace(hour=21), dose1_range="3")
    ratio = sum(n for *_, n in spots(logs(fine)[0])) / sum(n for *_, n in spots(logs(coarse)[0]))
    assert ratio == pytest.approx(G2.dose1_factors["3"], rel=1e-3)


def test_what_does_not_fit_the_logs_words_is_refused(tmp_path: Path) -> None:
    case = make_case(tmp_path / "P", beams=1, layers=1)
    for hour, options in ((20, {"counts": 10**9}), (21, {"shift_mm": (1000.0, 0.0)})):
        with pytest.raises(ProcessingError, match="does not fit the log's 16 bits"):
            deliver(case, 2, START.replace(hour=hour), **options)


def test_only_an_empty_folder_is_written_into(tmp_path: Path) -> None:
    write_sample_case(tmp_path / "new" / "deep", beams=1, layers=1)
    (tmp_path / "empty").mkdir()
    write_sample_case(tmp_path / "empty", beams=1, layers=1)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "file").touch()
    for name in ("empty", "file"):
        with pytest.raises(ProcessingError, match="is there already, and not an empty folder"):
            write_sample_case(tmp_path / name, beams=1, layers=1)
    with pytest.raises(ProcessingError, match="cannot be written"):
        write_sample_case(tmp_path / "file" / "below", beams=1, layers=1)
    with pytest.raises(ProcessingError, match="cannot be written"):
        write_sample_case(tmp_path / ("a" * 300), beams=1, layers=1)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])


@pytest.mark.parametrize("options", [{"beams": 0}, {"layers": 0}, {"beams": 1000}, {"machine": "G9"}])
def test_a_sample_that_cannot_be_made(tmp_path: Path, options: Any) -> None:
    with pytest.raises(ProcessingError, match="1 to 999 layers on G1 or G2"):
        write_sample_case(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_for_the_other_gantry_and_without_marker(tmp_path: Path) -> None:
    folder = write_sample_case(tmp_path / "x", beams=1, layers=1, machine="G1", mark=False, start=START)
    (fraction,) = read(folder).fractions
    assert fraction.plan.beams[0].machine == "G1"
    assert not (folder / "_CASE_READY").exists()


def test_fractions_on_successive_days_for_a_room(tmp_path: Path) -> None:
    folder = write_sample_case(tmp_path / "x", beams=2, layers=1, fractions=3, machine="G1", start=START)
    found = read(folder, now=START + timedelta(days=2, minutes=5))
    assert not found.rejected
    assert not found.waiting
    days = [
        {d.started.date() for _, pieces in one.deliveries_by_beam for d in pieces if d.started}
        for one in found.fractions
    ]
    assert days == [{(START + timedelta(days=n)).date()} for n in range(3)]
    assert {beam.machine for one in found.fractions for beam in one.plan.beams} == {"G1"}
    marker = (folder / "_CASE_READY").stat().st_mtime_ns
    assert all(path.stat().st_mtime_ns <= marker for path in folder.rglob("*"))
    with pytest.raises(ProcessingError, match="1 to 999 fractions"):
        write_sample_case(tmp_path / "y", fractions=0)


def test_logs_of_a_room_hold_its_own_counts(tmp_path: Path) -> None:
    g1 = default_machines()["G1"]
    folder = write_sample_case(tmp_path / "x", beams=1, layers=1, machine="G1", start=START)
    (plan,) = folder.rglob("*.dcm")
    (layer,) = planned_layers(pydicom.dcmread(plan), 2)
    (log,) = folder.rglob("*.ptn")
    places = {(x, y) for x, y, *_, flags in rows(log) if flags & BEAM_ON}
    delivered = {
        (round((x - g1.x_offset) * g1.x_gain, 1), round((y - g1.y_offset) * g1.y_gain, 1)) for x, y in places
    }
    assert delivered == {(x, y) for x, y, _ in layer.spots}


def test_without_a_time_the_last_delivery_has_just_been(tmp_path: Path) -> None:
    folder = write_sample_case(tmp_path / "x", beams=2, layers=1, fractions=2)
    now = datetime.now()  # noqa: DTZ005 - the machine's local time
    found = read(folder, now=now)
    assert len(found.fractions) == 2
    times = sorted(
        d.started
        for one in found.fractions
        for _, pieces in one.deliveries_by_beam
        for d in pieces
        if d.started
    )
    assert now - timedelta(minutes=10) < times[-1] <= now
    assert times[-1] - times[1] == timedelta(days=1)


def test_one_more_fraction_a_day_later(tmp_path: Path) -> None:
    folder = write_sample_case(tmp_path / "x", beams=2, layers=1, fractions=2, start=START)
    marker = folder / "_CASE_READY"
    os.utime(marker, (0, 0))
    for number in (3, 4):
        assert add_fraction(folder) == folder
        found = read(folder, now=START + timedelta(days=number))
        assert len(found.fractions) == number
        assert not found.rejected
    assert marker.stat().st_mtime > 0
    last = sorted(d.parent.name for d in folder.rglob("PlanInfo.txt"))[-2:]
    assert last == ["2026030509010000", "2026030509020000"]
    os.utime(marker, (0, 0))
    add_fraction(folder, when=START - timedelta(days=7), mark=False)
    assert marker.stat().st_mtime == 0
    assert len(read(folder, now=START + timedelta(days=4)).fractions) == 5


def test_what_no_fraction_can_be_added_to(tmp_path: Path) -> None:
    folder = write_sample_case(tmp_path / "x", beams=1, layers=1, start=START)
    with pytest.raises(ProcessingError, match="is there already"):
        add_fraction(folder, when=START)
    for delivery in {path.parent for path in folder.rglob("PlanInfo.txt")}:
        shutil.rmtree(delivery)
    with pytest.raises(ProcessingError, match="has no delivery yet"):
        add_fraction(folder)
    with pytest.raises(ProcessingError, match="is no sample case: it has 0 plans"):
        add_fraction(tmp_path / "none")
    (folder / "_CASE_READY").unlink()
    (folder / "_CASE_READY").symlink_to(tmp_path / "none" / "deep")
    with pytest.raises(ProcessingError, match="cannot be written"):
        add_fraction(folder, when=START + timedelta(days=1))


def test_a_seed_makes_the_same_case_again(tmp_path: Path) -> None:
    one, two, other = (
        {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (
            write_sample_case(tmp_path / name, beams=2, layers=2, fractions=2, start=START, seed=seed)
            for name, seed in (("a", 7), ("b", 7), ("c", 8))
        )
    )
    assert one == two
    assert not one.keys() & other.keys() - {"_CASE_READY"}
