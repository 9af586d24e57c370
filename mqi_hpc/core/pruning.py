"""What pruning says and leaves behind: marks on a case, answers of the cluster, fates of delivered files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import Case

PRUNED = "pruned"
"""Key of Case.metadata: {name of a field of Pruned: ISO 8601, UTC}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """When a case was pruned (ISO 8601, UTC), None: it was not.

    `remote_begun`, `local_begun`: a removal was begun and its end is not recorded. `remote_open`: of a
    removal before the present one it is not known whether the folder has gone.
    """

    remote: str | None = None
    remote_begun: str | None = None
    remote_open: str | None = None
    local: str | None = None
    local_begun: str | None = None


def pruned(case: Case) -> Pruned:
    """Return what was pruned of a case."""
    marks = case.metadata.get(PRUNED, {})
    return Pruned(**{name: marks.get(name) for name in Pruned.__dataclass_fields__})


def marked(case: Case, **changes: str | None) -> Case:
    """Return the case with marks of pruning set, or taken off (None)."""
    marks = {**case.metadata.get(PRUNED, {}), **changes}
    kept = {name: at for name, at in marks.items() if at is not None}
    rest = {name: value for name, value in case.metadata.items() if name != PRUNED}
    return case.evolve(metadata={**rest, PRUNED: kept} if kept else rest)


def require_remote(case: Case, wish: str) -> None:
    """Raise ProcessingError where what `wish` ("resubmit", "fetch") needs on the cluster was pruned."""
    found = pruned(case)
    if found.remote is not None:
        raise ProcessingError(
            f"{wish} is not possible: the case's folder on the cluster was pruned on {found.remote[:10]}",
            where=f"case {case.label}",
            fix=f"Results that came home before are listed by `mqi-hpc show {case.case_id}`",
        )
    if found.remote_begun is not None:
        raise ProcessingError(
            f"{wish} is not possible: the removal of the case's folder on the cluster was begun on"
            f" {found.remote_begun[:10]}, and how it ended is not known",
            where=f"case {case.label}",
            fix=f"`mqi-hpc prune {case.case_id} --remote --yes` brings it to its end",
        )


@dataclass(frozen=True, slots=True)
class DeliveredFile:
    """A file that a download wrote: absolute path, and bytes and SHA-256 where they are known."""

    path: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneAnswer:
    """What the cluster says of a Prune.

    `outcome`: removed, gone (was not there), kept (nothing was touched) or left (out of the way, and not
    wholly removed). `bytes` is what the folder took, None where it was not measured in time. `swept` are
    leavings of other, interrupted prunes that were removed as well.
    """

    outcome: Literal["removed", "gone", "kept", "left"]
    why: str = ""
    bytes: int | None = None
    swept: int = 0

    def encode(self) -> str:
        """Return the answer as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> PruneAnswer:
        """Return the answer in `text`, as `encode` made it."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class LocalFate:
    """What became, or would become, of a delivered file.

    `fate`: removed, gone (it was not there), left (it is not what was delivered, or cannot be known to be:
    a person's) or failed (the system refused; try again).
    """

    file: DeliveredFile
    fate: Literal["removed", "gone", "left", "failed"]
    why: str = ""
