"""What the audit log keeps of a command that is sent, and of its answer: plain data, no patient's name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeGuard

from mqi_hpc.core.effects import Completion, Download, Effect, Submit, Upload
from mqi_hpc.core.submission import parse_submit
from mqi_hpc.records.layout import SUBMIT_SCRIPT
from mqi_hpc.records.manifest import format_manifest

Command = Upload | Submit | Download
"""What this log is for. A cancel and a prune write their own events, with what they are decided by."""

MOST_WORDS = 1000
"""Characters of somebody's words that an event keeps; `capped` marks where there were more."""


def told(command: Command, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what is kept of a command before it is sent; `files` are those rendered for its job.

    `input` and `folder` bear the digests of the MANIFEST.sha256 that lies there, so that a person can
    compare (sha256sum) what was sent with what is there.
    """
    if isinstance(command, Upload):
        return {
            "command": "upload",
            "job": _job(command),
            "to": command.job_folder,
            "input": {
                "files": len(command.inputs),
                "bytes": sum(file.bytes for file in command.inputs),
                "manifest": _manifest({file.remote: file.sha256 for file in command.inputs}),
            },
            "folder": {
                "files": len(command.files),
                "manifest": _manifest({name: _sha256(data) for name, data in command.files.items()}),
            },
        }
    if isinstance(command, Submit):
        script = files.get(SUBMIT_SCRIPT)
        return {
            "command": "submit",
            "job": _job(command),
            "script": None if script is None else _sha256(script),
            "nonce": command.nonce,
        }
    return {
        "command": "download",
        "job": _job(command),
        "results": {result.remote: result.sha256 for result in command.results},
        "logs": len(command.logs),
    }


def answered(command: Command, completion: Completion) -> dict[str, Any]:
    """Return what is kept of the answer to a command."""
    data: dict[str, Any] = {"command": type(command).__name__.lower(), "job": _job(command)}
    if completion.error is not None:
        data |= {
            "error": capped(completion.error),
            "failure": completion.failure,
            "uncertain": completion.uncertain,
        }
    if isinstance(command, Submit):
        report = parse_submit(completion.output, command.nonce)
        data |= {
            "exit_code": completion.exit_code,
            "receipts": {
                stage: {"name": one.name, "id": one.id, "time": one.time}
                for stage, one in report.receipts.items()
            },
            "ended": report.code,
            "head": report.head,
            "notes": [capped(note) for note in report.notes[:5]],
        }
        if report.failed is not None:
            said = capped("; ".join(report.failed.lines))
            data["sbatch"] = {
                "stage": report.failed.stage,
                "exit_code": report.failed.exit_code,
                "said": said,
            }
    return data


def is_command(effect: Effect) -> TypeGuard[Command]:
    """Whether an effect is one of those that this log is for."""
    return isinstance(effect, Upload | Submit | Download)


def capped(text: str) -> str:
    """Return a text that is not longer than an event keeps, and says where something is missing.

    >>> capped("a" * 1003)[-21:]
    'aaa (3 more not kept)'
    """
    more = len(text) - MOST_WORDS
    return text if more <= 0 else f"{text[:MOST_WORDS]} ({more} more not kept)"


def _job(command: Command) -> str:
    return command.job_id.rpartition("-")[2]


def _manifest(digests: Mapping[str, str]) -> str:
    return _sha256(format_manifest(digests).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
