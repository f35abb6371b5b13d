"""What a replay plays: the ticks of a CSV file, or the messages of a tape. Never sorts, merges or changes them.

Runs on the player's thread (`feeder.replay.player`), except `check`, which any thread may call. No clock, no waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Set
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from feeder.source import Sink
from qmt_bridge.errors import ConfigError, ErrorCode, Refused, WireError
from qmt_bridge.tapes.tally import MAX_TOPIC_BYTES, MAX_TOPICS, Tally
from qmt_bridge.tapes.tape import SESSION_TOPIC, Recorded, TapeReader, is_tape, read_tape
from qmt_bridge.tapes.ticks_csv import LeftOut, TickRow, read_csv
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import (
    ALL_TRADES,
    KINDS,
    STATUS_TOPIC,
    Behaviour,
    Kind,
    Topic,
    TopicParts,
    parse_topic,
    quote_topic,
    shown_topic,
    whole_topic,
)

logger = logging.getLogger(__name__)

# In a good recording the times of different codes go back by some seconds. If they go back by more than this, the file
# was probably put together code by code.
_SORTED_BY_CODE_MS = 60_000
# The account of a trade event that names none.
_UNKNOWN_ACCOUNT = "unknown"
_NS_PER_MS = 1_000_000
# How many milliseconds late a message may be, because trade events and market data have separate sockets.
_DISORDER = 60_000
# Bytes of newest values that are kept for subscribers who come late, of a tape that anybody may have made: twice what
# the feeder keeps itself. A value beyond them is published, and not kept.
_NEWEST_BYTES = 256 * 1024 * 1024

Moment = TypeVar("Moment")
T = TypeVar("T")


class Recording(Protocol[Moment]):
    """What can be played: moments, each with its time in ms since 1970."""

    # When the first moment is.
    first: float
    # Whether it was invented when it was recorded.
    simulated: bool
    # Whether it has messages that are published only to subscribers.
    on_demand: bool
    # Says which part of the file is not played, empty if there is none; and whether that part is damaged.
    missing: str
    damaged: bool

    def check(self, parts: TopicParts, topic: Topic) -> None:
        """Raise `Refused` if the recording has no such topic."""

    def moments(self) -> Generator[tuple[float, Moment]]:
        """Yield all moments from the start."""

    def past(self, moment: Moment, topic: Topic) -> Iterable[object]:
        """Return what `publish` publishes of `topic`, which is one of the recording, in a moment."""

    def publish(self, moment: Moment, wanted: Set[Topic], sink: Sink, received_ns: int) -> None:
        """Publish the part of `moment` whose topics are `wanted`, and remember all of it."""

    def publish_newest(self, topic: Topic, sink: Sink, received_ns: int) -> None:
        """Publish the newest played data of `topic`, for a subscriber that came late."""


def open_recording(path: Path, speed: float) -> Recording[list[TickRow]] | Recording[Recorded]:
    """Read a file once and return it; raise `ConfigError` about ``file`` if it cannot be played."""
    if path == Path():
        raise ConfigError("file", "a replay needs the file to play: a tape, or a CSV of ticks")
    try:
        return Tape(path) if is_tape(path) else Ticks(path, speed)
    except WireError as exc:
        raise ConfigError("file", f"{path}: {exc}") from exc


class Index(NamedTuple):
    """The result of one pass over a file: codes, number of rows, times (ms), and how far a time went back at most."""

    codes: frozenset[str]
    rows: int
    first: int
    last: int
    backwards: int


def index(rows: Iterable[TickRow]) -> Index:
    """Read all `rows` and return their index; the memory depends only on the number of codes."""
    codes: set[str] = set()
    count = first = last = backwards = 0
    for row in rows:
        count += 1
        codes.add(row.code)
        # An instrument that never traded has the time 0 in xtquant; the pace cannot start there.
        first = first or row.time
        backwards = max(backwards, last - row.time if row.time else 0)
        last = max(last, row.time)
    return Index(frozenset(codes), count, first, last, backwards)


def moments(rows: Iterable[TickRow]) -> Iterator[list[TickRow]]:
    """Yield neighbouring rows of the same time together, never two of one code, in their order."""
    moment: list[TickRow] = []
    codes: set[str] = set()
    for row in rows:
        if moment and (row.time != moment[0].time or row.code in codes):
            yield moment
            moment, codes = [], set()
        moment.append(row)
        codes.add(row.code)
    if moment:
        yield moment


class _LeftOutRows:
    """The rows of a file that cannot be read: how many have which mistake, and the first of each."""

    def __init__(self) -> None:
        self.count = 0
        self.first: LeftOut | None = None
        self._kinds: dict[tuple[str, str], tuple[int, LeftOut]] = {}

    def __call__(self, row: LeftOut) -> None:
        self.count += 1
        self.first = self.first or row
        count, first = self._kinds.get((row.column, row.kind), (0, row))
        self._kinds[row.column, row.kind] = count + 1, first

    def log(self, path: Path) -> None:
        """Log each kind of mistake once."""
        for count, first in self._kinds.values():
            logger.warning("%s, %s (%d such rows are left out)", path, first, count)


def _ignore(_: LeftOut) -> None:
    """Skip a row that was reported when the file was first read."""


class _Route(NamedTuple):
    quote: Topic
    market: Topic
    single: Topic


class Ticks:
    """A CSV file of ticks: quotes of period tick, and whole quotes made of the same rows."""

    simulated = False
    on_demand = True
    damaged = False

    def __init__(self, path: Path, speed: float) -> None:
        """Read the file once; raise `ConfigError` about ``file``, and warn if `speed` cannot be kept.

        Rows that cannot be read are left out, and each kind of mistake is logged once.
        """
        self._path = path
        self._routes: dict[str, _Route] = {}
        self._markets: set[str] = set()
        self._newest: dict[str, dict[str, object]] = {}
        left_out = _LeftOutRows()
        found = index(read_csv(path, left_out))
        if not found.rows:
            raise ConfigError("file", f"{path}, {left_out.first}" if left_out.first else f"{path} has no rows")
        left_out.log(path)
        self.missing = f"{left_out.count} of {found.rows + left_out.count} rows are left out" if left_out.count else ""
        self.first: float = found.first
        for code in found.codes:
            market = code.rpartition(".")[2]
            self._markets.add(market)
            self._routes[code] = _Route(quote_topic(code), whole_topic(market), whole_topic(code))
        seconds = (found.last - found.first) / 1000
        logger.info("%s: %d rows of %d codes over %.0f s", path, found.rows, len(found.codes), seconds)
        if found.backwards > _SORTED_BY_CODE_MS and speed:
            logger.warning(
                "times in %s go back by up to %.0f s, and such rows are played at once; sort it by time to keep pace",
                path,
                found.backwards / 1000,
            )

    def check(self, parts: TopicParts, topic: Topic) -> None:
        """Raise `Refused` for a code that no row has, and for anything but ticks."""
        if parts.kind not in (Kind.QUOTE, Kind.WHOLE):
            raise Refused("upstream_refused", f"{self._path.name} has ticks only, no {parts.kind}")
        if parts.kind is Kind.QUOTE and parts.detail != "tick":
            raise Refused("unsupported_period", f"{self._path.name} has ticks only, not period {parts.detail!r}")
        if parts.name not in self._routes and parts.name not in self._markets:
            raise Refused("unknown_symbol", f"{self._path.name} has no row of {parts.name!r}")

    def moments(self) -> Generator[tuple[float, list[TickRow]]]:
        """Yield neighbouring rows of the same time together."""
        for moment in moments(read_csv(self._path, _ignore)):
            yield moment[0].time, moment

    def past(self, moment: list[TickRow], topic: Topic) -> Iterable[object]:
        """Return the rows of the code of a quote, each as a body."""
        return [{code: [record]} for code, _, record in moment if self._routes[code].quote == topic]

    def publish(self, moment: list[TickRow], wanted: Set[Topic], sink: Sink, received_ns: int) -> None:
        """Publish each row by itself on its quote topic, and all of them together on whole topics."""
        whole: dict[Topic, dict[str, object]] = {}
        for code, _, record in moment:
            self._newest[code] = record
            route = self._routes[code]
            if route.quote in wanted:
                sink.publish(route.quote, {code: [record]}, received_ns)
            for topic in (route.market, route.single):
                if topic in wanted:
                    whole.setdefault(topic, {})[code] = record
        for topic, ticks in whole.items():
            sink.publish_whole(topic, ticks, received_ns)

    def publish_newest(self, topic: Topic, sink: Sink, received_ns: int) -> None:
        """Publish the newest played row of each code that `topic` carries."""
        parts = parse_topic(topic)
        codes = [parts.name] if parts.name in self._routes else self._routes
        played = {code: self._newest[code] for code in codes if topic in self._routes[code] and code in self._newest}
        if not played:
            return
        if parts.kind is Kind.WHOLE:
            sink.publish_whole(topic, played, received_ns)
        else:
            sink.publish(topic, {code: [record] for code, record in played.items()}, received_ns)


class _Event(msgspec.Struct):
    """A trade event on a tape; each value of its data stays encoded."""

    type: str
    data: dict[str, msgspec.Raw]


class _Status(msgspec.Struct):
    simulated: bool


_event_decoder = msgspec.json.Decoder(_Event)
_status_decoder = msgspec.json.Decoder(_Status)


class Tape:
    """A tape: its own topics and no others, every body as it was. Trade events get new positions.

    Downloads and heartbeats are not played: a download belongs to a request, and a heartbeat describes the feeder that
    was recorded.
    """

    def __init__(self, path: Path) -> None:
        """Read the tape once; raise `ConfigError` about ``file``, and log which part is damaged or missing."""
        self._path = path
        self.simulated = False
        self._topics: dict[Topic, Behaviour] = {}
        # Texts that are no topic; each is logged once.
        self._foreign: set[str] = set()
        self._topic_bytes = 0
        self._names: set[str] = set()
        self._newest: dict[Topic, bytes] = {}
        self._newest_by_code: dict[Topic, dict[str, msgspec.Raw]] = {}
        # Their bytes.
        self._newest_bytes = 0
        first = last = played = 0
        reader = TapeReader(path)
        # Counts gaps in everything except heartbeats; None if gaps cannot be counted.
        tally: Tally | None = Tally(MAX_TOPICS)
        for recorded in reader:
            frame = recorded.frame
            topic = frame.topic
            if topic == STATUS_TOPIC:
                self.simulated = self.simulated or _decode(_status_decoder, frame).simulated
            elif tally is not None:
                try:
                    tally.note(recorded)
                except WireError as exc:
                    logger.warning("%s: gaps cannot be counted, because %s", path, exc)
                    tally = None
            if topic == SESSION_TOPIC:
                continue
            if topic not in self._topics and not self._add(topic):
                continue
            played += 1
            first = first or frame.published_ns
            last = frame.published_ns or last
        if not played:
            raise ConfigError("file", f"{path} has nothing to play" + (reader.damage and f": {reader.damage}"))
        self.first = first / _NS_PER_MS
        self.on_demand = any(behaviour.on_demand for behaviour in self._topics.values())
        self.damaged = bool(reader.damage)
        self.missing = f"damaged: {played} messages can be read, {reader.damage}" if self.damaged else ""
        self._log_found(played, (last - first) / 1e9, tally)

    def _log_found(self, played: int, seconds: float, tally: Tally | None) -> None:
        """Log what is on the tape, and which part is damaged or missing."""
        logger.info("%s: %d messages of %d topics over %.0f s", self._path, played, len(self._topics), seconds)
        if self.damaged:
            logger.error("%s is %s", self._path, self.missing)
        if tally is not None and tally.gap_count:
            logger.warning(
                "%s: the messages have %d gaps, in which %d are missing; qmt-bridge tape verify names them",
                self._path,
                tally.gap_count,
                tally.missed,
            )

    def check(self, parts: TopicParts, topic: Topic) -> None:
        """Raise `Refused` for a topic that was not recorded."""
        if topic in self._topics:
            return
        if parts.name not in self._names and parts.kind is not Kind.FORMULA:
            raise Refused("unknown_symbol", f"{self._path.name} has nothing of {parts.name!r}")
        code: ErrorCode = "unsupported_period" if parts.kind is Kind.QUOTE else "upstream_refused"
        raise Refused(code, f"{self._path.name} has no topic {topic[:200]!r}")

    def moments(self) -> Generator[tuple[float, Recorded]]:
        """Yield the messages one by one with the time of their publication; last values have that of the one before.

        If the feeder's clock was set back, the time continues from there, so that the rest is not due all at once.
        """
        at = self.first
        set_back = 0.0
        for recorded in read_tape(self._path):
            if recorded.frame.published_ns:
                published = recorded.frame.published_ns / _NS_PER_MS
                if published + set_back < at - _DISORDER:
                    set_back = at - published
                at = published + set_back
            yield at, recorded

    def past(self, moment: Recorded, topic: Topic) -> Iterable[object]:
        """Return the body of the message, if it is one of the topic."""
        return [msgspec.Raw(moment.frame.body)] if moment.frame.topic == topic else []

    def publish(self, moment: Recorded, wanted: Set[Topic], sink: Sink, received_ns: int) -> None:
        """Publish the message as it was recorded; a trade event always, because it needs no subscription."""
        frame = moment.frame
        topic = frame.topic
        behaviour = self._topics.get(topic)
        if behaviour is None:
            return
        match behaviour.keeps:
            case "journal":
                event = _decode(_event_decoder, frame)
                sink.publish_trade(self._account(topic, event), event.type, event.data, received_ns)
            case "by_code":
                pieces = frames.split(frame.body)
                # Copy each piece: a piece without a copy keeps the memory of its whole batch.
                newest = self._newest_by_code.setdefault(topic, {})
                for code, piece in pieces.items():
                    if self._has_room(newest.get(code), piece):
                        newest[code] = piece.copy()
                    else:
                        newest.pop(code, None)
                if topic in wanted:
                    sink.publish_whole(topic, pieces, received_ns)
            case "last":
                if self._has_room(self._newest.get(topic), frame.body):
                    self._newest[topic] = frame.body
                else:
                    self._newest.pop(topic, None)
                if topic in wanted:
                    sink.publish(topic, msgspec.Raw(frame.body), received_ns)

    def publish_newest(self, topic: Topic, sink: Sink, received_ns: int) -> None:
        """Publish the newest played message of `topic`, of whole quotes that of each code."""
        if topic in self._newest_by_code:
            sink.publish_whole(topic, self._newest_by_code[topic], received_ns)
        elif topic in self._newest:
            sink.publish(topic, msgspec.Raw(self._newest[topic]), received_ns)

    def _has_room(self, before: bytes | msgspec.Raw | None, now: bytes | msgspec.Raw) -> bool:
        """Count a newest value that replaces the one before; return False if there is no room for it."""
        self._newest_bytes -= 0 if before is None else len(memoryview(before))
        room = len(memoryview(now)) <= _NEWEST_BYTES - self._newest_bytes
        self._newest_bytes += len(memoryview(now)) if room else 0
        return room

    def _add(self, topic: Topic) -> bool:
        """Note a new topic and return whether it is played."""
        try:
            behaviour = KINDS[Kind(topic.partition("/")[0])]
        except ValueError:
            return False
        if not behaviour.on_demand and behaviour.keeps != "journal":
            return False
        if topic in self._foreign:
            return False
        self._topic_bytes += len(topic)
        if len(self._topics) + len(self._foreign) >= MAX_TOPICS or self._topic_bytes > MAX_TOPIC_BYTES:
            raise ConfigError("file", f"{self._path} has more topics than any recording: {MAX_TOPICS:,}")
        if topic != ALL_TRADES:
            try:
                self._names.add(parse_topic(topic).name)
            except WireError as exc:
                # An earlier version accepted other spellings of a topic.
                self._foreign.add(topic)
                logger.warning("%s: %s; its messages are not played", self._path, exc)
                return False
        self._topics[topic] = behaviour
        return True

    def _account(self, topic: Topic, event: _Event) -> str:
        """Return the account of an event. Events from the journal of all accounts name it only in their data."""
        if topic != ALL_TRADES:
            return parse_topic(topic).name
        account = frames.decode(bytes(event.data.get("account_id", b"null")))
        return account if isinstance(account, str) and account else _UNKNOWN_ACCOUNT


def _decode(decoder: msgspec.json.Decoder[T], frame: Frame) -> T:
    try:
        return frames.read(decoder, frame.body)
    except WireError as exc:
        raise WireError(f"a message of {shown_topic(frame.topic)} cannot be read: {exc}") from exc
