"""moqui's input file as its parser reads it (base/mqi_file_handler.hpp)."""

from __future__ import annotations

import re


class Thrown(Exception):  # noqa: N818 - named as the real engine does it
    """What the real engine throws and nobody catches: it aborts with this message."""


_ATOI = re.compile(r"\s*([-+]?\d+)")
_BLANKS = " \t\n\r\f\v"


def _trimmed(text):
    """Text without outer blanks; one of blanks alone aborts, as trim_copy runs past its end."""
    if not text.strip(_BLANKS):
        raise Thrown("basic_string::substr: __pos (which is 18446744073709551615) > this->size()")
    return text.strip(_BLANKS)


class Parameters:
    """`Key value` lines: split at the first space, `#` comments, first match wins, unknown ignored."""

    def __init__(self, text: str) -> None:
        self._pairs = []
        for line in text.split("\n"):
            # Outer blanks go first, the comment after them: `Key # comment` is a key with an empty value.
            bare = _trimmed(line).split("#", 1)[0] if line else ""
            key, space, value = bare.partition(" ")
            if space and key:
                self._pairs.append((_trimmed(key).lower(), value))

    def text(self, key, default):
        """A string; an empty value aborts when it is read."""
        return next((_trimmed(value) for name, value in self._pairs if name == key.lower()), default)

    def integer(self, key, default):
        """An int by atoi: what is no number is 0."""
        value = self.text(key, None)
        if value is None:
            return default
        match = _ATOI.match(value)
        return int(match[1]) if match else 0

    def real(self, key, default):
        """A float by atof: what is no number is 0."""
        value = self.text(key, None)
        if value is None:
            return default
        match = re.match(r"\s*[-+]?(\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?)", value)
        return float(match[0]) if match else 0.0

    def flag(self, key, default):
        """A bool: "true" in any case, or a number that is not 0."""
        value = self.text(key, None)
        return default if value is None else value.lower() == "true" or self.integer(key, 0) != 0
