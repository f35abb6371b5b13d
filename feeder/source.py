"""Source: a producer of topics (the live session, the simulator, a replay), and the Sink to which it publishes.

This is a public protocol: packages of others have sources too (docs/sources.md). A source has its own threads. The
feeder calls `subscribe`, `unsubscribe`, `download` and `history` on the publisher's thread. They must return at once,
so a source that has to wait, such as xtquant, queues the call. A source answers through the sink, from any of its
threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from qmt_bridge.errors import ErrorCode
from qmt_bridge.observation.delays import Delays
from qmt_bridge.wire.messages import AccountState, PusherState, Session, TradeEvent
from qmt_bridge.wire.topics import Kind, Topic, TopicParts
from qmt_bridge.wire.topics import mask as mask

FeedState = Literal[Session, "ended"]
# The version of this protocol, which a source says it was written for. A new one is for a change that a source of the
# one before cannot live with; what is only added has none.
PROTOCOL = 1


class SessionState(NamedTuple):
    """The state of the source's session (see `Sink.set_state`)."""

    state: FeedState
    reason: str | None = None
    data_lost: bool = False


class DownloadRequest(NamedTuple):
    """The arguments of xtdata.download_history_data2; times are '' or 'YYYYMMDD' or 'YYYYMMDDhhmmss'."""

    stocks: tuple[str, ...]
    period: str
    start_time: str
    end_time: str


class Health(NamedTuple):
    """The SDK of a source: its version, and the call into it that runs now, with its age in seconds.

    The version is empty for a source without one, and for one that does not say it; the call is None while none runs.
    `trading_day` is whether stocks trade today by the source's calendar; None while it has none. `times` are those that
    calls into the SDK took since the start, by their names. `pushers` are the programs that push data to the source;
    `pushers_refused` counts the connections that were refused as one, by the code.
    """

    sdk: str = ""
    call: str | None = None
    call_age: float = 0.0
    trading_day: bool | None = None
    times: Mapping[str, Delays] = {}
    pushers: Sequence[PusherState] = ()
    pushers_refused: Mapping[str, int] = {}


def by_kind(kinds: frozenset[Kind]) -> dict[str, str]:
    """Return the capabilities of a source without an SDK: each kind of topic that it serves lacks nothing."""
    return dict.fromkeys(sorted(kinds), "")


class Sink(Protocol):
    """The calls by which a source publishes. Any thread may make them; only two of them may block."""

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        """Publish `body`, the object that a WebSocket client gets as JSON (docs/websocket.md).

        It is encoded before this returns, so the source may change it afterwards. `received_ns` is the time at which
        the source's callback was entered. A body that cannot be encoded is counted, logged once per kind, and dropped.
        """

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        """Publish whole-quote `ticks` by code, in batches of at most 64 KiB."""

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        """Journal and publish one trade event of `account`; `event` is its documented ``type``."""

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        """Yield the trade events of the journal since `since_ms`, each with its time in ms, oldest first.

        A source that queries all events of the day uses it to find those that were published before a restart. This
        waits for the disk, at most some seconds per thousand events. Raise `sqlite3.Error`, or `TimeoutError`.
        """

    def accept(self, topic: Topic) -> None:
        """Report that the source has subscribed `topic`; the first `publish` has the same effect."""

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        """Report that `topic` cannot be served, or no longer; its subscribers get the reason."""

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        """Report the state of the session; it is published on ``status/feeder/`` at once.

        It is ``connecting`` until the first report.
        """

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        """Report the states of all accounts; they are published on ``status/feeder/`` at once if they have changed."""

    def give_history(self, number: int, bodies: Iterable[object], from_ms: int) -> None:
        """Answer `Source.history` with bodies as `publish` takes them, oldest first, all since `from_ms`.

        They are encoded one by one before this returns. More than 16 MiB of them are refused.
        """

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        """Answer `Source.history`: it cannot be found."""

    def wait_room(self, limit: int, timeout: float) -> bool:
        """Block until fewer than `limit` messages wait to be sent; False if `timeout` seconds passed.

        A replay at full speed uses this call to keep pace with its consumers.
        """


class Source(Protocol):
    """A producer of topics."""

    # Read-only here, so that a source may have an attribute or a property.
    @property
    def protocol(self) -> int:
        """The version of the protocol that the source was written for: `PROTOCOL` of that time."""

    @property
    def name(self) -> str:
        """What the setting `source` chooses it by: "xtquant", "sim", "push", the name of an entry point.

        Of several sources as one it is such as "xtquant+push".
        """

    @property
    def simulated(self) -> bool:
        """Whether its data is invented; every place that shows the data shows this too. From any thread."""

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of topics that it has. The feeder refuses subscriptions to any other, which never reach it."""

    @property
    def lossless(self) -> bool:
        """True only for a replay at full speed: no message may be dropped, so a slow consumer delays all others."""

    def start(self, sink: Sink) -> None:
        """Start the source's threads and return; raise the error that prevents it."""

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic`; raise `Refused` or call ``sink.refuse`` if that is impossible."""

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic`, which was subscribed before. Cancel a download that runs, and publish its end."""

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Download history; publish progress and the end on `topic`; raise `Refused` if that is impossible.

        Progress is ``{"finished":1,"total":3,"stockcode":"000001.SZ","message":""}``; the last body is
        ``{"status":"done"}`` or ``{"status":"error","code":..,"error":..,"failed":{code: reason}}``.
        """

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Look for what `topic`, which is served, would have published of a day so far; raise `Refused` if impossible.

        The day in Shanghai is the one with the time `day_ms`; 0 is the newest. Answer the question `number` by
        `Sink.give_history` or `Sink.refuse_history`, within a minute. Each message that was published before this call
        is among those of the answer.
        """

    def upstream(self) -> int:
        """Return how many subscriptions the source has."""

    def hung(self) -> str | None:
        """Return which call of the source has not returned for so long that only a new process helps, else None.

        One thread calls this several times a second. It must not wait for a lock that such a call could hold.
        """

    def health(self) -> Health:
        """Return the version of the source's SDK, and which call into it runs. From any thread, without waiting."""

    def capabilities(self) -> Mapping[str, str]:
        """Return what the source can do as it is now: by the name of each capability what it lacks for it, or nothing.

        On a thread of its own: it may look at an SDK. Raise what prevents an answer.
        """

    def close(self) -> None:
        """Stop the threads; return within two seconds."""
