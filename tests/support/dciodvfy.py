"""What dciodvfy (Debian: dicom3tools) says of an RT Dose.

Debian's dciodvfy aborts on every image of more than 16 bits, before it has checked anything: a run of the
file itself shows no error whatever is in it. So it is given a twin: all of the file but its pixels, which
are zeros of 16 bits; and it must name the object it recognised, which shows that it ran.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest

needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is missing"
)


def complaints(path: Path, scratch: Path) -> list[str]:
    """Return dciodvfy's lines that begin with Error."""
    dataset = pydicom.dcmread(path)
    dataset.PixelData = bytes(len(dataset.PixelData) // 2)
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    twin = scratch / f"twin-{path.name}"
    dataset.save_as(twin)
    done = subprocess.run(["dciodvfy", twin], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode in (0, 1), f"dciodvfy did not run: {lines}"
    assert "RTDose" in lines, f"dciodvfy did not recognise an RT Dose: {lines}"
    return [line for line in lines if line.startswith("Error")]
