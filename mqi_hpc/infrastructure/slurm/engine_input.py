"""The grammar of the engine's input, as its parser really reads it: what would be misread is refused.

`Key value` a line, split at the first space; `#` starts a comment anywhere; the first of two equal keys
counts, in any case of letters; a line of blanks or an empty value makes it abort.
"""

from __future__ import annotations

from mqi_hpc.core.errors import ConfigurationError


def check_engine_input(text: str, name: str) -> None:
    """Raise ConfigurationError where the engine would read something else than stands there."""
    seen: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        key, space, value = line.partition(" ")
        wrong = ""
        if "#" in line:
            wrong = "'#' starts a comment anywhere in a line"
        elif not line.isprintable():
            wrong = "it holds a control character"
        elif not key or not space or not value.strip():
            wrong = "`Key value` is expected, with one blank after the key"
        elif key.lower() in seen:
            wrong = f"{key} stands in it twice, and the engine takes the first"
        if wrong:
            raise ConfigurationError(
                f"the engine would misread {line!r}: {wrong}",
                where=f"{name}:{number}",
                fix="Look at moqui.extra, and at the site's moqui_tps.in.j2",
            )
        seen.add(key.lower())
