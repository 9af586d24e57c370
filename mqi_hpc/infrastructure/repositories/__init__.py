"""The repositories of the specification, on SQLite."""

from mqi_hpc.infrastructure.repositories.sqlite import CaseRepository, JobRepository, ResourceRepository, Rows

__all__ = ["CaseRepository", "JobRepository", "ResourceRepository", "Rows"]
