"""Records that found no room, of each thing the newest version only. Pure.

It keeps encoded records, so that its size is counted in bytes. What waited longest comes out first: a version that
replaces an older one takes its place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import msgspec

from feeder.push.route import Route, encoded
from qmt_bridge.wire.topics import Topic

# Bytes of records that wait: a record of each of some 50,000 codes.
MOST_BYTES = 32 * 1024 * 1024
# Bytes of a record besides its own and what its key names: its place. Measured, 230 to 310, and up to 560 while a long
# line is put in.
_OVERHEAD = 400


class _Waiting(NamedTuple):
    topic: Topic
    # Of a part of a whole market; else empty.
    code: str
    encoded: bytes
    received_ns: int


class Waited(NamedTuple):
    """A message that can be published: a body, or records by code of a whole market."""

    topic: Topic
    body: msgspec.Raw | dict[str, msgspec.Raw]
    received_ns: int


class Conflation:
    """The newest versions of what waits."""

    def __init__(self, limit: int = MOST_BYTES) -> None:
        self._limit = limit
        self._waiting: dict[object, _Waiting] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self, versions: int = 1) -> bool:
        """Return whether a body of so many versions may be put in.

        What is put in passes the bound by the bytes of one line at most: a line has up to 400,000 tiny records, and
        each takes far more than its text.
        """
        return self.size + versions * _OVERHEAD <= self._limit

    def put(self, route: Route, body: dict[str, object], received_ns: int) -> int:
        """Keep the newest versions in a body; return how many older ones they replaced. Raise `BadLine`."""
        versions = [(key, code, encoded(version)) for key, code, version in route.split(body)]
        replaced = 0
        for key, code, record in versions:
            older = self._waiting.get(key)
            if older is not None:
                replaced += 1
                self.size -= _cost(key, older.encoded)
            self.size += _cost(key, record)
            self._waiting[key] = _Waiting(route.topic, code, record, received_ns)
        return replaced

    def drop(self, keys: Iterable[object]) -> None:
        """Leave out versions that something newer has replaced."""
        for key in keys:
            older = self._waiting.pop(key, None)
            if older is not None:
                self.size -= _cost(key, older.encoded)

    def take(self, count: int) -> Iterator[Waited]:
        """Take out the `count` that have waited longest; those of one market are one message."""
        markets: dict[Topic, tuple[dict[str, msgspec.Raw], int]] = {}
        for key in list(islice(self._waiting, count)):
            each = self._waiting.pop(key)
            self.size -= _cost(key, each.encoded)
            if each.code:
                ticks, _ = markets.setdefault(each.topic, ({}, each.received_ns))
                ticks[each.code] = msgspec.Raw(each.encoded)
            else:
                yield Waited(each.topic, msgspec.Raw(each.encoded), each.received_ns)
        for topic, (ticks, received_ns) in markets.items():
            yield Waited(topic, ticks, received_ns)


def _cost(key: object, record: bytes) -> int:
    """Return the bytes of what waits: a time or the names of values may be as long as a line."""
    named = sys.getsizeof(key[1]) if isinstance(key, tuple) else 0
    return _OVERHEAD + named + len(record)
