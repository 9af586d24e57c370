"""SHA-256 of files, and whether they are what a manifest or a record says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Dict

from mqi_hpc.records.chain import ChainBeam
from mqi_hpc.records.layout import MANIFEST, PLAN, beam_folder
from mqi_hpc.records.manifest import parse_manifest, subset_digest
from mqi_hpc.stages.errors import StageError

_CHUNK = 1 << 20


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(folder: Path, path: str, wanted: str, what: str) -> None:
    """Raise StageError unless `path` below `folder` has the SHA-256 `wanted`, as `what` lists it."""
    try:
        found = hash_file(folder / path)
    except FileNotFoundError as error:
        raise StageError(f"{path} is missing, {what} lists it; resubmit the case") from error
    if found != wanted:
        raise StageError(f"{path} is not the file {what} lists (its SHA-256 differs); resubmit the case")


def beam_input(input_folder: Path, beam: ChainBeam) -> Dict[str, str]:
    """Return SHA-256 by path of a beam's input files, plan included, below `input_folder`.

    Raises StageError where the manifest is not the one this beam was registered with.
    """
    try:
        with (input_folder / MANIFEST).open(encoding="utf-8", newline="") as file:
            digests = parse_manifest(file.read())
    except FileNotFoundError as error:
        raise StageError(
            f"input/{MANIFEST} is missing: the upload is not whole; resubmit the case"
        ) from error
    folder = beam_folder(beam.number) + "/"
    if subset_digest(digests, (PLAN, folder)) != beam.input_digest:
        raise StageError(
            f"the input of beam {beam.number} is not what chain.json was made for: input/{MANIFEST} has "
            "another digest for it; resubmit the case"
        )
    return {path: digest for path, digest in digests.items() if path == PLAN or path.startswith(folder)}
