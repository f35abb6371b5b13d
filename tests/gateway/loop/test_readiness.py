"""Sockets of ZeroMQ beside a loop that cannot watch descriptors, as Windows' Proactor loop cannot."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gateway import server
from gateway.loop.readiness import Thread, watch
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import quote_topic
from tests.support.rig import running_rig
from tests.support.waiting import until

TICK = quote_topic("600519.SH")


class BlindLoop(asyncio.SelectorEventLoop):
    """A loop without `add_reader`."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        raise NotImplementedError


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "new_event_loop", BlindLoop)


@pytest.mark.usefixtures("blind")
async def test_a_gateway_serves_on_a_loop_that_watches_no_descriptor(config: Config) -> None:
    with running_rig(config) as rig:
        rig.serve()
        async with rig.connect("/ws/realtime") as client:
            await client.subscribed(stocks=["600519.SH"])
            for number in range(2000):
                rig.source.publish(TICK, {"600519.SH": [{"n": number}]})
            for number in range(2000):
                assert await client.receive() == {"600519.SH": [{"n": number}]}
        await rig.unwanted(TICK)
    assert not [thread for thread in threading.enumerate() if thread.name == "readiness"]


def run_blind(test: Callable[[asyncio.AbstractEventLoop], Any]) -> None:
    async def run() -> None:
        await test(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=BlindLoop) as runner:
        runner.run(run())


def test_it_calls_as_long_as_something_can_be_read() -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        one, other = socket.socketpair()
        calls: list[bytes] = []
        with one, other:
            watching = watch(loop, [one.fileno()], lambda: calls.append(one.recv(1)))
            assert isinstance(watching, Thread)
            other.send(b"abc")
            await until(lambda: len(calls) == 3)
            watching.close()
            other.send(b"d")
            assert one.recv(1) == b"d"
        assert calls == [b"a", b"b", b"c"]

    run_blind(test)


def test_one_call_is_made_before_the_next_is_planned() -> None:
    """A loop that is busy must not find a thousand calls when it comes back."""

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        planned: list[object] = []
        plan = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **options: (planned.append(args), plan(*args, **options))[1]  # type: ignore[method-assign, assignment, func-returns-value]
        one, other = socket.socketpair()
        with one, other:
            watching = Thread(loop, [one.fileno()], lambda: None)
            other.send(b"a")
            # The loop does nothing else meanwhile.
            while not planned:
                pass
            assert len(planned) == 1
            assert watching._made.acquire(timeout=0.05) is False
            assert len(planned) == 1
            watching.close()

    run_blind(test)


def test_a_rest_delays_the_next_call() -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        one, other = socket.socketpair()
        order: list[str] = []

        def call() -> None:
            order.append("call")
            # The loop keeps its timers in order, so no clock is asked how long it was.
            loop.call_later(0.1, order.append, "earlier")
            watching.rest(0.2)

        with one, other:
            watching = Thread(loop, [one.fileno()], call)
            other.send(b"a")
            await until(lambda: order.count("call") == 2)
            watching.close()
        assert order[:3] == ["call", "earlier", "call"]

    run_blind(test)


def test_a_failing_call_is_told_and_the_next_is_made() -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        failures: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        one, other = socket.socketpair()
        taken: list[bytes] = []

        def fail() -> None:
            taken.append(one.recv(1))
            raise ValueError(taken)

        with one, other:
            watching = Thread(loop, [one.fileno()], fail)
            other.send(b"ab")
            await until(lambda: len(failures) == 2)
            watching.close()
            watching.close()
        assert taken == [b"a", b"b"]

    run_blind(test)


def test_the_thread_ends_with_a_loop_that_was_closed() -> None:
    loop = BlindLoop()
    one, other = socket.socketpair()
    with one, other:
        watching = Thread(loop, [one.fileno()], lambda: None)
        loop.close()
        other.send(b"a")
        watching._thread.join(10)
        assert not watching._thread.is_alive()
        watching.close()
