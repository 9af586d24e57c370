"""Memory and time as Slurm's options write them, to numbers and back."""

from __future__ import annotations

_MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


def megabytes(text: str) -> int:
    """Return a memory size like 4G in MB, rounded up; without a unit it is in MB.

    >>> megabytes("4G"), megabytes("500"), megabytes("1500K")
    (4096, 500, 2)
    """
    number, unit = (text[:-1], text[-1]) if text[-1].isalpha() else (text, "M")
    return -int(-int(number) * _MEGABYTES[unit] // 1)


def memory_text(size: int) -> str:
    """Return MB as Slurm reads them.

    >>> memory_text(6144)
    '6144M'
    """
    return f"{size}M"


def seconds(text: str) -> int:
    """Return a time limit in seconds: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s.

    >>> [seconds(text) for text in ("90", "1:30", "01:00:00", "2-00", "1-02:03")]
    [5400, 90, 3600, 172800, 93780]
    """
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, secs = (*parts, 0, 0)[:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + secs
    if len(parts) == 1:
        return parts[0] * 60
    total = 0
    for part in parts:
        total = total * 60 + part
    return total


def time_text(total: int) -> str:
    """Return seconds as a time limit.

    >>> time_text(5400), time_text(93780)
    ('01:30:00', '1-02:03:00')
    """
    days, rest = divmod(total, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    clock = f"{hours:02d}:{minutes:02d}:{secs:02d}"
    return f"{days}-{clock}" if days else clock
