"""Fixtures for every tier."""

from tests.support.cluster import cluster

__all__ = ["cluster"]
