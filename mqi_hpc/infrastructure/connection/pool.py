"""A few shared SSH connections: one for control, the others for transfers, each opened when needed."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import paramiko

from mqi_hpc.core.errors import AuthenticationError, ChannelRefused, ConnectionError, HostKeyError
from mqi_hpc.core.interfaces import IClock
from mqi_hpc.core.retry import CircuitBreaker, RetryPolicy
from mqi_hpc.infrastructure.config.models import SSHConfig
from mqi_hpc.infrastructure.connection.dial import Connection, Dial, dial
from mqi_hpc.infrastructure.connection.host_keys import KnownHosts
from mqi_hpc.infrastructure.connection.route import resolve

CONTROL_CHANNELS = 4


@dataclass(slots=True)
class _Member:
    """An open connection: how many channels are in use on it, and how many may be."""

    connection: Connection
    control: bool
    limit: int
    channels: int = 0
    retired: bool = False

    @property
    def usable(self) -> bool:
        return not self.retired and self.connection.alive and self.channels < self.limit


class Lease:
    """A channel that is the holder's until it gives it back."""

    def __init__(self, channel: paramiko.Channel, pool: SSHConnectionPool, member: _Member) -> None:
        self.channel = channel
        self._pool = pool
        self._member = member

    def retire(self) -> None:
        """Trust this connection no more: it takes no new work, and ends with the work it has."""
        self._pool.retire(self._member)


class SSHConnectionPool:
    """At most `connection_pool_size` connections to one host.

    One is for control: commands share it, each on a channel of its own. A transfer has a connection to
    itself, so that one that stalls delays no poll; with a pool of one they share. Opening is done by
    one thread at a time; who waits for it shares its success or its error.
    """

    def __init__(
        self,
        config: SSHConfig,
        retry: RetryPolicy,
        breaker: CircuitBreaker,
        clock: IClock,
        rng: random.Random,
        *,
        dialer: Dial | None = None,
    ) -> None:
        route = resolve(config)
        self.target = str(route)
        known = KnownHosts(config.known_hosts)
        self._dial = dialer or (lambda: dial(route, known, config.connect_timeout_seconds))
        self._size = config.connection_pool_size
        self._channel_timeout = config.connect_timeout_seconds
        self._retry = retry
        self._breaker = breaker
        self._clock = clock
        self._rng = rng
        self._cond = threading.Condition()
        self._stop = threading.Event()
        self._members: list[_Member] = []
        self._opening = False
        self._failures = 0
        self._last_error: ConnectionError | None = None
        # What paramiko has to say reaches people in our words; its own tracebacks would only frighten.
        logging.getLogger("paramiko").addHandler(logging.NullHandler())
        if logging.getLogger("paramiko").level == logging.NOTSET:
            logging.getLogger("paramiko").setLevel(logging.CRITICAL)

    @property
    def transfers(self) -> int:
        """How many transfers can run at once."""
        return max(1, self._size - 1)

    @contextlib.contextmanager
    def channel(self, *, control: bool, wait: float) -> Iterator[Lease]:
        """Lend a fresh channel; waits up to `wait` seconds for a free place.

        Raises ConnectionError, or finer: AuthenticationError, HostKeyError, ChannelRefused.
        """
        member, channel = self._open(control, wait)
        try:
            yield Lease(channel, self, member)
        finally:
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                channel.close()
            self._give_back(member)

    def retire(self, member: _Member) -> None:
        """Give `member` no new work; it is closed once the work on it is done."""
        with self._cond:
            member.retired = True
            self._cond.notify_all()

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._members)

    def close(self) -> None:
        """Close every connection; whoever waits, or works on one, gets a ConnectionError."""
        self._stop.set()
        with self._cond:
            members, self._members = self._members, []
            self._cond.notify_all()
        for member in members:
            member.connection.close()

    # Inside

    def _open(self, control: bool, wait: float) -> tuple[_Member, paramiko.Channel]:
        deadline = self._clock.monotonic() + wait
        refusals = losses = 0
        while True:
            member = self._lease(control, deadline)
            try:
                return member, member.connection.open_channel(self._channel_timeout)
            except ChannelRefused:
                others = self._refused(member)
                if not others:
                    refusals += 1
                    delay = self._retry.delay(refusals, self._rng.random())
                    if delay is None or self._stop.wait(delay):
                        raise
            except BaseException as error:
                self.retire(member)
                self._give_back(member)
                losses += 1
                if not isinstance(error, ConnectionError) or losses > 1:
                    raise
                # It had died unnoticed; nothing was sent on it, so a fresh one may be asked once.

    def _refused(self, member: _Member) -> int:
        """Give back a place whose channel was refused; return how many others are in use beside it.

        Where others are, that many are what the server takes: wait for one of them next time.
        """
        with self._cond:
            others = member.channels - 1
            if others:
                member.limit = min(member.limit, others)
        self._give_back(member)
        return others

    def _lease(self, control: bool, deadline: float) -> _Member:
        """Return a member with a free place, which is then taken; opens one where there is room for it."""
        control = control or self._size == 1
        failures: int | None = None
        while True:
            with self._cond:
                self._check(failures)
                for member in self._members:
                    if member.control == control and member.usable:
                        member.channels += 1
                        return member
                dead = self._take_dead()
                busy = not dead and (self._opening or not self._room(control))
                if busy:
                    failures = self._failures if failures is None else failures
                    left = deadline - self._clock.monotonic()
                    if left <= 0:
                        raise ConnectionError("every connection is busy", where=self.target)
                    self._cond.wait(min(left, 1.0))
                elif not dead:
                    self._opening = True
            for member in dead:
                member.connection.close()
            if not busy and not dead:
                return self._dial_member(control)

    def _check(self, failures: int | None) -> None:
        """Raise where it is of no use to go on: stopped, paused, or what was waited for has failed."""
        if self._stop.is_set():
            raise ConnectionError("the program is stopping", where=self.target)
        error = self._last_error
        if error is not None and failures is not None and failures != self._failures:
            raise _again(error, "")
        now = self._clock.monotonic()
        if error is not None and not self._breaker.allows(now):
            left = self._breaker.timeout - (now - (self._breaker.opened_at or now))
            raise _again(error, f"It is not tried again for {left:.0f} s")

    def _room(self, control: bool) -> bool:
        # One that only finishes its work is not counted: its successor must not wait for it.
        held = sum(m.control == control and not m.retired and m.connection.alive for m in self._members)
        return held < (1 if control else self._size - 1)

    def _take_dead(self) -> list[_Member]:
        dead = [m for m in self._members if not m.channels and (m.retired or not m.connection.alive)]
        self._members = [m for m in self._members if m not in dead]
        return dead

    def _give_back(self, member: _Member) -> None:
        with self._cond:
            member.channels -= 1
            dead = self._take_dead()
            self._cond.notify_all()
        for gone in dead:
            gone.connection.close()

    def _dial_member(self, control: bool) -> _Member:
        connection: Connection | None = None
        try:
            connection = self._dial_retrying()
        finally:
            with self._cond:
                self._opening = False
                self._failures += connection is None
                self._cond.notify_all()
        limit = CONTROL_CHANNELS if control else 1
        member = _Member(connection=connection, control=control, limit=limit, channels=1)
        with self._cond:
            if not self._stop.is_set():
                self._members.append(member)
                return member
        connection.close()
        raise ConnectionError("the program is stopping", where=self.target)

    def _dial_retrying(self) -> Connection:
        attempt = 0
        while True:
            attempt += 1
            try:
                connection = self._dial()
            except ConnectionError as error:
                self._failed(error)
                delay = self._retry.delay(attempt, self._rng.random())
                final = isinstance(error, AuthenticationError | HostKeyError) or delay is None
                if final or not self._breaker.allows(self._clock.monotonic()) or self._stop.wait(delay):
                    raise
            else:
                with self._cond:
                    self._breaker = self._breaker.succeeded()
                    self._last_error = None
                return connection

    def _failed(self, error: ConnectionError) -> None:
        with self._cond:
            now = self._clock.monotonic()
            self._last_error = error
            self._breaker = self._breaker.failed(now)
            if isinstance(error, AuthenticationError | HostKeyError):
                # Every further try of another thread counts towards a ban: open at once.
                self._breaker = replace(self._breaker, opened_at=now)


def _again(error: ConnectionError, note: str) -> ConnectionError:
    """Return a fresh error of the same words: one object raised in two threads mixes their traces."""
    return type(error)(error.what, where=error.where, fix=". ".join(filter(None, (error.fix, note))))
