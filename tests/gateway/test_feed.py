"""The questions that a worker asks by itself, without clients; no sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from gateway.feed import Feed, _Resident
from gateway.hub import Hub
from qmt_bridge.wire import frames
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import ALL_TRADES, Topic


class Line:
    """Replaces the feed: records questions, and keeps the calls that are to be made later."""

    def __init__(self) -> None:
        self.hub = Hub(self)
        self.asked: list[int | None] = []
        self.waiting: list[Callable[[float], None]] = []

    def subscribe(self, topic: Topic) -> None:
        """Ignore it."""

    def unsubscribe(self, topic: Topic) -> None:
        """Ignore it."""

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int:
        self.asked.append(None if after is None else after.seq)
        return len(self.asked)

    def later(self, delay: float, act: Callable[[float], None]) -> None:
        self.waiting.append(act)


def resident() -> Line:
    line = Line()
    line.hub.feeder_seen(1, 5, 0.0)
    _Resident(cast(Feed, line)).join()
    return line


def test_worker_reads_the_journal_to_its_end() -> None:
    line = resident()
    line.hub.answer(TopicState(1, ALL_TRADES, "live", epoch=1, seq=6, body=frames.encode([{"seq": 6}]), more=True), 0.0)
    line.waiting.pop()(0.0)
    assert line.asked == [5, 6]


def test_worker_joins_again_after_a_refusal() -> None:
    line = resident()
    line.hub.answer(TopicState(1, ALL_TRADES, "refused", "not there", "resume_expired", 2, 3), 0.0)
    assert not line.hub.streams
    line.waiting.pop()(1.0)
    assert list(line.hub.streams) == [ALL_TRADES]
