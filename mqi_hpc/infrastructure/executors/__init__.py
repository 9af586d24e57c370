"""What runs on the cluster, and what is brought there and back; and the effects port made of it."""

from mqi_hpc.infrastructure.executors.control import Control
from mqi_hpc.infrastructure.executors.effects import ThreadedEffects
from mqi_hpc.infrastructure.executors.local import LocalExecutor
from mqi_hpc.infrastructure.executors.remote import RemoteExecutor
from mqi_hpc.infrastructure.executors.shell import Shell
from mqi_hpc.infrastructure.executors.transfer import TransferExecutor

__all__ = ["Control", "LocalExecutor", "RemoteExecutor", "Shell", "ThreadedEffects", "TransferExecutor"]
