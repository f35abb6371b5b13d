"""The order in which records leave the entrance, and events that cannot be encoded. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from feeder.push import entrance
from feeder.push.entrance import Entrance
from feeder.push.identities import Identities
from feeder.push.message import BadLine
from feeder.push.route import Route
from feeder.push.standing import Standing
from feeder.source import Sink
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.topics import Topic, parse_topic
from tests.support.sink import Recording

TICKS, PRINTS, MARKET, JOB = "quote/600519.SH/tick/", "quote/600519.SH/l2transaction/", "whole/SH/", "download/1/"
NOW = 1_796_000_000_000


class Inbox(Recording):
    """An inbox in which `waiting` messages are; what it gets is in `said`."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.said: list[tuple[str, bytes]] = []

    def wait_room(self, limit: int, timeout: float) -> bool:
        return self.waiting < limit

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        self.said.append((topic, encode(body)))

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        self.said.append((topic, encode(ticks)))

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        self.said.append((account, encode(data)))


class Taking:
    """An entrance, and the inbox behind it."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.entrance = Entrance(cast(Sink, self.inbox), lambda: None)
        self.standing = Standing("desk", False, 0)

    def take(self, topic: str, data: Any) -> bool:
        route = Route(Topic(topic), parse_topic(topic))
        return self.entrance.market(route, route.body(data), 1, self.standing)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Taking:
    monkeypatch.setattr(entrance, "_LOOK_EVERY", 5)
    return Taking()


def fill(taking: Taking) -> None:
    """Take records until the next one waits, since the inbox has no room."""
    taking.inbox.waiting = entrance.ROOM
    while not taking.entrance.has_waiting:
        assert taking.take(TICKS, {"n": 0})
    taking.inbox.said.clear()


def test_no_record_overtakes_one_that_waits(taking: Taking) -> None:
    fill(taking)
    taking.inbox.waiting = 0
    assert taking.take(TICKS, {"n": 1})
    # With the look at the room for it, some records may go without another look.
    assert taking.take(PRINTS, {"n": 2})
    assert taking.take(TICKS, {"n": 3})
    taking.entrance.flush()
    assert taking.inbox.said == [(PRINTS, b'{"600519.SH":[{"n":2}]}'), (TICKS, b'{"600519.SH":[{"n":3}]}')]
    assert taking.standing.conflated == 2


def test_snapshot_replaces_what_waits_of_its_market(taking: Taking) -> None:
    fill(taking)
    assert taking.take(MARKET, {"600000.SH": {"n": 1}, "600001.SH": {"n": 1}})
    market = Route(Topic(MARKET), parse_topic(MARKET))
    taking.entrance.snapshot(market, {"600000.SH": cast(Any, {"n": 2})}, 1)
    taking.inbox.waiting = 0
    taking.entrance.flush()
    assert [body for topic, body in taking.inbox.said if topic == MARKET] == [
        b'{"600000.SH":{"n":2}}',
        b'{"600001.SH":{"n":1}}',
    ]


def test_no_progress_follows_the_end_of_a_download(taking: Taking) -> None:
    fill(taking)
    assert taking.take(JOB, {"finished": 1, "total": 2})
    taking.entrance.leave_out(Topic(JOB))
    taking.inbox.waiting = 0
    taking.entrance.flush()
    assert JOB not in dict(taking.inbox.said)


def test_event_that_cannot_be_encoded_leaves_its_id_free(taking: Taking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance.clock, "time_ns", lambda: NOW * 1_000_000)
    taking.entrance.restored(Identities())
    nested: list[Any] = []
    for _ in range(1000):
        nested = [nested]
    with pytest.raises(BadLine):
        taking.entrance.trade("1", "order", "a", {"x": nested}, (NOW, 1))
    assert taking.inbox.said == []
    for _ in range(2):
        assert taking.entrance.trade("1", "order", "a", {"x": 1}, (NOW, 1))
    assert taking.inbox.said == [("1", b'{"x":1,"account_id":"1","push_id":"a"}')]
