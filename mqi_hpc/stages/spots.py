"""A layer's log in numbers: raw samples in, millimetres and counts out, and the text the engine reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqi_hpc.records.chain import Calibration
from mqi_hpc.records.delivery import BEAM_ON, ROW_BYTES, ROW_WORDS
from mqi_hpc.records.form import FormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Raw = NDArray[np.uint16]
    Samples = NDArray[np.float64]

X, Y, DOSE1, FLAGS = 0, 1, 4, 7
"""Words of a row."""


def decode(content: bytes, name: str) -> Raw:
    """Return the rows of a .ptn, shape (rows, 8); raises FormatError where it is empty or cut off."""
    import numpy as np

    if not content or len(content) % ROW_BYTES:
        raise FormatError(f"{name} has {len(content)} bytes: empty, or its last row is cut off")
    return np.frombuffer(content, dtype=">u2").astype(np.uint16).reshape(-1, ROW_WORDS)


def beam_on(raw: Raw) -> NDArray[np.bool_]:
    """Return for each row whether the beam was on, as its flag says."""
    on: NDArray[np.bool_] = (raw[:, FLAGS] & BEAM_ON) != 0
    return on


def calibrate(raw: Raw, keep: NDArray[np.bool_], calibration: Calibration, dose1_range: str) -> Samples:
    """Return time (ms), x (mm), y (mm), count of the rows to keep, shape (kept, 4).

    Raises FormatError for a DOSE1_RANGE the machine's calibration does not know.
    """
    import numpy as np

    factor = calibration.dose1_factors.get(dose1_range)
    if factor is None:
        known = ", ".join(sorted(calibration.dose1_factors))
        raise FormatError(
            f"DOSE1_RANGE {dose1_range!r:.40} is unknown to machine {calibration.machine} (known: {known}); "
            "add it to machines.<name>.dose1_factors"
        )
    rows = np.flatnonzero(keep)
    kept = raw[rows].astype(np.float64)
    return np.column_stack(
        (
            rows * calibration.row_period_ms,
            (kept[:, X] - calibration.x_offset) * calibration.x_gain,
            (kept[:, Y] - calibration.y_offset) * calibration.y_gain,
            np.rint(kept[:, DOSE1] * factor),
        )
    )


def format_samples(samples: Samples, dialect: str) -> bytes:
    """Return the samples as the engine reads them: `time_ms,x_mm,y_mm,count`.

    Dialect "rows" is a row a sample, ended by CR LF; "flat" is all of them in one line, joined by commas.
    """
    rows = [f"{t:.6f},{x:.6f},{y:.6f},{n:.0f}" for t, x, y, n in samples.tolist()]
    if dialect == "flat":
        return ",".join(rows).encode()
    return "".join(row + "\r\n" for row in rows).encode()
