"""Files on the workstation: read within their folder and checked, written by temporary name and rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mqi_hpc.core.errors import IntegrityError, LocalFolderError, ProcessingError
from mqi_hpc.core.models import InputFile
from mqi_hpc.infrastructure.executors.shell import CHUNK

BLOCK = 512
RECORD = 20 * BLOCK
PART = ".part"

_CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENXIO})


def check_relative(path: str) -> str:
    """Return `path` where it is a relative path without . and ..; raises ProcessingError else."""
    if {"", ".", ".."} & set(path.split("/")) or "\0" in path:
        raise ProcessingError(f"{path!r} is no path that stays in its folder")
    return path


def check_own(path: str) -> str:
    """Return `path` where it is relative and holds no control character; raises ProcessingError else."""
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ProcessingError(f"{path!r} holds a control character")
    return check_relative(path)


def read_registered(source: str, file: InputFile) -> Iterator[bytes]:
    """Yield the bytes of a case's file; raises IntegrityError where they are not those registered.

    No symbolic link is followed below `source`, and only a regular file is read. The check is complete
    with the last block: use nothing of it before that.
    """
    where = os.fsencode(f"{source}/{file.local}").decode("utf-8", "replace")
    digest = hashlib.sha256()
    left = file.bytes
    try:
        _require_folder(source)
        descriptor = _open_below(source, file.local)
    except OSError as error:
        if error.errno not in _CHANGED:
            # The file server, not the file: whoever asked tries again.
            raise OSError(error.errno, error.strerror, where) from error
        raise IntegrityError(
            f"cannot be read as it was registered: {error.strerror}",
            where=where,
            fix="Put the file back, or submit the case anew from a folder of its own",
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise IntegrityError("is no regular file any more", where=where)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while block := stream.read(CHUNK):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            yield block
    if left or digest.hexdigest() != file.sha256:
        size = "" if not left else f" (it had {file.bytes} bytes, now {status.st_size})"
        raise IntegrityError(
            f"has changed since the case was registered{size}",
            where=where,
            fix="Nothing of it is used. Put the file back, or submit the changed case from a new folder",
        )


def _require_folder(source: str) -> None:
    """Raise LocalFolderError where a case's folder is not there, or empty: a share may not be mounted."""
    try:
        with os.scandir(source) as found:
            why = "" if next(found, None) is not None else "is empty"
    except OSError as error:
        if error.errno not in _CHANGED:
            raise
        why = f"cannot be entered: {error.strerror}"
    if why:
        raise LocalFolderError(
            f"the case's folder {why}",
            where=source,
            fix="Is its share mounted? Where it is gone for good, `mqi-hpc cancel` ends the case",
        )


def _open_below(source: str, relative: str) -> int:
    *folders, name = check_relative(relative).split("/")
    here = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = inner
        # Without O_NONBLOCK a FIFO in a case folder would hold the transfer for ever.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def tar_folder(name: str) -> bytes:
    """Return the tar header of a folder."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode = 0o700
    return info.tobuf(tarfile.PAX_FORMAT)


def tar_file(name: str, size: int, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a file as a tar member; `blocks` must come to `size` bytes, or the archive is cut off there."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o600
    yield info.tobuf(tarfile.PAX_FORMAT)
    yield from blocks
    yield b"\0" * (-size % BLOCK)


def tar_end() -> bytes:
    """Return the end of a tar archive."""
    return b"\0" * RECORD


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folders(root: Path, relative: str) -> Path:
    """Return `root`/`relative`, made where missing, for its owner alone, through no symbolic link."""
    here = root
    here.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in check_own(relative).split("/"):
        here = here / part
        if here.is_symlink():
            raise ProcessingError(f"{here} is a symbolic link; results go into real folders only")
        if not here.is_dir():
            here.mkdir(mode=0o700)
            sync_folder(here.parent)
    return here


class Arrival:
    """A file on its way into a folder: under a temporary name until `keep`."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self._digest = hashlib.sha256()
        self.bytes = 0
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=PART, dir=target.parent)
        self._part = Path(name)
        self._stream: BinaryIO = os.fdopen(descriptor, "wb")

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._stream.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was written so far."""
        return self._digest.hexdigest()

    def keep(self) -> None:
        """Make the file durable under its own name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._part.replace(self.target)
        sync_folder(self.target.parent)

    def drop(self) -> None:
        """Forget the file; harmless after `keep`."""
        with contextlib.suppress(OSError):
            self._stream.close()
        self._part.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """Remove what an earlier attempt left under temporary names."""
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)
