"""Who this installation is: an id and a secret beside the state file, which survive the loss of the store."""

from __future__ import annotations

import json
import re
import secrets
import string
from dataclasses import dataclass, field
from pathlib import Path

from mqi_hpc.core.errors import StateError
from mqi_hpc.infrastructure.state.publish import first_to_publish

_ALPHABET = string.ascii_lowercase + string.digits
_ID = re.compile(r"[a-z][a-z0-9]{5}\Z")
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Instance:
    """The id stands in Slurm job names and the workspace's .owner; of the secret case keys are made."""

    id: str
    secret: bytes = field(repr=False)


def instance_file(state_file: Path) -> Path:
    """Return where the identity of a store is kept."""
    return state_file.with_name(f"{state_file.name}.instance")


def load_or_create_instance(state_file: Path) -> Instance:
    """Return the identity beside `state_file`, made at the first call; two first calls agree.

    Raises StateError where it cannot be read or written, or others may read it.
    """
    path = instance_file(state_file)
    try:
        if not path.exists():
            _refuse_orphan(state_file, path)
            _create(path)
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise StateError(
                f"others may read the instance's secret (mode {mode:03o})",
                where=str(path),
                fix=f"chmod 600 {path}",
            )
        text = path.read_bytes()
    except OSError as error:
        raise _unusable(path, error) from error
    return _parse(text, path)


def write_instance(state_file: Path, identity: str, secret: bytes) -> Instance:
    """Give `state_file` the identity it had before, for an import or an adoption; the same once more is fine.

    Raises StateError where that is no identity, another one is there already, a store is there without its
    own, or it cannot be written.
    """
    path = instance_file(state_file)
    given = Instance(identity, secret)
    if not (_ID.match(identity) and len(secret) == _SECRET_BYTES):
        raise StateError(
            "this is no identity: an id is a letter and five letters or digits, all small, a secret 32 bytes",
            where=str(path),
            fix="Take both from the .instance file, or an export, of the store that is to be found again",
        )
    try:
        if not path.exists():
            _refuse_orphan(state_file, path)
            _publish(path, given)
    except OSError as error:
        raise _unusable(path, error) from error
    there = load_or_create_instance(state_file)
    if there != given:
        raise StateError(
            f"the identity of instance {there.id} is here already, and it is another one",
            where=str(path),
            fix="Name another file in app.state_file: a store and its cases are found by one identity alone",
        )
    return there


def _refuse_orphan(state_file: Path, path: Path) -> None:
    # Whoever makes a store has made its identity before: another one would find none of its cases.
    if state_file.exists() and state_file.stat().st_size:
        raise StateError(
            "the store is there, its instance file is not",
            where=str(path),
            fix="Bring it back from a backup: its secret names the cases on the cluster",
        )


def _create(path: Path) -> None:
    first = secrets.choice(string.ascii_lowercase)
    identity = first + "".join(secrets.choice(_ALPHABET) for _ in range(5))
    _publish(path, Instance(identity, secrets.token_bytes(_SECRET_BYTES)))


def _publish(path: Path, instance: Instance) -> None:
    text = json.dumps({"id": instance.id, "secret": instance.secret.hex()})
    with first_to_publish(path) as fresh:
        fresh.write_text(f"{text}\n", encoding="utf-8")


def _unusable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"the instance file cannot be used: {error.strerror}",
        where=str(path),
        fix="app.state_file says where it lies; its folder must be writable",
    )


def _parse(text: bytes, path: Path) -> Instance:
    try:
        value = json.loads(text)
        identity, secret = value["id"], bytes.fromhex(value["secret"])
        whole = len(value) == 2 and _ID.match(identity) and len(secret) == _SECRET_BYTES
    except (ValueError, TypeError, KeyError):
        whole = None
    if not whole:
        raise StateError(
            "the instance file is damaged",
            where=str(path),
            fix="Bring it back from a backup: without it the cases on the cluster are not found again",
        )
    return Instance(identity, secret)
