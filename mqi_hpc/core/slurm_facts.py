"""What Slurm says of itself, read: settings, partitions and their nodes, times, generic resources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

SEPARATOR = "\x1f"
SINFO_FORMAT = SEPARATOR.join(("%P", "%a", "%l", "%G", "%D", "%T"))
"""Partition (the default one with a *), its state, its time limit, generic resources, nodes, their state."""

_SETTING = re.compile(r"\s*([A-Za-z][A-Za-z0-9_\[\]]*)\s*= (.*)")
_AS_OF = re.compile(r"Configuration data as of (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?\Z")
_GRES = re.compile(r"([A-Za-z][\w.-]*)(?::([A-Za-z0-9][\w.+-]*))??(?::([0-9]+)[KMGTP]?)?(?:\([^()]*\))*\Z")
_AWAY = ("down", "drain", "fail", "maint", "unknown", "inval", "no_respond", "reboot")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWish:
    """What a stage asks of Slurm, as configured; `gres` only where it asks for one."""

    stage: str
    partition: str | None
    time: str
    gres: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes of one partition that are alike: their generic resources, state and number."""

    gres: str
    state: str
    nodes: int

    @property
    def away(self) -> bool:
        """Whether they take no jobs now."""
        return any(word in self.state.lower() for word in _AWAY) or self.state.endswith(("*", "$", "@", "^"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition as sinfo shows it."""

    name: str
    default: bool
    state: str
    limit: str
    groups: tuple[NodeGroup, ...]


def parse_config(text: str) -> dict[str, str]:
    """Return the settings of `scontrol show config`; lines that are none are passed over."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        if match := _SETTING.match(line):
            found.setdefault(match[1], match[2].strip())
    return found


def parse_partitions(text: str) -> dict[str, Partition]:
    """Return the partitions that sinfo shows in SINFO_FORMAT; lines that are none are passed over."""
    found: dict[str, Partition] = {}
    for line in text.split("\n"):
        words = line.split(SEPARATOR)
        if len(words) != 6 or not words[0] or not re.fullmatch(r"[0-9]{1,9}", words[4]):
            continue
        name = words[0].removesuffix("*")
        group = NodeGroup(gres=words[3], state=words[5], nodes=int(words[4]))
        known = found.get(name)
        found[name] = Partition(
            name=name,
            default=words[0].endswith("*"),
            state=words[1],
            limit=words[2],
            groups=(*(known.groups if known else ()), group),
        )
    return found


def seconds(text: str) -> float | None:
    """Return a Slurm time in seconds, infinity for "infinite", None where it is none.

    M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.
    """
    if text.lower() in ("infinite", "unlimited"):
        return float("inf")
    match = _TIME.match(text.strip())
    if match is None or len(text) > 40:
        return None
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, left = (*parts, 0, 0)[:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + left
    if len(parts) == 3:
        return parts[0] * 3600 + parts[1] * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


def offers(have: str, want: str) -> bool:
    """Whether a node with the generic resources `have` ("gpu:a100:2(S:0-1)") can give `want` ("gpu:1")."""
    return all(_covers(have, one) for one in want.split(","))


def _covers(have: str, want: str) -> bool:
    name, kind, count = _gres(want)
    total = 0
    for entry in re.split(r",(?![^(]*\))", have):
        one, its_kind, number = _gres(entry)
        if one == name and kind in ("", its_kind):
            total += number
    return bool(name) and total >= count


def _gres(text: str) -> tuple[str, str, int]:
    match = _GRES.match(text.strip())
    if match is None or text.startswith("("):
        return "", "", 0
    return match[1], match[2] or "", int(match[3] or 1)


def number(text: str) -> int | None:
    """Return a whole number, which Slurm may have given a unit ("300 sec"); None where it is none."""
    match = re.match(r"([0-9]{1,9})(?: sec)?\Z", text)
    return int(match[1]) if match else None


def told_at(text: str) -> float | None:
    """Return when slurmctld gave its settings, by its own clock (UTC epoch s); None where it does not say."""
    match = _AS_OF.search(text)
    try:
        return datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp() if match else None
    except ValueError:
        return None
