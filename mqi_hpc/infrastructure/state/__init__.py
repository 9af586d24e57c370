"""The local case store, and the identity of the instance it belongs to."""

from mqi_hpc.infrastructure.state.instance import Instance, load_or_create_instance
from mqi_hpc.infrastructure.state.sqlite_state_manager import SqliteStateManager, StateTransaction

__all__ = ["Instance", "SqliteStateManager", "StateTransaction", "load_or_create_instance"]
