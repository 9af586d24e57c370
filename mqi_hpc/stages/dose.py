"""The engine's raw dose: found by its name, read once, and held against what a dose must be."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, List

from mqi_hpc.records.chain import ChainBeam, Grid
from mqi_hpc.records.layout import safe_name
from mqi_hpc.stages.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIX = "_Dose.raw"


@dataclass(frozen=True)
class Dose:
    """A dose in Gy, shape (nz, ny, nx), with what a record says of it."""

    values: NDArray[np.float64]
    bytes: int
    sha256: str
    minimum: float
    maximum: float
    total: float


def find_dose(folder: Path, beam: ChainBeam) -> Path:
    """Return the path of the one dose there is; raises StageError for none, several, or another beam's."""
    found: List[str] = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIX))
    if len(found) != 1:
        what = f"{len(found)} doses: {', '.join(found[:5])}" if found else _without(folder)
        raise StageError(f"the engine exited with 0 and wrote {what}")
    names = "|".join(re.escape(name) for name in (beam.name, safe_name(beam.name)))
    if re.match(rf"(?:{names})_[0-9]+{re.escape(SUFFIX)}\Z", found[0]) is None:
        raise StageError(f"the engine wrote {found[0]}, which is not the dose of beam {beam.name!r}")
    path = folder / found[0]
    if path.is_symlink() or not path.is_file():
        raise StageError(f"{found[0]} is no regular file")
    return path


def _without(folder: Path) -> str:
    others = sorted(path.name for path in folder.iterdir())
    return f"no *{SUFFIX}" + (f", but {', '.join(others[:5])}" if others else "")


def read_dose(path: Path, grid: Grid) -> Dose:
    """Return the dose in a raw file (float64 little-endian, x fastest); raises StageError if it is none."""
    import numpy as np

    nx, ny, nz = grid.size
    name = path.name
    wanted = 8 * nx * ny * nz
    size = path.stat().st_size
    if size != wanted:
        raise StageError(f"{name} has {size} bytes, a grid of {nx} x {ny} x {nz} voxels has {wanted}")
    raw = np.fromfile(path, dtype="<f8")
    if raw.nbytes != wanted:
        raise StageError(f"{name} was changed while it was read")
    digest = hashlib.sha256(raw.data).hexdigest()
    values = raw.astype(np.float64, copy=False).reshape(nz, ny, nx)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise StageError(f"{name} holds {bad} voxels that are NaN or infinite")
    with np.errstate(over="ignore"):
        minimum, maximum, total = float(values.min()), float(values.max()), float(values.sum())
    if minimum < 0:
        raise StageError(f"{name} holds a negative dose, {minimum:g} Gy")
    if not total > 0:
        raise StageError(f"{name} holds no dose: every voxel is 0")
    if not np.isfinite(total):
        raise StageError(f"{name}: the sum of its voxels is beyond any number")
    return Dose(values=values, bytes=wanted, sha256=digest, minimum=minimum, maximum=maximum, total=total)
