"""What a job saw on a compute node, judged for `doctor`: shared files, Python, engine, GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mqi_hpc.core.diagnosis import Finding, failure, fields, ok, shortly, warning

_LEAST_PYDICOM = (2, 3)
_LEAST_PYTHON = (3, 9)
_NOT_TRIED = {
    "pending": "not tried: the queue is busy",
    "running": "the probe did not end in time",
    "unknown": "sbatch did not say in time whether it took the probe",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWish:
    """A job that looks at a node: its stages; what it should find there."""

    stages: tuple[str, ...]
    python: str
    engine: str | None
    gpu: bool
    token: str

    @property
    def check(self) -> str:
        """The name of its checks."""
        return f"node ({', '.join(self.stages)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSaid:
    """How such a job ended, and what it wrote.

    `state`: answered, refused by sbatch, over without an answer; or, when its time was up, pending, running,
    unknown (to sbatch).
    """

    state: str
    detail: str = ""
    answer: str = ""


def judge_node(said: NodeSaid | None, wish: NodeWish) -> list[Finding]:
    """Judge what a job saw on a compute node; one that did not start in time is only a warning."""
    check = wish.check
    if said is None:
        return [
            warning(check, "the probe did not come to its end", "Run doctor again, or with --no-jobs without")
        ]
    if said.state == "refused":
        return [failure(check, f"sbatch refused the probe: {said.detail}", "See the check of sbatch above")]
    if said.state in _NOT_TRIED:
        found = _NOT_TRIED[said.state] + (f" ({shortly(said.detail)})" if said.detail else "")
        cure = "It was cancelled. Run doctor when a node is free; `mqi-hpc doctor --no-jobs` leaves it out"
        return [warning(check, found, cure)]
    seen = fields(said.answer)
    if said.state != "answered" or "node" not in seen:
        return [_silent(said, check)]
    return [_same_files(seen, wish), _python(seen, wish), *_engine(seen, wish), *_gpu(seen, wish)]


def _silent(said: NodeSaid, check: str) -> Finding:
    said_last = f": {shortly(said.detail)}" if said.detail else ""
    return failure(
        check,
        f"a job ended there without a word in the workspace{said_last}",
        "The workspace must be on a file system that the compute nodes share, at the same path; or the lines"
        " of slurm.prologue fail there",
    )


def _same_files(seen: Mapping[str, str], wish: NodeWish) -> Finding:
    if seen.get("token") == wish.token:
        return ok(wish.check, f"{seen['node']} sees the workspace and its files")
    return failure(
        wish.check,
        f"{seen['node']} has a folder at the workspace's path, but not its files",
        "The compute nodes must share the file system of paths.remote_workspace",
    )


def _python(seen: Mapping[str, str], wish: NodeWish) -> Finding:
    check, found = f"{wish.check}: python", seen.get("python", "")
    cure = "stages.python must be a Python 3.9 or newer with numpy and pydicom 2.3 or newer on the compute"
    cure += " nodes, like that of a virtual environment in a shared folder; slurm.prologue may load a module"
    if not found:
        return failure(
            check, f"{wish.python} does not run there: {seen.get('python_error') or 'no word'}", cure
        )
    lacking = []
    if _version(found) < _LEAST_PYTHON:
        lacking.append(f"it is Python {found}")
    for package, least in (("numpy", ()), ("pydicom", _LEAST_PYDICOM)):
        version = seen.get(package, "")
        if not version or version.startswith("!"):
            lacking.append(f"no {package} ({version.removeprefix('!') or 'no word'})")
        elif _version(version) < least:
            lacking.append(f"{package} {version} is too old")
    if lacking:
        return failure(check, f"{wish.python}: {'; '.join(lacking)}", cure)
    return ok(check, f"Python {found}, numpy {seen['numpy']}, pydicom {seen['pydicom']}")


def _engine(seen: Mapping[str, str], wish: NodeWish) -> list[Finding]:
    if wish.engine is None:
        return []
    check, where = f"{wish.check}: engine", seen.get("engine", "")
    if where:
        return [ok(check, where)]
    cure = "stages.engine should be an absolute path, or slurm.prologue put it on PATH (module load ...)"
    return [failure(check, f"{wish.engine} is not found on {seen['node']}", cure)]


def _gpu(seen: Mapping[str, str], wish: NodeWish) -> list[Finding]:
    if not wish.gpu:
        return []
    check, given = f"{wish.check}: gpu", seen.get("gpu", "")
    if given and given not in ("NoDevFiles", "-1"):
        name = f" ({shortly(seen['gpu_name'], 120)})" if seen.get("gpu_name") else ""
        return [ok(check, f"Slurm gave CUDA device {given}{name}")]
    cure = "See slurm.gres, and File= in the node's gres.conf; stages.require_gpu: false lets CPUs do"
    return [failure(check, f"Slurm gave the job no GPU (CUDA_VISIBLE_DEVICES is {given!r})", cure)]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", text)[:2])
