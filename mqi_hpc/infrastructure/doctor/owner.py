"""Whose the workspace on the cluster is, read and not changed."""

from __future__ import annotations

from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.infrastructure.executors.script import decode_text, run_script
from mqi_hpc.infrastructure.executors.shell import Shell

_OWNER = r"""
if [ ! -e "$1" ]; then say OWNER none; say END; exit 0; fi
enter 'the workspace' "$1"
if [ ! -e .owner ]; then say OWNER none; say END; exit 0; fi
owner=$(heard head -c 200 .owner) || fail 'reading .owner of the workspace' "$owner"
say OWNER some "$(printf '%s' "$owner" | text)"
say END
"""


def read_owner(shell: Shell, workspace: str, *, timeout: float) -> str | None:
    """Return the instance id in the workspace's .owner, None where there is none. Raises MQIError."""
    for answer in run_script(shell, _OWNER, [workspace], timeout=timeout, control=True):
        if answer.word == "OWNER" and answer.rest:
            return None if answer.rest[0] == "none" else decode_text("".join(answer.rest[1:]))
    raise ConnectionError("the owner of the workspace was not told", where=shell.target)
