"""Runs a bash script whose answers stand in lines of their own, whatever a profile prints around them."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mqi_hpc.core.errors import ConfigurationError, ConnectionError, MQIError, ProcessingError, ResourceError
from mqi_hpc.infrastructure.executors.shell import OUTPUT_CAP, TIMED_OUT, OutcomeUnknown, Shell, Sink

MARK = b"\x1e"
# The script comes first on stdin, up to a NUL: no limit of a command line, no shell that misreads it,
# and the rest of stdin is the script's own.
BOOT = ("bash", "-c", 'IFS= read -r -d "" script; eval "$script"', "mqi-hpc")
CLEAN = r"""
shopt -u failglob nullglob
for variable in $(compgen -e); do
  case $variable in
    SLURM_CONF) ;;
    SLURM_*|SBATCH_*|SQUEUE_*|SACCT_*|SCANCEL_*|SINFO_*|BASH_ENV) unset "$variable" ;;
  esac
done
"""
"""Every script of ours begins so: a login profile's settings for Slurm override options and formats, and an
exported BASHOPTS changes what a pattern without a match is."""
# A profile may have set noclobber (bash reads ~/.bashrc again where sshd is its grandparent).
PRELUDE = (
    CLEAN
    + r"""
set -u +o noclobber
umask 077
export LC_ALL=C
nonce=$1
shift
trap 'exit 1' HUP INT TERM PIPE
say() { printf '\n\036%s %s\n' "$nonce" "$*"; }
text() { head -c 4000 | base64 | tr -d '\n'; }
fail() { say FAIL "$(printf '%s' "$1" | text)" "$(printf '%s' "$2" | text)"; say END; exit 1; }
# The one line that a command answers, or what it says where it fails. The loader may warn before that
# (LD_PRELOAD), and a warning is no part of an answer.
heard() { # command
  local out rc
  out=$("$@" 2>&1)
  rc=$?
  [ "$rc" -ne 0 ] || out=${out##*$'\n'}
  printf '%s' "$out"
  return "$rc"
}
step() { local what=$1 out; shift; out=$("$@" 2>&1) || fail "$what" "$out"; }
enter() { step "entering $1" cd -- "$2"; cd -- "$2" || exit 9; }
"""
)

_FULL = ("No space left on device", "Disk quota exceeded")
_FORBIDDEN = ("Permission denied", "Not a directory", "File exists")
WORKSPACE = "the workspace"


@dataclass(frozen=True, slots=True)
class Answer:
    """One line the script said: a word and the words after it."""

    word: str
    rest: tuple[str, ...]


def new_nonce() -> str:
    """Return a word that no output holds by chance."""
    return secrets.token_hex(8)


def run_script(
    shell: Shell,
    script: str,
    args: Sequence[str],
    *,
    timeout: float,
    stdin: Iterable[bytes] = (),
    sink: Sink | None = None,
    stall: float | None = None,
    control: bool = False,
    cap: int = OUTPUT_CAP,
    nonce: str = "",
) -> list[Answer]:
    """Run PRELUDE and `script` with `args` and return what it said.

    Raises ConnectionError where it did not come to its end, OutcomeUnknown where that is open, and for a
    FAIL the error that fits: ResourceError where a disk is full; where we may not write, ConfigurationError
    for the workspace and ProcessingError for a case's own folder; ConnectionError for all else.
    `sink` sees the raw output: the caller takes it apart itself, and nothing is returned.
    """
    nonce = nonce or new_nonce()
    result = shell.run(
        [*BOOT, nonce, *args],
        stdin=_with_script(PRELUDE + script, stdin),
        timeout=timeout,
        control=control,
        cap=cap,
        sink=sink,
        stall=stall,
    )
    if result.exit_code in TIMED_OUT:
        raise OutcomeUnknown(f"no end of the command within {timeout:.0f} s", where=shell.target)
    if sink is not None and result.exit_code == 0:
        return []
    answers = list(parse(result.stdout, nonce))
    for answer in answers:
        if answer.word == "FAIL":
            raise failure(answer, shell.target)
    if not answers or answers[-1].word != "END":
        said = " ".join(result.stderr.decode("utf-8", "replace").split())[-500:]
        raise ConnectionError(
            f"the command broke off (exit code {result.exit_code}): {said or 'it said nothing'}",
            where=shell.target,
            fix="Is bash there, and does the login profile of the account let commands through?",
        )
    return answers[:-1]


def parse(stdout: bytes, nonce: str) -> Iterator[Answer]:
    """Yield the lines marked with `nonce`; all else is noise."""
    mark = MARK + nonce.encode() + b" "
    for line in stdout.split(b"\n"):
        if line.startswith(mark):
            words = line[len(mark) :].decode("utf-8", "replace").split(" ")
            yield Answer(words[0], tuple(words[1:]))


def decode_text(word: str) -> str:
    """Return the text that a script sent through `text`; "" for what is none."""
    try:
        return base64.b64decode(word, validate=True).decode("utf-8", "replace").strip()
    except (binascii.Error, ValueError):
        return ""


def failure(answer: Answer, where: str) -> MQIError:
    """Return the error of a FAIL: its words are what was attempted and what the system said."""
    what, said, *_ = (*map(decode_text, answer.rest), "", "")
    said = " ".join(said.split())
    message = f"{what} failed on the cluster: {said or 'no reason given'}"
    if any(sign in said for sign in _FULL):
        return ResourceError(message, where=where, fix="Make room on the cluster (quota or disk)")
    if what.endswith(WORKSPACE):
        return ConfigurationError(message, where=where, fix="Check paths.remote_workspace and who may write")
    if any(sign in said for sign in _FORBIDDEN):
        return ProcessingError(message, where=where, fix="Look at the case's folder on the cluster")
    return ConnectionError(message, where=where)


def _with_script(script: str, stdin: Iterable[bytes]) -> Iterator[bytes]:
    yield script.encode() + b"\0"
    yield from stdin
