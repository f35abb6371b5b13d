"""What recording sinks share: they note what a source tells them, wait for it, and fail at a call no test expects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from feeder.source import FeedState
from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.topics import Topic
from tests.support.waiting import DEADLINE


class Recording:
    """The base of a recording sink; one for a test has the methods that the test expects the source to call.

    `seconds` is the longest wait of `until`.
    """

    seconds = DEADLINE

    def __init__(self) -> None:
        self.changed = threading.Condition()

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        _unexpected("publish", topic)

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        _unexpected("publish_whole", topic)

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        _unexpected("publish_trade", event)

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        _unexpected("past_trades", since_ms)

    def accept(self, topic: Topic) -> None:
        _unexpected("accept", topic)

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        _unexpected("refuse", topic, code, reason)

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        _unexpected("set_state", state, reason)

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        _unexpected("set_accounts", accounts)

    def wait_room(self, limit: int, timeout: float) -> bool:
        _unexpected("wait_room", limit)

    def note(self, where: list[Any], what: object) -> None:
        """Append `what` and notify those that wait."""
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds, looking again at each notification and each 20 ms."""
        deadline = time.monotonic() + self.seconds
        with self.changed:
            while not condition():
                assert time.monotonic() < deadline, f"never came: {vars(self)}"
                self.changed.wait(0.02)


def encoded(body: object) -> Any:
    """Return a body as a reader gets it, from an encoder that knows no type of xtquant's."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(body))


def _unexpected(name: str, *arguments: object) -> NoReturn:
    raise AssertionError(f"the source called {name}{arguments}")
