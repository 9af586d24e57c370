"""What a probe saw of the workspace on the cluster, judged for `doctor`: access, owner, links, space."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mqi_hpc.core.diagnosis import Finding, Said, failure, fields, ok, shortly, skipped, warning

_LEAST_INODES = 10_000
_GIGABYTE = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceWish:
    """What the workspace should be: its path, the instance it belongs to (None: none yet), free bytes."""

    path: str
    instance: str | None
    min_free_bytes: float


def judge_workspace(said: Said | None, wish: WorkspaceWish) -> list[Finding]:
    """Judge what a probe of the workspace saw: access, owner, file system, space."""
    if said is None or said.code:
        why = "the probe did not come to its end" if said is None else said.words
        cure = "Does the file system hang? Try `ls` and `df` there by hand, and tell the administrator"
        return [
            failure("workspace", f"{wish.path}: {why}", cure),
            *(
                skipped(check, "the workspace gave no answer")
                for check in ("workspace owner", "workspace links", "workspace space")
            ),
        ]
    seen = fields(said.out)
    access = _access(seen, wish)
    owner = _owner(seen, wish)
    return [access, owner, _links(seen), _space(seen, wish)]


def _access(seen: Mapping[str, str], wish: WorkspaceWish) -> Finding:
    path = wish.path
    cure = (
        "Check paths.remote_workspace, and who may write there: it should be a folder of your own on a file"
    )
    cure += " system that the compute nodes share"
    if seen.get("kind", "") not in ("directory", "absent"):
        return failure("workspace", f"{path} is a {seen.get('kind') or 'thing that cannot be told'}", cure)
    if seen.get("write") not in ("ok", "untried"):
        where = path if seen.get("kind") == "directory" else f"{path} cannot be made"
        return failure(
            "workspace", f"{where}: {seen.get('write') or 'whether we may write is not known'}", cure
        )
    if seen.get("kind") == "absent":
        return ok("workspace", f"{path} is not there yet; the first upload makes it")
    mode = seen.get("mode", "")
    if re.fullmatch(r"[0-7]{3,4}", mode) and int(mode, 8) & 0o022:
        return warning(
            "workspace", f"{path} may be written by others (mode {mode})", f"On the cluster: chmod 700 {path}"
        )
    if seen.get("user") != seen.get("me"):
        return warning(
            "workspace",
            f"{path} belongs to {seen.get('user', 'somebody')}, not to {seen.get('me', 'us')}",
            "A folder of your own is safer: who owns it can take its files away",
        )
    return ok("workspace", f"{path} (mode {mode}, {seen.get('fs') or 'file system unknown'})")


def _owner(seen: Mapping[str, str], wish: WorkspaceWish) -> Finding:
    check, owner = "workspace owner", seen.get("owner", "")
    if seen.get("kind") != "directory":
        return skipped(check, "there is no workspace yet")
    if not seen.get("has_owner"):
        if seen.get("entries", "0") != "0":
            return warning(
                check,
                f"{wish.path} is nobody's, but it is not empty",
                "Give this installation a folder of its own, so that nothing else is mixed with its files",
            )
        return ok(check, "nobody's yet; the first upload takes it")
    if wish.instance is not None and owner == wish.instance:
        return ok(check, f"this installation ({owner})")
    own = f"this one is {wish.instance}" if wish.instance else "this one has no identity yet"
    return failure(
        check,
        f"the workspace belongs to another installation ({shortly(owner, 60) or 'unreadable'}); {own}",
        "Name another paths.remote_workspace. Or, if it is this installation's own from before its state was"
        " lost: `mqi-hpc init --adopt --instance FILE`, FILE being a backup of the .instance file that lay"
        " beside its store",
    )


def _links(seen: Mapping[str, str]) -> Finding:
    check = "workspace links"
    if seen.get("write") != "ok":
        return skipped(check, "nothing was written in the workspace")
    broken = [name for name in ("link", "rename", "sync", "case") if seen.get(name) != "ok"]
    if not broken:
        return ok(check, "hard links, renames and names behave; the first writer of a name wins")
    told = "; ".join(f"{name}: {seen.get(name) or 'no answer'}" for name in broken)
    cure = (
        "What protects a case from being computed twice rests on these: put paths.remote_workspace on a POSIX"
        " file system (NFS, Lustre, GPFS, BeeGFS with hard links)"
    )
    return failure(check, told, cure)


def _space(seen: Mapping[str, str], wish: WorkspaceWish) -> Finding:
    check, free, inodes = "workspace space", seen.get("free_kib", ""), seen.get("free_inodes", "")
    if not free.isdecimal():
        return warning(check, "df did not tell the free space", f"Try on the cluster: df -Pk {wish.path}")
    size, wanted = int(free) * 1024, wish.min_free_bytes
    if size < wanted:
        return failure(
            check,
            f"{_gb(size)} free, resources.min_disk_space_gb asks for {_gb(wanted)}",
            "Make room on the cluster (`mqi-hpc prune` removes what is delivered), or lower the setting",
        )
    if inodes.isdecimal() and 0 < int(inodes) < _LEAST_INODES:
        return warning(
            check, f"{inodes} inodes left", "Remove small files there, or ask the administrator for more"
        )
    if quota := seen.get("quota"):
        return warning(check, f"quota: {shortly(quota)}", "Remove files there, or ask for a larger quota")
    return ok(check, f"{_gb(size)} free")


def _gb(size: float) -> str:
    return f"{size / _GIGABYTE:.1f} GB"
