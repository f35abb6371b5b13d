"""What a recorder counts, and what a tape holds: messages by kind, and the gaps in their seq. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import msgspec

from qmt_bridge.errors import WireError
from qmt_bridge.tapes.tape import SESSION_TOPIC, Recorded
from qmt_bridge.wire.frames import read
from qmt_bridge.wire.topics import ALL_TRADES, KINDS, STATUS_TOPIC, Kind

# The first gaps are listed one by one; the others are only counted.
MAX_GAPS = 1000
# So are the first sessions, and the first sources.
MAX_SESSIONS = 1000
MAX_SOURCES = 100
# A tape of more topics is refused: the whole Shanghai and Shenzhen markets, with options, in four periods have 100,000.
MAX_TOPICS = 200_000
MAX_TOPIC_BYTES = 64 * 1024 * 1024

T = TypeVar("T")


class RecordingStart(msgspec.Struct, frozen=True):
    """What a recorder writes first: what it subscribed, its version, and when (ns since 1970)."""

    topics: tuple[str, ...]
    version: str
    begin_ns: int = 0


class Gap(NamedTuple):
    """`seq` followed `after` on a topic, and is not the next one."""

    topic: str
    epoch: int
    after: int
    seq: int
    arrival_ns: int

    @property
    def missed(self) -> int:
        """Return how many messages are missing; 0 where the numbers went back."""
        return max(0, self.seq - self.after - 1)


class Count(msgspec.Struct):
    """Messages of one kind, the size of their bodies in bytes, and their topics."""

    frames: int = 0
    size: int = 0
    topics: int = 0


class _Row:
    """Messages that are numbered in one row: those of a topic, or in the journal the trade events of all accounts."""

    __slots__ = ("epoch", "seq", "session")

    def __init__(self) -> None:
        self.epoch = self.seq = self.session = 0


class _Topic(NamedTuple):
    counted: Count
    row: _Row
    # The number of the row of `Tally.trades` when this one was chosen.
    chosen: int
    # Numbered by the journal, which outlives the feeder.
    journaled: bool


class _Source(msgspec.Struct):
    source: str
    simulated: bool


class _Event(msgspec.Struct):
    # The position in the journal, over all accounts.
    seq: int


_session_decoder = msgspec.json.Decoder(RecordingStart)
_source_decoder = msgspec.json.Decoder(_Source)
_event_decoder = msgspec.json.Decoder(_Event)


class Tally:
    """Counts records in the order of arrival."""

    def __init__(self, most_topics: int | None = None) -> None:
        """Count at most so many topics, which one who reads a tape of another's has to bound."""
        self.kinds: dict[str, Count] = {}
        # Of `session_count` sessions the first ones.
        self.sessions: list[RecordingStart] = []
        self.session_count = 0
        # The feeders' sources by name, and whether any of them invents its data.
        self.sources: list[str] = []
        self.simulated = False
        self.first_ns = 0
        self.last_ns = 0
        # Of `gap_count` gaps the first ones.
        self.gaps: list[Gap] = []
        self.gap_count = 0
        self.missed = 0
        self._topics: dict[str, _Topic] = {}
        self._most_topics = most_topics
        self._topic_bytes = 0
        self._trades: _Row | None = None
        # How often that row came or went.
        self._chosen = 0
        # Number of the session; 0 is never.
        self._session = 1

    @property
    def frames(self) -> int:
        """Return the number of messages."""
        return sum(count.frames for count in self.kinds.values())

    @property
    def size(self) -> int:
        """Return the bytes of their bodies."""
        return sum(count.size for count in self.kinds.values())

    @property
    def topics(self) -> int:
        """Return the number of topics."""
        return sum(count.topics for count in self.kinds.values())

    def note(self, recorded: Recorded) -> None:
        """Count one record; raise `WireError` for one that cannot be read, or for one topic too many."""
        arrival_ns, frame = recorded
        topic = self._topics.get(frame.topic)
        if topic is None:
            if frame.topic == SESSION_TOPIC:
                self._begin(recorded)
                return
            topic = self._topics[frame.topic] = self._open(frame.topic)
        if frame.topic == STATUS_TOPIC:
            self._note_source(frame.body)
        counted, row, chosen, journaled = topic
        if journaled and chosen != self._chosen:
            row = self._trades or _Row()
            self._topics[frame.topic] = topic._replace(row=row, chosen=self._chosen)
        counted.frames += 1
        counted.size += len(frame.body)
        self.first_ns = self.first_ns or arrival_ns
        self.last_ns = arrival_ns
        seq = frame.seq if row is not self._trades else _decode(_event_decoder, frame.body, "trade event").seq
        after = row.seq
        if row.session and (journaled or frame.epoch == row.epoch):
            # A last value has the topic's position, in several parts that share one number.
            is_next = seq == after + 1 or (seq == after and not journaled and not frame.published_ns)
        else:
            # The first message of a restarted feeder should be seen; not its first heartbeats, which are sent before a
            # consumer has connected again.
            after = 0
            is_next = seq == 1 or row.session != self._session or frame.topic == STATUS_TOPIC
        if not is_next:
            self._note_gap(Gap(frame.topic, frame.epoch, after, seq, arrival_ns))
        row.epoch, row.seq, row.session = frame.epoch, seq, self._session

    def _begin(self, recorded: Recorded) -> None:
        session = _decode(_session_decoder, recorded.frame.body, "session")
        self.session_count += 1
        if len(self.sessions) < MAX_SESSIONS:
            self.sessions.append(msgspec.structs.replace(session, begin_ns=recorded.arrival_ns))
        self._session += 1
        # What a recorder of all accounts had to fetch from the journal tells its position there, not its account.
        if (ALL_TRADES in session.topics) != (self._trades is not None):
            self._trades = None if self._trades is not None else _Row()
            # Each topic takes its row when it occurs again.
            self._chosen += 1

    def _open(self, name: str) -> _Topic:
        self._topic_bytes += len(name)
        most = self._most_topics
        if most is not None and (len(self._topics) >= most or self._topic_bytes > MAX_TOPIC_BYTES):
            raise WireError(f"the tape has more than {len(self._topics):,} topics, which no recording has")
        kind = name.partition("/")[0]
        counted = self.kinds.setdefault(kind, Count())
        counted.topics += 1
        journaled = kind in KINDS and KINDS[Kind(kind)].keeps == "journal"
        return _Topic(
            counted, self._trades if journaled and self._trades is not None else _Row(), self._chosen, journaled
        )

    def _note_source(self, body: bytes) -> None:
        source = _decode(_source_decoder, body, "status")
        name = source.source[:MAX_SOURCES]
        if name not in self.sources and len(self.sources) < MAX_SOURCES:
            self.sources.append(name)
        self.simulated = self.simulated or source.simulated

    def _note_gap(self, gap: Gap) -> None:
        self.gap_count += 1
        self.missed += gap.missed
        if len(self.gaps) < MAX_GAPS:
            self.gaps.append(gap)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes, what: str) -> T:
    try:
        return read(decoder, body)
    except WireError as exc:
        raise WireError(f"a {what} on the tape cannot be read: {exc}") from exc
