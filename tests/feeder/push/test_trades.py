"""Trade events of pushers: each is published once, also over restarts. Real sockets, a real feeder and journal."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zmq

from feeder.push import entrance
from feeder.xt.trading.records import EVENTS
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import TRADE_TYPES
from tests.support.push_feeder import Desk, desk
from tests.support.pusher import ACCOUNT, TRADE
from tests.support.waiting import wait_for

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as found:
        yield found


class Trades:
    """A SUB of trade events."""

    def __init__(self, running: Desk) -> None:
        self._socket = running.consumer().listen_to_trades(running.feeder)
        # A socket of its own for what must not have come.
        self.events: list[dict[str, Any]] = []

    def read(self, count: int) -> list[dict[str, Any]]:
        """Return the next events."""

        def is_there() -> bool:
            while self._socket.poll(10):
                self.events.append(Frame.from_parts(self._socket.recv_multipart(zmq.NOBLOCK)).data)
            return len(self.events) >= count

        wait_for(is_there, f"{count} events")
        found, self.events = self.events[:count], self.events[count:]
        return found


def event(number: int, **fields: Any) -> dict[str, Any]:
    data = {"account_id": ACCOUNT, "order_id": number}
    return {"topic": TRADE, "id": f"order/{number}", "event": "order", "data": data, **fields}


def ids(events: list[dict[str, Any]]) -> list[str]:
    return [each["data"]["push_id"] for each in events]


def test_the_types_are_those_of_the_documented_layer() -> None:
    assert set(EVENTS.values()) <= TRADE_TYPES


def test_a_resent_event_is_no_second_one(running: Desk) -> None:
    trades = Trades(running)
    pusher = running.pusher(kinds=["trade"])
    wait_for_subscriber(running, trades, pusher)
    pusher.say(event(1), event(2), event(1), event(2, data={"account_id": ACCOUNT, "price": 5}), event(3))
    found = trades.read(3)
    assert ids(found) == ["order/1", "order/2", "order/3"]
    assert found[0] == {"type": "order", "seq": found[0]["seq"], "data": {**event(1)["data"], "push_id": "order/1"}}
    # The same id of another account is another event.
    other = {"topic": {"kind": "trade", "account": "2"}, "data": {"order_id": 1}}
    pusher.say({**event(1), **other})
    assert trades.read(1)[0]["data"] == {"order_id": 1, "account_id": "2", "push_id": "order/1"}


def wait_for_subscriber(running: Desk, trades: Trades, pusher: Any) -> None:
    """Push events until one arrives: a SUB that has just connected misses what was published before."""
    first = number = time.time_ns()

    def arrives() -> bool:
        nonlocal number
        number += 1
        pusher.say(event(number))
        return bool(trades.events) or bool(trades._socket.poll(50))

    wait_for(arrives, "the first event")
    pusher.say(event(first))
    while ids(trades.read(1)) != [f"order/{first}"]:
        pass


def test_a_resend_after_a_restart_is_left_out(tmp_path: Path) -> None:
    with desk(tmp_path) as running:
        trades = Trades(running)
        pusher = running.pusher(kinds=["trade"])
        wait_for_subscriber(running, trades, pusher)
        pusher.say(*(event(number) for number in range(10)))
        assert len(trades.read(10)) == 10
    with desk(tmp_path) as running:
        trades = Trades(running)
        pusher = running.pusher(kinds=["trade"])
        wait_for_subscriber(running, trades, pusher)
        pusher.say(*(event(number) for number in range(12)))
        assert ids(trades.read(2)) == ["order/10", "order/11"]
    with closing(sqlite3.connect(tmp_path / "journal-push.sqlite3")) as journal, journal:
        (count,) = journal.execute("SELECT count(*) FROM event WHERE CAST(body AS TEXT) LIKE '%order/5\"%'").fetchone()
    assert count == 1


def test_trade_events_wait_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "_RETRY_SECONDS", 0.01)
    failures = iter([sqlite3.OperationalError("disk I/O error"), TimeoutError("5 s")])

    def past(self: object, since_ms: int) -> Iterator[Any]:
        raise next(failures)
        yield

    with monkeypatch.context() as patched:
        patched.setattr("feeder.inbox.Inbox.past_trades", past)
        with desk(tmp_path) as running:
            trades = Trades(running)
            pusher = running.pusher(kinds=["trade", "quote"])
            # Its third attempt fails otherwise, and is tried again as well.
            pusher.say(event(1), {"type": "heartbeat"})
            other = running.pusher(name="other", kinds=["l2"])
            other.say({"type": "nonsense"})
            assert other.until("error")["line"] == 2
            connections = running.push._pushers._by_connection  # type: ignore[union-attr]
            wait_for(lambda: any(each._held is not None for each in connections), "the event to be held")
            assert running.feeder.publisher._sent.newest == 0
            patched.undo()
            wait_for_subscriber(running, trades, pusher)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({"id": None}, "bad_request", id="no-id"),
        pytest.param({"id": 5}, "bad_request", id="number"),
        pytest.param({"id": "x" * 129}, "bad_request", id="long-id"),
        pytest.param({"id": ""}, "bad_request", id="empty-id"),
        pytest.param({"event": "orders"}, "bad_request", id="event"),
        pytest.param({"data": [1]}, "bad_request", id="data"),
        pytest.param({"data": {"account_id": "2"}}, "bad_request", id="other-account"),
        pytest.param({"topic": {"kind": "trade", "account": "2"}}, "not_wanted", id="account"),
        pytest.param({"time": 1000}, "late", id="late"),
    ],
)
def test_a_trade_event_that_is_refused(running: Desk, fields: dict[str, Any], code: str) -> None:
    pusher = running.pusher(kinds=["trade"], accounts=[ACCOUNT])
    pusher.say({**event(1), **fields})
    error = pusher.until("error")
    assert (error["line"], error["code"]) == (2, code)
    assert ACCOUNT not in error["error"]


def test_what_the_journal_does_not_keep_is_late(tmp_path: Path) -> None:
    with desk(tmp_path, journal_days=1) as found:
        pusher, trades = found.pusher(kinds=["trade"]), Trades(found)
        wait_for_subscriber(found, trades, pusher)
        now = time.time_ns() // 1_000_000
        pusher.say({**event(1), "time": now - 25 * 3600 * 1000}, {**event(2), "time": now - 23 * 3600 * 1000})
        assert pusher.until("error")["code"] == "late"
        assert ids(trades.read(1)) == ["order/2"]
