"""Delays between two points of a message's way, of the last minute or two. Pure; time is an argument.

Counts in classes 10 % wide, so that those of several processes add up and a percentile is off by at most 5 %.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Literal, get_args

import msgspec

Hop = Literal["exchange_to_callback", "callback_to_publish", "publish_to_worker", "worker_to_socket"]
HOPS: tuple[Hop, ...] = get_args(Hop)
# Seconds between two samples: on each of them a message is timed at every hop. A sample takes some microseconds.
SAMPLE_EVERY = 0.01
# Upper ends in seconds of the classes that Prometheus has.
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ENDS = (*(str(end) for end in BUCKETS), "+Inf")

# Seconds for which delays count: between one and two of these.
_WINDOW = 30.0
_CLASS = math.log(1.1)
_LEAST = 1e-6
# What a clock that differs by an hour, or a record of another day, says of a delay is nothing.
_MOST = 3600.0
# The time of the first record in a body: ms since 1970, of thirteen digits from 2001 until 2286.
_TIME = re.compile(rb'"time(?:Tag)?":(\d{13})(?!\d)')
# A record is looked for in so many bytes.
_LOOKED_AT = 4096


class Delays:
    """The delays of one hop."""

    def __init__(self) -> None:
        # Since the start: the sum of all delays, and how many are in each of `BUCKETS`, the last one being beyond.
        self.total = 0.0
        self._since_start = [0] * (len(BUCKETS) + 1)
        self._newer: Counter[int] = Counter()
        self._older: Counter[int] = Counter()
        self._turned_at = -math.inf

    def add(self, seconds: float, now: float) -> None:
        """Count a delay, at `now` in seconds of any monotonic clock; one that is negative counts as none."""
        self._turn(now)
        self.total += max(0.0, seconds)
        self._since_start[bisect_left(BUCKETS, seconds)] += 1
        self._newer[0 if seconds <= _LEAST else round(math.log(seconds / _LEAST) / _CLASS)] += 1

    def counts(self, now: float) -> dict[int, int]:
        """Return the counts by class."""
        self._turn(now)
        return dict(self._newer + self._older)

    def buckets(self) -> list[tuple[str, float]]:
        """Return how many delays since the start are at most as long as each of `BUCKETS`, as Prometheus has them."""
        return [*zip(_ENDS, accumulate(self._since_start), strict=True)]

    def _turn(self, now: float) -> None:
        if now - self._turned_at >= _WINDOW:
            late = now - self._turned_at >= 2 * _WINDOW
            self._older, self._newer = Counter() if late else self._newer, Counter()
            self._turned_at = now


class Percentiles(msgspec.Struct, frozen=True):
    """The median and the 99th percentile in seconds of `count` delays; None of none."""

    p50: float | None
    p99: float | None
    count: int


def percentiles(*counted: Mapping[int, int]) -> Percentiles:
    """Return the percentiles of all counts together."""
    together: Counter[int] = Counter()
    for counts in counted:
        together.update(counts)
    return Percentiles(_percentile(together, 0.5), _percentile(together, 0.99), together.total())


def exchange_delay(body: bytes, received_ns: int) -> float | None:
    """Return the seconds from the time in the first record of a body to its arrival; None where that says nothing.

    A bar has the time of its end, which may be in the future; a replay has another day.
    """
    found = _TIME.search(body, 0, _LOOKED_AT)
    if found is None:
        return None
    delay = received_ns / 1e9 - int(found[1]) / 1e3
    return delay if -_MOST < delay < _MOST else None


def _percentile(counts: Counter[int], share: float) -> float | None:
    left = math.ceil(share * counts.total())
    for number in sorted(counts):
        left -= counts[number]
        if left <= 0:
            return float(f"{_LEAST * 1.1**number:.3g}")
    return None
