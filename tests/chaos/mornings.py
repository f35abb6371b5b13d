"""Judges what a client with a `start` received on one connection: the day so far, then live. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

# Seconds before the end of a connection in which a notice may be lost with it: a worker may be frozen for seconds.
UNTOLD_SECONDS = 8.0


class Place(NamedTuple):
    """The position of a message."""

    epoch: int
    seq: int


class Arrival(NamedTuple):
    """A message that a client received, and when (time.monotonic())."""

    place: Place
    at: float


class Missing(NamedTuple):
    """A part that a client was told is missing: between two messages; None where the side is not known."""

    after: Place | None
    before: Place | None

    def has(self, place: Place) -> bool:
        """Return whether a message is in the part."""
        return (self.after is None or place > self.after) and (self.before is None or place < self.before)


class Published:
    """The messages of each code that anyone has received, with the times of their records."""

    def __init__(self) -> None:
        self._times: dict[str, dict[Place, int]] = defaultdict(dict)
        # The newest one of each code.
        self.newest: dict[str, Place] = {}

    def add(self, code: str, place: Place, time_ms: int) -> None:
        """Note a message."""
        self._times[code][place] = time_ms
        self.newest[code] = max(place, self.newest.get(code, place))

    def of(self, code: str) -> Mapping[Place, int]:
        """Return the messages of a code."""
        return self._times[code]


class Visit:
    """One connection of a client that has asked for some codes from a moment on, or from a place of each code.

    What is missing among the messages of its last `untold_seconds` is not judged: the notice may be lost with it.
    """

    def __init__(self, start: int | Mapping[str, Place], untold_seconds: float = UNTOLD_SECONDS) -> None:
        self.start = start
        self._untold_seconds = untold_seconds
        self.arrivals: dict[str, list[Arrival]] = defaultdict(list)
        self.gaps: dict[str, list[Missing]] = defaultdict(list)
        # Why parts are missing, by the ack and by notices.
        self.reasons: list[str] = []
        # From the ack: the codes that begin where it was asked for. Without an ack there is no data.
        self.complete: set[str] = set()
        self._incomplete: set[str] = set()
        # Messages that were skipped on the way of live data, by notices.
        self.skipped = 0
        # Whether a notice said that the feeder was away, or was started anew.
        self.data_lost = False
        # When it was cut, or the client left (time.monotonic()); None while it is there.
        self.ended_at: float | None = None

    def acknowledged(self, starts: Mapping[str, Mapping[str, Any]]) -> None:
        """Take from when the codes are complete."""
        self.complete = {code for code, said in starts.items() if said["complete"]}
        self.reasons += [said["reason"] for said in starts.values() if not said["complete"]]
        self._incomplete = starts.keys() - self.complete

    def told(self, notice: Mapping[str, Any]) -> None:
        """Take a notice."""
        match notice["type"]:
            case "gap":
                self.reasons.append(notice["reason"])
                self.gaps[notice["code"]].append(Missing(_place(notice.get("after")), _place(notice.get("before"))))
            case "skipped":
                self.skipped += notice["count"]
            case "feed":
                self.data_lost = self.data_lost or notice["data_lost"]

    def notices(self, code: str) -> int:
        """Return how often the client was told that something of a code is missing."""
        return len(self.gaps[code]) + (code in self._incomplete) + self.skipped + self.data_lost

    def misplaced(self, published: Published) -> Iterator[str]:
        """Yield the messages that came twice, out of order, or from before the start."""
        for code, arrivals in self.arrivals.items():
            first = arrivals[0].place
            if code in self.complete and not self._was_asked_for(code, first, published.of(code)[first]):
                yield f"{code}: {first} from before its start"
            for before, after in pairwise(arrivals):
                if after.place <= before.place:
                    yield f"{code}: {after.place} after {before.place}"

    def untold(self, published: Published) -> list[str]:
        """Return messages that are missing and of which the client was not told, each with what came around it."""
        missing = [(code, place) for code in self.arrivals for place in self._missing(code, published.of(code))]
        return [self._shown(code, place) for code, place in missing[self.skipped :]]

    def _shown(self, code: str, place: Place) -> str:
        arrived = [arrival.place for arrival in self.arrivals[code]]
        before = max((other for other in arrived if other < place), default=None)
        after = min(other for other in arrived if other > place)
        begun = "complete" if code in self.complete else "incomplete"
        return f"{code}: {place} between {before} and {after}, {begun} from {self.start}, told {self.gaps[code]}"

    def _missing(self, code: str, published: Mapping[Place, int]) -> Iterator[Place]:
        arrived = [arrival.place for arrival in self.arrivals[code]]
        received = set(arrived)
        end = self.ended_at
        judged = [
            arrival.place for arrival in self.arrivals[code] if end is None or arrival.at <= end - self._untold_seconds
        ]
        if not judged:
            return
        for place, time_ms in published.items():
            if place in received or place > judged[-1] or any(gap.has(place) for gap in self.gaps[code]):
                continue
            if place < arrived[0] and not (code in self.complete and self._was_asked_for(code, place, time_ms)):
                continue
            if self.data_lost and not _is_between_of_one_epoch(place, arrived):
                continue
            yield place

    def _was_asked_for(self, code: str, place: Place, time_ms: int) -> bool:
        return time_ms >= self.start if isinstance(self.start, int) else place > self.start[code]


def _is_between_of_one_epoch(place: Place, arrived: list[Place]) -> bool:
    """Return whether messages of the same run of the feeder came before and after one."""
    seqs = [other.seq for other in arrived if other.epoch == place.epoch]
    return bool(seqs) and min(seqs) < place.seq < max(seqs)


def _place(side: Mapping[str, Any] | None) -> Place | None:
    return Place(side["epoch"], side["seq"]) if side and "epoch" in side else None
