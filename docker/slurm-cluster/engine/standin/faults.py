"""What the engine was told to do wrong for a beam: one line in a file named by its number."""

from __future__ import annotations

import os
from pathlib import Path

_FOLDER = "/var/lib/mqi-engine/faults"


def fault_of(number: int) -> str:
    """The fault of a DICOM beam number: `exit CODE`, nan, half, wrong-size, other-beam, hang, or ''."""
    try:
        return (Path(os.environ.get("MQI_ENGINE_FAULTS", _FOLDER)) / str(number)).read_text().strip()
    except OSError:
        return ""
