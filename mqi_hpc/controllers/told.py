"""What may be kept of a text that was meant for a person: its own words, no name of a folder or file."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_REST = re.compile(r"[:/'\"\\].*", re.DOTALL)
_PHASES = (
    "queued|starting|running|finishing|requeueing|suspended|held|settling|waiting|unreadable|unknown|"
    "done|failed|suspect|lost|cancelled|accepted"
)
# Our own words alone: a task and its phase, the ids of a chain that was submitted.
_OURS = re.compile(rf"(?:(?:beam [0-9]+|interpret|convert): (?:{_PHASES})|submitted: [a-z0-9 ,]+)(?![a-z])")
_MORE = "; `mqi-hpc status` and `show` tell more"


def without_names(text: str) -> str:
    """Return a text up to its first colon, with "..." for what stands in quotes.

    What is said of a task's phase, or of Slurm ids, is kept: these are words of ours.
    What comes from outside, and so may name a patient, stands in quotes or after a colon in all that is told.
    """
    if (ours := _OURS.match(text)) is not None:
        return text if ours.group() == text else f"{ours.group()}{_MORE}"
    words = _REST.sub("", _QUOTED.sub("...", text)).strip()
    return text if words == text else f"{words}{_MORE}"
