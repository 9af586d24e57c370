"""Opens one authenticated SSH connection along a route, and says in words why it could not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import paramiko

from mqi_hpc.core.errors import (
    AuthenticationError,
    ChannelRefused,
    ConnectionError,
    MQIError,
    TransportTimeout,
)
from mqi_hpc.infrastructure.connection.host_keys import KnownHosts
from mqi_hpc.infrastructure.connection.keys import Offer, offers
from mqi_hpc.infrastructure.connection.route import Route

KEEPALIVE_SECONDS = 30
# The kernel gives a connection up whose bytes nobody takes for this long: no thread hangs in a write.
UNACKNOWLEDGED_MS = 90_000

Socket = socket.socket | paramiko.Channel | paramiko.ProxyCommand


class Connection(Protocol):
    """One open SSH connection."""

    @property
    def alive(self) -> bool:
        """Whether it is not known to have ended."""
        ...

    def open_channel(self, timeout: float) -> paramiko.Channel:
        """Return a new session within `timeout` seconds; raises ChannelRefused or ConnectionError."""
        ...

    def close(self) -> None:
        """End it."""
        ...


Dial = Callable[[], Connection]


class SSHConnection:
    """A transport, and those of the jumps that carry it."""

    def __init__(self, transports: list[paramiko.Transport], route: Route) -> None:
        self._transports = transports
        self._route = route

    @property
    def alive(self) -> bool:
        """Whether the connection is not known to have ended."""
        return self._transports[-1].is_active()

    def open_channel(self, timeout: float) -> paramiko.Channel:
        """Return a new session; raises ChannelRefused where the server takes no more of them."""
        try:
            return self._transports[-1].open_session(timeout=timeout)
        except paramiko.ChannelException as error:
            raise ChannelRefused(
                f"the server refuses a further session: {error.text or error.code}",
                where=str(self._route),
                fix="Its MaxSessions may be 1; it is tried again",
            ) from error
        except Exception as error:  # paramiko raises here whatever ended its own thread
            if self.alive:
                raise TransportTimeout(
                    f"no session within {timeout:.0f} s", where=str(self._route)
                ) from error
            raise ConnectionError(f"the connection was lost: {error}", where=str(self._route)) from error

    def close(self) -> None:
        """End the connection and its jumps; whoever waits on a channel of it is woken."""
        for transport in reversed(self._transports):
            transport.close()


def dial(route: Route, known: KnownHosts, timeout: float) -> SSHConnection:
    """Connect along `route`; raises ConnectionError, HostKeyError or AuthenticationError in words.

    `timeout` (s) bounds each step: the connection, the server's greeting, the keys, the login.
    """
    transports: list[paramiko.Transport] = []
    try:
        for hop in (*route.jumps, route):
            transports.append(_hop(transports[-1] if transports else None, hop, known, timeout))
    except BaseException:
        for transport in reversed(transports):
            transport.close()
        raise
    return SSHConnection(transports, route)


def _hop(
    before: paramiko.Transport | None, route: Route, known: KnownHosts, timeout: float
) -> paramiko.Transport:
    judge = known.judge(route)
    with contextlib.ExitStack() as agent, contextlib.ExitStack() as undo:
        keys = offers(route, agent)
        wire = _wire(before, route, timeout)
        undo.callback(wire.close)
        transport = paramiko.Transport(wire, disabled_algorithms=judge.disabled_algorithms())
        undo.callback(transport.close)
        transport.banner_timeout = transport.auth_timeout = transport.channel_timeout = timeout
        greeted = threading.Event()
        try:
            transport.start_client(event=greeted)
            # With an event, paramiko leaves the waiting to us: its own comes back as if all were well.
            if not greeted.wait(2 * timeout):
                raise TimeoutError("no agreement on keys")
            if not transport.is_active():
                raise transport.get_exception() or EOFError("the server hung up")
            judge.check(transport.get_remote_server_key())
            _login(transport, route, keys)
        except MQIError:
            raise
        except Exception as error:  # a server may send any rubbish
            if "no acceptable host key" in str(error):
                raise judge.other_kind() from error
            raise _in_words(route, error, timeout) from error
        transport.set_keepalive(KEEPALIVE_SECONDS)
        if isinstance(wire, socket.socket) and hasattr(socket, "TCP_USER_TIMEOUT"):
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        undo.pop_all()
        return transport


def _wire(before: paramiko.Transport | None, route: Route, timeout: float) -> Socket:
    try:
        if before is not None:
            return before.open_channel(
                "direct-tcpip", (route.hostname, route.port), ("127.0.0.1", 0), timeout=timeout
            )
        if route.proxy_command:
            return paramiko.ProxyCommand(route.proxy_command)
        return socket.create_connection((route.hostname, route.port), timeout)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _in_words(route, error, timeout) from error


def _login(transport: paramiko.Transport, route: Route, keys: list[Offer]) -> None:
    """Offer one key after the other; raises AuthenticationError where none of them lets us in.

    What breaks the connection itself is raised as it is.
    """
    said = "we have no key to offer"
    for offer in keys:
        try:
            more = transport.auth_publickey(route.username, offer.key)
        except paramiko.BadAuthenticationType as error:
            said = f"it takes no keys, only {', '.join(error.allowed_types)}"
            break
        except paramiko.AuthenticationException as error:
            if not transport.is_active() or "timeout" in str(error):
                raise
            said = "it accepts none of them"
        else:
            if not more:
                return
            said = f"beyond the key it wants {', '.join(more)}, which nobody is here to give"
            break
    offered = ", ".join(offer.name for offer in keys) or "none"
    raise AuthenticationError(
        f"the server does not let us in: {said} (keys offered: {offered})",
        where=str(route),
        fix="Check ssh.username and ssh.key_file, and that the public key is in the account's "
        "authorized_keys. Trying again by itself would only lock us out",
    )


def _in_words(route: Route, error: Exception, timeout: float) -> ConnectionError:
    text = str(error) or type(error).__name__
    if "Too many authentication failures" in text:
        return AuthenticationError(
            "the server hung up after too many keys that it does not accept",
            where=str(route),
            fix="Name the right one in ssh.key_file; then no other is offered",
        )
    timed_out = isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError)
    if timed_out or "timeout" in text:
        return TransportTimeout(f"no answer within {timeout:.0f} s ({text})", where=str(route))
    if isinstance(error, socket.gaierror):
        text = f"the name {route.hostname} is not known: {error.strerror}"
    elif "banner" in text:
        text = f"the server hung up before it said that it speaks SSH ({text})"
    return ConnectionError(f"no connection: {text}", where=str(route))
