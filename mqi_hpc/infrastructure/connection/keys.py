"""The keys we may offer to a server: those named, an agent's, or the usual ones of the account."""

from __future__ import annotations

import binascii
import contextlib
from dataclasses import dataclass
from pathlib import Path

import paramiko

from mqi_hpc.core.errors import AuthenticationError
from mqi_hpc.infrastructure.connection.route import Route

_USUAL = ("id_ed25519", "id_ecdsa", "id_rsa")
_UNREADABLE = (OSError, ValueError, TypeError, paramiko.SSHException, paramiko.pkey.UnknownKeyType)


@dataclass(frozen=True, slots=True)
class Offer:
    """A private key, and where it comes from."""

    name: str
    key: paramiko.PKey


def offers(route: Route, close: contextlib.ExitStack) -> list[Offer]:
    """Return the keys to offer, in order, each once; the agent's connection stays open until `close`.

    A key that is protected by a passphrase is used through an agent that holds it. Raises AuthenticationError
    where a key that the route names cannot be used, before any server counts a failed login.
    """
    agent = _agent_keys(close)
    found = [_named(path, agent) for path in route.key_files]
    if route.use_agent:
        found += [Offer("an agent's", key) for key in agent]
    if route.look_for_keys:
        found += _usual(Path("~/.ssh").expanduser())
    unique = {offer.key.asbytes(): offer for offer in reversed(found)}
    return list(reversed(unique.values()))


def _named(path: Path, agent: list[paramiko.AgentKey]) -> Offer:
    try:
        return Offer(str(path), paramiko.PKey.from_path(path))
    except _UNREADABLE as error:
        if "password" not in str(error).lower():
            raise AuthenticationError(
                f"the private key cannot be read: {error}", where=str(path), fix="Correct ssh.key_file"
            ) from error
        public = _public(path)
        for key in agent:
            if key.asbytes() == public:
                return Offer(f"{path} (through an agent)", key)
        raise AuthenticationError(
            "the private key is protected by a passphrase, and no agent holds it",
            where=str(path),
            fix="ssh-add it before the start, or make a key without a passphrase for this program alone",
        ) from error


def _public(path: Path) -> bytes:
    """Return the public half that stands beside a private key; b"" where there is none."""
    try:
        return binascii.a2b_base64(path.with_name(f"{path.name}.pub").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return b""


def _usual(folder: Path) -> list[Offer]:
    found = []
    for path in (folder / name for name in _USUAL):
        # One that cannot be used without a person is passed over: nobody asked for it by name.
        with contextlib.suppress(*_UNREADABLE):
            found.append(Offer(str(path), paramiko.PKey.from_path(path)))
    return found


def _agent_keys(close: contextlib.ExitStack) -> list[paramiko.AgentKey]:
    try:
        agent = paramiko.Agent()
    except (paramiko.SSHException, OSError):
        return []
    close.callback(agent.close)
    return list(agent.get_keys())
