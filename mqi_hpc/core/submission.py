"""Pure parser of what submit.sh says: lines that bear its mark and nonce; all else is noise of the login."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mqi_hpc.core.models import STAGES
from mqi_hpc.core.observation import MARK, NotParsed

EXIT_AGAIN = 76
"""submit.sh's exit code where Slurm did not answer: nothing is in doubt, and it can be run again."""

EXIT_BURNT = 77
"""submit.sh's exit code where the head is not as the receipts say: this job's folder is used up."""

EXIT_WITHDRAWN = 78
"""submit.sh's exit code where its folder bears the mark that the job was called off."""

_RECEIPT = re.compile(r"(\S+) ([1-9][0-9]{0,9}) ([0-9]{1,15})\Z")
_CODE = re.compile(r"[0-9]{1,3}\Z")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A submission's receipt: Slurm job name, id, and the cluster's time (epoch s) when it was written."""

    name: str
    id: int
    time: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The sbatch that gave no id: which stage, its exit code, its words."""

    stage: str
    exit_code: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitReport:
    """What one run of submit.sh says. `code` (they are listed in it) None: it did not come to its end.

    `head`: why the chain's head cannot be built on, as the queue shows it.
    """

    receipts: dict[str, Receipt] = field(default_factory=dict)
    failed: Failed | None = None
    head: str | None = None
    code: int | None = None
    notes: tuple[str, ...] = ()


def parse_receipt(line: str) -> Receipt:
    """Return the receipt in a line `name id cluster-time`; raises NotParsed where it is none."""
    match = _RECEIPT.match(line.strip())
    if match is None:
        raise NotParsed(f"receipt {line!r:.200}: not `name id time`")
    return Receipt(match[1], int(match[2]), float(match[3]))


def parse_submit(output: str, nonce: str) -> SubmitReport:
    """Return what the lines with `nonce` say."""
    prefix = f"{MARK}{nonce} "
    receipts: dict[str, Receipt] = {}
    words: dict[str, list[str]] = {}
    failed: Failed | None = None
    head, code, notes = None, None, []
    # A last line without its end may be cut in the middle of a number.
    for line in output.split("\n")[:-1]:
        if not line.startswith(prefix):
            continue
        kind, _, rest = line[len(prefix) :].rstrip("\r").partition(" ")
        first, _, tail = rest.partition(" ")
        if kind == "RECEIPT" and first in STAGES:
            try:
                receipts[first] = parse_receipt(tail)
            except NotParsed as error:
                notes.append(str(error))
        elif kind == "SBATCH":
            words.setdefault(first, []).append(tail)
        elif kind == "FAILED" and _CODE.match(tail):
            failed = Failed(first, int(tail), tuple(words.get(first, [])))
        elif kind == "HEAD":
            head = rest
        elif kind == "DONE" and _CODE.match(rest):
            code = int(rest)
        elif kind == "NOTE":
            notes.append(rest)
    return SubmitReport(receipts=receipts, failed=failed, head=head, code=code, notes=tuple(notes))
