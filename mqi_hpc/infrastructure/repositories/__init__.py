"""The repositories of the specification, on SQLite."""

from mqi_hpc.infrastructure.repositories.sqlite import (
    CaseRepository,
    Contents,
    FolderRepository,
    InRow,
    JobRepository,
    ResourceRepository,
    Rows,
)

__all__ = [
    "CaseRepository",
    "Contents",
    "FolderRepository",
    "InRow",
    "JobRepository",
    "ResourceRepository",
    "Rows",
]
