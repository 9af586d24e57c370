"""Uploads and downloads behind one name (the specification's TransferExecutor)."""

from __future__ import annotations

import json
from pathlib import Path

from mqi_hpc.core.effects import Completion, Download, Survey, Upload
from mqi_hpc.infrastructure.executors.download import Downloader
from mqi_hpc.infrastructure.executors.shell import Shell
from mqi_hpc.infrastructure.executors.survey import Surveyor
from mqi_hpc.infrastructure.executors.upload import Uploader


class TransferExecutor:
    """Moves cases to the cluster and results home; idempotent in both directions.

    `workspace` is absolute on the cluster, `results` here; `min_free_bytes` holds on both sides; `timeout`
    (s) bounds a command and a transfer that stands still.
    """

    def __init__(
        self,
        shell: Shell,
        *,
        workspace: str,
        instance: str,
        results: Path,
        min_free_bytes: float,
        timeout: float,
    ) -> None:
        self._uploader = Uploader(
            shell, workspace=workspace, instance=instance, min_free_bytes=min_free_bytes, timeout=timeout
        )
        self._surveyor = Surveyor(shell, workspace=workspace, instance=instance, timeout=timeout)
        self._downloader = Downloader(shell, results=results, min_free_bytes=min_free_bytes, timeout=timeout)

    def upload(self, effect: Upload) -> Completion:
        """Return a completion with {"files", "bytes", "sent_files", "sent_bytes"} as JSON, or raise."""
        return Completion(effect=effect, output=json.dumps(self._uploader.upload(effect)))

    def download(self, effect: Download) -> Completion:
        """Return a completion with {"files": [paths], "logs": {remote: path}} as JSON, or raise."""
        return Completion(effect=effect, output=json.dumps(self._downloader.download(effect)))

    def survey(self, effect: Survey) -> Completion:
        """Return a completion with what the case's folder holds (CaseRemains), or raise."""
        return self._surveyor.survey(effect)
