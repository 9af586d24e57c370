"""Opening one connection, against an SSH server in this process that can be told how to behave."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from mqi_hpc.core.errors import (
    AuthenticationError,
    ChannelRefused,
    ConnectionError,
    HostKeyError,
    TransportTimeout,
)
from mqi_hpc.infrastructure.connection import keys
from mqi_hpc.infrastructure.connection.dial import dial
from mqi_hpc.infrastructure.connection.host_keys import KnownHosts
from mqi_hpc.infrastructure.connection.route import Route

HOST_KEY = paramiko.ECDSAKey.generate()
OTHER_KEY = paramiko.RSAKey.generate(2048)


@dataclass
class Server(paramiko.ServerInterface):
    """Lets `accepted` keys in; `methods` are what it offers, `more` what it wants after the key."""

    accepted: set[bytes] = field(default_factory=set)
    methods: str = "publickey"
    more: bool = False
    sessions: int = 1
    offered: list[bytes] = field(default_factory=list)

    def get_allowed_auths(self, username: str) -> str:
        return self.methods

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.offered.append(key.asbytes())
        if key.asbytes() not in self.accepted:
            return paramiko.AUTH_FAILED
        return paramiko.AUTH_PARTIALLY_SUCCESSFUL if self.more else paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self.sessions -= 1
        return paramiko.OPEN_SUCCEEDED if self.sessions >= 0 else paramiko.OPEN_FAILED_RESOURCE_SHORTAGE


@dataclass
class Site:
    """A listening server, what it does with a connection, and a route to it."""

    server: Server
    route: Route
    known: Path
    handle: Callable[[socket.socket], None]
    host_keys: list[paramiko.PKey] = field(default_factory=lambda: [HOST_KEY])

    def know(self, *keys: paramiko.PKey, name: str = "") -> None:
        name = name or self.route.known_as
        self.known.write_text("".join(f"{name} {key.get_name()} {key.get_base64()}\n" for key in keys))

    @contextlib.contextmanager
    def connection(self, timeout: float = 20) -> Iterator[object]:
        connection = dial(self.route, KnownHosts(self.known), timeout)
        try:
            yield connection
        finally:
            connection.close()

    def refusal(self, timeout: float = 20) -> ConnectionError:
        with pytest.raises(ConnectionError) as caught:
            with self.connection(timeout):
                pass
        return caught.value


def write_key(path: Path, passphrase: bytes | None = None) -> paramiko.PKey:
    private = Ed25519PrivateKey.generate()
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, protection))
    key = paramiko.PKey.from_path(path, passphrase)
    path.with_name(f"{path.name}.pub").write_text(f"{key.get_name()} {key.get_base64()} comment\n")
    return key


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    key = write_key(tmp_path / "key")
    open_ends: list[socket.socket] = []
    handlers: list[threading.Thread] = []
    transports: list[paramiko.Transport] = []

    def handle(wire: socket.socket) -> None:
        transport = paramiko.Transport(wire)
        transports.append(transport)
        for host_key in made.host_keys:
            transport.add_server_key(host_key)
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=made.server)

    route = Route(
        hostname="127.0.0.1",
        port=port,
        username="mqi",
        known_as=f"[127.0.0.1]:{port}",
        key_files=(tmp_path / "key",),
        use_agent=False,
        look_for_keys=False,
    )
    made = Site(Server(accepted={key.asbytes()}), route, tmp_path / "known_hosts", handle)
    made.know(HOST_KEY)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, _ = listener.accept()
                open_ends.append(wire)
                # One that a client left in the middle must not hold up the next.
                handlers.append(threading.Thread(target=made.handle, args=(wire,), daemon=True))
                handlers[-1].start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield made
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(30)
    for transport in transports:
        transport.close()
    for wire in open_ends:
        wire.close()
    for handler in handlers:
        handler.join(30)


def test_a_known_server_that_knows_our_key_lets_us_in(site: Site) -> None:
    with site.connection() as connection:
        assert connection.alive
        channel = connection.open_channel(20)
        with pytest.raises(ChannelRefused, match="refuses a further session"):
            connection.open_channel(20)
        assert connection.alive
        channel.close()
    assert not connection.alive
    with pytest.raises(ConnectionError, match="was lost"):
        connection.open_channel(20)


def test_a_server_that_opens_no_session_in_time_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with site.connection() as connection:

        def silent(*_: object, **__: object) -> None:
            raise paramiko.SSHException("Timeout opening channel.")

        monkeypatch.setattr(paramiko.Transport, "open_session", silent)
        with pytest.raises(TransportTimeout, match="no session within 20 s"):
            connection.open_channel(20)


PROXY = """
import os, select, socket, sys
wire = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while True:
    for ready in select.select([0, wire], [], [])[0]:
        data = os.read(0, 65536) if ready == 0 else wire.recv(65536)
        if not data:
            sys.exit()
        wire.sendall(data) if ready == 0 else os.write(1, data)
"""


def test_a_proxy_command_carries_the_connection(site: Site, tmp_path: Path) -> None:
    (tmp_path / "proxy.py").write_text(PROXY)
    command = f"{sys.executable} {tmp_path}/proxy.py 127.0.0.1 {site.route.port}"
    site.route = replace(site.route, proxy_command=command)
    with site.connection() as connection:
        connection.open_channel(20).close()


# Host keys


@pytest.mark.parametrize("pattern", ["127.0.0.*", "[127.0.0.1]:*", "other,[127.0.0.?]:{port}", "*,!10.0.0.1"])
def test_patterns_are_understood(site: Site, pattern: str) -> None:
    if pattern == "127.0.0.*":
        site.know(HOST_KEY, name=pattern)
        assert isinstance(site.refusal(), HostKeyError)
        return
    site.know(HOST_KEY, name=pattern.format(port=site.route.port))
    with site.connection():
        pass


def test_an_excluded_name_is_not_known(site: Site) -> None:
    site.know(HOST_KEY, name=f"*,!{site.route.known_as}")
    assert "holds no key" in site.refusal().what


def test_hashed_names_are_understood(site: Site) -> None:
    site.know(HOST_KEY, name=paramiko.HostKeys.hash_host(site.route.known_as))
    with site.connection():
        pass


def test_any_of_several_known_keys_will_do(site: Site) -> None:
    site.know(paramiko.ECDSAKey.generate(), HOST_KEY, OTHER_KEY)
    with site.connection():
        pass


def test_the_kind_we_know_is_asked_for(site: Site) -> None:
    site.host_keys = [HOST_KEY, OTHER_KEY]
    site.know(OTHER_KEY)
    with site.connection():
        pass


def test_a_changed_key_is_refused_with_both_fingerprints(site: Site) -> None:
    site.know(other := paramiko.ECDSAKey.generate())
    error = site.refusal()
    assert isinstance(error, HostKeyError)
    assert HOST_KEY.fingerprint in str(error)
    assert other.fingerprint in str(error)
    assert site.server.offered == []


def test_a_server_without_a_key_of_a_kind_we_know_is_refused(site: Site) -> None:
    site.know(OTHER_KEY)
    error = site.refusal()
    assert isinstance(error, HostKeyError)
    assert "no key of these kinds any more" in error.what
    assert OTHER_KEY.fingerprint in error.what


@pytest.mark.parametrize("first", [True, False])
def test_a_revoked_key_is_refused_wherever_it_stands(site: Site, first: bool) -> None:
    text = site.known.read_text()
    revoked = f"@revoked * {HOST_KEY.get_name()} {HOST_KEY.get_base64()}\n"
    site.known.write_text(revoked + text if first else text + revoked)
    assert "is revoked" in site.refusal().what


@pytest.mark.parametrize(
    "line",
    [
        "",
        "#",
        "@cert-authority * ssh-ed25519 AAAA",
        "a b",
        "* ssh-ed25519 !!!",
        "* rubbish AAAA",
        "* ssh-ed25519 AA==",
    ],
)
def test_lines_that_are_no_key_are_passed_over(site: Site, line: str) -> None:
    known = site.known.read_text()
    site.known.write_text(f"{line}\n")
    assert "holds no key" in site.refusal().what
    site.known.write_text(f"{line}\n{known}")
    with site.connection():
        pass


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_told(site: Site, content: bytes | None) -> None:
    site.known.unlink()
    if content is not None:
        site.known.write_bytes(content)
    error = site.refusal()
    assert isinstance(error, HostKeyError)
    assert "ssh.known_hosts" in error.fix


# Keys


def test_a_key_that_is_not_accepted_is_offered_once(site: Site) -> None:
    site.server.accepted = set()
    error = site.refusal()
    assert isinstance(error, AuthenticationError)
    assert f"accepts none of them (keys offered: {site.route.key_files[0]})" in error.what
    assert len(site.server.offered) == 1


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"methods": "password", "accepted": set()}, "takes no keys, only password"),
        ({"more": True, "methods": "keyboard-interactive"}, "beyond the key it wants keyboard-interactive"),
    ],
)
def test_what_only_a_person_could_give_is_told(site: Site, behaviour: dict[str, object], words: str) -> None:
    for name, value in behaviour.items():
        setattr(site.server, name, value)
    error = site.refusal()
    assert isinstance(error, AuthenticationError)
    assert words in error.what


def test_no_key_at_all_is_told(site: Site) -> None:
    site.route = replace(site.route, key_files=())
    assert "no key to offer (keys offered: none)" in site.refusal().what


@pytest.mark.parametrize("content", [None, b"", b"no key", bytes(range(100, 200))])
def test_a_key_file_that_is_none_is_told_and_nobody_is_asked(site: Site, content: bytes | None) -> None:
    site.route.key_files[0].unlink()
    if content is not None:
        site.route.key_files[0].write_bytes(content)
    error = site.refusal()
    assert isinstance(error, AuthenticationError)
    assert "cannot be read" in error.what
    assert site.server.offered == []


class Agent:
    held: ClassVar[list[paramiko.PKey]] = []
    closed: ClassVar[int] = 0

    def get_keys(self) -> tuple[paramiko.PKey, ...]:
        return tuple(self.held)

    def close(self) -> None:
        Agent.closed += 1


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Agent]]:
    monkeypatch.setattr(keys.paramiko, "Agent", Agent)
    Agent.closed = 0
    yield Agent
    Agent.held = []


def test_a_protected_key_is_used_through_an_agent_that_holds_it(
    site: Site, agent: type[Agent], tmp_path: Path
) -> None:
    key = write_key(tmp_path / "key", b"secret")
    site.server.accepted = {key.asbytes()}
    assert "no agent holds it" in site.refusal().what
    agent.held = [paramiko.ECDSAKey.generate(), key]
    with site.connection():
        pass
    assert site.server.offered == [key.asbytes()] * len(site.server.offered)
    (tmp_path / "key.pub").unlink()
    assert "no agent holds it" in site.refusal().what
    assert agent.closed == 3


def test_an_agents_keys_are_offered_each_once(site: Site, agent: type[Agent]) -> None:
    wrong = paramiko.ECDSAKey.generate()
    right = paramiko.ECDSAKey.generate()
    site.server.accepted = {right.asbytes()}
    site.route = replace(site.route, use_agent=True)
    agent.held = [wrong, paramiko.PKey.from_path(site.route.key_files[0]), right]
    with site.connection():
        pass
    offered = list(dict.fromkeys(site.server.offered))
    assert len(offered) == 3
    assert offered[-1] == right.asbytes()


def test_an_agent_that_fails_is_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise paramiko.SSHException("lost agent")

    monkeypatch.setattr(keys.paramiko, "Agent", fails)
    with site.connection():
        pass


def test_the_usual_keys_are_offered_and_unusable_ones_are_passed_over(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa").write_text("rubbish")
    write_key(tmp_path / ".ssh" / "id_ed25519", b"secret")
    key = write_key(tmp_path / ".ssh" / "id_ecdsa")
    site.server.accepted = {key.asbytes()}
    site.route = replace(site.route, key_files=(), look_for_keys=True)
    with site.connection():
        pass


# Servers that are none


def test_nobody_listening_is_told(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site.route = replace(site.route, port=port)
    assert "no connection" in site.refusal().what


def test_an_unknown_name_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fails)
    site.route = replace(site.route, hostname="nowhere")
    assert "the name nowhere is not known: Name or service not known" in site.refusal().what


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n" + bytes(200), b"SSH-1.5-old\r\n"]
)
def test_rubbish_is_an_outage(site: Site, said: bytes) -> None:
    def handle(wire: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client may have hung up first
            wire.sendall(said)
            wire.shutdown(socket.SHUT_WR)

    site.handle = handle
    error = site.refusal(timeout=5)
    assert type(error) is ConnectionError
    assert said or "hung up before it said that it speaks SSH" in error.what


def test_silence_is_a_timeout(site: Site) -> None:
    site.handle = lambda wire: None
    assert isinstance(site.refusal(timeout=0.2), TransportTimeout)


def test_a_greeting_and_then_silence_is_a_timeout(site: Site) -> None:
    site.handle = lambda wire: wire.sendall(b"SSH-2.0-x\r\n")
    assert isinstance(site.refusal(timeout=0.2), TransportTimeout)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Disconnect (code 2): Too many authentication failures", AuthenticationError),
        ("Authentication failed: transport shut down or saw EOF", ConnectionError),
        ("Authentication timeout.", TransportTimeout),
    ],
)
def test_a_link_that_breaks_at_login_is_no_refused_key(
    site: Site, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[ConnectionError]
) -> None:
    def breaks(transport: paramiko.Transport, *_: object) -> list[str]:
        transport.close()
        raise paramiko.AuthenticationException(text)

    monkeypatch.setattr(paramiko.Transport, "auth_publickey", breaks)
    assert type(site.refusal()) is kind


def test_a_jump_that_leads_nowhere_is_told(site: Site) -> None:
    site.server.sessions = 0
    site.route = replace(site.route, hostname="inner", known_as="inner", jumps=(site.route,))
    assert "no connection" in site.refusal().what


def test_a_proxy_command_that_fails_is_told(site: Site) -> None:
    site.route = replace(site.route, proxy_command="/nonexistent/proxy")
    assert "no connection" in site.refusal().what
