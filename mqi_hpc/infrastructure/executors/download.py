"""Brings results and log tails home: checked against their digests, under their names only when whole."""

from __future__ import annotations

import base64
import binascii
import errno
import shutil
from collections.abc import Sequence
from pathlib import Path
from posixpath import basename
from typing import Any

from mqi_hpc.core.effects import Download, ResultFile
from mqi_hpc.core.errors import (
    ConnectionError,
    IntegrityError,
    LocalFolderError,
    ProcessingError,
    ResourceError,
)
from mqi_hpc.infrastructure.executors.files import (
    Arrival,
    check_own,
    make_folders,
    remove_parts,
    sha256_of,
)
from mqi_hpc.infrastructure.executors.script import MARK, Answer, failure, new_nonce, run_script
from mqi_hpc.infrastructure.executors.shell import Shell
from mqi_hpc.infrastructure.executors.upload import LEAST_BYTES_PER_SECOND

LOG_TAIL = 64 * 1024
LOGS = "logs"

_UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT})

_ENTER = r"""
job=$1
shift
# Gone is said only where the workspace itself is there: an unmounted disk is no fault of a case.
if ! out=$(cd -- "$job" 2>&1); then
  [ ! -e "$job" ] && [ -e "${job%/*/*}/.owner" ] || fail 'entering the folder of the job' "$out"
  say GONE
  say END
  exit 0
fi
cd -- "$job" || exit 9
"""

_FETCH = rf"""{_ENTER}
# Each file as its number, its size, and that many bytes.
number=0
for file; do
  if out=$(heard stat -Lc '%F:%s' -- "./$file"); then
    case $out in
      regular*:*) say FILE "$number" "${{out##*:}}"; cat -- "./$file" || exit 9 ;;
      *) say ABSENT "$number" ;;
    esac
  else
    case $out in
      *"No such file"*|*"Not a directory"*) say ABSENT "$number" ;;
      *) fail 'reading a result' "$out" ;;
    esac
  fi
  number=$((number + 1))
done
say END
"""

_TAILS = rf"""{_ENTER}
# The end of each log that is there.
bytes=$1
shift
number=0
for file; do
  if [ -f "./$file" ]; then
    say LOG "$number" "$(tail -c "$bytes" -- "./$file" | base64 | tr -d '\n')"
  fi
  number=$((number + 1))
done
say END
"""


class Downloader:
    """Downloads into one results folder, which it never leaves and where it never replaces a result."""

    def __init__(self, shell: Shell, *, results: Path, min_free_bytes: float, timeout: float) -> None:
        self._shell = shell
        self._root = results
        self._min_free = min_free_bytes
        self._timeout = timeout

    def download(self, effect: Download) -> dict[str, Any]:
        """Return {"files": absolute paths of all results, "logs": {remote path: absolute path}, "digests"}.

        The digests are [bytes, SHA-256] of each log by its absolute path: what prune may remove.

        A result that is here already is not fetched again; a log that does not exist is left out. Raises
        IntegrityError where a result is not what its record says or another file has its name,
        ResourceError where the disk here is too full.
        """
        try:
            folder = make_folders(self._root, effect.folder)
            remove_parts(folder)
            targets = [folder / _name(result) for result in effect.results]
            if len(set(targets)) != len(targets):
                raise IntegrityError(
                    f"two results of job {effect.job_id} have the same name", where=str(folder)
                )
            wanted = [
                (result, target)
                for result, target in zip(effect.results, targets, strict=True)
                if not _present(result, target)
            ]
            if wanted:
                self._check_space(sum(result.bytes for result, _ in wanted))
                self._fetch(effect.job_folder, wanted)
            logs = self._tails(effect, folder) if effect.logs else {}
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise LocalFolderError(
                f"results cannot be written: {error}",
                where=str(self._root),
                fix="Check paths.local_results, its permissions, and what is in the way there",
            ) from error
        digests = {path: [Path(path).stat().st_size, sha256_of(Path(path))] for path in logs.values()}
        return {"files": [str(target) for target in targets], "logs": logs, "digests": digests}

    def _check_space(self, size: int) -> None:
        free = shutil.disk_usage(self._root).free
        if free < size + self._min_free:
            raise ResourceError(
                f"{free / 1e9:.1f} GB are free here, {(size + self._min_free) / 1e9:.1f} GB are needed",
                where=str(self._root),
                fix="Make room, or lower resources.min_disk_space_gb",
            )

    def _fetch(self, job_folder: str, wanted: Sequence[tuple[ResultFile, Path]]) -> None:
        nonce = new_nonce()
        receiver = _Receiver(nonce, wanted, f"{self._shell.target}:{job_folder}")
        size = sum(result.bytes for result, _ in wanted)
        try:
            run_script(
                self._shell,
                _FETCH,
                [job_folder, *(check_own(result.remote) for result, _ in wanted)],
                timeout=self._timeout + size / LEAST_BYTES_PER_SECOND,
                sink=receiver.feed,
                stall=self._timeout,
                nonce=nonce,
            )
            receiver.finish()
        finally:
            receiver.close()

    def _tails(self, effect: Download, folder: Path) -> dict[str, str]:
        logs: dict[str, str] = {}
        if len({basename(log) for log in effect.logs}) != len(effect.logs):
            raise ProcessingError(f"two logs of job {effect.job_id} have the same name")
        answers = run_script(
            self._shell,
            _TAILS,
            [effect.job_folder, str(LOG_TAIL), *(check_own(log) for log in effect.logs)],
            timeout=self._timeout,
            cap=len(effect.logs) * 2 * LOG_TAIL + LOG_TAIL,
        )
        home = make_folders(folder, LOGS)
        remove_parts(home)
        for answer in answers:
            if answer.word != "LOG":
                continue
            remote = effect.logs[int(answer.rest[0])]
            arrival = Arrival(home / basename(remote))
            try:
                arrival.write(_decoded(answer.rest[1] if len(answer.rest) > 1 else "", remote))
                arrival.keep()
            finally:
                arrival.drop()
            logs[remote] = str(arrival.target)
        return logs


class _Receiver:
    """Takes the stream of _FETCH apart: files by their announced size, noise around them left out."""

    def __init__(self, nonce: str, wanted: Sequence[tuple[ResultFile, Path]], where: str) -> None:
        self._mark = b"\n" + MARK + nonce.encode() + b" "
        self._wanted = wanted
        self._where = where
        self._buffer = bytearray()
        self._left = 0
        self._arrival: Arrival | None = None
        self._next = 0
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream; raises IntegrityError as soon as a file is seen to be wrong."""
        self._buffer += data
        while self._step():
            pass

    def finish(self) -> None:
        """Raise ConnectionError unless the stream came to its end."""
        if not self._ended:
            raise ConnectionError("the download broke off before its end", where=self._where)

    def close(self) -> None:
        """Forget a file that did not become whole."""
        if self._arrival is not None:
            self._arrival.drop()

    def _step(self) -> bool:
        if self._arrival is not None:
            taken = bytes(self._buffer[: self._left])
            del self._buffer[: self._left]
            self._arrival.write(taken)
            self._left -= len(taken)
            if self._left:
                return False
            self._settle(self._arrival)
            return True
        start = self._buffer.find(self._mark)
        if start < 0:
            # Noise; but its end may be the beginning of a mark.
            del self._buffer[: -len(self._mark)]
            return False
        end = self._buffer.find(b"\n", start + len(self._mark))
        if end < 0:
            return False
        words = self._buffer[start + len(self._mark) : end].decode("ascii", "replace").split(" ")
        # The line's own end may begin the next mark, unless bytes of a file follow it.
        del self._buffer[: end + 1 if words[0] == "FILE" else end]
        self._line(words)
        return True

    def _line(self, words: list[str]) -> None:
        if words[0] == "END":
            if self._next != len(self._wanted):
                raise ConnectionError("the cluster sent fewer files than asked for", where=self._where)
            self._ended = True
            return
        if words[0] == "GONE":
            raise IntegrityError("the folder of the job is not there any more", where=self._where)
        if words[0] == "FAIL":
            raise failure(Answer(words[0], tuple(words[1:])), self._where)
        if self._next >= len(self._wanted) or words[1:2] != [str(self._next)]:
            raise ConnectionError(f"the cluster sent {words[:3]} out of order", where=self._where)
        result, target = self._wanted[self._next]
        if words[0] == "ABSENT":
            raise self._wrong(result, "is not there")
        if int(words[2]) != result.bytes:
            raise self._wrong(result, f"has {words[2]} bytes, its record says {result.bytes}")
        self._left = result.bytes
        self._arrival = Arrival(target)

    def _settle(self, arrival: Arrival) -> None:
        result, target = self._wanted[self._next]
        if arrival.hexdigest() != result.sha256:
            raise self._wrong(result, f"has SHA-256 {arrival.hexdigest()}, its record says {result.sha256}")
        if not _present(result, target):
            arrival.keep()
        arrival.drop()
        self._arrival = None
        self._next += 1

    def _wrong(self, result: ResultFile, what: str) -> IntegrityError:
        return IntegrityError(
            f"result {result.remote} {what}",
            where=self._where,
            fix="It is not delivered. Look at the job's folder on the cluster; "
            "`mqi-hpc resubmit --convert-only` makes the results anew",
        )


def _name(result: ResultFile) -> str:
    name = check_own(result.local)
    if "/" in name or name.startswith(".") or name == LOGS:
        raise IntegrityError(f"{name!r} is no name for a result", where=result.remote)
    return name


def _present(result: ResultFile, target: Path) -> bool:
    """Whether the result is here already; raises IntegrityError where another file has its name."""
    if not target.is_symlink() and not target.exists():
        return False
    regular = target.is_file() and not target.is_symlink()
    if regular and target.stat().st_size == result.bytes and sha256_of(target) == result.sha256:
        return True
    raise IntegrityError(
        "another file has this result's name, and it is not replaced",
        where=str(target),
        fix="Move it away, then submit the folder again: the results are fetched anew",
    )


def _decoded(text: str, remote: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConnectionError(f"the tail of {remote} came broken: {error}") from error
