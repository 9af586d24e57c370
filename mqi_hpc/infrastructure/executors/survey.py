"""Reads what a case's folder on the cluster holds of jobs: one command, which changes nothing there."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from posixpath import basename, dirname

from mqi_hpc.core.adoption import CaseRemains, JobRemains
from mqi_hpc.core.effects import Completion, Survey
from mqi_hpc.core.errors import ConnectionError, ProcessingError
from mqi_hpc.infrastructure.executors.script import Answer, decode_text, run_script
from mqi_hpc.infrastructure.executors.shell import Shell
from mqi_hpc.infrastructure.executors.upload import WorkspaceRefused
from mqi_hpc.records.layout import is_job, is_key

_CAP = 64 * 1024 * 1024
"""Most bytes of the answer: chain.json of a thousand beams has a megabyte or two, and a case a few jobs."""

_SURVEY = r"""
workspace=$1 key=$2
file() { # job name: its bytes
  local bytes
  bytes=$(base64 -w 0 -- "$1/$2") || fail 'reading a file of the job' "$1/$2"
  say FILE "$1" "$2" "$bytes"
}
# An error is no absence: what is there is told by what a folder lists, and a file that could not be read is
# no file that is wrong.
list() { # folder: sets `names`; 1 where there is none
  names=''
  [ ! -L "$1" ] || return
  names=$(ls -A -- "$1/" 2>&1) && return
  case $names in *'No such file or directory'|*'Not a directory') return 1 ;; esac
  fail 'listing a folder' "$names"
}
lists() { case $'\n'$names$'\n' in *$'\n'"$1"$'\n'*) return 0 ;; esac; return 1; }
unread() { grep '^sha256sum: ' | grep -v -e 'No such file' -e WARNING -e 'no properly formatted'; }
job() {
  local names name out errors
  if [ -L "$1" ] || ! list "$1"; then say FAULT "$1" "$(echo 'it is no folder' | text)"; return; fi
  if ! lists MANIFEST.sha256; then say FAULT "$1" "$(echo 'it has no MANIFEST.sha256' | text)"; return; fi
  if ! out=$(cd -- "$1" && sha256sum -c --strict --quiet MANIFEST.sha256 2>&1); then
    if errors=$(printf '%s\n' "$out" | unread); then fail 'reading the files of a job' "$errors"; fi
    say FAULT "$1" "$(printf 'its files are not what MANIFEST.sha256 says: %s' "$out" | text)"
    return
  fi
  while IFS= read -r name; do
    case $name in
      MANIFEST.sha256|chain.json|submit.sh|interpret.sbatch|beams.sbatch|convert.sbatch) file "$1" "$name" ;;
      receipt.interpret|receipt.beams|receipt.convert)
        out=$(head -c 1000 -- "$1/$name") || fail 'reading a receipt' "$1/$name"
        say RECEIPT "$1" "${name#receipt.}" "$(printf '%s' "$out" | text)"
        ;;
      claim.*) say CLAIM "$1" "$name" ;;
      withdrawn) say WITHDRAWN "$1" "$name" ;;
    esac
  done <<<"$names"
}
enter 'the workspace' "$workspace"
owner=$(heard head -c 200 .owner) || fail 'reading .owner of the workspace' "$owner"
say OWNER "$(printf '%s' "$owner" | text)"
enter "the case's folder" "$key"
listed=$(ls -A) || fail "listing the case's folder" "$key"
if list input && lists MANIFEST.sha256; then
  have=$(sha256sum <input/MANIFEST.sha256) || fail 'reading the MANIFEST of the input' "$key"
  say INPUT "${have%% *}"
fi
while IFS= read -r one; do
  # Folders of an upload under way have longer names.
  if [[ $one =~ ^j[0-9]+$ ]]; then say JOB "$one"; job "$one"; fi
done <<<"$listed"
say END
"""


class Surveyor:
    """Surveys the cases of one workspace, which belongs to `instance`; `timeout` (s) bounds a survey."""

    def __init__(self, shell: Shell, *, workspace: str, instance: str, timeout: float) -> None:
        self._shell = shell
        self._workspace = workspace
        self._instance = instance
        self._timeout = timeout

    def survey(self, effect: Survey) -> Completion:
        """Return a completion with CaseRemains as payload, or raise."""
        key = basename(effect.folder)
        if dirname(effect.folder) != self._workspace or not is_key(key):
            raise ProcessingError(f"{effect.folder!r} is no case's folder in {self._workspace}")
        answers = run_script(
            self._shell, _SURVEY, [self._workspace, key], timeout=self._timeout, cap=_CAP, stall=self._timeout
        )
        owner = next((decode_text(a.rest[0]) for a in answers if a.word == "OWNER" and a.rest), "")
        if owner != self._instance:
            raise WorkspaceRefused(
                f"the workspace belongs to another installation ({owner[:60] or 'unreadable'})",
                where=f"{self._shell.target}:{self._workspace}/.owner",
                fix="`mqi-hpc doctor` tells more",
            )
        return Completion(effect=effect, payload=self._remains(answers))

    def _remains(self, answers: Sequence[Answer]) -> CaseRemains:
        digests = [answer.rest[0] for answer in answers if answer.word == "INPUT"]
        names = [answer.rest[0] for answer in answers if answer.word == "JOB"]
        return CaseRemains(
            input_digest=digests[0] if digests else None,
            jobs=tuple(self._job(name, answers) for name in names if is_job(name)),
        )

    def _job(self, name: str, answers: Sequence[Answer]) -> JobRemains:
        mine = [(a.word, a.rest[1:]) for a in answers if len(a.rest) > 1 and a.rest[0] == name]
        return JobRemains(
            name=name,
            fault="; ".join(
                decode_text(rest[0]) or "no reason given" for word, rest in mine if word == "FAULT"
            ),
            files={rest[0]: self._bytes(rest[1:]) for word, rest in mine if word == "FILE"},
            receipts={rest[0]: decode_text("".join(rest[1:])) for word, rest in mine if word == "RECEIPT"},
            claims=tuple(rest[0] for word, rest in mine if word == "CLAIM"),
            withdrawn=any(word == "WITHDRAWN" for word, _ in mine),
        )

    def _bytes(self, words: tuple[str, ...]) -> bytes:
        try:
            return base64.b64decode("".join(words), validate=True)
        except binascii.Error as error:
            raise ConnectionError("a file came in pieces", where=self._shell.target) from error
