"""A beam's ParentDir, as every fork of the engine finds its way in it: plan/ and log/<field>/<layers>.

Public forks take the (BeamNumber-1)-th entry of the sorted log folder, newer ones look for the beam's
name; empty folders that sort before any name let both rules find the same one.
"""

from __future__ import annotations

from pathlib import Path
from typing import List

from mqi_hpc.records.chain import ChainBeam
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import PLAN

MOST_PADDING = 10_000
LOG, PLAN_FOLDER = "log", "plan"


def padding(count: int) -> List[str]:
    """Return `count` names, sorted, that sort before any name of letters, digits, `_` and `-`.

    They hold no letter and no digit, so none matches a beam's name.

    >>> padding(3)
    ['!!', '!#', '#!']
    """
    width = max(count - 1, 1).bit_length()
    return [format(n, f"0{width}b").replace("0", "!").replace("1", "#") for n in range(count)]


def field_folders(beam: ChainBeam) -> List[str]:
    """Return the entries of log/, sorted; the last is the beam's own, and the BeamNumber-th."""
    if beam.number > MOST_PADDING:
        raise FormatError(
            f"beam number {beam.number} is above {MOST_PADDING}, which the engine's log folder cannot serve"
        )
    if "/" in beam.log_folder or beam.log_folder.encode() <= b"#~":
        raise FormatError(
            f"log folder {beam.log_folder!r} of beam {beam.number} is no name the engine can find"
        )
    return [*padding(beam.number - 1), beam.log_folder]


def layer_name(number: int, energy: float, layers: int) -> str:
    """Return a layer's file name; names sort as layers do, and hold the energy between `_` and `M`.

    >>> layer_name(3, 160.0, 12)
    '03_160.00MeV.csv'
    """
    return f"{number:0{max(2, len(str(layers)))}d}_{energy:.2f}MeV.csv"


def layer_paths(beam: ChainBeam) -> List[str]:
    """Return the paths of a beam's layer files below its ParentDir, in order."""
    layers = len(beam.energies)
    return [
        f"{LOG}/{beam.log_folder}/{layer_name(n, energy, layers)}"
        for n, energy in enumerate(beam.energies, 1)
    ]


def check_parent(folder: Path, beam: ChainBeam) -> None:
    """Raise FormatError unless a ParentDir holds this beam's fields and layers and nothing else."""
    wanted = {
        "": [LOG, PLAN_FOLDER],
        PLAN_FOLDER: [PLAN],
        LOG: field_folders(beam),
        f"{LOG}/{beam.log_folder}": [path.rpartition("/")[2] for path in layer_paths(beam)],
    }
    for name, entries in wanted.items():
        found = sorted(path.name for path in (folder / name).iterdir())
        if found != entries:
            odd = sorted(set(found) ^ set(entries))
            raise FormatError(
                f"{name or 'the ParentDir'} of beam {beam.number} is not as interpret makes it: "
                f"{', '.join(odd[:5])}"
            )
