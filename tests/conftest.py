"""Fixtures for every tier, and how Hypothesis searches."""

import os

from hypothesis import settings

from tests.support.cluster import cluster

__all__ = ["cluster"]

# No time limits in tests. In CI the same examples each time, so that a submission is judged by what it
# changes; everywhere else new ones, which is where they find something.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
