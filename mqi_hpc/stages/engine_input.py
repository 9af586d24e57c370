"""The engine's input file: the places of its folders filled in, and held against chain.json.

The engine's grammar: key, one space, value; the first line of a key counts, case does not; `#` starts a
comment anywhere; a line of blanks alone, or a key without a value, aborts it.
"""

from __future__ import annotations

import re
from typing import Dict, List, Tuple

from mqi_hpc.records.chain import ChainBeam, Grid
from mqi_hpc.stages.errors import StageError

PARENT, OUTPUT = "@PARENT@", "@OUTPUT@"


def render(text: str, parent: str, output: str) -> str:
    """Return the input with the folders' paths in it; raises StageError where they cannot stand there."""
    for place, path in ((PARENT, parent), (OUTPUT, output)):
        if "#" in path or path != path.strip() or not path or not path.isprintable():
            raise StageError(
                f"the engine cannot be told the folder {path!r}: its input file takes no '#', no control "
                "character and no outer blank; choose another paths.remote_workspace"
            )
        if place not in text:
            raise StageError(f"the template of the engine's input has no {place}; see slurm.templates")
    paths = {PARENT: parent, OUTPUT: output}
    return re.sub(f"{PARENT}|{OUTPUT}", lambda match: paths[match[0]], text)


def parse(text: str) -> Dict[str, str]:
    """Return value by key in lower case, as the engine reads it; raises StageError for what aborts it."""
    values: Dict[str, str] = {}
    if "\r" in text:
        raise StageError("the engine's input has CR LF line ends, which abort it")
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.partition("#")[0]
        if line and not line.strip():
            raise StageError(f"line {number} of the engine's input is of blanks alone, which aborts it")
        if line != line.strip() or not line.isprintable():
            # The engine trims line and key before it compares: such a line could outrank ours unseen.
            raise StageError(f"line {number} of the engine's input has outer blanks or a control character")
        if " " not in bare:
            continue
        key, _, value = bare.partition(" ")
        if not value.strip():
            raise StageError(f"line {number} of the engine's input has {key!r:.80} without a value")
        values.setdefault(key.lower(), value.strip())
    return values


def check(values: Dict[str, str], beam: ChainBeam, grid: Grid, parent: str, output: str) -> None:
    """Raise StageError unless the input is this beam's: number, seed, folders and grid are chain.json's.

    Number and folders must be there; what else a site's template leaves out is not asked for.
    """
    wanted: List[Tuple[str, object]] = [
        ("BeamNumbers", beam.number),
        ("ParentDir", parent),
        ("OutputDir", output),
        ("RandomSeed", beam.seed),
    ]
    for n, axis in enumerate("XYZ"):
        wanted += [
            (f"PhantomDim{axis}", grid.size[n]),
            (f"PhantomUnit{axis}", grid.spacing[n]),
            (f"PhantomPosition{axis}", grid.position[n]),
        ]
    for place, (key, should) in enumerate(wanted):
        text = values.get(key.lower())
        if text is None and place > 2:
            continue
        if text is None or not _same(text, should):
            raise StageError(f"the engine's input says {key} {text}, chain.json {should}")


def _same(text: str, should: object) -> bool:
    if isinstance(should, str):
        return text == should
    try:
        return float(text) == should
    except ValueError:
        return False
