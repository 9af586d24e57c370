"""From .ptn to RT Dose without Slurm: ranges as NIST's, and a moved log moves the dose just so."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest

from mqi_hpc.infrastructure.config import default_machines
from mqi_hpc.infrastructure.intake import write_delivery
from mqi_hpc.infrastructure.intake.sample import Layer, sample_plan
from tests.support.cluster import ROOT
from tests.support.dciodvfy import complaints, needs_dciodvfy
from tests.support.dose_reader import DoseFile
from tests.support.local_chain import local_chain

WHEN = datetime(2026, 11, 1, 8, 0, 0)  # noqa: DTZ001 - the machine's local time
FIXTURE = ROOT.parent / "shared" / "fixtures" / "water_1field_160MeV_plan.dcm"
# Anisotropic, not cubic, and its corner at no round place; the beam enters at z = -350 + 360 = 10 mm.
GRID = {"size": [70, 50, 360], "spacing": [2, 3, 1], "position": [-71, -73, -350]}
ENTRANCE = 10.0
# NIST PSTAR, CSDA range of protons in liquid water, mm.
PSTAR = {80.0: 51.84, 160.0: 176.5, 220.0: 305.2}


def run(folder: Path, home: Path, **overrides: object) -> dict[int, DoseFile]:
    settings = {"moqui": {"grid": GRID}, **overrides}
    return {n: DoseFile(path) for n, path in local_chain(folder, home, **settings).run_all().items()}


def one_beam(folder: Path, energy: float, shift: tuple[float, float] = (0.0, 0.0)) -> Path:
    plan = sample_plan([[Layer(energy, ((0.0, 0.0, 1.0), (10.0, 0.0, 1.0), (0.0, -10.0, 2.0)))]], when=WHEN)
    folder.mkdir()
    plan.save_as(folder / "RP.dcm", enforce_file_format=True)
    write_delivery(folder / "beam", plan, 2, default_machines()["G2"], when=WHEN, shift_mm=shift)
    return folder


@pytest.mark.parametrize("energy", sorted(PSTAR))
@pytest.mark.parametrize("dialect", ["rows", "flat"])
def test_the_distal_range_in_water_is_nists(tmp_path: Path, energy: float, dialect: str) -> None:
    settings = {"moqui": {"grid": GRID, "log_dialect": dialect}}
    dose = run(one_beam(tmp_path / "case", energy), tmp_path / "home", **settings)[2]
    assert (len(dose.x), len(dose.y), len(dose.z)) == (70, 50, 360)
    assert (dose.x[0], dose.y[0], dose.z[0]) == (-70.0, -71.5, -349.5)
    assert dose.range80(ENTRANCE) == pytest.approx(PSTAR[energy], rel=0.02)


@pytest.mark.parametrize("shift", [(30.0, 0.0), (0.0, -20.0)])
def test_a_moved_log_moves_the_dose_just_so(tmp_path: Path, shift: tuple[float, float]) -> None:
    plain = run(one_beam(tmp_path / "a", 120.0), tmp_path / "home-a")[2]
    moved = run(one_beam(tmp_path / "b", 120.0, shift), tmp_path / "home-b")[2]
    gone = np.subtract(moved.centroid(), plain.centroid())
    assert gone == pytest.approx(shift, abs=0.1)
    assert moved.range80(ENTRANCE) == pytest.approx(plain.range80(ENTRANCE), abs=0.01)
    assert moved.values.sum() == pytest.approx(plain.values.sum(), rel=0.02)


def test_a_moved_log_moves_every_voxel_and_changes_none(tmp_path: Path) -> None:
    # 30 mm are 15 voxels in x; a log's step of 0.007 mm is all that may differ.
    plain = run(one_beam(tmp_path / "a", 120.0), tmp_path / "home-a")[2].values
    moved = run(one_beam(tmp_path / "b", 120.0, (30.0, 0.0)), tmp_path / "home-b")[2].values
    assert np.abs(moved[15:] - plain[:-15]).max() < 0.005 * plain.max()


def test_the_dose_is_that_of_the_protons_in_the_log(tmp_path: Path) -> None:
    chain = local_chain(one_beam(tmp_path / "case", 120.0), tmp_path / "home", moqui={"grid": GRID})
    dose = DoseFile(chain.run_all()[2])
    (log,) = chain.job.glob("interpreted/**/*MeV.csv")
    protons = np.loadtxt(log, delimiter=",", ndmin=2)[:, 3].sum()
    # Of 120 MeV a proton, nuclear reactions carry some 3 % away.
    assert dose.energy() == pytest.approx(0.97 * protons * 120.0 * 1.602176634e-13, rel=0.02)


def test_each_beam_gets_the_dose_of_its_own_log_although_delivered_out_of_order(tmp_path: Path) -> None:
    energies = [90.0, 150.0, 120.0]
    plan = sample_plan([[Layer(energy, ((0.0, 0.0, 1.0),))] for energy in energies], when=WHEN)
    folder = tmp_path / "case"
    folder.mkdir()
    plan.save_as(folder / "RP.dcm", enforce_file_format=True)
    for minute, number in enumerate((4, 2, 3)):
        when = WHEN.replace(minute=minute)
        write_delivery(folder / f"{when:%Y%m%d%H%M%S}00", plan, number, default_machines()["G2"], when=when)
    doses = run(folder, tmp_path / "home")
    ranges = [doses[number].range80(ENTRANCE) for number in (2, 3, 4)]
    assert ranges == pytest.approx([63.98, 157.7, 107.0], rel=0.02)


def test_the_file_is_the_raw_dose_voxel_by_voxel(tmp_path: Path) -> None:
    chain = local_chain(one_beam(tmp_path / "case", 100.0), tmp_path / "home", moqui={"grid": GRID})
    dose = DoseFile(chain.run_all()[2])
    (raw,) = chain.job.glob("dose/beam_2/*/*_Dose.raw")
    values = np.fromfile(raw, dtype="<f8").reshape(360, 50, 70).transpose(2, 1, 0)
    assert np.abs(values - dose.values).max() <= dose.scaling * 0.5000001
    assert dose.values.max() == pytest.approx(values.max(), rel=1e-9)


@needs_dciodvfy
@pytest.mark.parametrize("plan", ["sample", "fixture"])
def test_dciodvfy_finds_no_error(tmp_path: Path, plan: str) -> None:
    if plan == "fixture" and not FIXTURE.exists():
        pytest.skip("the fixture is not here")
    folder = one_beam(tmp_path / "case", 100.0) if plan == "sample" else fixture_case(tmp_path / "case")
    for path in local_chain(folder, tmp_path / "home", **WITH_TR2).run_all().values():
        assert complaints(path, tmp_path) == []


WITH_TR2 = {
    "moqui": {"grid": GRID},
    "machines": {
        name: {
            "x_offset": 24580,
            "y_offset": 32772,
            "x_gain": 0.00726,
            "y_gain": 0.0071411,
            "gantry_number": 2,
        }
        for name in ("G2", "TR2")
    },
}


def fixture_case(folder: Path) -> Path:
    """The real plan with logs made from its own spots."""
    folder.mkdir()
    shutil.copyfile(FIXTURE, folder / "plan.dcm")
    plan = pydicom.dcmread(FIXTURE)
    number = int(plan.IonBeamSequence[0].BeamNumber)
    write_delivery(folder / "delivery", plan, number, default_machines()["G2"], when=WHEN, counts=500_000)
    return folder


@pytest.mark.skipif(not FIXTURE.exists(), reason="the fixture is not here")
def test_the_real_plan_with_logs_of_its_own_spots_completes(tmp_path: Path) -> None:
    doses = run(fixture_case(tmp_path / "case"), tmp_path / "home", **WITH_TR2)
    (dose,) = doses.values()
    assert dose.range80(ENTRANCE) == pytest.approx(PSTAR[160.0], rel=0.02)
    assert dose.centroid() == pytest.approx((0.0, 0.0), abs=0.5)
    # A field of 10 cm by 10 cm: half of the central dose at 5 cm.
    profile = dose.values.sum(axis=(1, 2))
    wide = dose.x[profile > profile.max() / 2]
    assert wide.max() - wide.min() == pytest.approx(100.0, abs=8.0)
