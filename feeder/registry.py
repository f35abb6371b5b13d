"""What is known of every topic: is it wanted, how does it stand at the source, its newest seq and last value.

Pure: time is an argument (seconds of any monotonic clock), no sockets, no threads. The publisher's thread drives
it: each method notes one thing and says what the source has to be told; answers to CatchUp collect in `replies`.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from qmt_bridge.errors import BadRequest, ErrorCode, WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.codes import check_code
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

# An asker goes live without an answer after a second; until then a source that has yet to say yes or no may do so.
ANSWER_WITHIN = 0.8
# A client that lost its connection near the end of a download finds out how it ended.
DOWNLOAD_KEPT = 300.0
MAX_DOWNLOADS = 1000

_TIME = re.compile(r"([0-9]{8}([0-9]{6})?)?")

# The ZeroMQ envelope of whoever asked: opaque here.
Peer = tuple[bytes, ...]


class DownloadKey(NamedTuple):
    """What makes two downloads the same one."""

    stocks: frozenset[str]
    period: str
    start_time: str
    end_time: str


class Upstream(NamedTuple):
    """A topic that the source has to subscribe or unsubscribe."""

    topic: Topic
    parts: TopicParts


class Entry:
    """One topic: how it stands, and what a late joiner is told.

    `fed` says that the source may publish it: from `Registry.want` until it is forgotten. `seq` outlives that,
    because a consumer of a prefix would take a number that starts again in the same epoch for an old one.
    """

    __slots__ = ("body", "by_code", "code", "download", "fed", "parts", "reason", "seq", "state", "topic", "wanted")

    def __init__(self, topic: Topic, parts: TopicParts) -> None:
        self.topic = topic
        self.parts = parts
        self.wanted = False
        self.fed = False
        self.state: Literal["pending", "live", "refused"] = "pending"
        self.code: ErrorCode | None = None
        self.reason: str | None = None
        self.seq = 0
        self.body: bytes | None = None
        self.by_code: dict[str, msgspec.Raw] | None = {} if KINDS[parts.kind].keeps == "by_code" else None
        # Of a download that still runs.
        self.download: DownloadKey | None = None


class Registry:
    """All topics of one life (`epoch`) of a feeder whose source is called `source` and serves `kinds`."""

    def __init__(self, epoch: int, source: str, kinds: frozenset[Kind], grace: float) -> None:
        self.epoch = epoch
        # Topics that somebody subscribes now.
        self.wanted = 0
        # Answers to send, in order; the publisher empties it.
        self.replies: deque[tuple[Peer, TopicState]] = deque()
        self._source = source
        self._kinds = kinds
        self._grace = grace
        self._entries: dict[str, Entry] = {}
        # When to forget a topic; each delay is constant, so the first is always the next one due.
        self._leaving: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._downloads: dict[DownloadKey, Topic] = {}
        self._download_count = 0
        # Who waits for a topic to leave `pending`, and until when.
        self._waiting: dict[str, list[tuple[float, Peer, int]]] = {}
        self._timeouts: deque[tuple[float, str]] = deque()
        self._open(STATUS_TOPIC)

    def want(self, text: str) -> Upstream | None:
        """Note the first subscriber of `text`; return the topic if the source has to subscribe it."""
        try:
            parts = self._demand(text)
            refusal = None
        except BadRequest as exc:
            parts, refusal = parse_topic(text), exc
        if parts is None:
            # A download is begun by a question, and goes on while somebody follows it.
            self._leaving.pop(text, None)
            return None
        topic = Topic(text)
        entry = self._entries.get(topic)
        if entry is None:
            entry = self._entries[topic] = Entry(topic, parts)
        if not entry.wanted:
            entry.wanted = True
            self.wanted += 1
        if refusal is not None:
            self._settle(entry, "refused", refusal.code, refusal.reason)
            return None
        self._leaving.pop(topic, None)
        if entry.fed and entry.state != "refused":
            return None
        entry.fed = True
        entry.state, entry.code, entry.reason = "pending", None, None
        return Upstream(topic, parts)

    def leave(self, text: str, now: float) -> Upstream | None:
        """Note that the last subscriber of `text` left; return the topic if the source has to unsubscribe it now.

        A refusal is forgotten at once: whoever comes next tries again. Anything else stays for the grace time, also a
        download that runs.
        """
        entry = self._entries.get(text)
        if entry is not None and entry.download is not None:
            self._leaving[text] = now + self._grace
            return None
        if entry is None or not entry.wanted:
            return None
        entry.wanted = False
        self.wanted -= 1
        if entry.state == "refused":
            return self._forget(entry)
        self._leaving[text] = now + self._grace
        return None

    def expire(self, now: float) -> list[Upstream]:
        """Do what is due: return the topics to unsubscribe, answer who waited long enough, forget old downloads.

        A download is among the topics while it runs: it is to be cancelled, and stays until it has said so.
        """
        gone = []
        for text in _due(self._leaving, now):
            upstream = self._forget(self._entries[text])
            if upstream is not None:
                gone.append(upstream)
        for text in _due(self._ended, now):
            del self._entries[text]
        while self._timeouts and self._timeouts[0][0] <= now:
            _, text = self._timeouts.popleft()
            waiting = self._waiting.pop(text, [])
            for deadline, peer, number in waiting:
                if deadline <= now:
                    self._reply(peer, number, text, self._entries.get(text))
            later = [one for one in waiting if one[0] > now]
            if later:
                self._waiting[text] = later
        return gone

    def deadline(self) -> float | None:
        """Return when `expire` has something to do, or None."""
        firsts = [next(iter(times.values())) for times in (self._leaving, self._ended) if times]
        if self._timeouts:
            firsts.append(self._timeouts[0][0])
        return min(firsts, default=None)

    def accept(self, topic: Topic) -> None:
        """Note that the source has subscribed `topic`."""
        entry = self._entries.get(topic)
        if entry is not None and entry.fed:
            self._settle(entry, "live")

    def refuse(self, topic: Topic, code: ErrorCode, reason: str, *, held: bool = True) -> None:
        """Note that the source cannot serve `topic`; with `held` it wants to be told when nobody asks any more."""
        entry = self._entries.get(topic)
        if entry is not None and entry.fed:
            entry.fed = held
            self._settle(entry, "refused", code, reason)

    def find(self, topic: Topic) -> Entry | None:
        """Return the entry of a topic that may be published: None if it was never asked for, or is forgotten."""
        entry = self._entries.get(topic)
        return entry if entry is not None and entry.fed else None

    def published(self, entry: Entry, body: bytes, pieces: Mapping[str, msgspec.Raw] | None, now: float) -> None:
        """Note that `body` went out as the entry's next message; `pieces` are the records of a body by code."""
        entry.seq += 1
        if entry.by_code is None:
            entry.body = body
        elif pieces:
            entry.by_code.update(pieces)
        if entry.state != "live":
            self._settle(entry, "live")
        if entry.download is not None:
            end = frames.decode(body)
            if isinstance(end, dict) and "status" in end:
                self._release(entry)
                entry.download = None
                self._leaving.pop(entry.topic, None)
                self._ended[entry.topic] = now + DOWNLOAD_KEPT

    def ask(self, peer: Peer, number: int, text: str, now: float) -> None:
        """Answer question `number` of `peer`: where does `text` stand?

        A topic that the source has not decided on, or that nobody has subscribed yet (the question may overtake
        the subscription: they are two sockets), is answered when it is decided, or after `ANSWER_WITHIN` seconds.
        """
        entry = self._entries.get(text)
        if entry is not None and entry.state != "pending":
            self._reply(peer, number, text, entry)
            return
        try:
            if self._demand(text) is None:
                raise BadRequest("bad_request", _why_unknown(text))
        except BadRequest as exc:
            state = TopicState(number, text, "refused", exc.reason, exc.code, self.epoch)
            self.replies.append((peer, state))
            return
        deadline = now + ANSWER_WITHIN
        self._waiting.setdefault(text, []).append((deadline, peer, number))
        self._timeouts.append((deadline, text))

    def start_download(self, ask: StartDownload) -> tuple[Topic, DownloadKey | None]:
        """Return the topic of a download, and its key if it is a new one that the source has to start.

        Raise `BadRequest` for a code, period or time that cannot be, and above `MAX_DOWNLOADS` running ones.
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
            # Whoever asks is about to subscribe.
            self._leaving.pop(running, None)
            return running, None
        if len(self._downloads) + len(self._ended) >= MAX_DOWNLOADS:
            if not self._ended:
                raise BadRequest("rate_limited", f"{MAX_DOWNLOADS} downloads are running")
            oldest = next(iter(self._ended))
            del self._ended[oldest], self._entries[oldest]
        self._download_count += 1
        digest = hashlib.sha256(frames.encode((sorted(stocks), *key[1:]))).hexdigest()[:12]
        topic = download_topic(f"{digest}-{self._download_count}")
        self._open(topic).download = key
        self._downloads[key] = topic
        return topic, key

    def drop_download(self, topic: Topic, key: DownloadKey) -> None:
        """Forget a new download that the source would not start."""
        del self._entries[topic], self._downloads[key]

    def _open(self, topic: Topic) -> Entry:
        entry = self._entries[topic] = Entry(topic, parse_topic(topic))
        entry.fed = True
        entry.state = "live"
        return entry

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
        for _, peer, number in self._waiting.pop(entry.topic, ()):
            self._reply(peer, number, entry.topic, entry)

    def _release(self, entry: Entry) -> None:
        """Let the next equal request start a download of its own."""
        if entry.download is not None and self._downloads.get(entry.download) == entry.topic:
            del self._downloads[entry.download]

    def _forget(self, entry: Entry) -> Upstream | None:
        if entry.download is not None:
            # It stays until the source has said how it ended.
            self._release(entry)
            return Upstream(entry.topic, entry.parts)
        fed = entry.fed
        if entry.seq:
            seq = entry.seq
            entry = self._entries[entry.topic] = Entry(entry.topic, entry.parts)
            entry.seq = seq
        else:
            del self._entries[entry.topic]
        return Upstream(entry.topic, entry.parts) if fed else None

    def _reply(self, peer: Peer, number: int, text: str, entry: Entry | None) -> None:
        if entry is None or entry.state == "pending":
            self.replies.append((peer, TopicState(number, text, "pending", epoch=self.epoch)))
        elif entry.state == "refused":
            state = TopicState(number, text, "refused", entry.reason, entry.code, self.epoch, entry.seq)
            self.replies.append((peer, state))
        else:
            bodies: list[bytes | None] = [entry.body]
            if entry.by_code:
                bodies = list(frames.join(entry.by_code))
            for left, body in zip(range(len(bodies) - 1, -1, -1), bodies, strict=True):
                live = TopicState(number, text, "live", None, None, self.epoch, entry.seq, body, left > 0)
                self.replies.append((peer, live))


def _due(times: dict[str, float], now: float) -> list[str]:
    due = []
    for text, moment in times.items():
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
