"""Writing so that it lasts: private, synced, and published by a link that the first writer wins."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Optional


def make_folder(path: Path) -> None:
    """Make a folder, its parents too, with mode 0700; each new name is synced."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(0o700)
    except FileExistsError:
        # Another task of this job was faster: all beams share dose/, all tasks share status/.
        if not path.is_dir():
            raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems know no such thing for folders, and keep names in order by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file durable that another program wrote."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet, mode 0600, and sync it. The folder is the caller's to sync."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def append_line(path: Path, line: bytes) -> None:
    """Append a line, whole or not at all, and sync it. There is one writer."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        before = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def read_whole(path: Path) -> Optional[bytes]:
    """Return the content of a file, None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def publish(content: bytes, target: Path) -> bool:
    """Put `content` at `target` unless anything is there; return whether it is ours that stands there.

    The content is written and synced beside it, read back, and linked: no reader ever sees half of it, and
    nothing is ever overwritten. Raises OSError where that could not be tried.
    """
    descriptor, name = tempfile.mkstemp(prefix=".publish-", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if read_whole(temporary) != content:
            raise OSError(errno.EIO, "written and read back differ", name)
        won = _link(temporary, target, content)
    finally:
        temporary.unlink()
    sync_folder(target.parent)
    return won


def _link(temporary: Path, target: Path, content: bytes) -> bool:
    try:
        os.link(temporary, target)
    except OSError as error:
        # A link whose answer got lost is tried again by NFS and then fails: our own words tell.
        if read_whole(target) == content:
            return True
        if isinstance(error, FileExistsError):
            return False
        raise
    return True
