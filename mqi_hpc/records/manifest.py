"""MANIFEST.sha256 and digests of parts of it: lines `sha256  path`, as sha256sum writes them."""

from __future__ import annotations

import hashlib
import re
from typing import Dict, Iterable, Mapping

from mqi_hpc.records.form import FormatError, is_relative

_LINE = re.compile(r"([0-9a-f]{64})  (.+)\Z")


def format_manifest(digests: Mapping[str, str]) -> str:
    """Return the manifest of `digests` (SHA-256 by path), sorted by path.

    Raises FormatError where it could not be read back: a digest or a path of another form.
    """
    text = "".join(f"{digests[path]}  {path}\n" for path in sorted(digests))
    if parse_manifest(text) != digests:
        raise FormatError("the manifest does not read back as what was written")
    return text


def parse_manifest(text: str) -> Dict[str, str]:
    """Return SHA-256 by path; raises FormatError for any line of another form, a repeat, or a cut end."""
    if text and not text.endswith("\n"):
        raise FormatError("the manifest is cut off: its last line does not end")
    digests: Dict[str, str] = {}
    for line in text.split("\n")[:-1]:
        match = _LINE.match(line)
        if match is None or not is_relative(match[2]) or match[2] in digests:
            raise FormatError(f"manifest line {line!r:.200}: not `sha256  relative path`, or a path twice")
        digests[match[2]] = match[1]
    return digests


def subset_digest(digests: Mapping[str, str], prefixes: Iterable[str]) -> str:
    """Return one SHA-256 over the manifest lines of `prefixes`: files, or folders, which end in `/`.

    A beam's input digest is that of ("plan.dcm", "beam_<n>/"). Raises FormatError where one of them is
    not in the manifest.
    """
    chosen: Dict[str, str] = {}
    for prefix in prefixes:
        folder = prefix.endswith("/")
        part = {p: d for p, d in digests.items() if (p.startswith(prefix) if folder else p == prefix)}
        if not part:
            raise FormatError(f"the manifest has no {prefix}")
        chosen.update(part)
    return hashlib.sha256(format_manifest(chosen).encode()).hexdigest()
