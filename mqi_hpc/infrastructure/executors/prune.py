"""Removes what retention gave up: a case's folder on the cluster, and delivered results here."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from mqi_hpc.core.effects import Completion, Prune
from mqi_hpc.core.errors import ConfigurationError, ConnectionError, ProcessingError
from mqi_hpc.core.pruning import DeliveredFile, LocalFate, PruneAnswer
from mqi_hpc.infrastructure.executors.script import (
    Answer,
    decode_text,
    failure,
    new_nonce,
    parse,
    run_script,
)
from mqi_hpc.infrastructure.executors.shell import CHUNK, OutcomeUnknown, Shell
from mqi_hpc.records.layout import is_key

PRUNE_SECONDS = 900.0
SQUEUE_SECONDS = 60
# What another prune left is its own to finish for as long as it may still be at work.
STALE_SECONDS = 3600

_PRUNE = r"""
workspace=$1 key=$2 instance=$3 trash=$4 squeue_limit=$5 stale=$6
kept() { say KEPT "$(printf '%s' "$1" | text)"; say END; exit 0; }
# An error is no absence: only what the system says is not there is not there.
kind() { # path: absent, or what it is and whose
  local out
  if out=$(heard stat -c '%F:%u' -- "$1"); then printf '%s' "$out"; return; fi
  case $out in *'No such file or directory') printf absent ;; *) printf '%s' "$out"; return 1 ;; esac
}
remove() { # folders of ours, out of the way already; what cannot be written is made so
  rm -rf --one-file-system -- "$@" && return
  # Each before it is entered.
  find "$@" -xdev -type d ! -perm -700 -exec chmod u+rwx -- {} \;
  rm -rf --one-file-system -- "$@"
}
enter 'the workspace' "$workspace"
uid=$(id -u)
owner=$(kind .owner) || fail 'looking at .owner in the workspace' "$owner"
[ "$owner" != absent ] || kept "the workspace has no .owner: nothing shows that it is ours"
case $owner in regular*) ;; *) kept ".owner of the workspace is a ${owner%:*}" ;; esac
owner=$(head -c 200 .owner) || fail 'reading .owner in the workspace' 'it cannot be read'
[ "$owner" = "$instance" ] || kept "the workspace belongs to another installation ($owner)"
there=$(kind "$key") || fail "looking at the case's folder" "$there"
case $there in
  absent) ;;
  "directory:$uid") ;;
  directory:*) kept "the case's folder belongs to another user (uid ${there##*:})" ;;
  *) kept "the case's folder is a ${there%:*}" ;;
esac
if [ "$there" != absent ]; then
  user=$(id -un) || user=$uid
  shown=$(timeout -k 5 "$squeue_limit" squeue -h -a -t all -u "$user" -o '%T %j' 2>&1) ||
    fail 'asking squeue for jobs of the case' "exit code $?: $shown"
  while read -r word name; do
    case $name in "mqi-$instance-$key-"*) ;; *) continue ;; esac
    case $word in
      COMPLETED|CANCELLED|FAILED|TIMEOUT|DEADLINE|OUT_OF_MEMORY|NODE_FAIL|BOOT_FAIL|PREEMPTED) ;;
      *) kept "Slurm shows $name as $word" ;;
    esac
  done <<<"$shown"
  size=$(timeout -k 5 60 du -skx -- "./$key" 2>/dev/null) && say SIZE "${size%%[!0-9]*}"
  say MOVING
  if out=$(mv -T -- "$key" "$trash" 2>&1); then
    # What was looked at and what was moved may be two: a link is put back as it was.
    if [ -L "$trash" ] || [ ! -d "$trash" ] || [ ! -O "$trash" ]; then
      mv -T -n -- "$trash" "$key"
      kept "the case's folder was replaced while it was looked at"
    fi
  else
    # A rename fails whole; where mv copied instead, how far it came is open. Another may have been faster.
    [ ! -d "$key" ] || [ -e "$trash" ] || fail "moving the case's folder out of the way" "$out"
    there=$(kind "$key") && [ "$there" = absent ] || exit 1
  fi
  say MOVED
fi
ours() { find . -mindepth 1 -maxdepth 1 -name "$1" -type d -user "$uid" "${@:2}" -print0; }
mapfile -d '' -t found < <(ours ".pruned-$key-*")
if [ "${#found[@]}" -gt 0 ]; then
  [ "$there" != absent ] || say MOVED
  out=$(remove "${found[@]}" 2>&1) || for folder in "${found[@]}"; do
    [ ! -e "$folder" ] || { say LEFT "$(printf '%s' "$out" | text)"; break; }
  done
fi
say DONE
mapfile -d '' -t found < <(ours '.pruned-????????????-*' ! -newerct "@$(($(date +%s) - stale))")
for folder in "${found[@]}"; do
  remove "$folder" >/dev/null 2>&1 && say SWEPT
done
say END
"""


class Pruner:
    """Removes case folders of one workspace on the cluster."""

    def __init__(
        self, shell: Shell, *, workspace: str, instance: str, timeout: float = PRUNE_SECONDS
    ) -> None:
        self._shell = shell
        self._workspace = workspace
        self._instance = instance
        self._timeout = timeout

    def prune(self, effect: Prune) -> Completion:
        """Return a completion whose output is a PruneAnswer; exit code 1 where not all is gone, or raise.

        Raises OutcomeUnknown where the folder may have gone, any other error where it was not touched.
        """
        key = effect.case_id
        if not is_key(key) or effect.folder != f"{self._workspace}/{key}":
            raise ProcessingError(
                f"{effect.folder!r} is not the folder of case {key!r}; nothing was removed",
                where=self._workspace,
            )
        answer = _meaning(self._run(key))
        return Completion(
            effect=effect, output=answer.encode(), exit_code=int(answer.outcome in ("kept", "left"))
        )

    def _run(self, key: str) -> list[Answer]:
        nonce = new_nonce()
        raw = bytearray()
        arguments = [
            self._workspace,
            key,
            self._instance,
            f".pruned-{key}-{new_nonce()}",
            str(SQUEUE_SECONDS),
            str(STALE_SECONDS),
        ]
        try:
            run_script(self._shell, _PRUNE, arguments, timeout=self._timeout, sink=raw.extend, nonce=nonce)
        except OutcomeUnknown:
            raise
        except ConnectionError as error:
            answers = list(parse(bytes(raw), nonce))
            for answer in answers:
                if answer.word == "FAIL":
                    raise failure(answer, self._shell.target) from error
            if any(answer.word == "MOVING" for answer in answers):
                raise self._open() from error
            raise
        *answers, last = [*parse(bytes(raw), nonce)] or [Answer("", ())]
        if last.word != "END":
            raise self._open()
        return answers

    def _open(self) -> OutcomeUnknown:
        return OutcomeUnknown("the removal broke off; the folder may have gone", where=self._shell.target)


def _meaning(answers: Sequence[Answer]) -> PruneAnswer:
    said = {answer.word: answer.rest for answer in answers}
    size = said.get("SIZE", ("",))[0]
    space = int(size) * 1024 if re.fullmatch("[0-9]+", size) else None
    swept = sum(answer.word == "SWEPT" for answer in answers)
    if "KEPT" in said:
        return PruneAnswer(outcome="kept", why=decode_text(said["KEPT"][0]))
    if "LEFT" in said:
        return PruneAnswer(outcome="left", why=decode_text(said["LEFT"][0]), bytes=space, swept=swept)
    return PruneAnswer(outcome="removed" if "MOVED" in said else "gone", bytes=space, swept=swept)


class LocalResults:
    """Delivered files below one results folder (ILocalResults)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def look(self, files: Sequence[DeliveredFile]) -> tuple[LocalFate, ...]:
        """Return what `remove` would do with each file; changes nothing."""
        return self._each(files, remove=False)

    def remove(self, files: Sequence[DeliveredFile]) -> tuple[LocalFate, ...]:
        """Remove each file that is still what was delivered, then the folders that are empty by that.

        Raises ConfigurationError where the results folder itself cannot be entered.
        """
        return self._each(files, remove=True)

    def _each(self, files: Sequence[DeliveredFile], *, remove: bool) -> tuple[LocalFate, ...]:
        try:
            root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(
                f"results cannot be looked at: {error.strerror}",
                where=str(self._root),
                fix="Check paths.local_results: is its disk there?",
            ) from error
        try:
            fates = tuple(self._one(root, file, remove=remove) for file in files)
            if remove:
                self._tidy(root, fates)
            return fates
        finally:
            os.close(root)

    def _one(self, root: int, file: DeliveredFile, *, remove: bool) -> LocalFate:
        parts = self._parts(file.path)
        if parts is None:
            return LocalFate(file, "left", "outside paths.local_results")
        if file.sha256 is None:
            return LocalFate(file, "left", "no digest of it was kept, so it may be changed")
        try:
            folder = _enter(root, parts[:-1])
            try:
                return _settle(folder, parts[-1], file, remove=remove)
            finally:
                os.close(folder)
        except FileNotFoundError:
            return LocalFate(file, "gone")
        except OSError as error:
            return LocalFate(file, "failed", error.strerror or str(error))

    def _parts(self, path: str) -> list[str] | None:
        """Return a delivered path's parts below the root: <label>/<job>/...; None where it is not there."""
        prefix = f"{self._root}/"
        parts = path[len(prefix) :].split("/") if path.startswith(prefix) else []
        return parts if len(parts) > 2 and not {"", ".", ".."} & set(parts) else None

    def _tidy(self, root: int, fates: Sequence[LocalFate]) -> None:
        """Remove the folders of these files that are empty now, deepest first."""
        folders: set[tuple[str, ...]] = set()
        for fate in fates:
            parts = self._parts(fate.file.path) if fate.fate in ("removed", "gone") else None
            for depth in range(1, len(parts or ())):
                folders.add(tuple((parts or [])[:depth]))
        for *above, name in sorted(folders, key=len, reverse=True):
            try:
                parent = _enter(root, above)
            except OSError:
                continue
            try:
                os.rmdir(name, dir_fd=parent)
                os.fsync(parent)
            except OSError:
                # Not empty, or gone, or not ours to remove: an empty folder does no harm.
                continue
            finally:
                os.close(parent)


def _enter(root: int, parts: Sequence[str]) -> int:
    """Return an open folder below `root`; no symbolic link is followed."""
    here = os.dup(root)
    for part in parts:
        try:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)
        here = inner
    return here


def _settle(folder: int, name: str, file: DeliveredFile, *, remove: bool) -> LocalFate:
    """Compare a file with what was delivered and, where asked to, remove it if it is that."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        return LocalFate(file, "left", "no regular file any more")
    if status.st_size != file.bytes:
        return LocalFate(file, "left", f"changed: it has {status.st_size} bytes, {file.bytes} were delivered")
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as stream:
        before = os.fstat(descriptor)
        digest = hashlib.sha256()
        while block := stream.read(CHUNK):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        return LocalFate(file, "left", "changed: its SHA-256 is not that of what was delivered")
    if not remove:
        return LocalFate(file, "removed")
    after = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if _version(after) != _version(before):
        return LocalFate(file, "left", "changed while it was looked at")
    os.unlink(name, dir_fd=folder)
    os.fsync(folder)
    return LocalFate(file, "removed")


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
