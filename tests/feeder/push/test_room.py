"""Back-pressure: a pusher that is too fast is held, its quotes are conflated, its events are not. Real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from feeder.push import entrance
from tests.support.push_feeder import QUOTE, Desk, desk
from tests.support.pusher import ACCOUNT, CODE, SPOKEN, TRADE, Pusher
from tests.support.waiting import wait_for

PRINTS = "quote/600519.SH/l2transaction/"
PRINT = {"kind": "quote", "code": CODE, "period": "l2transaction"}
BARS = "quote/600519.SH/1m/"
BAR = {"kind": "quote", "code": CODE, "period": "1m"}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as found:
        yield found


@contextmanager
def stopped(running: Desk) -> Iterator[None]:
    """Stop the publisher's thread: nothing leaves the inbox."""
    may_go, has_stopped = threading.Event(), threading.Event()

    def wait() -> None:
        has_stopped.set()
        may_go.wait(60)

    running.feeder.publisher.inbox.put(wait)
    assert has_stopped.wait(10)
    try:
        yield
    finally:
        may_go.set()


def answers(pusher: Pusher) -> bool:
    """Return whether the feeder still reads what this pusher sends."""
    pusher.say({"type": "nonsense"})
    return pusher.until("error")["code"] == "bad_request"


def standing(running: Desk, name: str = "desk") -> Any:
    return next(each for each in running.push.health().pushers if each.name == name)


def test_quotes_without_room_are_conflated(running: Desk) -> None:
    consumer = running.consumer(QUOTE, BARS, PRINTS)
    pusher = running.pusher()
    for _ in range(3):
        pusher.until("subscribe")
    count = entrance.ROOM + 5000
    with stopped(running):
        lines = (json.dumps({"topic": SPOKEN, "data": {"time": number}}) for number in range(count))
        pusher.raw("".join(f"{line}\n" for line in lines).encode())
        for time in (60, 60, 120):
            pusher.push({"time": time, "close": time}, BAR)
        pusher.push([{"time": 120, "close": 1}, {"time": 180, "close": 2}], BAR)
        for number in range(10):
            pusher.push({"tradeIndex": number}, PRINT)
        assert answers(pusher)
    consumer.until(lambda: consumer.bodies and consumer.bodies[-1] == (QUOTE, {CODE: [{"time": count - 1}]}))
    consumer.until(lambda: sum(topic == BARS for topic, _ in consumer.bodies) == 3)
    bars = [body[CODE][0] for topic, body in consumer.bodies if topic == BARS]
    assert bars == [{"time": 60, "close": 60}, {"time": 120, "close": 1}, {"time": 180, "close": 2}]
    prints = [body[CODE][0]["tradeIndex"] for topic, body in consumer.bodies if topic == PRINTS]
    assert prints == list(range(10))
    ticks = [body[CODE][0]["time"] for topic, body in consumer.bodies if topic == QUOTE]
    assert ticks == sorted(ticks)
    assert len(ticks) < count
    consumer.until(lambda: standing(running).conflated == count + 5 - len(ticks) - len(bars))


def test_trade_events_without_room_hold_their_pusher(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "ROOM", 5)
    monkeypatch.setattr(entrance, "EVENT_ROOM", 50)
    trading = running.pusher(name="trading", kinds=["trade"])
    quoting = running.pusher(name="quoting")
    consumer = running.consumer(QUOTE)
    quoting.until("subscribe")
    count = 500

    def event(number: int) -> str:
        data = {"order_id": number, "order_remark": "x" * 2000}
        return json.dumps({"topic": TRADE, "id": str(number), "event": "order", "data": data})

    # More than the buffers of a connection take, whatever the system's limits are.
    lines = "".join(f"{event(number % count)}\n" for number in range(40 * count)).encode()
    trading.socket.settimeout(None)
    sending = threading.Thread(target=trading.socket.sendall, args=(lines,))
    with stopped(running):
        sending.start()
        wait_for(lambda: len(running.feeder.publisher.inbox.trades) >= 50, "events that wait")
        # Another pusher is read all the same, and its quotes are conflated.
        for number in range(1000):
            quoting.push({"time": number})
        assert answers(quoting)
        # TCP holds the other one: memory does not take what it sends.
        assert sending.is_alive()
        assert len(running.feeder.publisher.inbox.trades) <= 50
    consumer.until(lambda: consumer.bodies and consumer.bodies[-1] == (QUOTE, {CODE: [{"time": 999}]}))
    consumer.until(lambda: standing(running, "trading").records >= count)
    sending.join()
    # Each once, whatever was resent; none is left out.
    consumer.until(lambda: running.feeder.publisher._sent.newest == count)


def test_prints_without_room_hold_their_pusher(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "ROOM", 5)
    monkeypatch.setattr(entrance, "EVENT_ROOM", 50)
    monkeypatch.setattr(entrance, "_LOOK_EVERY", 10)
    consumer = running.consumer(PRINTS)
    pusher = running.pusher()
    pusher.until("subscribe")
    with stopped(running):
        for number in range(80):
            pusher.push({"tradeIndex": number}, PRINT)
        connections = running.push._pushers._by_connection  # type: ignore[union-attr]
        wait_for(lambda: any(each._held is not None for each in connections), "the pusher to be held")
        queued = [call.args[0] for call in running.feeder.publisher.inbox.calls if isinstance(call, partial)]
        assert queued.count(PRINTS) <= 50
    consumer.until(lambda: len(consumer.bodies) == 80)
    assert [body[CODE][0]["tradeIndex"] for _, body in consumer.bodies] == list(range(80))


def test_a_held_pusher_is_not_silent(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "EVENT_ROOM", 0)
    monkeypatch.setattr("feeder.push.pushers.SILENCE_SECONDS", 0.2)
    monkeypatch.setattr("feeder.push.pushers.LOOK_SECONDS", 0.05)
    consumer = running.consumer()
    held = running.pusher(name="held", kinds=["trade"])
    held.say({"topic": TRADE, "id": "1", "event": "order", "data": {}})
    running.pusher(name="quiet", kinds=["quote"])
    consumer.until(lambda: standing(running, "quiet").state == "down")
    assert standing(running, "held").state == "up"
    assert standing(running, "held").silent == 0


def test_the_conflation_has_a_bound_and_holds_then(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "ROOM", 5)
    running.push._pushers._entrance._waiting._limit = 20_000  # type: ignore[union-attr]
    topics = [f"quote/{number:06d}.SZ/tick/" for number in range(200)]
    consumer = running.consumer(*topics)
    pusher = running.pusher()
    for _ in topics:
        pusher.until("subscribe")
    with stopped(running):
        for number in range(200):
            pusher.push({"time": number}, {"kind": "quote", "code": f"{number:06d}.SZ", "period": "tick"})
        waiting = running.push._pushers._entrance._waiting  # type: ignore[union-attr]
        wait_for(lambda: not waiting.has_room(), "the bound")
        assert waiting.size < 21_000
    consumer.until(lambda: len({topic for topic, _ in consumer.bodies}) == 200)


def test_a_line_of_many_bars_waits_for_the_inbox(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "ROOM", 5)
    waiting = running.push._pushers._entrance._waiting  # type: ignore[union-attr]
    monkeypatch.setattr(waiting, "_limit", 20_000)
    consumer = running.consumer(BARS, QUOTE)
    pusher = running.pusher()
    pusher.until("subscribe")
    pusher.until("subscribe")
    with stopped(running):
        for number in range(60):
            pusher.push({"time": number})
        wait_for(lambda: len(waiting) == 1, "what waits")
        # 100 bars of 10 bytes take more than all that may wait.
        pusher.push([{"time": number} for number in range(100)], BAR)
        connections = running.push._pushers._by_connection  # type: ignore[union-attr]
        wait_for(lambda: any(each._held is not None for each in connections), "the pusher to be held")
        assert len(waiting) == 1
    consumer.until(lambda: (BARS, {CODE: [{"time": number} for number in range(100)]}) in consumer.bodies)


def test_account_is_masked_in_the_state(running: Desk) -> None:
    consumer = running.consumer()
    running.pusher(kinds=["trade"], accounts=[ACCOUNT])
    consumer.until(lambda: consumer.status(state="up")["pushers"][0]["accounts"] == ["******0365"])
