"""A small file that others read while it is written again and again: they see the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Put `data` in the place of `path`, with exactly `mode`; a missing folder is made, 0700. Raises OSError.

    Only one process may write a path at a time: its own lock sees to that. Nothing is synced: after a power
    cut nobody misses this file.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One name, so that no end by force leaves more than one behind; its ending is no .prom.
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
