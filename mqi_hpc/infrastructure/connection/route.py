"""From the settings and ~/.ssh/config to the route to the login node: host, port, user, keys, jumps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import paramiko

from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.infrastructure.config.models import SSHConfig

SSH_PORT = 22
_MAX_DEPTH = 16
_INCLUDE = re.compile(r"\s*include\s*[\s=]\s*(.+?)\s*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One SSH server, and how to come to it. `known_as` is its name in the known-hosts file.

    `jumps` lead to it, the first from here; `proxy_command` does so where no jump is given.
    """

    hostname: str
    port: int
    username: str
    known_as: str
    key_files: tuple[Path, ...] = ()
    use_agent: bool = True
    look_for_keys: bool = True
    proxy_command: str | None = None
    jumps: tuple[Route, ...] = ()

    def __str__(self) -> str:
        return f"{self.username}@{self.hostname}:{self.port}"


def resolve(config: SSHConfig) -> Route:
    """Return the route that `config` describes; what it leaves open comes from its `config_file`.

    Raises ConfigurationError where no host is named or the OpenSSH configuration cannot be understood.
    """
    if not config.host:
        raise ConfigurationError("no host is named", where="ssh.host", fix="Name the login node there")
    openssh = _load(config.config_file)
    return _resolve(
        openssh,
        config,
        config.host,
        port=config.port,
        username=config.username,
        key_file=config.key_file,
        depth=0,
    )


def _resolve(
    openssh: paramiko.SSHConfig,
    config: SSHConfig,
    host: str,
    *,
    port: int | None,
    username: str | None,
    key_file: Path | None,
    depth: int,
) -> Route:
    where = str(config.config_file)
    if depth > _MAX_DEPTH:
        raise ConfigurationError(f"ProxyJump of {host} leads in a circle", where=where)
    try:
        found = openssh.lookup(host)
    except Exception as error:  # `Match exec` runs a program, whose every failure comes up here
        raise ConfigurationError(
            f"cannot be applied to host {host}: {error}",
            where=where,
            fix="Simplify it, or name another file in ssh.config_file",
        ) from error
    if "include" in found:
        raise ConfigurationError(
            f"an Include within a Host or Match block applies to {host}; it is not understood there",
            where=where,
            fix="Move it above the first Host line, or name another file in ssh.config_file",
        )
    hostname = found.get("hostname", host)
    port = port or _port(found.get("port"), where)
    username = username or found.get("user") or config.local_user()
    named = [Path(name).expanduser() for name in found.get("identityfile", [])]
    keys = (key_file,) if key_file else tuple(path for path in named if path.is_file())
    jump = found.get("proxyjump", "none")
    jumps: tuple[Route, ...] = ()
    if jump.lower() != "none":
        jumps = _jumps(openssh, config, jump, key_file, depth)
    return Route(
        hostname=hostname,
        port=port,
        username=username,
        known_as=found.get("hostkeyalias") or known_name(hostname, port),
        key_files=keys,
        # Every key offered counts as a failed login where it does not fit: offer no more than asked.
        use_agent=key_file is None and found.get("identitiesonly", "no").lower() != "yes",
        look_for_keys=not keys,
        proxy_command=None if jumps else found.get("proxycommand"),
        jumps=jumps,
    )


def known_name(hostname: str, port: int) -> str:
    """Return the name under which OpenSSH keeps a server's host key."""
    return hostname if port == SSH_PORT else f"[{hostname}]:{port}"


def _jumps(
    openssh: paramiko.SSHConfig, config: SSHConfig, text: str, key_file: Path | None, depth: int
) -> tuple[Route, ...]:
    routes: list[Route] = []
    for item in text.split(","):
        match = re.match(r"(?:ssh://)?(?:([^@]+)@)?(\[[^]]+\]|[^:@/]+)(?::(\d+))?/?\Z", item.strip())
        if match is None:
            raise ConfigurationError(
                f"ProxyJump {text!r} should be [user@]host[:port],…", where=str(config.config_file)
            )
        user, host, port = match[1], match[2].strip("[]"), match[3]
        route = _resolve(
            openssh,
            config,
            host,
            port=int(port) if port else None,
            username=user,
            key_file=key_file,
            depth=depth + 1,
        )
        # As OpenSSH has it: only the first jump may itself be reached through others.
        routes.extend((*route.jumps, route) if not routes else (route,))
    return tuple(routes)


def _port(text: str | None, where: str) -> int:
    if text is None:
        return SSH_PORT
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise ConfigurationError(f"Port {text!r} should be a number from 1 to 65535", where=where)
    return int(text)


def _load(path: Path) -> paramiko.SSHConfig:
    if not path.is_file():
        return paramiko.SSHConfig()
    try:
        return paramiko.SSHConfig.from_text("\n".join(_lines(path, 0)))
    except (OSError, UnicodeDecodeError, paramiko.SSHException) as error:
        raise ConfigurationError(
            f"cannot be read as an OpenSSH configuration: {error}", where=str(path)
        ) from error


def _lines(path: Path, depth: int) -> list[str]:
    """Return the lines of a file, those it includes ahead of its first Host or Match block in place."""
    if depth > _MAX_DEPTH:
        raise paramiko.SSHException(f"{path} is included more than {_MAX_DEPTH} deep")
    lines: list[str] = []
    top = True
    for line in path.read_text(encoding="utf-8").splitlines():
        top = top and re.match(r"\s*(host|match)[\s=]", line, re.IGNORECASE) is None
        match = _INCLUDE.match(line) if top else None
        if match is None:
            lines.append(line)
            continue
        for pattern in match[1].split():
            for included in _glob(pattern.strip('"')):
                # A block that the included file leaves open ends with it.
                lines.extend([*_lines(included, depth + 1), "Host *"])
    return lines


def _glob(pattern: str) -> list[Path]:
    target = Path(pattern).expanduser()
    if not target.is_absolute():
        target = Path("~/.ssh").expanduser() / target
    anchor = Path(target.anchor)
    return sorted(path for path in anchor.glob(str(target.relative_to(anchor))) if path.is_file())
