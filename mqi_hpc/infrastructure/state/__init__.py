"""The local case store, and the identity of the instance it belongs to."""

from pathlib import Path

from mqi_hpc.core.interfaces import IClock
from mqi_hpc.infrastructure.state.instance import Instance, load_or_create_instance, write_instance
from mqi_hpc.infrastructure.state.json_state_manager import JsonStateManager
from mqi_hpc.infrastructure.state.sqlite_state_manager import SqliteStateManager
from mqi_hpc.infrastructure.state.state_manager import StateManager
from mqi_hpc.infrastructure.state.transaction import StateTransaction


def open_store(path: Path, *, instance: str, secret: bytes, clock: IClock) -> StateManager:
    """Open the store at `path`, made at the first call: a name that ends in .json is a JSON file's."""
    kind = JsonStateManager if path.suffix == ".json" else SqliteStateManager
    return kind(path, instance=instance, secret=secret, clock=clock)


__all__ = [
    "Instance",
    "JsonStateManager",
    "SqliteStateManager",
    "StateManager",
    "StateTransaction",
    "load_or_create_instance",
    "open_store",
    "write_instance",
]
