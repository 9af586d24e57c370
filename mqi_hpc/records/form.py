"""Strict reading of JSON objects: every key there, none too many, each of its kind."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Callable, Dict, List, Sequence

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")


class FormatError(ValueError):
    """Text that has not the form it must have."""


def dumps(value: Dict[str, Any]) -> str:
    """Return canonical JSON: sorted keys, no blanks, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def loads(text: str, what: str) -> Form:
    """Return the JSON object in `text` as a Form; raises FormatError where it is none."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON: {error}") from error
    return Form(value, what)


def _once(pairs: Sequence[Any]) -> Dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands in it twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def is_relative(path: str) -> bool:
    """Whether a path is relative, does not leave its folder, and can be written on a line of its own."""
    parts = path.split("/")
    return not ({"", ".", ".."} & set(parts)) and path.isprintable() and "\\" not in path


class Form:
    """One JSON object being read: each getter takes its key away, `end` refuses what is left."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise FormatError(f"{what} is no JSON object but {type(value).__name__}")
        self._rest = dict(value)
        self.what = what

    def names(self) -> List[str]:
        """Return the keys nobody took yet."""
        return list(self._rest)

    def take(self, key: str) -> Any:
        """Return the value of `key`, of any kind."""
        if key not in self._rest:
            raise FormatError(f"{self.what}: {key} is missing")
        return self._rest.pop(key)

    def text(self, key: str) -> str:
        """Return a string that UTF-8 can hold."""
        value = self.take(key)
        if not isinstance(value, str) or _SURROGATE.search(value):
            raise self.wrong(key, "a string", value)
        return value

    def digest(self, key: str) -> str:
        """Return a SHA-256 in lower-case hexadecimal."""
        value = self.text(key)
        if not _SHA256.match(value):
            raise self.wrong(key, "a SHA-256", value)
        return value

    def path(self, key: str) -> str:
        """Return a relative path that does not leave its folder."""
        value = self.text(key)
        if not is_relative(value):
            raise self.wrong(key, "a relative path without . and .. and backslash", value)
        return value

    def integer(self, key: str, least: int = 0) -> int:
        """Return an integer of at least `least`."""
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, f"an integer from {least} on", value)
        return value

    def number(self, key: str) -> float:
        """Return a finite number; an integer that no float holds exactly is refused, not rounded."""
        value = self.take(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.wrong(key, "a finite number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number != value:
            raise self.wrong(key, "a finite number", value)
        return number

    def flag(self, key: str) -> bool:
        """Return a truth value."""
        value = self.take(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def items(self, key: str) -> List[Any]:
        """Return a list."""
        value = self.take(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list", value)
        return value

    def mapping(self, key: str) -> Dict[str, Any]:
        """Return an object as it is."""
        value = self.take(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "an object", value)
        return value

    def form(self, key: str) -> Form:
        """Return an object as a Form."""
        return Form(self.take(key), f"{self.what}: {key}")

    def forms(self, key: str) -> List[Form]:
        """Return a list of objects as Forms."""
        return [Form(item, f"{self.what}: {key}[{n}]") for n, item in enumerate(self.items(key))]

    def numbers(self, key: str, count: int) -> List[float]:
        """Return a list of `count` finite numbers."""
        form = Form({str(n): item for n, item in enumerate(self.items(key))}, f"{self.what}: {key}")
        values = [form.number(str(n)) for n in range(count)]
        form.end()
        return values

    def floats(self, key: str) -> List[float]:
        """Return a list of finite numbers, of any length."""
        items = self.items(key)
        form = Form({str(n): item for n, item in enumerate(items)}, f"{self.what}: {key}")
        return [form.number(str(n)) for n in range(len(items))]

    def integers(self, key: str, least: int = 0) -> List[int]:
        """Return a list of integers of at least `least`."""
        items = self.items(key)
        form = Form({str(n): item for n, item in enumerate(items)}, f"{self.what}: {key}")
        return [form.integer(str(n), least) for n in range(len(items))]

    def texts(self, key: str) -> List[str]:
        """Return a list of strings."""
        items = self.items(key)
        form = Form({str(n): item for n, item in enumerate(items)}, f"{self.what}: {key}")
        return [form.text(str(n)) for n in range(len(items))]

    def optional(self, key: str, read: Callable[[str], Any]) -> Any:
        """Return None where the value is null, else what `read` makes of the key."""
        if key in self._rest and self._rest[key] is None:
            return self._rest.pop(key)
        return read(key)

    def end(self) -> None:
        """Refuse keys that nobody took."""
        if self._rest:
            raise FormatError(f"{self.what}: unknown keys {', '.join(sorted(self._rest))}")

    def wrong(self, key: str, wanted: str, value: Any) -> FormatError:
        """Return the error of a value that is not what it should be."""
        return FormatError(f"{self.what}: {key} should be {wanted}, not {value!r:.200}")
