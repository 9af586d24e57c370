"""Looks at everything a case needs, here and on the cluster, and says what is wrong and how to cure it."""

from mqi_hpc.infrastructure.doctor.cluster import look_at_cluster, sbatch_options, try_submissions
from mqi_hpc.infrastructure.doctor.local import look_at_machine, own_instance
from mqi_hpc.infrastructure.doctor.nodes import look_at_nodes
from mqi_hpc.infrastructure.doctor.owner import read_owner
from mqi_hpc.infrastructure.doctor.reach import look_at_connection

__all__ = [
    "look_at_cluster",
    "look_at_connection",
    "look_at_machine",
    "look_at_nodes",
    "own_instance",
    "read_owner",
    "sbatch_options",
    "try_submissions",
]
