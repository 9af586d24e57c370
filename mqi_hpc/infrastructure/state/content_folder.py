"""Bytes too many for a JSON file: a folder beside it, each content once, named by its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mqi_hpc.core.errors import StateError
from mqi_hpc.infrastructure.state.publish import replacing
from mqi_hpc.infrastructure.state.state_manager import in_words


class ContentFolder:
    """Contents that lie in files; rows hold their digests (32 bytes)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, content: bytes) -> bytes:
        """Return the digest of a content, durable from now on; raises StateError where it cannot be."""
        digest = hashlib.sha256(content)
        path = self._folder / digest.hexdigest()
        with in_words(path):
            if not (path.exists() and path.read_bytes() == content):
                with replacing(path) as fresh:
                    fresh.write_bytes(content)
        return digest.digest()

    def take(self, held: bytes) -> bytes:
        """Return the content of a digest; raises StateError where it is gone or damaged."""
        path = self._folder / held.hex()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StateError(
                f"a file rendered for a job cannot be read: {error.strerror}", where=str(path), fix=_FIX
            ) from error
        if hashlib.sha256(content).digest() != held:
            raise StateError("a file rendered for a job is damaged", where=str(path), fix=_FIX)
        return content


_FIX = "Bring it back from a backup: it belongs to the state file beside its folder"
