"""Looks at the queue, at accounting and into the workspace for what bears this instance's name."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from mqi_hpc.core.errors import ConfigurationError, ConnectionError
from mqi_hpc.core.observation import (
    FIELD,
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    NotParsed,
    Row,
    parse_sacct,
    parse_squeue,
)
from mqi_hpc.infrastructure.executors.script import Answer, decode_text, run_script
from mqi_hpc.infrastructure.executors.shell import Shell

_CAP = 64 * 1024 * 1024
_SECONDS = 60
_TOLD = r"""
export TZ=UTC SLURM_TIME_FORMAT=%s SLURM_BITSTR_LEN=0
user=$(id -un) || user=$(id -u)
# What a command says on stderr counts only where it failed: a warning must not stand among rows.
told() { # word command...
  local word=$1 err rc
  shift
  printf '\n\036%s %s DATA ' "$nonce" "$word"
  { err=$( { "$@" </dev/null | base64 -w 0 >&3; exit "${PIPESTATUS[0]}"; } 2>&1 ); rc=$?; } 3>&1
  say "$word" CODE "$rc" "$(printf '%s' "$err" | text)"
}
"""

_LOOK = rf"""{_TOLD}
seconds=$1 format=$2 workspace=$3
told SQUEUE timeout -k 5 "$seconds" squeue -h -a -t all -u "$user" -o "$format"
if [ -n "$workspace" ] && [ -e "$workspace" ]; then
  enter 'the workspace' "$workspace"
  owner=$(heard head -c 200 .owner) || fail 'reading .owner of the workspace' "$owner"
  say OWNER "$(printf '%s' "$owner" | text)"
  listed=$(ls -A) || fail 'listing the workspace' "$workspace"
  while IFS= read -r one; do
    if [[ $one =~ ^[a-z0-9]{{12}}$ ]]; then say FOLDER "$one"; fi
  done <<<"$listed"
fi
say END
"""

_ACCOUNT = rf"""{_TOLD}
seconds=$1 separator=$2 fields=$3 ids=$4
told SACCT timeout -k 5 "$seconds" sacct -n -P -X -D --delimiter="$separator" -j "$ids" -o "$fields"
say END
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look: rows of our names in the queue, and the names in the workspace that have a key's form."""

    queue: tuple[Row, ...]
    folders: tuple[str, ...]


class OrphanSight:
    """Looks at the cluster for `instance`, whose workspace is `workspace`."""

    def __init__(self, shell: Shell, *, workspace: str, instance: str) -> None:
        self._shell = shell
        self._workspace = workspace
        self._instance = instance

    def look(self, *, folders: bool = True) -> Look:
        """Return the queue, and with `folders` what the workspace holds.

        Raises ConnectionError where the queue does not answer: it says nothing then.
        """
        arguments = [str(_SECONDS), SQUEUE_FORMAT, self._workspace if folders else ""]
        answers = run_script(self._shell, _LOOK, arguments, timeout=3 * _SECONDS, control=True, cap=_CAP)
        owner = next((decode_text(a.rest[0]) for a in answers if a.word == "OWNER" and a.rest), None)
        if owner not in (None, self._instance):
            raise ConfigurationError(
                f"the workspace belongs to another installation ({(owner or 'unreadable')[:60]})",
                where=f"{self._shell.target}:{self._workspace}/.owner",
                fix="`mqi-hpc doctor` tells more",
            )
        try:
            queue = parse_squeue(self._text(answers, "SQUEUE"))
        except NotParsed as error:
            raise self._silent("squeue", str(error)) from error
        return Look(queue=queue, folders=tuple(a.rest[0] for a in answers if a.word == "FOLDER"))

    def accounted(self, ids: Sequence[int]) -> tuple[Row, ...]:
        """Return accounting's rows of these jobs; raises ConnectionError where it does not answer."""
        arguments = [str(_SECONDS), FIELD, ",".join(SACCT_FIELDS), ",".join(map(str, ids))]
        answers = run_script(self._shell, _ACCOUNT, arguments, timeout=3 * _SECONDS, control=True, cap=_CAP)
        try:
            return parse_sacct(self._text(answers, "SACCT"))
        except NotParsed as error:
            raise self._silent("sacct", str(error)) from error

    def _text(self, answers: Sequence[Answer], word: str) -> str:
        mine = {a.rest[0]: a.rest[1:] for a in answers if a.word == word and a.rest}
        code, *said = mine.get("CODE", ("?",))
        if code != "0":
            raise self._silent(word.lower(), decode_text(said[0]) if said else f"exit code {code}")
        try:
            return base64.b64decode("".join(mine.get("DATA", ())), validate=True).decode("utf-8", "replace")
        except binascii.Error as error:
            raise self._silent(word.lower(), "its answer came in pieces") from error

    def _silent(self, what: str, why: str) -> ConnectionError:
        return ConnectionError(
            f"{what} does not answer: {' '.join(why.split())[:300]}",
            where=self._shell.target,
            fix="Nothing is said of orphans: ask again when Slurm answers",
        )
