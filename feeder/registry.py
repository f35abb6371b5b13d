"""The state of every topic: whether it is subscribed, its state at the source, its newest seq and last value.

Pure: time is an argument (seconds of any monotonic clock), no sockets, no threads. The publisher's thread calls it:
each method notes one event and returns the calls that the source needs. Questions that could not be answered at once
are collected in `decided` when they can be. Everything that a peer can make grow has a limit in bytes or in number.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from feeder.unplaced import Unplaced, kind_of
from qmt_bridge.answering.askers import Peer
from qmt_bridge.errors import BadRequest, ErrorCode, WireError
from qmt_bridge.observation.delays import Delays
from qmt_bridge.wire import frames
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.limits import MAX_DOWNLOAD_CODES, MAX_DOWNLOADS, MAX_DOWNLOADS_OF_ONE
from qmt_bridge.wire.requests import StartDownload, TopicState
from qmt_bridge.wire.topics import (
    KINDS,
    STATUS_TOPIC,
    Kind,
    Topic,
    TopicParts,
    check_period,
    download_topic,
    parse_demand,
    parse_topic,
)

# A gateway waits one second for an answer. This is shorter, so that the source has time to accept or refuse a topic.
ANSWER_WITHIN = 0.8
# Seconds that a subscription waits for a place before it is refused. What its program has given back just before may
# still be on its way: by another connection, or while its last subscriber is asked for (`qmt_bridge.demand`).
PLACE_WITHIN = 0.3
# For how many seconds a finished download is kept, for a client that lost its connection near the end.
DOWNLOAD_KEPT = 300.0
# The limit of subscribed topics, and of the bytes that they take without their last values: a hundred thousand quotes
# take some 50 MB, and the topic of a formula may be 48 KiB long.
MAX_TOPICS = 100_000
MAX_TOPIC_BYTES = 128 * 1024 * 1024
# Bytes for the sequence numbers of forgotten topics: some 70,000 topics.
MAX_FORGOTTEN_BYTES = 16 * 1024 * 1024
# A last value of at most this size, which holds a tick, is always kept; all topics together take less than 128 MiB.
# Larger ones share `MAX_VALUE_BYTES`, which holds some 4,000 depths of all levels.
SMALL_VALUE_BYTES = 1280
MAX_VALUE_BYTES = 128 * 1024 * 1024
# How many questions may wait for the source's decision. Any more are answered "pending" at once, and have to be asked
# again. A worker with a hundred thousand topics asks about all of them after a restart of the feeder.
MAX_WAITING = 250_000
MAX_WAITING_OF_ONE = 100_000

# Topics of each kind that one call of `expire` handles, which takes 1 to 2 ms.
MAX_DUE = 50
# How many topics one call checks for large last values: less than a millisecond.
MAX_LOOKED_AT = 5000

# Bytes of an entry without its text, and of a kept sequence number, rounded up (CPython 3.11, 64 bits).
_ENTRY_BYTES = 500
_NUMBER_BYTES = 200
_TIME = re.compile(r"([0-9]{8}([0-9]{6})?)?")
_OF_MARKETS = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2))


class DownloadKey(NamedTuple):
    """Two downloads with the same key are one download."""

    stocks: frozenset[str]
    period: str
    start_time: str
    end_time: str


class SourceTopic(NamedTuple):
    """A topic that the source has to subscribe or unsubscribe."""

    topic: Topic
    parts: TopicParts


class Entry:
    """One topic: its state, and the last value for a late joiner.

    `fed` says that the source may publish it: from `Registry.want` until it is forgotten. `seq` is kept after the entry
    is forgotten: if it started again in the same epoch, a consumer of a prefix would drop the messages as old.
    """

    __slots__ = (
        "asker",
        "began",
        "body",
        "by_code",
        "code",
        "download",
        "fed",
        "market",
        "parts",
        "published_at",
        "reason",
        "seq",
        "size",
        "state",
        "topic",
        "wanted",
    )

    def __init__(self, topic: Topic, parts: TopicParts, seq: int = 0) -> None:
        self.topic = topic
        self.parts = parts
        # Of market data its market, such as "SH"; else empty.
        self.market = _market(parts)
        # When its newest message was published; None before the first.
        self.published_at: float | None = None
        self.wanted = False
        self.fed = False
        self.state: Literal["pending", "live", "refused"] = "pending"
        self.code: ErrorCode | None = None
        self.reason: str | None = None
        self.seq = seq
        # The last value, and the bytes that count for it: 0 if it is small.
        self.body: bytes | None = None
        self.size = 0
        self.by_code: dict[str, msgspec.Raw] | None = {} if KINDS[parts.kind].keeps == "by_code" else None
        # Only for a download that still runs: its key, the connection that began it, and when that was.
        self.download: DownloadKey | None = None
        self.asker = b""
        self.began = 0.0


class Registry:
    """All topics in one `epoch` of a feeder whose source is called `source` and serves `kinds`."""

    def __init__(
        self,
        epoch: int,
        source: str,
        kinds: frozenset[Kind],
        grace: float,
        limits: Mapping[Kind, int] = MappingProxyType({}),
    ) -> None:
        """Take at most so many topics of each kind in `limits`, which are scarce at the source."""
        self.epoch = epoch
        self._limits = limits
        # How many topics of each kind there are, and how many of them are subscribed.
        self._counts: Counter[str] = Counter()
        self._wanted_of: Counter[str] = Counter()
        self._unplaced = Unplaced()
        # Whether a place may have become free, or a topic waits for one that may be free already.
        self._may_place = False
        # How many topics are subscribed now.
        self.wanted = 0
        # Questions (peer, number, topic) that waited and can be answered now: see `states`. The publisher empties it.
        self.decided: deque[tuple[Peer, int, str]] = deque()
        self._source = source
        self._kinds = kinds
        self._grace = grace
        self._entries: dict[str, Entry] = {}
        self._entry_bytes = 0
        # The sequence numbers of forgotten topics, oldest first, and the largest of those that were dropped.
        self._numbers: dict[str, int] = {}
        self._number_bytes = 0
        self._highest = 0
        # How many last values found no room; the bytes of the large ones that are kept; and the size of the largest one
        # that found no room since room was last made.
        # Values by code are not counted: the number of the source's instruments limits them.
        self.unkept = 0
        self._value_bytes = 0
        self._missing_room = 0
        # When to forget a topic; each delay is constant, so the first is always the next one due.
        self._leaving: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._downloads: dict[DownloadKey, Topic] = {}
        self._download_count = 0
        # The running downloads: how many each connection has begun, and how many codes they have in total.
        self._download_askers: Counter[bytes] = Counter()
        self._download_codes = 0
        # Those that have ended since the start, by how, and the seconds that they took.
        self.downloads_ended = {"done": 0, "failed": 0}
        self.download_times = Delays()
        # Questions that wait for a topic to leave `pending`, with their deadlines.
        self._waiting: dict[str, list[tuple[float, Peer, int]]] = {}
        self._timeouts: deque[tuple[float, str]] = deque()
        self._waiting_askers: Counter[bytes] = Counter()
        self._open(STATUS_TOPIC)

    def make_room(self, text: str) -> list[SourceTopic]:
        """Forget topics in their grace time, oldest first, until `text` has room; return those to unsubscribe."""
        gone = []
        while text not in self._entries and self._is_full(text):
            oldest = self._oldest_leaving(text)
            if oldest is None:
                break
            del self._leaving[oldest]
            upstream = self._forget(self._entries[oldest])
            if upstream is not None:
                gone.append(upstream)
        return gone

    def waits(self, text: str, now: float) -> bool:
        """Return whether `text`, which has its first subscriber, waits for a place; raise `BadRequest` as `want`.

        It has a place as soon as one is free (`next_in_line`), or is refused (`refuse_unplaced`).
        """
        if text in self._entries or not self._is_full(text) or self._demand(text) is None:
            return False
        return self._unplaced.add(text, now + PLACE_WITHIN)

    def next_in_line(self) -> str | None:
        """Return the topic for which a place is free or can be made free, and which waits no longer; None without one.

        Call it after `leave` and `expire`, until it returns None, before any other topic takes the place.
        """
        if not self._may_place:
            return None
        for text in self._unplaced.heads():
            if not self._is_full(text) or self._has_leaving(text):
                self._unplaced.remove(text)
                return text
        self._may_place = False
        return None

    def refuse_unplaced(self, now: float) -> list[BadRequest]:
        """Refuse what has waited long enough for a place; return why. Not while departures are being confirmed."""
        due = self._unplaced.take_due(now)
        for text in due:
            self._decide_all(text)
        return [self._no_room(text) for text in due]

    def want(self, text: str) -> SourceTopic | None:
        """Note the first subscriber of `text`; return the topic if the source has to subscribe it.

        Raise `BadRequest` for a topic that is refused; nothing of it is kept, and a question about it is refused too.
        """
        parts = self._demand(text)
        if parts is None:
            # A download is started by a question, and continues while it has a subscriber.
            self._leaving.pop(text, None)
            return None
        topic = Topic(text)
        entry = self._entries.get(topic)
        if entry is None:
            if self._is_full(text):
                raise self._no_room(text)
            entry = self._add(topic, parts)
        if not entry.wanted:
            entry.wanted = True
            self.wanted += 1
            self._wanted_of[kind_of(text)] += 1
        self._leaving.pop(topic, None)
        if entry.fed and entry.state != "refused":
            return None
        entry.fed = True
        entry.state, entry.code, entry.reason = "pending", None, None
        return SourceTopic(topic, parts)

    def may_leave(self, text: str) -> bool:
        """Return whether `leave` has anything to note: `text` is subscribed, or is a download that runs."""
        entry = self._entries.get(text)
        if entry is None:
            return text in self._unplaced
        return entry.wanted or entry.download is not None

    def leave(self, text: str, now: float) -> SourceTopic | None:
        """Note that the last subscriber of `text` left; return the topic if the source has to unsubscribe it now.

        A refusal is forgotten at once, so that the next subscriber tries again. Any other topic is kept for the grace
        time, also a download that runs.
        """
        self._unplaced.remove(text)
        entry = self._entries.get(text)
        if entry is not None and entry.download is not None:
            self._leaving[text] = now + self._grace
            return None
        if entry is None or not entry.wanted:
            return None
        entry.wanted = False
        self.wanted -= 1
        self._wanted_of[kind_of(text)] -= 1
        self._may_place = True
        if entry.state == "refused":
            return self._forget(entry)
        self._leaving[text] = now + self._grace
        return None

    def leave_all(self, now: float) -> list[SourceTopic]:
        """Note that all subscribers left, because their connections ended; return what `leave` would."""
        self._unplaced.clear()
        gone = (self.leave(topic, now) for topic in list(self._entries))
        return [upstream for upstream in gone if upstream is not None]

    def expire(self, now: float) -> list[SourceTopic]:
        """Do some work that is due: return topics to unsubscribe, answer old questions, forget old downloads.

        At most `MAX_DUE` of each in one call, because a consumer with a hundred thousand topics leaves all of them at
        once; `deadline` says whether there is more. If last values have found no room, topics in their grace time are
        forgotten before its end, oldest first, and then downloads that have ended.

        A running download is returned like a topic: the source cancels it, and it is kept until its end is published.
        """
        gone = []
        for text in _due(self._leaving, now) or self._crowd_out():
            upstream = self._forget(self._entries[text])
            if upstream is not None:
                gone.append(upstream)
        for text in _due(self._ended, now):
            self._remove(text)
        for _ in range(MAX_DUE):
            if not self._timeouts or self._timeouts[0][0] > now:
                break
            _, text = self._timeouts.popleft()
            waiting = self._waiting.pop(text, [])
            for deadline, peer, number in waiting:
                if deadline <= now:
                    self._decide(peer, number, text)
            later = [one for one in waiting if one[0] > now]
            if later:
                self._waiting[text] = later
        return gone

    def deadline(self) -> float | None:
        """Return when `expire`, `next_in_line` or `refuse_unplaced` has something to do, or None."""
        firsts = [next(iter(times.values())) for times in (self._leaving, self._ended) if times]
        if self._timeouts:
            firsts.append(self._timeouts[0][0])
        refused_at = self._unplaced.deadline()
        if refused_at is not None:
            firsts.append(0.0 if self._may_place else refused_at)
        return min(firsts, default=None)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return all topics, those in their grace time and the feeder's own included."""
        return self._entries

    def accept(self, topic: Topic) -> None:
        """Note that the source has subscribed `topic`."""
        entry = self._entries.get(topic)
        if entry is not None and entry.fed:
            self._settle(entry, "live")

    def refuse(self, topic: Topic, code: ErrorCode, reason: str, *, held: bool = True) -> None:
        """Note that the source cannot serve `topic`; with `held` it must be unsubscribed later."""
        entry = self._entries.get(topic)
        if entry is not None and entry.fed:
            entry.fed = held
            self._settle(entry, "refused", code, reason)

    def find(self, topic: Topic) -> Entry | None:
        """Return the entry of a topic that may be published; None if it was never subscribed, or is forgotten."""
        entry = self._entries.get(topic)
        return entry if entry is not None and entry.fed else None

    def entry(self, text: str) -> Entry | None:
        """Return the entry of a topic, whatever its state; None if nobody wants it, or it is no topic of the source."""
        return self._entries.get(text)

    def check(self, text: str) -> None:
        """Raise `BadRequest` for a text that can be no topic of the source that is subscribed."""
        if self._demand(text) is None:
            raise BadRequest("bad_request", _why_unknown(text))

    def published(self, entry: Entry, body: bytes, pieces: Mapping[str, msgspec.Raw] | None, now: float) -> None:
        """Note that `body` was sent as the entry's next message; `pieces` are the records of a body by code."""
        entry.seq += 1
        entry.published_at = now
        if entry.by_code is None:
            if entry.size or len(body) > SMALL_VALUE_BYTES:
                self._keep_large(entry, body)
            else:
                entry.body = body
        elif pieces:
            entry.by_code.update(pieces)
        if entry.state != "live":
            self._settle(entry, "live")
        if entry.download is not None:
            end = frames.decode(body)
            if isinstance(end, dict) and "status" in end:
                self.downloads_ended["done" if end["status"] == "done" else "failed"] += 1
                self.download_times.add(now - entry.began, now)
                self._release(entry)
                self._uncount(entry)
                entry.download = None
                self._leaving.pop(entry.topic, None)
                self._ended[entry.topic] = now + DOWNLOAD_KEPT

    def ask(self, peer: Peer, number: int, text: str, now: float) -> Iterator[TopicState]:
        """Yield the answer to question `number` of `peer` about topic `text`, if there is one now.

        A topic that the source has not decided on, or that is not subscribed yet (the question may overtake the
        subscription, because they use two sockets), is answered when it is decided, or after `ANSWER_WITHIN` seconds.
        One without a place waits for it once more.
        """
        entry = self._entries.get(text)
        if entry is not None and entry.state != "pending":
            yield from self.states(number, text)
            return
        try:
            if self._demand(text) is None:
                raise BadRequest("bad_request", _why_unknown(text))
            if text in self._unplaced:
                self._unplaced.wait(text, now + PLACE_WITHIN)
                self._may_place = True
            elif entry is None and self._unplaced.is_full and self._is_full(text):
                # Its subscription was refused and forgotten, or will be.
                raise self._no_room(text)
        except BadRequest as exc:
            yield TopicState(number, text, "refused", exc.reason, exc.code, self.epoch)
            return
        if len(self._timeouts) >= MAX_WAITING or self._waiting_askers[peer[0]] >= MAX_WAITING_OF_ONE:
            yield from self.states(number, text)
            return
        deadline = now + ANSWER_WITHIN
        self._waiting.setdefault(text, []).append((deadline, peer, number))
        self._waiting_askers[peer[0]] += 1
        self._timeouts.append((deadline, text))

    def states(self, number: int, text: str) -> Iterator[TopicState]:
        """Yield the state of topic `text` now, as the answer to question `number`.

        The snapshot of a market is made batch by batch, as fast as the asker reads; all batches have the same seq.
        """
        entry = self._entries.get(text)
        if entry is None and text in self._unplaced and not self._unplaced.waits(text):
            refusal = self._no_room(text)
            yield TopicState(number, text, "refused", refusal.reason, refusal.code, self.epoch)
            return
        if entry is None or entry.state == "pending":
            # The number that the first message follows: without it an asker would take a lower one for lost messages.
            newest = self._numbers.get(text, self._highest) if entry is None else entry.seq
            yield TopicState(number, text, "pending", epoch=self.epoch, seq=newest)
            return
        seq = entry.seq
        if entry.state == "refused":
            yield TopicState(number, text, "refused", entry.reason, entry.code, self.epoch, seq)
            return
        if not entry.by_code:
            yield TopicState(number, text, "live", None, None, self.epoch, seq, entry.body)
            return
        # A copy, so that later messages do not become part of this snapshot.
        batches = frames.join(entry.by_code.copy())
        body = next(batches)
        for following in batches:
            yield TopicState(number, text, "live", None, None, self.epoch, seq, body, True)
            body = following
        yield TopicState(number, text, "live", None, None, self.epoch, seq, body)

    @property
    def downloads(self) -> int:
        """Return how many downloads run, or wait at the source. From any thread."""
        return self._download_askers.total()

    def start_download(self, ask: StartDownload, asker: bytes, now: float) -> tuple[Topic, DownloadKey | None]:
        """Return the topic of a download, and its key if it is a new one that the source has to start.

        `asker` is the connection that asks. Raise `BadRequest` for a code, period or time that is not valid, and if
        there are too many downloads: of all connections, of this one, or too many codes in them.
        """
        if Kind.DOWNLOAD not in self._kinds:
            raise BadRequest("upstream_refused", self._not_served(Kind.DOWNLOAD))
        if not ask.stocks:
            raise BadRequest("bad_request", "stocks must be a non-empty list of codes")
        for moment in (ask.start_time, ask.end_time):
            if not _TIME.fullmatch(moment):
                raise BadRequest("bad_request", f"a time is YYYYMMDD or YYYYMMDDhhmmss, not {moment[:40]!r}")
        stocks = frozenset(check_code(code) for code in ask.stocks)
        key = DownloadKey(stocks, check_period(ask.period), ask.start_time, ask.end_time)
        running = self._downloads.get(key)
        if running is not None:
            # The asker is about to subscribe, so the grace time must not end before that.
            self._leaving.pop(running, None)
            return running, None
        if self._download_askers[asker] >= MAX_DOWNLOADS_OF_ONE:
            raise BadRequest("rate_limited", f"{MAX_DOWNLOADS_OF_ONE} downloads of this connection are running")
        if self._download_codes + len(stocks) > MAX_DOWNLOAD_CODES:
            raise BadRequest("rate_limited", f"downloads of {self._download_codes} codes are running")
        if sum(self._download_askers.values()) + len(self._ended) >= MAX_DOWNLOADS:
            if not self._ended:
                raise BadRequest("rate_limited", f"{MAX_DOWNLOADS} downloads are running")
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            self._remove(oldest)
        self._download_count += 1
        digest = hashlib.sha256(frames.encode((sorted(stocks), *key[1:]))).hexdigest()[:12]
        topic = download_topic(f"{digest}-{self._download_count}")
        entry = self._open(topic)
        entry.download, entry.asker, entry.began = key, asker, now
        self._download_askers[asker] += 1
        self._download_codes += len(stocks)
        self._downloads[key] = topic
        return topic, key

    def drop_download(self, topic: Topic, key: DownloadKey) -> None:
        """Forget a new download that the source would not start."""
        self._uncount(self._entries[topic])
        self._remove(topic)
        del self._downloads[key]

    def _open(self, topic: Topic) -> Entry:
        entry = self._add(topic, parse_topic(topic))
        entry.fed = True
        entry.state = "live"
        return entry

    def _add(self, topic: Topic, parts: TopicParts) -> Entry:
        seq = self._numbers.pop(topic, None)
        if seq is None:
            # Begin above all numbers that were dropped: the last number of this topic may be one of them.
            seq = self._highest
        else:
            self._number_bytes -= len(topic) + _NUMBER_BYTES
        entry = self._entries[topic] = Entry(topic, parts, seq)
        self._entry_bytes += _entry_bytes(topic)
        self._counts[kind_of(topic)] += 1
        return entry

    def _remove(self, text: str) -> None:
        """Forget an entry except for its newest sequence number."""
        entry = self._entries.pop(text)
        self._entry_bytes -= _entry_bytes(text)
        self._counts[kind_of(text)] -= 1
        self._value_bytes -= entry.size
        self._may_place = True
        if entry.seq <= self._highest:
            return
        self._numbers[text] = entry.seq
        self._number_bytes += len(text) + _NUMBER_BYTES
        while self._number_bytes > MAX_FORGOTTEN_BYTES:
            oldest = next(iter(self._numbers))
            self._highest = max(self._highest, self._numbers.pop(oldest))
            self._number_bytes -= len(oldest) + _NUMBER_BYTES

    def _is_full(self, text: str) -> bool:
        too_many = len(self._entries) >= MAX_TOPICS or self._entry_bytes + _entry_bytes(text) > MAX_TOPIC_BYTES
        return too_many or self._is_kind_full(text)

    def _is_kind_full(self, text: str) -> bool:
        kind = kind_of(text)
        limit = self._limits.get(kind)  # type: ignore[call-overload]  # a Kind is a string
        return limit is not None and self._counts[kind] >= limit

    def _has_leaving(self, text: str) -> bool:
        """Return whether a topic in its grace time would make room for `text`, without looking for it."""
        if not self._is_kind_full(text):
            return bool(self._leaving)
        return self._counts[kind_of(text)] > self._wanted_of[kind_of(text)]

    def _oldest_leaving(self, text: str) -> str | None:
        """Return the topic in its grace time that makes room for `text`, the oldest one; None if there is none."""
        if not self._is_kind_full(text):
            return next(iter(self._leaving), None)
        return next((leaving for leaving in self._leaving if kind_of(leaving) == kind_of(text)), None)

    def _no_room(self, text: str) -> BadRequest:
        if self._is_kind_full(text):
            kind = kind_of(text)
            return BadRequest(
                "symbol_limit",
                f"{self._counts[kind]} subscriptions of the kind {kind} are all that are made at the source",
            )
        return BadRequest("symbol_limit", f"the feeder has {len(self._entries)} topics already and takes no more")

    def _demand(self, text: str) -> TopicParts | None:
        parts = parse_demand(text)
        if parts is not None and parts.kind not in self._kinds:
            raise BadRequest("upstream_refused", self._not_served(parts.kind))
        return parts

    def _not_served(self, kind: Kind) -> str:
        return f"source {self._source} does not serve {kind}"

    def _settle(
        self,
        entry: Entry,
        state: Literal["live", "refused"],
        code: ErrorCode | None = None,
        reason: str | None = None,
    ) -> None:
        entry.state, entry.code, entry.reason = state, code, reason
        self._decide_all(entry.topic)

    def _decide_all(self, text: str) -> None:
        for _, peer, number in self._waiting.pop(text, ()):
            self._decide(peer, number, text)

    def _decide(self, peer: Peer, number: int, text: str) -> None:
        self._waiting_askers[peer[0]] -= 1
        if not self._waiting_askers[peer[0]]:
            del self._waiting_askers[peer[0]]
        self.decided.append((peer, number, text))

    def _keep_large(self, entry: Entry, body: bytes) -> None:
        """Keep a last value that is large, or follows a large one, if there is room."""
        size = len(body) if len(body) > SMALL_VALUE_BYTES else 0
        if size > MAX_VALUE_BYTES - self._value_bytes + entry.size:
            self.unkept += 1
            self._missing_room = max(self._missing_room, size)
            entry.body, size = None, 0
        else:
            entry.body = body
        self._value_bytes += size - entry.size
        entry.size = size

    def _crowd_out(self) -> list[str]:
        """Return the oldest topics in their grace time with large last values: to forget them makes room.

        If there are too few, downloads that have ended are forgotten here too.
        """
        if not self._missing_room:
            return []
        excess = self._value_bytes - MAX_VALUE_BYTES + max(self._missing_room, MAX_VALUE_BYTES // 16)
        self._missing_room = 0
        gone: list[str] = []
        for text in islice(self._leaving, MAX_LOOKED_AT):
            if excess <= 0 or len(gone) >= MAX_DUE:
                break
            entry = self._entries[text]
            if entry.size and entry.download is None:
                gone.append(text)
                excess -= entry.size
        for text in gone:
            del self._leaving[text]
        ended = []
        for text in self._ended:
            if excess <= 0:
                break
            if self._entries[text].size:
                ended.append(text)
                excess -= self._entries[text].size
        for text in ended:
            del self._ended[text]
            self._remove(text)
        return gone

    def _release(self, entry: Entry) -> None:
        """Make the next equal request start a new download."""
        if entry.download is not None and self._downloads.get(entry.download) == entry.topic:
            del self._downloads[entry.download]

    def _forget(self, entry: Entry) -> SourceTopic | None:
        if entry.download is not None:
            # It is kept until the source has published its end.
            self._release(entry)
            return SourceTopic(entry.topic, entry.parts)
        self._remove(entry.topic)
        return SourceTopic(entry.topic, entry.parts) if entry.fed else None

    def _uncount(self, entry: Entry) -> None:
        """Note that a download has ended."""
        assert entry.download is not None
        self._download_codes -= len(entry.download.stocks)
        self._download_askers[entry.asker] -= 1
        if not self._download_askers[entry.asker]:
            del self._download_askers[entry.asker]


def _market(parts: TopicParts) -> str:
    """Return the market of a topic of quotes or depth: ``SH`` of ``600519.SH``, and of ``SH``; else nothing."""
    return parts.name.rpartition(".")[2] if parts.kind in _OF_MARKETS else ""


def _entry_bytes(text: str) -> int:
    # The text, its parsed parts, and the copy that the source keeps.
    return 3 * len(text) + _ENTRY_BYTES


def _due(times: dict[str, float], now: float) -> list[str]:
    due = []
    for text, moment in islice(times.items(), MAX_DUE):
        if moment > now:
            break
        due.append(text)
    for text in due:
        del times[text]
    return due


def _why_unknown(text: str) -> str:
    try:
        kind = parse_topic(text).kind
    except WireError as exc:
        return str(exc)
    return f"unknown download {text[:80]!r}" if kind is Kind.DOWNLOAD else f"nothing is known of {text[:80]!r}"
