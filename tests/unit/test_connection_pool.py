"""The pool: few connections, opened by one thread at a time, given up and left alone when they fail."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from mqi_hpc.core.errors import AuthenticationError, ChannelRefused, ConnectionError, HostKeyError
from mqi_hpc.core.retry import CircuitBreaker, RetryPolicy
from mqi_hpc.infrastructure.config.models import SSHConfig
from mqi_hpc.infrastructure.connection.pool import CONTROL_CHANNELS, SSHConnectionPool


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class Channel:
    def __init__(self, connection: FakeConnection) -> None:
        self.connection = connection

    def close(self) -> None:
        self.connection.open -= 1


class FakeConnection:
    """Takes `limit` channels; `alive` may be set from outside."""

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self.open = 0
        self.opened = 0
        self.alive = True
        self.closed = False
        self.error: Exception | None = None

    def open_channel(self, timeout: float) -> Any:
        if self.error is not None:
            raise self.error
        if self.open >= self.limit:
            raise ChannelRefused("no more")
        self.open += 1
        self.opened += 1
        return Channel(self)

    def close(self) -> None:
        self.closed = True
        self.alive = False


class World:
    """A pool whose dials are answered from a script, and all connections it opened."""

    def __init__(self, size: int = 3, **breaker: Any) -> None:
        self.clock = Clock()
        self.connections: list[FakeConnection] = []
        self.answers: list[Any] = []
        self.dials = 0
        policy = RetryPolicy(max_attempts=3, base_delay=0.0)
        self.pool = SSHConnectionPool(
            SSHConfig(host="login", connection_pool_size=size),
            policy,
            CircuitBreaker(**breaker),
            self.clock,
            random.Random(1),
            dialer=self.dial,
        )

    def dial(self) -> FakeConnection:
        self.dials += 1
        answer = self.answers.pop(0) if self.answers else FakeConnection()
        if isinstance(answer, Exception):
            raise answer
        self.connections.append(answer)
        return answer

    def use(self, *, control: bool = True, wait: float = 0.0) -> FakeConnection:
        with self.pool.channel(control=control, wait=wait) as lease:
            return lease.channel.connection  # type: ignore[attr-defined, no-any-return]


def test_one_connection_is_opened_when_needed_and_used_again() -> None:
    world = World()
    assert world.dials == 0
    assert world.use() is world.use()
    assert (world.dials, world.connections[0].open) == (1, 0)


def test_control_is_shared_and_transfers_are_not() -> None:
    world = World(size=3)
    with ExitStack() as stack:
        leases = [
            stack.enter_context(world.pool.channel(control=True, wait=0)) for _ in range(CONTROL_CHANNELS)
        ]
        with pytest.raises(ConnectionError, match="busy"):
            world.use(control=True)
        for _ in range(world.pool.transfers):
            leases.append(stack.enter_context(world.pool.channel(control=False, wait=0)))
        with pytest.raises(ConnectionError, match="busy"):
            world.use(control=False)
        assert [c.open for c in world.connections] == [CONTROL_CHANNELS, 1, 1]
    assert [c.open for c in world.connections] == [0, 0, 0]


def test_a_pool_of_one_serves_both() -> None:
    world = World(size=1)
    assert world.pool.transfers == 1
    assert world.use(control=False) is world.use(control=True)


def test_who_waits_gets_the_place_that_comes_free() -> None:
    world = World(size=2)
    world.clock.time = 0.0
    with ThreadPoolExecutor() as threads:
        with world.pool.channel(control=False, wait=0):
            waiting = threads.submit(world.use, control=False, wait=60)
        assert waiting.result(timeout=30) is world.connections[0]
    assert world.dials == 1


def test_a_refused_channel_kills_no_connection_and_waits_for_its_turn() -> None:
    world = World()
    world.answers = [FakeConnection(limit=1)]
    with ThreadPoolExecutor() as threads:
        with world.pool.channel(control=True, wait=0):
            waiting = threads.submit(world.use, control=True, wait=60)
        assert waiting.result(timeout=30) is world.connections[0]
    assert not world.connections[0].closed
    assert world.dials == 1


def test_a_server_that_takes_no_channel_at_all_is_told() -> None:
    world = World()
    world.answers = [FakeConnection(limit=0)]
    with pytest.raises(ChannelRefused):
        world.use()
    assert not world.connections[0].closed
    world.connections[0].limit = 1
    assert world.use() is world.connections[0]


def test_a_connection_that_died_unnoticed_is_replaced_once() -> None:
    world = World()
    first = world.use()
    first.error = ConnectionError("lost")
    assert world.use() is world.connections[1]
    assert first.closed
    world.connections[1].error = ConnectionError("lost")
    broken = FakeConnection()
    broken.error = ConnectionError("lost at once")
    world.answers = [broken]
    with pytest.raises(ConnectionError, match="lost at once"):
        world.use()


def test_an_unexpected_error_is_not_hidden_and_gives_the_place_back() -> None:
    world = World()
    world.use().error = RuntimeError("a fault")
    with pytest.raises(RuntimeError, match="a fault"):
        world.use()
    assert world.connections[0].closed
    assert world.use() is world.connections[1]


def test_one_known_to_be_dead_is_closed_and_replaced() -> None:
    world = World()
    world.use().alive = False
    assert world.use() is world.connections[1]
    assert world.connections[0].closed


def test_a_retired_connection_finishes_its_work_and_takes_no_more() -> None:
    world = World()
    with world.pool.channel(control=True, wait=0) as submit:
        with world.pool.channel(control=True, wait=0) as poll:
            poll.retire()
        assert world.use() is world.connections[1]
        assert not world.connections[0].closed
        assert submit.channel is not None
    assert world.connections[0].closed
    assert not world.connections[1].closed


def test_opening_is_tried_again_with_backoff_and_then_given_up() -> None:
    world = World()
    world.answers = [ConnectionError("down"), ConnectionError("down"), FakeConnection()]
    world.use()
    assert world.dials == 3
    world.connections[0].alive = False
    world.answers = [ConnectionError("down", where="login")] * 3
    with pytest.raises(ConnectionError, match="login: down"):
        world.use()
    assert world.dials == 6


@pytest.mark.parametrize("error", [AuthenticationError, HostKeyError])
def test_a_refusal_is_never_tried_again_until_the_pause_is_over(error: type[ConnectionError]) -> None:
    world = World(timeout=60.0)
    world.answers = [error("no", fix="Look")]
    with pytest.raises(error, match=r"^no\. Look$"):
        world.use()
    world.clock.time += 20
    with pytest.raises(error, match=r"no\. Look\. It is not tried again for 40 s"):
        world.use()
    assert world.dials == 1
    world.clock.time += 41
    assert world.use() is world.connections[0]


def test_the_breaker_opens_and_half_opens() -> None:
    world = World(failure_threshold=4, timeout=60.0)
    world.answers = [ConnectionError("down")] * 5
    for _ in range(2):
        with pytest.raises(ConnectionError, match="down"):
            world.use()
    assert world.dials == 4
    with pytest.raises(ConnectionError, match=r"down\. It is not tried again for 60 s"):
        world.use()
    assert world.dials == 4
    world.clock.time += 60
    with pytest.raises(ConnectionError, match=r"down$"):
        world.use()
    assert world.dials == 5
    world.clock.time += 60
    world.use()
    world.connections[0].alive = False
    world.answers = [ConnectionError("down"), ConnectionError("down"), FakeConnection()]
    world.use()


def held(world: World, answer: Callable[[], FakeConnection]) -> tuple[threading.Event, threading.Event]:
    """Make the next dial wait for the second event, and set the first when it has begun."""
    begun, go = threading.Event(), threading.Event()

    def dial() -> FakeConnection:
        world.dials += 1
        begun.set()
        assert go.wait(30)
        connection = answer()
        world.connections.append(connection)
        return connection

    world.pool._dial = dial
    return begun, go


def test_threads_that_wait_for_one_opening_share_its_success() -> None:
    world = World()
    world.clock.time = 0.0
    begun, go = held(world, FakeConnection)
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(world.use, control=True, wait=60) for _ in range(8)]
        assert begun.wait(30)
        go.set()
        assert {id(w.result(timeout=30)) for w in waiting} == {id(world.connections[0])}
    assert world.dials == 1


def test_threads_that_wait_for_one_opening_share_its_failure() -> None:
    world = World(failure_threshold=1)

    def down() -> FakeConnection:
        raise ConnectionError("down")

    begun, go = held(world, down)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(world.use, control=True, wait=60)
        assert begun.wait(30)
        others = [threads.submit(world.use, control=n % 2 == 0, wait=60) for n in range(3)]
        go.set()
        for waiting in (first, *others):
            with pytest.raises(ConnectionError, match="down"):
                waiting.result(timeout=30)
    assert world.dials == 1


def test_close_ends_everything_and_nothing_is_opened_after_it() -> None:
    world = World()
    begun, go = held(world, FakeConnection)
    with ThreadPoolExecutor() as threads:
        opening = threads.submit(world.use, control=True, wait=60)
        assert begun.wait(30)
        world.pool.close()
        go.set()
        with pytest.raises(ConnectionError, match="stopping"):
            opening.result(timeout=30)
    assert world.connections[0].closed
    with pytest.raises(ConnectionError, match="stopping"):
        world.use()
    assert world.dials == 1


def test_close_closes_what_is_open() -> None:
    world = World()
    with world.pool.channel(control=True, wait=0):
        world.pool.close()
        assert world.connections[0].closed
