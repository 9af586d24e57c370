"""The way to the cluster: few SSH connections, opened when needed, each to the host we know."""

from mqi_hpc.infrastructure.connection.pool import SSHConnectionPool

__all__ = ["SSHConnectionPool"]
