"""What sockets without a key may hold of what is scarce at the source: depths, formulas and downloads. Pure.

A feeder cannot tell whose client a topic is for, because a worker has one connection for all of its clients. So each
worker keeps its sockets without a key within its part of the feeder's limits. A topic counts although a socket with a
key holds it too: when that one leaves, sockets without a key would else hold more than their share.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from qmt_bridge.wire.limits import (
    MAX_DOWNLOAD_CODES,
    MAX_DOWNLOADS,
    MAX_DOWNLOADS_OF_ONE,
    RUNNING_DOWNLOADS,
)
from qmt_bridge.wire.topics import Kind, Topic

# One of so many is kept for sockets with a key, as of the places (keys/room.py).
KEPT = 10
# Seconds that a feeder may take to end a download after its grace time.
CANCELLING = 2.0
_KINDS = frozenset((str(Kind.L2), str(Kind.FORMULA)))
_Held = TypeVar("_Held")


class Download(NamedTuple):
    """What a socket downloads; equal ones are one download at the feeder."""

    stocks: frozenset[str]
    period: str
    start_time: str
    end_time: str


class Limits(NamedTuple):
    """What the sockets of one worker may hold together: topics of some kinds, downloads, and codes in downloads."""

    topics: Mapping[str, int]
    downloads: int
    codes: int


def is_scarce(topic: Topic) -> bool:
    """Return whether a topic is of a kind of which the source has few subscriptions."""
    return _kind(topic) in _KINDS


def limits_of_worker(max_depths: int, max_formulas: int, download_queue: int, workers: int) -> Limits:
    """Return the share of each of so many workers in the limits of a feeder that has these settings."""
    downloads = min(MAX_DOWNLOADS_OF_ONE * workers, MAX_DOWNLOADS, RUNNING_DOWNLOADS + download_queue)
    topics = {str(Kind.L2): _share(max_depths, workers), str(Kind.FORMULA): _share(max_formulas, workers)}
    return Limits(MappingProxyType(topics), _share(downloads, workers), _share(MAX_DOWNLOAD_CODES, workers))


class Shares:
    """What the sockets without a key of one worker hold."""

    __slots__ = ("_codes", "_downloads", "_grace", "_leaving", "_topics", "limits")

    def __init__(self, limits: Limits, grace: float) -> None:
        """Count within `limits`; a feeder goes on with a download for `grace` seconds after its last client left."""
        self.limits = limits
        self._grace = grace + CANCELLING
        # How many sockets hold each topic, by kind.
        self._topics: dict[str, Counter[Topic]] = {kind: Counter() for kind in limits.topics}
        # How many sockets follow each download, and the codes of all downloads.
        self._downloads: Counter[Download] = Counter()
        self._codes = 0
        # Downloads whose socket has left before their end, with the time when they count no longer.
        self._leaving: deque[tuple[float, Download]] = deque()

    def admits(self, topic: Topic) -> str:
        """Return why no more sockets may hold a topic; empty if one may."""
        held, limit = self._topics[_kind(topic)], self.limits.topics[_kind(topic)]
        if topic in held or len(held) < limit:
            return ""
        return f"clients without an API key hold at most {limit} subscriptions of the kind {_kind(topic)} here"

    def add(self, topic: Topic) -> None:
        """Note that one more socket holds a topic."""
        self._topics[_kind(topic)][topic] += 1

    def remove(self, topic: Topic) -> None:
        """Note that a socket holds a topic no longer."""
        _lower(self._topics[_kind(topic)], topic)

    def admits_download(self, download: Download, now: float) -> str:
        """Return why no more sockets may start or follow a download; empty if one may."""
        while self._leaving and self._leaving[0][0] <= now:
            self.end(self._leaving.popleft()[1])
        if download in self._downloads:
            return ""
        if len(self._downloads) >= self.limits.downloads:
            return f"clients without an API key run at most {self.limits.downloads} downloads here"
        if self._codes + len(download.stocks) > self.limits.codes:
            return f"the downloads of clients without an API key have at most {self.limits.codes} codes here"
        return ""

    def begin(self, download: Download) -> None:
        """Note that one more socket starts or follows a download."""
        self._downloads[download] += 1
        if self._downloads[download] == 1:
            self._codes += len(download.stocks)

    def end(self, download: Download) -> None:
        """Note that a download has ended for one socket."""
        if _lower(self._downloads, download):
            self._codes -= len(download.stocks)

    def leave(self, download: Download, now: float) -> None:
        """Note that a socket has left before the end of its download, which goes on for the grace time."""
        self._leaving.append((now + self._grace, download))


class SocketShares:
    """What one socket without a key holds."""

    __slots__ = ("_download", "_shares", "_topics")

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        # How many subscriptions of the socket need each topic.
        self._topics: Counter[Topic] = Counter()
        self._download: Download | None = None

    def take(self, topic: Topic, *, bounded: bool) -> str:
        """Count one more subscription; if that is beyond the limit and `bounded`, return the reason instead."""
        if topic not in self._topics:
            if bounded and (reason := self._shares.admits(topic)):
                return reason
            self._shares.add(topic)
        self._topics[topic] += 1
        return ""

    def give_back(self, topic: Topic) -> None:
        """Note that the socket has one subscription less."""
        # A socket that has shown a key since has given back everything.
        if topic in self._topics and _lower(self._topics, topic):
            self._shares.remove(topic)

    def download(self, download: Download, now: float, *, bounded: bool) -> str:
        """Count the socket's download; if that is beyond the limit and `bounded`, return the reason instead."""
        if bounded and (reason := self._shares.admits_download(download, now)):
            return reason
        self._shares.begin(download)
        self._download = download
        return ""

    def download_ended(self) -> None:
        """Note that the download has ended, or that it is none of a socket without a key any more."""
        if self._download is not None:
            self._shares.end(self._download)
            self._download = None

    def leave(self, now: float) -> None:
        """Give back everything: the socket has ended."""
        if self._download is not None:
            self._shares.leave(self._download, now)
            self._download = None
        self.clear()

    def clear(self) -> None:
        """Give back everything at once: the socket has shown a key, or has ended with its download."""
        self.download_ended()
        for topic in self._topics:
            self._shares.remove(topic)
        self._topics.clear()


def _share(limit: int, workers: int) -> int:
    """Return the share of each worker in a limit without the part that is kept; at least one."""
    return max(1, (limit - -(-limit // KEPT)) // workers)


def _kind(topic: Topic) -> str:
    return topic.partition("/")[0]


def _lower(counts: Counter[_Held], of: _Held) -> bool:
    """Lower a count; return whether it was the last one, which is left out then."""
    counts[of] -= 1
    if counts[of]:
        return False
    del counts[of]
    return True
