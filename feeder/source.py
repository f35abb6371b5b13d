"""Source: a producer of topics (the live session, the simulator, a replay), and the Sink that it publishes to.

A source runs threads of its own. The feeder calls `subscribe`, `unsubscribe` and `download` on the publisher's
thread: they must return at once, so a source that has to wait, as that of xtquant does, enqueues the call. A source
answers through the sink, from any of its threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.topics import Kind, Topic, TopicParts
from qmt_bridge.wire.topics import mask as mask

FeedState = Literal["up", "down", "stale", "ended"]


class DownloadRequest(NamedTuple):
    """What xtdata.download_history_data2 takes; times are '' or 'YYYYMMDD' or 'YYYYMMDDhhmmss'."""

    stocks: tuple[str, ...]
    period: str
    start_time: str
    end_time: str


class Sink(Protocol):
    """The calls by which a source publishes. Any thread may make them; only two of them may block."""

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        """Publish `body`, the object a documented WebSocket client gets as JSON.

        It is encoded before this returns: a source may change it afterwards. `received_ns` is when the source's
        callback was entered. A body that cannot be encoded is counted, logged once per kind, and dropped.
        """

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        """Publish whole-quote `ticks` by code, in batches of at most 64 KiB."""

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        """Journal and publish one trade event of `account`; `event` is its documented ``type``."""

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        """Yield the trade events since `since_ms` out of the journal, each with its time in ms, oldest first.

        A source that queries all events of the day finds here those that were published before a restart. This call
        waits for the disk, at most some seconds a thousand events: raise `sqlite3.Error`, or `TimeoutError`.
        """

    def accept(self, topic: Topic) -> None:
        """Say that the source has subscribed `topic`; the first publish says so too."""

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        """Say that `topic` cannot be served, now or any more; its subscribers get the reason."""

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        """Say how the session is; published on ``status/feeder/`` at once. A source starts as ``down``."""

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        """Say how the trade events of all accounts are served; published on ``status/feeder/`` at once if it is new."""

    def wait_room(self, limit: int, timeout: float) -> bool:
        """Block until fewer than `limit` messages wait to be sent; False if `timeout` seconds passed.

        A replay at full speed uses this call to keep pace with its consumers.
        """


class Source(Protocol):
    """A producer of topics."""

    # "xtquant", "sim" or "replay"
    name: str
    # Whether its data is invented; every place that shows the data says so.
    simulated: bool
    # Subscriptions to any other kind are refused by the feeder before they reach the source.
    kinds: frozenset[Kind]
    # True only for a replay at full speed: no message may be dropped, so a slow consumer delays all others.
    lossless: bool

    def start(self, sink: Sink) -> None:
        """Start the source's threads and return; raise what makes starting impossible."""

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic`; raise `Refused` or call ``sink.refuse`` if it cannot be."""

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic`, which was subscribed before; of a download that runs: cancel it, and say so."""

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Download history; publish progress and the end on `topic`; raise `Refused` if it cannot be.

        Progress is ``{"finished":1,"total":3,"stockcode":"000001.SZ","message":""}``; the last body is
        ``{"status":"done"}`` or ``{"status":"error","code":..,"error":..,"failed":{code: reason}}``.
        """

    def upstream(self) -> int:
        """Return how many subscriptions are held at the source."""

    def hung(self) -> str | None:
        """Return which call of the source's has not returned for so long that only a new process helps, else None.

        Asked several times a second, by one thread; it must not wait for anything that such a call could hold.
        """

    def close(self) -> None:
        """Stop the threads; return within two seconds."""
