"""Strict host keys: a server is who the known-hosts file says it is, or it is refused in words."""

from __future__ import annotations

import binascii
import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import paramiko

from mqi_hpc.core.errors import HostKeyError
from mqi_hpc.infrastructure.connection.route import SSH_PORT, Route

_RSA = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")
_ECDSA = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
_ALGORITHMS = ("ssh-ed25519", *_ECDSA, *_RSA)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the file: to whom it applies, the key, and whether it is one never to be trusted."""

    names: tuple[str, ...]
    key: paramiko.PKey
    revoked: bool

    def applies(self, name: str) -> bool:
        """Whether the line is about the server `name`; a matching name with ! in front excludes it."""
        found = False
        for pattern in self.names:
            if pattern.startswith("|1|"):
                found = found or paramiko.HostKeys.hash_host(name, pattern) == pattern
            elif pattern.startswith("!") and fnmatch.fnmatchcase(name, _literal(pattern[1:])):
                return False
            else:
                found = found or fnmatch.fnmatchcase(name, _literal(pattern))
        return found


class KnownHosts:
    """The keys of one known-hosts file: hashed names and patterns are understood, certificates are not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def judge(self, route: Route) -> HostKeyJudge:
        """Return who decides on the key that the server of `route` shows.

        Raises HostKeyError where the file cannot be read.
        """
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HostKeyError(
                f"the known host keys cannot be read: {error}",
                where=str(self._path),
                fix="Name a file with the cluster's host key in ssh.known_hosts",
            ) from error
        lines = [line for line in map(_parse, text.splitlines()) if line and line.applies(route.known_as)]
        return HostKeyJudge(self._path, route, lines)


class HostKeyJudge:
    """Accepts a key the file holds for one server, and raises HostKeyError for any other."""

    def __init__(self, path: Path, route: Route, lines: list[_Line]) -> None:
        self._path = path
        self._route = route
        self._revoked = [line.key for line in lines if line.revoked]
        self._trusted = [line.key for line in lines if not line.revoked and line.key not in self._revoked]

    def disabled_algorithms(self) -> dict[str, list[str]]:
        """Return the host-key algorithms not to be negotiated: those of no trusted key.

        Where no key is trusted there are none, so that the refusal can show the key.
        """
        kinds = {key.get_name() for key in self._trusted}
        kinds |= set(_RSA) if "ssh-rsa" in kinds else set()
        return {"keys": [name for name in _ALGORITHMS if kinds and name not in kinds]}

    def check(self, key: paramiko.PKey) -> None:
        """Return where the key is one we trust; raise HostKeyError else."""
        if key not in self._trusted:
            self._refuse(key)

    def other_kind(self) -> HostKeyError:
        """Return the error of a server that has no key of a kind we trust."""
        return self._changed("it has no key of these kinds any more")

    def _refuse(self, key: paramiko.PKey) -> NoReturn:
        route = self._route
        if key in self._revoked:
            raise HostKeyError(
                f"the server shows {describe(key)}, which {self._path} says is revoked",
                where=str(route),
                fix="Ask the cluster's administrator",
            )
        if self._trusted:
            raise self._changed(f"it shows {describe(key)}")
        port = "" if route.port == SSH_PORT else f"-p {route.port} "
        raise HostKeyError(
            f"the server shows {describe(key)}, and {self._path} holds no key for {route.known_as}",
            where=str(route),
            fix="Compare the fingerprint with the one the cluster's administrator gives you; if they agree: "
            f"ssh-keyscan {port}{route.hostname} >> {self._path}",
        )

    def _changed(self, how: str) -> HostKeyError:
        known = ", ".join(map(describe, self._trusted))
        return HostKeyError(
            f"the server is not the {self._route.known_as} we know: {how}, and {self._path} holds {known}",
            where=str(self._route),
            fix="Somebody may be in between, or the server was set up anew. Ask the cluster's administrator; "
            f"only if they confirm the new key: ssh-keygen -R '{self._route.known_as}' -f {self._path}, "
            "and add it",
        )


def describe(key: paramiko.PKey) -> str:
    """Return a key's kind and fingerprint as OpenSSH prints them."""
    return f"{key.get_name()} {key.fingerprint}"


def _parse(text: str) -> _Line | None:
    """Return a line's key; None for a comment, a certificate authority, or what is no key we can check."""
    words = text.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
        return None
    try:
        key = paramiko.PKey.from_type_string(words[1], binascii.a2b_base64(words[2]))
    except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError, IndexError):
        return None
    return _Line(tuple(words[0].split(",")), key, marker == "@revoked")


def _literal(pattern: str) -> str:
    """Return a pattern of OpenSSH, where brackets mean themselves, as one of fnmatch."""
    return pattern.replace("[", "[[]")
