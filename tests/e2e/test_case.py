"""One case from folder to RT Dose through a real Slurm cluster, with the commands a user has."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from tests.support.cli import mqi, shown
from tests.support.cluster import ROOT, Cluster, wait_until

pytestmark = pytest.mark.cluster

GRID = {"size": [40, 30, 300], "spacing": [4, 5, 1], "position": [-80, -75, -280]}


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    workspace = f"/home/mqi/{tmp_path.name}"
    yield cluster.write_config(
        tmp_path, moqui={"grid": GRID}, paths={"remote_workspace": workspace}, slurm={"comment": "a test"}
    )
    cluster.reset()
    cluster.root(f"rm -rf -- {workspace}")


def sample(config: Path, name: str = "P001", *options: str) -> Path:
    folder = config.parent / "cases" / name
    made = mqi(config, "sample-case", str(folder), *options)
    assert made.returncode == 0, made.stderr
    return folder


def our_jobs(cluster: Cluster, key: str) -> list[list[str]]:
    """Accounting's rows of a case's submissions: id, name, state."""
    out = cluster.ssh("sacct -n -P -X -o JobID,JobName%60,State -S now-1hour", check=True).stdout
    return [line.split("|") for line in out.splitlines() if f"-{key}-" in line]


def ended_jobs(cluster: Cluster, key: str, rows: int) -> list[list[str]]:
    """`our_jobs` once at least `rows` are there and ended: slurmdbd hears later than the queue."""

    def look() -> list[list[str]]:
        seen = our_jobs(cluster, key)
        return seen if len(seen) >= rows and not {"RUNNING", "PENDING"} & {row[2] for row in seen} else []

    return wait_until(look, 60, f"{rows} rows of {key} in accounting")


def test_a_case_comes_home_verified(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P001", "--beams", "3", "--layers", "4")
    done = mqi(config, "submit", str(folder), "--wait")
    assert done.returncode == 0, done.stderr + done.stdout
    for word in ("completed", "g1", "Gy", "mm", "RD."):
        assert word in done.stdout

    report = shown(config, str(folder))
    assert report["status"] == "completed"
    assert [beam["verdict"] for beam in report["beams"]] == ["done"] * 3
    doses = [pydicom.dcmread(beam["dose"]["file"]) for beam in report["beams"]]
    assert [dose.Modality for dose in doses] == ["RTDOSE"] * 3
    numbers = [
        dose.ReferencedRTPlanSequence[0]
        .ReferencedFractionGroupSequence[0]
        .ReferencedBeamSequence[0]
        .ReferencedBeamNumber
        for dose in doses
    ]
    assert numbers == [beam["number"] for beam in report["beams"]]
    assert (doses[0].Columns, doses[0].Rows, doses[0].NumberOfFrames) == (40, 30, 300)
    for path in report["results"]:
        assert Path(path).stat().st_mode & 0o777 == 0o600

    rows = ended_jobs(cluster, report["case_id"], 5)
    names = {name.rsplit("-", 1)[-1] for _, name, _ in rows}
    assert names == {"interpret", "beams", "convert"}
    assert len({job.split("_")[0] for job, _, _ in rows}) == 3
    assert {state for _, _, state in rows} == {"COMPLETED"}
    patient = pydicom.dcmread(next(folder.rglob("RP*.dcm"))).PatientID
    queue = cluster.ssh("sacct -n -P -X -o JobName%80,Comment%80,WorkDir%120 -S now-1hour").stdout
    assert patient not in queue
    assert patient not in cluster.ssh(f"find /home/mqi/{config.parent.name}").stdout

    again = mqi(config, "submit", str(folder), "--wait")
    assert again.returncode == 0
    assert len(ended_jobs(cluster, report["case_id"], 5)) == 5
    listed = json.loads(mqi(config, "status", "--json").stdout)
    assert [case["status"] for case in listed["cases"]] == ["completed"]


def test_a_failed_beam_is_named_and_the_others_come_home(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P002", "--beams", "3", "--layers", "2")
    numbers = sorted(
        int(line.split(",")[1])
        for info in folder.rglob("PlanInfo.txt")
        for line in info.read_text().splitlines()
        if line.startswith("DICOM_BEAM_NUMBER")
    )
    cluster.fault(numbers[1], "exit 7")
    done = mqi(config, "submit", str(folder), "--wait")
    assert done.returncode == 3, done.stderr + done.stdout

    report = shown(config, str(folder))
    assert report["status"] == "partial"
    assert [beam["status"] for beam in report["beams"]] == ["completed", "failed", "completed"]
    failed = report["beams"][1]
    assert failed["number"] == numbers[1]
    assert failed["exit_code"] == 7
    assert len(report["results"]) == 2
    assert f"beam {numbers[1]}" in done.stdout
    assert str(failed["slurm_id"]) in done.stdout
    assert "last lines of" in done.stdout
    logs = mqi(config, "logs", str(folder), "--beam", str(numbers[1]))
    assert logs.returncode == 0
    assert "engine" in logs.stdout


@pytest.mark.parametrize("fault", ["nan", "half", "wrong-size", "other-beam"])
def test_a_wrong_dose_is_never_delivered(cluster: Cluster, config: Path, fault: str) -> None:
    folder = sample(config, f"P-{fault}", "--beams", "2", "--layers", "2")
    report_before = mqi(config, "render", str(folder))
    assert report_before.returncode == 0, report_before.stderr
    numbers = sorted(
        int(line.split(",")[1])
        for info in folder.rglob("PlanInfo.txt")
        for line in info.read_text().splitlines()
        if line.startswith("DICOM_BEAM_NUMBER")
    )
    cluster.fault(numbers[0], fault)
    done = mqi(config, "submit", str(folder), "--wait")
    assert done.returncode == 3, done.stderr + done.stdout
    report = shown(config, str(folder))
    assert [beam["status"] for beam in report["beams"]] == ["failed", "completed"]
    assert len(report["results"]) == 1


def test_submit_returns_when_the_chain_stands_and_takes_it_up_again(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P003", "--beams", "1", "--layers", "2")
    first = mqi(config, "submit", str(folder))
    assert first.returncode == 0, first.stderr
    report = shown(config, str(folder))
    assert (report["status"], report["submission"]) == ("processing", "standing")
    last = mqi(config, "submit", str(folder), "--wait")
    assert last.returncode == 0, last.stderr
    assert len(ended_jobs(cluster, report["case_id"], 3)) == 3


def test_an_odd_folder_name_is_data_and_never_run(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P 4'\"$(touch pwned);ü", "--beams", "1", "--layers", "1")
    done = mqi(config, "submit", str(folder), "--wait")
    assert done.returncode == 0, done.stderr
    assert list(config.parent.rglob("pwned")) == []
    assert cluster.ssh("find /home/mqi -name 'pwned*'").stdout == ""


def test_the_wheel_submits_from_a_clean_environment(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, ROOT],
        check=True,
        capture_output=True,
    )
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=True)
    python = clean / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    # Dependencies come from the locked environment; our own package from the wheel alone.
    (own,) = clean.glob("lib/python*/site-packages")
    (own / "zz-dependencies.pth").write_text(f"{next(Path(sys.prefix).glob('lib/python*/site-packages'))}\n")
    found = subprocess.run(
        [python, "-c", "import mqi_hpc; print(mqi_hpc.__file__)"], check=True, capture_output=True, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert found.stdout.startswith(str(clean))

    program = clean / "bin" / "mqi-hpc"
    folder = config.parent / "cases" / "P005"
    assert mqi(config, "sample-case", str(folder), "--beams", "1", program=program).returncode == 0
    rendered = mqi(config, "render", str(folder), "--out", str(tmp_path / "out"), program=program)
    assert rendered.returncode == 0, rendered.stderr
    assert (tmp_path / "out" / "submit.sh").is_file()
    done = mqi(config, "submit", str(folder), "--wait", program=program)
    assert done.returncode == 0, done.stderr


def test_what_is_on_the_cluster_is_private_and_verifies(cluster: Cluster, config: Path) -> None:
    folder = sample(config, "P006", "--beams", "1", "--layers", "1")
    assert mqi(config, "submit", str(folder), "--wait").returncode == 0
    workspace = f"/home/mqi/{config.parent.name}"
    loose = cluster.ssh(f"find {workspace} -perm /077 ! -type l").stdout
    assert loose == ""
    key = shown(config, str(folder))["case_id"]
    check = cluster.ssh(f"cd {workspace}/{key}/input && sha256sum -c --strict --quiet MANIFEST.sha256")
    assert check.returncode == 0, check.stdout + check.stderr
    ours = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.ptn"))
    theirs = cluster.ssh(f"cd {workspace}/{key}/input && grep ptn MANIFEST.sha256").stdout.split()[::2]
    assert sorted(theirs) == ours
