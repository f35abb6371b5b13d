"""The inbox of the publisher: what a source publishes, from any thread, encoded and queued for the publisher's thread.

It implements `feeder.source.Sink`. Each call encodes its data, queues it, wakes the publisher's thread and returns: it
waits neither for the network, nor for a disk or a consumer. The exceptions are `wait_room`, whose purpose is to wait,
and `past_trades`, which waits for the disk.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from feeder.events import Unsent
from feeder.journal.journal import Journal
from feeder.journal.thread import HUNG_SECONDS, JournalThread
from feeder.source import FeedState, SessionState
from feeder.sources.said import check_event, check_topic, known_accounts, known_code, known_state, plain
from qmt_bridge.errors import ErrorCode, WireError
from qmt_bridge.system import clock
from qmt_bridge.wire import earlier, frames
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.source_history import HISTORY_BYTES
from qmt_bridge.wire.topics import ALL_TRADES, KINDS, Topic, trade_topic

logger = logging.getLogger(__name__)

_BY_CODE = frozenset(kind for kind, behaviour in KINDS.items() if behaviour.keeps == "by_code")
_JOURNALED = frozenset(kind for kind, behaviour in KINDS.items() if behaviour.keeps == "journal")
# Stands for a topic in what is logged of a history.
_HISTORY = Topic("history/")
# A stamp holds unsigned 64-bit numbers; half of that is the year 2262.
_MAX_NS = 1 << 63
_trade_decoder = msgspec.json.Decoder(TradeEvent)


class Outlet(Protocol):
    """What happens to queued calls. The publisher implements it; all but `held` run on the publisher's thread."""

    def send(self, topic: Topic, body: bytes, pieces: Mapping[str, msgspec.Raw] | None, received_ns: int) -> None:
        """Number and send one message; `pieces` are the records of a body by code."""

    def accept(self, topic: Topic) -> None:
        """Note that the source has subscribed `topic`."""

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        """Note that the source cannot serve `topic`."""

    def change_state(self, state: SessionState) -> None:
        """Publish a new state of the session."""

    def change_accounts(self, accounts: tuple[AccountState, ...]) -> None:
        """Publish a new state of the accounts."""

    def give_history(self, number: int, bodies: Sequence[bytes], from_ms: int) -> None:
        """Answer a question for a history."""

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        """Answer that a history cannot be found."""

    def held(self) -> int:
        """Return how many trade events wait for the disk; any thread may ask."""


class Inbox:
    """Queues of encoded calls, and the socket that wakes the publisher's thread for them."""

    def __init__(self, outlet: Outlet) -> None:
        # Messages that could not be encoded, or only in part.
        self.unencodable = 0
        # The publisher's thread takes calls from the left, and puts one back there that it cannot make yet.
        self.calls: deque[Callable[[], None]] = deque()
        # Trade events have a queue of their own, so that no market message holds them up: topic, event, received_ns.
        self.trades: deque[tuple[Topic, Unsent, int]] = deque()
        # Set by the publisher's thread while it waits in poll.
        self.asleep = False
        self._outlet = outlet
        # Found once instead of at each message.
        self._send = outlet.send
        self._closed = False
        # `publish_trade` and `close_trades` take this lock: an event is in the queue before the last ones are written,
        # or the log says that it came too late.
        self._trades_lock = threading.Lock()
        self._trades_closed = False
        self._room = threading.Condition()
        self._room_wanted = 0
        self._logged_failures: set[tuple[str, type[Exception]]] = set()

    # -- The sink: called by the source, from any thread

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        """Encode and queue one message (see `Sink`)."""
        try:
            check_topic(topic)
            if isinstance(body, Mapping) and topic.partition("/")[0] in _BY_CODE:
                self.publish_whole(topic, body, received_ns)
                return
            _check_time(received_ns)
            encoded = frames.encode(body)
        except Exception as exc:
            self._not_encoded(topic, exc)
            return
        self.put(partial(self._send, topic, encoded, None, received_ns))

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        """Encode and queue ticks by code, each tick once (see `Sink`); one that cannot be encoded is left out."""
        pieces: dict[str, msgspec.Raw] = {}
        try:
            check_topic(topic)
            _check_time(received_ns)
            for code, tick in ticks.items():
                try:
                    pieces[code] = msgspec.Raw(frames.encode(tick))
                except Exception as exc:
                    self._not_encoded(topic, exc)
            bodies = list(frames.join(pieces))
            if len(bodies) == 1:
                self.put(partial(self._send, topic, bodies[0], pieces, received_ns))
            elif bodies:
                self.put(_Batches(self._send, topic, bodies, pieces, received_ns))
        except Exception as exc:
            self._not_encoded(topic, exc)

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        """Encode and queue one trade event (see `Sink`); it is on disk before it is sent."""
        try:
            check_event(account, event, data)
            topic = trade_topic(account)
            # Encoded here once, because a failure on the publisher's thread would end the feeder.
            frames.encode(event)
            encoded, received_ns = self._encode_trade(data, received_ns)
        except Exception as exc:
            self._not_encoded(ALL_TRADES, exc)
            return
        with self._trades_lock:
            if not self._trades_closed:
                self.trades.append((topic, Unsent(account, event, msgspec.Raw(encoded)), received_ns))
                self.wake_sleeper()
                return
        logger.error("a trade event of type %s came after the feeder's end and is not in the journal", event)

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        """Yield what the journal has (see `Sink`)."""
        after = 0
        while events := self._journal.call(partial(Journal.since, time_ms=since_ms, after=after), HUNG_SECONDS):
            for _, time_ms, body in events:
                if not isinstance(time_ms, int) or not isinstance(body, bytes):
                    logger.error("an event in the trade journal is damaged")
                    continue
                try:
                    event = frames.read(_trade_decoder, earlier.modern(body))
                except WireError as exc:
                    # Only this event is lost: those after it can be read.
                    logger.error("an event of %d bytes in the trade journal cannot be read: %s", len(body), exc)
                    continue
                yield time_ms, event
            after = events[-1][0]

    def accept(self, topic: Topic) -> None:
        """Queue that the source has subscribed `topic`."""
        try:
            check_topic(topic)
        except Exception as exc:
            self._not_taken("accept", exc)
            return
        self.put(partial(self._outlet.accept, topic))

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        """Queue that the source cannot serve `topic`."""
        try:
            check_topic(topic)
        except Exception as exc:
            self._not_taken("refuse", exc)
            return
        self.put(partial(self._outlet.refuse, topic, self._code(code), plain(reason) or ""))

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        """Queue a new state of the session."""
        try:
            told = SessionState(known_state(state), plain(reason), bool(data_lost))
        except Exception as exc:
            self._not_taken("set_state", exc)
            return
        self.put(partial(self._outlet.change_state, told))

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        """Queue how the trade events of all accounts are served."""
        try:
            told = known_accounts(accounts)
        except Exception as exc:
            self._not_taken("set_accounts", exc)
            return
        self.put(partial(self._outlet.change_accounts, told))

    def give_history(self, number: int, bodies: Iterable[object], from_ms: int) -> None:
        """Encode and queue the answer to a question for a history (see `Sink`)."""
        encoded: list[bytes] = []
        size = 0
        for body in bodies:
            try:
                encoded.append(frames.encode(body))
            except Exception as exc:
                self._count_failure(_HISTORY, exc, "cannot be encoded and is left out")
                continue
            size += len(encoded[-1])
            if size > HISTORY_BYTES:
                self.refuse_history(number, "upstream_refused", f"its history has more than {HISTORY_BYTES:,} bytes")
                return
        self.put(partial(self._outlet.give_history, number, encoded, from_ms))

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        """Queue that a history cannot be found."""
        self.put(partial(self._outlet.refuse_history, number, self._code(code), plain(reason) or ""))

    def wait_room(self, limit: int, timeout: float) -> bool:
        """Block until fewer than `limit` calls and trade events wait; False if `timeout` seconds passed."""

        def has_room() -> bool:
            return len(self.calls) + len(self.trades) + self._outlet.held() < limit

        if has_room():
            return True
        with self._room:
            self._room_wanted += 1
            try:
                return self._room.wait_for(has_room, timeout)
            finally:
                self._room_wanted -= 1

    # -- For the publisher

    def open(self) -> None:
        """Make the sockets that wake the publisher's thread."""
        # A pair of sockets, not a pipe: Windows cannot poll a pipe beside ZeroMQ sockets.
        self.waking, self._waker = socket.socketpair()
        self.waking.setblocking(False)
        self._waker.setblocking(False)

    def use(self, journal: JournalThread) -> None:
        """Let `past_trades` read `journal`; before the source starts."""
        self._journal = journal

    def put(self, call: Callable[[], None]) -> None:
        """Queue a call for the publisher's thread; from any thread."""
        self.calls.append(call)
        self.wake_sleeper()

    def wake_sleeper(self) -> None:
        """Wake the publisher's thread if it sleeps, after something was queued for it; from any thread."""
        # That thread looks at the queues once more after it has set `asleep`, so no wake-up is missed.
        if self.asleep:
            self.asleep = False
            self.wake()

    def wake(self) -> None:
        """Let `waking` become readable; from any thread."""
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            # The socket is full of wake-ups that are not read yet, which are enough.
            return
        except OSError:
            # A source may make its last callbacks after the end, when the socket is closed.
            if not self._closed:
                raise

    def notify_room(self) -> None:
        """Let the threads in `wait_room` look again."""
        if self._room_wanted:
            with self._room:
                self._room.notify_all()

    def close_trades(self) -> None:
        """Accept no trade event from now on; those accepted before are in `trades`."""
        with self._trades_lock:
            self._trades_closed = True

    def close(self) -> None:
        """Close the sockets."""
        self._closed = True
        self.waking.close()
        self._waker.close()

    def _encode_trade(self, data: Mapping[str, object], received_ns: int) -> tuple[bytes, int]:
        """Return the encoded data and its time; what cannot be encoded becomes text, because every fill counts."""
        try:
            _check_time(received_ns)
            return frames.encode(data), received_ns
        except Exception as exc:
            self._count_failure(ALL_TRADES, exc, "has a part that cannot be encoded")
        return frames.encode({str(name): _encodable(value) for name, value in data.items()}), clock.time_ns()

    def _code(self, code: ErrorCode) -> ErrorCode:
        """Return an error code; for any other word the one of errors of our own."""
        try:
            return known_code(code)
        except Exception as exc:
            self._not_taken("a refusal", exc)
            return "internal"

    def _not_taken(self, call: str, exc: Exception) -> None:
        """Count a call of the source that makes no sense, and log the first of each error."""
        self.unencodable += 1
        if (call, type(exc)) not in self._logged_failures:
            self._logged_failures.add((call, type(exc)))
            logger.error("the source has made a call that is not taken: %s: %s", call, exc, exc_info=exc)

    def _not_encoded(self, topic: Topic, exc: Exception) -> None:
        self._count_failure(topic, exc, "cannot be encoded and is dropped")

    def _count_failure(self, topic: Topic, exc: Exception, what: str) -> None:
        self.unencodable += 1
        kind = str(topic).partition("/")[0]
        seen = (kind, type(exc))
        # Every lost trade event is logged, of other kinds only the first of each error.
        if seen not in self._logged_failures or kind in _JOURNALED:
            self._logged_failures.add(seen)
            logger.error("a message of kind %s %s: %s", kind, what, exc, exc_info=exc)


class _Batches:
    """A call that sends all batches of one push.

    No question is answered between two of them: its answer would have the position of one in the middle, and a consumer
    would take the snapshot, which is counted up to there, for complete.
    """

    __slots__ = ("_bodies", "_pieces", "_received_ns", "_send", "_topic")

    def __init__(
        self,
        send: Callable[[Topic, bytes, Mapping[str, msgspec.Raw] | None, int], None],
        topic: Topic,
        bodies: Iterable[bytes],
        pieces: Mapping[str, msgspec.Raw],
        received_ns: int,
    ) -> None:
        self._send = send
        self._topic = topic
        self._bodies = deque(bodies)
        self._pieces = pieces
        self._received_ns = received_ns

    def __call__(self) -> None:
        """Send what is left; what `zmq.Again` interrupts goes on with the next call."""
        while self._bodies:
            self._send(self._topic, self._bodies[0], self._pieces, self._received_ns)
            self._bodies.popleft()
            # The snapshot may be newer than its sequence number but never older: all pieces go with the first batch.
            self._pieces = {}


def _encodable(value: object) -> object:
    """Return a value as it is if it can be encoded, else as text."""
    try:
        frames.encode(value)
    except Exception:
        return ascii(value)
    return value


def _check_time(received_ns: int) -> None:
    if not isinstance(received_ns, int) or not 0 <= received_ns < _MAX_NS:
        raise ValueError(f"received_ns must be nanoseconds since 1970, got {received_ns!r}")
