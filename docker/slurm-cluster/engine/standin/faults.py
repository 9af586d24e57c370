"""What the engine was told to do wrong for a beam: one line in a file named by its number."""

from __future__ import annotations

import os
import re
from pathlib import Path

_FOLDER = "/var/lib/mqi-engine/faults"
_KNOWN = re.compile(r"exit [0-9]+|nan|half|wrong-size|other-beam|hang")


def fault_of(number: int) -> str:
    """The fault of a DICOM beam number: `exit CODE`, nan, half, wrong-size, other-beam, hang, or ''.

    Anything else ends the program: a fault that is misspelt must not pass for a good run.
    """
    path = Path(os.environ.get("MQI_ENGINE_FAULTS", _FOLDER)) / str(number)
    try:
        fault = path.read_text().strip()
    except FileNotFoundError:
        return ""
    if _KNOWN.fullmatch(fault) is None:
        raise SystemExit(f"the stand-in engine knows no fault {fault!r} (in {path})")
    return fault
