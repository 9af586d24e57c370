"""Upload, download and prune on the simulated file system, with production's checks and its errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from posixpath import basename, dirname

from mqi_hpc.core.adoption import CaseRemains, JobRemains
from mqi_hpc.core.effects import Download, Prune, ResultFile, Survey, Upload
from mqi_hpc.core.errors import (
    ConfigurationError,
    ConnectionError,
    IntegrityError,
    ProcessingError,
    ResourceError,
)
from mqi_hpc.core.pruning import PruneAnswer
from mqi_hpc.infrastructure.executors.files import check_own, read_registered
from mqi_hpc.infrastructure.executors.upload import INPUT, JOB_FOLDERS, FolderTaken, WorkspaceRefused
from mqi_hpc.records.layout import (
    CHAIN,
    MANIFEST,
    STAGES,
    SUBMIT_SCRIPT,
    WITHDRAWN,
    is_job,
    is_key,
    receipt,
    script,
)
from mqi_hpc.records.manifest import format_manifest, parse_manifest
from tests.support.simulation.filesystem import FileSystem, Stored
from tests.support.simulation.jobs import LIVE

LOG_TAIL = 64 * 1024


class Transfers:
    """Moves files between a case folder here, the cluster, and the results folder here.

    `results` None: nothing is written here, the paths are made up. `read_sources`: input files are read and
    checked; else their registered sizes and digests are believed, as no such folder need be there.
    """

    def __init__(
        self,
        files: FileSystem,
        *,
        workspace: str,
        instance: str,
        results: Path | None,
        read_sources: bool,
        min_free_bytes: float = 0.0,
    ) -> None:
        self._files = files
        self._workspace = workspace
        self._instance = instance
        self._results = results
        self._read_sources = read_sources
        self._min_free = min_free_bytes

    def upload(self, effect: Upload) -> str:
        """Bring input and job; return production's answer (JSON), or raise its errors."""
        key = basename(dirname(effect.input_folder))
        job = basename(effect.job_folder)
        fits = effect.input_folder == f"{self._workspace}/{key}/{INPUT}" and dirname(
            effect.job_folder
        ) == dirname(effect.input_folder)
        if not (is_key(key) and is_job(job) and fits):
            raise ProcessingError(
                f"{effect.input_folder} and {effect.job_folder} are not of one case in {self._workspace}"
            )
        self._own()
        inputs = {file.remote: Stored(file.bytes, file.sha256, None) for file in effect.inputs}
        jobs = {name: Stored.of(data) for name, data in effect.files.items()}
        size = sum(stored.size for stored in (*inputs.values(), *jobs.values()))
        self._check_taken(effect, jobs)
        sent = [
            (folder, part)
            for folder, part in ((effect.input_folder, inputs), (effect.job_folder, jobs))
            if self._wanted(folder, part)
        ]
        if self._files.free_bytes < self._min_free + size:
            raise ResourceError("too little space is free on the cluster", where=self._workspace)
        if self._read_sources and any(folder == effect.input_folder for folder, _ in sent):
            for file in effect.inputs:
                for _ in read_registered(effect.source, file):
                    pass
        for folder, part in sent:
            self._put(folder, part)
        return json.dumps(
            {
                "files": len(inputs) + len(jobs),
                "bytes": size,
                "sent_files": sum(len(part) for _, part in sent),
                "sent_bytes": sum(stored.size for _, part in sent for stored in part.values()),
            }
        )

    def download(self, effect: Download) -> str:
        """Bring results and log tails home; return production's answer (JSON), or raise its errors."""
        if effect.results and not self._files.is_folder(effect.job_folder):
            self._gone(effect.job_folder)
        files = [self._fetch(effect, result) for result in effect.results]
        logs: dict[str, str] = {}
        digests: dict[str, list[object]] = {}
        for log in effect.logs:
            content = self._files.read(f"{effect.job_folder}/{check_own(log)}")
            if content is not None:
                tail = content[-LOG_TAIL:]
                logs[log] = self._keep(f"{effect.folder}/logs/{basename(log)}", tail)
                digests[logs[log]] = [len(tail), hashlib.sha256(tail).hexdigest()]
        return json.dumps({"files": files, "logs": logs, "digests": digests})

    def prune(self, effect: Prune, shown: Callable[[], Iterable[tuple[str, str]]]) -> PruneAnswer:
        """Remove a case's folder, unless Slurm shows an unfinished job of it; raises production's errors.

        `shown` are (state, name) of the user's jobs.
        """
        key = effect.case_id
        if not is_key(key) or effect.folder != f"{self._workspace}/{key}":
            raise ProcessingError(f"{effect.folder!r} is not the folder of case {key!r}; nothing was removed")
        owner = (self._files.read(f"{self._workspace}/.owner") or b"").decode().strip()
        if owner != self._instance:
            return PruneAnswer(outcome="kept", why=f"the workspace belongs to another installation ({owner})")
        if not self._files.exists(effect.folder):
            return PruneAnswer(outcome="gone")
        for word, name in shown():
            if word in LIVE and name.startswith(f"mqi-{self._instance}-{key}-"):
                return PruneAnswer(outcome="kept", why=f"Slurm shows {name} as {word}")
        size = sum(stored.size for _, stored in self._files.walk(effect.folder))
        self._files.remove(effect.folder)
        return PruneAnswer(outcome="removed", bytes=size)

    def _own(self) -> None:
        path = f"{self._workspace}/.owner"
        self._files.publish(path, f"{self._instance}\n".encode())
        owner = (self._files.read(path) or b"").decode().strip()
        if owner != self._instance:
            raise WorkspaceRefused(
                f"the workspace belongs to another installation ({owner}), "
                f"not to this one ({self._instance})",
                where=path,
            )

    def _check_taken(self, effect: Upload, part: dict[str, Stored]) -> None:
        folder, job = effect.job_folder, basename(effect.job_folder)
        later = [
            name
            for name in self._files.names(dirname(folder))
            if is_job(name) and int(name[1:]) > int(job[1:])
        ]
        manifest = self._files.read(f"{folder}/{MANIFEST}")
        if later or (manifest is not None and manifest != _manifest(part)):
            raise FolderTaken(f"{', '.join(later) or job} is there already", where=folder)

    def survey(self, effect: Survey) -> CaseRemains:
        """Return what a case's folder holds, or raise production's errors."""
        if not self._files.exists(f"{self._workspace}/.owner"):
            raise ConnectionError("the workspace cannot be entered", where=self._workspace)
        manifest = self._files.read(f"{effect.folder}/{INPUT}/{MANIFEST}")
        return CaseRemains(
            input_digest=None if manifest is None else hashlib.sha256(manifest).hexdigest(),
            jobs=tuple(
                self._remains(effect.folder, name)
                for name in self._files.names(effect.folder)
                if is_job(name)
            ),
        )

    def _remains(self, case_folder: str, name: str) -> JobRemains:
        folder = f"{case_folder}/{name}"
        manifest = self._files.read(f"{folder}/{MANIFEST}")
        if manifest is None:
            return JobRemains(name=name, fault=f"it has no {MANIFEST}")
        for path, digest in parse_manifest(manifest.decode()).items():
            found = self._files.stat(f"{folder}/{path}")
            if found is None or found.sha256 != digest:
                return JobRemains(name=name, fault=f"its files are not what {MANIFEST} says: {path}")
        names = self._files.names(folder)
        wanted = {MANIFEST, CHAIN, SUBMIT_SCRIPT, *map(script, STAGES)}
        receipts = {stage: self._files.read(f"{folder}/{receipt(stage)}") for stage in STAGES}
        return JobRemains(
            name=name,
            files={one: self._files.read(f"{folder}/{one}") or b"" for one in names if one in wanted},
            receipts={stage: text.decode().strip() for stage, text in receipts.items() if text is not None},
            claims=tuple(one for one in names if one.startswith("claim.")),
            withdrawn=WITHDRAWN in names,
        )

    def _wanted(self, folder: str, part: dict[str, Stored]) -> bool:
        if not self._files.names(folder):
            return True
        manifest = self._files.read(f"{folder}/{MANIFEST}")
        if manifest != _manifest(part):
            raise IntegrityError(f"a folder with another {MANIFEST} stands there already", where=folder)
        for name, stored in part.items():
            found = self._files.stat(f"{folder}/{name}")
            if found is None or found.sha256 != stored.sha256:
                raise IntegrityError(f"files there are not what {MANIFEST} says: {name}", where=folder)
        return False

    def _put(self, folder: str, part: dict[str, Stored]) -> None:
        for name, stored in part.items():
            self._files.write(f"{folder}/{check_own(name)}", stored)
        self._files.write(f"{folder}/{MANIFEST}", _manifest(part))
        if basename(folder) != INPUT:
            for name in JOB_FOLDERS:
                self._files.make_folder(f"{folder}/{name}")

    def _gone(self, folder: str) -> None:
        if not self._files.exists(f"{self._workspace}/.owner"):
            raise ConnectionError("the workspace cannot be entered", where=self._workspace)
        raise IntegrityError("the folder of the job is not there any more", where=folder)

    def _fetch(self, effect: Download, result: ResultFile) -> str:
        path = f"{effect.job_folder}/{check_own(result.remote)}"
        stored = self._files.stat(path)
        if stored is None:
            raise IntegrityError(f"result {result.remote} is not there", where=path)
        if (stored.size, stored.sha256) != (result.bytes, result.sha256):
            raise IntegrityError(
                f"result {result.remote} has SHA-256 {stored.sha256}, its record says {result.sha256}",
                where=path,
                fix="It is not delivered. Look at the job's folder on the cluster; "
                "`mqi-hpc resubmit --convert-only` makes the results anew",
            )
        return self._keep(f"{effect.folder}/{check_own(result.local)}", stored.content or b"")

    def _keep(self, name: str, content: bytes) -> str:
        if self._results is None:
            return f"/results/{name}"
        path = self._results / name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise ConfigurationError(f"results cannot be written: {error}", where=str(path)) from error
        return str(path)


def _manifest(part: dict[str, Stored]) -> bytes:
    return format_manifest({name: stored.sha256 for name, stored in part.items()}).encode()
