"""export and import: the whole state of an installation as one JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from mqi_hpc.controllers.parts import Parts, SystemClock
from mqi_hpc.core.errors import ProcessingError, StateError
from mqi_hpc.infrastructure.config import AppConfig
from mqi_hpc.infrastructure.state import open_store, write_instance
from mqi_hpc.infrastructure.state.publish import first_to_publish
from mqi_hpc.services.archive_service import ImportSummary, export_state, exported_instance, import_state


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: the file, and how many cases and events it holds."""

    path: Path
    cases: int
    events: int


def export_to(config: AppConfig, path: Path) -> Exported:
    """Write the whole state to a new file, mode 0600: it holds the instance's secret.

    Works beside a running daemon: one committed state is read. Raises ProcessingError where the file is
    there already or cannot be written, StateError where the store cannot be read.
    """
    if path.exists():
        raise ProcessingError(f"{path} exists already", fix="Name a new file")
    parts = Parts(config)
    try:
        data = export_state(parts.store)
    finally:
        parts.close()
    try:
        with first_to_publish(path.absolute()) as fresh:
            fresh.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise ProcessingError(
            f"the export cannot be written: {error.strerror}",
            where=str(path),
            fix="Check space and permissions",
        ) from error
    return Exported(path.absolute(), len(data["cases"]), len(data["events"]))


def import_from(config: AppConfig, path: Path) -> ImportSummary:
    """Fill an empty store, and its identity, from an export.

    Raises ProcessingError where the file is none, StateError where the store or its identity is another's
    or not empty, LockHeld where a daemon runs.
    """
    data = _read(path)
    identity, secret = exported_instance(data)
    state = config.app.state_file
    lifecycle = LifecycleManager(state)
    lifecycle.acquire_lock()
    try:
        write_instance(state, identity, secret)
        store = open_store(state, instance=identity, secret=secret, clock=SystemClock())
        try:
            return import_state(store, data)
        finally:
            store.close()
    finally:
        lifecycle.release_lock()


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ProcessingError(f"the export cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise ProcessingError(
            "is no export: it is not JSON, or only a part of it", where=str(path), fix="Copy it again, whole"
        ) from error
    if not isinstance(data, dict):
        raise StateError("is no export", where=str(path), fix="`mqi-hpc export` writes one")
    return data
