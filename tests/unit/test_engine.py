"""The stand-in engine as a program: moqui's input, folders, output, messages and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mqi_hpc.infrastructure.intake.sample import Layer, sample_plan
from tests.support.cluster import ENGINE

ROWS = "0,0,0,600\r\n0.06,4,-2,400\r\n"
FLAT = "0,0,0,600,0.06,4,-2,400"
# Not cubic; voxels of 2 x 3 x 1 mm; the beam enters at z = -100 + 130 = 30 mm.
PHANTOM = {"DimX": 30, "DimY": 24, "DimZ": 130, "UnitX": 2, "UnitY": 3, "UnitZ": 1}
PHANTOM |= {"PositionX": -30, "PositionY": -36, "PositionZ": -100}
WHEN = datetime(2026, 11, 1, 8, 0, 0)  # noqa: DTZ001 - the machine's local time
BEAM_NAME = "Beam 2"


class Bench:
    """A ParentDir with a plan of beams 1 (set-up), 2 and 3, and the program."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "plan").mkdir()
        self.plan = sample_plan([[Layer(100.0, ((0.0, 0.0, 1.0),))] for _ in range(2)], when=WHEN)
        for beam in self.plan.IonBeamSequence:
            beam.BeamName = f"Beam {beam.BeamNumber}"
        self.save_plan()
        self.keys: dict[str, object] = {
            "ParentDir": root,
            "DicomDir": "plan",
            "logFilePath": "log",
            "GantryNum": 2,
            "BeamNumbers": 2,
            "Scorer": "Dose",
            "OutputDir": root / "out",
            "OverwriteResults": "true",
            "ParticlesPerHistory": 1,
            **{f"Phantom{name}": value for name, value in PHANTOM.items()},
        }
        self.log("1-first", {"01_70.00MeV.csv": ROWS})
        self.log("2-second", {"01_100.00MeV.csv": ROWS})

    def save_plan(self) -> None:
        self.plan.save_as(self.root / "plan" / "RP.dcm", enforce_file_format=True)

    def log(self, folder: str, layers: dict[str, str]) -> None:
        (self.root / "log" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in layers.items():
            (self.root / "log" / folder / name).write_bytes(text.encode())

    def fault(self, text: str, number: int = 2) -> None:
        (self.root / "faults").mkdir(exist_ok=True)
        (self.root / "faults" / str(number)).write_text(f"{text}\n")

    def lines(self, **changes: object) -> str:
        keys = {k: v for k, v in {**self.keys, **changes}.items() if v is not None}
        return "".join(f"{key} {value}\n" for key, value in keys.items())

    def start(self, text: str) -> subprocess.Popen[str]:
        (self.root / "beam.in").write_text(text, newline="")
        return subprocess.Popen(
            [sys.executable, str(ENGINE / "tps_env"), "beam.in"],
            cwd=self.root,
            env={"PATH": os.environ["PATH"], "MQI_ENGINE_FAULTS": str(self.root / "faults")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, text: str | None = None, **changes: object) -> subprocess.CompletedProcess[str]:
        process = self.start(self.lines(**changes) if text is None else text)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def dose(self, **changes: Any) -> np.ndarray:
        """Run; the dose, indexed [z, y, x]."""
        done = self.run(**changes)
        assert done.returncode == 0, done.stderr
        (raw,) = (self.root / "out").iterdir()
        values = np.fromfile(raw, dtype="<f8").reshape(130, 24, 30)
        raw.unlink()
        return values


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def aborted(done: subprocess.CompletedProcess[str], message: str) -> bool:
    """Whether it ended as an uncaught C++ exception does, with this message, and without a traceback."""
    return (
        done.returncode == 134
        and "terminate called after throwing" in done.stderr
        and f"what():  {message}" in done.stderr
        and "Traceback" not in done.stderr
        and "Time taken" not in done.stdout
    )


def depth(dose: np.ndarray) -> float:
    """Distal 80 % below the high-z face, mm."""
    curve = dose.sum(axis=(1, 2))[::-1]
    last = int(np.flatnonzero(curve >= 0.8 * curve.max())[-1])
    return float(last + 0.5 + (curve[last] - 0.8 * curve.max()) / (curve[last] - curve[last + 1]))


def test_it_says_who_it_is_first_and_how_long_it_took_last(bench: Bench) -> None:
    lines = bench.run().stdout.splitlines()
    assert lines[0] == "mqi stand-in engine version 1.0 - NOT FOR CLINICAL USE"
    assert lines[-1].startswith("Time taken by MC engine: ")
    assert lines[-1].endswith(" milli-seconds")
    assert "Simlulation finalizing.." in lines


def test_the_raw_file_is_float64_of_the_grid_named_by_the_beam(bench: Bench) -> None:
    bench.plan.IonBeamSequence[1].BeamName = "1G180:TX a"
    bench.save_plan()
    bench.run()
    (raw,) = (bench.root / "out").iterdir()
    assert (raw.name, raw.stat().st_size) == ("1G180:TX a_0_Dose.raw", 8 * 30 * 24 * 130)


def test_the_number_in_the_name_counts_range_shifters_and_blocks(bench: Bench) -> None:
    bench.plan.IonBeamSequence[1].NumberOfRangeShifters = 1
    bench.plan.IonBeamSequence[1].NumberOfBlocks = 1
    bench.save_plan()
    bench.run()
    assert [raw.name for raw in (bench.root / "out").iterdir()] == [f"{BEAM_NAME}_2_Dose.raw"]


def test_the_beam_enters_at_the_high_z_face_and_stops_at_the_csda_range(bench: Bench) -> None:
    assert depth(bench.dose()) == pytest.approx(77.18, rel=0.01)


def test_the_dose_lies_where_the_log_says(bench: Bench) -> None:
    dose = bench.dose()
    lateral = dose.sum(axis=0) / dose.sum()
    x, y = -30 + 2 * (np.arange(30) + 0.5), -36 + 3 * (np.arange(24) + 0.5)
    assert lateral.sum(axis=0) @ x == pytest.approx(0.4 * 4, abs=0.05)
    assert lateral.sum(axis=1) @ y == pytest.approx(0.4 * -2, abs=0.05)


def test_the_dose_holds_the_protons_energy(bench: Bench) -> None:
    # 1000 protons of 100 MeV, 1.602e-13 J each; a voxel of 6 mm3 of water is 6e-6 kg. Neutrons take some.
    energy = bench.dose().sum() * 6e-6
    assert 0.93 < energy / (1000 * 100 * 1.602176634e-13) < 1.0


def test_it_is_linear_in_counts_and_protons_and_deaf_to_the_seed(bench: Bench) -> None:
    once = bench.dose(RandomSeed=1)
    assert np.array_equal(once, bench.dose(RandomSeed=2))
    assert np.allclose(bench.dose(ParticlesPerHistory="2.5e1"), 25 * once, rtol=1e-12)


def test_layers_add_up(bench: Bench) -> None:
    single = bench.dose()
    bench.log("2-second", {"02_70.00MeV.csv": ROWS})
    assert np.allclose(bench.dose(), single + bench.dose(BeamNumbers=1), rtol=1e-9, atol=1e-18)


def test_the_log_is_the_entry_of_the_sorted_folder_and_files_count_too(bench: Bench) -> None:
    (bench.root / "log" / "0-a-file").write_text("")
    assert depth(bench.dose()) == pytest.approx(40.80, rel=0.01)


def test_a_folder_that_is_not_there_or_a_file_in_its_place_aborts(bench: Bench) -> None:
    assert aborted(bench.run(BeamNumbers=3), "No matching log folder found for RT Plan Beam #3")
    (bench.root / "log" / "3-a-file").write_text("")
    assert aborted(bench.run(BeamNumbers=3), "No matching log folder found for RT Plan Beam #3")


def test_both_dialects_give_one_dose_each_under_its_own_name(bench: Bench) -> None:
    rows = bench.dose()
    assert np.array_equal(bench.dose(LogDialect="rows"), rows)
    bench.log("2-second", {"01_100.00MeV.csv": FLAT})
    assert np.array_equal(bench.dose(LogDialect="flat"), rows)


@pytest.mark.parametrize(
    ("dialect", "text"), [("rows", FLAT), ("flat", ROWS), ("rows", ""), ("flat", "1,2,3")]
)
def test_a_log_of_another_dialect_is_refused_not_misread(bench: Bench, dialect: str, text: str) -> None:
    bench.log("2-second", {"01_100.00MeV.csv": text})
    assert aborted(bench.run(LogDialect=dialect), "01_100.00MeV.csv: not ")
    assert not (bench.root / "out").exists()


def test_keys_are_read_as_moqui_reads_them(bench: Bench) -> None:
    text = bench.lines(BeamNumbers=None, DicomDir=None).replace("Scorer", "sCORer")
    head = "# comment\nNoSpace\nDICOMDIR plan # as is\nbeamnumbers   2\nBeamNumbers 3\nUnknown x\n"
    assert bench.run(head + text).returncode == 0
    assert [raw.name for raw in (bench.root / "out").iterdir()] == [f"{BEAM_NAME}_0_Dose.raw"]


def test_outer_blanks_of_a_line_do_not_count_and_a_key_alone_is_ignored(bench: Bench) -> None:
    head = " \tBeamNumbers\t  2  \nParentDir \nScorer\n # ParentDir elsewhere\nScorer DOSE\n"
    assert bench.run(head + bench.lines(BeamNumbers=3)).returncode == 0


@pytest.mark.parametrize("line", ["   \n", "\r\n", "ParentDir # empty\n"])
def test_blank_lines_and_empty_values_abort(bench: Bench, line: str) -> None:
    assert aborted(bench.run(line + bench.lines()), "basic_string::substr")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ParentDir": None}, "ParentDir is not provided"),
        ({"DicomDir": None}, "ParentDir is not provided"),
        ({"logFilePath": None}, "Log Dir is not provided"),
        ({"OutputDir": None}, "Output directory is not provided."),
        ({"DicomDir": "log"}, "There is no RTPLAN in the path. Exiting."),
        ({"DicomDir": "nowhere"}, "something wrong in reading the directory."),
        ({"BeamNumbers": 9}, "Invalid beam number."),
        ({"BeamNumbers": "abc"}, "Invalid beam number."),
        ({"Scorer": "Doze"}, "Unrecognized scorer name"),
    ],
)
def test_what_is_missing_or_unknown_aborts(bench: Bench, changes: dict[str, Any], message: str) -> None:
    assert aborted(bench.run(**changes), message)


def test_no_input_file_aborts(bench: Bench) -> None:
    done = subprocess.run(
        [sys.executable, str(ENGINE / "tps_env")], cwd=bench.root, capture_output=True, text=True, check=False
    )
    assert aborted(done, "Cannot open input parameter file.")


def test_an_output_folder_that_exists_aborts_unless_it_may_be_overwritten(bench: Bench) -> None:
    (bench.root / "out").mkdir()
    assert aborted(bench.run(OverwriteResults="false"), "Output directory exists.")
    assert bench.run(OverwriteResults=1).returncode == 0


def test_a_dose_it_cannot_write_is_exit_code_0_as_with_the_real_one(bench: Bench) -> None:
    done = bench.run(OutputDir=bench.root / "a" / "b")
    assert done.returncode == 0
    assert f"Cannot write :{bench.root}/a/b/{BEAM_NAME}_0_Dose.raw" in done.stdout
    assert not (bench.root / "a").exists()


def test_absolute_folders(bench: Bench) -> None:
    changes = {"DicomDir": bench.root / "plan", "logFilePath": bench.root / "log"}
    assert bench.run(UseAbsolutePath="TRUE", **changes).returncode == 0


def test_fault_exit(bench: Bench) -> None:
    bench.fault("exit 42")
    done = bench.run()
    assert done.returncode == 42
    assert done.stderr
    assert "Time taken" not in done.stdout
    assert not (bench.root / "out").exists()


def test_fault_nan(bench: Bench) -> None:
    bench.fault("nan")
    assert np.isnan(bench.dose()).any()


@pytest.mark.parametrize(("fault", "planes"), [("half", 65), ("wrong-size", 131)])
def test_fault_of_size(bench: Bench, fault: str, planes: int) -> None:
    bench.fault(fault)
    assert bench.run().returncode == 0
    (raw,) = (bench.root / "out").iterdir()
    assert raw.stat().st_size == 8 * 30 * 24 * planes


def test_fault_other_beam(bench: Bench) -> None:
    bench.fault("other-beam")
    assert bench.run().returncode == 0
    assert [raw.name for raw in (bench.root / "out").iterdir()] == ["Beam 3_0_Dose.raw"]


def test_fault_other_beam_of_a_plan_with_one(bench: Bench) -> None:
    del bench.plan.IonBeamSequence[2]
    bench.save_plan()
    bench.fault("other-beam")
    assert bench.run().returncode == 0
    assert [raw.name for raw in (bench.root / "out").iterdir()] == [f"{BEAM_NAME}-other_0_Dose.raw"]


def test_fault_hang_ends_by_a_signal_alone(bench: Bench) -> None:
    bench.fault("hang")
    process = bench.start(bench.lines())
    assert process.stdout is not None
    while "Generating particles" not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert not (bench.root / "out").exists()


def test_a_fault_is_of_its_own_beam_number(bench: Bench) -> None:
    bench.fault("exit 42", number=3)
    assert bench.run().returncode == 0


@pytest.mark.parametrize("text", ["nann", "exit", "exit -1", ""])
def test_a_fault_it_does_not_know_is_no_good_run(bench: Bench, text: str) -> None:
    bench.fault(text)
    done = bench.run()
    assert done.returncode == 1
    assert "knows no fault" in done.stderr
    assert not (bench.root / "out").exists()


def test_a_sample_far_outside_the_grid_gives_no_dose_and_costs_nothing(bench: Bench) -> None:
    plain = bench.dose()
    bench.log("2-second", {"01_100.00MeV.csv": ROWS + "0.12,1e9,-1e9,5000\r\n"})
    assert np.allclose(bench.dose(), plain, rtol=1e-12)
    bench.log("2-second", {"01_100.00MeV.csv": "0,5000,0,5000\r\n"})
    assert not bench.dose().any()


def test_no_voxel_is_ever_negative(bench: Bench) -> None:
    rng = np.random.default_rng(7)
    rows = "".join(f"{n},{x:.3f},{y:.3f},1\r\n" for n, (x, y) in enumerate(rng.uniform(-90, 90, (2000, 2))))
    bench.log("2-second", {f"{n:02d}_{energy}MeV.csv": rows for n, energy in enumerate((10, 70.5, 137, 250))})
    assert bench.dose().min() >= 0


def test_a_beam_name_with_slashes_leads_nowhere_else(bench: Bench) -> None:
    bench.plan.IonBeamSequence[1].BeamName = "/tmp/up"
    bench.save_plan()
    done = bench.run()
    assert done.returncode == 0
    assert f"Cannot write :{bench.root}/out//tmp/up_0_Dose.raw" in done.stdout
    assert not list((bench.root / "out").iterdir())


def test_a_plan_without_beams_aborts(bench: Bench) -> None:
    del bench.plan.IonBeamSequence
    bench.save_plan()
    assert aborted(bench.run(), "Invalid beam number.")


def test_it_leaves_nothing_beside_itself(bench: Bench) -> None:
    bench.run()
    assert not list(ENGINE.rglob("__pycache__"))


@pytest.mark.parametrize(
    "text",
    ["0,0,0,nan\r\n", "0,inf,0,5\r\n", "0,0,0,-5\r\n", "a,b,c,d\r\n", "0,0,0,\r\n"],
)
def test_a_log_that_is_not_numbers_of_protons_aborts(bench: Bench, text: str) -> None:
    bench.log("2-second", {"01_100.00MeV.csv": text})
    assert aborted(bench.run(), "the log 01_100.00MeV.csv ")
    assert not (bench.root / "out").exists()


@pytest.mark.parametrize("energy", ["0", "9.9", "300"])
def test_an_energy_outside_the_range_table_aborts_instead_of_taking_the_nearest(
    bench: Bench, energy: str
) -> None:
    bench.log("2-second", {"02_100.00MeV.csv": ROWS, f"03_{energy}MeV.csv": ROWS})
    assert aborted(bench.run(), f"{energy} MeV is outside the range table, 10 to 250 MeV")


def test_an_energy_that_is_no_number_aborts(bench: Bench) -> None:
    bench.log("2-second", {"02_fullMeV.csv": ROWS})
    assert aborted(bench.run(), "the log 02_fullMeV.csv cannot be read")


def test_a_folder_in_place_of_a_layer_aborts(bench: Bench) -> None:
    (bench.root / "log" / "2-second" / "02_90MeV.csv").mkdir()
    assert aborted(bench.run(), "the log 02_90MeV.csv cannot be read")


def test_an_unknown_dialect_aborts(bench: Bench) -> None:
    assert aborted(bench.run(LogDialect="colums"), "LogDialect is 'colums', not rows or flat")


@pytest.mark.parametrize("key", ["PhantomDimX", "PhantomUnitZ"])
def test_a_phantom_of_nothing_aborts(bench: Bench, key: str) -> None:
    assert aborted(bench.run(**{key: 0}), "the phantom has ")


def test_absolute_means_as_is_so_a_relative_folder_is_the_working_folders(bench: Bench) -> None:
    assert bench.run(UseAbsolutePath="true").returncode == 0
