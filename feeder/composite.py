"""Several sources behind one: each topic is served by the first of them that may, by its kind and market.

Each source has its own threads, and reports its state to a sink of its own here. Together they are as the worst of
them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from feeder.source import PROTOCOL, DownloadRequest, FeedState, Health, SessionState, Sink, Source
from qmt_bridge.errors import ErrorCode, Refused
from qmt_bridge.observation.delays import Delays
from qmt_bridge.wire.messages import AccountState, PusherState, TradeEvent
from qmt_bridge.wire.topics import Topic, TopicParts, parse_topic

logger = logging.getLogger(__name__)

# Part of the two seconds that `close` may take; each source takes a little less.
CLOSE_SECONDS = 1.95
# From the best to the worst.
_RANK: Mapping[FeedState, int] = {"up": 0, "ended": 1, "stale": 2, "connecting": 3, "down": 4, "refused": 5}


class Member(NamedTuple):
    """A source, and which topics it serves."""

    source: Source
    serves: Callable[[TopicParts], bool]


class Composite:
    """Sources in the order in which they are asked whether they serve a topic; no source gets a kind that it lacks."""

    protocol = PROTOCOL

    def __init__(self, name: str, members: Sequence[Member]) -> None:
        self.name = name
        self.members = members
        self.kinds = frozenset(kind for member in members for kind in member.source.kinds)
        self.lossless = any(member.source.lossless for member in members)
        self._shares: list[_Share] = []
        self._sink: Sink
        # Sources report from threads of their own.
        self._lock = threading.Lock()

    @property
    def simulated(self) -> bool:
        """Return whether data of any source is invented."""
        return any(member.source.simulated for member in self.members)

    def start(self, sink: Sink) -> None:
        """Start all sources; those that were started are closed if one cannot be."""
        self._sink = sink
        self._shares = [_Share(sink, self._tell_state, self._tell_accounts) for _ in self.members]
        started: list[Source] = []
        try:
            for member, share in zip(self.members, self._shares, strict=True):
                member.source.start(share)
                started.append(member.source)
        except BaseException:
            for source in started:
                _close(source)
            raise

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic` (see `Source`)."""
        self._of(parts).subscribe(topic, parts)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic` (see `Source`)."""
        # One that was refused, or never subscribed, is no error (see `Source`).
        source = self._find(parts)
        if source is not None:
            source.unsubscribe(topic, parts)

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Download history (see `Source`)."""
        self._of(parse_topic(topic)).download(topic, request)

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Look for a history (see `Source`)."""
        self._of(parts).history(number, topic, parts, day_ms)

    def upstream(self) -> int:
        """Return how many subscriptions all sources have."""
        return sum(member.source.upstream() for member in self.members)

    def hung(self) -> str | None:
        """Return which call of any source does not return (see `Source`)."""
        return next((hung for member in self.members if (hung := member.source.hung()) is not None), None)

    def health(self) -> Health:
        """Return the SDK of the source that has one, and the pushers of all (see `Source`)."""
        healths = [member.source.health() for member in self.members]
        sdk = next((each for each in healths if each.sdk or each.call is not None), healths[-1])
        days = [each.trading_day for each in healths if each.trading_day is not None]
        times: dict[str, Delays] = {}
        pushers: list[PusherState] = []
        refused: Counter[str] = Counter()
        for each in healths:
            times.update(each.times)
            pushers += each.pushers
            refused.update(each.pushers_refused)
        day = days[0] if days else None
        return sdk._replace(trading_day=day, times=times, pushers=pushers, pushers_refused=refused)

    def capabilities(self) -> Mapping[str, str]:
        """Return what the sources can do: of a name that several have, what the first of them says."""
        found: dict[str, str] = {}
        for member in reversed(self.members):
            found.update(member.source.capabilities())
        return found

    def close(self) -> None:
        """Close the sources, all at once, within two seconds."""
        threads = [
            threading.Thread(target=_close, args=(member.source,), name="close", daemon=True) for member in self.members
        ]
        until = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.start()
        for thread, member in zip(threads, self.members, strict=True):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                logger.warning("source %s does not close; it is left behind", member.source.name)

    def _find(self, parts: TopicParts) -> Source | None:
        return next(
            (each.source for each in self.members if parts.kind in each.source.kinds and each.serves(parts)), None
        )

    def _of(self, parts: TopicParts) -> Source:
        source = self._find(parts)
        if source is None:
            raise Refused("upstream_refused", f"no source of {self.name} serves this {parts.kind}")
        return source

    def _tell_state(self, share: _Share, state: SessionState) -> None:
        """Publish the worst state after one source has changed its own; called by any thread.

        A loss is told once, with the report that says it: the state that it came with may last.
        """
        with self._lock:
            if state == share.session:
                return
            share.session = state
            worst = max(self._shares, key=lambda each: _RANK[each.session.state]).session
            self._sink.set_state(worst.state, worst.reason, data_lost=state.data_lost)

    def _tell_accounts(self, share: _Share, accounts: tuple[AccountState, ...]) -> None:
        """Publish the accounts of all sources; called by any thread."""
        with self._lock:
            share.accounts = accounts
            self._sink.set_accounts([account for each in self._shares for account in each.accounts])


class _Share:
    """The sink of one source: its state and accounts are those of one of several."""

    def __init__(
        self,
        sink: Sink,
        tell_state: Callable[[_Share, SessionState], None],
        tell_accounts: Callable[[_Share, tuple[AccountState, ...]], None],
    ) -> None:
        self._tell_state = tell_state
        self._tell_accounts = tell_accounts
        self.session = SessionState("connecting")
        self.accounts: tuple[AccountState, ...] = ()
        # Found once instead of at each message.
        self.publish = sink.publish
        self.publish_whole = sink.publish_whole
        self.publish_trade = sink.publish_trade
        self._sink = sink

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        return self._sink.past_trades(since_ms)

    def accept(self, topic: Topic) -> None:
        self._sink.accept(topic)

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        self._sink.refuse(topic, code, reason)

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        self._tell_state(self, SessionState(state, reason, data_lost))

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        self._tell_accounts(self, tuple(accounts))

    def give_history(self, number: int, bodies: Iterable[object], from_ms: int) -> None:
        self._sink.give_history(number, bodies, from_ms)

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        self._sink.refuse_history(number, code, reason)

    def wait_room(self, limit: int, timeout: float) -> bool:
        return self._sink.wait_room(limit, timeout)


def _close(source: Source) -> None:
    try:
        source.close()
    except Exception:
        logger.exception("source %s cannot be closed", source.name)
