"""Reads the SHA-256 of every chain.json of a workspace: one command, which changes nothing there."""

from __future__ import annotations

from mqi_hpc.infrastructure.executors.script import decode_text, run_script
from mqi_hpc.infrastructure.executors.shell import Shell
from mqi_hpc.records.layout import is_job, is_key

_DIGESTS = r"""
enter 'the workspace' "$1"
owner=$(heard head -c 200 .owner) || fail 'reading .owner of the workspace' "$owner"
say OWNER "$(printf '%s' "$owner" | text)"
for file in */j*/chain.json; do
  [ -e "$file" ] || [ -L "$file" ] || continue
  sum=$(sha256sum <"$file") || fail 'reading a chain.json' "$file"
  folder=${file%/*}
  say CHAIN "${folder%/*}" "${folder#*/}" "${sum%% *}"
done
say END
"""


def chain_digests(shell: Shell, workspace: str, *, timeout: float) -> tuple[str, dict[tuple[str, str], str]]:
    """Return the owner of a workspace, and the SHA-256 of each chain.json by (key, job) there.

    Raises ConnectionError where the cluster does not answer, ConfigurationError for the workspace.
    """
    owner, digests = "", {}
    for answer in run_script(shell, _DIGESTS, [workspace], timeout=timeout, control=True):
        if answer.word == "OWNER" and answer.rest:
            owner = decode_text(answer.rest[0])
        elif answer.word == "CHAIN" and len(answer.rest) == 3:
            key, job, digest = answer.rest
            if is_key(key) and is_job(job):
                digests[key, job] = digest
    return owner, digests
