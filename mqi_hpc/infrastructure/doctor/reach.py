"""Whether the login node can be reached, by one connection like the program's own."""

from __future__ import annotations

import contextlib

from mqi_hpc.core.diagnosis import Finding, failure, judge_sessions, ok, skipped
from mqi_hpc.core.errors import (
    AuthenticationError,
    ChannelRefused,
    ConfigurationError,
    ConnectionError,
    HostKeyError,
    MQIError,
)
from mqi_hpc.infrastructure.config import SSHConfig
from mqi_hpc.infrastructure.connection.dial import SSHConnection, dial
from mqi_hpc.infrastructure.connection.host_keys import KnownHosts
from mqi_hpc.infrastructure.connection.pool import CONTROL_CHANNELS
from mqi_hpc.infrastructure.connection.route import SSH_PORT, Route, resolve

_DOWN = (
    "Check ssh.host and ssh.port, the network and its firewalls, and whether the login node is up: try"
    " `ssh -v` by hand"
)


def look_at_connection(config: SSHConfig) -> list[Finding]:
    """Return the findings on connection, host key, login and sessions; what goes wrong is never raised."""
    try:
        route = resolve(config)
    except ConfigurationError as error:
        return _stopped("connection", error, error.fix or "Correct the file of ssh.config_file")
    try:
        connection = dial(route, KnownHosts(config.known_hosts), config.connect_timeout_seconds)
    except HostKeyError as error:
        return _stopped("host key", error, _key_cure(error, route, config))
    except AuthenticationError as error:
        return _stopped("login", error, error.fix)
    except ConnectionError as error:
        return _stopped("connection", error, error.fix or _DOWN)
    try:
        sessions = _sessions(connection, config.connect_timeout_seconds)
    finally:
        connection.close()
    return [
        ok("connection", f"{route} answers"),
        ok("host key", f"the one that {config.known_hosts} holds for {route.known_as}"),
        ok("login", f"{route.username} is let in with a key"),
        sessions,
    ]


def _stopped(check: str, error: MQIError, cure: str) -> list[Finding]:
    """Return the failure of one check; the others were not made, or cannot be told of."""
    found = f"{error.where}: {error.what}" if error.where else error.what
    findings = []
    for name in ("connection", "host key", "login", "sessions"):
        if name == check:
            findings.append(failure(name, found, cure))
        else:
            findings.append(skipped(name, f"see {check}"))
    return findings


def _key_cure(error: HostKeyError, route: Route, config: SSHConfig) -> str:
    """Return how to come to a host key that is vouched for by a person, not by the network alone."""
    if config.known_hosts.is_file() and "holds no key" not in error.what:
        return error.fix
    port = "" if route.port == SSH_PORT else f"-p {route.port} "
    return (
        "Ask the cluster's administrator for the fingerprint of the host key. Then:"
        f" ssh-keyscan {port}{route.hostname} > new_key; ssh-keygen -lf new_key. Only if a fingerprint it"
        f" shows is the one you were given: cat new_key >> {config.known_hosts}"
    )


def _sessions(connection: SSHConnection, timeout: float) -> Finding:
    """Open as many sessions at once as control may, and see how many the server grants."""
    refused = ""
    with contextlib.ExitStack() as opened:
        count = 0
        for _ in range(CONTROL_CHANNELS):
            try:
                channel = connection.open_channel(timeout)
            except ChannelRefused as error:
                refused = error.what
                break
            except ConnectionError as error:
                refused = str(error)
                break
            opened.callback(channel.close)
            count += 1
    return judge_sessions(count, CONTROL_CHANNELS, refused)
