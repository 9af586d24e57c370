"""stages.pyz: the same bytes each time, whole, and able to run where mqi-hpc is not installed."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from mqi_hpc.infrastructure.slurm import archive
from mqi_hpc.infrastructure.slurm.archive import build_stages

ROOT = Path(__file__).resolve().parents[2]


def test_the_same_sources_give_the_same_bytes_in_another_process_folder_and_time_zone(tmp_path: Path) -> None:
    code = (
        "import hashlib; from mqi_hpc.infrastructure.slurm.archive import build_stages; "
        "print(hashlib.sha256(build_stages()).hexdigest())"
    )
    environ = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(build_stages()).hexdigest()


def test_it_holds_records_and_stages_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(build_stages())) as pyz:
        names = pyz.namelist()
        dates = {entry.date_time for entry in pyz.infolist()}
        text = pyz.read("mqi_hpc/records/chain.py")
    expected = {
        str(path.relative_to(ROOT))
        for folder in ("records", "stages")
        for path in (ROOT / "mqi_hpc" / folder).rglob("*.py")
    }
    assert set(names) == expected | {"__main__.py", "mqi_hpc/__init__.py"}
    assert names == sorted(names)
    assert dates == {(1980, 1, 1, 0, 0, 0)}
    assert text == (ROOT / "mqi_hpc/records/chain.py").read_bytes()


def test_what_is_no_source_stays_out(tmp_path: Path, monkeypatch: object) -> None:
    package = tmp_path / "stages"
    (package / "inner").mkdir(parents=True)
    (package / "__pycache__").mkdir()
    for name in ("a.py", "inner/b.py", "notes.txt", "__pycache__/a.py", "c.pyc"):
        (package / name).write_text("")
    assert dict(archive._python_files(package, "p")) == {"p/a.py": b"", "p/inner/b.py": b""}


def test_it_runs_where_mqi_hpc_is_not_installed(tmp_path: Path) -> None:
    pyz = tmp_path / "stages.pyz"
    pyz.write_bytes(build_stages())
    done = subprocess.run(
        [sys.executable, "-S", "-B", str(pyz), "interpret", "--job-dir", str(tmp_path / "gone")],
        cwd=tmp_path,
        env={"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    # Without site-packages, that is without numpy and pydicom: neither is needed to be turned away.
    assert done.returncode == 78
    assert done.stderr == "mqi-hpc interpret: the job's folder or its chain.json is gone\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stages.pyz"]
