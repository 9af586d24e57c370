"""What may be kept of a text that was meant for a person: its own words, no name of a folder or file."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_REST = re.compile(r"[:/'\"\\].*", re.DOTALL)
_MORE = "; `mqi-hpc status` and `show` tell more"


def without_names(text: str) -> str:
    """Return a text up to its first colon, with "..." for what stands in quotes.

    What comes from outside, and so may name a patient, stands in quotes or after a colon in all that is told.
    """
    words = _REST.sub("", _QUOTED.sub("...", text)).strip()
    return text if words == text else f"{words}{_MORE}"
