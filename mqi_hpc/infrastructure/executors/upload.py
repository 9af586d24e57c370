"""Brings a case's input and a job's folder to the cluster: sent once, verified there, published by rename."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from posixpath import basename, dirname

from mqi_hpc.core.effects import Upload
from mqi_hpc.core.errors import ConnectionError, IntegrityError, MQIError, ProcessingError, ResourceError
from mqi_hpc.infrastructure.executors.files import (
    check_own,
    read_registered,
    tar_end,
    tar_file,
    tar_folder,
)
from mqi_hpc.infrastructure.executors.script import Answer, decode_text, new_nonce, run_script
from mqi_hpc.infrastructure.executors.shell import Shell
from mqi_hpc.infrastructure.executors.upload_scripts import LOOK, SEND
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import MANIFEST, is_job, is_key
from mqi_hpc.records.manifest import format_manifest, parse_manifest

JOB_FOLDERS = ("status", "logs", "interpreted", "dose", "results")
INPUT = "input"
# The slowest link a transfer may have; below it the time limit ends the transfer.
LEAST_BYTES_PER_SECOND = 64 * 1024


class WorkspaceRefused(MQIError):  # noqa: N818 - as in core.errors
    """The remote workspace belongs to another installation: nothing may be written there."""


class FolderTaken(MQIError):  # noqa: N818 - as in core.errors
    """In the place of a job stands another of its case, or a later one, of which this store knows nothing."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A folder to be published: its files as (path, bytes, contents)."""

    name: str
    digests: dict[str, str]
    files: tuple[tuple[str, int, Callable[[], Iterator[bytes]]], ...]
    folders: tuple[str, ...]

    @property
    def manifest(self) -> bytes:
        return format_manifest(self.digests).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def size(self) -> int:
        return sum(size for _, size, _ in self.files)

    def tar(self, token: str) -> Iterator[bytes]:
        root = f"{self.name}.part-{token}"
        yield tar_folder(root)
        for folder in self.folders:
            yield tar_folder(f"{root}/{folder}")
        for path, size, contents in self.files:
            yield from tar_file(f"{root}/{path}", size, contents())
        yield from tar_file(f"{root}/{MANIFEST}", len(self.manifest), iter([self.manifest]))


class Uploader:
    """Uploads to one workspace, which belongs to `instance`."""

    def __init__(
        self, shell: Shell, *, workspace: str, instance: str, min_free_bytes: float, timeout: float
    ) -> None:
        self._shell = shell
        self._workspace = workspace
        self._instance = instance
        self._min_free = min_free_bytes
        self._timeout = timeout

    def upload(self, effect: Upload) -> dict[str, int]:
        """Bring what is missing; return how many files and bytes were sent, and how many there are.

        At most two commands: a look, and one that receives, verifies and publishes. Raises IntegrityError
        where bytes are not what they should be, ResourceError where space is short, WorkspaceRefused.
        """
        key = self._key(effect)
        parts = [_input_part(effect), _job_part(effect)]
        states = self._look(key, parts, sum(part.size for part in parts))
        missing = [part for part in parts if self._wanted(part, states, key)]
        if missing:
            self._send(key, missing)
        return {
            "files": sum(len(part.files) for part in parts),
            "bytes": sum(part.size for part in parts),
            "sent_files": sum(len(part.files) for part in missing),
            "sent_bytes": sum(part.size for part in missing),
        }

    def _key(self, effect: Upload) -> str:
        key = basename(dirname(effect.input_folder))
        folder = f"{self._workspace}/{key}"
        job = basename(effect.job_folder)
        fits = effect.input_folder == f"{folder}/{INPUT}" and effect.job_folder == f"{folder}/{job}"
        if not (is_key(key) and is_job(job) and fits):
            raise ProcessingError(
                f"{effect.input_folder} and {effect.job_folder} are not of one case in {self._workspace}"
            )
        return key

    def _look(self, key: str, parts: list[_Part], size: int) -> dict[str, Answer]:
        arguments = [self._workspace, key, self._instance]
        for part in parts:
            arguments += [part.name, part.digest, "closed" if part.name == INPUT else "open"]
        answers = run_script(self._shell, LOOK, arguments, timeout=self._limit(size))
        states = {answer.rest[0]: answer for answer in answers if answer.word == "STATE"}
        self._check_owner(next(a for a in answers if a.word == "OWNER"))
        self._check_taken(key, parts[1].name, states, [a.rest[0] for a in answers if a.word == "JOB"])
        wanted = self._min_free + sum(p.size for p in parts if states[p.name].rest[1] != "same")
        self._check_space(next(a for a in answers if a.word == "SPACE"), wanted)
        return states

    def _check_owner(self, answer: Answer) -> None:
        owner = decode_text(answer.rest[0]) if answer.rest else ""
        if owner != self._instance:
            raise WorkspaceRefused(
                f"the workspace belongs to another installation ({owner[:60] or 'unreadable'}), "
                f"not to this one ({self._instance})",
                where=f"{self._shell.target}:{self._workspace}/.owner",
                fix="Give this installation a paths.remote_workspace of its own; or, if it is this one's "
                "from before its state was lost: `mqi-hpc init --adopt --instance FILE`, a backup of its "
                ".instance",
            )

    def _check_taken(self, key: str, job: str, states: dict[str, Answer], there: list[str]) -> None:
        """Refuse to send a job where another has its name, or a later one is there: we do not know all."""
        later = [name for name in there if is_job(name) and int(name[1:]) > int(job[1:])]
        if later or states[job].rest[1] == "other":
            raise FolderTaken(
                f"{', '.join(later) or f'another {job}'} of this case is there, not known to the store",
                where=f"{self._shell.target}:{self._workspace}/{key}",
                fix="What is there is read, and gone on from where it fits the case",
            )

    def _check_space(self, answer: Answer, wanted: float) -> None:
        if not answer.rest or not answer.rest[0].isdigit():
            raise ConnectionError(
                "df did not tell the free space of the workspace",
                where=f"{self._shell.target}:{self._workspace}",
            )
        if over := decode_text(answer.rest[1]) if len(answer.rest) > 1 else "":
            # A small upload may still go through, and what the jobs write would be lost.
            raise ResourceError(
                f"over quota on the cluster: {' '.join(over.split())}",
                where=f"{self._shell.target}:{self._workspace}",
                fix="Remove files there, or ask for a larger quota",
            )
        free = int(answer.rest[0]) * 1024
        if free < wanted:
            raise ResourceError(
                f"{free / 1e9:.1f} GB are free on the cluster, {wanted / 1e9:.1f} GB are needed",
                where=f"{self._shell.target}:{self._workspace}",
                fix="Make room there, or lower resources.min_disk_space_gb",
            )

    def _wanted(self, part: _Part, states: dict[str, Answer], key: str) -> bool:
        """Whether a folder is to be sent; raises IntegrityError where another stands in its place."""
        _, state, *more = states[part.name].rest
        where = f"{self._shell.target}:{self._workspace}/{key}/{part.name}"
        if state == "same":
            return False
        if state in ("absent", "empty") or (state == "incomplete" and part.name == INPUT):
            return True
        said = decode_text(more[0]) if more else ""
        raise IntegrityError(
            {
                "other": f"a folder with another {MANIFEST} stands there already",
                "damaged": f"files there are not what {MANIFEST} says: {said}",
                "extra": f"it holds what {MANIFEST} does not list: {said}",
                "incomplete": f"a folder without {MANIFEST} stands there already",
                "link": "a symbolic link stands there",
            }.get(state, f"its state is {state!r}, which this program does not know"),
            where=where,
            fix="It is left as it is. Find out who changed it, move it away, and submit again",
        )

    def _send(self, key: str, parts: list[_Part]) -> None:
        token = new_nonce()
        arguments = [self._workspace, key, token]
        for part in parts:
            arguments += [part.name, part.digest]

        def stream() -> Iterator[bytes]:
            for part in parts:
                yield from part.tar(token)
            yield tar_end()

        answers = run_script(
            self._shell,
            SEND,
            arguments,
            timeout=self._limit(2 * sum(part.size for part in parts)),
            stdin=stream(),
            stall=self._timeout,
        )
        done = [answer.rest[0] for answer in answers if answer.word == "DONE"]
        if done != [part.name for part in parts]:
            raise ConnectionError(f"the upload ended early, with {done} in place", where=self._shell.target)

    def _limit(self, size: int) -> float:
        return self._timeout + size / LEAST_BYTES_PER_SECOND


def _input_part(effect: Upload) -> _Part:
    return _part(
        INPUT,
        {file.remote: file.sha256 for file in effect.inputs},
        tuple(
            (file.remote, file.bytes, partial(read_registered, effect.source, file)) for file in effect.inputs
        ),
        (),
    )


def _job_part(effect: Upload) -> _Part:
    return _part(
        basename(effect.job_folder),
        {name: hashlib.sha256(data).hexdigest() for name, data in effect.files.items()},
        tuple((name, len(data), partial(iter, [data])) for name, data in sorted(effect.files.items())),
        JOB_FOLDERS,
    )


def _part(
    name: str,
    digests: dict[str, str],
    files: tuple[tuple[str, int, Callable[[], Iterator[bytes]]], ...],
    folders: tuple[str, ...],
) -> _Part:
    part = _Part(name, digests, files, folders)
    for path in digests:
        check_own(path)
    try:
        parsed = parse_manifest(part.manifest.decode())
    except (FormatError, UnicodeError) as error:
        raise ProcessingError(f"the files of {name} cannot be listed in a manifest: {error}") from error
    if parsed != digests or len(files) != len(digests) or MANIFEST in digests or not digests:
        raise ProcessingError(f"the files of {name} have names that clash, or there are none")
    return part
