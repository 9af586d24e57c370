"""Errors say what, where, and what to do."""

from __future__ import annotations

import pytest

from mqi_hpc.core import errors


@pytest.mark.parametrize(
    ("where", "fix", "text"),
    [
        ("", "", "it broke"),
        ("config.yaml:3", "", "config.yaml:3: it broke"),
        ("", "Mend it", "it broke. Mend it"),
        ("config.yaml:3", "Mend it", "config.yaml:3: it broke. Mend it"),
    ],
)
def test_the_text_people_read(where: str, fix: str, text: str) -> None:
    error = errors.ConfigurationError("it broke", where=where, fix=fix)
    assert str(error) == text
    assert (error.what, error.where, error.fix) == ("it broke", where, fix)


def test_the_tree_callers_branch_on() -> None:
    assert issubclass(errors.AuthenticationError, errors.ConnectionError)
    assert issubclass(errors.TransportTimeout, errors.ConnectionError)
    assert issubclass(errors.RejectedCase, errors.ProcessingError)
    assert not issubclass(errors.ResourceError, errors.ProcessingError)
