"""What one run of submit.sh means for its chain: it stands, goes again, is refused, or is in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mqi_hpc.core.effects import Completion
from mqi_hpc.core.models import STAGES
from mqi_hpc.core.sbatch_errors import ErrorKind, classify
from mqi_hpc.core.submission import EXIT_AGAIN, EXIT_BURNT, EXIT_WITHDRAWN, SubmitReport

_WORDS = 300


class Fate(StrEnum):
    """STANDS: a receipt of each stage, head released. AGAIN: known not to be done whole, safe to run again.

    REFUSED: Slurm will never take it, or is not asked any more. DOUBT: what was submitted is not known.
    """

    STANDS = "stands"
    AGAIN = "again"
    REFUSED = "refused"
    DOUBT = "doubt"


@dataclass(frozen=True, slots=True)
class Meaning:
    """A fate, and why, in words for a person; `limit`: it waits until Slurm takes more jobs of ours."""

    fate: Fate
    why: str = ""
    limit: bool = False


def meaning(report: SubmitReport, completion: Completion, stages: Sequence[str] = STAGES) -> Meaning:
    """Return what a run that said `report` means for a job of `stages`.

    Only what is known not to have happened is sent again.
    """
    if completion.error is not None and not completion.uncertain:
        return Meaning(Fate.AGAIN, completion.error)
    found = _by_code(report, stages)
    if found is not None:
        return found
    if report.failed is not None and report.code is not None:
        return _sbatch_failed(report.failed.stage, report.failed.lines, report.failed.exit_code)
    return Meaning(Fate.DOUBT, _doubt(completion))


def _by_code(report: SubmitReport, stages: Sequence[str]) -> Meaning | None:
    """Return what the script's own exit code tells, None where it is for sbatch to say."""
    if report.code == 0 and set(report.receipts) == set(stages):
        return Meaning(Fate.STANDS)
    if report.code == EXIT_AGAIN:
        return Meaning(Fate.AGAIN, f"Slurm: {'; '.join(report.notes) or 'no answer'}")
    if report.code == EXIT_WITHDRAWN:
        return Meaning(Fate.REFUSED, "it was called off before: its folder bears the mark of that")
    if report.code == EXIT_BURNT and report.head is not None:
        return Meaning(Fate.DOUBT, f"the chain's head is not as its receipt says ({report.head})")
    return None


def _sbatch_failed(stage: str, lines: tuple[str, ...], exit_code: int) -> Meaning:
    error = classify(lines, exit_code)
    if error.kind is ErrorKind.UNKNOWN:
        return Meaning(Fate.DOUBT, f"sbatch of {stage}: {error.text}")
    if error.kind is ErrorKind.PERMANENT:
        return Meaning(Fate.REFUSED, f"Slurm refuses {stage}: {error.text}")
    return Meaning(Fate.AGAIN, f"Slurm: {error.text}", limit=error.kind is ErrorKind.BACKPRESSURE)


def _doubt(completion: Completion) -> str:
    if completion.error is not None:
        return f"the reply was lost: {completion.error}"
    words = " ".join(completion.output.split())[-_WORDS:]
    return f"submit.sh ended with {completion.exit_code}: {words or 'it said nothing'}"
