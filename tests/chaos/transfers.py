"""Transfers under attack: bytes flip on their way, a host sees old folders, two bring the same at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from mqi_hpc.core.effects import Download, ResultFile, Upload
from mqi_hpc.core.errors import ConnectionError, IntegrityError, MQIError
from mqi_hpc.infrastructure.executors.files import check_own
from mqi_hpc.infrastructure.executors.upload import INPUT, JOB_FOLDERS
from mqi_hpc.records.layout import MANIFEST
from mqi_hpc.records.manifest import format_manifest
from tests.chaos.files import StaleView, WatchedFiles, unlike
from tests.chaos.ledger import Ledger
from tests.support.simulation.filesystem import Stored
from tests.support.simulation.transfers import Transfers


class HurtTransfers(Transfers):
    """Both directions take a temporary name, look at SHA-256, and rename; `flip` spoils what is sent next.

    `delivering` is told of each file that comes home under its own name.
    """

    def __init__(self, files: WatchedFiles, ledger: Ledger, *, workspace: str, instance: str) -> None:
        super().__init__(files, workspace=workspace, instance=instance, results=None, read_sources=False)
        self._watched = files
        self._ledger = ledger
        self._parts = 0
        self.flip = False
        self.cut = False
        self.delivering: Callable[[Download, str, bytes], None] = lambda *_: None
        self.home: dict[str, bytes] = {}

    def stale(self, lag: float) -> HurtTransfers:
        """Return the same transfers by a host whose cache is `lag` seconds old."""
        other = HurtTransfers(self._watched, self._ledger, workspace=self._workspace, instance=self._instance)
        other._files = StaleView(self._watched, lag)
        other.delivering, other.home = self.delivering, self.home
        return other

    def half(self, effect: Upload) -> None:
        """Do an upload up to its middle: nothing of it stands under its own name."""
        self.cut = True
        try:
            self.upload(effect)
        except (MQIError, OSError):
            return
        finally:
            self.cut = False

    def _put(self, folder: str, part: dict[str, Stored]) -> None:
        self._parts += 1
        temporary = f"{folder}.part-{self._parts}"
        for name, stored in part.items():
            self._files.write(f"{temporary}/{check_own(name)}", self._on_its_way(stored))
            if self.cut:
                raise ConnectionError("the upload broke off")
        self._files.write(f"{temporary}/{MANIFEST}", manifest_of(part))
        if folder.rpartition("/")[2] != INPUT:
            for name in JOB_FOLDERS:
                self._files.make_folder(f"{temporary}/{name}")
        self._settle(temporary, folder)

    def _settle(self, temporary: str, folder: str) -> None:
        """Verify what has come, and give it its name."""
        self._verify(temporary)
        self._rename(temporary, folder)

    def _verify(self, folder: str) -> None:
        wrong = unlike(self._watched, folder)
        if wrong:
            self._files.remove(folder)
            raise ConnectionError(f"{wrong} did not come as it was sent")

    def _rename(self, temporary: str, folder: str) -> None:
        if not self._watched.names(folder):
            self._watched.remove(folder)
            self._files.rename(temporary, folder)
            return
        # Another upload was faster.
        same = self._watched.read(f"{folder}/{MANIFEST}") == self._watched.read(f"{temporary}/{MANIFEST}")
        self._files.remove(temporary)
        if not same:
            # The script's mv fails, and so does its look at what is there: the next upload looks again.
            raise ConnectionError(f"{folder} could not be given its name")

    def _on_its_way(self, stored: Stored) -> Stored:
        if not self.flip:
            return stored
        self.flip = False
        return replace(stored, sha256=hashlib.sha256(stored.sha256.encode()).hexdigest())

    def _fetch(self, effect: Download, result: ResultFile) -> str:
        path = f"{effect.job_folder}/{check_own(result.remote)}"
        name = f"{effect.folder}/{check_own(result.local)}"
        stored = self._files.stat(path)
        if stored is None or stored.content is None:
            raise IntegrityError(f"result {result.remote} is not there", where=path)
        came = stored.content
        if self.flip:
            self.flip = False
            self._ledger.hurt(effect.case_id, "bits of a result flipped on their way")
            came = bytes([came[0] ^ 1]) + came[1:]
        if not self.is_whole(came, stored, result):
            raise IntegrityError(f"result {result.remote} is not what its record says", where=path)
        if self.home.setdefault(name, came) != came:
            raise IntegrityError("another file has this result's name, and it is not replaced", where=name)
        self.delivering(effect, name, came)
        return f"/results/{name}"

    def is_whole(self, came: bytes, stored: Stored, result: ResultFile) -> bool:
        """Whether the bytes that came are those that convert's record lists. `stored` is the file there."""
        return (len(came), hashlib.sha256(came).hexdigest()) == (result.bytes, result.sha256)


def manifest_of(part: dict[str, Stored]) -> bytes:
    """Return the manifest of a folder."""
    return format_manifest({name: stored.sha256 for name, stored in part.items()}).encode()
