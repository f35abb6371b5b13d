"""All pushers of a feeder: which are connected, what is wanted of each, and what each message does.

On the thread "push". `PushSource` hands over the feeder's calls; connections bring messages. Nothing here waits but
`give_way`, for some milliseconds.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from feeder.push.connection import Connection
from feeder.push.entrance import Entrance
from feeder.push.identities import WINDOW_MS, Identities
from feeder.push.lines import Budget
from feeder.push.message import (
    PROTOCOL,
    Accept,
    Accounts,
    BadLine,
    Bye,
    Heartbeat,
    Hello,
    History,
    Message,
    Record,
    Refuse,
    State,
    one_line,
    told,
)
from feeder.push.offer import BadHello, Offer, Permits, named, read_offer
from feeder.push.pusher import Asked, Pusher
from feeder.push.spoken import SERVED, spell
from feeder.push.standing import Feed, Standings
from feeder.refusals import Refusals
from feeder.source import DownloadRequest, Sink
from qmt_bridge.errors import ErrorCode
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import AccountState, PusherState
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

logger = logging.getLogger(__name__)

# Seconds without a line after which a pusher is given up, and between two lines of the feeder's.
SILENCE_SECONDS = 15
HEARTBEAT_SECONDS = 5.0
# Seconds between two looks at the clocks; and at what waits for room.
LOOK_SECONDS = 1.0
FLUSH_SECONDS = 0.002
# Seconds in which an answer with a history has to come: the feeder's asker is told a minute.
HISTORY_SECONDS = 55.0
# Seconds after a hello before topics that no pusher serves are refused: another one may be about to connect.
DECIDE_SECONDS = 2.0
# Topics of the whole demand that are told or refused before another connection has its turn: some 5 ms.
DEMAND_TOPICS = 500
# Changes of the state that are told in a second: each is a heartbeat, a line of the log, and a notice to all clients.
CHANGES_A_SECOND = 20
# Codes with which a connection is refused.
REFUSALS = ("bad_request", "forbidden", "taken", "unsupported")
# Topics as they are subscribed.
Topics = Sequence[tuple[Topic, TopicParts]]
# What is lacking for a kind of topics.
_UNSERVED = "no pusher that is connected serves it"
_NS_PER_MS = 1_000_000


class Pushers:
    """The pushers, and the demand."""

    def __init__(
        self,
        sink: Sink,
        permits: Permits,
        key: str,
        epoch: int,
        *,
        real: bool = False,
        window_ms: int = WINDOW_MS,
    ) -> None:
        self._sink = sink
        # Whether trade events go to the journal of another source, which has no invented ones.
        self._real = real
        self._permits = permits
        self._key = key.encode()
        self._epoch = epoch
        self._loop: asyncio.AbstractEventLoop
        self._entrance = Entrance(sink, self._flush_later, window_ms)
        self._standings = Standings(permits, _now_ms())
        self._pushers: dict[str, Pusher] = {}
        self._by_connection: dict[Connection, Pusher] = {}
        # What the feeder has subscribed, and the name of the pusher that was told.
        self._wanted: dict[Topic, TopicParts] = {}
        self._told: dict[Topic, str] = {}
        self._downloads: dict[Topic, str] = {}
        self._feed: Feed | None = None
        # Changes that may be told at once, and what tells the others later.
        self._changes = Budget(CHANGES_A_SECOND)
        self._telling: asyncio.TimerHandle | None = None
        self._accounts: list[AccountState] = []
        self._refused = Refusals()
        # Connections that were refused, by the code; read by other threads, so that no code is added.
        self.connections_refused = dict.fromkeys(REFUSALS, 0)
        # Comings and goings that may be logged at once, and how many were not logged.
        self._logged = Budget(CHANGES_A_SECOND)
        self._unlogged = 0
        self._flushing = False
        self._deciding: asyncio.TimerHandle | None = None
        self._heartbeat_at = 0.0
        # Read by other threads: replaced as a whole.
        self.listed: tuple[PusherState, ...] = ()
        self.served: Mapping[Kind, str] = dict.fromkeys(SERVED, _UNSERVED)
        self.simulated = False

    # -- Of the thread

    def start(self, closing: threading.Event) -> None:
        """Begin, on the loop."""
        self._loop = asyncio.get_running_loop()

        def done(found: Identities) -> None:
            if not closing.is_set():
                self._loop.call_soon_threadsafe(self._entrance.restored, found)

        threading.Thread(target=self._entrance.restore, args=(closing, done), name="push-restore", daemon=True).start()
        self._tell_state()
        self._look()

    def close(self) -> None:
        """End all connections."""
        for connection in list(self._by_connection):
            connection.end()

    # -- Of the feeder, handed over

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Tell a pusher that a topic is wanted; without one that serves it, wait for it or refuse."""
        self._wanted[topic] = parts
        pusher = self._server_of(parts)
        if pusher is not None:
            self._tell_wanted(pusher, topic, parts)
        elif not self._may_come(parts):
            self._refuse_unserved(topic, parts)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Tell the pusher that a topic is not wanted any more; of a download: cancel it."""
        if parts.kind is Kind.DOWNLOAD:
            self._cancel(topic, parts)
            return
        self._wanted.pop(topic, None)
        name = self._told.pop(topic, None)
        pusher = self._pushers.get(name or "")
        if pusher is not None:
            pusher.forget(topic)
            pusher.connection.send(told("unsubscribe", topic=spell(parts)))

    def download(self, topic: Topic, parts: TopicParts, request: DownloadRequest) -> None:
        """Tell a pusher to download."""
        pusher = self._server_of(parts)
        if pusher is None:
            self._end_download(topic, "no pusher that downloads is connected any more")
            return
        self._downloads[topic] = pusher.name
        pusher.connection.send(told("download", topic=spell(parts), **request._asdict()))

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Ask the pusher that serves a topic for what there was of it on a day."""
        pusher = self._pushers.get(self._told.get(topic, ""))
        if pusher is None and topic in self._wanted:
            pusher = self._server_of(parts)
            if pusher is not None:
                # It is told in a later turn otherwise, and the question would precede the subscription.
                self._tell_wanted(pusher, topic, parts)
        if pusher is None or not pusher.has_history:
            reason = "its pusher is not connected" if pusher is None else f"the pusher {pusher.name} has no history"
            code: ErrorCode = "upstream_unavailable" if pusher is None else "upstream_refused"
            self._sink.refuse_history(number, code, reason)
            return
        from_ms = midnight(day_ms or _now_ms())
        pusher.asked[number] = Asked(parts.name, from_ms, clock.monotonic() + HISTORY_SECONDS)
        pusher.connection.send(told("history", id=number, topic=spell(parts), **{"from": from_ms}))

    @property
    def upstream(self) -> int:
        """Return how many topics pushers serve; from any thread."""
        return len(self._told)

    # -- Of the connections (`feeder.push.connection.Owner`)

    def take(self, connection: Connection, message: Message) -> bool:
        """Take a hello (see `Owner`); what follows has a shorter way."""
        if not isinstance(message, Hello):
            raise BadLine("bad_request", "the first line has to be the hello")
        self._welcome(connection, message)
        return True

    def refused(self, connection: Connection, bad: BadLine) -> None:
        """Count a line that was refused, and tell it; before the hello it ends the connection."""
        pusher = self._by_connection.get(connection)
        if pusher is None:
            self._refuse(connection, "bad_request", f"line {connection.number}: {bad.reason}")
            return
        pusher.standing.refused += 1
        connection.refuse_line(bad)
        untold = self._refused.note(pusher.name.encode(), clock.monotonic())
        if untold is not None:
            more = f"; {untold} more since the last such line" if untold else ""
            told_reason = ascii(bad.reason[:200])[1:-1]
            logger.warning("pusher %s: line %d is refused: %s%s", pusher.name, connection.number, told_reason, more)

    def lost(self, connection: Connection) -> None:
        """Note that a pusher is gone."""
        pusher = self._by_connection.get(connection)
        if pusher is not None:
            self._leave(pusher, bye=False)

    def give_way(self) -> None:
        """Let the publisher's thread publish (see `Owner`)."""
        self._entrance.give_way()

    def is_crowded(self) -> bool:
        """Return whether the inbox has no room (see `Owner`)."""
        return self._entrance.is_crowded()

    # -- A pusher comes and goes

    def _welcome(self, connection: Connection, hello: Hello) -> None:
        if self._key and not hmac.compare_digest(hello.key.encode("utf-8", "surrogatepass"), self._key):
            self._refuse(connection, "forbidden", "key: the setting push_key of the feeder is another one")
            return
        if hello.protocol != PROTOCOL:
            self._refuse(connection, "unsupported", f"the feeder speaks version {PROTOCOL} of this protocol")
            return
        try:
            offer = read_offer(hello, self._permits)
        except BadHello as exc:
            self._refuse(connection, "forbidden" if exc.forbidden else "bad_request", str(exc))
            return
        if self._real and hello.simulated and Kind.TRADE in offer.markets:
            reason = "simulated: beside another source trade events are real, invented ones need the source push alone"
            self._refuse(connection, "forbidden", reason, hello.name)
            return
        for other in self._pushers.values():
            both = "" if other.name == hello.name else offer.overlap(other.offer)
            if both:
                self._refuse(connection, "taken", f"{both} is served by {other.name}", hello.name)
                return
        before = self._pushers.get(hello.name)
        if before is not None:
            self._leave(before, bye=False)
            before.connection.end(told("refused", code="replaced", error="a newer connection has this name"))
        self._admit(connection, hello, offer)

    def _admit(self, connection: Connection, hello: Hello, offer: Offer) -> None:
        standing = self._standings.welcome(hello.name, offer, _now_ms(), simulated=hello.simulated)
        pusher = Pusher(
            connection, standing, offer, self._entrance, self._wanted, self._downloads, has_history=hello.history
        )
        self._pushers[hello.name] = self._by_connection[connection] = pusher
        connection.welcomed(partial(self._take, pusher))
        # Before the welcome is read, what other threads read says so too.
        self._show()
        self._log(logging.INFO, f"pusher {hello.name} is connected: {hello}")
        connection.send(told("welcome", protocol=PROTOCOL, epoch=self._epoch, silence=SILENCE_SECONDS))
        self._go_through(list(self._wanted), partial(self._tell_demand, pusher))
        self._tell_state()
        if self._deciding is None:
            self._deciding = self._loop.call_later(DECIDE_SECONDS, self._decide)

    def _refuse(self, connection: Connection, code: str, reason: str, name: str = "") -> None:
        self.connections_refused[code] += 1
        connection.end(told("refused", code=code, error=reason[:300]))
        untold = self._refused.note(f"hello {code}".encode(), clock.monotonic())
        if untold is not None:
            more = f"; {untold} more since the last such line" if untold else ""
            who = f"pusher {name}" if name else "a pusher"
            logger.warning("%s is refused: %s: %s%s", who, code, ascii(reason[:200])[1:-1], more)

    def _leave(self, pusher: Pusher, *, bye: bool) -> None:
        del self._pushers[pusher.name]
        del self._by_connection[pusher.connection]
        pusher.close()
        if bye:
            self._log(logging.INFO, f"pusher {pusher.name} says bye")
        else:
            self._log(logging.WARNING, f"pusher {pusher.name} is gone")
        for topic in [topic for topic, name in self._told.items() if name == pusher.name]:
            del self._told[topic]
        for topic in [topic for topic, name in self._downloads.items() if name == pusher.name]:
            self._end_download(topic, f"the pusher {pusher.name} is gone")
        for number in pusher.asked:
            self._sink.refuse_history(number, "upstream_unavailable", f"the pusher {pusher.name} is gone")
        self._standings.gone(pusher.name, _now_ms(), bye=bye)
        self._tell_state()
        if bye:
            self._decide()

    def _log(self, level: int, line: str) -> None:
        """Log that a pusher comes or goes; one that connects again at once must not fill the disk."""
        if not self._logged.take(clock.monotonic()):
            self._unlogged += 1
            return
        more = f"; {self._unlogged} more lines of pushers were not logged" if self._unlogged else ""
        self._unlogged = 0
        logger.log(level, "%s%s", line, more)

    # -- What a pusher says

    def _take(self, pusher: Pusher, message: Message) -> bool:
        if type(message) is Record:
            return pusher.take(message)
        self._handle(pusher, message)
        return True

    def _handle(self, pusher: Pusher, message: Message) -> None:
        match message:
            case Heartbeat():
                pass
            case State():
                reason = one_line(message.reason) if message.reason and message.state != "up" else None
                self._standings.say(pusher.name, message.state, reason, _now_ms(), data_lost=message.data_lost)
                self._tell_state()
            case Accounts():
                self._set_accounts(pusher, message)
            case Accept():
                topic = pusher.served(bytes(message.topic)).topic
                if self._told.get(topic) == pusher.name:
                    self._sink.accept(topic)
            case Refuse():
                self._take_refusal(pusher, message)
            case History():
                self._take_history(pusher, message)
            case Bye():
                self._leave(pusher, bye=True)
                pusher.connection.end(told("bye"))
            case _:
                raise BadLine("bad_request", "a hello was said before")

    def _set_accounts(self, pusher: Pusher, message: Accounts) -> None:
        allowed = pusher.offer.accounts
        if Kind.TRADE not in pusher.offer.markets:
            raise BadLine("not_wanted", f"{pusher.name} does not serve trade")
        if allowed is not None and any(each.account not in allowed for each in message.accounts):
            raise BadLine("not_wanted", f"{pusher.name} does not serve all of these accounts")
        self._standings.set_accounts(pusher.name, message.accounts, _now_ms())
        self._tell_state()

    def _take_refusal(self, pusher: Pusher, message: Refuse) -> None:
        error = one_line(message.error)[:300]
        if message.id is not None:
            if pusher.asked.pop(message.id, None) is not None:
                self._sink.refuse_history(message.id, message.code, error)
            return
        topic = pusher.served(bytes(message.topic)).topic
        if topic in self._downloads:
            if self._downloads[topic] == pusher.name:
                self._end_download(topic, error, message.code)
        elif self._told.get(topic) == pusher.name:
            # It stays wanted: a later subscriber asks again.
            self._sink.refuse(topic, message.code, error)

    def _take_history(self, pusher: Pusher, message: History) -> None:
        asked = pusher.asked.get(message.id)
        if asked is None:
            # It came too late.
            return
        try:
            others = sum(each.size for each in pusher.asked.values() if each is not asked)
            if not asked.add(message, others):
                return
        except BadLine as bad:
            del pusher.asked[message.id]
            self._sink.refuse_history(message.id, "upstream_refused", bad.reason)
            raise
        del pusher.asked[message.id]
        self._sink.give_history(message.id, asked.bodies, asked.from_ms)

    # -- Demand

    def _server_of(self, parts: TopicParts) -> Pusher | None:
        return next((each for each in self._pushers.values() if each.offer.serves(parts)), None)

    def _may_come(self, parts: TopicParts) -> bool:
        """Return whether a pusher that is not connected may serve a topic."""
        if named(self._permits, parts):
            return True
        if self._permits:
            return False
        absent = self._standings.absent()
        serves = any(each.offer is not None and each.offer.serves(parts) for each in absent)
        return serves or (not self._pushers and not absent) or self._deciding is not None

    def _go_through(self, topics: Sequence[Topic], do: Callable[[Topics], None], begin: int = 0) -> None:
        """Do something with those of `topics` that are wanted and not told, a piece in each turn of the loop."""
        end = begin + DEMAND_TOPICS
        # Some of them may have been left since, or left, subscribed again and told.
        do(
            [
                (each, self._wanted[each])
                for each in topics[begin:end]
                if each in self._wanted and each not in self._told
            ]
        )
        if end < len(topics):
            self._loop.call_soon(self._go_through, topics, do, end)

    def _tell_demand(self, pusher: Pusher, topics: Topics) -> None:
        if self._pushers.get(pusher.name) is pusher:
            lines = [self._begin(pusher, topic, parts) for topic, parts in topics if pusher.offer.serves(parts)]
            pusher.connection.send(b"".join(lines))

    def _tell_wanted(self, pusher: Pusher, topic: Topic, parts: TopicParts) -> None:
        pusher.connection.send(self._begin(pusher, topic, parts))

    def _begin(self, pusher: Pusher, topic: Topic, parts: TopicParts) -> bytes:
        """Note that a pusher is told a topic; return the line."""
        self._told[topic] = pusher.name
        pusher.forget(topic)
        return told("subscribe", topic=spell(parts))

    def _decide(self) -> None:
        """Refuse the topics that no pusher serves."""
        if self._deciding is not None:
            self._deciding.cancel()
            self._deciding = None
        self._go_through(list(self._wanted), self._refuse_demand)

    def _refuse_demand(self, topics: Topics) -> None:
        for topic, parts in topics:
            # What a pusher is told in a later turn is served.
            if self._server_of(parts) is None and not self._may_come(parts):
                self._refuse_unserved(topic, parts)

    def _refuse_unserved(self, topic: Topic, parts: TopicParts) -> None:
        if self._permits:
            reason = f"no pusher of the setting pushers may serve this {parts.kind}"
        else:
            reason = f"no pusher that is connected serves this {parts.kind}"
        self._sink.refuse(topic, "upstream_refused", reason)

    def _cancel(self, topic: Topic, parts: TopicParts) -> None:
        pusher = self._pushers.get(self._downloads.get(topic, ""))
        if topic in self._downloads:
            self._end_download(topic, "the download was cancelled")
        if pusher is not None:
            pusher.connection.send(told("unsubscribe", topic=spell(parts)))

    def _end_download(self, topic: Topic, reason: str, code: ErrorCode = "upstream_unavailable") -> None:
        self._downloads.pop(topic, None)
        self._entrance.leave_out(topic)
        end: dict[str, object] = {"status": "error", "type": "error", "code": code, "error": reason, "failed": {}}
        self._sink.publish(topic, end, clock.time_ns())

    # -- Clocks

    def _look(self) -> None:
        self._loop.call_later(LOOK_SECONDS, self._look)
        now = clock.monotonic()
        beats = now >= self._heartbeat_at
        if beats:
            self._heartbeat_at = now + HEARTBEAT_SECONDS
        for pusher in list(self._pushers.values()):
            if beats:
                pusher.connection.send(told("heartbeat", time=_now_ms()))
            for number in [number for number, asked in pusher.asked.items() if now >= asked.until]:
                del pusher.asked[number]
                self._sink.refuse_history(number, "upstream_unavailable", f"{pusher.name} has not answered in time")
            if pusher.connection.silent(now) > SILENCE_SECONDS:
                logger.warning("pusher %s has said nothing for %d s", pusher.name, SILENCE_SECONDS)
                pusher.connection.end()
                self._leave(pusher, bye=False)
        self._show()

    def _flush_later(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._entrance.flush()
        if self._entrance.has_waiting:
            self._flush_later()

    # -- State

    def _tell_state(self) -> None:
        """Tell the feed and the accounts, if they have changed; what changes too often is told a moment later."""
        self._show()
        if not self._has_news():
            return
        if self._telling is None and self._changes.take(clock.monotonic()):
            self._tell()
        elif self._telling is None:
            self._telling = self._loop.call_later(1 / CHANGES_A_SECOND, self._tell_newest)

    def _has_news(self) -> bool:
        feed = self._standings.feed()
        is_known = self._feed is not None and feed[:2] == self._feed[:2] and not feed.data_lost
        return not is_known or self._standings.accounts() != self._accounts

    def _tell_newest(self) -> None:
        self._telling = None
        if self._has_news():
            self._tell()

    def _tell(self) -> None:
        feed, accounts = self._standings.feed(), self._standings.accounts()
        if accounts != self._accounts:
            self._accounts = accounts
            self._sink.set_accounts(accounts)
        if self._feed is None or feed[:2] != self._feed[:2] or feed.data_lost:
            if feed == self._feed:
                # Another loss in the same state: the same report twice would be none.
                self._sink.set_state(feed.state, feed.reason)
            self._feed = feed
            self._standings.told()
            self._sink.set_state(feed.state, feed.reason, data_lost=feed.data_lost)

    def _show(self) -> None:
        now = clock.monotonic()
        silent = {name: round(each.connection.silent(now), 1) for name, each in self._pushers.items()}
        self.listed = self._standings.listed(silent)
        self.simulated = self._standings.simulated
        served = dict.fromkeys(SERVED, _UNSERVED)
        for each in self._pushers.values():
            served.update(dict.fromkeys(each.offer.markets, ""))
        self.served = served


def _now_ms() -> int:
    return clock.time_ns() // _NS_PER_MS
